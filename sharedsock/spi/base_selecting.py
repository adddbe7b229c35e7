"""The base provider's WSPSelect, and the end of a thread's blocking call.

Source: LPWSPSELECT, LPWSPCANCELBLOCKINGCALL.
"""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING, Final

from sharedsock.descriptors import selecting
from sharedsock.model.winsock import WSAEINTR, WSAEINVAL, WSAEOPNOTSUPP
from sharedsock.spi import callbacks
from sharedsock.spi.base_sockets import BaseSockets
from sharedsock.spi.errors import WSAError, speaks_winsock

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor

__all__ = ["Selecting"]

_HOOK_EVERY_S: Final = 0.01


class Selecting(BaseSockets):
    """Waiting for several sockets at once."""

    @speaks_winsock
    def WSPSelect(
        self,
        readfds: Collection[int] | None,
        writefds: Collection[int] | None,
        exceptfds: Collection[int] | None,
        timeout: float | None = None,
    ) -> tuple[list[int], list[int], list[int]]:
        handles: dict[int, int] = {}
        sets: list[list[Descriptor]] = []
        for fds in (readfds, writefds, exceptfds):
            found = [self.opened(s) for s in fds or ()]
            handles.update((opened.descriptor.id, opened.handle) for opened in found)
            sets.append([opened.descriptor for opened in found])
        if timeout is not None and not isinstance(timeout, int | float):
            raise WSAError(WSAEINVAL, f"the timeout is {timeout!r}")
        ready = _select(sets, timeout)
        read, write, exceptional = ([handles[one.id] for one in some] for some in ready)
        return read, write, exceptional

    @speaks_winsock
    def WSPAsyncSelect(self, s: int, hWnd: int, wMsg: int, lEvent: int) -> None:
        self.opened(s)
        raise WSAError(WSAEOPNOTSUPP, "WSPAsyncSelect: there are no windows to post messages to")

    def WSPCancelBlockingCall(self) -> None:
        callbacks.cancel()


def _select(sets: list[list[Descriptor]], timeout_s: float | None) -> tuple[list[Descriptor], ...]:
    """Wait once, or with this thread's hook in between."""
    read, write, exceptional = sets
    if callbacks.blocking_hook() is None:
        return selecting.select(read, write, exceptional, timeout_s)
    deadline = None if timeout_s is None else monotonic() + timeout_s
    with callbacks.outstanding() as call:
        while True:
            left_s = _HOOK_EVERY_S if deadline is None else min(_HOOK_EVERY_S, max(0.0, deadline - monotonic()))
            ready = selecting.select(read, write, exceptional, 0.0 if call.is_cancelled else left_s)
            if any(ready) or (deadline is not None and monotonic() >= deadline):
                return ready
            if call.is_cancelled:
                raise WSAError(WSAEINTR, "this select was cancelled by its own thread")
            callbacks.run_hook(call)
