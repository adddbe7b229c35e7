"""ONE CONNECTION of the server: who is at the other end, what came in, and what still has to go out.

One record in, at most one descriptor with it. The buffer for ancillary data has room for the kernel's credentials and
one descriptor, so the kernel itself closes what a hostile peer adds (F-111); the one padding lets through is closed
here. A record's sender is the process that the kernel says wrote it, not the one that once connected: a forked child
that writes on an inherited channel is not its parent (S-04, F-90).

Replies that the peer does not read are queued up to a bound; beyond it the peer is dropped (F-82).
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections import deque
from typing import Any, Final

from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry.handshake import ServerHandshake
from sharedsock.registry.messages import MAX_MESSAGE

__all__ = ["Channel", "Overflow"]

_UCRED: Final = struct.Struct("3i")
_ANCILLARY: Final = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4)
_INTS: Final = struct.calcsize("i")
# Plain numbers: an operation on the socket module's enum flags costs 2 us, as much as the system call.
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_TRUNCATED: Final = int(socket.MSG_TRUNC)
_LOST: Final = int(socket.MSG_CTRUNC)
_ODD: Final = _TRUNCATED | _LOST
_RIGHTS: Final = int(socket.SCM_RIGHTS)
_CREDENTIALS: Final = int(getattr(socket, "SCM_CREDENTIALS", -1))


class Overflow(Exception):
    """The peer does not read its replies."""


class Channel:
    """A nonblocking SEQPACKET connection whose peer's uid has been checked; `holder` is set by authentication.

    Attributes:
        is_odd: the latest record was not a plain one of the process that connected; until `settle`:
        came: the descriptors that came with it; the receiver takes what it keeps.
        lost: more came along than could be taken: too many, or this process is out of descriptors.
        oversized: it was longer than any message.
        is_foreign: another process wrote it: one that inherited the connection.
    """

    def __init__(self, connection: socket.socket, pid: int, process: ProcessId, handshake: ServerHandshake) -> None:
        self.connection = connection
        self.pid = pid
        self.process = process
        self.handshake: ServerHandshake | None = handshake
        self.holder: HolderId | None = None
        self.image: tuple[int, int] | None = None  # which program the process ran when it was authenticated
        self.auth_deadline = 0.0
        self.closing = False  # close once the queue is empty
        self.closed = False
        self.is_odd = self.lost = self.oversized = self.is_foreign = False
        self.came: list[int] = []
        self._usual: list[Any] = []  # what comes along with each record of this process, as far as seen
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._queued = 0
        self._receive, self._send = connection.recvmsg, connection.send

    def fileno(self) -> int:
        return self.connection.fileno()

    def receive(self) -> bytes | None:
        """Take one record; None: the peer has closed. After an odd one `settle` has to follow.

        Raises:
            BlockingIOError: nothing there.
            OSError: the connection is broken.
        """
        data, ancillary, flags, _ = self._receive(MAX_MESSAGE, _ANCILLARY, _RECEIVE)
        if ancillary == self._usual and data and not flags & _ODD:
            return data
        return self._look(data, ancillary, flags)

    def _look(self, data: bytes, ancillary: list[Any], flags: int) -> bytes | None:
        sender = None
        for level, kind, value in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == _RIGHTS:
                self.came.extend(array.array("i", value[: len(value) - len(value) % _INTS]))
            elif kind == _CREDENTIALS and len(value) >= _UCRED.size:
                sender = _UCRED.unpack(value[: _UCRED.size])[0]
        self.lost, self.oversized = bool(flags & _LOST), bool(flags & _TRUNCATED)
        self.is_foreign = sender is not None and sender != self.pid
        if not data and not self.came and not self.lost and sender is None:
            # An empty record and the end look alike; only a record has a sender.
            return None
        self.is_odd = bool(self.came) or self.lost or self.oversized or self.is_foreign
        if not self.is_odd:
            self._usual = ancillary
        return data

    def settle(self) -> None:
        """The latest record has been dealt with: close the descriptors that nobody has taken."""
        self.is_odd = self.lost = self.oversized = self.is_foreign = False
        while self.came:
            os.close(self.came.pop())

    def send(self, data: bytes, descriptor: int | None = None, *, most_queued: int = 65_536) -> bool:
        """Send a record now or queue it; report whether something is queued now.

        Args:
            descriptor: goes along; it stays the caller's, who keeps it open until the record has gone.

        Raises:
            Overflow: more than `most_queued` bytes would wait.
            OSError: the connection is broken, or the descriptor cannot be sent (ETOOMANYREFS); nothing was sent.
        """
        if not self._queue:
            if descriptor is None:
                try:
                    self._send(data, _SEND)
                    return False
                except BlockingIOError:
                    pass
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # as full as EAGAIN says it
                        raise
            elif self._try(data, descriptor):
                return False
        if self._queued + len(data) > most_queued:
            raise Overflow
        self._queue.append((data, descriptor))
        self._queued += len(data)
        return True

    def flush(self) -> bool:
        """Send what is queued, as far as the peer takes it; report whether something is left.

        Raises:
            OSError: the connection is broken.
        """
        while self._queue:
            data, descriptor = self._queue[0]
            if not self._try(data, descriptor):
                return True
            self._queue.popleft()
            self._queued -= len(data)
        return False

    @property
    def queued(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._queue)

    def _try(self, data: bytes, descriptor: int | None) -> bool:
        try:
            if descriptor is None:
                self._send(data, _SEND)
            else:
                rights = (socket.SOL_SOCKET, _RIGHTS, array.array("i", [descriptor]))
                self.connection.sendmsg((data,), (rights,), _SEND)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # as full as EAGAIN says it
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connection; what is queued is gone. Doubled: no effect."""
        self.closed = True
        self._queue.clear()
        with contextlib.suppress(OSError):
            self.connection.close()
