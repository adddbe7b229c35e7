"""WHAT IS DUE WHEN: the ledger's one queue of times, of tickets that expire and closes that have waited long enough.

A reference has one time at most, its `due`: setting another, or inf, makes what is queued for the old one void, and
void entries are thrown away in bulk once they are the majority. No clock: `now` is an argument.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from sharedsock.registry.records import Reference

__all__ = ["Timers"]

_WORTH_PRUNING = 1024


class Timers:
    """References by the time they are due.

    Attributes:
        first: the earliest time (of what may be void by now), inf: nothing is queued.
    """

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Reference]] = []
        self._order = itertools.count()
        self.first = math.inf
        self._prune_at = _WORTH_PRUNING

    def set(self, reference: Reference, due: float) -> None:
        """Make a reference due at a time; inf: never."""
        reference.due = due
        if due == math.inf:
            return
        heapq.heappush(self._queue, (due, next(self._order), reference))
        if len(self._queue) > self._prune_at:
            self._queue = [entry for entry in self._queue if entry[2].due == entry[0]]
            heapq.heapify(self._queue)
            self._prune_at = max(_WORTH_PRUNING, 2 * len(self._queue))
        self.first = self._queue[0][0] if self._queue else math.inf

    def take_due(self, now: float) -> Iterator[Reference]:
        """Yield what is due by now, each once; more may be set meanwhile."""
        while self.first <= now:
            due, _, reference = heapq.heappop(self._queue)
            self.first = self._queue[0][0] if self._queue else math.inf
            if reference.due == due:
                yield reference

    def __len__(self) -> int:
        return len(self._queue)
