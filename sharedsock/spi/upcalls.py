"""THE UPCALLS: what "the DLL" (Ws2_32) does for its providers. WPU*, names and meanings as in ws2spi.h.

A provider gets them as an `UpcallTable` with WSPStartup and calls no others: one that stands above it, or a test, may
hand it a table of its own.

Source: "Upcalls Exposed by Windows Sockets 2 DLL"; the page of each function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sharedsock.descriptors import table
from sharedsock.model.identity import DescriptorId
from sharedsock.model.winsock import WSAEINVAL, WSAENOTSOCK
from sharedsock.spi import callbacks, catalog, handles, overlapped, waits
from sharedsock.spi.errors import WSAError
from sharedsock.spi.overlapped import WSAOVERLAPPED
from sharedsock.spi.waits import WSATHREADID

__all__ = ["UpcallTable"]


class UpcallTable:
    """The DLL's own table. Each of its calls may be given another meaning in a subclass."""

    def WPUCreateSocketHandle(self, dwCatalogEntryId: int, lpContext: Any) -> int:
        """Create a socket handle for a non-IFS provider, with a word of context; return it.

        Raises:
            WSAError: 10022, no such catalogue entry, or one with XP1_IFS_HANDLES (NONIFS-3); 10055, no room.
        """
        provider = catalog.provider_of(dwCatalogEntryId)
        if catalog.entry_of(dwCatalogEntryId).is_ifs:
            raise WSAError(WSAEINVAL, "an entry with XP1_IFS_HANDLES has the operating system's handles")
        return handles.create(provider, dwCatalogEntryId, lpContext)

    def WPUQuerySocketHandleContext(self, s: int) -> Any:
        """Return the context of a handle that WPUCreateSocketHandle made.

        Raises:
            WSAError: 10038, it made no such handle, or it is closed.
        """
        handle = handles.find(s)
        if handle is None or handle.is_ifs:
            raise WSAError(WSAENOTSOCK, f"{s!r} is no handle made by WPUCreateSocketHandle")
        return handle.context

    def WPUModifyIFSHandle(self, dwCatalogEntryId: int, ProposedHandle: Any) -> int:
        """Make an IFS provider's handle known; return the one to be used.

        Raises:
            WSAError: 10022, no handle of the operating system, or no IFS entry (IFS-3).
        """
        provider = catalog.provider_of(dwCatalogEntryId)
        if not catalog.entry_of(dwCatalogEntryId).is_ifs:
            raise WSAError(WSAEINVAL, "an entry without XP1_IFS_HANDLES gets its handles by WPUCreateSocketHandle")
        if not isinstance(ProposedHandle, int) or table.find(DescriptorId(ProposedHandle)) is None:
            raise WSAError(WSAEINVAL, f"{ProposedHandle!r} is no handle of the operating system")
        return handles.add(ProposedHandle, provider, dwCatalogEntryId, None, is_ifs=True)

    def WPUCloseSocketHandle(self, s: int) -> None:
        """Take a handle out of the DLL's table, and nothing else; due exactly once for each (NONIFS-5).

        Raises:
            WSAError: 10038, WPUCreateSocketHandle made no such handle, or it was given back already (NONIFS-7).
        """
        self.WPUQuerySocketHandleContext(s)
        handles.discard(s)

    def WPUCompleteOverlappedRequest(
        self, s: int, lpOverlapped: Any, dwError: int, cbTransferred: int, dwFlags: int = 0
    ) -> None:
        """Complete a request without a completion routine: set its event, or post to the handle's port.

        Raises:
            WSAError: 10022, it was not begun on a handle that WPUCreateSocketHandle made (NONIFS-12).
        """
        if not isinstance(lpOverlapped, WSAOVERLAPPED) or not overlapped.belongs_to_the_dll(s, lpOverlapped):
            raise WSAError(WSAEINVAL, f"no request of handle {s!r} made by WPUCreateSocketHandle")
        overlapped.complete(lpOverlapped, dwError, cbTransferred, dwFlags)

    def WPUCreateEvent(self) -> int:
        """Create an event object, not set; return its handle."""
        return waits.make_event()

    def WPUSetEvent(self, hEvent: int) -> None:
        """Set an event object; 6 where it is none."""
        waits.set_event(hEvent)

    def WPUResetEvent(self, hEvent: int) -> None:
        """Reset an event object; 6 where it is none."""
        waits.reset_event(hEvent)

    def WPUCloseEvent(self, hEvent: int) -> None:
        """Close an event object; 6 where it is none."""
        waits.close_event(hEvent)

    def WPUOpenCurrentThread(self) -> WSATHREADID:
        """Return the identity of this thread, for WPUQueueApc."""
        thread = waits.current_thread()
        thread.is_closed = False
        return thread

    def WPUCloseThread(self, lpThreadId: Any) -> None:
        """Give back what WPUOpenCurrentThread returned; 10022 where it is none, or closed."""
        if not isinstance(lpThreadId, WSATHREADID) or lpThreadId.is_closed:
            raise WSAError(WSAEINVAL, f"{lpThreadId!r} is no open thread identity")
        lpThreadId.is_closed = True

    def WPUQueueApc(self, lpThreadId: Any, lpfnUserApc: Callable[[Any], Any], dwContext: Any) -> None:
        """Queue a procedure call: the thread makes it when it next waits alertably.

        Raises:
            WSAError: 10022, no thread.
        """
        if not isinstance(lpThreadId, WSATHREADID):
            raise WSAError(WSAEINVAL, f"{lpThreadId!r} is no thread identity")
        waits.queue_call(lpThreadId, lpfnUserApc, dwContext)

    def WPUQueryBlockingCallback(self, dwCatalogEntryId: int) -> tuple[Callable[[Any], bool], Any] | None:
        """Return this thread's blocking hook and its context, to be called while a call blocks; None without one."""
        catalog.entry_of(dwCatalogEntryId)
        return callbacks.blocking_hook()

    def WPUFDIsSet(self, s: int, fdset: Collection[int]) -> bool:
        """Report whether a handle is in a set."""
        return s in fdset

    def WPUGetProviderPath(self, lpProviderId: Any) -> str:
        """Return the import name of a provider's class, "package.module:Class".

        Raises:
            WSAError: 10105, no provider has this id.
        """
        return catalog.path_of(lpProviderId)
