"""LINGER(t): the last close waits until the peer's transport has everything; at t it resets. Or it is refused.

Source: LPWSPCLOSESOCKET, Remarks, the table; "Graceful Shutdown, Linger Options, and Socket Closure in the SPI".
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import threading
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import closing, lingering
from sharedsock.testing import Aborted, Actor, Raised, Returned
from sharedsock.testing.observation import thread_facts
from tests.descriptors import kinds
from tests.descriptors.sharers import give

SHORT_S = 0.2
LONG_S = 30  # no test waits for it
QUEUED = 1 << 18


def set_short_linger(shared: ss.SharedSocket, linger_s: float = SHORT_S) -> None:
    """SO_LINGER counts whole seconds; a test does not want to wait for one."""
    local = shared._descriptor.local
    shared._descriptor.local = dataclasses.replace(local, linger_s=linger_s)  # type: ignore[arg-type]  # a fraction


@pytest.mark.fault("F-65")
@pytest.mark.rule("LINGER-7", "CLOSE-10")
def test_when_the_time_is_over_the_connection_is_reset_before_close_returns(bounds: Any) -> None:
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        queued = kinds.queue(pair.local, QUEUED)
        set_short_linger(pair.local)
        took: list[float] = []
        kinds.timed(pair.local.close, took)
        assert took[0] >= SHORT_S
        bounds.check("T_abort", took[0] - SHORT_S)
        assert kinds.is_reset(pair.peer), "reset when close returned, not later"
        with pytest.raises(ConnectionResetError):
            assert len(kinds.receive_all(pair.peer)) < queued


@pytest.mark.fault("F-65")
@pytest.mark.rule("LINGER-7", "LINGER-12")
def test_a_shared_socket_lingers_at_its_last_close_with_the_time_another_holder_set(
    company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        give(pair.local, a, b)
        a.do("set_linger", True, 1)
        b.do("call_with", kinds.queue_in, QUEUED)
        first = a.thread("closer").close()
        assert first.outcome() == Returned()
        assert first.ended_s - first.began_s < 1.0, "no wait but at the last close"
        assert kinds.is_quiet(pair.peer)
        last = b.thread("closer").close()
        assert last.outcome() == Returned()
        assert last.ended_s - last.began_s >= 1.0
        bounds.check("T_abort", last.ended_s - last.began_s - 1.0)
        assert kinds.is_reset(pair.peer)


@pytest.mark.fault("F-65")
@pytest.mark.rule("LINGER-6", "LINGER-8")
def test_a_close_returns_as_soon_as_the_peer_s_transport_has_everything() -> None:
    """Acknowledged is enough: the peer's application has read nothing."""
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, LONG_S)
        pair.local.sendall(b"x" * 1000)
        took: list[float] = []
        kinds.timed(pair.local.close, took)
        assert took[0] < LONG_S / 2
        assert kinds.receive_all(pair.peer) == b"x" * 1000


@pytest.mark.rule("LINGER-6")
def test_a_close_waits_for_a_slow_peer_and_returns_right_then(bounds: Any) -> None:
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        kinds.set_linger(pair.local, LONG_S)
        queued = kinds.queue(pair.local, 1 << 20)
        closed_s: list[float] = []

        def close() -> None:
            pair.local.close()
            closed_s.append(monotonic())

        closer = threading.Thread(target=close)
        closer.start()
        assert closer.native_id is not None
        while closer.is_alive() and not thread_facts(os.getpid(), closer.native_id).is_waiting:
            os.sched_yield()
        assert not closed_s
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)
        read_s = monotonic()
        closer.join(60)
        bounds.check("T_abort", closed_s[0] - read_s)


@pytest.mark.rule("LINGER-7")
def test_a_peer_that_has_ended_its_own_direction_is_waited_for_all_the_same() -> None:
    """Once both sides have sent FIN the socket is hung up for poll, though bytes are still on their way."""
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        pair.peer.shutdown(socket.SHUT_WR)
        assert pair.local.recv(1) == b""
        kinds.queue(pair.local, QUEUED)
        set_short_linger(pair.local)
        took: list[float] = []
        kinds.timed(pair.local.close, took)
        assert took[0] >= SHORT_S
        assert kinds.is_reset(pair.peer)


@pytest.mark.rule("LINGER-6")
def test_a_reset_by_the_peer_ends_the_wait() -> None:
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        kinds.set_linger(pair.local, LONG_S)
        kinds.queue(pair.local, QUEUED)
        closer = threading.Thread(target=pair.local.close)
        closer.start()
        while not pair.local._descriptor.is_closed:
            os.sched_yield()
        kinds.set_linger(pair.peer, 0)
        pair.peer.close()
        closer.join(60)
        assert not closer.is_alive()


