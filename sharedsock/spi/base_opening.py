"""The base provider opens, accepts, duplicates and closes: each handle stands for one descriptor of `descriptors`.

Its handles are numbers of the table that is the operating system here, made known by WPUModifyIFSHandle, and only the
number which that returns reaches the client (IFS-2).

Source: LPWSPSOCKET, LPWSPACCEPT, LPWSPCLOSESOCKET, LPWSPDUPLICATESOCKET, LPWSPCLEANUP; "Descriptor Allocation".
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sharedsock.descriptors import closing, events, options, sharing, table, transfer
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.kernel import sockets
from sharedsock.model.errors import with_winerror
from sharedsock.model.winsock import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    CF_ACCEPT,
    CF_DEFER,
    CF_REJECT,
    FD_ACCEPT,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_STREAM,
    WSAECONNREFUSED,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTSOCK,
    WSASYSNOTREADY,
    WSATRY_AGAIN,
)
from sharedsock.spi import callbacks, handles
from sharedsock.spi.base_sockets import BaseSockets, Opened, is_nonblocking, wait_once_or_with_hook
from sharedsock.spi.errors import WSAError, speaks_winsock
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO, Duplicate, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["FAMILIES", "Opening"]

FAMILIES: Final = {AF_INET: socket.AF_INET, AF_INET6: socket.AF_INET6, AF_UNIX: socket.AF_UNIX}
"""Winsock's number of a family -> the kernel's."""
_TYPES: Final = {SOCK_STREAM: socket.SOCK_STREAM, SOCK_DGRAM: socket.SOCK_DGRAM}
_PROTOCOLS: Final = {IPPROTO_TCP: socket.IPPROTO_TCP, IPPROTO_UDP: socket.IPPROTO_UDP, 0: 0}


class Opening(BaseSockets):
    """Sockets come and go."""

    def start(self, lpProtocolInfo: WSAPROTOCOL_INFO) -> None:
        """Open what every socket of the process needs; 10091 where even that cannot be had."""
        try:
            sockets.open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
        except OSError as error:
            raise WSAError(WSASYSNOTREADY, f"no socket can be opened: {error}") from error

    def stop(self) -> None:
        """End what is still open, hard, each with this process's reference only (CLEANUP-3, -4)."""
        for opened in tuple(self._sockets.values()):
            opened.is_silent = True
            with suppress(OSError):
                self._end(opened, is_hard=True)

    @speaks_winsock
    def WSPSocket(
        self, af: int, type: int, protocol: int, lpProtocolInfo: WSAPROTOCOL_INFO, g: int = 0, dwFlags: int = 0
    ) -> int:
        if lpProtocolInfo.dwProviderReserved:
            duplicate = unseal(lpProtocolInfo)
            if duplicate.dwFlags != dwFlags:
                raise WSAError(WSAEINVAL, "a duplicate is made with the flags of its source (DUP-20)")
            return sharing.redeem(duplicate.ticket, lambda made: self._enter(made, lpProtocolInfo, dwFlags))
        family, kind = FAMILIES[lpProtocolInfo.iAddressFamily], _TYPES[lpProtocolInfo.iSocketType]
        try:
            kernel = sockets.open_socket(family, kind, _PROTOCOLS[lpProtocolInfo.iProtocol])
        except OSError as error:
            raise with_winerror(error) from None
        descriptor = table.enter(Descriptor(kernel))
        try:
            return self._enter(descriptor, lpProtocolInfo, dwFlags)
        except BaseException:
            closing.collect(descriptor)
            raise

    def _enter(self, descriptor: Descriptor, info: WSAPROTOCOL_INFO, flags: int) -> int:
        """Make a descriptor known as a handle; return the handle."""
        descriptor.timeout_s = None  # blocking mode is the socket's, not the descriptor's
        own = replace(info, dwProviderReserved=b"")
        handle = self.upcalls.WPUModifyIFSHandle(info.dwCatalogEntryId, descriptor.id)
        self._sockets[handle] = Opened(handle, descriptor, own, flags)
        return handle

    # -- accepting -------------------------------------------------------------------------------------------

    @speaks_winsock
    def WSPAccept(
        self, s: int, lpfnCondition: Callable[..., int] | None = None, dwCallbackData: Any = None
    ) -> tuple[int, Any]:
        listener = self.opened(s)
        descriptor = listener.descriptor
        try:
            kernel, address = wait_once_or_with_hook(
                descriptor, lambda timeout_s: transfer.accept(descriptor, timeout_s)
            )
        finally:
            if not descriptor.is_closed and events.is_registered(descriptor):
                events.reenable(descriptor, FD_ACCEPT)
        try:
            if lpfnCondition is not None:
                self._ask(lpfnCondition, kernel, address, dwCallbackData)
            return self._enter_client(listener, kernel), address
        except WSAError as error:
            if error.winerror == WSAECONNREFUSED:
                closing.close(Descriptor(kernel), is_hard=True)
            else:
                descriptor.kernel.kept.append((kernel, address))  # for the next accept of this process
            raise
        except BaseException:
            descriptor.kernel.kept.append((kernel, address))
            raise

    def _enter_client(self, listener: Opened, kernel: KernelSocket) -> int:
        """Enter an accepted client, which starts with its listener's mode and linger option (CLOSE-41)."""
        client = Descriptor(kernel)
        options.take_over_linger(client, listener.descriptor)
        client.local = replace(client.local, nonblocking=is_nonblocking(listener.descriptor))
        handle = self._enter(table.enter(client), listener.info, listener.flags)
        events.inherit(listener.descriptor, client)
        return handle

    def _ask(self, condition: Callable[..., int], kernel: KernelSocket, address: Any, data: Any) -> None:
        """Ask the condition function whether to accept; raise if not."""
        with callbacks.in_callback():
            answer = condition(address, kernel.getsockname(), data)
        if answer == CF_REJECT:
            raise WSAError(WSAECONNREFUSED, "the condition function has rejected the client")
        if answer == CF_DEFER:
            raise WSAError(WSATRY_AGAIN, "the condition function has deferred: the next accept finds the client")
        if answer != CF_ACCEPT:
            raise WSAError(WSAEINVAL, f"the condition function has answered {answer!r}")

    # -- duplicating and closing -----------------------------------------------------------------------------

    @speaks_winsock
    def WSPDuplicateSocket(self, s: int, dwProcessId: Any) -> WSAPROTOCOL_INFO:
        opened = self.opened(s)
        if not isinstance(dwProcessId, int) or dwProcessId <= 0:
            raise WSAError(WSAEINVAL, f"{dwProcessId!r} is no process id")
        ticket = sharing.share(opened.descriptor, dwProcessId, None)
        return seal(opened.info, Duplicate(opened.flags, ticket))

    @speaks_winsock
    def WSPCloseSocket(self, s: int) -> None:
        opened = self._sockets.get(s)
        if opened is None:
            raise self.refusal(s)
        self._end(opened, is_hard=opened.is_abortive)

    def _end(self, opened: Opened, *, is_hard: bool) -> None:
        """Close, and give the handle up unless the close was refused."""
        may_refuse = not is_hard and is_nonblocking(opened.descriptor)
        registration = events.registration_of(opened.descriptor)
        is_done = True
        try:
            with callbacks.outstanding() as call:
                on_wait = None if callbacks.blocking_hook() is None else lambda: _let_cancel(call)
                is_first = closing.close(opened.descriptor, may_refuse=may_refuse, is_hard=is_hard, on_wait=on_wait)
        except BlockingIOError:
            is_done = False
            raise
        finally:
            if is_done and self._sockets.pop(opened.handle, None) is not None:
                with suppress(WSAError):
                    handles.discard(opened.handle)
                events.note_closed(opened.descriptor, registration)
        if not is_first:
            raise WSAError(WSAENOTSOCK, f"{opened.handle} is being closed by another thread")


def _let_cancel(call: callbacks.Outstanding) -> None:
    """While a close lingers, its thread's hook may cancel it: nothing of the descriptor stays (CLOSE-8)."""
    callbacks.run_hook(call)
    if call.is_cancelled:
        raise WSAError(WSAEINTR, "this close was cancelled by its own thread; the descriptor is gone")
