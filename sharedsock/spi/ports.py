"""Completion ports: a queue to which the requests of many handles report, and from which threads take packets.

The association is the socket's, not the handle's: a second one, through a duplicate in another process, fails (DUP-26).

Source: CreateIoCompletionPort, GetQueuedCompletionStatus, PostQueuedCompletionStatus.
"""

from __future__ import annotations

import itertools
import os
from _queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

from sharedsock.model.winsock import INFINITE, INVALID_SOCKET, WAIT_TIMEOUT, WSA_INVALID_HANDLE, WSAEINVAL
from sharedsock.spi import handles
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from sharedsock.spi.overlapped import WSAOVERLAPPED

__all__ = [
    "CloseCompletionPort",
    "CompletionPacket",
    "CreateIoCompletionPort",
    "GetQueuedCompletionStatus",
    "PostQueuedCompletionStatus",
    "post",
]


class CompletionPacket(NamedTuple):
    """One completion: what GetQueuedCompletionStatus gives back.

    Attributes:
        dwError: 0, or what the request came to: the packet of one that failed.
    """

    lpNumberOfBytes: int
    lpCompletionKey: int
    lpOverlapped: WSAOVERLAPPED | None
    dwError: int = 0

    @property
    def is_success(self) -> bool:
        """What the call itself returns: FALSE for a failed packet (OVERLAP-20)."""
        return self.dwError == 0


_ports: dict[int, SimpleQueue[CompletionPacket]] = {}
_numbers: Final = itertools.count(1)


def _port(number: object) -> SimpleQueue[CompletionPacket]:
    found = _ports.get(number) if isinstance(number, int) else None
    if found is None:
        raise WSAError(WSA_INVALID_HANDLE, f"{number!r} is no completion port of this process")
    return found


def CreateIoCompletionPort(
    FileHandle: int = INVALID_SOCKET, ExistingCompletionPort: int | None = None, CompletionKey: int = 0
) -> int:
    """Make a completion port, or have an existing one report a socket's requests; return the port.

    Args:
        FileHandle: a socket; INVALID_SOCKET makes a port without one.

    Raises:
        WSAError: 6, no port; 10038, no socket; 10022, the socket is associated already, here or in another process.
    """
    if ExistingCompletionPort is not None:
        _port(ExistingCompletionPort)
    if FileHandle == INVALID_SOCKET:
        if ExistingCompletionPort is not None:
            raise WSAError(WSAEINVAL, "a port, and no socket to associate it with")
        return _open()
    handle = handles.require(FileHandle)
    handle.provider.associate(FileHandle)
    port = _open() if ExistingCompletionPort is None else ExistingCompletionPort
    handle.port = port, CompletionKey
    return port


def _open() -> int:
    number = next(_numbers)
    _ports[number] = SimpleQueue()
    return number


def CloseCompletionPort(CompletionPort: int) -> None:
    """Close a port; what still completes for it is dropped.

    Raises:
        WSAError: 6, no port.
    """
    _port(CompletionPort)
    _ports.pop(CompletionPort, None)


def post(port: int, transferred: int, key: int, lpOverlapped: WSAOVERLAPPED | None, error: int) -> None:
    """Post a packet; a port that is closed drops it."""
    queue = _ports.get(port)
    if queue is not None:
        queue.put(CompletionPacket(transferred, key, lpOverlapped, error))


def PostQueuedCompletionStatus(
    CompletionPort: int, dwNumberOfBytes: int = 0, CompletionKey: int = 0, lpOverlapped: WSAOVERLAPPED | None = None
) -> None:
    """Post a packet of one's own.

    Raises:
        WSAError: 6, no port.
    """
    _port(CompletionPort)
    post(CompletionPort, dwNumberOfBytes, CompletionKey, lpOverlapped, 0)


def GetQueuedCompletionStatus(CompletionPort: int, dwMilliseconds: int = INFINITE) -> CompletionPacket:
    """Take the next packet, waiting for it; that of a failed request has the error in it and is no exception.

    Raises:
        WSAError: 258 (WAIT_TIMEOUT), none came in time; 6, no port.
    """
    queue = _port(CompletionPort)
    try:
        return queue.get(timeout=None if dwMilliseconds == INFINITE else dwMilliseconds / 1000.0)
    except Empty:
        raise WSAError(WAIT_TIMEOUT, "no packet came in time") from None


os.register_at_fork(after_in_child=_ports.clear)
