"""Race: an abort against the first who waits, who has to make the waker. Neither order loses the wake-up (F-44)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import starmap

import pytest

from sharedsock.kernel import sockets, system, waiting
from sharedsock.kernel.waker import Waker
from sharedsock.model.errors import OperationAborted
from tests.conftest import Bounds
from tests.kernel import kinds, stage
from tests.kernel.kinds import Pair


@pytest.mark.fault("F-44")
@pytest.mark.parametrize("when", ["before the number", "behind the number"])
def test_an_abort_while_the_waker_is_made(
    pair: Pair, when: str, monkeypatch: pytest.MonkeyPatch, bounds: Bounds
) -> None:
    """The abort finds no waker to signal; whoever has made it finds the mark, and does not sleep."""
    kernel = kinds.adopt(pair.local)
    held, go = threading.Event(), threading.Event()
    make: Callable[[], int] = system.make_eventfd

    def slow() -> int:
        number = list(starmap(make, ((),) * (when == "behind the number")))
        held.set()
        assert go.wait(stage.PATIENCE_S)
        return number[0] if number else make()

    monkeypatch.setattr(system, "make_eventfd", slow)
    waiting_call = stage.performing(kernel, kinds.RECEIVES[0], has_tried=True)
    assert held.wait(stage.PATIENCE_S)
    sockets.abort(kernel, "the closer")
    assert kernel.waker is None
    began_s = stage.monotonic()
    go.set()
    waiting_call.error(OperationAborted)
    bounds.check("T_abort", waiting_call.ended_s - began_s)
    kinds.close(kernel)


def test_two_first_waiters_share_one_waker(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has made one; the first to store it wins, the other's number is given back, and one abort ends both."""
    kernel = kinds.adopt(pair.local)
    held, go = threading.Event(), threading.Event()
    made: list[int] = []

    def slow_at_first() -> Waker:
        waker = Waker()
        made.append(waker.number)
        if len(made) == 1:
            held.set()
            assert go.wait(stage.PATIENCE_S)
        return waker

    monkeypatch.setattr(waiting, "Waker", slow_at_first)
    first = stage.performing(kernel, kinds.RECEIVES[0], has_tried=True)
    assert held.wait(stage.PATIENCE_S)
    second = stage.performing(kernel, kinds.RECEIVES[0], has_tried=True)
    second.wait_blocked(kernel)  # it opens nothing more, which could get the first one's number
    go.set()
    stage.wait_for(lambda: not stage.is_open(made[0]), "the first one's to be closed")
    assert kernel.waker is not None
    assert kernel.waker.number == made[1]
    kinds.close(kernel)
    first.error(OperationAborted)
    second.error(OperationAborted)
