"""The invariants of the fault catalogue as checks over what was observed, each under its own number.

Pure functions: each returns what is wrong, as text, or "" when the invariant holds. Also here are the bounds within
which things must happen, and when they may be four times as long.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sharedsock.testing import observation

__all__ = [
    "T_ABORT",
    "T_EOF",
    "T_REAP",
    "T_REGISTRY_END",
    "ProcessResidue",
    "bound_under",
    "i1_exactly_once",
    "i2_count",
    "i6_residue",
    "look_at",
    "slack",
]

T_ABORT: Final = 0.050
T_EOF: Final = 0.100
T_REAP: Final = 0.250
T_REGISTRY_END: Final = 1.0
_SLACK_UNDER_LOAD: Final = 4.0
# So long a machine was seen to stand still under load.
_STANDSTILL_S: Final = 0.5


def slack() -> float:
    """Return by what the bounds are multiplied now: 4 while other processes want more than the processors have.

    Source: the catalogue's bounds, "under CPU load from other processes a test may use 4 x the bound".
    """
    processors = os.cpu_count() or 1
    return _SLACK_UNDER_LOAD if max(os.getloadavg()[0], observation.runnable()) > processors else 1.0


def bound_under(slack: float, bound_s: float) -> float:
    """Return a bound with its slack; on a loaded machine, with room for it to stand still as well."""
    return bound_s if slack == 1 else max(bound_s * slack, bound_s + _STANDSTILL_S)


def i1_exactly_once(sent: Sequence[bytes], received: Collection[bytes]) -> str:
    """I1 bytes: everything that was sent was received once, nothing else was."""
    missing = Counter(sent) - Counter(received)
    surplus = Counter(received) - Counter(sent)
    if not missing and not surplus:
        return ""
    return f"{missing.total()} missing, {surplus.total()} too many"


def i2_count(counted: int, true: int) -> str:
    """I2 count: what the registry counts is what there is."""
    return "" if counted == true else f"the registry counts {counted}, there are {true}"


@dataclass(frozen=True, slots=True)
class ProcessResidue:
    """What one process holds at one moment, as the kernel says.

    Attributes:
        sockets: inodes of its sockets.
        others: how many file numbers it has of every other kind, by the kernel's name for it.
        threads: how many threads it has.
    """

    sockets: frozenset[int]
    others: Counter[str]
    threads: int


def look_at(pid: int) -> ProcessResidue:
    """Look at what a process holds now."""
    names = observation.files(pid).values()
    plain = Counter(name for name in names if not name.startswith("socket:["))
    return ProcessResidue(observation.socket_inodes(pid), plain, len(observation.threads(pid)))


def i6_residue(before: Mapping[str, ProcessResidue], after: Mapping[str, ProcessResidue]) -> str:
    """I6 residue: no process has a socket, a file or a thread that it did not have before."""
    left = []
    for name, now in after.items():
        then = before.get(name, ProcessResidue(frozenset(), Counter(), 0))
        sockets = now.sockets - then.sockets
        others = now.others - then.others
        if sockets:
            left.append(f"{name} holds {len(sockets)} more sockets, inodes {sorted(sockets)}")
        if others:
            left.append(f"{name} holds {', '.join(sorted(others))}")
        if now.threads > then.threads:
            left.append(f"{name} has {now.threads - then.threads} more threads")
    return "; ".join(left)
