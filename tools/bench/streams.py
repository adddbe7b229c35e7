"""P4: a stream in pieces of 64 KiB from one process to another, both on one core, vs plain blocking sockets.

Each end has opened its own socket, or else has redeemed it: a socket that others may hold has to poll before it takes.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

from tools.bench.ends import OURS, make, own
from tools.bench.rounds import Result, Settings, interleave, one_core, ratio

__all__ = ["measure"]

PIECE: Final = 64 * 1024
PIECES: Final = 400
# Transport, goal, floor.
CASES: Final = (("TCP", socket.AF_INET, 0.95, 0.90), ("UNIX", socket.AF_UNIX, 0.95, 0.75))
CONTENDERS: Final = ("plain", *OURS)


def _swallow(contender: str, family: int, address: Any, core: int) -> None:
    """Receive whatever comes; after each whole stream, say so: its length comes first, 8 bytes."""
    os.sched_setaffinity(0, {core})
    connection = make(contender, family)
    connection.connect(address)
    connection = own(contender, connection)
    while header := connection.recv(8):
        left = int.from_bytes(header)
        while left:
            left -= len(connection.recv(PIECE))
        connection.sendall(b".")


@contextmanager
def _stream(contender: str, family: int, core: int) -> Iterator[Callable[[int], float]]:
    with tempfile.TemporaryDirectory() as directory, make(contender, family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else os.path.join(directory, "listener"))
        listener.listen(1)
        terms = (contender, family, listener.getsockname(), core)
        process = multiprocessing.get_context("fork").Process(target=_swallow, args=terms, daemon=True)
        process.start()
        ours = own(contender, listener.accept()[0])
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
                runs = {name: partial(stack.enter_context(_stream(name, family, core)), pieces) for name in CONTENDERS}
                times = interleave(runs, settings)
            for name in OURS:
                measured, spread = ratio(times["plain"], times[name])
                text = f"64 KiB stream {transport}, {name} sockets, vs plain blocking"
                yield Result("P4", text, measured, goal, floor, spread=spread)
