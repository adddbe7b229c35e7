"""REQUESTS AND REPLIES over this process's one channel to a registry, used by all its threads at once.

No thread of ours reads it: whoever waits for a reply and finds nobody reading becomes the *leader*, reads what comes
and hands others theirs by request id; when it has its own, it leaves and wakes another waiter. So a reply that takes
long holds up nobody, end-of-file reaches all waiters at once, and a late, doubled or unknown reply meets no waiter
(F-78, F-113). Mostly a caller is alone: it is the leader before it has sent anything, what it reads is its reply, and
nothing need be made for others to find it (`ask_alone`).

A *posted* request has the id 0: it is not answered, and done before anything that this process says later. Where it has
to be done it is kept until a later reply shows that it was; a channel made anew to the same registry says it again.

Nothing here relies on luck when a KeyboardInterrupt lands between two steps: what a step takes is in an object that
existed before it (a `Waiter`, a `Parcel`), each step can be done twice, and the `finally` that undoes it is doubled.
The number is closed by the last waiter that leaves an ended channel, never under another thread (I5).

How one record is received, and the descriptor that came with it kept or closed, is in parcels.py. Only a `Waiter` gets
one: while none waits for a descriptor a leader reads without room for any, and the kernel drops what is sent all the
same. A CLAIMED nobody waits for any more is refused at once: its ticket is unharmed (I8).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import time
from typing import Any, Final

from sharedsock.model import trace
from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.registry.messages import HEAD_SIZE, MAX_MESSAGE, SHAPES, Code, ProtocolError, Shape, shape_of
from sharedsock.registry.numbers import forget_number
from sharedsock.registry.parcels import GONE, RECEIVE, Answer, Parcel, Waiter, receive, wait_polled, wait_ready
from sharedsock.registry.turns import wake

__all__ = ["ChannelLost", "Exchange", "Late"]

_INT: Final = struct.Struct("i")
_SEND: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_POINTS: Final = {Code.ISSUE: "share.fd_sent", Code.CLAIM: "take.sent"}
_BYE: Final = SHAPES[Code.BYE]
_REFUSE: Final = SHAPES[Code.REFUSE]
_REPLIES: Final = {code: SHAPES[shape.reply] for code, shape in SHAPES.items() if shape.reply is not None}
Posted = tuple[Shape, tuple[Any, ...]]
_KEY: Final = 0
_FULL: Final = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


class ChannelLost(Exception):
    """The other end is gone. `sent` says whether the request may have reached it."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the registry's channel ended")
        self.sent = sent


class Late(Exception):
    """No reply within the caller's time; the channel is as before, and the reply will meet nobody."""


_NOBODY: Final = Waiter()
_NOBODY.gave_up = True


