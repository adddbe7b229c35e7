"""The coverage table tells which numbers have a test; numbers nobody could find, or that do not exist, are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.spec_coverage import Claim, claims, load, main


def _tests(root: Path, text: str) -> Path:
    (root / "tests" / "kernel").mkdir(parents=True)
    (root / "tests" / "kernel" / "test_a.py").write_text("import pytest\n" + text)
    return root


def test_every_section_of_the_specification_is_listed() -> None:
    """As many rules, faults and requirements as the documents have."""
    counts: dict[str, int] = {}
    for titles in load().sections.values():
        for number in titles:
            kind = number.split("-")[0].rstrip("0123456789")
            counts[kind] = counts.get(kind, 0) + 1
    assert counts == {
        "CLOSE": 34, "LINGER": 16, "DUP": 26, "REF": 7, "STARTUP": 6, "CLEANUP": 7, "EXIT": 2, "SHUT": 16, "IFS": 4,
        "NONIFS": 13, "OVERLAP": 20, "EVENT": 12, "SELECT": 5, "CANCEL": 7, "I": 10, "F": 122, "S": 19,
    }  # fmt: skip


def test_a_stage_spells_its_ranges_out() -> None:
    stage = load().stages[1]
    assert {"CLOSE-3", "F-35", "S-16", "F-122"} <= set(stage)
    assert not {"F-08", "F-42", "S-17", "LINGER-4"} & set(stage)
    assert len(stage) == len(set(stage))


def test_markers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """On functions, classes, modules and single parameters; several numbers in one."""
    root = _tests(
        tmp_path,
        'pytestmark = pytest.mark.rule("DUP-1")\n'
        '@pytest.mark.rule("DUP-2", "DUP-3")\n'
        '@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault("F-01"))])\n'
        "def test(x): ...\n",
    )
    path = "tests/kernel/test_a.py"
    assert sorted(claims(root)) == [
        Claim("DUP-1", path, 2), Claim("DUP-2", path, 3), Claim("DUP-3", path, 3), Claim("F-01", path, 4)
    ]  # fmt: skip


def test_the_table_without_a_stage_is_information(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _tests(tmp_path, '@pytest.mark.rule("DUP-2")\ndef test(): ...\n')
    assert main([str(root)]) == 0
    printed = capsys.readouterr().out
    assert "Duplicate (shared sockets): 1 of 26" in printed
    assert "DUP-2      tests/kernel/test_a.py:2" in printed
    assert "DUP-3      -- no test --  Same info used a second time" in printed
    assert "1 of 326 numbers have a test" in printed


def test_a_stage_with_a_missing_number_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _tests(tmp_path, "")
    assert main(["--stage", "1", "--missing", str(root)]) == 1
    assert "F-08" not in capsys.readouterr().out
    every = ", ".join(f'"{number}"' for number in load().stages[1])
    (root / "tests" / "test_all.py").write_text(f"import pytest\n@pytest.mark.fault({every})\ndef test(): ...\n")
    assert main(["--stage", "1", str(root)]) == 0


def test_a_number_that_does_not_exist_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _tests(tmp_path, '@pytest.mark.fault("F-999")\ndef test(): ...\n')
    assert main([str(root)]) == 1
    assert "tests/kernel/test_a.py:2: there is no F-999" in capsys.readouterr().out


def test_a_number_that_is_computed_is_an_error(tmp_path: Path) -> None:
    root = _tests(tmp_path, '@pytest.mark.fault(f"F-{1}")\ndef test(): ...\n')
    with pytest.raises(ValueError, match=r"test_a.py:2: write the numbers out"):
        list(claims(root))


def test_a_stage_that_names_no_number_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "numbers.toml"
    data.write_text('[stages]\n1 = ["A-1..A-9"]\n[sections.A]\nA-1 = "one"\n')
    with pytest.raises(ValueError, match=r"no such number: A-1\.\.A-9"):
        load(data)
