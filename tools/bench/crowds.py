"""P8: datagrams to a process that has many threads blocked on one descriptor, vs the same on a plain socket."""

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
from tools.bench.rounds import Result, Settings, interleave, ratio

__all__ = ["measure"]

THREADS: Final = (10, 100)
ROUND_TRIPS: Final = 500
# Each part has a new process: how its threads lie on the cores is decided anew, and stays so for a while.
PARTS: Final = 5


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


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P8 for each number of threads; ratios of speed, so more is better."""
    round_trips = settings.scaled(ROUND_TRIPS)
    parts = 1 if settings.quick else PARTS
    for threads in THREADS:
        times: dict[str, list[float]] = {name: [] for name in ("plain", "shared")}
        for _ in range(parts):
            with ExitStack() as stack:
                runs = {name: partial(stack.enter_context(_crowd(name, threads)), round_trips) for name in times}
                for name, measured_s in interleave(runs, settings, settings.rounds // parts).items():
                    times[name] += measured_s
        measured, spread = ratio(times["plain"], times["shared"])
        case = f"datagram recv, {threads} threads blocked, vs plain blocking"
        yield Result("P8", case, measured, 0.95, 0.50, spread=spread)
