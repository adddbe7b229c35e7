"""P1, P2, P5: a message there and back between two processes on one core.

Against plain and settimeout() sockets, and against what else can be aborted (peers.py); all in one interleaved run.
Each end of each contender is a process of its own, which has imported what it needs and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Final

from tools.bench import peers
from tools.bench.ends import OURS, make, own
from tools.bench.rounds import Result, Settings, interleave_anew, one_core, ratio

__all__ = ["measure"]

ROUND_TRIPS: Final = 2000
# A slow peer measures fewer: its figure is a time per round trip.
PEER_ROUND_TRIPS: Final = 200
CASES: Final = (
    ("TCP", socket.AF_INET, 1),
    ("TCP", socket.AF_INET, 1024),
    ("UNIX", socket.AF_UNIX, 1),
    ("UNIX", socket.AF_UNIX, 1024),
)
CONTENDERS: Final = ("plain", "settimeout", *OURS)


def _prepare(connection: Any, contender: str, family: int) -> Any:
    """Return the socket that is to be measured."""
    if family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = own(contender, connection)
    connection.settimeout(60.0 if contender == "settimeout" else None)
    return connection


def _echo(contender: str, family: int, size: int, core: int, address: Any) -> None:
    """The other end: send back whatever comes."""
    if contender in peers.PEERS:
        return peers.echo(contender, family, address, size, core)
    os.sched_setaffinity(0, {core})
    connection = make(contender, family)
    connection.connect(address)
    connection = _prepare(connection, contender, family)
    recv, sendall = connection.recv, connection.sendall
    while data := recv(size):
        sendall(data)
    connection.close()


def _listen(contender: str, family: int, size: int, core: int, path: str, control: Connection) -> None:
    """The driving end: tell the address and that somebody has connected; then measure round trips as often as asked."""
    os.sched_setaffinity(0, {core})
    with make(contender, family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else path)
        listener.listen(1)
        control.send(listener.getsockname())
        connection, _ = listener.accept()
    connection = _prepare(connection, contender, family)
    message = b"m" * size

    def drive(round_trips: int) -> float:
        recv, sendall = connection.recv, connection.sendall
        begin = perf_counter()
        for _ in range(round_trips):
            sendall(message)
            recv(size)
        return perf_counter() - begin

    run = peers.pinger(contender, connection, message) if contender in peers.PEERS else drive
    control.send(None)
    while round_trips := control.recv():
        control.send(run(round_trips) / round_trips)
    connection.close()


def _ask(control: Connection, round_trips: int) -> float:
    control.send(round_trips)
    seconds: float = control.recv()
    return seconds


@contextmanager
def _pair(contender: str, family: int, size: int, core: int, directory: str) -> Iterator[Connection]:
    """Have two processes talk; give the pipe on which one of them is told how often, and answers in seconds each."""
    spawn = multiprocessing.get_context("spawn")
    control, other = spawn.Pipe()
    path = os.path.join(directory, f"{contender}-{size}")
    terms = (contender, family, size, core)
    driving = spawn.Process(target=_listen, args=(*terms, path, other), daemon=True)
    with control, other:
        driving.start()
        other.close()
        address = control.recv()
        echoing = spawn.Process(target=_echo, args=(*terms, address), daemon=True)
        echoing.start()
        try:
            control.recv()
            yield control
        finally:
            for process in (driving, echoing):
                process.kill()
                process.join()


@contextmanager
def _pairs(
    family: int, size: int, others: list[str], core: int, settings: Settings
) -> Iterator[dict[str, Callable[[], float]]]:
    """Have a pair for each contender; give what measures its seconds per round trip."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        runs: dict[str, Callable[[], float]] = {}
        for name in (*CONTENDERS, *others):
            control = stack.enter_context(_pair(name, family, size, core, directory))
            round_trips = settings.scaled(ROUND_TRIPS if name in CONTENDERS else PEER_ROUND_TRIPS)
            runs[name] = partial(_ask, control, round_trips)
        yield runs


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P1, P2 and P5 for each transport and size; ratios of speed, so more is better."""
    missing = peers.absent()
    with one_core() as core:
        for transport, family, size in CASES:
            others = [name for name in peers.PEERS if name not in missing] if size == 1 else []
            times = interleave_anew(partial(_pairs, family, size, others, core, settings), settings)
            case = f"{transport} {size} B"
            for name in OURS:
                measured, spread = ratio(times["plain"], times[name])
                yield Result("P1", f"ping-pong {case}, {name}, vs plain blocking", measured, 0.95, 0.80, spread=spread)
                measured, spread = ratio(times["settimeout"], times[name])
                yield Result("P2", f"ping-pong {case}, {name}, vs settimeout()", measured, 1.15, 1.00, spread=spread)
            if others:
                ratios = {name: ratio(times[name], times["opened"]) for name in others}
                best = min(ratios, key=lambda name: ratios[name][0])
                measured, spread = ratios[best]
                text = f"ping-pong {case} vs {best}, the best of {', '.join(others)}"
                if missing:
                    text += f" (absent: {', '.join(missing)})"
                yield Result("P5", text, measured, 1.5, 1.2, spread=spread)
