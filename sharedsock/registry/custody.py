"""SAFE KEEPING: the registry's own descriptor of each unclaimed ticket's socket, and how the last one is closed.

A descriptor that comes in is a socket and the announced one, or it is closed and refused (S-13, F-34): by SO_COOKIE,
which is the same in every process that holds the socket, else by device and inode. It is close-on-exec from birth.
Custody keeps its own until the claimer has acknowledged a usable one (rule 8).

When a ticket ends unclaimed and was the last reference of all, custody is the last closer: DONTLINGER sends what is
queued and FIN; only if unread input is there, which would make close() a reset that destroys the queued data, it is
shut down for sending and drained first, in the selector loop and within bounds (rule 13, REF-4, REF-7). LINGER(0)
resets. LINGER(t) counts as DONTLINGER: nobody is there to wait, and a blocking linger has no place in this process
(rule 14).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from _socket import socket as _Number
from dataclasses import dataclass
from typing import Final

from sharedsock.model.errors import from_errno
from sharedsock.model.identity import SocketFacts, SocketId
from sharedsock.registry.facts import socket_facts

__all__ = ["DRAIN_BYTES", "DRAIN_S", "Custody", "Drain"]

DRAIN_S: Final = 2.0
DRAIN_BYTES: Final = 64 * 1024 * 1024
_DRAIN_STEP: Final = 64 * 1024
_LINGER: Final = struct.Struct("ii")
_LEVEL: Final = int(socket.SOL_SOCKET)
_SO_LINGER: Final = int(socket.SO_LINGER)


@dataclass(eq=False, slots=True)
class Drain:
    """A socket that is shut down for sending and whose unread input is being thrown away, until its peer has ended
    its side, or the bounds are reached. `step()` when it is readable."""

    connection: socket.socket
    until: float
    left_bytes: int = DRAIN_BYTES

    def fileno(self) -> int:
        return self.connection.fileno()

    def step(self, now: float) -> bool:
        """Throw away what is there, at most a bounded piece; report whether the drain is over."""
        if now >= self.until or self.left_bytes <= 0:
            return True
        for _ in range(16):
            try:
                data = self.connection.recv(_DRAIN_STEP, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self.left_bytes -= len(data)
            if self.left_bytes <= 0:
                return True
        return False

    def close(self) -> None:
        """Close the socket, whatever is in it."""
        _close(self.connection)


class Custody:
    """The descriptors of unclaimed tickets, by ticket number."""

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def admit(self, fd: int, socket_id: SocketId) -> SocketFacts:
        """Check a descriptor that came in; return what it is. A refused one is the caller's to close.

        Raises:
            OSError: EINVAL, not a socket, or another one than announced.
        """
        facts = socket_facts(fd)
        if facts is None:
            raise from_errno(errno.EINVAL, "that descriptor is not a socket")
        if facts.socket != socket_id:
            raise from_errno(errno.EINVAL, "that descriptor is another socket than the one announced")
        return facts

    def keep(self, number: int, fd: int) -> None:
        """Keep an admitted descriptor for a ticket; it is custody's from here on."""
        self._kept[number] = fd

    def descriptor_of(self, number: int) -> int:
        """Return the file descriptor kept for a ticket, to be sent along. It stays custody's."""
        return self._kept[number]

    def release(self, number: int, *, last: bool, linger_s: int | None, now: float) -> Drain | None:
        """Give up the descriptor of a ticket. As the last reference, close as the linger option says.

        Returns:
            A drain to be carried on by the loop, None: it is closed.
        """
        fd = self._kept.pop(number, None)
        if fd is None:
            return None
        if not last:
            _close(_Number(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd))  # not worth the calls that find out what it is
            return None
        connection = socket.socket(fileno=fd)
        if linger_s == 0:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
            connection.close()
            return None
        if _has_unread(connection):
            with contextlib.suppress(OSError):  # not connected any more: nothing is queued
                connection.shutdown(socket.SHUT_WR)
                drain = Drain(connection, now + DRAIN_S)
                if not drain.step(now):
                    return drain
        _close(connection)
        return None

    def close(self) -> None:
        """Close everything, as the end of the process would."""
        for number in list(self._kept):
            os.close(self._kept.pop(number))


def _has_unread(connection: socket.socket) -> bool:
    if connection.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # nothing there, a listener, or not connected
        return False


def _close(connection: _Number) -> None:
    """Close, without waiting: a linger time that somebody set on the kernel socket would hold up the whole registry."""
    try:
        on, seconds = _LINGER.unpack(connection.getsockopt(_LEVEL, _SO_LINGER, _LINGER.size))
        if on and seconds:
            connection.setsockopt(_LEVEL, _SO_LINGER, _LINGER.pack(0, 0))
    except OSError:
        pass
    connection.close()
