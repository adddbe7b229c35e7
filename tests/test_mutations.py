"""The mutation runner on a made-up tree; and the real table still fits the code, with a row for every remedy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.mutations.run import ROOT, Mutation, load, main, matches, try_one

CODE = "def double(x):\n    return x + x\n\n\ndef wait():\n    return True\n"
TESTS = """
import threading
from sharedsock.toy import double, wait

def test_double():
    assert double(3) == 6

def test_double_of_two():
    assert double(2) == 4

def test_wait():
    assert wait() or threading.Event().wait()

def test_of_nothing():
    pass
"""
ROW = """
[[mutation]]
name = "{name}"
remedy = {remedy}
file = "sharedsock/toy.py"
before = "{before}"
after = "{after}"
tests = [{tests}]
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "sharedsock").mkdir()
    (tmp_path / "sharedsock/__init__.py").write_text("")
    (tmp_path / "sharedsock/toy.py").write_text(CODE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_toy.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def _run(toy: Path, *rows: tuple[str, int, str, str, tuple[str, ...]], options: tuple[str, ...] = ()) -> int:
    table = toy / "table.toml"
    table.write_text(
        "".join(
            ROW.format(
                name=name, remedy=remedy, before=before, after=after,
                tests=", ".join(f'"tests/test_toy.py::{test}"' for test in tests),
            )
            for name, remedy, before, after, tests in rows
        )
    )  # fmt: skip
    return main(["--root", str(toy), "--table", str(table), *options])


def _mutation(before: str, after: str, *tests: str) -> Mutation:
    return Mutation("m", 1, "sharedsock/toy.py", before, after, tuple(f"tests/test_toy.py::{test}" for test in tests))


@pytest.mark.parametrize(
    ("after", "tests"),
    [("x * 2", ("test_double",)), ("x * 3", ("test_double", "test_of_nothing")), ("x ** 2", ("test_double_of_two",))],
    ids=["equivalent", "one of two stays green", "not this case"],
)
def test_a_mutation_that_leaves_a_test_green_survives(toy: Path, after: str, tests: tuple[str, ...]) -> None:
    outcome = try_one(toy, _mutation("x + x", after, *tests))
    assert outcome.verdict == "survived"
    assert tests[-1] in outcome.detail


def test_a_hang_is_a_kill(toy: Path) -> None:
    outcome = try_one(toy, _mutation("return True", "return False", "test_wait"), timeout_s=3)
    assert (outcome.verdict, outcome.detail) == ("killed", "hung")


@pytest.mark.parametrize("before", ["x - x", "x"])
def test_a_piece_that_is_not_there_exactly_once_is_stale(
    toy: Path, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    assert try_one(toy, _mutation(before, "y", "test_double")).verdict == "stale"
    assert _run(toy, ("m", 1, before, "y", ("test_double",)), options=("--list",)) == 1
    assert "STALE" in capsys.readouterr().out


def test_a_test_that_cannot_run_proves_nothing(toy: Path) -> None:
    assert try_one(toy, _mutation("x + x", "x +", "test_double")).verdict == "stale", "the module does not import"
    assert try_one(toy, _mutation("x + x", "x", "test_gone")).verdict == "stale"


def test_red_tests_without_a_mutation_prove_nothing(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "sharedsock/toy.py").write_text(CODE.replace("x + x", "x"))
    assert _run(toy, ("m", 1, "return True", "return 1", ("test_double",))) == 1
    assert "red without the mutation: tests/test_toy.py::test_double" in capsys.readouterr().out


def test_names_and_remedies_choose(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, the worst decides; the checkout is as it was."""
    rows = [("one", 1, "x + x", "x", ("test_double",)), ("two", 2, "x + x", "x * 2", ("test_double",))]
    assert _run(toy, *rows, options=("one",)) == 0
    assert "1 of 1 killed" in capsys.readouterr().out
    assert _run(toy, *rows, options=("2",)) == 1
    assert "SURVIVED" in capsys.readouterr().out
    assert (toy / "sharedsock/toy.py").read_text() == CODE
    with pytest.raises(SystemExit):
        _run(toy, *rows, options=("three",))
    assert "no such mutation: three" in capsys.readouterr().err


# -- the real table -----------------------------------------------------------------------------------------------

REAL = load()


@pytest.mark.parametrize("mutation", REAL, ids=lambda mutation: mutation.name)
def test_a_row_fits_the_code_and_names_tests_that_exist(mutation: Mutation) -> None:
    assert matches(ROOT, mutation) == 1
    assert mutation.before != mutation.after
    for test in mutation.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert not name or name.split("::")[-1].split("[")[0] in names


def test_every_remedy_has_a_mutation() -> None:
    """The fault catalogue, A.2: rules 1 to 16; 0 is none of them, but a guard of the room its file is in."""
    assert {mutation.remedy for mutation in REAL} == set(range(17))
