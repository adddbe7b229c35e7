"""Sockets that real processes share and close as Winsock does, on POSIX.

A close ends this process's pending operations and makes later use fail; the underlying socket lives until the last
process has closed it; only then does linger decide how it ends.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    raise ImportError("sharedsock brings Winsock's close contract to POSIX; on Windows, socket.share() is native")

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "sharedsock needs the global interpreter lock: its fast paths rely on threads that change at calls only; "
        "run this build of Python with PYTHON_GIL=1"
    )


def _is_subinterpreter() -> bool:
    import importlib

    for name in ("_interpreters", "_xxsubinterpreters"):  # from 3.13 on, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() != interpreters.get_main())
    return False


if _is_subinterpreter():
    raise ImportError(
        "sharedsock works in the main interpreter only: a fork of the process runs the hooks of the interpreter that "
        "forks, so a child would keep the sockets of the others open"
    )

TYPE_CHECKING = False  # a type checker takes it for true; typing itself takes longer to import than socket
if TYPE_CHECKING:
    from typing import Any, Final

    from sharedsock.chaining import use_provider
    from sharedsock.descriptors.overlapped import Operation
    from sharedsock.descriptors.selecting import Selector, select
    from sharedsock.model.errors import (
        ForkedDescriptor,
        InternalError,
        InvalidProvider,
        LostDescriptor,
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
    from sharedsock.tls import wrap_tls

__all__ = [
    "DescriptorId",
    "ForkedDescriptor",
    "Holder",
    "InternalError",
    "InvalidProvider",
    "LostDescriptor",
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
    "use_provider",
    "wrap_tls",
]

__version__ = "0.1.0"


# Where each public name lives. Importing the package imports none of it: a program that has sharedsock installed as a
# plug-in, and does not use it, must not pay for it. The first name asked for brings what it stands on.
_HOMES: Final = {
    "sharedsock.chaining": ("use_provider",),
    "sharedsock.descriptors.overlapped": ("Operation",),
    "sharedsock.descriptors.selecting": ("Selector", "select"),
    "sharedsock.model.errors": (
        *("ForkedDescriptor", "InternalError", "InvalidProvider", "LostDescriptor", "NotASocket", "OperationAborted"),
        *("RegistryGone", "SharedSocketError"),
        *("TicketAlreadyClaimed", "TicketError", "TicketExpired", "TicketInvalid", "TicketLimit"),
    ),
    "sharedsock.model.identity": ("DescriptorId", "Holder", "PendingOperation", "Statistics"),
    "sharedsock.registry.connect": ("Registry", "connect_registry"),
    "sharedsock.sharedsocket": (
        *("SharedSocket", "Ticket", "adopt", "create_connection", "create_server", "fromshare", "revoke"),
        *("socketpair", "statistics"),
    ),
    "sharedsock.tls": ("wrap_tls",),
}
_home_of: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _home_of.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if home == "sharedsock.registry.connect":
        # A registry alone knows nothing of forks: the descriptor table tells it (descriptors/table.py).
        importlib.import_module("sharedsock.descriptors.table")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
