"""P11 to P14: what a registry call costs, alone, among 32 callers and among 10,000 sockets, and a holder's death.

A call is `references()`, the smallest there is: a record there, a record back. It is compared with what no call over a
Unix socket can do without, one record each way between two processes, and with a call through a proxy of the standard
library's manager. P11 and P13 run on one core, where the cost is the processor's; P12 and P14 on all.

What of P11 is beyond Python's reach: poll and recv at the caller, epoll and the sender's credentials at the registry
make 1.4 ping-pongs of one, in loops that do nothing else. The rest is some twenty frames in all.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.managers import BaseManager
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from sharedsock.model.identity import DescriptorFacts, DescriptorId, SocketFacts, SocketId
from sharedsock.registry.client import Client
from tools.bench.rounds import Result, Settings, interleave, ratio

__all__ = ["measure"]

CALLS: Final = 2000
CALLERS: Final = 32
CALLS_EACH: Final = 200
SOCKETS: Final = 10_000
HELD: Final = 100
DEATHS: Final = 10
_FORK: Final = multiprocessing.get_context("fork")


def _facts(number: int) -> SocketFacts:
    return SocketFacts(SocketId(number), socket.AF_INET, socket.SOCK_STREAM, 0)


def _descriptor(number: int) -> DescriptorFacts:
    return DescriptorFacts(DescriptorId(number), "bench.py:1 in measure", 0.0)


class Counter:
    """What a stock manager serves: the same question, and an answer of the same size."""

    def references(self, number: int) -> int:
        """Return a count."""
        return number


class StockManager(BaseManager):
    """A manager of the standard library with one shared object."""


StockManager.register("Counter", Counter)


def _repeat(call: Callable[[], object], count: int) -> float:
    begin = perf_counter()
    for _ in range(count):
        call()
    return perf_counter() - begin


def _echo(end: socket.socket) -> None:
    recv, send = end.recv, end.send
    while data := recv(64):
        send(data)


@contextmanager
def _ping_pong() -> Iterator[Callable[[], object]]:
    """One record there and back, between two processes that do nothing else."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = _FORK.Process(target=_echo, args=(far,), daemon=True)
    process.start()
    far.close()
    send, recv = near.send, near.recv
    record = b"r" * 26

    def call() -> object:
        send(record)
        return recv(64)

    try:
        yield call
    finally:
        process.kill()
        process.join()
        near.close()


@contextmanager
def _stock() -> Iterator[Callable[[], object]]:
    with StockManager() as manager:
        counter: Any = manager.Counter()  # type: ignore[attr-defined]  # register() made it
        yield partial(counter.references, 1)


@contextmanager
def _registry(sockets: int) -> Iterator[Callable[[], object]]:
    """A registry that counts so many sockets, asked about the last of them."""
    with ss.Registry() as registry:
        client = registry.client
        for number in range(1, sockets + 1):
            client.announce(_facts(number), _descriptor(number))
        try:
            yield partial(client.references, SocketId(sockets))
        finally:
            for number in range(1, sockets + 1):
                client.begin_close(DescriptorId(number))
                client.end_close(DescriptorId(number))


def _calls(settings: Settings) -> Iterator[Result]:
    count = settings.scaled(CALLS)
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})  # the other processes are started here and inherit it
    try:
        with ExitStack() as stack:
            ways = {
                "ping-pong": stack.enter_context(_ping_pong()),
                "stock": stack.enter_context(_stock()),
                "registry": stack.enter_context(_registry(1)),
            }
            times = interleave({name: partial(_repeat, call, count) for name, call in ways.items()}, settings)
        for below, goal, floor in (("ping-pong", 1.3, 2.0), ("stock", 0.5, 1.0)):
            measured, spread = ratio(times["registry"], times[below])
            case = "registry call vs " + ("AF_UNIX ping-pong" if below == "ping-pong" else "stock proxy call")
            yield Result("P11", case, measured, goal, floor, higher_is_better=False, spread=spread)
        with ExitStack() as stack:
            sizes = {size: stack.enter_context(_registry(size)) for size in (1, settings.scaled(SOCKETS))}
            times = interleave({str(size): partial(_repeat, call, count) for size, call in sizes.items()}, settings)
        few, many = times.values()
        measured, spread = ratio(many, few)
        yield Result(
            "P13", "call among 10,000 sockets vs alone", measured, 1.05, 1.2, higher_is_better=False, spread=spread
        )
    finally:
        os.sched_setaffinity(0, everywhere)


