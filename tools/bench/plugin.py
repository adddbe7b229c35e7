"""P16 and the plug-in's price: what a session pays that does not use it, and what a leak check of one test costs.

A session of empty tests runs with the plug-in and without, in fresh processes, interleaved. Start-up is the difference
of two sessions without a test, each the quickest of a few, in milliseconds; the price of a test the ratio of two
sessions of many, start-up taken off. A leak check is the count before and after, with 50 descriptors open, in ms.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from sharedsock.testing.findings import KINDS
from sharedsock.testing.leaks import Check
from sharedsock.testing.origins import Recording
from tools.bench.rounds import Result, Settings, interleave

__all__ = ["measure"]

_PROGRAM = (
    "import sys, time, pytest\n"
    "began = time.perf_counter()\n"
    "code = pytest.main(sys.argv[1:])\n"
    "print('took', time.perf_counter() - began)\n"
    "raise SystemExit(code not in (0, 5))\n"
)
_OPEN = 50
_STARTS = 4


def _session_s(directory: Path, *arguments: str) -> float:
    """Run one session in a process of its own; return how long pytest took, less its own import."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(directory / "compiled"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", _PROGRAM, "-q", "-p", "no:cacheprovider", "-p", "no:logging", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("took ")[2])


def _start_s(directory: Path, *arguments: str) -> float:
    """Return the least of a few sessions: what disturbs a start of 200 ms only makes it longer."""
    return min(_session_s(directory, *arguments) for _ in range(_STARTS))


def _check_s() -> float:
    """Count before and after, once, with descriptors open."""
    kinds = frozenset(KINDS)
    recording = Recording("bench")
    began_s = perf_counter()
    found = Check(kinds, recording).findings()
    assert not found
    return perf_counter() - began_s


def measure(settings: Settings) -> Iterator[Result]:
    """Measure start-up, the price of an idle plug-in per test, and a leak check."""
    count = settings.scaled(2000)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_none.py").write_text("")
        body = f"import pytest\n@pytest.mark.parametrize('number', range({count}))\ndef test_it(number): pass\n"
        (directory / "test_many.py").write_text(body)
        ours = ("-p", "sharedsock.pytest_plugin")
        values = interleave(
            {
                "start with": lambda: _start_s(directory, *ours, "test_none.py"),
                "start without": lambda: _start_s(directory, "test_none.py"),
                "many with": lambda: _session_s(directory, *ours, "test_many.py"),
                "many without": lambda: _session_s(directory, "test_many.py"),
            },
            settings,
        )
    starts = sorted((one - other) * 1e3 for one, other in _pairs(values, "start with", "start without"))
    tests = [
        (many - start) / (plain - plain_start)
        for many, start, plain, plain_start in zip(
            *(values[key] for key in ("many with", "start with", "many without", "start without")), strict=True
        )
    ]
    yield Result("P16", "start-up of an idle plug-in, ms", statistics.median(starts), 10, 30, False, _quartiles(starts))
    yield Result("P16", "an empty test beside an idle plug-in, / without", statistics.median(tests), 1.01, 1.05, False,
                 _quartiles(sorted(tests)))  # fmt: skip
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(_OPEN)]
    try:
        checks = [_check_s() * 1e3 for _ in range(settings.scaled(1000))]
    finally:
        for number in files:
            os.close(number)
    yield Result("P16", f"leak check of a test, {_OPEN} descriptors open, ms", statistics.median(checks), 3, 6, False,
                 _quartiles(sorted(checks)))  # fmt: skip


def _pairs(values: dict[str, list[float]], one: str, other: str) -> Iterator[tuple[float, float]]:
    return zip(values[one], values[other], strict=True)


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, last = statistics.quantiles(values, n=4)
    return first, last
