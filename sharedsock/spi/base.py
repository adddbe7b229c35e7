"""THE BASE PROVIDER: an IFS provider over `descriptors`, with TCP, UDP and Unix sockets; and its catalogue entries."""

from __future__ import annotations

from typing import Final

from sharedsock.model.winsock import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_STREAM,
    XP1_CONNECTIONLESS,
    XP1_GRACEFUL_CLOSE,
    XP1_GUARANTEED_DELIVERY,
    XP1_GUARANTEED_ORDER,
    XP1_IFS_HANDLES,
    XP1_MESSAGE_ORIENTED,
)
from sharedsock.spi import catalog
from sharedsock.spi.base_connections import Connections
from sharedsock.spi.base_events import Events
from sharedsock.spi.base_opening import Opening
from sharedsock.spi.base_options import Options
from sharedsock.spi.base_selecting import Selecting
from sharedsock.spi.base_transfers import Transfers
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO

__all__ = ["BaseProvider", "install"]

_STREAM: Final = XP1_GUARANTEED_DELIVERY | XP1_GUARANTEED_ORDER | XP1_GRACEFUL_CLOSE | XP1_IFS_HANDLES
_DATAGRAM: Final = XP1_CONNECTIONLESS | XP1_MESSAGE_ORIENTED | XP1_IFS_HANDLES
_PROTOCOLS: Final = (
    ("TCP/IPv4", AF_INET, SOCK_STREAM, IPPROTO_TCP, _STREAM),
    ("UDP/IPv4", AF_INET, SOCK_DGRAM, IPPROTO_UDP, _DATAGRAM),
    ("TCP/IPv6", AF_INET6, SOCK_STREAM, IPPROTO_TCP, _STREAM),
    ("UDP/IPv6", AF_INET6, SOCK_DGRAM, IPPROTO_UDP, _DATAGRAM),
    ("Unix stream", AF_UNIX, SOCK_STREAM, 0, _STREAM),
    (
        "Unix datagram",
        AF_UNIX,
        SOCK_DGRAM,
        0,
        XP1_CONNECTIONLESS | XP1_MESSAGE_ORIENTED | XP1_GUARANTEED_DELIVERY | XP1_GUARANTEED_ORDER | XP1_IFS_HANDLES,
    ),
)


class BaseProvider(Opening, Connections, Transfers, Options, Selecting, Events):
    """The base provider: every call of a handle ends in one descriptor of this process."""


def install() -> tuple[WSAPROTOCOL_INFO, ...]:
    """Enter the base provider's protocols into the catalogue; return their entries."""
    provider = BaseProvider()
    path = f"{BaseProvider.__module__}:{BaseProvider.__qualname__}"
    entries = []
    for name, family, kind, protocol, flags in _PROTOCOLS:
        entry = catalog.draw_entry_id()
        identity = catalog.provider_id(path, {}, None)
        info = WSAPROTOCOL_INFO(flags, identity, entry, (entry,), family, kind, protocol, name)
        entries.append(catalog.enter(info, provider, path))
    return tuple(entries)
