"""The path name of a shared Unix socket goes with its last close, once, by whoever closes last (REF-3, F-72).

POSIX leaves the file behind, and of several sharers nobody knows that he is the last to care for it. Only a name that
still is this socket's is removed: a path may have been unlinked and bound anew by a stranger meanwhile. Which file a
socket is bound to is asked of the kernel (kernel/diagnosis.py); where it does not say, the path stays. So does the path
of a socket that was never shared: that is its owner's business, as in the standard library.
"""

from __future__ import annotations

import _socket
import os
import socket
from contextlib import suppress
from typing import Final

from sharedsock.kernel.diagnosis import bound_file

__all__ = ["remove_path"]

_INODE: Final = 0xFFFFFFFF  # as much of it as the kernel tells


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
        if bound_file(os.fstat(view.fileno()).st_ino) == (status.st_ino & _INODE, device):
            os.unlink(path)
