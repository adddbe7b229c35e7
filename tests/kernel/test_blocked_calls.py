"""A close in this process ends every call that waits, on every kind of socket; it takes nothing and nobody notices."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from time import monotonic, time

import pytest

from sharedsock.kernel import operations, sockets, waiting
from sharedsock.kernel.operations import READ
from sharedsock.model.errors import NotASocket, OperationAborted
from sharedsock.testing.observation import thread_facts
from tests.conftest import Bounds
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, SENDS, BlockingCall, Pair


def _abort_ends(call: stage.Call, kernel: sockets.KernelSocket, kind: str, bounds: Bounds) -> None:
    began_s = monotonic()
    sockets.abort(kernel, "MainThread (here)")
    error = call.error(OperationAborted)
    bounds.check("T_abort", call.ended_s - began_s)
    assert (error.winerror, error.operation, error.closed_by) == (10004, kind, "MainThread (here)")
    sockets.wait_drained(kernel)
    sockets.keep_and_bury(kernel, keep=False)


@pytest.mark.fault("F-38")
@pytest.mark.parametrize("call", RECEIVES, ids=lambda call: call.method)
def test_abort_ends_a_blocked_receive_which_took_nothing(
    pair: Pair, call: BlockingCall, way: str, bounds: Bounds
) -> None:
    """Rule 1: never blocked inside a call that takes data; I1: what comes later is there for another holder."""
    with pair.local.dup() as other_holder:
        other_holder.settimeout(60)
        kernel = kinds.adopt(pair.local)
        blocked = stage.blocked(kernel, call)
        _abort_ends(blocked, kernel, call.method, bounds)
        pair.peer.send(b"for another")
        assert other_holder.recv(64) == b"for another"


@pytest.mark.fault("F-38", "F-43")
@pytest.mark.parametrize("call", SENDS, ids=lambda call: call.method)
@pytest.mark.parametrize("kind", [*kinds.STREAMS, "unix-datagram"])
def test_abort_ends_a_blocked_send_which_queued_nothing(
    pair: Pair, call: BlockingCall, way: str, bounds: Bounds
) -> None:
    """I1: the peer gets what was queued before, and then the end: no byte of the aborted call."""
    is_stream = pair.local.type == socket.SOCK_STREAM
    kernel = kinds.adopt(pair.local)
    filled = kinds.fill(kernel)
    blocked = stage.blocked(kernel, call)
    _abort_ends(blocked, kernel, call.method, bounds)
    if is_stream:
        assert kinds.drain(pair.peer, filled) == b"f" * filled
        assert pair.peer.recv(1) == b""
    else:
        pair.peer.setblocking(False)
        queued = bytearray()
        with pytest.raises(BlockingIOError):
            while True:
                queued += pair.peer.recv(1 << 17)
        assert queued == b"f" * filled


@pytest.mark.fault("F-38")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_abort_ends_a_blocked_accept_which_took_no_client(kind: str, way: str, tmp_path: Path, bounds: Bounds) -> None:
    """I4: the client that comes later belongs to the holder that is left."""
    listener = kinds.make_listener(kind, tmp_path)
    address = listener.getsockname()
    with listener.dup() as other_holder, kinds.make_client(kind) as client:
        other_holder.settimeout(60)
        kernel = kinds.adopt(listener)
        blocked = stage.blocked(kernel, BlockingCall("_accept", READ, tuple))
        _abort_ends(blocked, kernel, "_accept", bounds)
        client.connect(address)
        accepted, _ = other_holder.accept()
        accepted.close()


@pytest.mark.fault("F-38", "F-42")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_abort_ends_a_connect_under_way(kind: str, way: str, tmp_path: Path, bounds: Bounds) -> None:
    """A full backlog: TCP waits for the handshake, AF_UNIX has no event and tries again; both end at once."""
    with kinds.make_listener(kind, tmp_path, backlog=0) as listener:
        first = kinds.make_client(kind)
        first.connect(listener.getsockname())  # fills the backlog of one
        kernel = kinds.adopt(kinds.make_client(kind))
        blocked = stage.Call(operations.connect, kernel, listener.getsockname(), None)
        blocked.wait_blocked(kernel)
        _abort_ends(blocked, kernel, "connect", bounds)
        first.close()


@pytest.mark.fault("F-38")
def test_every_thread_in_every_direction_ends(bounds: Bounds) -> None:
    """Rule 6: the waker is never drained, so it wakes whoever waits, in both sets."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    kinds.fill(kernel)
    calls = [stage.blocked(kernel, call) for call in (*RECEIVES, *SENDS)]
    assert sorted(row.kind for row in operations.pending(kernel)) == sorted(c.method for c in (*RECEIVES, *SENDS))
    began_s = monotonic()
    sockets.abort(kernel, "the test")
    sockets.wait_drained(kernel)
    assert not kernel.waiters
    sockets.keep_and_bury(kernel, keep=False)
    for call in calls:
        call.error(OperationAborted)
        bounds.check("T_abort", call.ended_s - began_s)
    pair.close()


