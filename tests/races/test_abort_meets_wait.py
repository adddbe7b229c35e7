"""Race: an abort against a thread about to wait. Nobody drains the waker, so no order loses the wake-up (F-44)."""

from __future__ import annotations

import pytest

from sharedsock.kernel import sockets
from sharedsock.model.errors import NotASocket, OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair

RECV = RECEIVES[0]


@pytest.mark.fault("F-44")
def test_abort_first_between_the_closed_test_and_the_wait(pair: Pair, way: str, points: stage.Points) -> None:
    """Held after the look at `aborted`, before the wait: the waker is readable when it comes there (rule 6)."""
    kernel = kinds.adopt(pair.local)
    waiting = points.hold("op.waiting")
    call = stage.performing(kernel, RECV)
    waiting.wait_reached()
    sockets.abort(kernel, "the test")
    waiting.release()
    call.error(OperationAborted)
    kinds.close(kernel)


@pytest.mark.fault("F-44")
def test_abort_first_before_the_closed_test(pair: Pair, points: stage.Points) -> None:
    """Held at the door: it never waits, and the socket was closed before the call began to."""
    kernel = kinds.adopt(pair.local)
    door = points.hold("op.enter")
    call = stage.performing(kernel, RECV)
    door.wait_reached()
    sockets.abort(kernel, "the test")
    door.release()
    call.error(NotASocket)
    assert "op.waiting" not in points.seen
    kinds.close(kernel)


@pytest.mark.fault("F-44")
def test_wait_first(pair: Pair, way: str) -> None:
    """Asleep already: the waker becomes readable and ends the wait."""
    kernel = kinds.adopt(pair.local)
    call = stage.blocked(kernel, RECV)
    sockets.abort(kernel, "the test")
    call.error(OperationAborted)
    kinds.close(kernel)


@pytest.mark.fault("F-44")
def test_buried_before_the_wait(pair: Pair, way: str, points: stage.Points) -> None:
    """A destructor's close does not wait for waiters: the call finds the dead file under its number, and ends."""
    kernel = kinds.adopt(pair.local)
    waiting = points.hold("op.waiting")
    call = stage.performing(kernel, RECV)
    waiting.wait_reached()
    sockets.abort(kernel, "the test")
    sockets.keep_and_bury(kernel, keep=False)
    waiting.release()
    call.error(OperationAborted)
