"""A chain in this process: its providers, made once for each family and type, and the ways of its sockets' calls.

The providers are outside the catalogue and the handle table of `spi`: they need no WSPStartup of the program, and its
SPI handles do not meet them. Their upcalls are the DLL's but for handles, which are this file's.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sharedsock.chaining import spelling
from sharedsock.chaining.bottom import Bottom, beside
from sharedsock.chaining.face import ChainedSocket, chained, plain_error
from sharedsock.descriptors import closing, providing
from sharedsock.descriptors.descriptor import draw_id
from sharedsock.model.errors import InvalidProvider
from sharedsock.model.winsock import AF_INET, SOCK_STREAM, WSAENOTSOCK, XP1_IFS_HANDLES
from sharedsock.spi import Provider, UpcallTable, WSAError
from sharedsock.spi.base_opening import FAMILIES
from sharedsock.spi.catalog import draw_entry_id, find_entry, provider_id
from sharedsock.spi.overlapped import complete
from sharedsock.spi.provider import HIGHEST_VERSION

if TYPE_CHECKING:
    from sharedsock.sharedsocket import SharedSocket
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO

__all__ = ["Route", "Stacks", "chain_of"]

_BOTTOM: Final = "sharedsock.chaining.bottom:Bottom"
_WINSOCK_FAMILIES: Final = {int(kernels): winsocks for winsocks, kernels in FAMILIES.items()}


class _Upcalls(UpcallTable):
    """The DLL's upcalls, with a handle table of one stack's own."""

    def __init__(self) -> None:
        self._contexts: dict[int, Any] = {}

    def WPUCreateSocketHandle(self, dwCatalogEntryId: int, lpContext: Any) -> int:
        handle = draw_id()
        self._contexts[handle] = lpContext
        return handle

    def WPUQuerySocketHandleContext(self, s: int) -> Any:
        try:
            return self._contexts[s]
        except (KeyError, TypeError):
            raise WSAError(WSAENOTSOCK, f"{s!r} is no handle of this chain") from None

    def WPUCompleteOverlappedRequest(
        self, s: int, lpOverlapped: Any, dwError: int, cbTransferred: int, dwFlags: int = 0
    ) -> None:
        complete(lpOverlapped, dwError, cbTransferred, dwFlags)

    def WPUCloseSocketHandle(self, s: int) -> None:
        self.WPUQuerySocketHandleContext(s)
        self._contexts.pop(s, None)

    def WPUQueryBlockingCallback(self, dwCatalogEntryId: int) -> None:
        """There are no blocking hooks under the Python face."""


class Route(NamedTuple):
    """The way of one face's calls: the provider at the top, and its handle."""

    top: Provider
    handle: int


class _Stack(NamedTuple):
    """The providers for one family and type."""

    top: Provider
    info: WSAPROTOCOL_INFO


class Stacks:
    """A `providing.Chain`: its layers from the top down, as spelled."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.routes: dict[Any, Route] = {}
        self._layers = tuple((spelling.provider_class(name), keys) for name, keys in spelling.read(text))
        self._stacks: dict[tuple[int, int], _Stack] = {}
        self._lock = threading.Lock()
        self._stack(FAMILIES[AF_INET], SOCK_STREAM)  # so that bad parameters are met before any socket is
        _all.add(self)

    def _stack(self, family: int, type: int) -> _Stack:
        with self._lock:
            found = self._stacks.get((family, type))
            if found is None:
                found = self._stacks[family, type] = self._made(family, type)
        return found

    def _made(self, family: int, type: int) -> _Stack:
        """Make the providers from the bottom up, and start them.

        Raises:
            WSAError: 10047, 10044, no such family or type. InvalidProvider: a class does not take its parameters.
        """
        known = find_entry(_WINSOCK_FAMILIES.get(family, family), type, 0)
        entry = draw_entry_id()
        info = replace(
            known,
            dwServiceFlags1=known.dwServiceFlags1 | XP1_IFS_HANDLES,
            ProviderId=provider_id(_BOTTOM, {}, None),
            dwCatalogEntryId=entry,
            ProtocolChain=(entry,),
            szProtocol="the Python face",
        )
        made: Provider = Bottom()
        for kind, keys in reversed(self._layers):
            name = f"{kind.__module__}:{kind.__qualname__}"
            try:
                made = kind(made, info, **keys)
            except Exception as error:
                text = f"the provider {name} cannot be made with {keys!r}: {error}"
                raise InvalidProvider(text, import_name=name) from error
            entry = draw_entry_id()
            info = replace(
                info,
                dwServiceFlags1=info.dwServiceFlags1 & ~XP1_IFS_HANDLES,
                ProviderId=provider_id(name, keys, info.ProviderId),
                dwCatalogEntryId=entry,
                ProtocolChain=(entry, *info.ProtocolChain),
                szProtocol=f"{kind.__name__} over {info.szProtocol}",
            )
        try:
            made.WSPStartup(HIGHEST_VERSION, info, _Upcalls())
        except Exception as error:
            raise InvalidProvider(f"the chain {self.text} cannot be started: {error}") from error
        return _Stack(made, info)

    def put_under(self, face: SharedSocket) -> None:
        """Have a face that has just got its descriptor go through the chain; where that fails, it is closed."""
        descriptor = face._descriptor
        try:
            stack = self._stack(descriptor.family, descriptor.type)
            info = stack.info
            beside.opening = face
            try:
                handle = stack.top.WSPSocket(info.iAddressFamily, info.iSocketType, info.iProtocol, info)
            finally:
                beside.opening = None
            self.routes[descriptor.id] = Route(stack.top, handle)
            if not isinstance(face, ChainedSocket):
                face.__class__ = chained(type(face))
        except BaseException as error:
            self.routes.pop(descriptor.id, None)
            closing.collect(descriptor)
            if isinstance(error, WSAError):
                raise plain_error(descriptor, "open", error) from None
            raise

    def wire_of(self, face: ChainedSocket) -> providing.Wire:
        """Return what carries TLS on a face that goes through the chain."""
        return providing.Wire(face.receive_within, face.send_within)

    def enter(self, client: SharedSocket, top: Provider, handle: int) -> None:
        """Enter a client that has come up through the chain with its handle."""
        client._descriptor.chain = self
        self.routes[client._descriptor.id] = Route(top, handle)
        client.__class__ = chained(type(client))

    def forget(self) -> None:
        """In a forked child, which has none of the sockets: the providers are made anew."""
        self.routes.clear()
        self._stacks.clear()
        self._lock = threading.Lock()


_all: Final[weakref.WeakSet[Stacks]] = weakref.WeakSet()
_redeemed: Final[dict[str, Stacks]] = {}


def chain_of(text: str) -> Stacks:
    """Return this process's chain of a spelling that has come with a socket: one for all of the same spelling.

    Raises:
        InvalidProvider: it is no spelling, or names what cannot be had here.
    """
    current = providing.current
    if isinstance(current, Stacks) and current.text == text:
        return current
    found = _redeemed.get(text)
    if found is None:
        found = _redeemed.setdefault(text, Stacks(text))
    return found


def _forget_in_child() -> None:
    """A forked child owns nothing; what it opens has nothing under it, as in a child that was spawned."""
    providing.current = None
    _redeemed.clear()
    for chain in tuple(_all):
        chain.forget()


os.register_at_fork(after_in_child=_forget_in_child)
