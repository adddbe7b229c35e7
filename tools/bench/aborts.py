"""P6: how long a close takes to get the last of N blocked threads out, vs shutdown() of a plain socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter, sleep
from typing import Any, Final

import sharedsock as ss
from tools.bench.rounds import Result, Settings, interleave, ratio

__all__ = ["measure"]

# N: goal, floor.
THREADS: Final = {1: (1.5, 3.0), 10: (1.2, 2.0), 100: (1.1, 2.0)}
REPEATS: Final = 10


def _last_out(pair: tuple[Any, Any], end: Callable[[Any], None], threads: int) -> float:
    """Block threads in recv, end it, return the seconds until the last of them has left its call."""
    ours, theirs = pair
    left: list[float] = []

    def block() -> None:
        try:
            ours.recv(1)
        except ss.OperationAborted:
            pass
        left.append(perf_counter())

    readers = [threading.Thread(target=block) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        while not _is_asleep(reader.native_id):
            sleep(0.0005)
    begin = perf_counter()
    end(ours)
    for reader in readers:
        reader.join()
    ours.close()
    theirs.close()
    return max(left) - begin


def _is_asleep(thread_id: int | None) -> bool:
    """Whether a thread of ours sleeps in a system call: it has nothing else to sleep in but its recv."""
    if thread_id is None:
        return False
    try:
        with open(f"/proc/self/task/{thread_id}/wchan") as file:
            where = file.read()
        with open(f"/proc/self/task/{thread_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "S" and "futex" not in where
    except OSError:
        return False


def _shut_down(end: Any) -> None:
    end.shutdown(socket.SHUT_RDWR)


def _close(end: Any) -> None:
    end.close()


def _repeat(make: Callable[[], tuple[Any, Any]], end: Callable[[Any], None], threads: int, repeats: int) -> float:
    return sum(_last_out(make(), end, threads) for _ in range(repeats))


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P6 for each number of threads; ratios of time, so less is better."""
    for threads, (goal, floor) in THREADS.items():
        repeats = max(1, settings.scaled(REPEATS * 10) // max(threads, 10))
        times = interleave(
            {
                "shutdown": partial(_repeat, socket.socketpair, _shut_down, threads, repeats),
                "close": partial(_repeat, ss.socketpair, _close, threads, repeats),
            },
            settings,
        )
        measured, spread = ratio(times["close"], times["shutdown"])
        case = f"abort, last of {threads} threads vs shutdown()"
        yield Result("P6", case, measured, goal, floor, higher_is_better=False, spread=spread)
