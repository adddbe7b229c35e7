"""The README's provider does what is printed under it, and its table of rules is the one the tool prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sharedsock import spi
from tools.spec_coverage import load, table

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "README.md").read_text().split("## The Winsock SPI\n")[1].split("\n## ")[0]


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def test_a_non_ifs_provider_in_25_lines_prints_what_is_shown(tmp_path: Path) -> None:
    script = tmp_path / "provider.py"
    script.write_text(block("python"))
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 25
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == block("text")


def test_the_table_of_rules_is_the_tool_s() -> None:
    shown = re.search(r"<!-- printed by .* -->\n\n(.*?)\n\n<!-- end", SECTION, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == table(load(), ROOT)


def test_every_rule_of_winsock_has_a_test_or_a_reason() -> None:
    for line in table(load(), ROOT).splitlines()[2:]:
        without = line.split("|")[4].strip()
        assert not without or without.split(":")[0] in load().untested


def test_what_the_section_names_is_there() -> None:
    for name in re.findall(r"`spi\.(\w+)`", SECTION):
        assert hasattr(spi, name)
