"""The system calls of the data plane, by name, so that a test can make any one of them fail.

Rooms call `system.dup2(...)`, never `from ... import dup2`. Nothing here decides anything; what a platform lacks
gets its named fallback where it is used (waker, waiting, sockets).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from functools import partial
from itertools import starmap
from typing import Any, Final

__all__ = [
    "DONTWAIT",
    "NOSIGNAL",
    "close",
    "dup2",
    "duplicate",
    "file_identity",
    "has_unread",
    "ioctl_int",
    "is_still_dead",
    "make_epoll",
    "make_eventfd",
    "make_pipe",
    "make_poll",
    "open_dead_file",
    "reset_connection",
    "socket_cookie",
    "stay_nonblocking",
    "tcp_state",
    "unread_bytes",
    "unsent_bytes",
    "write_eventfd",
    "write_pipe",
]

_NONE: Final = bytes(struct.calcsize("i"))
DONTWAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))

_SO_COOKIE: Final = 57
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)

close = os.close
write_eventfd = getattr(os, "eventfd_write", None)
write_pipe = os.write
make_pipe = os.pipe
make_poll = select.poll


def _no_eventfd() -> int:
    raise OSError(errno.ENOSYS, "no eventfd on this platform")


# A C callable, not a function of ours: its caller stores the number before any interrupt can fall (waker.py).
make_eventfd: Any = partial(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if hasattr(os, "eventfd") else _no_eventfd


def make_epoll() -> Any:
    """Open a close-on-exec epoll set; OSError(ENOSYS) where the platform has none."""
    make = getattr(select, "epoll", None)
    if make is None:
        raise OSError(errno.ENOSYS, "no epoll on this platform")
    return make()


def dup2(source: int, number: int) -> None:
    """Put `source`'s file over `number`, close-on-exec, in one atomic step."""
    os.dup2(source, number, inheritable=False)


def duplicate(number: int, into: list[int]) -> None:
    """Append a new close-on-exec number on the same file, 3 or above: opened and stored by one C call (waker.py)."""
    into.extend(starmap(fcntl.fcntl, ((number, fcntl.F_DUPFD_CLOEXEC, 3),)))


def open_dead_file(family: int) -> int:
    """Open a file that answers no call of a socket of this family.

    O_PATH: every socket call on it answers EBADF. Elsewhere an unconnected datagram socket of another family: one of
    the same family would really send and connect.
    """
    path_only = getattr(os, "O_PATH", None)
    if path_only is not None:
        return os.open("/", path_only | os.O_CLOEXEC)
    dead = _socket.socket(socket.AF_INET if family == socket.AF_UNIX else socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.setblocking(False)
    return dead.detach()


def file_identity(number: int) -> tuple[int, int, int]:
    """Return what tells an open file from another that may have got its number: device, inode, and O_PATH or not."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino, fcntl.fcntl(number, fcntl.F_GETFL) & int(getattr(os, "O_PATH", 0))


def is_still_dead(number: int, identity: tuple[int, ...]) -> bool:
    """Whether a number is a dead file still. Any O_PATH file answers EBADF, so one of a stranger's would do as well."""
    try:
        if identity[2]:
            return bool(fcntl.fcntl(number, fcntl.F_GETFL) & identity[2])
        return file_identity(number) == identity
    except OSError:
        return False


def stay_nonblocking(kernel: Any) -> None:
    """Put the mode of a kernel socket's file right, if another holder has made it blocking.

    accept(2) and connect(2) have no flag for one call, as MSG_DONTWAIT is: they would wait where no close reaches them.
    A file that is right already is left alone, as every sharer sees the mode.
    """
    if os.get_blocking(kernel.number):
        kernel.settimeout(0.0)


def ioctl_int(number: int, request: int) -> int:
    """Return the int an ioctl reports."""
    return int(struct.unpack("i", fcntl.ioctl(number, request, _NONE))[0])


def unsent_bytes(number: int) -> int:
    """Return SIOCOUTQ: bytes not sent or not acknowledged (TCP; +1 once our FIN is queued)."""
    return ioctl_int(number, termios.TIOCOUTQ)


def has_unread(number: int) -> bool:
    """Whether bytes have arrived that nobody has read; a third of what `unread_bytes` costs.

    Raises:
        OSError: EINVAL, a listener.
    """
    return fcntl.ioctl(number, termios.FIONREAD, _NONE) != _NONE


def unread_bytes(number: int) -> int:
    """Return FIONREAD: bytes that have arrived and nobody has read."""
    return int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder, signed=True)


class _View(_socket.socket):
    """A socket object that only looks: its end does not close the number (the base class closes in its finalizer)."""

    def __del__(self) -> None:
        return


def socket_cookie(number: int) -> int:
    """Return the identity of the socket behind a number: SO_COOKIE, else its device and inode (rule 16).

    Raises:
        OSError: no socket, or closed.
    """
    view = _View(-1, -1, -1, number)
    try:
        return int(struct.unpack("Q", view.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])
    except OSError:
        status = os.fstat(number)
        return int(status.st_dev << 64 | status.st_ino)


def tcp_state(kernel: Any) -> int:
    """Return the state byte of TCP_INFO (1 ESTABLISHED, 7 CLOSE …), 0 where the socket is not TCP."""
    if _TCP_INFO is None:
        return 0
    try:
        return int(kernel.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0])
    except OSError:
        return 0


def reset_connection(number: int) -> None:
    """Send a TCP reset now: connect(AF_UNSPEC) disconnects even while another process still has the file.

    Source: connect(2), "dissolve the association"; Linux tcp_disconnect() sends RST in every synchronised state.
    """
    import ctypes  # 10 ms to import: only a hard close of a shared connection pays it

    address = struct.pack("H14x", socket.AF_UNSPEC)
    ctypes.CDLL(None, use_errno=True).connect(number, address, len(address))
