"""THE RECORD OF ONE SOCKET: its references, and which closer is the last. The values the ledger is made of.

A *reference* is a reason the socket stays open: an open or closing descriptor of some holder, a lent descriptor, or a
ticket that has not become one. All of them are in one dictionary, so the count is that dictionary's size: it can be
neither negative nor apart from the references it counts (I2, F-63).

A closer is told NOT LAST while another reference is open. If all the others are closing too, its answer is *pending*
until they end (LAST), one of them stays after all or a new one comes (NOT LAST), or its time is over (LAST): a holder
that has drained never uses the socket again. So exactly one closer is last (rule 7, F-59).
Descriptors, secrets and time belong to the ledger.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from sharedsock.model.identity import DescriptorFacts, DescriptorId, Holder, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.page import SLOTS, CommonState

__all__ = [
    "Answer",
    "Effect",
    "Holding",
    "Limits",
    "Record",
    "Reference",
    "ReleaseCustody",
    "ShowCommon",
    "State",
    "remember",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """The caps of S-11 that the ledger keeps, and its times in seconds."""

    tickets: int = 4096
    tickets_per_holder: int = 256
    descriptors_per_holder: int = 65_536
    sockets: int = SLOTS
    remembered: int = 4096  # used and expired tickets, kept to name the reason of a refusal
    former_holders: int = 32  # of each socket, kept to name who had it
    claim_once_s: float = 60.0
    close_wait_s: float = 1.5  # T_rpc less the way back: the answer must reach a client that gives up after 2 s


@dataclass(frozen=True, slots=True)
class Answer:
    """A begin-close that had to wait has its answer: `token` is what the asker gave."""

    token: Hashable
    last: bool


@dataclass(frozen=True, slots=True)
class ReleaseCustody:
    """Custody is to close its descriptor of a ticket; `linger_s` says how, when it was the last reference of all."""

    number: int
    last: bool
    linger_s: int | None = None


@dataclass(frozen=True, slots=True)
class ShowCommon:
    """The page is to show a state in a slot."""

    slot: int
    state: CommonState


Effect = Answer | ReleaseCustody | ShowCommon


class State(Enum):
    """What a reference is; its value is the name `holders()` gives it."""

    OPEN = "descriptor"
    CLOSING = "closing"
    LENT = "lent"
    ISSUED = "ticket"
    CLAIMED = "claim"
    GIVEN_UP = "given up"  # a void ticket whose descriptor waits in custody for the closers before it


TICKETS: Final = (State.ISSUED, State.CLAIMED, State.GIVEN_UP)
_CLOSES: Final = (State.CLOSING, State.GIVEN_UP)


@dataclass(eq=False, slots=True)
class Reference:
    """One reason a socket stays open.

    Attributes:
        holder: who holds, lends or issued it; `claimer`: who has claimed a ticket.
        target: the only process that may claim a ticket, or to which a reference is lent.
        ends_with: the process with whose death it ends: the target, or of a ticket minted for a child that is being
            launched the minter, until the child is known.
        answer: what begin-close was told, None while that waits; `waiting`: who is to hear it.
        due: when a ticket expires, or when a pending answer is LAST at the latest.
    """

    number: int
    record: Record
    state: State
    holder: HolderId
    facts: DescriptorFacts
    since_s: float
    target: ProcessId | None = None
    ends_with: ProcessId | None = None
    answer: bool | None = None
    waiting: list[Hashable] = field(default_factory=list)
    due: float = math.inf
    digest: bytes = field(default=b"", repr=False)
    claimer: HolderId | None = None

    def shown(self, names: dict[ProcessId, str], kind: str = "") -> Holder:
        """Return the reference as introspection lists it; `kind`: how it has ended."""
        process, descriptor, kind = self.holder.process, self.facts.descriptor, kind or self.state.value
        if self.state is State.LENT and self.target is not None:
            process = self.target
        elif self.state in TICKETS:
            taken = self.claimer.process if self.state is State.CLAIMED and self.claimer is not None else None
            process = self.target or taken or ProcessId(0)
            descriptor, kind = DescriptorId(0), "ticket"
        return Holder(process.pid, names.get(process, ""), descriptor, kind, self.facts.opened_at, self.since_s)


@dataclass(eq=False, slots=True)
class Record:
    """One shared socket: `open` counts its references that are not closing, `pending` is the closer that waits.

    Attributes:
        chain: the providers under the Python face, as the first announcer spelled them: text, and nothing else, here.
        registrant: whose event registration is in `common`; it ends with his last descriptor (EVENT-11).
        recovered: shared through an earlier registry, so others may hold it that this one does not know yet.
        unsure: announced again by a holder nobody knew to await, so there may be more like it: nobody is ever last.
        former: who had a descriptor and has it no more, in the order they went, None: nobody yet. With the record it
            goes as well.
    """

    facts: SocketFacts
    slot: int
    recovered: bool = False
    unsure: bool = False
    chain: str = ""
    common: CommonState = field(default_factory=CommonState)
    references: dict[int, Reference] = field(default_factory=dict)
    open: int = 0
    pending: Reference | None = None
    registrant: HolderId | None = None
    former: deque[Holder] | None = None

    def enter(self, reference: Reference) -> None:
        """Count a new open reference."""
        self.references[reference.number] = reference
        self.open += 1

    def leave(self, reference: Reference) -> None:
        """Count a reference no more."""
        del self.references[reference.number]
        if reference.state not in _CLOSES:
            self.open -= 1
        if self.pending is reference:
            self.pending = None

    def recall(self, reference: Reference, how: str, names: dict[ProcessId, str], most: int) -> None:
        """Remember who had a descriptor and how that ended, while somebody else has one: the newest `most`."""
        if self.references:
            if self.former is None:
                self.former = deque(maxlen=most)
            self.former.append(reference.shown(names, how))

    def close(self, reference: Reference, state: State, may_be_last: bool | None) -> None:
        """Mark an open reference closing; its `answer` stays None if it is `pending` now.

        Args:
            may_be_last: False: nobody is last here; None: that is not known yet (recovery.py).
        """
        reference.state, reference.answer = state, None
        self.open -= 1
        if self.open or may_be_last is False:
            reference.answer = False
        elif len(self.references) == 1 and may_be_last:
            reference.answer = True
        else:
            # Invariant: pending means that nothing is open, and a second closer would have to be open first, which
            # gives the first its answer. So there is at most one.
            assert self.pending is None, "rule 7: one pending closer"
            self.pending = reference

    def reopen(self, reference: Reference) -> None:
        """A closing reference stays after all; it is open again."""
        if self.pending is reference:
            self.pending = None
        reference.state, reference.answer = State.OPEN, None
        self.open += 1

    def settle(self, may_be_last: bool | None, *, overdue: bool = False) -> Reference | None:
        """Give the pending closer its answer if that can be decided now, or must be; return it, answered."""
        reference = self.pending
        if reference is None:
            return None
        if self.open or may_be_last is False or (overdue and not may_be_last):
            reference.answer = False
        elif may_be_last and (len(self.references) == 1 or overdue):
            reference.answer = True
        else:
            return None
        self.pending = None
        return reference


@dataclass(eq=False, slots=True)
class Holding:
    """What one holder has: descriptors by its own numbers, how many on each socket, lends, tickets, recent ends."""

    descriptors: dict[DescriptorId, Reference] = field(default_factory=dict)
    sockets: dict[SocketId, int] = field(default_factory=dict)
    lent: int = 0
    tickets: int = 0
    ended: OrderedDict[DescriptorId, None] = field(default_factory=OrderedDict)


K = TypeVar("K")
V = TypeVar("V")


def remember(memory: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Note a pair, forgetting the oldest beyond `most`."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)
