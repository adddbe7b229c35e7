"""THE CATALOGUE: which providers there are, in which order they are asked, and whether they have been started.

An entry is a WSAPROTOCOL_INFO and the provider that serves it. A provider is installed by its class, or by the import
name of its class, with parameters; layered ones name the entry they stand on, up to seven in a chain. The id of a
provider is made of these names and parameters, so that it is the same in every process that installs the same chain.

Source: WSCInstallProvider, WSCDeinstallProvider, WSCEnumProtocols, WSCWriteProviderOrder; "Layered Protocols and
Protocol Chains".
"""

from __future__ import annotations

import importlib
import itertools
import json
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sharedsock.model.winsock import (
    AF_UNSPEC,
    FROM_PROTOCOL_INFO,
    MAX_PROTOCOL_CHAIN,
    WSAEAFNOSUPPORT,
    WSAEFAULT,
    WSAEINVAL,
    WSAEINVALIDPROVIDER,
    WSAEPROTONOSUPPORT,
    WSAESOCKTNOSUPPORT,
    XP1_IFS_HANDLES,
)
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Provider

__all__ = [
    "WSCDeinstallProvider",
    "WSCEnumProtocols",
    "WSCInstallProvider",
    "WSCWriteProviderOrder",
    "draw_entry_id",
    "enter",
    "entry_for_info",
    "entry_of",
    "find_entry",
    "path_of",
    "provider_id",
    "provider_of",
    "providers",
]

_NAMESPACE: Final = uuid.UUID("7b0f4bb2-8f5c-4d2b-9c3e-51a1c60e4a51")


class _Row(NamedTuple):
    info: WSAPROTOCOL_INFO
    provider: Provider
    path: str


_rows: dict[int, _Row] = {}
_ids: Final = itertools.count(1001)


def draw_entry_id() -> int:
    """Draw a catalogue id for an entry about to be made."""
    return next(_ids)


def provider_id(path: str, parameters: dict[str, Any], lower: uuid.UUID | None) -> uuid.UUID:
    """Return the id of a provider, which its class, its parameters and what it stands on decide."""
    return uuid.uuid5(_NAMESPACE, json.dumps([path, parameters, str(lower)], sort_keys=True))


def enter(info: WSAPROTOCOL_INFO, provider: Provider, path: str) -> WSAPROTOCOL_INFO:
    """Enter a row behind the others."""
    _rows[info.dwCatalogEntryId] = _Row(info, provider, path)
    return info


def _row(entry: object) -> _Row:
    row = _rows.get(entry) if isinstance(entry, int) else None
    if row is None:
        raise WSAError(WSAEINVAL, f"{entry!r} is no catalogue entry")
    return row


def entry_of(dwCatalogEntryId: int) -> WSAPROTOCOL_INFO:
    """Return an entry by its id; 10022 where there is none."""
    return _row(dwCatalogEntryId).info


def provider_of(dwCatalogEntryId: int) -> Provider:
    """Return the provider of an entry; 10022 where there is none."""
    return _row(dwCatalogEntryId).provider


def providers() -> tuple[Provider, ...]:
    """Return every provider of the catalogue, each once."""
    return tuple({id(row.provider): row.provider for row in _rows.values()}.values())


def path_of(lpProviderId: object) -> str:
    """Return the import name of a provider's class by its id.

    Raises:
        WSAError: 10105, no provider has it.
    """
    for row in _rows.values():
        if row.info.ProviderId == lpProviderId:
            return row.path
    raise WSAError(WSAEINVALIDPROVIDER, f"no provider of the catalogue has the id {lpProviderId}")


def entry_for_info(info: WSAPROTOCOL_INFO) -> WSAPROTOCOL_INFO:
    """Return this process's entry for an info that may come from another: ids of entries are each process's own.

    Raises:
        WSAError: 10022, there is no such provider for this family and type in this process.
    """
    wanted = info.ProviderId, info.iAddressFamily, info.iSocketType, info.iProtocol
    for row in _rows.values():
        known = row.info
        if wanted == (known.ProviderId, known.iAddressFamily, known.iSocketType, known.iProtocol):
            return known
    raise WSAError(WSAEINVAL, f"no provider {info.ProviderId} ({info.szProtocol}) is installed in this process")


