"""An exclusive socket: a stream that this process has opened, and under a number that it has told nobody.

Rule 1, never to block in a call that takes, protects other holders, whose bytes it would take; rule 5, never to toggle
O_NONBLOCK, protects their calls. Here there are none. So a receive may wait in the kernel, for MOMENT_S at most
(SO_RCVTIMEO): one system call, 0.96 of a blocking socket's ping-pong where poll() and recv() make 0.83 (TCP, bare
loops). The bound is what a close may have to wait: a signal restarts the call, so the abort exposes the socket as well.

`expose` comes before anybody else can hold the socket: before its number is told, it is shared or lent, and before a
call that has no flag for one call, as MSG_DONTWAIT is. What it leaves is what everybody else expects: O_NONBLOCK, and
SO_RCVTIMEO as it was. Sockets that were adopted or redeemed never are exclusive: nobody here knows who has them.
"""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress
from socket import AF_INET, AF_INET6, AF_UNIX, SO_RCVTIMEO, SOCK_STREAM, SOL_SOCKET
from typing import TYPE_CHECKING, Final

from sharedsock.kernel import numbers

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["MOMENT_S", "expose", "hold"]

# Rounded up to the kernel's ticks: longer than a quick turn, well below T_abort.
MOMENT_S: Final = 0.005
_MOMENT: Final = struct.pack("ll", 0, int(MOMENT_S * 1e6))
_FAMILIES: Final = AF_INET, AF_INET6, AF_UNIX


def hold(kernel: KernelSocket) -> bool:
    """Let calls without MSG_DONTWAIT wait for a moment; False: others may hold the socket, or it is no stream."""
    with numbers.gate, suppress(OSError):
        if not kernel.is_exclusive or kernel.aborted is not None:
            return False
        if kernel.type != SOCK_STREAM or kernel.family not in _FAMILIES or not sys.platform.startswith("linux"):
            kernel.is_exclusive = False
            return False
        if not kernel.patience:
            kernel.patience = kernel.getsockopt(SOL_SOCKET, SO_RCVTIMEO, len(_MOMENT))
            kernel.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _MOMENT)
        os.set_blocking(kernel.number, True)
        return True
    return False


def expose(kernel: KernelSocket) -> None:
    """Before somebody else may hold the socket: no call waits in the kernel from now on, and nothing shows of it.

    A receive that waits there goes on for a moment at most; what it takes is this process's, as of any operation.
    """
    if not kernel.is_exclusive and not kernel.patience:
        return
    with numbers.gate, suppress(OSError):  # closed behind our back
        if numbers.is_forked() or kernel.era != numbers.current_era():  # the file is the parent's as well
            return
        kernel.is_exclusive = False
        if kernel.talk is not None:
            kernel.talk.silence()
        if kernel.patience:
            kernel.setsockopt(SOL_SOCKET, SO_RCVTIMEO, kernel.patience)
            kernel.settimeout(0.0)
            kernel.patience = b""
