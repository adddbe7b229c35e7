"""Which transports a story can be played over, and which parts of its promises each of them can keep: one table.

A clause is a part of a promise, which a transport has or lacks; `CLAUSES` is the table, clause by transport.
The stage asks it before it looks, the report prints n/a with the reason from here, and `sharedsock run --help` and
the README show it. A reason is the transport's own nature, not a shortcoming of a run.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

__all__ = ["CLAUSES", "TRANSPORTS", "Clause", "Transport"]


@dataclass(frozen=True, slots=True)
class Transport:
    """A kind of socket; `host` is the loopback address, "" where sockets have paths."""

    name: str
    title: str
    family: int
    kind: int
    host: str = ""

    @property
    def has_connections(self) -> bool:
        """Whether there are connections, so listeners, ends of a stream, and something to linger for."""
        return self.kind == socket.SOCK_STREAM

    @property
    def is_tcp(self) -> bool:
        """Whether the kernel tells what is unacknowledged, and can reset."""
        return self.has_connections and self.family != socket.AF_UNIX

    def is_available(self) -> bool:
        """Whether this machine has it: a socket of the kind can be bound on loopback."""
        try:
            with socket.socket(self.family, self.kind) as probe:
                if self.host:
                    probe.bind((self.host, 0))
        except OSError:
            return False
        return True

    def name_of(self, address: Any) -> Any:
        """Return what tells one client of a listener from another: its port, or its name."""
        return address[1] if self.host else address


_ALL: Final = (
    Transport("tcp", "TCP over IPv4", socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    Transport("tcp6", "TCP over IPv6", socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    Transport("unix", "Unix stream", socket.AF_UNIX, socket.SOCK_STREAM),
    Transport("udp", "UDP over IPv4", socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
)
TRANSPORTS: Final[Mapping[str, Transport]] = MappingProxyType({one.name: one for one in _ALL})


@dataclass(frozen=True, slots=True)
class Clause:
    """One row of the table.

    Attributes:
        name: what the story asks for it by.
        number: the promise it is a part of.
        lacking: why a transport has no such thing, by the transport's name; the others keep it.
        linger: the linger it speaks of, "off", "0" or "t"; "": any.
    """

    name: str
    number: int
    text: str
    rule: str
    lacking: Mapping[str, str] = field(default_factory=dict)
    linger: str = ""


_NO_LISTENER: Final = MappingProxyType({"udp": "datagrams have no listener"})
_NO_LINGER: Final = MappingProxyType({"unix": "AF_UNIX ignores SO_LINGER", "udp": "SO_LINGER is refused (10042)"})

CLAUSES: Final = (
    Clause("socket", 1, "a connected socket is shared by tickets", "DUP-2"),
    Clause("listener", 1, "a listener is shared by tickets", "DUP-2", _NO_LISTENER),
    Clause("recv", 2, "a close aborts the process's own blocked recv", "CLOSE-20"),
    Clause("accept", 2, "a close aborts the process's own blocked accept", "CLOSE-20", _NO_LISTENER),
    Clause("others", 2, "other processes and the far peer notice nothing", "CLOSE-28"),
    Clause("records", 3, "each record reaches one holder, once", "DUP-15"),
    Clause("clients", 3, "each client reaches one holder, once", "CLOSE-31", _NO_LISTENER),
    Clause("reap", 4, "a killed holder's references go; the sockets live on", "EXIT-1"),
    Clause("fin", 5, "linger off: the close returns at once; all data, then FIN", "LINGER-2",
           MappingProxyType({"udp": "a datagram socket has no FIN"}), "off"),
    Clause("reset", 5, "linger 0: the connection is reset", "LINGER-3", _NO_LINGER, "0"),
    Clause("waits", 5, "linger t, a peer that reads: waits for the acknowledgement, then FIN", "LINGER-6",
           _NO_LINGER, "t"),
    Clause("hard", 5, "linger t, a peer that does not: a hard close at t", "LINGER-7", _NO_LINGER, "t"),
    Clause("nobody", 5, "after it nobody answers at the address", "REF-3"),
    Clause("residue", 6, "no process holds what it did not hold before", "I6"),
)  # fmt: skip
