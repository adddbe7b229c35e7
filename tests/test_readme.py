"""The README says what is so: its example prints what it shows, its commands exist, its numbers have tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.spec_coverage import claims, load

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def _block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_the_example_prints_what_is_shown(tmp_path: Path, method: str) -> None:
    """Under every start method, with warnings as errors, and without a word on stderr."""
    example = _block("python")
    assert example.count("\n    ours, peer") == 1
    chosen = f'\n    multiprocessing.set_start_method("{method}")\n    ours, peer'
    script = tmp_path / "example.py"
    script.write_text(example.replace("\n    ours, peer", chosen))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, str(script)], capture_output=True, text=True, timeout=60, env=environ
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == _block("text")


def test_every_command_is_there() -> None:
    for name in re.findall(r"^sh (tools/\w+)", TEXT, re.MULTILINE):
        assert os.access(ROOT / name, os.X_OK)
    for name in re.findall(r"^python (tools/\S+\.py)", TEXT, re.MULTILINE):
        assert (ROOT / name).is_file()


def test_every_promised_rule_has_a_test() -> None:
    promised = set(re.findall(r"\b(?:CLOSE|LINGER|DUP|REF|EXIT)-\d+", TEXT))
    assert promised <= {number for titles in load().sections.values() for number in titles}
    assert promised - {claim.number for claim in claims(ROOT)} == set()


@pytest.mark.fault("S-19")
def test_the_trust_model_says_what_a_holder_can_do() -> None:
    trust = " ".join(TEXT.split("## Trust")[1].split("\n## ")[0].split())
    assert "can read from it, write to it, shut it down and change its options" in trust
    for word in ("same user", "0700", "key", "unpickles nothing", "Root", "share(None)"):
        assert word in trust
