"""ONE RECORD that came in over this process's channel, and the descriptor that came with it, until somebody takes it.

A descriptor comes as ancillary data of one record: received close-on-exec, at most one, surplus ones closed, and a
truncated delivery noticed (rule 12, F-29, F-35). What arrives is in a `Parcel` that existed before the system call, so
no interrupt loses a descriptor (F-33); its number is noted before any fork can happen.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sharedsock.model.errors import with_winerror
from sharedsock.registry.numbers import close_all, keep_number, undivided
from sharedsock.registry.shapes import MAX_MESSAGE, Shape
from sharedsock.registry.turns import sleeper

if TYPE_CHECKING:
    from _thread import LockType

    from sharedsock.registry.exchange import Exchange

__all__ = ["GONE", "RECEIVE", "Answer", "Parcel", "Waiter", "numbers_in", "receive", "wait_polled", "wait_ready"]

_INT: Final = struct.Struct("i")
_ROOM: Final = socket.CMSG_SPACE(4 * _INT.size)  # more than one, so that surplus ones are seen
# Plain numbers: an operation on the socket module's enum flags costs 2 us, as much as the system call.
RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_LOST: Final = int(socket.MSG_CTRUNC)
_RIGHTS: Final = int(socket.SCM_RIGHTS)
_LEVEL: Final = int(socket.SOL_SOCKET)
Answer = tuple[Shape, Sequence[Any]]
"""A reply: what it is, and its values."""
GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF)


class Parcel:
    """One received record, and the numbers that came with it until somebody takes them."""

    __slots__ = ("answer", "delivered", "numbers", "owner", "raw", "refusals", "request")

    def __init__(self) -> None:
        self.raw: list[tuple[bytes, list[tuple[int, int, bytes]], int, Any]] = []
        self.numbers: list[int] | None = None
        self.request = 0
        self.answer: Answer | None = None
        self.owner: Waiter | None = None
        self.delivered = False
        self.refusals = [1]  # taken by whoever refuses a CLAIMED: once

    @property
    def data(self) -> bytes:
        """The record's bytes; empty: the channel has ended."""
        return self.raw[0][0]

    @property
    def is_truncated(self) -> bool:
        """Whether descriptors were lost on the way in: this process has no room for them."""
        return bool(self.raw[0][2] & _LOST)

    def unpack(self) -> list[int]:
        """Return the list of numbers that came along; the same list each time."""
        if not self.raw:
            return []
        if self.numbers is None:
            self.numbers = numbers_in(self.raw[0][1])
        return self.numbers

    def close(self) -> None:
        """Close the numbers nobody has taken."""
        close_all(self.unpack())


def numbers_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the file numbers that ancillary data, as recvmsg gives it, has brought into this process."""
    return [
        _INT.unpack_from(data, offset)[0]
        for level, kind, data in ancillary
        if level == _LEVEL and kind == _RIGHTS
        for offset in range(0, len(data) - _INT.size + 1, _INT.size)
    ]


class Waiter:
    """One request that waits for its reply; `inbox` holds the reply's parcel. Good for one try after another."""

    __slots__ = ("exchange", "gave_up", "has_left", "inbox", "lock", "request")

    def __init__(self) -> None:
        self.request = 0
        self.inbox: list[Parcel] = []
        self.gave_up = self.has_left = False
        self.lock: LockType = sleeper()
        self.exchange: Exchange | None = None  # the one that has taken the request

    def answer(self) -> Answer:
        """Return the reply in the inbox."""
        answer = self.inbox[0].answer
        assert answer is not None, "I9: only decoded messages are delivered"
        return answer


def receive(channel: socket.socket, parcel: Parcel) -> None:
    """Take one record into an empty parcel, noting its numbers before any fork; nothing there: it stays empty.

    The result goes from the system call into the parcel's list without a step of the interpreter between, so that an
    interrupt cannot lose a descriptor that has arrived (F-33).
    """

    def take() -> None:
        try:
            parcel.raw.extend(map(channel.recvmsg, (MAX_MESSAGE + 1,), (_ROOM,), (RECEIVE,)))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in GONE:
                raise with_winerror(error) from None
            parcel.raw.append((b"", [], 0, None))
        for number in parcel.unpack():
            keep_number(number)

    undivided(take)


def wait_ready(number: int, event: int, deadline: float) -> bool:
    """Wait until a channel's number is readable or writable (or broken); False: not before the deadline.

    It looks once more when the deadline is over: whoever got no processor until then may have had its answer long ago.
    """
    poller = select.poll()
    poller.register(number, event)
    return wait_polled(poller, deadline)


def wait_polled(poller: select.poll, deadline: float) -> bool:
    """Wait as `wait_ready` does, on what is registered already."""
    while True:
        left_s = deadline - time.monotonic()
        if poller.poll(max(left_s * 1000 + 1, 0)):
            return True
        if left_s <= 0:
            return False
