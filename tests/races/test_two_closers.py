"""Race: several closers of one socket: threads, a handler, a destructor, a callback. Idempotent, no deadlock (F-48)."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sharedsock.kernel import numbers, operations, sockets, waiting
from sharedsock.kernel.operations import READ
from sharedsock.model.errors import NotASocket, OperationAborted
from sharedsock.testing.observation import thread_facts
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair

RECV = RECEIVES[0]


@pytest.fixture(params=["tcp4", "unix-datagram"])
def kind(request: pytest.FixtureRequest) -> str:
    """Who closes does not depend on what is closed: one stream, one datagram."""
    return str(request.param)


@pytest.mark.fault("F-48")
def test_two_threads_wait_for_one_waiter(pair: Pair, points: stage.Points) -> None:
    """Both closers sleep until the waiter, held on its way out, has left; its leaving wakes both, not one."""
    kernel = kinds.adopt(pair.local)
    leaving = points.hold("op.aborted")
    blocked = stage.blocked(kernel, RECV)
    closers = [stage.Call(kinds.close, kernel, f"closer {number}") for number in (1, 2)]
    leaving.wait_reached()
    stage.wait_for(lambda: len(kernel.closers) == 2, "both closers to wait")
    leaving.release()
    blocked.error(OperationAborted)
    for closer in closers:
        closer.outcome()
    assert not kernel.closers


@pytest.mark.fault("F-48")
def test_the_first_mark_stays(pair: Pair) -> None:
    """Aborting twice is aborting once: who closed is told as it was."""
    kernel = kinds.adopt(pair.local)
    kinds.close(kernel, "the first")
    kinds.close(kernel, "the second")
    assert kernel.aborted == "the first"
    assert sockets.keep_and_bury(kernel, keep=True) is None


@pytest.mark.fault("F-48")
def test_the_second_closer_comes_when_the_first_is_held(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held between mark and wake: the second wakes on its own, and does not wait for the first."""
    kernel = kinds.adopt(pair.local)
    blocked = stage.blocked(kernel, RECV)
    held, go = threading.Event(), threading.Event()
    wake = waiting.unregister

    def unregister(kernel: sockets.KernelSocket) -> None:
        if threading.current_thread().name == "caller":
            held.set()
            assert go.wait(stage.PATIENCE_S)
        wake(kernel)

    monkeypatch.setattr(waiting, "unregister", unregister)
    first = stage.Call(kinds.close, kernel)
    assert held.wait(stage.PATIENCE_S)
    kinds.close(kernel)
    blocked.error(OperationAborted)
    go.set()
    first.outcome()


@pytest.fixture
def handled() -> Iterator[Any]:
    """SIGUSR1 for a test; the handler is set through the list."""
    actions: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: actions.pop()())
    yield actions
    signal.signal(signal.SIGUSR1, before)


def _signal_main_when_blocked(kernel: sockets.KernelSocket) -> stage.Call:
    def signal_main() -> None:
        tid = threading.main_thread().native_id
        assert tid is not None
        stage.wait_for(lambda: thread_facts(os.getpid(), tid).is_waiting and bool(kernel.waiters), "main to block")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    return stage.Call(signal_main)


@pytest.mark.fault("F-48")
def test_a_signal_handler_closes_on_top_of_its_own_wait(pair: Pair, way: str, handled: Any) -> None:
    """The thread's own waiter cannot leave before the handler returns: the close does not wait for it."""
    kernel = kinds.adopt(pair.local)
    handled.append(lambda: kinds.close(kernel, "the handler"))
    signaller = _signal_main_when_blocked(kernel)
    with pytest.raises(OperationAborted) as ended:
        operations.perform(kernel, "recv", READ, 10.0, kernel.recv, (16,))
    assert ended.value.closed_by == "the handler"
    signaller.outcome()


@pytest.mark.fault("F-48")
def test_a_signal_handler_closes_on_top_of_a_close(pair: Pair, handled: Any, points: stage.Points) -> None:
    """Interrupted while it waits for a waiter: the close inside does all of it, the outer one finds it done."""
    kernel = kinds.adopt(pair.local)
    leaving = points.hold("op.aborted")
    blocked = stage.blocked(kernel, RECV)

    def close_again() -> None:
        leaving.release()
        kinds.close(kernel, "the handler")

    handled.append(close_again)

    def signal_main() -> None:
        leaving.wait_reached()
        stage.wait_for(lambda: bool(kernel.closers), "the outer close to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    signaller = stage.Call(signal_main)
    kinds.close(kernel, "the outer close")
    signaller.outcome()
    blocked.error(OperationAborted)


class _Owner:
    """Closes in its destructor, as a descriptor that is collected does: abort and bury, no wait."""

    def __init__(self, kernel: sockets.KernelSocket) -> None:
        self.kernel = kernel
        self.itself = self

    def __del__(self) -> None:
        sockets.abort(self.kernel, "the garbage collector")
        sockets.keep_and_bury(self.kernel, keep=False)


@pytest.mark.fault("F-48")
def test_a_destructor_closes_while_another_thread_waits(pair: Pair, way: str) -> None:
    """Collected in a thread that knows nothing of it: the waiter ends, the collector does not wait for it."""
    kernel = kinds.adopt(pair.local)
    blocked = stage.blocked(kernel, RECV)
    _Owner(kernel)
    gc.collect()
    blocked.error(OperationAborted)


@pytest.mark.fault("F-48")
def test_a_destructor_closes_on_top_of_a_close(pair: Pair) -> None:
    """Collected while this thread holds the gate: the lock lets its own thread in."""
    kernel = kinds.adopt(pair.local)
    with numbers.gate:
        _Owner(kernel)
        gc.collect()
    kinds.close(kernel)
    assert kernel.is_buried


@pytest.mark.fault("F-48")
@pytest.mark.parametrize(
    ("point", "ending"), [("op.enter", NotASocket), ("op.waiting", OperationAborted), ("op.ready", OperationAborted)]
)
def test_a_callback_inside_the_call_closes_it(
    pair: Pair, point: str, ending: type[Exception], points: stage.Points
) -> None:
    """From inside an operation of the same thread: the close returns, the operation ends."""
    kernel = kinds.adopt(pair.local)
    points.act(point, lambda: kinds.close(kernel, "a callback"))
    if point == "op.ready":
        kernel.streak = 1  # waits first, so that what is there wakes it
        pair.peer.send(b"data")
    with pytest.raises(ending):
        operations.perform(kernel, "recv", READ, 10.0, kernel.recv, (16,))


@pytest.mark.fault("F-48")
def test_a_callback_after_the_taking_closes_it(pair: Pair, points: stage.Points) -> None:
    """Rule 2: what was taken is the result."""
    kernel = kinds.adopt(pair.local)
    points.act("op.done", lambda: kinds.close(kernel, "a callback"))
    pair.peer.send(b"data")
    assert operations.perform(kernel, "recv", READ, 10.0, kernel.recv, (16,)) == b"data"
