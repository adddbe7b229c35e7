"""The path name of a shared Unix socket goes with its last close, once, by whoever closes last (REF-3, F-72).

POSIX leaves the file behind, and of several sharers nobody knows that he is the last to care for it. Only a name that
still is this socket's is removed: a path may have been unlinked and bound anew by a stranger meanwhile. Which file a
socket is bound to is asked of the kernel (sock_diag); where it does not say, the path stays. So does the path of a
socket that was never shared: that is its owner's business, as in the standard library.
"""

from __future__ import annotations

import _socket
import os
import socket
import struct
from contextlib import suppress
from typing import Final

__all__ = ["remove_path"]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_SHOW_VFS: Final = 2
_ATTRIBUTE_VFS: Final = 1
# struct nlmsghdr, struct unix_diag_req: one socket by its inode, whatever its cookie (linux/unix_diag.h).
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBHIIIII")
_REPLY_SIZE: Final = 16
_ATTRIBUTE: Final = struct.Struct("=HH")
_FILE: Final = struct.Struct("=II")
_ANY: Final = 0xFFFFFFFF


def remove_path(view: _socket.socket) -> None:
    """Remove the path a listener or datagram socket is bound to, if it still is this socket's; never raises OSError.

    A socket that `accept` returned carries its listener's name, which is not its own to remove.
    """
    with suppress(OSError):
        if view.family != socket.AF_UNIX:
            return
        if view.type != socket.SOCK_DGRAM and not view.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return
        path = view.getsockname()
        if not path or not isinstance(path, str):  # unnamed, or an abstract name, which ends with the socket
            return
        status = os.lstat(path)
        device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)  # as the kernel numbers it inside
        if _bound_file(os.fstat(view.fileno()).st_ino) == (status.st_ino & _ANY, device):
            os.unlink(path)


def _bound_file(inode: int) -> tuple[int, int] | None:
    """Return (inode, device) of the file a Unix socket is bound to; None where the kernel does not tell."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode & _ANY, _SHOW_VFS, _ANY, _ANY)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    diagnosis = _socket.socket(getattr(socket, "AF_NETLINK", -1), kind, _NETLINK_SOCK_DIAG)
    try:
        diagnosis.settimeout(0.0)  # the kernel has answered before send() returns
        diagnosis.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, 1, 1, 0) + request)
        reply = diagnosis.recv(4096)
    finally:
        diagnosis.close()
    length, kind, *_ = _HEADER.unpack_from(reply)
    offset = _HEADER.size + _REPLY_SIZE
    while kind == _SOCK_DIAG_BY_FAMILY and offset + _ATTRIBUTE.size <= min(length, len(reply)):
        size, attribute = _ATTRIBUTE.unpack_from(reply, offset)
        if attribute == _ATTRIBUTE_VFS:
            number, device = _FILE.unpack_from(reply, offset + _ATTRIBUTE.size)
            return number, device
        offset += max(size + 3 & ~3, _ATTRIBUTE.size)
    return None