def _call_when_told(make: Callable[[], Callable[[], object]], count: int, told: Any) -> None:
    call = make()
    while True:
        told.send(b"ready")
        if not told.recv():
            return
        _repeat(call, count)


@contextmanager
def _callers(make: Callable[[], Callable[[], object]], count: int) -> Iterator[Callable[[], float]]:
    """Start the callers, each a process with a channel of its own; give a function that has them all call at once."""
    lines = []
    processes = []
    for _ in range(CALLERS):
        near, far = _FORK.Pipe()
        process = _FORK.Process(target=_call_when_told, args=(make, count, far), daemon=True)
        process.start()
        far.close()
        lines.append(near)
        processes.append(process)
    for line in lines:
        line.recv()

    def run() -> float:
        begin = perf_counter()
        for line in lines:
            line.send(True)
        for line in lines:
            line.recv()
        return perf_counter() - begin

    try:
        yield run
    finally:
        for line in lines:
            line.send(False)
        for process in processes:
            process.join()
        for line in lines:
            line.close()


def _throughput(settings: Settings) -> Iterator[Result]:
    count = settings.scaled(CALLS_EACH)
    with ExitStack() as stack:
        manager = stack.enter_context(StockManager())
        counter: Any = manager.Counter()  # type: ignore[attr-defined]  # register() made it
        registry = stack.enter_context(ss.Registry())
        ways = {
            "stock": stack.enter_context(_callers(lambda: partial(counter.references, 1), count)),
            "registry": stack.enter_context(_callers(lambda: partial(registry.client.references, SocketId(1)), count)),
        }
        times = interleave(ways, settings)
    measured, spread = ratio(times["stock"], times["registry"])
    yield Result("P12", f"calls/s, {CALLERS} processes at once vs stock proxies", measured, 2.0, 1.2, spread=spread)


def _hold(client: Client, end: socket.socket, ready: int) -> None:
    for number in range(1, HELD + 1):
        client.announce(_facts(1), _descriptor(number))
    os.write(ready, b"r")
    signal.pause()


def _die(client: Client, is_over: Callable[[socket.socket], bool]) -> float:
    """Start a holder, kill it, and return the seconds until that has been noticed."""
    near, far = socket.socketpair()
    ready, theirs = os.pipe()
    process = _FORK.Process(target=_hold, args=(client, far, theirs), daemon=True)
    process.start()
    far.close()
    os.close(theirs)
    os.read(ready, 1)
    begin = perf_counter()
    process.kill()
    while not is_over(near):
        pass
    took_s = perf_counter() - begin
    process.join()
    os.close(ready)
    near.close()
    while client.references(SocketId(1)):
        pass
    return took_s


def _is_at_end(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 1)[0])


def _deaths(settings: Settings) -> Iterator[Result]:
    count = settings.scaled(DEATHS)
    with ss.Registry() as registry:
        client = registry.client
        ways: dict[str, Callable[[socket.socket], bool]] = {
            "end-of-file": _is_at_end,
            "registry": lambda end: not client.references(SocketId(1)),
        }
        times = interleave(
            {name: partial(_repeat_deaths, client, is_over, count) for name, is_over in ways.items()}, settings
        )
    measured, spread = ratio(times["registry"], times["end-of-file"])
    case = f"SIGKILL to {HELD} references dropped vs bare end-of-file"
    yield Result("P14", case, measured, 1.5, 10.0, higher_is_better=False, spread=spread)


def _repeat_deaths(client: Client, is_over: Callable[[socket.socket], bool], count: int) -> float:
    return sum(_die(client, is_over) for _ in range(count))


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P11 to P14; P12 is a ratio of rates, the others are ratios of times."""
    yield from _calls(settings)
    yield from _throughput(settings)
    yield from _deaths(settings)
