"""P15, P16: what it costs to open and close a socket that is never shared, and to import the package."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave, one_core, ratio

__all__ = ["measure"]

OPENINGS: Final = 500


def _open_and_close(make: Callable[[int, int], Any], openings: int) -> float:
    begin = perf_counter()
    for _ in range(openings):
        make(socket.AF_INET, socket.SOCK_STREAM).close()
    return perf_counter() - begin


def _import(module: str) -> float:
    """Return what an import takes in a new interpreter, in seconds, as that interpreter measures it."""
    code = f"from time import perf_counter; begin = perf_counter(); import {module}; print(perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P15 and P16; ratios of time, so less is better."""
    openings = settings.scaled(OPENINGS)
    with one_core():
        times = interleave(
            {
                "plain": partial(_open_and_close, socket.socket, openings),
                "shared": partial(_open_and_close, ss.SharedSocket, openings),
            },
            settings,
        )
    measured, spread = ratio(times["shared"], times["plain"])
    case = "open and close a descriptor never shared vs a plain socket"
    yield Result("P15", case, measured, 2.0, 4.0, higher_is_better=False, spread=spread)

    times = interleave({name: partial(_import, name) for name in ("socket", "sharedsock")}, settings)
    measured, spread = ratio(times["sharedsock"], times["socket"])
    case = "import sharedsock vs import socket"
    yield Result("P16", case, measured, 2.0, 4.0, higher_is_better=False, spread=spread)
