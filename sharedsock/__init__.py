"""Sockets that real processes share and close as Winsock does, on POSIX.

A close ends this process's pending operations and makes later use fail; the underlying socket lives until the last
process has closed it; only then does linger decide how it ends.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("sharedsock brings Winsock's close contract to POSIX; on Windows, socket.share() is native")

from sharedsock.descriptors.selecting import Selector, select
from sharedsock.model.errors import (
    ForkedDescriptor,
    InternalError,
    NotASocket,
    OperationAborted,
    RegistryGone,
    SharedSocketError,
    TicketAlreadyClaimed,
    TicketError,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
)
from sharedsock.model.identity import DescriptorId, Holder, PendingOperation, Statistics
from sharedsock.registry.connect import Registry, connect_registry
from sharedsock.sharedsocket import (
    SharedSocket,
    Ticket,
    adopt,
    create_connection,
    create_server,
    fromshare,
    revoke,
    socketpair,
    statistics,
)

if TYPE_CHECKING:
    from sharedsock.descriptors.overlapped import Operation
    from sharedsock.tls import wrap_tls

__all__ = [
    "DescriptorId",
    "ForkedDescriptor",
    "Holder",
    "InternalError",
    "NotASocket",
    "Operation",
    "OperationAborted",
    "PendingOperation",
    "Registry",
    "RegistryGone",
    "Selector",
    "SharedSocket",
    "SharedSocketError",
    "Statistics",
    "Ticket",
    "TicketAlreadyClaimed",
    "TicketError",
    "TicketExpired",
    "TicketInvalid",
    "TicketLimit",
    "adopt",
    "connect_registry",
    "create_connection",
    "create_server",
    "fromshare",
    "revoke",
    "select",
    "socketpair",
    "statistics",
    "wrap_tls",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Operation":  # concurrent.futures takes 10 ms to import: only who uses it pays it
        from sharedsock.descriptors.overlapped import Operation

        return Operation
    if name == "wrap_tls":  # ssl takes 8 ms
        from sharedsock.tls import wrap_tls

        return wrap_tls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