def test_a_call_that_begins_after_the_close_is_not_a_socket(pair: Pair) -> None:
    """DESIGN 5: calls started later get 10038."""
    kernel = kinds.adopt(pair.local)
    kinds.close(kernel)
    for call in (*RECEIVES, *SENDS):
        method, direction, function, arguments = call.of(kernel)
        with pytest.raises(NotASocket) as refused:
            operations.perform(kernel, method, direction, None, function, arguments)
        assert refused.value.winerror == 10038


@pytest.mark.fault("F-38", "I7")
@pytest.mark.parametrize("set_is_made", [False, True])
def test_a_blocked_thread_makes_no_system_call(pair: Pair, set_is_made: bool) -> None:
    """I7: no waiting in slices; two equal looks at a sleeping thread show that it made no call in between."""
    kernel = kinds.adopt(pair.local)
    if set_is_made:
        waiting.set_of(kernel, READ)
    blocked = stage.blocked(kernel, RECEIVES[0])
    assert blocked.thread.native_id is not None
    first = thread_facts(os.getpid(), blocked.thread.native_id)
    with pytest.raises(TimeoutError):  # another wait of a tenth of a second, on the same socket
        operations.perform(kernel, "recv", READ, 0.1, kernel.recv, (1,))
    assert thread_facts(os.getpid(), blocked.thread.native_id) == first
    kinds.close(kernel)
    blocked.error(OperationAborted)


@pytest.mark.parametrize("timeout_s", [0.0, 0.02])
def test_a_timeout_ends_the_wait_and_takes_nothing(pair: Pair, timeout_s: float, way: str) -> None:
    """Rule 5: time is the descriptor's own; the shared file keeps O_NONBLOCK and no SO_RCVTIMEO."""
    kernel = kinds.adopt(pair.local)
    began_s = monotonic()
    with pytest.raises(TimeoutError if timeout_s else BlockingIOError):
        operations.perform(kernel, "recv", READ, timeout_s, kernel.recv, (16,))
    assert monotonic() - began_s >= timeout_s
    pair.peer.send(b"later")
    assert operations.perform(kernel, "recv", READ, 5.0, kernel.recv, (16,)) == b"later"
    assert not kernel.waiters


@pytest.mark.fault("F-103")
def test_since_when_it_waits_is_told_by_the_wall_and_kept_by_the_monotonic_clock(pair: Pair) -> None:
    """A clock that is set meanwhile moves neither the time that is left nor how long it has waited."""
    kernel = kinds.adopt(pair.local)
    before_s = time()
    blocked = stage.blocked(kernel, RECEIVES[0])
    (row,) = operations.pending(kernel)
    # The two clocks are read one after the other; in between this thread may lose its processor.
    assert before_s - 5 <= row.since_s <= time() + 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "time", lambda: time() + 86400.0)
        (later,) = operations.pending(kernel)
    assert abs(later.since_s - row.since_s - 86400.0) < 5
    kinds.close(kernel)
    blocked.error(OperationAborted)
