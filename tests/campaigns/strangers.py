"""The strangers beside a race: a thread that opens and closes numbers all the time, and knows what must be in them.

A call that reaches a number after its close meets one of these: it would take a stranger's byte or client, send into
its stream, or connect its socket. Each stranger is looked at before it goes.
"""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

__all__ = ["Strangers", "strangers"]

_MOST: Final = 24
_PACE_S: Final = 0.0001


class _Stranger(Protocol):
    def complaint(self) -> str | None: ...

    def close(self) -> None: ...


class _Pair:
    """A connected pair with one tag on its way."""

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._ends = socket.socketpair()
        self._ends[1].send(tag)

    def complaint(self) -> str | None:
        for end, wanted in zip(self._ends, (self._tag, b""), strict=True):
            try:
                found = end.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                found = b""
            if found != wanted:
                return f"a stranger's stream has {found!r} instead of {wanted!r}"
        return None

    def close(self) -> None:
        for end in self._ends:
            end.close()


class _Door:
    """A listener with one client in its backlog."""

    def __init__(self, tag: bytes) -> None:
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.setblocking(False)
        self._door.bind("")  # an abstract name the kernel chooses
        self._door.listen(1)
        self._client.connect(self._door.getsockname())

    def complaint(self) -> str | None:
        try:
            self._door.accept()[0].close()
        except BlockingIOError:
            return "a stranger's client has been accepted by somebody else"
        return None

    def close(self) -> None:
        self._door.close()
        self._client.close()


class _Lonely:
    """A socket that nobody connects."""

    def __init__(self, tag: bytes) -> None:
        self._sockets = [socket.socket(family) for family in (socket.AF_INET, socket.AF_UNIX)]

    def complaint(self) -> str | None:
        for one in self._sockets:
            try:
                return f"a stranger's socket is connected to {one.getpeername()}"
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    return f"a stranger's socket: {error}"
        return None

    def close(self) -> None:
        for one in self._sockets:
            one.close()


_KINDS: Final[tuple[Any, ...]] = (_Pair, _Pair, _Door, _Lonely)


@dataclass
class Strangers:
    """What the thread has seen: how many strangers were looked at, and what was wrong with them."""

    seen: int = 0
    complaints: list[str] = field(default_factory=list)


@contextmanager
def strangers(dice: random.Random) -> Iterator[Strangers]:
    """Run the thread during a `with`."""
    found = Strangers()
    over = threading.Event()
    own = random.Random(dice.random())
    thread = threading.Thread(target=_churn, args=(found, over, own), name="strangers")
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _churn(found: Strangers, over: threading.Event, dice: random.Random) -> None:
    present: deque[_Stranger] = deque()
    while not over.is_set():
        present.append(dice.choice(_KINDS)(b"stranger %d" % dice.randrange(1 << 40)))
        while len(present) > dice.randrange(_MOST):
            _leave(present.popleft(), found)
        over.wait(2 * _PACE_S * dice.random())
    while present:
        _leave(present.popleft(), found)


def _leave(stranger: _Stranger, found: Strangers) -> None:
    complaint = stranger.complaint()
    if complaint is not None:
        found.complaints.append(complaint)
    found.seen += 1
    stranger.close()
