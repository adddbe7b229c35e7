"""WHOSE TURN IT IS: a lock that knows its holder by a token, so that leaving is idempotent and cannot be missed.

A `with lock:` has points where a KeyboardInterrupt loses track of who holds the lock, and then it is held for ever.
Here the caller draws a token first and leaves with it in two nested `finally` blocks: one interrupt can spoil one of
them, and leaving without having entered does nothing. No step needs another lock: setdefault and pop of a dictionary
are atomic.
"""

from __future__ import annotations

import time
from _thread import LockType, allocate_lock, get_ident
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

__all__ = ["Token", "Turn", "holding", "sleeper", "wake"]

P = ParamSpec("P")
T = TypeVar("T")
_KEY: Final = 0


class Token:
    """One try to have a turn, made by one thread."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = get_ident()


def sleeper() -> LockType:
    """Return something one thread can sleep on until `wake`; waking it before it sleeps is not lost."""
    lock = allocate_lock()
    lock.acquire()
    return lock


def wake(lock: LockType) -> None:
    """Wake a sleeper; already awake: no effect."""
    try:
        lock.release()
    except RuntimeError:
        pass


class Turn:
    """At most one token has it."""

    __slots__ = ("_holder", "_sleepers")

    def __init__(self) -> None:
        self._holder: dict[int, object] = {}
        self._sleepers: dict[object, LockType] = {}

    @property
    def holder(self) -> object | None:
        """The token that has the turn now."""
        return self._holder.get(_KEY)

    def is_mine(self) -> bool:
        """Report whether a `Token` of this thread has the turn."""
        return getattr(self._holder.get(_KEY), "thread", None) == get_ident()

    def try_take(self, token: object) -> bool:
        """Take the turn unless another token has it; report whether this one has it now."""
        return self._holder.setdefault(_KEY, token) is token

    def take(self, token: object, deadline: float | None = None) -> bool:
        """Wait for the turn until a time of the monotonic clock; report whether this token has it."""
        if self.try_take(token):
            return True
        lock = sleeper()
        try:
            self._sleepers[token] = lock
            while not self.try_take(token):
                if deadline is None:
                    lock.acquire()
                    continue
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                lock.acquire(True, left_s)
            return True
        finally:
            self._sleepers.pop(token, None)

    def leave(self, token: object) -> None:
        """Give the turn back if this token has it, and wake who waits. Idempotent."""
        if self._holder.get(_KEY) is token:
            self._holder.pop(_KEY, None)
        # Race: leave against take. A sleeper enters the dictionary before it tries, we pop before we look: either its
        # try succeeds, or we see it here. All are woken, so a sleeper that gives up passes nothing on.
        if self._sleepers:
            for lock in self._sleepers.copy().values():
                wake(lock)


def holding(turn: Turn, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` while having the turn; re-entrant in one thread (a signal handler may come in here again)."""
    if turn.is_mine():
        return work(*args, **kwargs)
    token = Token()
    try:
        try:
            turn.take(token)
            return work(*args, **kwargs)
        finally:
            turn.leave(token)
    finally:
        turn.leave(token)
