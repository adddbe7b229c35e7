"""P8: datagrams to a process that has many threads blocked on one descriptor, vs the same on a plain socket.

All on one core, as every round trip: on two, what is measured is how long the other core takes to wake up.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave_anew, one_core, ratio

__all__ = ["measure"]

THREADS: Final = (10, 100)
ROUND_TRIPS: Final = 500


def _answer(end: Any, threads: int, control: Connection) -> None:
    """Send each datagram back, from whichever thread gets it."""

    def work() -> None:
        while True:
            end.send(end.recv(16))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    control.send(None)
    control.recv()  # until we are killed


@contextmanager
def _crowd(contender: str, threads: int) -> Iterator[Callable[[int], float]]:
    theirs: Any
    if contender == "shared":
        shared, theirs = ss.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours = socket.socket(fileno=shared.detach())  # the same client for both
    else:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    context = multiprocessing.get_context("fork")
    control, other = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, threads, other), daemon=True)
    process.start()
    theirs.close()
    control.recv()

    def measure(round_trips: int) -> float:
        begin = perf_counter()
        for _ in range(round_trips):
            ours.send(b"datagram")
            ours.recv(16)
        return perf_counter() - begin

    try:
        yield measure
    finally:
        process.kill()
        process.join()
        ours.close()
        control.close()
        other.close()


@contextmanager
def _crowds(threads: int, round_trips: int) -> Iterator[dict[str, Callable[[], float]]]:
    with ExitStack() as stack:
        yield {name: partial(stack.enter_context(_crowd(name, threads)), round_trips) for name in ("plain", "shared")}


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P8 for each number of threads; ratios of speed, so more is better."""
    for threads in THREADS:
        with one_core():
            times = interleave_anew(partial(_crowds, threads, settings.scaled(ROUND_TRIPS)), settings)
        measured, spread = ratio(times["plain"], times["shared"])
        case = f"datagram recv, {threads} threads blocked, vs plain blocking"
        yield Result("P8", case, measured, 0.95, 0.50, spread=spread)
