"""P9, P10: a socket given to another process, vs send_fds and vs pickling a plain socket.

P9 is the time from giving until the other process has used the socket; P10 is the rate of giving one after the other,
the taker's close included. Giver, taker and registry run on one core: what is compared is what the ways cost, not where
the scheduler puts three processes instead of two.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave, ratio

__all__ = ["measure"]

GIVEN: Final = 200
_MOST: Final = 4096
_USED: Final = b"u"


def _give_number(channel: socket.socket, given: Any, pid: int) -> None:
    socket.send_fds(channel, [b"n"], [given.fileno()])


def _take_number(channel: socket.socket) -> Any:
    _, (number,), _, _ = socket.recv_fds(channel, 1, 1)
    return socket.socket(fileno=number)


def _give_ticket(channel: socket.socket, given: Any, pid: int) -> None:
    channel.send(given.share(pid))


def _take_ticket(channel: socket.socket) -> Any:
    return ss.fromshare(channel.recv(_MOST))


def _give_pickle(channel: socket.socket, given: Any, pid: int) -> None:
    channel.send(ForkingPickler.dumps(given))


def _take_pickle(channel: socket.socket) -> Any:
    return pickle.loads(channel.recv(_MOST))


WAYS: Final[dict[str, tuple[Callable[..., None], Callable[[socket.socket], Any]]]] = {
    "send_fds": (_give_number, _take_number),
    "share": (_give_ticket, _take_ticket),
    "pickle": (_give_pickle, _take_pickle),
}


def _take_each(way: str, channel: socket.socket) -> None:
    """The other process: take each socket that comes, use it, close it and say so, until it is killed."""
    take = WAYS[way][1]
    while True:
        with take(channel) as taken:
            taken.send(_USED)
        channel.send(b"closed")


@contextmanager
def _taker(way: str) -> Iterator[Callable[[int, bool], float]]:
    """Start a taker; give a function that hands it sockets, and returns seconds: until used, or all of it."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left, right = socket.socketpair()
    process = multiprocessing.get_context("fork").Process(target=_take_each, args=(way, far), daemon=True)
    process.start()
    far.close()
    pid = process.pid
    give = WAYS[way][0]
    given = ss.adopt(left) if way == "share" else left

    def hand_over(count: int, until_used: bool) -> float:
        used_s = 0.0
        begin = perf_counter()
        for _ in range(count):
            given_s = perf_counter()
            give(near, given, pid)
            right.recv(1)
            used_s += perf_counter() - given_s
            near.recv(_MOST)
        return used_s if until_used else perf_counter() - begin

    try:
        yield hand_over
    finally:
        process.kill()
        process.join()
        for end in (near, given, right):
            end.close()
        if way == "pickle":
            resource_sharer.stop()


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P9, a ratio of times, and P10, a ratio of rates."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})  # the takers and a registry started here inherit it
    given = settings.scaled(GIVEN)
    try:
        with ExitStack() as stack:
            stack.enter_context(ss.Registry())
            ways = {way: stack.enter_context(_taker(way)) for way in WAYS}
            times = interleave({way: partial(ways[way], given, True) for way in ("send_fds", "share")}, settings)
            measured, spread = ratio(times["share"], times["send_fds"])
            yield Result(
                "P9", "share until used there vs send_fds", measured, 2.5, 4.0, higher_is_better=False, spread=spread
            )
            times = interleave({way: partial(ways[way], given, False) for way in ("pickle", "share")}, settings)
            measured, spread = ratio(times["pickle"], times["share"])
            yield Result("P10", "sharing rate vs pickling a plain socket", measured, 4.0, 2.0, spread=spread)
    finally:
        os.sched_setaffinity(0, everywhere)
