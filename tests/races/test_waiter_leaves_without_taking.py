"""Race: a process's waiter was woken and leaves without taking. A waiter of another process goes on (F-122, I4).

Exclusive epoll sets lose exactly this wake-up: the one that was woken takes it along, the other sleeps beside data.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from sharedsock.kernel import operations, sockets
from sharedsock.kernel.operations import READ
from sharedsock.model import trace
from sharedsock.model.errors import OperationAborted
from tests.conftest import Bounds
from tests.kernel import kinds, stage
from tests.kernel.kinds import BlockingCall

RECV = BlockingCall("recv", READ, lambda: (100,))
ACCEPT = BlockingCall("_accept", READ, tuple)
OBJECTS = ("tcp4", "tcp6", "udp4", "unix-stream", "unix-datagram", "listener-tcp4", "listener-unix-stream")

Stage = tuple[socket.socket, BlockingCall, Callable[[], object]]


@pytest.fixture(params=OBJECTS)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """A plain socket to share, the call that waits on it, and what wakes one waiter."""
    kind = request.param
    if kind.startswith("listener-"):
        kind = kind.removeprefix("listener-")
        with kinds.make_listener(kind, tmp_path) as listener, kinds.make_client(kind) as client:
            address = listener.getsockname()
            yield listener, ACCEPT, lambda: client.connect(address)
    else:
        pair = kinds.make_pair(kind)
        yield pair.local, RECV, lambda: pair.peer.send(b"x" * 100)
        pair.close()


def _wait_here(
    plain: socket.socket, call: BlockingCall, timeout_s: float | None = None
) -> Callable[[stage.Line], None]:
    """The body of a process that waits on the socket; it says so when it has been woken, and what it got."""

    def body(line: stage.Line) -> None:
        kernel = kinds.adopt(plain)
        kind, direction, method, arguments = call.of(kernel)

        def hook(point: str, context: object) -> None:
            if point == "op.ready":
                line.say(b"woken")
                line.hear()

        trace.hook = hook
        line.say(b"begins")
        try:
            result = operations.perform(kernel, kind, direction, timeout_s, method, arguments)
        except TimeoutError:
            line.say(b"timed out")
        else:
            line.say(result if isinstance(result, bytes) else b"client")
        line.hear()

    return body


def _hear_result(other: stage.Sibling, bounds: Bounds, began_s: float) -> bytes:
    """Let the other process, which is woken already or will be, take what is there."""
    assert other.hear() == b"woken"
    other.line.say()
    message = other.hear()
    bounds.check("T_abort", monotonic() - began_s)
    return message


@pytest.mark.fault("F-122")
def test_our_woken_waiter_is_aborted(shared: Stage, points: stage.Points, bounds: Bounds) -> None:
    """Closed while held between wake and take: the other process takes it all."""
    plain, call, wake = shared
    with stage.sibling(_wait_here(plain, call)) as other:
        assert other.hear() == b"begins"
        other.wait_blocked()
        kernel = kinds.adopt(plain)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, call)
        wake()
        ready.wait_reached()
        began_s = monotonic()
        sockets.abort(kernel, "the test")
        ready.release()
        blocked.error(OperationAborted)
        kinds.close(kernel)
        assert _hear_result(other, bounds, began_s) in (b"x" * 100, b"client")


@pytest.mark.fault("F-122")
def test_a_woken_process_is_killed(shared: Stage, bounds: Bounds) -> None:
    """SIGKILL between wake and take: our waiter proceeds."""
    plain, call, wake = shared
    with stage.sibling(_wait_here(plain, call)) as other:
        assert other.hear() == b"begins"
        other.wait_blocked()
        kernel = kinds.adopt(plain)
        with stage.probing() as points:
            ready = points.hold("op.ready")
            blocked = stage.blocked(kernel, call)
            wake()
            assert other.hear() == b"woken"
            ready.wait_reached()
            began_s = monotonic()
            other.kill()
            ready.release()
            _accept_or_data(blocked.outcome())
            bounds.check("T_abort", blocked.ended_s - began_s)
        kinds.close(kernel)


@pytest.mark.fault("F-122")
def test_a_woken_process_comes_too_late_and_times_out(shared: Stage) -> None:
    """The other's wait ends by its timeout while ours goes on; what comes then is ours."""
    plain, call, wake = shared
    with stage.sibling(_wait_here(plain, call, timeout_s=0.05)) as other:
        kernel = kinds.adopt(plain)
        blocked = stage.blocked(kernel, call)
        assert other.hear() == b"begins"
        assert other.hear() == b"woken"  # by the time
        wake()
        other.line.say()
        assert other.hear() == b"timed out"
        _accept_or_data(blocked.outcome())
        kinds.close(kernel)


@pytest.mark.fault("F-122")
def test_our_woken_waiter_is_interrupted(shared: Stage, points: stage.Points, bounds: Bounds) -> None:
    """An exception between wake and take (KeyboardInterrupt): the other process takes it all."""
    plain, call, wake = shared
    with stage.sibling(_wait_here(plain, call)) as other:
        assert other.hear() == b"begins"
        other.wait_blocked()
        kernel = kinds.adopt(plain)

        def interrupt() -> None:
            raise KeyboardInterrupt

        points.act("op.ready", interrupt)
        blocked = stage.blocked(kernel, call)
        began_s = monotonic()
        wake()
        blocked.error(KeyboardInterrupt)
        assert _hear_result(other, bounds, began_s) in (b"x" * 100, b"client")
        kinds.close(kernel)


@pytest.mark.fault("F-122")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_our_woken_waiter_reads_one_byte_of_a_hundred(kind: str, bounds: Bounds) -> None:
    """A partial read: what is left wakes the other process."""
    pair = kinds.make_pair(kind)
    with stage.sibling(_wait_here(pair.local, RECV)) as other:
        assert other.hear() == b"begins"
        other.wait_blocked()
        kernel = kinds.adopt(pair.local)
        blocked = stage.blocked(kernel, BlockingCall("recv", READ, lambda: (1,)))
        began_s = monotonic()
        pair.peer.send(b"x" * 100)
        assert blocked.outcome() == b"x"
        assert _hear_result(other, bounds, began_s) == b"x" * 99
        kinds.close(kernel)
    pair.close()


@pytest.mark.fault("F-122")
def test_within_one_process_the_wake_is_handed_on(shared: Stage, points: stage.Points) -> None:
    """Two threads in one set: the one that was woken leaves without taking, level triggering wakes the other."""
    plain, call, wake = shared
    kernel = kinds.adopt(plain)
    first = stage.blocked(kernel, call)
    second = stage.blocked(kernel, call)

    def interrupt() -> None:
        raise KeyboardInterrupt

    points.act("op.ready", interrupt)
    wake()
    stage.wait_for(lambda: first.is_over and second.is_over, "both threads to leave")
    outcomes = []
    for waiter in (first, second):
        try:
            _accept_or_data(waiter.outcome())
            outcomes.append("took")
        except KeyboardInterrupt:
            outcomes.append("left")
    assert sorted(outcomes) == ["left", "took"]
    kinds.close(kernel)


def _accept_or_data(result: object) -> None:
    if isinstance(result, tuple):
        os.close(result[0])
    else:
        assert result == b"x" * 100
