"""The close table: how the last close ends a connection, by linger option, blocking mode and unsent data.

Pure: it says what is to be done, and descriptors/lingering.py knows how the kernel is told. It speaks of the last close
only; any other gives its reference back at once, whatever the option says (LINGER-13). The interval of LINGER(t) is t
seconds, as Winsock has it; unsent means not yet acknowledged by the peer's transport, read or not (LINGER-8).

Source: LPWSPCLOSESOCKET, Remarks, the table; "Graceful Shutdown, Linger Options, and Socket Closure in the SPI".
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

__all__ = ["API_CLOSE_CODES", "CLOSE_TABLE", "SPI_CLOSE_CODES", "CloseAction", "CloseRow", "Linger", "close_action"]


class Linger(Enum):
    """The linger option, as the table tells its settings apart."""

    DONTLINGER = "DONTLINGER"
    ZERO = "LINGER(0)"
    TIMED = "LINGER(t > 0)"


class CloseAction(Enum):
    """What the last close does, and what its caller sees."""

    GRACEFUL = "close at once; queued data and then FIN follow in the background"
    RESET = "discard what is queued, reset the connection, close at once"
    WAIT = "wait up to t until everything is acknowledged, then FIN; at t reset, before the close returns"
    REFUSE = "WSAEWOULDBLOCK (10035): nothing is closed, aborted or sent"


class CloseRow(NamedTuple):
    """One row of the table; None in a condition means either."""

    linger: Linger
    is_blocking: bool | None
    has_unsent: bool | None
    action: CloseAction
    rule: str


CLOSE_TABLE: Final = (
    CloseRow(Linger.DONTLINGER, None, None, CloseAction.GRACEFUL, "LINGER-2"),
    CloseRow(Linger.ZERO, None, None, CloseAction.RESET, "LINGER-3"),
    CloseRow(Linger.TIMED, True, True, CloseAction.WAIT, "LINGER-7"),
    CloseRow(Linger.TIMED, True, False, CloseAction.GRACEFUL, "LINGER-6"),
    CloseRow(Linger.TIMED, False, True, CloseAction.REFUSE, "LINGER-4"),
    CloseRow(Linger.TIMED, False, False, CloseAction.GRACEFUL, "LINGER-4"),
)

_ACTIONS: Final = {
    (row.linger, is_blocking, has_unsent): row.action
    for row in CLOSE_TABLE
    for is_blocking in (True, False)
    for has_unsent in (True, False)
    if row.is_blocking in (None, is_blocking) and row.has_unsent in (None, has_unsent)
}

# CLOSE-11: success and every error a close may answer with; nothing else may escape. The API adds to the SPI's list.
SPI_CLOSE_CODES: Final = frozenset({0, 10035, 10036, 10038, 10050})
API_CLOSE_CODES: Final = SPI_CLOSE_CODES | {10004, 10093}


def close_action(linger_s: int | None, *, is_blocking: bool, has_unsent: bool) -> CloseAction:
    """Return what the last close of a connection has to do.

    Args:
        linger_s: None is DONTLINGER, 0 a hard close, else the seconds to wait at most.
        is_blocking: False: the caller must not be made to wait, so it is refused instead.
        has_unsent: bytes are queued that the peer's transport has not acknowledged.

    Raises:
        ValueError: the interval is negative.
    """
    if linger_s is None:
        linger = Linger.DONTLINGER
    elif linger_s == 0:
        linger = Linger.ZERO
    elif linger_s > 0:
        linger = Linger.TIMED
    else:
        raise ValueError(f"linger_s must be None, 0 or seconds > 0, not {linger_s}")
    return _ACTIONS[linger, is_blocking, has_unsent]
