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
from dataclasses import dataclass
from typing import Final

from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry.handshake import ServerHandshake
from sharedsock.registry.messages import MAX_MESSAGE

__all__ = ["Channel", "Overflow", "Received"]

_UCRED: Final = struct.Struct("3i")
_ANCILLARY: Final = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4)
_INTS: Final = struct.calcsize("i")
# Plain numbers: an operation on the socket module's enum flags costs 2 us, as much as the system call.
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_TRUNCATED: Final = int(socket.MSG_TRUNC)
_LOST: Final = int(socket.MSG_CTRUNC)


class Overflow(Exception):
    """The peer does not read its replies."""


@dataclass(slots=True)
class Received:
    """One record.

    Attributes:
        descriptors: what came along; the receiver closes what it does not keep.
        lost: more came along than could be taken: too many, or this process is out of descriptors.
        sender: the pid of the process that wrote it, None where the system does not say.
    """

    data: bytes
    descriptors: list[int]
    lost: bool
    oversized: bool
    sender: int | None

    def close(self) -> None:
        """Close the descriptors that are still here."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class Channel:
    """A nonblocking SEQPACKET connection whose peer's uid has been checked; `holder` is set by authentication."""

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
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._queued = 0

    def fileno(self) -> int:
        return self.connection.fileno()

    def receive(self) -> Received | None:
        """Take one record; None: the peer has closed.

        Raises:
            BlockingIOError: nothing there.
            OSError: the connection is broken.
        """
        data, ancillary, flags, _ = self.connection.recvmsg(MAX_MESSAGE, _ANCILLARY, _RECEIVE)
        received = Received(data, [], bool(flags & _LOST), bool(flags & _TRUNCATED), None)
        for level, kind, value in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                received.descriptors.extend(array.array("i", value[: len(value) - len(value) % _INTS]))
            elif kind == socket.SCM_CREDENTIALS and len(value) >= _UCRED.size:
                received.sender = _UCRED.unpack(value[: _UCRED.size])[0]
        if not data and not received.descriptors and not received.lost and received.sender is None:
            # An empty record and the end look alike; only a record has a sender.
            return None
        return received

    def send(self, data: bytes, descriptor: int | None = None, *, most_queued: int = 65_536) -> bool:
        """Send a record now or queue it; report whether something is queued now.

        Args:
            descriptor: goes along; it stays the caller's, who keeps it open until the record has gone.

        Raises:
            Overflow: more than `most_queued` bytes would wait.
            OSError: the connection is broken, or the descriptor cannot be sent (ETOOMANYREFS); nothing was sent.
        """
        if not self._queue and self._try(data, descriptor):
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
        ancillary = []
        if descriptor is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self.connection.sendmsg((data,), ancillary, _SEND)
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
