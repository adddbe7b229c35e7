"""Buffers, flags and addresses as a client of the base provider gives them, checked and turned into the kernel's.

Source: WSABUF; LPWSPSEND and LPWSPRECV, dwFlags.
"""

from __future__ import annotations

import socket
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from sharedsock.model.winsock import (
    MSG_OOB,
    MSG_PARTIAL,
    MSG_PEEK,
    MSG_WAITALL,
    WSAEFAULT,
    WSAEINVAL,
    WSAEOPNOTSUPP,
)
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RECEIVE_FLAGS",
    "SEND_FLAGS",
    "checked_buffers",
    "fill",
    "kernel_flags",
    "receive_flags",
    "rest_of",
    "with_address",
]

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


def receive_flags(dwFlags: Any, *, is_stream: bool) -> int:
    """Return the kernel's flags for a receive's.

    Raises:
        WSAError: 10045, no flag of a receive, or MSG_WAITALL where it means nothing: for messages, or beside another.
    """
    flags = kernel_flags(dwFlags, RECEIVE_FLAGS, MSG_WAITALL | MSG_PARTIAL)
    if dwFlags & MSG_WAITALL and (dwFlags != MSG_WAITALL or not is_stream):
        raise WSAError(WSAEOPNOTSUPP, "MSG_WAITALL stands alone, and is for streams")
    return flags


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


def with_address(call: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call that takes an address; 10014 for what is none of its family's."""
    try:
        return call(*arguments)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WSAError(WSAEFAULT, f"no address of this family: {error}") from error
