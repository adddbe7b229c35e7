"""A conversation keeps every guarantee of `perform`: rules 1 to 3, whatever it is met by.

Its path is in the frame of a face's `recv`, so the face is what is called here. These poll first; those of exclusive
sockets, whose receives wait in the kernel, are in test_exclusive.py.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import sharedsock as ss
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import conversation, numbers, operations, sockets
from sharedsock.kernel.conversation import BUSY, SILENT, Conversation
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import NotASocket, OperationAborted
from sharedsock.testing.observation import thread_facts
from tests.kernel import kinds, stage
from tests.kernel.interrupted import come_out_whole
from tests.kernel.test_interrupts import STREAM

SIZE = 3


def talk_on(shared: ss.SharedSocket, timeout_s: float | None = None) -> Conversation:
    """Begin a conversation of receives of SIZE bytes now, as if some had waited."""
    kernel = shared._kernel
    numbers.calm[kernel.slot] = 0
    kernel.streak = 1
    talk = kernel.talk = shared._talk = Conversation(kernel, kinds.waker_of(kernel), SIZE, DONTWAIT, timeout_s)
    return talk


@contextmanager
def talking(timeout_s: float | None = None) -> Iterator[tuple[ss.SharedSocket, Conversation, socket.socket]]:
    pair = kinds.make_pair("tcp4")
    with ss.SharedSocket(fileno=pair.local.detach()) as shared:
        shared.settimeout(timeout_s)
        yield shared, talk_on(shared, timeout_s), pair.peer
    pair.peer.close()


def meanwhile(talk: Conversation, action: Callable[[], object]) -> None:
    """Do something in the moment the next wait has ended."""
    wait = talk.wait

    def wait_and_act() -> None:
        talk.wait = wait
        wait()
        action()

    talk.wait = wait_and_act


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_wherever_an_interrupt_can_fall_the_stream_comes_out_whole(timeout_s: float | None) -> None:
    with talking(timeout_s) as (shared, _, peer):
        struck = come_out_whole(
            shared._kernel,
            SIZE,
            peer.sendall,
            lambda: shared.recv(SIZE),
            prepare=lambda: talk_on(shared, timeout_s),
            is_idle=lambda: not shared._talk.is_busy and not shared.pending_operations(),
        )
        assert len(struck) >= (2 if timeout_s is None else 4), "the start, the end of the wait"


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("timeout_s", [None, 30.0])
def test_a_close_ends_it_and_it_took_nothing(timeout_s: float | None) -> None:
    with talking(timeout_s) as (shared, talk, peer), shared.dup() as other:
        call = stage.Call(shared.recv, SIZE)
        call.wait_blocked(shared._kernel)
        assert talk.is_busy
        (waits,) = shared.pending_operations()
        assert (waits.kind, waits.thread) == ("recv", "caller")
        shared.close()
        assert call.error(OperationAborted).winerror == 10004
        assert shared._talk is SILENT
        with pytest.raises(NotASocket):
            shared.recv(SIZE)
        peer.sendall(b"for another holder")
        assert other.recv(64) == b"for another holder"


@pytest.mark.fault("F-39")
def test_abort_and_data_at_once_leave_the_data() -> None:
    """A waiter that sees both leaves without taking."""
    with talking() as (shared, talk, peer):
        kernel = shared._kernel
        peer.sendall(b"not for us")
        meanwhile(talk, lambda: sockets.abort(kernel, "the test"))
        with pytest.raises(OperationAborted):
            shared.recv(SIZE)
        assert kernel.recv(16) == b"not for us"


@pytest.mark.fault("F-44")
def test_a_close_just_before_the_wait_is_not_missed() -> None:
    """The other order: marked and woken first, then the wait, which ends at once."""
    with talking() as (shared, talk, peer):
        kernel = shared._kernel
        wait = talk.wait

        def abort_and_wait() -> None:
            sockets.abort(kernel, "the test")
            wait()

        talk.wait = abort_and_wait
        peer.sendall(b"not for us")
        with pytest.raises(OperationAborted):
            shared.recv(SIZE)
        assert kernel.recv(16) == b"not for us"


@pytest.mark.fault("F-48")
def test_a_closer_waits_for_the_one_inside() -> None:
    """Held between the end of its wait and its look at the mark, it keeps the closer from burying the number."""
    with talking() as (shared, talk, peer):
        kernel = shared._kernel
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go.wait(stage.PATIENCE_S)

        meanwhile(talk, hold)
        receiving = stage.Call(shared.recv, SIZE)
        peer.sendall(b"wake up")
        assert held.wait(stage.PATIENCE_S)
        closing = stage.Call(shared.close)
        stage.wait_for(lambda: bool(kernel.closers), "the closer to wait")
        assert not kernel.is_buried
        go.set()
        closing.outcome()
        assert receiving.error(OperationAborted).winerror == 10004


@pytest.mark.fault("F-48")
def test_a_handler_that_closes_on_top_of_it_does_not_wait_for_itself() -> None:
    with talking() as (shared, _, _):
        before = signal.signal(signal.SIGUSR1, lambda *_: shared.close())
        main = threading.main_thread().ident
        assert main is not None

        def is_asleep() -> bool:
            return thread_facts(os.getpid(), os.getpid()).is_waiting

        def disturb() -> None:
            # Asleep, not just about to: poll() would not be ended by a signal whose handler has yet to run.
            stage.wait_for(lambda: bool(shared.pending_operations()) and is_asleep(), "the main thread to block")
            signal.pthread_kill(main, signal.SIGUSR1)

        disturber = stage.Call(disturb)
        try:
            with pytest.raises(OperationAborted):
                shared.recv(SIZE)
        finally:
            signal.signal(signal.SIGUSR1, before)
        disturber.outcome()


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_bytes_that_another_holder_took_are_waited_for_again(timeout_s: float | None) -> None:
    with talking(timeout_s) as (shared, talk, peer):
        kernel = shared._kernel
        peer.sendall(b"stolen")
        meanwhile(talk, lambda: kernel.recv(16))
        call = stage.Call(shared.recv, SIZE)
        call.wait_blocked(kernel)
        assert not talk.is_busy, "it waits the long way"
        peer.sendall(b"abc")
        assert call.outcome() == b"abc"


@pytest.mark.fault("F-40", "F-47")
def test_a_timeout_is_one_timeout_however_often_others_are_faster() -> None:
    with talking(0.05) as (shared, talk, peer):
        kernel = shared._kernel
        peer.sendall(b"stolen")

        def steal_and_be_late() -> None:
            kernel.recv(16)
            talk.deadline_s = 0.0

        meanwhile(talk, steal_and_be_late)
        with pytest.raises(TimeoutError) as caught:
            shared.recv(SIZE)
        assert caught.value.winerror == 10060  # type: ignore[attr-defined]  # typeshed: Windows only
        with pytest.raises(TimeoutError):
            shared.recv(SIZE)
        assert not shared.pending_operations()


@pytest.mark.fault("F-48")
def test_whoever_comes_second_takes_the_long_way() -> None:
    """A second thread, while one is inside; both receive, and nobody gets the other's."""
    with talking() as (shared, talk, peer):
        first = stage.Call(shared.recv, SIZE, name="first")
        stage.wait_for(lambda: talk.is_busy, "the first to block")
        second = stage.Call(shared.recv, SIZE, name="second")
        stage.wait_for(lambda: bool(shared._kernel.waiters), "the second to block")
        assert {row.thread for row in shared.pending_operations()} == {"first", "second"}
        peer.sendall(b"abc")
        stage.wait_for(lambda: first.is_over or second.is_over, "one of them to receive")
        peer.sendall(b"def")
        assert {first.outcome(), second.outcome()} == {b"abc", b"def"}


