"""THE HANDLE TABLE of "the DLL": which provider a socket handle is routed to, and the word a provider keeps there.

A handle is an integer from 1 on that this process never gives out twice (CLOSE-4); it is drawn from the same numbers
as `descriptors` draws its own, so an IFS handle and a non-IFS one never collide. The table owns the number and the
stored context; the object the context is, the socket and its reference are the provider's (NONIFS-13).

Of a non-IFS handle that the client has closed and the provider never gave back the entry stays, and goes on routing
(NONIFS-8). `unreturned()` lists these with the place each was created; with SHAREDSOCK_AUDIT=1 each is warned of too.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sharedsock.descriptors.descriptor import calling_place, draw_id, in_words
from sharedsock.model.winsock import WSAENOBUFS, WSAENOTSOCK, WSANOTINITIALISED
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from sharedsock.spi.provider import Provider

__all__ = [
    "NO_HANDLE",
    "Handle",
    "Unreturned",
    "add",
    "create",
    "discard",
    "find",
    "note_closed",
    "refusal",
    "require",
    "require_own",
    "routes",
    "set_started",
    "unreturned",
]

MOST_HANDLES: Final = 65_536

# What a look-up by a stranger's value may raise; ValueError: hash() of a memoryview.
NO_HANDLE: Final = (KeyError, TypeError, ValueError)

_UNKNOWN: Final = "no handle of this process: closed, another process's, or never one"


class Handle:
    """One entry of the table.

    Attributes:
        context: what the provider gave WPUCreateSocketHandle; None for an IFS handle (IFS-4).
        port: (completion port, key) it was associated with, or None.
        is_closed_by_client: a WSPCloseSocket has succeeded; only the provider's giving back is missing.
    """

    __slots__ = ("context", "created_at", "entry", "is_closed_by_client", "is_ifs", "number", "port", "provider")

    def __init__(self, number: int, provider: Provider, entry: int, context: Any, is_ifs: bool) -> None:
        self.number = number
        self.provider = provider
        self.entry = entry
        self.context = context
        self.is_ifs = is_ifs
        self.port: tuple[Any, int] | None = None
        self.is_closed_by_client = False
        self.created_at = in_words(calling_place())


class Unreturned(NamedTuple):
    """A handle its provider has not given back: its number, the provider's class, and "file:line in function"."""

    handle: int
    provider: str
    created_at: str


routes: Final[dict[int, Handle]] = {}
"""The table itself, for the entry points; everybody else asks the functions below."""

_is_started = False


def set_started(is_started: bool) -> None:
    """Say whether this process is between its first WSPStartup and its last WSPCleanup."""
    global _is_started
    _is_started = is_started


def create(provider: Provider, entry: int, context: Any) -> int:
    """Enter a handle of the DLL's own, for a non-IFS provider.

    Raises:
        WSAError: 10055, no room for one more (NONIFS-2).
    """
    return add(draw_id(), provider, entry, context, is_ifs=False)


def add(number: int, provider: Provider, entry: int, context: Any, *, is_ifs: bool) -> int:
    """Enter a handle; return its number."""
    if len(routes) >= MOST_HANDLES:
        raise WSAError(WSAENOBUFS, f"{len(routes)} handles are open, or were never given back by their providers")
    try:
        routes[number] = Handle(number, provider, entry, context, is_ifs)
    except MemoryError as error:
        raise WSAError(WSAENOBUFS) from error
    return number


def find(s: object) -> Handle | None:
    """Return the entry of a handle; None for anything that is no handle of this process."""
    try:
        return routes.get(s)  # type: ignore[call-overload,no-any-return]  # a stranger's value may be of any type
    except NO_HANDLE:  # not even hashable
        return None


def require(s: object) -> Handle:
    """Return the entry of a handle.

    Raises:
        WSAError: 10038, no handle of this process; 10093, no successful WSPStartup.
    """
    handle = find(s)
    if handle is None:
        raise refusal(s)
    return handle


def refusal(s: object) -> WSAError:
    """Build the error of a call on what is no handle."""
    if not _is_started:
        return WSAError(WSANOTINITIALISED, "this process has no successful WSPStartup")
    return WSAError(WSAENOTSOCK, f"{s!r} is {_UNKNOWN}")


def discard(number: int) -> Handle:
    """Take a handle out of the table; its socket is no business of the table's (NONIFS-6).

    Raises:
        WSAError: 10038, it is not there.
    """
    handle = routes.pop(number, None)
    if handle is None:
        raise WSAError(WSAENOTSOCK, f"{number!r} is {_UNKNOWN}")
    return handle


def note_closed(handle: Handle) -> None:
    """The client's close has succeeded: an IFS handle goes with it, a non-IFS one must be gone already."""
    if handle.is_ifs:
        routes.pop(handle.number, None)
        return
    if routes.get(handle.number) is not handle:
        return
    handle.is_closed_by_client = True
    if os.environ.get("SHAREDSOCK_AUDIT") == "1":
        _, provider, place = _named(handle)
        text = f"handle {handle.number}, created at {place}, is closed, and {provider} has not given it back"
        warnings.warn(f"{text}: WPUCloseSocketHandle is due once for each", ResourceWarning, stacklevel=3)


def unreturned() -> tuple[Unreturned, ...]:
    """List the handles that are closed for the client and that their provider has not given back (NONIFS-8)."""
    return tuple(_named(handle) for handle in tuple(routes.values()) if handle.is_closed_by_client)


def _named(handle: Handle) -> Unreturned:
    kind = type(handle.provider)
    return Unreturned(handle.number, f"{kind.__module__}.{kind.__qualname__}", handle.created_at)


def require_own(s: object, provider: Provider) -> Handle:
    """Return the entry of a handle that must be this provider's.

    Raises:
        WSAError: 10038, another provider's or none.
    """
    handle = find(s)
    if handle is None or handle.provider is not provider:
        raise WSAError(WSAENOTSOCK, f"{s!r} is no handle of {type(provider).__qualname__}")
    return handle


def _forget_in_child() -> None:
    """A forked child owns nothing, and has not started up."""
    routes.clear()
    set_started(False)


os.register_at_fork(after_in_child=_forget_in_child)