@pytest.mark.rule("LINGER-6", "REF-7")
def test_unread_input_does_not_turn_a_linger_that_succeeded_into_a_reset() -> None:
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 5)
        pair.peer.sendall(b"never read")
        kinds.wait_event(pair.local)
        pair.local.sendall(b"answer")
        pair.local.close()
        assert kinds.receive_all(pair.peer) == b"answer"


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("LINGER-4", "LINGER-5", "CLOSE-9", "REF-6")
def test_a_refused_close_has_changed_nothing() -> None:
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        local = pair.local
        queued = kinds.queue(local, QUEUED)
        kinds.set_linger(local, LONG_S)
        local.settimeout(None)
        aborted: list[BaseException] = []
        reader = threading.Thread(target=lambda: _catch(lambda: local.recv(1), aborted))
        reader.start()
        while not local.pending_operations():
            os.sched_yield()
        local.settimeout(0)
        number, references = local.fileno(), local.references()
        for _ in range(3):
            with pytest.raises(BlockingIOError) as caught:
                local.close()
            assert caught.value.winerror == 10035  # type: ignore[attr-defined]  # typeshed: Windows only
            assert caught.value.errno == errno.EAGAIN
        assert (local.fileno(), local.references()) == (number, references)
        assert local.pending_operations(), "nothing was aborted"
        assert kinds.is_quiet(pair.peer), "no disconnect was begun"
        pair.peer.sendall(b"z")
        reader.join(60)
        assert not aborted
        assert len(kinds.drain_bytes(pair.peer, queued)) == queued
        while _is_unsent(local):
            os.sched_yield()
        local.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.rule("LINGER-4", "LINGER-5")
@pytest.mark.parametrize("cure", ["DONTLINGER", "LINGER(0)", "a blocking mode"])
def test_what_cures_a_refusal(cure: str) -> None:
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        local = pair.local
        queued = kinds.queue(local, QUEUED)
        kinds.set_linger(local, LONG_S)
        local.setblocking(False)
        with pytest.raises(BlockingIOError):
            local.close()
        if cure == "DONTLINGER":
            kinds.set_linger(local, None)
            local.close()
            assert kinds.receive_all(pair.peer) == kinds.payload(queued)
        elif cure == "LINGER(0)":
            kinds.set_linger(local, 0)
            local.close()
            assert kinds.is_reset(pair.peer)
        else:
            local.setblocking(True)
            set_short_linger(local)
            local.close()
            assert kinds.is_reset(pair.peer)


@pytest.mark.rule("LINGER-4", "LINGER-13", "REF-6")
def test_only_the_last_close_is_refused_and_the_count_stays(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        give(pair.local, a, b)
        a.do("set_linger", True, LONG_S)
        for actor in (a, b):
            actor.do("set_timeout", 0.0)
        b.do("call_with", kinds.queue_in, QUEUED)
        assert a.thread("closer").close().outcome() == Returned(), "not the last: never refused"
        assert b.thread("closer").close().outcome() == Raised("BlockingIOError", 10035, errno.EAGAIN)
        assert b.do("references") == 1
        # The answer bound until the refusal took it back: another holder can still come and go.
        b.give_to(a)
        assert b.do("references") == 2
        a.close()
        assert b.do("references") == 1
        b.do("set_linger", True, 0)
        b.close()
        assert kinds.is_reset(pair.peer)


@pytest.mark.rule("LINGER-4")
def test_nothing_left_to_send_is_not_refused() -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.local.setblocking(False)
        kinds.set_linger(pair.local, LONG_S)
        pair.local.send(b"x")
        while _is_unsent(pair.local):
            os.sched_yield()
        pair.local.close()
        assert kinds.receive_all(pair.peer) == b"x"


@pytest.mark.rule("LINGER-2", "LINGER-4")
@pytest.mark.parametrize("is_blocking", [True, False])
@pytest.mark.parametrize("how", ["with", "del", "abort"])
def test_leaving_a_block_collection_and_abort_never_refuse_nor_wait(how: str, is_blocking: bool) -> None:
    """They act as DONTLINGER; only abort() is a close like any other where waiting is allowed."""
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        queued = kinds.queue(pair.local, 1 << 20)
        waits = how == "abort" and is_blocking
        set_short_linger(pair.local, SHORT_S if waits else LONG_S)
        pair.local.setblocking(is_blocking)
        took: list[float] = []
        if how == "with":
            kinds.timed(lambda: pair.local.__exit__(None, None, None), took)
        elif how == "abort":
            kinds.timed(pair.local.abort, took)
        else:
            kinds.timed(lambda: closing.collect(pair.local._descriptor), took)
        assert pair.local.fileno() == -1
        if waits:
            assert took[0] >= SHORT_S
            assert kinds.is_reset(pair.peer)
        else:
            assert took[0] < LONG_S / 2
            assert kinds.receive_all(pair.peer) == kinds.payload(queued)


def _catch(call: Any, into: list[BaseException]) -> None:
    try:
        call()
    except BaseException as error:
        into.append(error)


def _is_unsent(local: ss.SharedSocket) -> bool:
    return lingering.has_unsent(local._descriptor.kernel)


@pytest.mark.rule("CLOSE-20", "CLOSE-32", "LINGER-7")
def test_a_linger_wait_has_ended_the_operations_first(company: tuple[Actor, Actor], bounds: Any) -> None:
    a, _ = company
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        give(pair.local, a)
        a.do("set_linger", True, LONG_S)
        queued = a.do("call_with", kinds.queue_in, QUEUED)
        reading = a.thread("caller").recv(1)
        a.wait_until_blocked("caller")
        closing = a.thread("closer").close()
        assert reading.outcome() == Aborted(10004)
        assert not closing.is_done()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)
        assert closing.outcome() == Returned()
        bounds.check("T_abort", reading.ended_s - closing.began_s)
