"""WHICH NUMBERS ARE OURS: every descriptor number this room has open, so that a forked child can close it.

After a fork the child owns nothing (rule 11): not the channel, which would hide its parent's death, not a lock of the
start, and not a socket on its way from the registry to the caller. A number is noted with the file behind it, and the
child closes it only while it is still that file: whoever closed everything and opened other files loses none of them.

Between the system call that makes a number and the note there must be no fork, so both happen in the *fork turn*, which
`descriptors` takes before a fork and gives back after it. It is held for one nonblocking call at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from itertools import starmap
from typing import Final, TypeVar

from sharedsock.registry.turns import Token, Turn, holding

__all__ = [
    "abandon_numbers",
    "borrowed",
    "close_all",
    "close_if_same",
    "close_number",
    "forget_number",
    "fork_lock_acquire",
    "fork_lock_release",
    "keep_number",
    "kept",
    "noted_numbers",
    "notice_fork",
    "undivided",
]

T = TypeVar("T")

_noted: Final[dict[int, tuple[int, int]]] = {}
_fork_turn = Turn()
_forking: Final[list[Token]] = []
_process = os.getpid()


def keep_number(number: int) -> None:
    """Note a number as ours."""
    found = os.fstat(number)
    _noted[number] = (found.st_dev, found.st_ino)


def noted_numbers() -> frozenset[int]:
    """Return the numbers noted now, for leak checks: they are nobody's leak."""
    return frozenset(_noted.copy())


def forget_number(number: int) -> None:
    """The number has an owner elsewhere now."""
    _noted.pop(number, None)


def close_number(number: int) -> None:
    """Close a number of ours. Forgotten first: its successor is nobody's business."""
    _noted.pop(number, None)
    with contextlib.suppress(OSError):
        os.close(number)


def close_all(numbers: list[int]) -> None:
    """Close every number in the list and empty it. Two callers may do it at once: each number is closed by one.

    Each goes from the list into close() without a step of the interpreter between, so an interrupt loses none.
    """
    for number in numbers.copy():
        _noted.pop(number, None)
    with contextlib.suppress(IndexError):
        while numbers:
            with contextlib.suppress(OSError):
                any(map(os.close, iter(numbers.pop, _NOTHING)))


_NOTHING: Final = -1


def borrowed(make: partial[int], work: Callable[[int], T]) -> T:
    """Make a number by one system call, do work with it and close it, wherever an interrupt lands."""
    box: list[int] = []
    try:
        try:
            box.extend(starmap(make, ((),)))  # from the system call into the box without a step between
            return work(box[0])
        finally:
            close_all(box)
    finally:
        close_all(box)


def kept(make: Callable[[], int]) -> int:
    """Call what makes a number and note it, with no fork between; return the number."""
    notice_fork()
    return holding(_fork_turn, _make, make)


def _make(make: Callable[[], int]) -> int:
    number = make()
    keep_number(number)
    return number


def undivided(work: Callable[[], T]) -> T:
    """Do work that makes and notes numbers, with no fork of this process during it. It must not block."""
    notice_fork()
    return holding(_fork_turn, work)


def notice_fork() -> int:
    """Return this process's pid; in a child of a fork that ran no hooks, first do what they would have done (F-90)."""
    pid = os.getpid()
    if pid != _process:
        abandon_numbers()
    return pid


def fork_lock_acquire() -> None:
    """Wait until no thread has a number in hand that is not noted; none will until `fork_lock_release`."""
    token = Token()
    if not _fork_turn.is_mine():
        _fork_turn.take(token)
    _forking.append(token)


def fork_lock_release() -> None:
    """The fork is done (in the parent, or in the child before `abandon_numbers`)."""
    if _forking:
        _fork_turn.leave(_forking.pop())


def abandon_numbers() -> None:
    """In a forked child: close every noted number that is still the same file, without traffic, and renew the turn."""
    global _fork_turn, _process
    _fork_turn = Turn()
    _process = os.getpid()
    _forking.clear()
    while _noted:
        try:
            number, identity = _noted.popitem()
        except KeyError:
            return
        _close_if_same(number, identity)


def close_if_same(number: int) -> None:
    """Close a noted number unless it has become another file, or none, meanwhile."""
    identity = _noted.pop(number, None)
    if identity is not None:
        _close_if_same(number, identity)


def _close_if_same(number: int, identity: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        found = os.fstat(number)
        if (found.st_dev, found.st_ino) == identity:
            os.close(number)
