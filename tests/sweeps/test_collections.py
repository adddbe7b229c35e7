"""The collector runs inside a public call, at every allocation, and finds sockets that were never closed (F-115).

Their destructors come on top of whatever the thread is doing, with whatever lock it holds: nothing deadlocks, and what
they leave to the next registry call is given back.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import table
from tests.descriptors.sharers import Running
from tests.sweeps.scenes import Outcome, Stage, plainly, play
from tests.sweeps.table import CALLS

MOST_STRAYS = 4


class Strays:
    """Keeps unreachable cycles in which a shared socket is open, for the collector to find."""

    def __init__(self) -> None:
        self._left: list[ss.SharedSocket] = []
        self.collected = 0
        for _ in range(MOST_STRAYS):
            ours, peer = ss.socketpair()
            peer.close()
            ours.dup().close()  # it is shared, and counted
            self._left.append(ours)

    def stray(self, phase: str, info: object) -> None:
        """Before each collection, lose one more."""
        if phase == "start" and self._left:
            self.collected += 1
            cycle: list[Any] = [self._left.pop()]
            cycle.append(cycle)

    def end(self) -> None:
        for ours in self._left:
            ours.close()
        table.flush_abandoned()  # as the next call would; there is none where all have been collected


@pytest.mark.fault("F-114", "F-115", "I2", "I6", "I7")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", CALLS)
def test_the_collector_runs_inside_a_call(stage: Stage, name: str) -> None:
    play(stage, name, plainly)
    thresholds = gc.get_threshold()

    def inside(call: Callable[[], Any], strays: Strays) -> Any:
        gc.callbacks.append(strays.stray)
        gc.set_threshold(1, 1, 1)
        try:
            return call()
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(strays.stray)

    def trouble(call: Callable[[], Any]) -> Outcome:
        strays = Strays()
        running = Running(inside, call, strays)  # a deadlock would be this thread's
        running.outcome()
        strays.end()
        gc.collect()
        assert running.error is None, repr(running.error)
        return Outcome(running.value)

    assert gc.isenabled()
    play(stage, name, trouble)