@pytest.mark.fault("F-48")
def test_a_handler_that_receives_on_top_of_it_gets_the_next_bytes() -> None:
    """The handler's receive is a call of its own; the one below goes on waiting."""
    with talking() as (ours, _, peer):
        below: list[bytes] = []
        before = signal.signal(signal.SIGUSR1, lambda *_: below.append(ours.recv(1)))
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
            assert ours.recv(SIZE) == b"c"
        finally:
            signal.signal(signal.SIGUSR1, before)
        disturber.outcome()
        assert below == [b"b"]


@pytest.mark.fault("F-50")
def test_what_another_call_has_kept_comes_first() -> None:
    """A conversation does not go past bytes that an interrupted call had taken."""
    with talking() as (shared, talk, peer):
        operations.keep_for_next(shared._kernel, Kept(b"abc"))
        peer.sendall(b"def")
        assert talk.polled not in (SIZE, BUSY)
        assert [shared.recv(SIZE), shared.recv(SIZE)] == [b"abc", b"def"]


def answered(ours: ss.SharedSocket, peer: socket.socket, bufsize: int) -> bytes:
    """Return what a receive that has to wait gives."""
    call = stage.Call(ours.recv, bufsize)
    stage.wait_for(lambda: ours._kernel.waiters or ours._talk.is_busy, "the receive to block")  # type: ignore[arg-type, return-value]
    peer.sendall(b"xyz")
    said: bytes = call.outcome()
    return said


@pytest.mark.rule("CLOSE-20")
def test_the_face_converses_until_the_terms_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "SLOW_TURN_S", 60.0)  # these turns wait for threads to start
    monkeypatch.setattr(conversation, "_PROBE_EVERY", 16)
    ours, peer = map(ss.adopt, socket.socketpair())
    with ours, peer:
        assert [answered(ours, peer, 3) for _ in range(3)] == [b"xyz"] * 3
        assert ours._talk.polled == 3
        assert [answered(ours, peer, 3) for _ in range(35)] == [b"xyz"] * 35, "probes come between"
        assert ours._talk.polled == 3
        assert answered(ours, peer, 2) == b"xy"
        assert ours.recv(8) == b"z"
        assert [answered(ours, peer, 3) for _ in range(3)] == [b"xyz"] * 3
        ours.settimeout(60)
        assert ours._talk.polled != 3
        assert [answered(ours, peer, 3) for _ in range(3)] == [b"xyz"] * 3
        assert ours._talk.polled == 3, "with a timeout as well"
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(3)


def test_when_data_is_there_before_the_wait_receives_try_first_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with talking() as (shared, talk, peer):
        peer.sendall(STREAM[: 290 * SIZE])
        assert b"".join(shared.recv(SIZE) for _ in range(288)) == STREAM[: 288 * SIZE]
        assert talk.polled == SIZE, "the first 257 are not probed, and 31 finds are chance"
        assert b"".join(shared.recv(SIZE) for _ in range(2)) == STREAM[288 * SIZE : 290 * SIZE]
        assert talk.polled not in (SIZE, BUSY)
        assert shared._calm


def test_slow_turns_are_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their times are told exactly, and what a conversation saves is nothing to them."""
    monkeypatch.setattr(conversation, "SLOW_TURN_S", 0.0)
    ours, peer = map(ss.adopt, socket.socketpair())
    with ours, peer:
        assert [answered(ours, peer, 3) for _ in range(5)] == [b"xyz"] * 5
        assert ours._talk is SILENT
        talk = talk_on(ours)
        peer.sendall(STREAM[: 257 * SIZE])
        assert b"".join(ours.recv(SIZE) for _ in range(257)) == STREAM[: 257 * SIZE]
        assert talk.polled not in (SIZE, BUSY)
