"""REQUESTS AND REPLIES over this process's one channel to a registry, used by all its threads at once.

No thread of ours reads it: whoever waits for a reply and finds nobody reading becomes the *leader*, reads what comes
and hands others theirs by request id; when it has its own, it leaves and wakes another waiter. So a reply that takes
long holds up nobody, end-of-file reaches all waiters at once, and a late, doubled or unknown reply meets no waiter
(F-78, F-113).

Nothing here relies on luck when a KeyboardInterrupt lands between two steps: what a step takes is in an object that
existed before it (a `Waiter`, a `Parcel`), each step can be done twice, and the `finally` that undoes it is doubled.
The number is closed by the last waiter that leaves an ended channel, never under another thread (I5).

A descriptor comes as ancillary data of one record: received close-on-exec, at most one, surplus ones closed, and a
truncated delivery noticed (rule 12, F-29, F-35). A CLAIMED nobody waits for any more is refused at once: its ticket is
unharmed (I8); an ISSUED is revoked: nobody has seen the ticket.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import time
from _thread import LockType
from typing import Any, Final

from sharedsock.model import trace
from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.registry.messages import MAX_MESSAGE, Code, Message, ProtocolError, decode, encode
from sharedsock.registry.numbers import close_all, forget_number, keep_number, undivided
from sharedsock.registry.turns import Turn, sleeper, wake

__all__ = ["ChannelLost", "Exchange", "Late", "Parcel", "Waiter", "receive", "wait_ready"]

_INT: Final = struct.Struct("i")
_ROOM: Final = socket.CMSG_SPACE(4 * _INT.size)  # more than one, so that surplus ones are seen
# Plain numbers: an operation on the socket module's enum flags costs 2 us, as much as the system call.
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_POINTS: Final = {Code.ISSUE: "share.fd_sent", Code.CLAIM: "take.sent"}
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF)


class ChannelLost(Exception):
    """The other end is gone. `sent` says whether the request may have reached it."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the registry's channel ended")
        self.sent = sent


class Late(Exception):
    """No reply within the caller's time; the channel is as before, and the reply will meet nobody."""


class Parcel:
    """One received record, and the numbers that came with it until somebody takes them."""

    __slots__ = ("delivered", "message", "numbers", "owner", "raw", "refusals")

    def __init__(self) -> None:
        self.raw: list[tuple[bytes, list[tuple[int, int, bytes]], int, Any]] = []
        self.numbers: list[int] | None = None
        self.message: Message | None = None
        self.owner: Waiter | None = None
        self.delivered = False
        self.refusals = [1]  # taken by whoever refuses a CLAIMED or revokes an ISSUED: once

    @property
    def data(self) -> bytes:
        """The record's bytes; empty: the channel has ended."""
        return self.raw[0][0]

    @property
    def is_truncated(self) -> bool:
        """Whether descriptors were lost on the way in: this process has no room for them."""
        return bool(self.raw[0][2] & socket.MSG_CTRUNC)

    def unpack(self) -> list[int]:
        """Return the list of numbers that came along; the same list each time."""
        if not self.raw:
            return []
        if self.numbers is None:
            self.numbers = [
                _INT.unpack_from(data, offset)[0]
                for level, kind, data in self.raw[0][1]
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
                for offset in range(0, len(data) - _INT.size + 1, _INT.size)
            ]
        return self.numbers

    def close(self) -> None:
        """Close the numbers nobody has taken."""
        close_all(self.unpack())


def receive(channel: socket.socket, parcel: Parcel) -> None:
    """Take one record into an empty parcel, noting its numbers before any fork; nothing there: it stays empty.

    The result goes from the system call into the parcel's list without a step of the interpreter between, so that an
    interrupt cannot lose a descriptor that has arrived (F-33).
    """

    def take() -> None:
        try:
            parcel.raw.extend(map(channel.recvmsg, (MAX_MESSAGE + 1,), (_ROOM,), (_RECEIVE,)))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _GONE:
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
    while True:
        left_s = deadline - time.monotonic()
        if poller.poll(max(left_s * 1000 + 1, 0)):
            return True
        if left_s <= 0:
            return False


class Waiter:
    """One request that waits for its reply; `inbox` holds the reply's parcel. Good for one try after another."""

    __slots__ = ("exchange", "gave_up", "inbox", "lock", "request")

    def __init__(self) -> None:
        self.request = 0
        self.inbox: list[Parcel] = []
        self.gave_up = False
        self.lock: LockType = sleeper()
        self.exchange: Exchange | None = None  # the one that has taken the request


_NOBODY: Final = Waiter()
_NOBODY.gave_up = True


