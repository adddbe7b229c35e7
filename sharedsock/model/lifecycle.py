"""The four lifecycles as tables: DESCRIPTOR, SOCKET, TICKET, OPERATION; what ties them together; `advance()`.

A pair of state and event that a table does not have is a miss: `advance()` raises, and since a state is a value the
caller still has the one it had. Nothing else may choose a next state. Keeps:
- I1: an operation leaves WAITING once more than it enters, and ends once, COMPLETED, FAILED or ABORTED.
- I3: a socket ends when its last reference goes, and only then.
- I8: a ticket ends once; only one of its ends is a descriptor.

`COUPLINGS` says which event of one lifecycle makes which event of another happen, and to whom. `DESCRIPTOR_POINTS` and
`OPERATION_POINTS` name the probe points at which a running process shows these events: a recorded trace can be replayed
through the tables, which is how a test holds the code to them.

Source: "Closing Sockets", LPWSPCLOSESOCKET, LPWSPDUPLICATESOCKET (Winsock SPI).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar, cast

from sharedsock.model.errors import InternalError

__all__ = [
    "COUPLINGS",
    "DESCRIPTOR",
    "DESCRIPTOR_POINTS",
    "LIFECYCLES",
    "OPERATION",
    "OPERATION_POINTS",
    "SOCKET",
    "TICKET",
    "Coupling",
    "DescriptorEvent",
    "DescriptorState",
    "Lifecycle",
    "OperationEvent",
    "OperationState",
    "SocketEvent",
    "SocketState",
    "TicketEvent",
    "TicketState",
    "advance",
]

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


@dataclass(frozen=True, slots=True)
class Lifecycle(Generic[S, E]):
    """One table.

    Attributes:
        first: the state a new one is in.
        rows: (state, event) -> next state.
        references: the states in which it is a reason for its socket to stay open.
    """

    name: str
    states: type[S]
    events: type[E]
    first: S
    rows: Mapping[tuple[S, E], S]
    references: frozenset[S] = frozenset()

    def ends(self) -> frozenset[S]:
        """Return the states that no event leaves."""
        return frozenset(s for s in self.states if all(s is after for (s0, _), after in self.rows.items() if s0 is s))


# -- DESCRIPTOR: one process's handle -----------------------------------------------------------------------------


class DescriptorState(Enum):
    """Where a descriptor is on its way; from ABORTED on its process can no longer use the socket through it."""

    OPEN = "open"
    CLOSING = "closing"  # somebody closes it; no operation knows yet, and the close may still be refused
    ABORTED = "aborted"  # marked and woken: later use fails, what waits ends
    DRAINED = "drained"  # every waiter has left
    BURIED = "buried"  # the dead file is over the number; the reference is the kept file
    LINGERING = "lingering"  # the last of all: the linger option decides how the connection ends
    CLOSED = "closed"
    INHERITED = "inherited"  # the copy a fork left in the child, which owns nothing


class DescriptorEvent(Enum):
    """What happens to a descriptor, in the order of descriptors/closing.py."""

    BEGIN = "begin"
    REFUSE = "refuse"
    MARK = "mark"
    DRAIN = "drain"
    BURY = "bury"
    LAST = "told last"
    END = "end"
    COLLECT = "collect"
    FORK = "fork"


_D, _DE = DescriptorState, DescriptorEvent
DESCRIPTOR: Final = Lifecycle(
    "DESCRIPTOR",
    DescriptorState,
    DescriptorEvent,
    _D.OPEN,
    {
        (_D.OPEN, _DE.BEGIN): _D.CLOSING,
        (_D.CLOSING, _DE.REFUSE): _D.OPEN,  # LINGER-4: 10035, and nothing has changed
        (_D.CLOSING, _DE.MARK): _D.ABORTED,
        (_D.ABORTED, _DE.DRAIN): _D.DRAINED,
        (_D.DRAINED, _DE.BURY): _D.BURIED,
        (_D.BURIED, _DE.LAST): _D.LINGERING,
        (_D.LINGERING, _DE.END): _D.CLOSED,
        (_D.BURIED, _DE.END): _D.CLOSED,
        (_D.OPEN, _DE.COLLECT): _D.CLOSED,  # by the garbage collector: no wait, no registry call
        # In the child: whatever the parent's thread was doing with it, the child only drops the number.
        (_D.OPEN, _DE.FORK): _D.INHERITED,
        (_D.CLOSING, _DE.FORK): _D.INHERITED,
        (_D.ABORTED, _DE.FORK): _D.CLOSED,
        (_D.DRAINED, _DE.FORK): _D.CLOSED,
        (_D.BURIED, _DE.FORK): _D.CLOSED,
        (_D.LINGERING, _DE.FORK): _D.CLOSED,
        (_D.CLOSED, _DE.FORK): _D.CLOSED,
        (_D.INHERITED, _DE.FORK): _D.INHERITED,
    },
    frozenset({_D.OPEN, _D.CLOSING, _D.ABORTED, _D.DRAINED, _D.BURIED, _D.LINGERING}),
)
DESCRIPTOR_POINTS: Final[Mapping[str, DescriptorEvent]] = {
    "close.begin": _DE.BEGIN,
    "close.marked": _DE.MARK,
    "close.drained": _DE.DRAIN,
    "close.fd_closed": _DE.BURY,
    "close.last": _DE.LAST,
    "close.ended": _DE.END,
}

# -- SOCKET: what all sharers have in common ----------------------------------------------------------------------


class SocketState(Enum):
    """Who may hold the underlying socket."""

    LOCAL = "local"  # never shared: no registry knows it
    SHARED = "shared"  # a registry counts its references
    LAST_CLOSING = "last closing"  # one closer has been told that it is the last
    ENDED = "ended"


class SocketEvent(Enum):
    """What happens to the count."""

    SHARE = "share"
    ENTER = "enter"
    LEAVE = "leave"
    LAST = "last begins"
    CANCEL = "cancel"
    END = "last ends"
    DIE = "last dies"


_S, _SE = SocketState, SocketEvent
SOCKET: Final = Lifecycle(
    "SOCKET",
    SocketState,
    SocketEvent,
    _S.LOCAL,
    {
        (_S.LOCAL, _SE.SHARE): _S.SHARED,
        (_S.LOCAL, _SE.LAST): _S.LAST_CLOSING,
        (_S.LOCAL, _SE.DIE): _S.ENDED,
        (_S.SHARED, _SE.ENTER): _S.SHARED,
        (_S.SHARED, _SE.LEAVE): _S.SHARED,
        (_S.SHARED, _SE.LAST): _S.LAST_CLOSING,
        (_S.SHARED, _SE.DIE): _S.ENDED,  # the kernel's rule, not the linger option's
        (_S.LAST_CLOSING, _SE.CANCEL): _S.SHARED,  # a refused close; a LOCAL one is refused before it begins
        (_S.LAST_CLOSING, _SE.LEAVE): _S.LAST_CLOSING,  # a closer that hung for longer than T_rpc, gone at last
        (_S.LAST_CLOSING, _SE.END): _S.ENDED,
        (_S.LAST_CLOSING, _SE.DIE): _S.ENDED,
        (_S.ENDED, _SE.LEAVE): _S.ENDED,  # the same, later still
    },
)

# -- TICKET: a single-use right to a reference --------------------------------------------------------------------


class TicketState(Enum):
    """Whether a ticket can still become a descriptor."""

    ISSUED = "issued"
    CLAIMING = "claiming"  # its descriptor is on the way; the reference is still the ticket's (rule 8)
    CLAIMED = "claimed"
    REVOKED = "revoked"
    EXPIRED = "expired"
    VOID = "void"  # its target died


class TicketEvent(Enum):
    """What happens to a ticket."""

    BIND = "bind"
    CLAIM = "claim"
    ACKNOWLEDGE = "acknowledge"
    HAND_BACK = "hand back"
    REVOKE = "revoke"
    EXPIRE = "expire"
    TARGET_DIES = "target dies"


_T, _TE = TicketState, TicketEvent
TICKET: Final = Lifecycle(
    "TICKET",
    TicketState,
    TicketEvent,
    _T.ISSUED,
    {
        (_T.ISSUED, _TE.BIND): _T.ISSUED,
        (_T.ISSUED, _TE.CLAIM): _T.CLAIMING,
        (_T.ISSUED, _TE.REVOKE): _T.REVOKED,
        (_T.ISSUED, _TE.EXPIRE): _T.EXPIRED,
        (_T.ISSUED, _TE.TARGET_DIES): _T.VOID,
        (_T.ISSUED, _TE.ACKNOWLEDGE): _T.CLAIMED,  # handed back by a broken channel, yet the descriptor had come (F-32)
        (_T.CLAIMING, _TE.ACKNOWLEDGE): _T.CLAIMED,
        (_T.CLAIMING, _TE.HAND_BACK): _T.ISSUED,  # the claimer could not use it (F-29), or its channel broke
        (_T.CLAIMING, _TE.EXPIRE): _T.CLAIMING,  # a claim in flight is not cut off
        (_T.CLAIMING, _TE.TARGET_DIES): _T.VOID,
    },
    frozenset({_T.ISSUED, _T.CLAIMING}),
)

# -- OPERATION: one pending call ----------------------------------------------------------------------------------


class OperationState(Enum):
    """Where a call is; only COMPLETED has taken anything."""

    TRYING = "trying"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"


class OperationEvent(Enum):
    """What happens to a call."""

    WAIT = "would block"
    READY = "ready"
    TAKE = "take"
    FAIL = "fail"
    ABORT = "abort"


_O, _OE = OperationState, OperationEvent
OPERATION: Final = Lifecycle(
    "OPERATION",
    OperationState,
    OperationEvent,
    _O.TRYING,
    {
        (_O.TRYING, _OE.WAIT): _O.WAITING,
        (_O.TRYING, _OE.TAKE): _O.COMPLETED,  # rule 2: also when the descriptor was closed meanwhile
        (_O.TRYING, _OE.FAIL): _O.FAILED,
        (_O.TRYING, _OE.ABORT): _O.ABORTED,  # woken by the close, or it met the dead file: it took nothing
        (_O.WAITING, _OE.READY): _O.TRYING,
        (_O.WAITING, _OE.FAIL): _O.FAILED,  # time over, or interrupted
        (_O.WAITING, _OE.ABORT): _O.ABORTED,
    },
)
OPERATION_POINTS: Final[Mapping[str, OperationEvent]] = {
    "op.waiting": _OE.WAIT,
    "op.ready": _OE.READY,
    "op.done": _OE.TAKE,
    "op.aborted": _OE.ABORT,
}

LIFECYCLES: Final[tuple[Lifecycle[Enum, Enum], ...]] = cast(
    "tuple[Lifecycle[Enum, Enum], ...]", (DESCRIPTOR, SOCKET, TICKET, OPERATION)
)


@dataclass(frozen=True, slots=True)
class Coupling:
    """An event of one lifecycle that makes another happen, and to which of the others."""

    cause: Enum
    effect: Enum
    whom: str


COUPLINGS: Final = (
    Coupling(_DE.MARK, _OE.ABORT, "every operation that waits through this descriptor; no other process's (I4)"),
    Coupling(_DE.LAST, _SE.LAST, "its socket"),
    Coupling(_DE.REFUSE, _SE.CANCEL, "its socket, if this was the last closer"),
    Coupling(_DE.END, _SE.END, "its socket, if this was the last closer"),
    Coupling(_DE.END, _SE.LEAVE, "its socket, if it was not"),
    Coupling(_TE.ACKNOWLEDGE, _SE.ENTER, "its socket: the new descriptor's reference comes before the ticket's goes"),
    Coupling(_TE.ACKNOWLEDGE, _SE.LEAVE, "its socket: the ticket's reference"),
    Coupling(_TE.REVOKE, _SE.LEAVE, "its socket, or last ends, custody being the closer"),
    Coupling(_TE.EXPIRE, _SE.LEAVE, "its socket, if unclaimed; or last ends, custody being the closer"),
    Coupling(_TE.TARGET_DIES, _SE.LEAVE, "its socket, or last ends, custody being the closer"),
)

_OF_STATE: Final[dict[type[Enum], Lifecycle[Enum, Enum]]] = {table.states: table for table in LIFECYCLES}


def advance(state: S, event: Enum) -> S:
    """Return the state that follows; a miss raises and moves nothing.

    Raises:
        InternalError: the lifecycle of this state has no such row; the error names both.
    """
    table = _OF_STATE[type(state)]
    after = table.rows.get((state, event))
    if after is None:
        raise InternalError(
            f"{table.name} is {state.name}, which {event.name} must not happen to; please report it",
            invariant=f"{table.name} lifecycle",
        )
    return cast("S", after)
