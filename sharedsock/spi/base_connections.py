"""The base provider's calls about connections and names.

Source: LPWSPBIND, LPWSPLISTEN, LPWSPCONNECT, LPWSPSHUTDOWN, LPWSPSENDDISCONNECT, LPWSPRECVDISCONNECT,
LPWSPGETSOCKNAME, LPWSPGETPEERNAME.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from sharedsock.descriptors import events, lingering, options, transfer
from sharedsock.kernel import operations, system
from sharedsock.kernel.operations import WRITE
from sharedsock.model.winsock import (
    SD_BOTH,
    SD_RECEIVE,
    SD_SEND,
    WSAEINVAL,
    WSAEISCONN,
    WSAENOPROTOOPT,
    WSAENOTCONN,
    WSAEOPNOTSUPP,
)
from sharedsock.spi.base_sockets import BaseSockets, Opened, wait_once_or_with_hook
from sharedsock.spi.buffers import with_address
from sharedsock.spi.errors import WSAError, speaks_winsock

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["Connections"]


def is_tcp(opened: Opened) -> bool:
    """Whether the socket is a TCP connection or could be one."""
    descriptor = opened.descriptor
    return descriptor.type == socket.SOCK_STREAM and descriptor.family != socket.AF_UNIX


class Connections(BaseSockets):
    """Connections begin and end."""

    def _kernel(self, s: int) -> KernelSocket:
        return transfer.require_kernel(self.opened(s).descriptor)

    @speaks_winsock
    def WSPBind(self, s: int, name: Any) -> None:
        with_address(self._kernel(s).bind, name)

    @speaks_winsock
    def WSPListen(self, s: int, backlog: int) -> None:
        kernel = self._kernel(s)
        if not isinstance(backlog, int):
            raise WSAError(WSAEINVAL, f"the backlog is {backlog!r}")
        if not _is_bound(kernel.getsockname()):
            raise WSAError(WSAEINVAL, "bind it to an address first")
        if _has_peer(kernel):
            raise WSAError(WSAEISCONN)
        kernel.listen(max(0, min(backlog, 2**31 - 1)))
        self._look_again(s)

    @speaks_winsock
    def WSPConnect(self, s: int, name: Any, lpCallerData: Any = None) -> None:
        opened = self.opened(s)
        if lpCallerData is not None:
            raise WSAError(WSAENOPROTOOPT, "these protocols carry no connect data")
        descriptor = opened.descriptor
        if descriptor.type in options.STREAMS and _has_peer(transfer.require_kernel(descriptor)):
            raise WSAError(WSAEISCONN)
        is_begun = False

        def attempt(timeout_s: float | None) -> None:
            nonlocal is_begun
            if not is_begun:
                is_begun = True
                with_address(transfer.connect, descriptor, name, timeout_s)
            else:  # the attempt goes on while the hook runs: only its outcome is asked for
                kernel = transfer.require_kernel(descriptor)
                call = operations.connect_outcome
                operations.perform(kernel, "connect", WRITE, timeout_s, call, (kernel,), has_tried=timeout_s != 0)

        try:
            wait_once_or_with_hook(descriptor, attempt)
        finally:
            self._look_again(s)

    def _look_again(self, s: int) -> None:
        """Tell an event registration that there is something to wait for now."""
        opened = self._sockets.get(s)
        descriptor = None if opened is None else opened.descriptor
        if descriptor is not None and not descriptor.is_closed and events.is_registered(descriptor):
            events.look_again(descriptor)

    @speaks_winsock
    def WSPJoinLeaf(self, s: int, name: Any) -> int:
        self.opened(s)
        raise WSAError(WSAEOPNOTSUPP, "WSPJoinLeaf: these protocols have no multipoint sessions")

    # -- ending ----------------------------------------------------------------------------------------------

    @speaks_winsock
    def WSPShutdown(self, s: int, how: int) -> None:
        opened = self.opened(s)
        if not hasattr(how, "__index__") or how not in (SD_RECEIVE, SD_SEND, SD_BOTH):
            raise WSAError(WSAEINVAL, f"no direction is called {how!r}")
        self._shut_down(opened, how)
        if how != SD_SEND and is_tcp(opened):
            kernel = opened.descriptor.kernel
            if system.has_unread(kernel.number):  # what nobody will read any more ends the connection (SHUT-3)
                lingering.reset(kernel, others_may_hold=True)

    @speaks_winsock
    def WSPSendDisconnect(self, s: int, lpOutboundDisconnectData: Any = None) -> None:
        opened = self._connected(s)
        if lpOutboundDisconnectData is not None:
            raise WSAError(WSAENOPROTOOPT, "these protocols carry no disconnect data")
        self._shut_down(opened, SD_SEND)

    @speaks_winsock
    def WSPRecvDisconnect(self, s: int, lpInboundDisconnectData: Any = None) -> None:
        opened = self._connected(s)
        if lpInboundDisconnectData is not None:
            raise WSAError(WSAENOPROTOOPT, "these protocols carry no disconnect data")
        self._shut_down(opened, SD_RECEIVE)

    def _connected(self, s: int) -> Opened:
        opened = self.opened(s)
        if opened.descriptor.type not in options.STREAMS:
            raise WSAError(WSAENOPROTOOPT, "a socket without connections has none to end")
        return opened

    def _shut_down(self, opened: Opened, how: int) -> None:
        # SD_RECEIVE, SD_SEND and SD_BOTH are the kernel's SHUT_RD, SHUT_WR and SHUT_RDWR.
        kernel = transfer.require_kernel(opened.descriptor)
        options.shut_down(opened.descriptor, how, kernel.shutdown)

    # -- names -----------------------------------------------------------------------------------------------

    @speaks_winsock
    def WSPGetSockName(self, s: int) -> Any:
        name = self._kernel(s).getsockname()
        if not _is_bound(name):
            raise WSAError(WSAEINVAL, "it is bound to no address yet")
        return name

    @speaks_winsock
    def WSPGetPeerName(self, s: int) -> Any:
        try:
            return self._kernel(s).getpeername()
        except OSError as error:
            if error.errno == errno.EINVAL:  # a listener
                raise WSAError(WSAENOTCONN) from error
            raise


def _has_peer(kernel: KernelSocket) -> bool:
    try:
        kernel.getpeername()
    except OSError:
        return False
    return True


def _is_bound(name: Any) -> bool:
    """Whether a local address is one: port 0 and an empty path are none."""
    return bool(name[1]) if isinstance(name, tuple) else bool(name)
