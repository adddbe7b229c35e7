"""Take each remedy of the fault catalogue's A.2, and other guards, out of a copy of the tree, and see a test go red.

    python tools/mutations/run.py [--list] [--table FILE] [--root DIR] [--timeout S] [NAME ...]

A mutation is a row of table.toml: a file, an exact piece of it, what stands there instead, the remedy it removes, and
the tests that must go red, each of them. The tree is copied to a temporary directory for every mutation; the checkout
is never touched. First the same tests must be green without any mutation, or a red one would prove nothing. A run that
hangs is red: it is ended after the timeout, with every process it started. Exits 1 if a mutation survives, or if its
piece is not in the file exactly once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import psutil

__all__ = ["Mutation", "Outcome", "load", "main", "matches", "try_one"]

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = Path(__file__).with_name("table.toml")
COPIED: Final = ("sharedsock", "tests", "tools", "pyproject.toml", "pytest.ini", "README.md")
TIMEOUT_S: Final = 120.0
PLUGIN: Final = "sharedsock.pytest_plugin"  # pyproject.toml sets options of its own
HANG_S: Final = 15.0  # a mutated test that is silent for so long hangs; unmutated ones need a fraction of it
_MARK: Final = "MUTATION_OF_SHAREDSOCK"
_RED_LINE: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_TESTS_FAILED: Final = 1


@dataclass(frozen=True)
class Mutation:
    """One row: `before` in `file` becomes `after`, which takes remedy number `remedy` away; of 0, another guard."""

    name: str
    remedy: int
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of it: `verdict` is killed, survived or stale; `detail` says by what, or why not."""

    mutation: Mutation
    verdict: str
    detail: str
    seconds: float


def load(table: Path = TABLE) -> list[Mutation]:
    """Read the table, in its order.

    Raises:
        ValueError: two rows have one name.
    """
    rows = [
        Mutation(row["name"], row["remedy"], row["file"], row["before"], row["after"], tuple(row["tests"]))
        for row in tomllib.loads(table.read_text()).get("mutation", [])
    ]
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"{table}: two mutations have one name")
    return rows


def matches(root: Path, mutation: Mutation) -> int:
    """Return how often the piece stands in its file; one is right, a file that is gone has none."""
    file = root / mutation.file
    return file.read_text().count(mutation.before) if file.is_file() else 0


@contextmanager
def _copy(root: Path) -> Iterator[Path]:
    """Copy what the tests need to a temporary directory; throw the copy away."""
    with tempfile.TemporaryDirectory(prefix="sharedsock-mutation-") as directory:
        copy = Path(directory)
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, copy / name)
        yield copy


def _run_tests(copy: Path, tests: Sequence[str], timeout_s: float, *options: str) -> tuple[int | None, str]:
    """Run tests in a copy; return pytest's exit status (None: it hung) and what it printed."""
    mark = uuid.uuid4().hex
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SHAREDSOCK_"))}
    environ |= {_MARK: mark, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half of the time of a short run
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
    if (copy / "sharedsock/pytest_plugin").is_dir():
        command += ["-p", PLUGIN]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, *options, *tests], cwd=copy, env=environ, stdout=output, stderr=output, start_new_session=True
        )
        status: int | None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_all(mark)
            process.wait()
        output.seek(0)
        return status, output.read()


def _end_all(mark: str) -> None:
    """Kill every process that was started with this mark in its environment, registries and orphans as well."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def try_one(root: Path, mutation: Mutation, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Mutate a copy and run the tests in it."""
    begin = perf_counter()
    found = matches(root, mutation)
    if found != 1:
        return Outcome(mutation, "stale", f"the piece is in {mutation.file} {found} times", 0.0)
    details = []
    with _copy(root) as copy:
        file = copy / mutation.file
        file.write_text(file.read_text().replace(mutation.before, mutation.after))
        for test in mutation.tests:
            status, printed = _run_tests(copy, [test], timeout_s, "-x", "-o", f"faulthandler_timeout={HANG_S:g}")
            verdict, detail = _judge(status, printed)
            if verdict != "killed":
                return Outcome(mutation, verdict, f"{test}: {detail}", perf_counter() - begin)
            details.append(detail)
    return Outcome(mutation, "killed", ", ".join(details), perf_counter() - begin)


def _judge(status: int | None, printed: str) -> tuple[str, str]:
    """Return the verdict on the run of one listed test."""
    if status is None:
        return "killed", "hung"
    if status == 0:
        return "survived", "green"
    red = _RED_LINE.search(printed)
    if status == _TESTS_FAILED and red is not None:
        return "killed", red.group(1).rpartition("::")[2]
    if status < 0 or status == _TESTS_FAILED:  # a signal, or the hang watch ended it
        return "killed", "the test process died"
    return "stale", f"pytest exit {status}: {' '.join(printed.split())[-200:]}"


def _is_of(node: str, test: str) -> bool:
    """Whether a red node is the listed test, one of its parameter sets, or one in the listed file."""
    return node == test or node.startswith((test + "[", test + "::", test + "/"))


def main(arguments: list[str]) -> int:
    """Run the table; print a line each; return 0 if all are killed."""
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations, or remedies as numbers; default all")
    parser.add_argument("--list", action="store_true", help="print the table and whether each piece still matches")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for the tests of one mutation")
    options = parser.parse_args(arguments)
    table = load(options.table)
    strangers = set(options.names) - {row.name for row in table} - {str(row.remedy) for row in table}
    if strangers:
        parser.error(f"no such mutation: {', '.join(sorted(strangers))}")
    chosen = [row for row in table if not options.names or {row.name, str(row.remedy)} & set(options.names)]
    if options.list:
        for row in chosen:
            state = "ok" if matches(options.root, row) == 1 else "STALE"
            print(f"{row.remedy:2} {row.name:40} {state:6} {row.file}  {' '.join(row.tests)}")
        return int(any(matches(options.root, row) != 1 for row in chosen))

    tests = sorted({test for row in chosen for test in row.tests})
    with _copy(options.root) as copy:
        status, printed = _run_tests(copy, tests, options.timeout * 2)
    red_before = _RED_LINE.findall(printed)
    if status != 0 and not red_before:
        print(f"{printed}\nthe tests cannot run even without a mutation: pytest exit {status}")
        return 1
    outcomes = []
    for row in chosen:
        useless = [node for node in red_before if any(_is_of(node, test) for test in row.tests)]
        if useless:
            outcome = Outcome(row, "stale", f"red without the mutation: {', '.join(useless)}", 0.0)
        else:
            outcome = try_one(options.root, row, options.timeout)
        outcomes.append(outcome)
        verdict = outcome.verdict if outcome.verdict == "killed" else outcome.verdict.upper()
        print(f"{row.remedy:2} {row.name:40} {verdict:8} {outcome.seconds:5.1f} s  {outcome.detail}", flush=True)
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    print(f"mutations: {killed} of {len(outcomes)} killed")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
