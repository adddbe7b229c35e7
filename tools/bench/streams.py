"""P4: a stream in pieces of 64 KiB from one process to another, both on one core, vs plain blocking sockets."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave, one_core, ratio

__all__ = ["measure"]

PIECE: Final = 64 * 1024
PIECES: Final = 400
# Transport, goal, floor.
CASES: Final = (("TCP", socket.AF_INET, 0.95, 0.90), ("UNIX", socket.AF_UNIX, 0.95, 0.75))


def _connected(contender: str, family: int) -> tuple[Any, Any]:
    if family == socket.AF_UNIX:
        return ss.socketpair() if contender == "shared" else socket.socketpair()
    make: Any = ss if contender == "shared" else socket
    with make.create_server(("127.0.0.1", 0)) as listener:
        client = make.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def _swallow(connection: Any, core: int) -> None:
    """Receive whatever comes; after each whole stream, say so: its length comes first, 8 bytes."""
    os.sched_setaffinity(0, {core})
    while header := connection.recv(8):
        left = int.from_bytes(header)
        while left:
            left -= len(connection.recv(PIECE))
        connection.sendall(b".")


@contextmanager
def _stream(contender: str, family: int, core: int) -> Iterator[Callable[[int], float]]:
    ours, theirs = _connected(contender, family)
    # By fork: a plain socket is inherited, a shared one is handed over on the way.
    process = multiprocessing.get_context("fork").Process(target=_swallow, args=(theirs, core), daemon=True)
    process.start()
    theirs.close()
    piece = bytes(PIECE)

    def measure(pieces: int) -> float:
        begin = perf_counter()
        ours.sendall((pieces * PIECE).to_bytes(8))
        for _ in range(pieces):
            ours.sendall(piece)
        ours.recv(1)
        return perf_counter() - begin

    try:
        yield measure
    finally:
        ours.close()
        process.kill()
        process.join()


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P4 for each transport; ratios of speed, so more is better."""
    pieces = settings.scaled(PIECES)
    with one_core() as core:
        for transport, family, goal, floor in CASES:
            with ExitStack() as stack:
                runs = {
                    name: partial(stack.enter_context(_stream(name, family, core)), pieces)
                    for name in ("plain", "shared")
                }
                times = interleave(runs, settings)
            measured, spread = ratio(times["plain"], times["shared"])
            yield Result("P4", f"64 KiB stream {transport} vs plain blocking", measured, goal, floor, spread=spread)
