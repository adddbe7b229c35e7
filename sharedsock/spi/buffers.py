"""Buffers and flags as a client of the base provider gives them, checked and turned into the kernel's.

Source: WSABUF; LPWSPSEND and LPWSPRECV, dwFlags.
"""

from __future__ import annotations

import socket
from itertools import accumulate
from typing import Any, Final

from sharedsock.model.winsock import MSG_OOB, MSG_PEEK, WSAEFAULT, WSAEINVAL, WSAEOPNOTSUPP
from sharedsock.spi.errors import WSAError

__all__ = ["RECEIVE_FLAGS", "SEND_FLAGS", "checked_buffers", "fill", "kernel_flags", "rest_of"]

RECEIVE_FLAGS: Final[dict[int, int]] = {MSG_OOB: socket.MSG_OOB, MSG_PEEK: socket.MSG_PEEK}
SEND_FLAGS: Final[dict[int, int]] = {MSG_OOB: socket.MSG_OOB}


def kernel_flags(dwFlags: Any, known: dict[int, int], ours: int = 0) -> int:
    """Return the kernel's flags for Winsock's.

    Raises:
        WSAError: 10045, a flag that this call does not have.
    """
    if not isinstance(dwFlags, int) or dwFlags & ~(sum(known) | ours):
        raise WSAError(WSAEOPNOTSUPP, f"flags {dwFlags!r}: one of them means nothing here")
    return sum(flag for name, flag in known.items() if dwFlags & name)


def checked_buffers(lpBuffers: Any, *, are_written: bool) -> list[memoryview]:
    """Return an array of WSABUF as flat views.

    Raises:
        WSAError: 10014, none, not a sequence, or one of them no buffer that can be used so; 10022, an empty array.
    """
    if not isinstance(lpBuffers, list | tuple):
        raise WSAError(WSAEFAULT, f"an array of buffers is wanted, not {type(lpBuffers).__name__}")
    if not lpBuffers:
        raise WSAError(WSAEINVAL, "an empty array of buffers")
    try:
        views = [memoryview(buffer) for buffer in lpBuffers]
        views = [view.cast("B") if view.nbytes else memoryview(bytearray()) for view in views]
    except (TypeError, BufferError) as error:
        raise WSAError(WSAEFAULT, f"no buffer: {error}") from error
    if are_written and any(view.readonly for view in views):
        raise WSAError(WSAEFAULT, "a buffer that can only be read")
    return views


def rest_of(views: list[memoryview], done: int) -> list[memoryview]:
    """Return what is left of buffers behind the first `done` bytes."""
    if not done:
        return views
    ends = list(accumulate(len(view) for view in views))
    return [view[max(0, done - end + len(view)) :] for view, end in zip(views, ends, strict=True) if end > done]


def fill(views: list[memoryview], data: bytes) -> int:
    """Put bytes into buffers, in order; return how many there was room for."""
    left = memoryview(data)
    for view in views:
        size = min(len(view), len(left))
        view[:size] = left[:size]
        left = left[size:]
    return len(data) - len(left)
