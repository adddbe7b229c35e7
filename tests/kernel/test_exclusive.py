"""An exclusive socket, which only this process can hold: its receives may wait in the kernel, for a moment each.

All that is promised of a conversation holds (test_conversation.py); and nothing of it is seen by anybody else.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import options
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import conversation, exclusive, operations
from sharedsock.kernel.conversation import BUSY, SILENT, Conversation
from sharedsock.kernel.exclusive import MOMENT_S
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import ForkedDescriptor, NotASocket, OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.interrupted import come_out_whole

SIZE = 3
TIMEVAL = 16
T_ABORT_S = 0.05


def hold(shared: ss.SharedSocket, timeout_s: float | None = None) -> Conversation:
    """Begin a conversation of receives of SIZE bytes now, as if one had waited."""
    kernel = shared._kernel
    kinds.waker_of(kernel)
    shared._calm, kernel.streak = False, 1
    talk = shared._talk = conversation.begin(kernel, SIZE, DONTWAIT, timeout_s)
    assert talk.size == SIZE
    return talk


@contextmanager
def holding(timeout_s: float | None = None) -> Iterator[tuple[ss.SharedSocket, Conversation, ss.SharedSocket]]:
    shared, peer = ss.socketpair()
    with shared, peer:
        shared.settimeout(timeout_s)
        yield shared, hold(shared, timeout_s), peer


def waits_in_the_kernel(shared: ss.SharedSocket) -> bool:
    number = shared._kernel.number
    timeval = shared._kernel.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL)
    assert os.get_blocking(number) == any(timeval), "both or neither"
    return os.get_blocking(number)


def instead(talk: Conversation, receive: Callable[[], bytes]) -> None:
    """Have the next receive be this one."""

    def arrivals() -> Iterator[bytes]:
        yield receive()

    talk.arrivals = arrivals()


def hold_inside(talk: Conversation) -> tuple[threading.Event, threading.Event]:
    """Hold the next receive in the kernel; return what it sets there, and what lets it go on."""
    held, go = threading.Event(), threading.Event()

    def take() -> bytes:
        held.set()
        go.wait(stage.PATIENCE_S)
        return talk.kernel.recv(SIZE)

    instead(talk, take)
    return held, go


# -- which sockets ------------------------------------------------------------------------------------------------


def connected() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    with ss.create_server(("127.0.0.1", 0)) as listener:
        client = ss.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def constructed() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    with ss.create_server(("127.0.0.1", 0)) as listener:
        client = ss.SharedSocket()
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


def adopted() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    ours, peer = socket.socketpair()
    return ss.adopt(ours), ss.adopt(peer)


def taken_over() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    ours, peer = socket.socketpair()
    return ss.SharedSocket(fileno=ours.detach()), ss.SharedSocket(fileno=peer.detach())


def redeemed() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    ours, peer = ss.socketpair()
    with ours:
        return ss.fromshare(ours.share(os.getpid())), peer


def converse(ours: ss.SharedSocket, peer: ss.SharedSocket) -> None:
    """Have receives that wait become a conversation, if they may."""
    for _ in range(3):
        call = stage.Call(ours.recv, SIZE)
        call.wait_blocked(ours._kernel)
        peer.sendall(b"abc")
        assert call.outcome() == b"abc"


@pytest.mark.parametrize("made", [ss.socketpair, connected, constructed])
def test_what_this_process_has_opened_waits_in_the_kernel(
    made: Callable[[], tuple[ss.SharedSocket, ss.SharedSocket]],
) -> None:
    for turn in (0, 1):
        pair = made()
        ours, peer = pair[turn], pair[1 - turn]
        with ours, peer:
            converse(ours, peer)
            assert ours._talk.size == SIZE
            assert waits_in_the_kernel(ours)


@pytest.mark.rule("DUP-1")
@pytest.mark.parametrize("made", [adopted, taken_over, redeemed])
def test_what_somebody_else_may_hold_never_does(made: Callable[[], tuple[ss.SharedSocket, ss.SharedSocket]]) -> None:
    ours, peer = made()
    with ours, peer:
        converse(ours, peer)
        assert not waits_in_the_kernel(ours)
        assert ours._talk.size != SIZE


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_messages_are_polled_for(kind: int) -> None:
    ours, peer = ss.socketpair(socket.AF_UNIX, kind)
    with ours, peer:
        converse(ours, peer)
        assert not waits_in_the_kernel(ours)


# -- nobody else sees it ------------------------------------------------------------------------------------------


def send_a_file(shared: ss.SharedSocket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"data")
        file.flush()
        shared.sendfile(file, 0)


def lend_to_a_program(shared: ss.SharedSocket) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
        shared.lend(program.pid)
        program.communicate(b"\n")


TOLD: dict[str, Callable[[ss.SharedSocket], Any]] = {
    "fileno": ss.SharedSocket.fileno,
    "share": lambda shared: ss.revoke(shared.share(None)),
    "ticket": lambda shared: shared.ticket().revoke(),
    "lend": lend_to_a_program,
    "dup": lambda shared: shared.dup().close(),
    "set_inheritable": lambda shared: shared.set_inheritable(True),
    "sendfile": send_a_file,
    "SO_RCVTIMEO": lambda shared: shared.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL),
    "SO_RCVLOWAT": lambda shared: shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2),
}


@pytest.mark.fault("F-57")
@pytest.mark.parametrize("how", TOLD)
def test_before_anybody_else_can_hold_it_it_is_nonblocking_for_good(how: str) -> None:
    with holding() as (shared, talk, peer):
        assert waits_in_the_kernel(shared)
        TOLD[how](shared)
        assert not waits_in_the_kernel(shared)
        assert talk.size not in (SIZE, BUSY)
        converse(shared, peer)
        assert not waits_in_the_kernel(shared), "for good"


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_number_given_away_has_its_mode_and_its_timeouts(is_blocking: bool) -> None:
    with holding() as (shared, _, _):
        shared.setblocking(is_blocking)
        with socket.socket(fileno=shared.detach()) as plain:
            assert os.get_blocking(plain.fileno()) == is_blocking
            assert not any(plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL))


def test_a_timeout_that_the_program_has_set_itself_stays_as_it_was() -> None:
    with holding() as (shared, _, peer):
        mine = struct.pack("ll", 7, 0)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, mine)
        converse(shared, peer)
        assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL) == mine


@pytest.mark.fault("F-86")
def test_a_forked_child_leaves_the_mode_alone_and_is_refused() -> None:
    with holding() as (shared, talk, peer):
        child = os.fork()
        if not child:
            try:
                exclusive.expose(talk.kernel)
                shared.recv(SIZE)
            except ForkedDescriptor:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert waits_in_the_kernel(shared)
        peer.sendall(b"abc")
        assert shared.recv(SIZE) == b"abc"


# -- all that is promised -----------------------------------------------------------------------------------------


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_wherever_an_interrupt_can_fall_the_stream_comes_out_whole(timeout_s: float | None) -> None:
    with holding(timeout_s) as (shared, _, peer):
        struck = come_out_whole(
            shared._kernel,
            SIZE,
            peer.sendall,
            lambda: shared.recv(SIZE),
            prepare=lambda: hold(shared, timeout_s),
            is_idle=lambda: not shared._talk.is_busy and not shared.pending_operations(),
        )
        assert struck, "the start at least"


@pytest.mark.fault("F-50")
def test_a_renewal_loses_nothing_to_an_interrupt() -> None:
    with holding() as (shared, _, peer):
        struck = come_out_whole(
            shared._kernel,
            SIZE,
            peer.sendall,
            lambda: shared.recv(SIZE),
            prepare=lambda: setattr(hold(shared), "arrivals", iter(())),
            is_idle=lambda: not shared._talk.is_busy and not shared.pending_operations(),
        )
        assert len(struck) >= 2, "the start, and that of the renewal"


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.parametrize("moments", [0.0, 0.5, 3.0])
def test_a_close_ends_it_within_the_bound(timeout_s: float | None, moments: float) -> None:
    """Whether it still waits in the kernel, or has gone on to wait as ever."""
    with holding(timeout_s) as (shared, talk, peer):
        call = stage.Call(shared.recv, SIZE)
        stage.wait_for(lambda: talk.is_busy or bool(shared._kernel.waiters), "the call to block")
        began_s = monotonic()
        stage.wait_for(lambda: monotonic() - began_s >= moments * MOMENT_S, "some moments to pass")
        began_s = monotonic()
        shared.close()
        took_s = monotonic() - began_s
        assert call.error(OperationAborted).winerror == 10004
        assert took_s < 4 * T_ABORT_S
        assert shared._talk is SILENT
        with pytest.raises(NotASocket):
            shared.recv(SIZE)
        assert peer.recv(1) == b""


@pytest.mark.fault("F-38")
def test_a_close_ends_it_under_a_storm_of_signals() -> None:
    """Each one restarts the receive, and with it its moment; the close takes the ground from under that."""
    with holding() as (shared, talk, _):
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        closed: list[None] = []

        def close() -> None:
            stage.wait_for(lambda: talk.is_busy, "the main thread to wait in the kernel")
            shared.close()
            closed.append(None)

        signal.setitimer(signal.ITIMER_REAL, MOMENT_S / 5, MOMENT_S / 5)
        closer = stage.Call(close)
        try:
            with pytest.raises(OperationAborted):
                shared.recv(SIZE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
        closer.outcome()
        assert closed


@pytest.mark.fault("F-48", "F-39")
def test_a_closer_waits_for_the_one_inside_and_what_that_took_it_returns() -> None:
    """Success wins (rule 2), and the number stays the socket until it has left (rule 4)."""
    with holding() as (shared, talk, peer):
        kernel = shared._kernel
        held, go = hold_inside(talk)
        receiving = stage.Call(shared.recv, SIZE)
        peer.sendall(b"abc")
        assert held.wait(stage.PATIENCE_S)
        closing = stage.Call(shared.close)
        stage.wait_for(lambda: bool(kernel.closers), "the closer to wait")
        assert not kernel.is_buried
        go.set()
        closing.outcome()
        assert receiving.outcome() == b"abc"


@pytest.mark.fault("F-48")
def test_a_handler_that_closes_on_top_of_it_does_not_wait_for_itself() -> None:
    with holding() as (shared, talk, _):
        before = signal.signal(signal.SIGUSR1, lambda *_: shared.close())

        def close_and_receive() -> bytes:
            signal.raise_signal(signal.SIGUSR1)
            return talk.kernel.recv(SIZE)

        instead(talk, close_and_receive)
        try:
            with pytest.raises(OperationAborted):
                shared.recv(SIZE)
        finally:
            signal.signal(signal.SIGUSR1, before)


@pytest.mark.fault("F-42")
def test_a_close_just_as_its_moment_has_passed_is_an_abort_too() -> None:
    """It had waited already: 10004, not 10038."""
    with holding() as (shared, talk, _):

        def close_and_pass() -> bytes:
            closer = threading.Thread(target=shared.close)
            closer.start()
            stage.wait_for(lambda: bool(talk.kernel.closers), "the closer to wait")
            raise BlockingIOError

        instead(talk, close_and_pass)
        with pytest.raises(OperationAborted) as caught:
            shared.recv(SIZE)
        assert caught.value.winerror == 10004


def test_what_has_not_come_in_a_moment_is_waited_for_as_ever() -> None:
    with holding() as (shared, talk, peer):
        call = stage.Call(shared.recv, SIZE)
        stage.wait_for(lambda: bool(shared._kernel.waiters), "its moment to pass")
        (waits,) = shared.pending_operations()
        assert (waits.kind, waits.thread) == ("recv", "caller")
        peer.sendall(b"abc")
        assert call.outcome() == b"abc"
        assert talk.size == SIZE, "the next one waits in the kernel again"


@pytest.mark.fault("F-47")
def test_a_timeout_is_not_early_and_hardly_late() -> None:
    with holding(0.2) as (shared, _, _):
        began_s = monotonic()
        with pytest.raises(TimeoutError) as caught:
            shared.recv(SIZE)
        assert 0.2 <= monotonic() - began_s < 4 * (0.2 + 3 * MOMENT_S)
        assert caught.value.winerror == 10060  # type: ignore[attr-defined]  # typeshed: Windows only


def test_a_short_timeout_is_polled_for() -> None:
    ours, peer = ss.socketpair()
    with ours, peer:
        converse(ours, peer)
        ours.settimeout(0.02)
        kinds.waker_of(ours._kernel)
        ours._kernel.streak = 2
        assert conversation.begin(ours._kernel, SIZE, DONTWAIT, 0.02).size != SIZE


def test_another_size_is_the_same_conversation() -> None:
    with holding() as (shared, talk, peer):
        shared._kernel.streak = 1
        peer.sendall(b"abcdefgh")
        assert conversation.begin(shared._kernel, 5, DONTWAIT, None) is talk
        assert [shared.recv(5), shared.recv(5)] == [b"abcde", b"fgh"]


@pytest.mark.fault("F-48")
def test_whoever_comes_second_takes_the_long_way() -> None:
    with holding() as (shared, talk, peer):
        kernel = shared._kernel
        held, go = hold_inside(talk)
        first = stage.Call(shared.recv, SIZE, name="first")
        assert held.wait(stage.PATIENCE_S)
        second = stage.Call(shared.recv, SIZE, name="second")
        stage.wait_for(lambda: bool(kernel.waiters), "the second to block")
        assert {row.thread for row in shared.pending_operations()} == {"first", "second"}
        peer.sendall(b"abcdef")
        go.set()
        assert {first.outcome(), second.outcome()} == {b"abc", b"def"}


def reset(peer: ss.SharedSocket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


ENDS: dict[str, tuple[Callable[[ss.SharedSocket, ss.SharedSocket], object], int | None]] = {
    "FIN": (lambda ours, peer: peer.shutdown(socket.SHUT_WR), None),
    "reset": (lambda ours, peer: reset(peer), 10054),
    "our SD_RECEIVE": (lambda ours, peer: ours.shutdown(socket.SHUT_RD), 10058),
}


@pytest.mark.rule("SHUT-2", "SHUT-13", "SHUT-14")
@pytest.mark.parametrize("how", ENDS)
def test_its_end_is_told_by_its_right_name(how: str) -> None:
    end, number = ENDS[how]
    ours, peer = connected()
    with ours, peer:
        talk = hold(ours)

        def end_and_receive() -> bytes:
            end(ours, peer)
            return talk.kernel.recv(SIZE)

        instead(talk, end_and_receive)
        if number is None:
            assert ours.recv(SIZE) == b""
        else:
            with pytest.raises((BrokenPipeError, ConnectionResetError)) as caught:
                ours.recv(SIZE)
            assert caught.value.winerror == number  # type: ignore[attr-defined]  # typeshed: Windows only
        assert not talk.is_busy


@pytest.mark.fault("F-48")
def test_who_has_left_and_finds_a_reset_does_not_say_that_the_next_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an empty receive means is asked outside: another thread may be inside by then, and a close waits for it."""
    with holding() as (shared, talk, _):

        def come_in_and_fail(_: object) -> None:
            talk.size = BUSY  # another thread
            raise ConnectionResetError

        monkeypatch.setattr(options, "verdict_on_empty", come_in_and_fail)
        instead(talk, lambda: b"")
        with pytest.raises(ConnectionResetError):
            shared.recv(SIZE)
        assert talk.is_busy
        talk.leave()


@pytest.mark.fault("F-50")
def test_what_an_interrupted_call_has_kept_comes_first() -> None:
    with holding() as (shared, talk, peer):
        operations.keep_for_next(shared._kernel, Kept(b"abc"))
        peer.sendall(b"def")
        assert talk.size not in (SIZE, BUSY)
        assert [shared.recv(SIZE), shared.recv(SIZE)] == [b"abc", b"def"]


@pytest.mark.fault("F-55")
def test_a_number_closed_behind_our_back_is_told_and_no_stranger_is_touched() -> None:
    """`expose` meets it too, and leaves alone what it cannot reach."""
    ours, peer = ss.socketpair()
    with peer:
        talk = hold(ours)
        number = talk.kernel.number
        os.close(number)
        exclusive.expose(talk.kernel)
        assert not talk.kernel.is_exclusive
        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.recv(SIZE)
        assert not talk.is_busy
        with pytest.raises(ss.LostDescriptor):
            ours.close()
