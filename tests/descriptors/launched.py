"""What processes launched by multiprocessing do: apart from the tests, so that a spawned child imports little."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import sharedsock as ss

JOIN_S: Final = 60.0


def say(shared: ss.SharedSocket) -> None:
    """Say how many references there are, and which descriptor this is."""
    shared.sendall(b"%d %d\n" % (shared.references(), shared.fileno() >= 0))


def say_and_wait(shared: ss.SharedSocket) -> None:
    shared.settimeout(JOIN_S)  # should its test fail, nobody else ends it
    say(shared)
    shared.recv(1)


def wait_and_say(shared: ss.SharedSocket) -> None:
    shared.settimeout(JOIN_S)
    shared.recv(1)
    say(shared)


def say_each(*things: Any, **named: Any) -> None:
    for shared in found_in([things, named]):
        say(shared)


def found_in(thing: Any) -> list[ss.SharedSocket]:
    match thing:
        case ss.SharedSocket():
            return [thing]
        case dict():
            return found_in(list(thing.values()))
        case list() | tuple() | set() | frozenset() | deque():
            return [one for inner in thing for one in found_in(inner)]
        case Slotted() | Holder():
            return found_in(thing.shared)
        case functools.partial():
            return found_in([thing.args, thing.keywords])
    return []


@dataclass(slots=True)
class Slotted:
    shared: Any


class Holder:
    def __init__(self, shared: ss.SharedSocket) -> None:
        self.shared = shared

    def say(self) -> None:
        say(self.shared)


class Bag(list[Any]):
    """A container with an attribute of its own."""

    shared: ss.SharedSocket


def say_of_the_bag(bag: Bag) -> None:
    say(bag.shared)


class Child(multiprocessing.get_context("spawn").Process):  # type: ignore[misc]  # a class of multiprocessing's own
    def __init__(self, shared: ss.SharedSocket) -> None:
        super().__init__()
        self.shared = shared

    def run(self) -> None:
        say(self.shared)


class ForkedChild(multiprocessing.get_context("fork").Process):  # type: ignore[misc]  # as above
    def __init__(self, shared: ss.SharedSocket) -> None:
        super().__init__()
        self.shared = shared

    def run(self) -> None:
        say(self.shared)


def say_whether_one(first: ss.SharedSocket, more: list[ss.SharedSocket]) -> None:
    first.sendall(b"%d %d" % (first.references(), all(other is first for other in more)))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not to be pickled")


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


class Raising:
    """Raises in the process that unpickles it, as a module that cannot be imported does."""

    def __reduce__(self) -> Any:
        return _raise_import_error, ()


def _raise_import_error() -> None:
    os.close(2)  # the traceback is multiprocessing's own
    raise ImportError("no module of that name")


def expect_closed(shared: ss.SharedSocket) -> None:
    try:
        shared.send(b"x")
    except ss.NotASocket:
        return
    sys.exit(9)


def take_from_pipe(connection: Any) -> None:
    with connection.recv() as shared:
        say(shared)


def take_from_queue(queue: Any) -> None:
    with queue.get() as shared:
        say(shared)


def in_pool(shared: ss.SharedSocket) -> int:
    """Use the socket in a daemonic worker, which may have no children of its own."""
    with shared:
        say(shared)
        return ss.statistics().descriptors


def share_from_worker() -> tuple[bytes, int]:
    """Share from a daemonic worker, which has never shared before."""
    left, right = ss.socketpair()
    info = left.share(os.getppid())
    right.sendall(b"from the worker")
    left.close()
    right.close()
    return info, os.getpid()


# -- how the tests start them ---------------------------------------------------------------------------------------


def context_of(method: str) -> Any:
    return multiprocessing.get_context(method)


def run(process: Any) -> int | None:
    """Start a process, wait for its end, return its exit code."""
    process.start()
    return finish(process)


def finish(process: Any) -> int | None:
    process.join(JOIN_S)
    status: int | None = process.exitcode
    if status is None:
        process.kill()
        process.join()
    process.close()
    return status
