"""WHO IS STILL MISSING after a restart, and what may be said to closers meanwhile. Pure: no I/O, no clock.

A registry that takes a dead one's place awaits every holder that was left. Until each has announced again or is dead,
no count is known to be complete, so nobody is told LAST (F-76): a closer waits, for T_rpc from the start at most.
After that somebody is stopped or hangs, and only the sockets it may share suffer: a close of a recovered socket is
NOT LAST at once, and the kernel's rule ends it. With the last of the missing everything is as if nothing had been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sharedsock.registry.records import Record

__all__ = ["Recovery"]


class Recovery:
    """The holders that are awaited, by their nonces."""

    def __init__(self) -> None:
        self._missing: set[bytes] = set()
        self._until = math.inf

    @property
    def missing(self) -> frozenset[bytes]:
        """The nonces of those who have neither announced everything nor died."""
        return frozenset(self._missing)

    def begin(self, nonces: Iterable[bytes], until: float) -> None:
        """Await these holders, and let closers wait for them until a time of the ledger's clock."""
        self._missing, self._until = set(nonces), until

    def strike(self, nonce: bytes) -> bool:
        """One of them has announced everything, or is dead; report whether that was the last."""
        if nonce not in self._missing:
            return False
        self._missing.discard(nonce)
        return not self._missing

    def is_over(self) -> bool:
        """Say whether nobody is missing."""
        return not self._missing

    def next_due(self) -> float:
        """Return when closers stop waiting, inf: they do not wait."""
        return self._until if self._missing else math.inf

    def stop_waiting(self, now: float) -> bool:
        """Report, once, that closers have waited long enough."""
        if not self._missing or now < self._until:
            return False
        self._until = math.inf
        return True

    def may_be_last(self, record: Record) -> bool | None:
        """Say whether a closer of this socket may be told LAST; None: that will be known later."""
        if record.unsure:
            return False
        if not self._missing:
            return True
        return None if self._until != math.inf else not record.recovered