def find_entry(af: int, type: int, protocol: int) -> WSAPROTOCOL_INFO:
    """Return the first entry, in the catalogue's order, for a family, type and protocol; 0 is any.

    Raises:
        WSAError: 10047, no entry of the family; 10044, of the type; 10043, of the protocol.
    """
    entries = [row.info for row in _rows.values()]
    for code, wanted, name in (
        (WSAEAFNOSUPPORT, af, "iAddressFamily"),
        (WSAESOCKTNOSUPPORT, type, "iSocketType"),
        (WSAEPROTONOSUPPORT, protocol, "iProtocol"),
    ):
        if wanted not in (AF_UNSPEC, FROM_PROTOCOL_INFO):
            entries = [entry for entry in entries if getattr(entry, name) == wanted]
        if not entries:
            raise WSAError(code, f"no provider of the catalogue has {name} {wanted}")
    return entries[0]


def WSCEnumProtocols() -> tuple[WSAPROTOCOL_INFO, ...]:
    """Return the catalogue's entries in their order."""
    return tuple(row.info for row in _rows.values())


def WSCWriteProviderOrder(lpwdCatalogEntryId: Iterable[int]) -> None:
    """Put these entries first, in this order; the others follow as they were.

    Raises:
        WSAError: 10022, one is no entry; 10014, no ids at all. Nothing has changed.
    """
    try:
        wanted = tuple(lpwdCatalogEntryId)
    except TypeError as error:
        raise WSAError(WSAEFAULT, f"{lpwdCatalogEntryId!r} are no ids of entries") from error
    first = {entry: _row(entry) for entry in wanted}
    others = {entry: row for entry, row in _rows.items() if entry not in first}
    _rows.clear()
    _rows.update(first | others)


def WSCInstallProvider(
    lpProvider: type[Provider] | str,
    lpProtocolInfo: WSAPROTOCOL_INFO,
    dwServiceFlags1: int | None = None,
    **parameters: Any,
) -> WSAPROTOCOL_INFO:
    """Install a provider behind the others; return its entry.

    Args:
        lpProvider: its class, or the import name "package.module:Class".
        lpProtocolInfo: the entry a layered provider stands on; for another one, the entry whose protocol it serves.
        dwServiceFlags1: XP1_*; None: those of `lpProtocolInfo`. XP1_IFS_HANDLES is set as the class says.
        parameters: what the class is made with; plain values, so that another process can do the same.

    Raises:
        WSAError: 10105, no such class, or no provider; 10022, the chain would be too long.
    """
    kind, path = _class_of(lpProvider)
    below = entry_of(lpProtocolInfo.dwCatalogEntryId)
    entry = draw_entry_id()
    chain: tuple[int, ...] = (entry,)
    lower: Provider | None = None
    if kind.is_layered:
        chain, lower = (entry, *below.ProtocolChain), provider_of(below.dwCatalogEntryId)
        if len(chain) > MAX_PROTOCOL_CHAIN:
            raise WSAError(WSAEINVAL, f"a chain has at most {MAX_PROTOCOL_CHAIN} providers")
    flags = below.dwServiceFlags1 if dwServiceFlags1 is None else dwServiceFlags1
    info = replace(
        below,
        dwServiceFlags1=flags & ~XP1_IFS_HANDLES | (XP1_IFS_HANDLES if kind.is_ifs else 0),
        ProviderId=provider_id(path, {**parameters, "flags": flags}, None if lower is None else below.ProviderId),
        dwCatalogEntryId=entry,
        ProtocolChain=chain,
        szProtocol=f"{kind.__name__} over {below.szProtocol}" if kind.is_layered else kind.__name__,
    )
    made: Provider = kind(**parameters) if lower is None else kind(lower, below, **parameters)  # type: ignore[call-arg]
    return enter(info, made, path)


def _class_of(given: type[Provider] | str) -> tuple[type[Provider], str]:
    from sharedsock.spi.provider import Provider

    if isinstance(given, str):
        path = given
        module, _, name = given.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise WSAError(WSAEINVALIDPROVIDER, f"{given!r} cannot be imported: {error}") from error
    else:
        found = given
        path = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', given)}"
    if not isinstance(found, type) or not issubclass(found, Provider):
        raise WSAError(WSAEINVALIDPROVIDER, f"{path} is no provider")
    return found, path


def WSCDeinstallProvider(dwCatalogEntryId: int) -> None:
    """Take an entry out; sockets opened through it go on.

    Raises:
        WSAError: 10022, no such entry, or a chain that stays stands on it.
    """
    _row(dwCatalogEntryId)
    above = [row.info for entry, row in _rows.items() if entry != dwCatalogEntryId]
    if any(dwCatalogEntryId in info.ProtocolChain for info in above):
        raise WSAError(WSAEINVAL, "other entries of the catalogue stand on this one")
    del _rows[dwCatalogEntryId]
