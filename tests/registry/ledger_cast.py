"""Who and what the tests of the ledger speak of: three holders, two sockets, two secrets."""

from __future__ import annotations

from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.ledger import Ledger

__all__ = ["OTHER", "SECRET", "A", "B", "C", "P", "Q", "R", "S", "T", "close", "facts", "issue", "one", "with_one"]

P, Q, R = ProcessId(100, 1), ProcessId(200, 2), ProcessId(300, 3)
A, B, C = HolderId(P, b"a" * 16), HolderId(Q, b"b" * 16), HolderId(R, b"c" * 16)
S = SocketFacts(SocketId(7), 2, 1, 6)
T = SocketFacts(SocketId(8), 2, 2, 17)
SECRET, OTHER = b"s" * 32, b"o" * 32


def facts(number: int, place: str = "x.py:1 in f") -> DescriptorFacts:
    """Return what is announced of a descriptor with this number."""
    return DescriptorFacts(DescriptorId(number), place, 1.0)


def one() -> DescriptorId:
    """Return the number of everybody's first descriptor."""
    return DescriptorId(1)


def with_one() -> Ledger:
    """Return a ledger in which A has descriptor 1 on S."""
    made = Ledger(b"pepper")
    made.announce(A, S, facts(1))
    made.take_effects()
    return made


def issue(ledger: Ledger, secret: bytes = SECRET, target: ProcessId | None = Q, **more: float) -> int:
    """Have A issue a ticket for S; return its number."""
    return ledger.issue(A, S.socket, one(), secret, target, more.get("expires_s"), more.get("now", 0.0), 5.0)


def close(ledger: Ledger, holder: HolderId, descriptor: DescriptorId) -> None:
    """Have a holder close a descriptor, both words."""
    ledger.begin_close(holder, descriptor, None, 0.0)
    ledger.end_close(holder, descriptor)
