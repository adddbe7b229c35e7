"""What workers of pools, executors and managers do with a socket: apart from the tests, so that they import little.

A parameter that is handed over as a ticket arrives as a SharedSocket: `Any` stands for both.
"""

from __future__ import annotations

import os
from typing import Any, Final

import sharedsock as ss

_given: Final[list[ss.SharedSocket]] = []


def answer(shared: Any, word: bytes = b"used") -> int:
    """Use a socket that came as an argument, and close it; return how many descriptors this worker has left."""
    with shared:
        assert isinstance(shared, ss.SharedSocket)
        shared.sendall(word + b"\n")
    return ss.statistics().descriptors


def answer_each(pair: tuple[Any, bytes]) -> int:
    """As `answer`, for map."""
    return answer(*pair)


def keep(shared: Any) -> None:
    """The initializer: every worker keeps a descriptor of its own."""
    _given.append(shared)


def answer_kept(word: bytes) -> int:
    """Use what the initializer was given; return which worker this is."""
    _given[-1].sendall(word + b"\n")
    return os.getpid()


def make(what: str) -> Any:
    """Open a pair, write into one end and hand the other back as the result of a task."""
    ours, theirs = ss.socketpair()
    with theirs:
        theirs.sendall(b"made there")
        if what == "socket":
            return ours  # pickled before this worker takes its next task; collected there
        with ours:
            return ours.ticket()


def take_from(queue: Any, word: bytes) -> None:
    """A process that gets a socket from a queue of any kind."""
    answer(queue.get(), word)


def fail_with(shared: Any) -> None:
    """A task that raises with a socket in hand."""
    with shared:
        raise ValueError("as told")


def references_of(shared: Any) -> int:
    with shared:
        count: int = shared.references()
        return count
