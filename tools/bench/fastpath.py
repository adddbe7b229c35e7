"""P3: recv(1) when the data is there already, vs the same call of a plain blocking socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave, one_core, ratio

__all__ = ["measure"]

CALLS: Final = 20_000


def _reader(pair: tuple[Any, Any], calls: int) -> Callable[[], float]:
    sender, receiver = pair
    data = b"m" * calls

    def run() -> float:
        sender.sendall(data)
        recv = receiver.recv
        begin = perf_counter()
        for _ in range(calls):
            recv(1)
        return perf_counter() - begin

    return run


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P3; a ratio of speed, so more is better."""
    with one_core(), ExitStack() as stack:
        plain, shared = socket.socketpair(), ss.socketpair()
        for end in (*plain, *shared):
            stack.enter_context(end)
        calls = settings.scaled(CALLS)
        times = interleave({"plain": _reader(plain, calls), "shared": _reader(shared, calls)}, settings)
    measured, spread = ratio(times["plain"], times["shared"])
    yield Result("P3", "data-ready recv(1) vs plain", measured, 0.92, 0.85, spread=spread)
