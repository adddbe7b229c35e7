"""WHAT A NUMBER IS, asked of the kernel: whether it is a socket, which one, and of what family, type and protocol.

Nothing a message says about these is believed (rule 16, F-34, F-37). The number stays open and its owner's.
"""

from __future__ import annotations

import _socket
import os
import sys
from typing import Final

from sharedsock.model.identity import SocketFacts, SocketId

__all__ = ["socket_facts"]

_SO_COOKIE: Final = 57  # Linux 4.12; the socket module has no name for it


class _View(_socket.socket):
    """A socket object that only looks: its end does not close the number (the base class closes in its finalizer)."""

    def __del__(self) -> None:
        return


def socket_facts(number: int) -> SocketFacts | None:
    """Return what the socket behind a number is; None: it is no socket, or not open."""
    try:
        view = _View(fileno=number)
    except OSError:
        return None
    return SocketFacts(_identity(view, number), view.family, view.type, view.proto)


def _identity(view: _socket.socket, number: int) -> SocketId:
    try:
        return SocketId(int.from_bytes(view.getsockopt(_socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder))
    except OSError:
        found = os.fstat(number)
        return SocketId(found.st_dev << 64 | found.st_ino)
