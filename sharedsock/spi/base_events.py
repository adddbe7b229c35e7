"""The base provider's WSPEventSelect and WSPEnumNetworkEvents: event objects, set by what `descriptors.events` records.

Source: LPWSPEVENTSELECT, LPWSPENUMNETWORKEVENTS.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sharedsock.descriptors import events
from sharedsock.model.winsock import FD_ALL_EVENTS, WSAEINVAL
from sharedsock.spi import waits
from sharedsock.spi.base_sockets import BaseSockets
from sharedsock.spi.errors import WSAError, speaks_winsock
from sharedsock.spi.provider import WSANETWORKEVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Events"]


class Events(BaseSockets):
    """Network events."""

    @speaks_winsock
    def WSPEventSelect(self, s: int, hEventObject: int | None, lNetworkEvents: int) -> None:
        opened = self.opened(s)
        given: Any = lNetworkEvents
        if not isinstance(given, int) or given & ~FD_ALL_EVENTS:
            raise WSAError(WSAEINVAL, f"no such network events: {given!r}")
        if not given:
            events.cancel(opened.descriptor)
            return
        if not hEventObject:
            raise WSAError(WSAEINVAL, "no event object")
        waits.event_is_set(hEventObject)  # or it is none
        events.register(opened.descriptor, given, partial(_set, self.upcalls.WPUSetEvent, hEventObject))

    @speaks_winsock
    def WSPEnumNetworkEvents(self, s: int, hEventObject: int | None = None) -> WSANETWORKEVENTS:
        opened = self.opened(s)
        if hEventObject:
            self.upcalls.WPUResetEvent(hEventObject)  # first: on a failure nothing is cleared (EVENT-5)
        return WSANETWORKEVENTS(*events.take(opened.descriptor))


def _set(set_event: Callable[[int], None], event: int) -> None:
    with suppress(WSAError):  # its creator has closed it
        set_event(event)
