"""A conversation keeps every guarantee of `perform`: rules 1 to 3, whatever it is met by."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import sharedsock as ss
from sharedsock.kernel import conversation, operations, sockets, waiting
from sharedsock.kernel.conversation import Conversation
from sharedsock.kernel.operations import READ
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.test_interrupts import STREAM, sweep


@contextmanager
def connected() -> Iterator[tuple[KernelSocket, socket.socket]]:
    """Connect a pair; yield its adopted end, with a wait set, and the peer."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    waiting.set_of(kernel, READ)
    try:
        yield kernel, pair.peer
    finally:
        kinds.close(kernel)
        pair.close()


def talk_on(kernel: KernelSocket, bufsize: int) -> Conversation:
    wait_set = kernel.sets[READ]
    assert wait_set is not None
    return Conversation(kernel, wait_set, bufsize, DONTWAIT, bytes)


@pytest.mark.fault("F-50")
def test_whatever_instruction_an_interrupt_falls_on_the_stream_comes_out_whole() -> None:
    with connected() as (kernel, peer):
        talk = talk_on(kernel, 3)
        received = bytearray()
        sent = 3
        peer.sendall(STREAM[:3])

        def receive() -> None:
            said = talk.receive()
            assert said is not None
            received.extend(said)

        struck = set()
        for interrupt, _ in sweep(receive, Conversation.receive, operations.note_streak):
            if interrupt.has_struck:
                struck.add(interrupt.where)
            assert len(kernel.kept) <= 1
            while kernel.kept:  # what the next call of a face returns
                received += kernel.kept.pop(0)
            assert not kernel.waiters, interrupt.where
            if len(received) < sent:  # nothing had been taken: it is all still there
                received += kernel.recv(3)
            assert bytes(received) == (STREAM * 4)[:sent], interrupt.where
            peer.sendall((STREAM * 4)[sent : sent + 3])
            sent += 3
        assert len(struck) > 10
        assert kernel.recv(3) == (STREAM * 4)[sent - 3 : sent]


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20")
def test_a_close_ends_it_and_it_took_nothing() -> None:
    with connected() as (kernel, peer):
        talk = talk_on(kernel, 16)
        call = stage.Call(talk.receive)
        call.wait_blocked(kernel)
        (waits,) = operations.pending(kernel)
        assert (waits.kind, waits.thread) == ("recv", "caller")
        with socket.socket(fileno=waiting_duplicate(kernel)) as other:
            sockets.abort(kernel, "the test")
            sockets.wait_drained(kernel)
            error = call.error(OperationAborted)
            assert (error.winerror, error.closed_by) == (10004, "the test")
            peer.sendall(b"for another holder")
            assert other.recv(64) == b"for another holder"


def waiting_duplicate(kernel: KernelSocket) -> int:
    """Return a second number on the socket, as another holder has one."""
    with socket.fromfd(kernel.number, kernel.family, kernel.type) as twin:
        return twin.detach()


@pytest.mark.fault("F-39")
def test_abort_and_data_at_once_leave_the_data() -> None:
    """A waiter that sees both leaves without taking."""
    with connected() as (kernel, peer):
        talk = talk_on(kernel, 16)
        peer.sendall(b"not for us")
        poll = talk._poll

        def poll_and_abort(timeout_s: float, most: int) -> object:
            events = poll(timeout_s, most)
            sockets.abort(kernel, "the test")
            return events

        talk._poll = poll_and_abort
        with pytest.raises(OperationAborted):
            talk.receive()
        assert kernel.recv(16) == b"not for us"


@pytest.mark.fault("F-40")
def test_bytes_that_another_holder_took_leave_it_to_perform() -> None:
    with connected() as (kernel, peer):
        talk = talk_on(kernel, 16)
        peer.sendall(b"stolen")
        poll = talk._poll

        def poll_and_steal(timeout_s: float, most: int) -> object:
            events = poll(timeout_s, most)
            assert kernel.recv(16) == b"stolen"
            return events

        talk._poll = poll_and_steal
        assert talk.receive() is None
        assert not kernel.waiters


@pytest.mark.fault("F-48")
def test_a_handler_that_receives_on_top_of_it_gets_the_next_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's receive is a call of its own; the one below goes on waiting."""
    ours, peer = ss.socketpair()
    with ours, peer:
        peer_sends = threading.Thread(target=lambda: peer.sendall(b"a"))
        peer_sends.start()
        assert ours.recv(1) == b"a"
        peer_sends.join()
        below: list[bytes] = []

        def handler(*_: object) -> None:
            below.append(ours.recv(1))

        before = signal.signal(signal.SIGUSR1, handler)
        main = threading.main_thread()

        def disturb() -> None:
            stage.wait_for(lambda: bool(ours.pending_operations()), "the main thread to block")
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGUSR1)
            stage.wait_for(lambda: len(ours.pending_operations()) == 2, "the handler to block")
            peer.sendall(b"b")
            stage.wait_for(lambda: bool(below), "the handler's receive")
            peer.sendall(b"c")

        disturber = stage.Call(disturb)
        try:
            assert ours.recv(1) == b"c"
        finally:
            signal.signal(signal.SIGUSR1, before)
        disturber.outcome()
        assert below == [b"b"]


@pytest.mark.rule("CLOSE-20")
def test_the_face_converses_until_the_terms_change() -> None:
    ours, peer = ss.socketpair()
    with ours, peer:

        def answered(bufsize: int) -> bytes:
            call = stage.Call(ours.recv, bufsize)
            stage.wait_for(lambda: bool(ours.pending_operations()), "the receive to block")
            peer.sendall(b"xyz")
            said: bytes = call.outcome()
            return said

        assert [answered(3) for _ in range(2)] == [b"xyz"] * 2, "the second receive that waits makes it one"
        assert ours._talk is not None
        assert [answered(3) for _ in range(40)] == [b"xyz"] * 40, "probes come between"
        assert answered(2) == b"xy"
        assert ours.recv(8) == b"z"
        assert answered(3) == b"xyz"
        ours.settimeout(5)
        assert ours._talk is None
        assert answered(3) == b"xyz"
        assert ours._talk is None
        ours.settimeout(None)
        assert answered(3) == b"xyz"
        call = stage.Call(ours.recv, 3)
        stage.wait_for(lambda: bool(ours.pending_operations()), "the receive to block")
        ours.close()
        assert call.error(OperationAborted).winerror == 10004
        assert ours._talk is None


@pytest.mark.fault("F-48", "F-50")
def test_a_handler_that_receives_before_it_is_registered_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last place where a signal is looked for: the handler's bytes are the handler's, ours come after them."""
    with connected() as (kernel, peer):
        talk = talk_on(kernel, 3)
        peer.sendall(b"abcdef")
        handled: list[bytes | None] = []

        def clock_and_handler() -> float:
            monkeypatch.undo()
            handled.append(talk.receive())
            return 0.0

        monkeypatch.setattr(conversation, "monotonic", clock_and_handler)
        assert (talk.receive(), handled) == (b"def", [b"abc"])
