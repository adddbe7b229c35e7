"""Race: an abort against data that arrives. Delivered or left, never lost, never twice (F-39, I1)."""

from __future__ import annotations

import threading

import pytest

from sharedsock.kernel import operations, sockets
from sharedsock.kernel.operations import READ
from sharedsock.model.errors import NotASocket, OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair

ROUNDS = 300


@pytest.mark.fault("F-39")
@pytest.mark.parametrize("call", RECEIVES, ids=lambda call: call.method)
def test_abort_after_the_wake_leaves_the_data(
    pair: Pair, call: kinds.BlockingCall, way: str, points: stage.Points
) -> None:
    """A waiter that sees both, the data and the abort, leaves without taking (DESIGN 5)."""
    with pair.local.dup() as other_holder:
        other_holder.settimeout(60)
        kernel = kinds.adopt(pair.local)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, call)
        pair.peer.send(b"data")
        ready.wait_reached()
        sockets.abort(kernel, "the test")
        ready.release()
        blocked.error(OperationAborted)
        kinds.close(kernel)
        assert other_holder.recv(64) == b"data"


@pytest.mark.fault("F-39")
@pytest.mark.parametrize("call", RECEIVES, ids=lambda call: call.method)
def test_abort_before_the_data_leaves_it(pair: Pair, call: kinds.BlockingCall, way: str, points: stage.Points) -> None:
    """The other order: woken by the abort, the data comes before it looks."""
    with pair.local.dup() as other_holder:
        other_holder.settimeout(60)
        kernel = kinds.adopt(pair.local)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, call)
        sockets.abort(kernel, "the test")
        ready.wait_reached()
        pair.peer.send(b"data")
        ready.release()
        blocked.error(OperationAborted)
        kinds.close(kernel)
        assert other_holder.recv(64) == b"data"


@pytest.mark.fault("F-39")
def test_abort_after_the_taking_returns_what_was_taken(pair: Pair, points: stage.Points) -> None:
    """Rule 2, success wins: the call had its result before the abort."""
    kernel = kinds.adopt(pair.local)
    done = points.hold("op.done")
    blocked = stage.blocked(kernel, RECEIVES[0])
    pair.peer.send(b"data")
    done.wait_reached()
    sockets.abort(kernel, "the test")
    done.release()
    assert blocked.outcome() == b"data"
    kinds.close(kernel)


@pytest.mark.fault("F-39")
def test_free_running_no_byte_is_lost_or_taken_twice(pair: Pair) -> None:
    """Numbered records against closes, nobody held: what was not returned is still there for the other holder."""
    with pair.local.dup() as other_holder:
        outcomes = set()
        for number in range(ROUNDS):
            record = b"%08d" % number
            kernel = kinds.adopt(other_holder.dup())
            together = threading.Barrier(3)

            def receive(kernel: sockets.KernelSocket = kernel, together: threading.Barrier = together) -> bytes:
                together.wait()
                return bytes(operations.perform(kernel, "recv", READ, None, kernel.recv, (8,), None, True))

            def send(record: bytes = record, together: threading.Barrier = together) -> None:
                together.wait()
                pair.peer.send(record)

            receiver, sender = stage.Call(receive), stage.Call(send)
            together.wait()
            kinds.close(kernel)
            sender.outcome()
            try:
                taken = receiver.outcome()
            except (OperationAborted, NotASocket):
                other_holder.settimeout(stage.PATIENCE_S)
                assert other_holder.recv(64) == record
                outcomes.add("left")
            else:
                assert taken == record
                other_holder.settimeout(0)
                with pytest.raises(BlockingIOError):
                    other_holder.recv(64)
                outcomes.add("taken")
        assert outcomes <= {"left", "taken"}
