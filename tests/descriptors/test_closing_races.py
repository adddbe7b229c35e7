"""A close against an operation that completes in the same instant: taken and returned, or left; never lost or doubled.

Each race is two barriers, in both orders. Rule 1: an operation can be aborted only while it waits. Rule 2: what it has
taken when the close comes is its result.

Source: "Closing Sockets" (Winsock SPI); spec/fault-catalogue.md, F-39 to F-46.
"""

from __future__ import annotations

import os
import resource
import select
import tempfile
import threading
from time import process_time
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import transfer
from sharedsock.testing import Aborted, Accepted, Actor, Pending, Received, Returned
from sharedsock.testing.commands import Belongings
from sharedsock.testing.observation import files
from tests.descriptors import kinds
from tests.descriptors.sharers import give

RECEIVING = ["tcp4", "unix-stream", "udp4", "unix-dgram"]


# -- F-39, F-41: data, or a client, and the close in one instant ----------------------------------------------------


@pytest.mark.fault("F-39")
@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("kind", RECEIVING)
def test_a_reader_that_is_woken_by_data_and_finds_the_close_leaves_the_data_to_others(
    kind: str, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        give(pair.local, a, b)
        reading = a.thread("caller").recv(16)
        a.wait_until_blocked("caller")
        with a.hold_at("op.ready", "caller") as woken, a.hold_at("close.drained") as drained:
            pair.peer.send(b"tagged")
            woken.wait_reached()
            closing = _close_behind(a)
            woken.release()
            assert reading.outcome() == Aborted(10004)
            drained.wait_reached()
        assert closing.outcome() == Returned()
        assert b.recv(16) == b"tagged"
        b.close()


@pytest.mark.fault("F-39")
@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("kind", RECEIVING)
def test_a_reader_that_has_taken_the_data_when_the_close_comes_returns_it(
    kind: str, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        give(pair.local, a, b)
        reading = a.thread("caller").recv(16)
        a.wait_until_blocked("caller")
        with a.hold_at("op.done", "caller") as done:
            pair.peer.send(b"tagged")
            done.wait_reached()
            closing = _close_behind(a)
            done.release()
        assert reading.outcome() == Received(b"tagged")
        assert closing.outcome() == Returned()
        pair.peer.send(b"next")
        assert b.recv(16) == b"next", "nothing twice"
        b.close()


@pytest.mark.fault("F-41")
@pytest.mark.rule("CLOSE-20", "CLOSE-40")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_client_won_as_the_close_comes_is_returned_and_never_reset(kind: str, company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.listener_of(kind) as listener:
        with a.hold_at("op.done", "caller", kind="accept") as done:
            a.do("take", listener.share(a.pid))
            accepting = a.thread("caller").accept()
            a.wait_until_blocked("caller")
            with kinds.client_of(listener) as client:
                done.wait_reached()
                closing = _close_behind(a)
                done.release()
                assert isinstance(accepting.outcome(), Accepted)
                assert closing.outcome() == Returned()
                a.sendall(b"yours", on="client")
                assert client.recv(5) == b"yours"
                a.close(on="client")


@pytest.mark.fault("F-39", "F-41")
@pytest.mark.rule("CLOSE-31")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_an_accepter_that_is_woken_by_a_client_and_finds_the_close_leaves_it_to_others(
    kind: str, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener:
        for actor in (a, b):
            actor.do("take", listener.share(actor.pid))
        accepting = a.thread("caller").accept()
        a.wait_until_blocked("caller")
        with a.hold_at("op.ready", "caller") as woken, kinds.client_of(listener) as client:
            woken.wait_reached()
            closing = _close_behind(a)
            woken.release()
            assert accepting.outcome() == Aborted(10004)
            assert closing.outcome() == Returned()
            assert isinstance(b.thread("caller").accept().outcome(), Accepted)
            b.sendall(b"mine", on="client")
            assert client.recv(4) == b"mine"
            b.close(on="client")
        b.close()


_kernels: list[Any] = []


def _remember_kernel(has: Belongings) -> None:
    """Keep what a close marks: afterwards the descriptor no longer leads to it."""
    _kernels.append(transfer.require_kernel(has.shared("socket")._descriptor))


def _wait_aborted() -> None:
    kernel = _kernels.pop()
    while kernel.aborted is None:
        os.sched_yield()


def _close_behind(actor: Actor) -> Pending:
    """Begin a close while a thread of the actor is held inside an operation; return once the mark is made."""
    actor.do("call_with", _remember_kernel)
    closing = actor.thread("closer").close()
    actor.call(_wait_aborted)
    return closing


# -- F-40: ready, and then another process was faster ---------------------------------------------------------------


def _fill_in(has: Belongings, on: str = "socket") -> int:
    return kinds.fill(has[on])


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("kind", RECEIVING)
def test_data_another_process_has_taken_is_waited_for_again_and_the_wait_can_be_ended(
    kind: str, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        give(pair.local, a, b)
        reading = a.thread("caller").recv(16)
        a.wait_until_blocked("caller")
        with a.hold_at("op.ready", "caller") as woken:
            pair.peer.send(b"for B")
            woken.wait_reached()
            assert b.recv(16) == b"for B"
        a.wait_until_blocked("caller")
        a.close()
        assert reading.outcome() == Aborted(10004)
        b.close()


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_client_another_process_has_taken_is_waited_for_again(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener:
        for actor in (a, b):
            actor.do("take", listener.share(actor.pid))
        accepting = a.thread("caller").accept()
        a.wait_until_blocked("caller")
        with a.hold_at("op.ready", "caller") as woken, kinds.client_of(listener):
            woken.wait_reached()
            assert isinstance(b.thread("caller").accept().outcome(), Accepted)
        a.wait_until_blocked("caller")
        a.close()
        assert accepting.outcome() == Aborted(10004)
        b.close(on="client")
        b.close()


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_room_another_process_has_filled_is_waited_for_again(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of(kind, send_buffer=8192, receive_buffer=4096) as pair:
        queued = kinds.fill(pair.local)
        give(pair.local, a, b)
        sending = a.thread("caller").send(b"late")
        a.wait_until_blocked("caller")
        with a.hold_at("op.ready", "caller") as woken:
            kinds.drain(pair.peer, queued)
            woken.wait_reached()
            b.do("call_with", _fill_in)
        a.wait_until_blocked("caller")
        a.close()
        assert sending.outcome() == Aborted(10004)
        b.close()


# -- F-43: half sent ------------------------------------------------------------------------------------------------

BIG = 1 << 22


def _sendall_cut(has: Belongings, how: str) -> tuple[str, int]:
    """Send more than there is room for; return how it ended, and how many bytes the error says were queued."""
    data = kinds.payload(BIG)
    try:
        if how == "sendall":
            has["socket"].sendall(data)
        else:
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.flush()
                has["socket"].sendfile(file)
    except ss.OperationAborted as error:
        return error.operation, error.bytes_transferred
    return "sent", len(data)


@pytest.mark.fault("F-43")
@pytest.mark.rule("CLOSE-32")
@pytest.mark.parametrize("how", ["sendall", "sendfile"])
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_a_send_aborted_half_way_says_how_much_of_it_the_peer_gets(
    kind: str, how: str, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.pair_of(kind, send_buffer=1 << 16, receive_buffer=1 << 15) as pair:
        give(pair.local, a, b)
        sending = a.thread("caller").do("call_with", _sendall_cut, how)
        first = kinds.drain_bytes(pair.peer, 100_000)  # in the middle of the stream
        a.wait_until_blocked("caller")
        a.close()
        kind_of_operation, queued = sending.value()
        assert (kind_of_operation, queued < BIG) == (how, True)
        b.close()
        assert first + kinds.receive_all(pair.peer) == kinds.payload(BIG)[:queued]


@pytest.mark.fault("F-43")
@pytest.mark.rule("CLOSE-32")
def test_bytes_of_an_aborted_send_follow_the_linger_rules_of_the_last_close(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4", send_buffer=1 << 16, receive_buffer=4096) as pair:
        kinds.set_linger(pair.local, 0)
        give(pair.local, a)
        sending = a.thread("caller").do("call_with", _sendall_cut, "sendall")
        a.wait_until_blocked("caller")
        a.close()
        assert sending.value()[1] > 0
        assert kinds.is_reset(pair.peer)


# -- F-45: many -----------------------------------------------------------------------------------------------------

MANY = 1000
T_ABORT_S = 0.05
LOADED = 16  # a thousand threads contend for the interpreter, on a machine others load


def _abort_many(has: Belongings, handles: int, threads: int) -> tuple[float, int]:
    """Block `threads` threads on each of `handles` sockets, close all; return the longest time from close to abort.

    In processor time of this process: a thousand threads take turns with whoever else wants the processor.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(256 << 10)
    pairs = [ss.socketpair() for _ in range(handles)]
    aborted: list[tuple[ss.SharedSocket, float]] = []

    def read(local: ss.SharedSocket) -> None:
        try:
            local.recv(1)
        except (ss.OperationAborted, ss.NotASocket):  # the latter: registered, and not yet waiting
            aborted.append((local, process_time()))

    readers = [threading.Thread(target=read, args=(local,)) for local, _ in pairs for _ in range(threads)]
    for reader in readers:
        reader.start()
    while sum(len(local._descriptor.kernel.waiters) for local, _ in pairs) < len(readers):
        os.sched_yield()
    began_s = {}
    for local, _ in pairs:
        began_s[local] = process_time()
        local.close()
    for reader in readers:
        reader.join()
    for _, peer in pairs:
        peer.close()
    threading.stack_size(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(ended_s - began_s[local] for local, ended_s in aborted), len(aborted)


@pytest.mark.fault("F-45")
@pytest.mark.parametrize(("handles", "threads"), [(1, MANY), (MANY, 1)])
def test_a_thousand_waiters_are_aborted_and_nothing_of_them_stays(
    handles: int, threads: int, company: tuple[Actor, Actor]
) -> None:
    a, _ = company
    a.do("call_with", _abort_many, 1, 1)  # opens what the package keeps for the life of a process
    before = files(a.pid)
    took_s, count = a.thread("main").do("call_with", _abort_many, handles, threads).value(60.0)
    assert count == MANY
    assert took_s < LOADED * 4 * T_ABORT_S
    assert files(a.pid) == before


# -- F-46: the operation ends by itself while the close is about to wake it -----------------------------------------

_watched: list[int] = []


def _take_numbers() -> None:
    """Open many files, so that a number that was freed too early is a stranger's by now."""
    _watched.extend(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(100))


def _touched() -> int:
    """Count strangers that somebody has woken, and close them all."""
    poll = select.poll()
    for number in _watched:
        poll.register(number, select.POLLIN)
    touched = len(poll.poll(0))
    while _watched:
        os.close(_watched.pop())
    return touched


@pytest.mark.fault("F-46")
@pytest.mark.parametrize("point", ["close.marked", "close.drained", "close.fd_closed", "close.ended"])
def test_the_wake_up_of_a_close_reaches_no_stranger(point: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, a, b)
        reading = a.thread("caller").recv(16)
        a.wait_until_blocked("caller")
        with a.hold_at(point) as held:
            closing = a.thread("closer").close()
            held.wait_reached()
            pair.peer.send(b"x")
            if point == "close.marked":  # marked, not woken yet: the reader ends by the data
                assert reading.outcome() in (Received(b"x"), Aborted(10004))
            else:
                assert reading.outcome() == Aborted(10004)
            a.call(_take_numbers)
        assert closing.outcome() == Returned()
        assert a.call(_touched) == 0
        b.close()