class Exchange:
    """See the head of this file. `ended` is set once, and then every call fails with `ChannelLost`."""

    def __init__(self, connected: socket.socket) -> None:
        self.ended = False
        self._socket = connected
        self._number = connected.fileno()
        self._pending: dict[int, Waiter] = {}
        self._leader = Turn()
        self._ids = itertools.count(1)

    def ask(self, waiter: Waiter, code: Code, deadline: float, fd: int | None = None, /, **values: Any) -> Message:
        """Send a request and return its reply, whose parcel is `waiter.inbox[0]`.

        Raises:
            ChannelLost: the other end is gone.
            Late: no reply before the deadline.
            OSError: the descriptor cannot be sent.
        """
        waiter.gave_up = False
        waiter.exchange = self
        try:
            try:
                waiter.request = request = self._next()
                self._pending[request] = waiter
                if self.ended:
                    raise ChannelLost(sent=False)
                self._send(encode(code, request, **values), fd, deadline)
                if code in _POINTS:
                    trace.hit(_POINTS[code])
                self._wait_reply(waiter, deadline)
            finally:
                self._leave(waiter)
        finally:
            self._leave(waiter)
        message = waiter.inbox[0].message
        assert message is not None, "I9: only decoded messages are delivered"
        return message

    def post(self, code: Code, /, **values: Any) -> bool:
        """Send a request whose reply nobody waits for, if it can be sent at once; report whether it was."""
        waiter = Waiter()
        try:
            waiter.request = request = self._next()
            self._pending[request] = waiter
            if not self.ended:
                with contextlib.suppress(OSError):
                    self._socket.sendmsg([encode(code, request, **values)], (), _SEND)
                    return True
            return False
        finally:
            self._leave(waiter)

    def is_open(self) -> bool:
        """Look whether the other end is still there, without waiting."""
        waiter = Waiter()
        try:
            waiter.request = self._next()
            self._pending[waiter.request] = waiter
            if not self.ended:
                poller = select.poll()
                poller.register(self._number, 0)  # POLLHUP and POLLERR are always told
                if poller.poll(0):
                    self.end()
            return not self.ended
        finally:
            self._leave(waiter)

    def end(self) -> None:
        """The channel is over: every waiter leaves with `ChannelLost`. Idempotent."""
        self.ended = True
        if not self._pending:
            self._close()
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the leader's poll; this is our channel, no shared socket
        for waiter in self._pending.copy().values():
            wake(waiter.lock)

    def abandon(self) -> None:
        """In a forked child: forget the number, which `numbers` has closed there already. No traffic."""
        self.ended = True
        self._socket.detach()

    def discard(self, parcel: Parcel) -> None:
        """Nobody wants this parcel: close what came with it, and take back what it grants. Idempotent."""
        parcel.close()
        message = parcel.message
        if message is not None and message.code in (Code.CLAIMED, Code.ISSUED):
            with contextlib.suppress(IndexError):
                parcel.refusals.pop()
                if message.code is Code.CLAIMED:
                    self.post(Code.REFUSE, number=message.number)
                else:
                    self.post(Code.REVOKE, secret=message.secret)

    def _next(self) -> int:
        return next(self._ids) % 0xFFFFFFFF + 1

    def _send(self, data: bytes, descriptor: int | None, deadline: float) -> None:
        ancillary = () if descriptor is None else ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor)),)
        while True:
            try:
                self._socket.sendmsg([data], ancillary, _SEND)
                return
            except BlockingIOError:
                if not wait_ready(self._number, select.POLLOUT, deadline):
                    raise Late from None
            except OSError as error:
                if error.errno in _GONE and (descriptor is None or error.errno != errno.EBADF):
                    self.end()
                    raise ChannelLost(sent=False) from None
                if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                    raise with_winerror(error) from None
                # Too many descriptors of this user are on their way (unix(7)): they arrive, or the time is over (F-14).
                if time.monotonic() + 0.005 >= deadline:
                    raise from_errno(error.errno or errno.ENOBUFS, "no room to send the descriptor") from error
                select.poll().poll(5)

    def _wait_reply(self, waiter: Waiter, deadline: float) -> None:
        while not waiter.inbox:
            if self.ended:
                raise ChannelLost(sent=True)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Late
            if self._leader.try_take(waiter):
                self._lead(waiter, deadline)
            else:
                waiter.lock.acquire(True, left_s)

    def _lead(self, waiter: Waiter, deadline: float) -> None:
        """Read for everybody until our own reply is here, the channel ends, or our time is over."""
        while not waiter.inbox and not self.ended:
            if not wait_ready(self._number, select.POLLIN, deadline):
                return
            parcel = Parcel()
            try:
                try:
                    receive(self._socket, parcel)
                    self._deliver(parcel)
                finally:
                    self._deliver(parcel)
            finally:
                self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> None:
        """Give a parcel to its waiter, or discard it. May be interrupted anywhere and done again."""
        if parcel.delivered or not parcel.raw:
            return
        if parcel.message is None:
            try:
                parcel.message = decode(parcel.data)
            except ProtocolError:  # the end of the file is an empty record as well
                parcel.close()
                self.end()
                parcel.delivered = True
                return
        if parcel.owner is None:
            found = self._pending.get(parcel.message.request)
            parcel.owner = found if found is not None and not found.inbox else _NOBODY
        waiter = parcel.owner
        # Race: delivery against a waiter that gives up. It says so and then looks into its inbox; we put the parcel
        # there and then look whether it has: one of us discards it, or both, which is the same.
        if waiter is not _NOBODY and parcel not in waiter.inbox:
            waiter.inbox.append(parcel)
        if waiter.gave_up:
            self.discard(parcel)
        wake(waiter.lock)
        parcel.delivered = True

    def _leave(self, waiter: Waiter) -> None:
        if not waiter.inbox:
            waiter.gave_up = True
        self._pending.pop(waiter.request, None)
        self._leader.leave(waiter)
        for other in self._pending.copy().values():
            if not other.inbox:
                wake(other.lock)  # it becomes the leader, or sleeps again
                break
        if self.ended and not self._pending:
            self._close()
        if waiter.gave_up:
            for parcel in waiter.inbox.copy():
                self.discard(parcel)

    def _close(self) -> None:
        if self._socket.fileno() >= 0:  # else the number may be another channel's by now
            forget_number(self._number)
            self._socket.close()
