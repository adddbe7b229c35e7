"""Connects that take time: one outcome for everybody, the wait ended by an abort, the attempt the socket's (F-42)."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from time import monotonic

import pytest

from sharedsock.kernel import operations, sockets
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage


def _connecting(listener: socket.socket) -> tuple[sockets.KernelSocket, stage.Call]:
    kernel = kinds.adopt(kinds.make_client(_kind(listener)))
    call = stage.Call(operations.connect, kernel, listener.getsockname(), None)
    call.wait_blocked(kernel)
    return kernel, call


def _kind(listener: socket.socket) -> str:
    names = {socket.AF_INET: "tcp4", socket.AF_INET6: "tcp6", socket.AF_UNIX: "unix-stream"}
    return names[socket.AddressFamily(listener.family)]


@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_connect_at_once_and_one_that_waits_for_room(kind: str, tmp_path: Path) -> None:
    """AF_UNIX has no event for room in a backlog: tried again at short intervals."""
    with kinds.make_listener(kind, tmp_path, backlog=0) as listener:
        first = kinds.adopt(kinds.make_client(kind))
        operations.connect(first, listener.getsockname(), None)
        if kind == "unix-stream":
            second, call = _connecting(listener)
            accepted, _ = listener.accept()
            accepted.close()
            call.outcome()
            kinds.close(second)
        kinds.close(first)


@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_refused_port(kind: str, tmp_path: Path) -> None:
    """The plain error of the kernel."""
    listener = kinds.make_listener(kind, tmp_path)
    address = listener.getsockname()
    listener.close()
    kernel = kinds.adopt(kinds.make_client(kind))
    with pytest.raises(ConnectionRefusedError):
        operations.connect(kernel, address, 5.0)


def test_a_nonblocking_connect_says_so_and_goes_on() -> None:
    """Timeout 0: EINPROGRESS; a second connect waits for the same attempt."""
    with kinds.make_listener("tcp4") as listener:
        kernel = kinds.adopt(kinds.make_client("tcp4"))
        with pytest.raises(BlockingIOError) as started:
            operations.connect(kernel, listener.getsockname(), 0)
        assert started.value.errno == errno.EINPROGRESS
        operations.perform(kernel, "connect", operations.WRITE, 5.0, operations.connect_outcome, (kernel,))
        assert kernel.getpeername() == listener.getsockname()
        kinds.close(kernel)


@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_timeout_ends_the_wait(kind: str, tmp_path: Path) -> None:
    """A full backlog."""
    with kinds.make_listener(kind, tmp_path, backlog=0) as listener, kinds.make_client(kind) as first:
        first.connect(listener.getsockname())
        kernel = kinds.adopt(kinds.make_client(kind))
        began_s = monotonic()
        with pytest.raises(TimeoutError):
            operations.connect(kernel, listener.getsockname(), 0.05)
        assert monotonic() - began_s >= 0.05
        kinds.close(kernel)


@pytest.mark.fault("F-42")
def test_two_holders_of_a_refused_connect_both_get_the_refusal() -> None:
    """SO_ERROR is handed to one reader only: the other sees the state of the socket, and says refused as well."""
    listener = kinds.make_listener("tcp4")
    address = listener.getsockname()
    listener.close()
    plain = kinds.make_client("tcp4")
    with plain.dup() as twin:
        kernel, other = kinds.adopt(plain), kinds.adopt(twin)
        with pytest.raises(BlockingIOError):
            operations.connect(kernel, address, 0)
        for holder in (other, kernel):
            with pytest.raises(ConnectionRefusedError) as refused:
                operations.perform(holder, "connect", operations.WRITE, 5.0, operations.connect_outcome, (holder,))
            assert getattr(refused.value, "winerror", None) == 10061


@pytest.mark.fault("F-42")
def test_two_holders_of_a_connect_that_succeeds_and_one_closes() -> None:
    """The closer's wait ends; the attempt belongs to the socket, the other process sees its outcome."""
    with kinds.make_listener("tcp4", backlog=0) as listener:
        first = kinds.make_client("tcp4")
        first.connect(listener.getsockname())
        plain = kinds.make_client("tcp4")

        def body(line: stage.Line) -> None:
            line.hear()
            kernel = kinds.adopt(plain)
            operations.perform(kernel, "connect", operations.WRITE, 5.0, operations.connect_outcome, (kernel,))
            line.say(b"connected")
            line.hear()

        with stage.sibling(body) as other:
            address = listener.getsockname()
            kernel = kinds.adopt(plain)
            call = stage.Call(operations.connect, kernel, address, None)
            call.wait_blocked(kernel)
            other.line.say()
            other.wait_blocked()
            kinds.close(kernel)
            call.error(OperationAborted)
            accepted, _ = listener.accept()
            assert other.hear() == b"connected"
            accepted.close()
        first.close()


@pytest.mark.fault("F-42", "F-44")
def test_an_abort_and_a_burial_while_the_backlog_is_full(tmp_path: Path, points: stage.Points) -> None:
    """Held before the next try: it finds the mark, or the dead file, and is aborted either way."""
    for buried in (False, True):
        with kinds.make_listener("unix-stream", tmp_path, backlog=0) as listener:
            first = kinds.make_client("unix-stream")
            first.connect(listener.getsockname())
            hold = points.hold("op.ready")
            kernel = kinds.adopt(kinds.make_client("unix-stream"))
            call = stage.Call(operations.connect, kernel, listener.getsockname(), None)
            hold.wait_reached()
            sockets.abort(kernel, "the test")
            if buried:
                sockets.keep_and_bury(kernel, keep=False)
                kernel.aborted = None  # as if it had looked before the mark was set
            hold.release()
            call.error(OperationAborted)
            kernel.aborted = "the test"
            kinds.close(kernel)
            first.close()
        (tmp_path / "listener").unlink()
