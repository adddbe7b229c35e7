"""WSPStartup and WSPCleanup of this process, counted; each provider is started when its first socket is made.

Source: WSPStartup, LPWSPCLEANUP; "Initialization" and "Cleanup" (Winsock SPI).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from sharedsock.model.winsock import WSAEPROVIDERFAILEDINIT, WSANOTINITIALISED
from sharedsock.spi import callbacks, catalog, handles
from sharedsock.spi.errors import WSAError
from sharedsock.spi.protocol_info import WSPDATA
from sharedsock.spi.provider import HIGHEST_VERSION, negotiated
from sharedsock.spi.upcalls import UpcallTable

if TYPE_CHECKING:
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Provider

__all__ = ["WSPCleanup", "WSPStartup", "require_provider"]

_lock = threading.Lock()
_count = 0
_version = HIGHEST_VERSION
_started: list[Provider] = []
_OWN: Final = UpcallTable()
_upcalls = _OWN


def WSPStartup(wVersionRequested: int = HIGHEST_VERSION, UpcallTable: UpcallTable | None = None) -> WSPDATA:
    """Begin to use this face in this process; as many WSPCleanup calls end it.

    Args:
        wVersionRequested: MAKEWORD(major, minor); 0x0202 is 2.2.
        UpcallTable: what providers that start from now on get for upcalls; None: the DLL's own.

    Raises:
        WSAError: 10092, a version below the lowest there is; 10036, from inside a callback.

    Source: WSPStartup.
    """
    global _count, _version, _upcalls
    if callbacks.active:
        callbacks.refuse_nested()
    version = negotiated(wVersionRequested)
    with _lock:
        _count += 1
        _version = version
        if UpcallTable is not None or _count == 1:
            _upcalls = _OWN if UpcallTable is None else UpcallTable
        handles.set_started(True)
    return WSPDATA(version, HIGHEST_VERSION, "sharedsock: Winsock's service provider interface, on POSIX")


def WSPCleanup() -> None:
    """End one WSPStartup; the last one ends every socket of this process.

    Blocked calls end with 10004 and requests with 995, without an indication (CLEANUP-1, -2). Other processes: theirs
    go on; only this process's references are gone (CLEANUP-4).

    Raises:
        WSAError: 10093, there is none to end; 10036, from inside a callback.

    Source: LPWSPCLEANUP.
    """
    global _count
    if callbacks.active:
        callbacks.refuse_nested()
    with _lock:
        if not _count:
            raise WSAError(WSANOTINITIALISED, "this process has no WSPStartup left to be ended")
        _count -= 1
        if _count:
            return
        ended = list(reversed(_started))  # layers before what they stand on
        _started.clear()
        handles.set_started(False)
    for provider in ended:
        provider.WSPCleanup()
    for number in tuple(handles.routes):  # what a provider has not given back: the table ends with its last user
        handles.routes.pop(number, None)


def require_provider(info: WSAPROTOCOL_INFO) -> Provider:
    """Return the provider of an entry, started.

    Raises:
        WSAError: 10093, this process has not started up; what the provider's WSPStartup raised; 10106, it failed
            without a code of its own.
    """
    provider = catalog.provider_of(info.dwCatalogEntryId)
    with _lock:
        if not _count:
            raise WSAError(WSANOTINITIALISED, "this process has no successful WSPStartup")
        if provider not in _started:
            try:
                provider.WSPStartup(_version, info, _upcalls)
            except WSAError:
                raise
            except Exception as error:
                raise WSAError(WSAEPROVIDERFAILEDINIT, f"{provider!r} failed to start: {error}") from error
            _started.append(provider)
    return provider


def _forget_in_child() -> None:
    global _lock, _count
    _lock = threading.Lock()
    _count = 0
    _started.clear()
    for provider in catalog.providers():
        provider.forget()


os.register_at_fork(after_in_child=_forget_in_child)
