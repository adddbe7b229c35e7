"""P7: one listener, 8 processes x 32 threads in accept: connections per second vs plain, and wasted wake-ups."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from sharedsock.model import trace
from tools.bench.rounds import Result, Settings, interleave, ratio

__all__ = ["measure"]

PROCESSES: Final = 8
THREADS: Final = 32
CONNECTIONS: Final = 500


def _serve(listener: Any, control: Connection, counts: bool) -> None:
    """One process: accept in every thread until told to stop; report how often one was woken and had to wait again."""
    wasted = 0
    last_point: dict[int, str] = {}

    def count(point: str, context: Mapping[str, Any]) -> None:
        nonlocal wasted
        thread = threading.get_ident()
        if point == "op.waiting" and last_point.get(thread) == "op.ready":
            wasted += 1
        last_point[thread] = point

    if counts:
        trace.hook = count

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.close()

    threads = [threading.Thread(target=accept, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    control.send(os.getpid())
    with suppress(EOFError):
        control.recv()
    trace.hook = None
    control.send(wasted)
    control.recv()  # the controller kills a plain one: nothing else gets its threads out


@contextmanager
def _servers(contender: str, counts: bool = False) -> Iterator[tuple[Any, list[Connection]]]:
    """Start the processes on one listener; give its address and their control pipes."""
    make: Callable[..., Any] = socket.create_server if contender == "plain" else ss.create_server
    context = multiprocessing.get_context("fork")
    processes, pipes = [], []
    with make(("127.0.0.1", 0), backlog=1024) as listener:
        address = listener.getsockname()
        for _ in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(listener, theirs, counts), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
    try:
        yield address, pipes
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()


def _connect(address: Any, connections: int) -> float:
    """Connect one client after the other, each until it is accepted and closed; return the seconds."""
    begin = perf_counter()
    for _ in range(connections):
        with socket.create_connection(address) as client:
            client.recv(1)
    return perf_counter() - begin


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P7: the ratio of rates, and wake-ups that took no client, per connection."""
    connections = settings.scaled(CONNECTIONS)
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(_servers(name))[0] for name in ("plain", "shared")}
        times = interleave(
            {
                "plain": lambda: _connect(addresses["plain"], connections),
                "shared": lambda: _connect(addresses["shared"], connections),
            },
            settings,
        )
    measured, spread = ratio(times["plain"], times["shared"])
    case = f"accept, {PROCESSES} processes x {THREADS} threads"
    yield Result("P7", f"{case}: rate vs plain blocking", measured, 0.95, 0.82, spread=spread)

    with _servers("shared", counts=True) as (address, pipes):
        _connect(address, connections)
        for pipe in pipes:
            pipe.send("stop")
        wasted = sum(pipe.recv() for pipe in pipes) / connections
    yield Result("P7", f"{case}: wasted wake-ups per connection", wasted, 0.05, 1.0, higher_is_better=False)
