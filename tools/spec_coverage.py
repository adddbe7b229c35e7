"""Which rules of the specification and faults of the catalogue have a test, and which have none.

    python tools/spec_coverage.py [--stage N] [--missing | --markdown] [ROOT]

A test claims numbers by its markers: `@pytest.mark.rule("DUP-3", "DUP-5")`, `@pytest.mark.fault("F-22")`; they are read
from the syntax trees below tests/, so nothing is imported. The numbers are in spec_numbers.toml. Exits 0, or with
--stage 1 if a number of that stage has no test; a number that does not exist is an error in either case.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Numbers", "claims", "load", "main", "table"]

NUMBERS_FILE: Final = Path(__file__).with_name("spec_numbers.toml")
MARKERS: Final = ("rule", "fault")
NOT_OF_WINSOCK: Final = ("Invariants", "Fault catalogue", "Security requirements")


class Numbers(NamedTuple):
    """The data file: section -> number -> title, stage -> numbers, and number -> why it has no test."""

    sections: dict[str, dict[str, str]]
    stages: dict[int, list[str]]
    untested: dict[str, str]


def load(path: Path = NUMBERS_FILE) -> Numbers:
    """Read the data file; a stage's ranges are spelled out.

    Raises:
        ValueError: a stage names a number that no section has.
    """
    data = tomllib.loads(path.read_text())
    known = [number for section in data["sections"].values() for number in section]
    stages = {}
    for stage, entries in data["stages"].items():
        stages[int(stage)] = [number for entry in entries for number in _spell_out(entry, known)]
    return Numbers(data["sections"], stages, data.get("untested", {}))


def _spell_out(entry: str, known: list[str]) -> list[str]:
    first, _, last = entry.partition("..")
    if first not in known or (last or first) not in known:
        raise ValueError(f"no such number: {entry}")
    return known[known.index(first) : known.index(last or first) + 1]


class Claim(NamedTuple):
    """One number in one marker."""

    number: str
    path: str
    line: int


def claims(root: Path) -> Iterator[Claim]:
    """Yield every number a marker below tests/ carries.

    Raises:
        ValueError: a marker's argument is not written out, so nobody could find it.
    """
    for file in sorted((root / "tests").rglob("*.py")):
        path = str(file.relative_to(root))
        for node in ast.walk(ast.parse(file.read_text(), path)):
            if not isinstance(node, ast.Call) or not _is_marker(node.func):
                continue
            for argument in node.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise ValueError(f"{path}:{node.lineno}: write the numbers out")
                yield Claim(argument.value, path, node.lineno)


def _is_marker(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in MARKERS
        and isinstance(function.value, ast.Attribute)
        and function.value.attr == "mark"
    )


def table(numbers: Numbers, root: Path) -> str:
    """Return the Winsock rules' coverage as a table: a section per line, and what has no test with the reason."""
    tested = {claim.number for claim in claims(root)}
    lines = ["| rules of the SPI pages | how many | with a test | without |", "| --- | --- | --- | --- |"]
    counts = [0, 0]
    for section, titles in numbers.sections.items():
        if section in NOT_OF_WINSOCK:
            continue
        without = [
            f"{number}: {numbers.untested.get(number, title)}"
            for number, title in titles.items()
            if number not in tested
        ]
        done = len(titles) - len(without)
        counts = [counts[0] + len(titles), counts[1] + done]
        lines.append(f"| {section} | {len(titles)} | {done} | {'; '.join(without)} |")
    lines.append(f"| all | {counts[0]} | {counts[1]} | |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table and the count of each section; return 1 if a stage misses one or a marker names none."""
    parser = argparse.ArgumentParser(prog="spec_coverage.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--stage", type=int, help="only the numbers of this stage, and fail if one has no test")
    parser.add_argument("--missing", action="store_true", help="list only the numbers without a test")
    parser.add_argument("--markdown", action="store_true", help="print the README's table of the Winsock rules")
    options = parser.parse_args(arguments)
    numbers = load()
    if options.markdown:
        print(table(numbers, options.root))
        return 0
    if options.stage is not None and options.stage not in numbers.stages:
        parser.error(f"no stage {options.stage}; there are {sorted(numbers.stages)}")
    wanted = numbers.stages.get(options.stage)
    tests: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims(options.root):
        tests[claim.number].append(claim)

    total = covered = 0
    for section, titles in numbers.sections.items():
        chosen = {n: title for n, title in titles.items() if wanted is None or n in wanted}
        if not chosen:
            continue
        done = sum(n in tests for n in chosen)
        total, covered = total + len(chosen), covered + done
        print(f"{section}: {done} of {len(chosen)}")
        for number, title in chosen.items():
            if number in tests and not options.missing:
                more = f" and {len(tests[number]) - 1} more" if len(tests[number]) > 1 else ""
                print(f"  {number:10} {tests[number][0].path}:{tests[number][0].line}{more}")
            elif number not in tests:
                print(f"  {number:10} -- no test --  {title}")

    known = {number for titles in numbers.sections.values() for number in titles}
    strangers = [claim for number, found in tests.items() if number not in known for claim in found]
    for claim in strangers:
        print(f"{claim.path}:{claim.line}: there is no {claim.number}")
    of = "" if options.stage is None else f" of stage {options.stage}"
    print(f"specification{of}: {covered} of {total} numbers have a test")
    return 1 if strangers or (wanted is not None and covered < total) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