class Exchange:
    """See the head of this file. `ended` is set once, and then every call fails with `ChannelLost`."""

    def __init__(self, connected: socket.socket) -> None:
        self.ended = False
        self._socket = connected
        self._number = connected.fileno()
        self._send, self._receive = connected.send, connected.recv
        self._pending: dict[int, Waiter] = {}
        self._taking: set[int] = set()  # the requests whose replies bring a descriptor
        self._leading: dict[int, object] = {}  # whoever reads now, as in a Turn: its Waiter, or its request alone
        self._poller = select.poll()  # the leader's
        self._poller.register(self._number, select.POLLIN)
        self._ids = itertools.count(1)
        self._posted: dict[int, Posted] = {}  # what has to be done, and may not have been yet

    def ask_alone(
        self, shape: Shape, values: tuple[Any, ...], timeout_s: float, fd: int | None = None
    ) -> Answer | None:
        """Send a request and return its reply, where nobody else waits for one; None: not so, and nothing is sent.

        Raises:
            ChannelLost, Late: as `ask`.
        """
        # No other `try` in here: the instruction that begins one is in no exception table, not even the outer ones'.
        if self._pending:
            return None
        request = self._next()
        try:
            try:
                self._pending[request] = _NOBODY  # so that the number stays open
                if self._leading.setdefault(_KEY, request) is not request or self.ended:
                    return None
                if not self._send_now(shape.pack(request, *values), fd):
                    return None
                if trace.hook is not None and shape.code in _POINTS:
                    trace.hit(_POINTS[shape.code])
                deadline = time.monotonic() + timeout_s
                if not self._poller.poll(timeout_s * 1000 + 1):
                    raise Late
                return self._read_alone(request, _REPLIES[shape.code], deadline)
            finally:
                self._leave_alone(request)
        finally:
            if self.ended or request in self._pending:
                self._leave_alone(request)

    def _send_now(self, data: bytes, fd: int | None) -> bool:
        try:
            if fd is None:
                self._send(data, _SEND)
            else:
                self._socket.sendmsg((data,), _rights(fd), _SEND)
        except OSError as error:
            if error.errno in GONE or error.errno in _FULL:  # `ask` finds out which, and waits for room
                return False
            raise with_winerror(error) from None
        return True

    def _read_alone(self, request: int, reply: Shape, deadline: float) -> Answer:
        # Race: a claim of another thread against this read, which would drop its descriptor. It says that it takes one
        # before it sends: if it has not when we look, what we have been told of is not its reply.
        if self._taking:
            return self._lead_alone(request, None, deadline)
        data = b""
        try:
            data = self._receive(MAX_MESSAGE + 1, RECEIVE)
            if data[:HEAD_SIZE] == reply.head:
                found = reply.unpack(data)
                if found[0] == request:
                    if self._posted:
                        self._confirm(request)
                    return reply, found[1:]
        except (struct.error, ProtocolError):  # `_deliver` finds out what is wrong with it
            pass
        except OSError as error:
            if error.errno not in GONE:
                raise with_winerror(error) from None
        return self._lead_alone(request, data, deadline)

    def ask(self, waiter: Waiter, shape: Shape, values: tuple[Any, ...], deadline: float, fd: int | None) -> Answer:
        """Send a request and return its reply, whose parcel is `waiter.inbox[0]`.

        Raises:
            ChannelLost: the other end is gone.
            Late: no reply before the deadline.
            OSError: the descriptor cannot be sent.
        """
        waiter.gave_up = waiter.has_left = False
        waiter.exchange = self
        try:
            try:
                waiter.request = request = self._next()
                self._pending[request] = waiter
                if shape.reply is Code.CLAIMED:
                    self._taking.add(request)
                if self.ended:
                    raise ChannelLost(sent=False)
                self._send_in_time(shape.pack(request, *values), fd, deadline)
                if trace.hook is not None and shape.code in _POINTS:
                    trace.hit(_POINTS[shape.code])
                return self._wait_reply(waiter, deadline)
            finally:
                self._leave(waiter)
        finally:
            if not waiter.has_left:
                self._leave(waiter)

    def post(self, shape: Shape, *values: Any) -> bool:
        """Send a request that is not to be answered, if it can be sent at once; report whether it was."""
        request = self._next()
        try:
            try:
                self._pending[request] = _NOBODY  # so that the number stays open
                return not self.ended and self._post_now(shape.pack(0, *values))
            finally:
                self._leave_alone(request)
        finally:
            if self.ended or request in self._pending:
                self._leave_alone(request)

    def _post_now(self, data: bytes) -> bool:
        try:
            self._send(data, _SEND)
        except OSError:
            return False
        return True

    def post_surely(self, shape: Shape, *values: Any) -> bool:
        """Post a request that has to be done; report whether it was sent. Not while another thread waits for a reply.

        Should the channel end before anything shows that it has been done, it is in `undone()`.
        """
        if self._pending or not self.post(shape, *values):
            return False
        # Drawn once it has been sent: whatever is asked with a later id comes to the registry behind it.
        self._posted[self._next()] = shape, values
        return True

    def _confirm(self, request: int) -> None:
        """A request has been answered: what was posted before it is done."""
        for number in [number for number in self._posted.copy() if number < request]:
            self._posted.pop(number, None)

    def part(self) -> None:
        """End in order: the registry does what was posted, and then hangs up."""
        if self.post(_BYE):
            self._posted.clear()
        self.end()

    def undone(self) -> list[Posted]:
        """Return what was posted and may not have been done."""
        return list(self._posted.copy().values())

    @property
    def is_led(self) -> bool:
        """Whether somebody reads now."""
        return bool(self._leading)

    def is_open(self) -> bool:
        """Look whether the other end is still there, without waiting."""
        request = self._next()
        poller = select.poll()  # not the leader's, who may be in it now
        try:
            try:
                self._pending[request] = _NOBODY  # so that the number stays open
                if not self.ended:
                    poller.register(self._number, 0)  # POLLHUP and POLLERR are always told
                    if poller.poll(0):
                        self.end()
                return not self.ended
            finally:
                self._leave_alone(request)
        finally:
            if self.ended or request in self._pending:
                self._leave_alone(request)

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
        """Nobody wants this parcel: close what came with it, and refuse what it grants. Idempotent."""
        parcel.close()
        if parcel.answer is not None and parcel.answer[0].code is Code.CLAIMED:
            with contextlib.suppress(IndexError):
                parcel.refusals.pop()
                self.post(_REFUSE, parcel.answer[1][0])

    def _next(self) -> int:
        return next(self._ids) % 0xFFFFFFFF + 1

    def _send_in_time(self, data: bytes, fd: int | None, deadline: float) -> None:
        ancillary = () if fd is None else _rights(fd)
        while True:
            try:
                self._socket.sendmsg((data,), ancillary, _SEND)
                return
            except BlockingIOError:
                if not wait_ready(self._number, select.POLLOUT, deadline):
                    raise Late from None
            except OSError as error:
                if error.errno in GONE and (fd is None or error.errno != errno.EBADF):
                    self.end()
                    raise ChannelLost(sent=False) from None
                if error.errno not in _FULL:
                    raise with_winerror(error) from None
                # Too many descriptors of this user are on their way (unix(7)): they arrive, or the time is over (F-14).
                if time.monotonic() + 0.005 >= deadline:
                    raise from_errno(error.errno or errno.ENOBUFS, "no room to send the descriptor") from error
                select.poll().poll(5)

    def _wait_reply(self, waiter: Waiter, deadline: float) -> Answer:
        while not waiter.inbox:
            if self.ended:
                raise ChannelLost(sent=True)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Late
            if self._leading.setdefault(_KEY, waiter) is waiter:
                self._lead(waiter, deadline)
            else:
                waiter.lock.acquire(True, left_s)
        return waiter.answer()

    def _lead_alone(self, request: int, data: bytes | None, deadline: float) -> Answer:
        """As the leader who was alone: `data` is no reply of ours, so be a waiter like others from here on."""
        waiter = Waiter()
        waiter.request = request
        self._pending[request] = waiter
        if data is not None:
            parcel = Parcel()
            parcel.raw.append((data, [], 0, None))
            self._deliver(parcel)
        while not waiter.inbox:
            if self.ended:
                raise ChannelLost(sent=True)
            if deadline <= time.monotonic():
                raise Late
            self._lead(waiter, deadline)
        return waiter.answer()

    def _lead(self, waiter: Waiter, deadline: float) -> None:
        """Read for everybody until our own reply is here, the channel ends, or our time is over."""
        while not waiter.inbox and not self.ended:
            if not wait_polled(self._poller, deadline):
                return
            parcel = Parcel()
            try:
                try:
                    receive(self._socket, parcel)
                    self._deliver(parcel)
                finally:
                    if not parcel.delivered:
                        self._deliver(parcel)
            finally:
                if not parcel.delivered:
                    self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> None:
        """Give a parcel to its waiter, or discard it. May be interrupted anywhere and done again."""
        if parcel.delivered or not parcel.raw:
            return
        if parcel.answer is None:
            try:
                shape = shape_of(parcel.data)
                parcel.request, *values = shape.read(parcel.data)
                parcel.answer = shape, values
            except ProtocolError:  # the end of the file is an empty record as well
                parcel.close()
                self.end()
                parcel.delivered = True
                return
        if parcel.request not in self._taking and parcel.answer[0].code is not Code.CLAIMED:
            parcel.close()
        if self._posted:
            self._confirm(parcel.request)
        if parcel.owner is None:
            found = self._pending.get(parcel.request)
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
        self._taking.discard(waiter.request)
        self._pending.pop(waiter.request, None)
        if self._leading.get(_KEY) is waiter:
            self._leading.pop(_KEY, None)
        self._wake_next(0)
        if self.ended and not self._pending:
            self._close()
        if waiter.gave_up:
            for parcel in waiter.inbox.copy():
                self.discard(parcel)
        waiter.has_left = True

    def _leave_alone(self, request: int) -> None:
        if self._leading.get(_KEY) is request:
            self._leading.pop(_KEY, None)
        if len(self._pending) > 1:
            self._wake_next(request)
        self._pending.pop(request, None)
        if self.ended and not self._pending:
            self._close()

    def _wake_next(self, leaving: int) -> None:
        """Wake one that waits, but whoever leaves: it becomes the leader, or sleeps again."""
        for request, other in self._pending.copy().items():
            if request != leaving and other is not _NOBODY and not other.inbox:
                wake(other.lock)
                break

    def _close(self) -> None:
        if self._socket.fileno() >= 0:  # else the number may be another channel's by now
            forget_number(self._number)
            self._socket.close()


def _rights(fd: int) -> tuple[tuple[int, int, bytes], ...]:
    return ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(fd)),)
