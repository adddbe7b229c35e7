"""THE TICKETS that are out, and why the others are no more.

A ticket is known by the hash of its secret, salted with the registry's incarnation: the secret itself is not kept
(S-09), and a ticket of an earlier incarnation is unknown (F-26). Of tickets that are used or expired a bounded number
is remembered, with the process that may hear the reason; to everybody else they are as unknown as one that never was
(S-10). Counting their references is the ledger's business.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from sharedsock.model.errors import TicketAlreadyClaimed, TicketError, TicketExpired, TicketInvalid
from sharedsock.model.identity import DescriptorId, HolderId, ProcessId
from sharedsock.registry.records import Reference, State, remember

__all__ = ["Fate", "TicketBook"]


class Fate(Enum):
    """Why a ticket is no more, for the answer to a late claim."""

    USED = "used"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class _Tombstone:
    """A ticket that is no more, and the process that may know why (None: whoever knows the secret)."""

    fate: Fate
    target: ProcessId | None


class TicketBook:
    """Every ticket that is issued or claimed, by its number and by its secret."""

    def __init__(self, pepper: bytes, remembered: int) -> None:
        self._pepper = pepper
        self._remembered = remembered
        self._by_number: dict[int, Reference] = {}
        self._by_digest: dict[bytes, Reference] = {}
        self._tombstones: OrderedDict[bytes, _Tombstone] = OrderedDict()
        self._acknowledged: OrderedDict[int, tuple[HolderId, DescriptorId]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Reference]:
        return iter(self._by_number.values())

    def add(self, ticket: Reference, secret: bytes) -> None:
        """Note a ticket that is issued; its secret is not kept."""
        ticket.digest = self._digest(secret)
        self._by_number[ticket.number] = self._by_digest[ticket.digest] = ticket

    def has_seen(self, secret: bytes) -> bool:
        """Say whether there is a ticket with this secret, or was, as far as is remembered."""
        digest = self._digest(secret)
        return digest in self._by_digest or digest in self._tombstones

    def find(self, secret: bytes) -> Reference | None:
        """Return the ticket with this secret."""
        digest = self._digest(secret)
        ticket = self._by_digest.get(digest)
        return ticket if ticket is not None and hmac.compare_digest(ticket.digest, digest) else None

    def remove(self, ticket: Reference, fate: Fate | None) -> None:
        """The ticket is no more; with a fate, its hash is remembered for the reason of a later refusal."""
        del self._by_number[ticket.number], self._by_digest[ticket.digest]
        if fate is not None:
            remember(self._tombstones, ticket.digest, _Tombstone(fate, ticket.target), self._remembered)

    def is_used(self, secret: bytes) -> bool:
        """Say whether this ticket has been claimed and acknowledged, as far as is remembered."""
        stone = self._tombstones.get(self._digest(secret))
        return stone is not None and stone.fate is Fate.USED

    def reason(self, secret: bytes, holder: HolderId) -> TicketError:
        """Return why there is no ticket with this secret, as far as this holder may know it."""
        stone = self._tombstones.get(self._digest(secret))
        if stone is None or (stone.target is not None and stone.target != holder.process):
            return TicketInvalid("no such ticket")
        if stone.fate is Fate.USED:
            return TicketAlreadyClaimed("this ticket has been claimed; each yields one descriptor")
        return TicketExpired("this ticket's time is over; ask the sharer for a new one")

    def claim_of(self, holder: HolderId, number: int) -> Reference:
        """Return a ticket this holder has claimed, now or through a channel that broke.

        Raises:
            TicketInvalid: no such claim.
        """
        ticket = self._by_number.get(number)
        if ticket is None or ticket.claimer != holder:
            raise TicketInvalid("no claim of this process")
        return ticket

    def claimed_by(self, *, holder: HolderId | None = None, process: ProcessId | None = None) -> list[Reference]:
        """Return the claims in flight of a holder, or of a process."""
        return [
            ticket
            for ticket in self
            if ticket.state is State.CLAIMED
            and ticket.claimer is not None
            and (ticket.claimer == holder or ticket.claimer.process == process)
        ]

    def note_acknowledged(self, number: int, holder: HolderId, descriptor: DescriptorId) -> None:
        """Remember who has acknowledged which claim, and as what."""
        remember(self._acknowledged, number, (holder, descriptor), self._remembered)

    def is_acknowledged(self, number: int, holder: HolderId, descriptor: DescriptorId) -> bool:
        """Say whether exactly this has been acknowledged before (F-32)."""
        return self._acknowledged.get(number) == (holder, descriptor)

    def forget_target(self, process: ProcessId) -> None:
        """A process is dead: nobody will ask for the reasons it alone might hear."""
        for digest in [digest for digest, stone in self._tombstones.items() if stone.target == process]:
            del self._tombstones[digest]

    def _digest(self, secret: bytes) -> bytes:
        return hashlib.sha256(self._pepper + secret).digest()
