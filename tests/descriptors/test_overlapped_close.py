"""A close completes the overlapped requests of its own process with 995, once each, and no other process's.

Source: LPWSPCLOSESOCKET, "pending overlapped operations"; "Closing Sockets" (Winsock SPI).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Aborted, Actor, Actors, Raised
from sharedsock.testing.observation import thread_facts
from tests.descriptors import kinds, requests, sharers
from tests.descriptors.requests import PATIENCE_S, error_of
from tests.descriptors.sharers import give

ON = "socket"


@pytest.fixture
def pair() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


def begin_in_both(a: Actor, b: Actor, call: str, *arguments: Any) -> None:
    for actor in (a, b):
        assert not actor.do("call_with", requests.begin, "it", call, *arguments, on=ON)


def close_in(actor: Actor, bounds: Any) -> None:
    """Close in one process; what was pending there has ended in time, and no thread is left."""
    bounds.check("T_abort", actor.do("call_with", requests.close_and_wait, "it", on=ON))


# -- this process's, and no other's -----------------------------------------------------------------------------------


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-22", "CLOSE-28")
@pytest.mark.parametrize("call", ["recv", "recvfrom"])
@pytest.mark.parametrize("kind", [*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS])
def test_a_close_ends_this_process_s_overlapped_receive_and_no_other_s(
    kind: str, call: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        give(pair.local, a, b)
        begin_in_both(a, b, call, 16)
        close_in(a, bounds)
        assert a.thread("main").do("call_with", requests.result_of, "it").outcome() == Aborted(995)
        assert not b.do("call_with", requests.is_done, "it")
        assert kinds.is_silent(pair.peer)
        pair.peer.send(b"for B")
        received = b.do("call_with", requests.result_of, "it")
        assert received == b"for B" if call == "recv" else received[0] == b"for B"
        b.close(on=ON)


@pytest.mark.fault("F-38", "F-43")
@pytest.mark.rule("CLOSE-22", "CLOSE-28", "CLOSE-32")
@pytest.mark.parametrize("call", ["send", "sendall"])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "unix-stream", "unix-seqpacket", "unix-dgram"])
def test_a_close_ends_this_process_s_overlapped_send_and_no_other_s(
    kind: str, call: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind, send_buffer=8192, receive_buffer=4096) as pair:
        queued = kinds.fill(pair.local)
        give(pair.local, a, b)
        for actor, data in ((a, b"aa"), (b, b"bb")):
            assert not actor.do("call_with", requests.begin, "it", call, data, on=ON)
        close_in(a, bounds)
        assert a.do("call_with", requests.sent_by, "it") == 0
        kinds.drain(pair.peer, queued)
        assert b.do("call_with", requests.result_of, "it") in (2, None)
        assert pair.peer.recv(16) == b"bb", "the aborted send has queued nothing"
        b.close(on=ON)


@pytest.mark.fault("F-43")
@pytest.mark.rule("CLOSE-32")
def test_the_bytes_of_an_aborted_send_are_reported_and_arrive(company: tuple[Actor, Actor], bounds: Any) -> None:
    a, b = company
    with kinds.pair_of("tcp4", send_buffer=8192, receive_buffer=4096) as pair:
        give(pair.local, a, b)
        data = bytes(range(256)) * 4096
        assert not a.do("call_with", requests.begin, "it", "sendall", data, on=ON)
        close_in(a, bounds)
        sent = a.do("call_with", requests.sent_by, "it")
        assert 0 < sent < len(data)
        b.close(on=ON)
        received = b""
        while chunk := pair.peer.recv(1 << 16):
            received += chunk
        assert received == data[:sent]


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-22", "CLOSE-31")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_close_ends_this_process_s_overlapped_accept_and_takes_no_client(
    kind: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener:
        address, family = listener.getsockname(), listener.family
        give(listener, a, b)
        begin_in_both(a, b, "accept")
        close_in(a, bounds)
        assert a.thread("main").do("call_with", requests.result_of, "it").outcome() == Aborted(995)
        with socket.socket(family) as client:
            client.settimeout(kinds.PEER_TIMEOUT_S)
            client.connect(address)
            b.do("call_with", requests.result_of, "it")
            b.sendall(b"hello", on="it")
            assert client.recv(16) == b"hello"
        b.close(on="it")
        b.close(on=ON)


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-22", "CLOSE-30")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_a_close_ends_this_process_s_overlapped_connect(kind: str, company: tuple[Actor, Actor], bounds: Any) -> None:
    a, b = company
    family = socket.AF_INET if kind == "tcp4" else socket.AF_UNIX
    with kinds.full_door(kind) as door, ss.SharedSocket(family, socket.SOCK_STREAM) as local:
        give(local, a, b)
        begin_in_both(a, b, "connect", door.getsockname())
        close_in(a, bounds)
        assert a.thread("main").do("call_with", requests.result_of, "it").outcome() == Aborted(995)
        assert not b.do("call_with", requests.is_done, "it")
        close_in(b, bounds)
        assert b.thread("main").do("call_with", requests.result_of, "it").outcome() == Aborted(995)


@pytest.mark.rule("CLOSE-28")
def test_the_death_of_a_process_ends_no_other_process_s_request(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair, Actors("fork") as others:
        (doomed,) = others.start("doomed")
        give(pair.local, a, doomed)
        begin_in_both(a, doomed, "recv", 16)
        doomed.kill()
        assert not a.do("call_with", requests.is_done, "it")
        pair.peer.send(b"go on")
        assert a.do("call_with", requests.result_of, "it") == b"go on"
        a.close(on=ON)


@pytest.mark.rule("OVERLAP-19", "LINGER-2")
def test_a_last_close_with_an_outstanding_receive_is_graceful(company: tuple[Actor, Actor], bounds: Any) -> None:
    """Windows may reset here; LINGER-2 is what is documented: queued data, then FIN."""
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, a)
        a.sendall(b"last words", on=ON)
        assert not a.do("call_with", requests.begin, "it", "recv", 16, on=ON)
        close_in(a, bounds)
        assert a.thread("main").do("call_with", requests.result_of, "it").outcome() == Aborted(995)
        assert pair.peer.recv(64) == b"last words"
        assert pair.peer.recv(64) == b""


@pytest.mark.rule("CLOSE-34")
def test_what_is_begun_after_the_close_is_not_started(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, a)
        a.close(on=ON)
        begun = a.thread("main").do("call_with", requests.begin, "it", "recv", 16, on=ON)
        assert begun.outcome() == Raised("NotASocket", 10038, 9)


# -- what the error says ---------------------------------------------------------------------------------------------


@pytest.mark.rule("CLOSE-22", "CLOSE-23", "CLOSE-27", "CLOSE-33")
def test_every_request_of_the_descriptor_ends_with_995_exactly_once(pair: kinds.Pair) -> None:
    told: list[Any] = []
    kinds.fill(pair.local)
    begun: list[Any] = [*(pair.local.begin_recv(16) for _ in range(3)), pair.local.begin_sendall(b"x" * 100)]
    for operation in begun:
        operation.add_done_callback(told.append)
    pair.local.close()
    for operation in begun:
        error = error_of(operation)
        assert isinstance(error, ss.OperationAborted)
        assert error.winerror == 995
        assert error.operation == operation.kind
        assert error.bytes_transferred == 0
        assert error.closed_by is not None
        assert "test_every_request" in error.closed_by
        assert operation.exception(0) is error, "asked again it does not block, and says the same"
        assert not operation.cancel()
        assert not operation.cancelled()
    requests.wait_service_idle()
    assert told == begun


@pytest.mark.rule("CLOSE-29")
def test_another_descriptor_of_this_process_keeps_its_requests(pair: kinds.Pair) -> None:
    with pair.local.dup() as other:
        ours, theirs = pair.local.begin_recv(16), other.begin_recv(16)
        pair.local.close()
        assert error_of(ours).winerror == 995
        assert not theirs.done()
        pair.peer.send(b"for the other")
        assert theirs.result(PATIENCE_S) == b"for the other"


@pytest.mark.parametrize("end", ["a result", "an error of its own", "995"])
def test_an_operation_that_has_ended_keeps_no_number(end: str, pair: kinds.Pair) -> None:
    """I5, I6: a number waits for its last frame only; an operation, and its error, may be kept for ever."""
    operation = pair.local.begin_recv(16)
    if end == "a result":
        pair.peer.send(b"x")
    elif end == "an error of its own":
        pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair.peer.close()
    if end != "995":
        operation.exception(PATIENCE_S)
    pair.local.close()
    operation.exception(PATIENCE_S)
    requests.wait_service_idle()
    assert ss.statistics().retiring == 0
    assert operation.done()


def test_a_service_that_waits_for_others_keeps_no_number_of_the_closed(pair: kinds.Pair) -> None:
    """I5, I6: the thread sleeps on, since another descriptor has a request; what it served last is none of its own."""
    with kinds.pair_of("unix-stream") as other:
        waiting = other.local.begin_recv(16)
        pair.local.begin_recv(16)
        pair.local.close()
        sharers.wait_until(lambda: ss.statistics().retiring == 0, "the last number")
        assert not waiting.done()
    requests.wait_service_idle()


def test_a_detached_number_has_no_requests(pair: kinds.Pair) -> None:
    operation = pair.local.begin_recv(16)
    with socket.socket(fileno=pair.local.detach()) as plain:
        assert error_of(operation).winerror == 995
        pair.peer.send(b"for the plain one")
        assert plain.recv(32) == b"for the plain one"


# -- from anywhere ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("which", ["its own", "another"])
def test_a_close_from_inside_a_callback_does_not_deadlock(which: str, pair: kinds.Pair) -> None:
    with kinds.pair_of("tcp4") as second:
        target = pair.local if which == "its own" else second.local
        woken, left = pair.local.begin_recv(16), target.begin_recv(16)
        closed = threading.Event()

        def close(_: Any) -> None:
            target.close()
            target.close()
            closed.set()

        woken.add_done_callback(close)
        pair.peer.send(b"x")
        assert closed.wait(PATIENCE_S)
        assert woken.result(PATIENCE_S) == b"x"
        assert error_of(left).winerror == 995


@pytest.mark.fault("F-48")
def test_a_callback_of_an_aborted_request_may_close_and_begin(pair: kinds.Pair) -> None:
    """The chain a close sets off: each callback closes the next descriptor, in the one service thread."""
    over = threading.Event()
    with ExitStack() as stack:
        chain = [pair, *(stack.enter_context(kinds.pair_of("tcp4")) for _ in range(4))]
        closes: list[Callable[[], object]] = [one.local.close for one in chain[1:]]
        for one, following in zip(chain, [*closes, over.set], strict=True):
            one.local.begin_recv(1).add_done_callback(_ignoring(following))
        pair.local.close()
        assert over.wait(PATIENCE_S)


def _ignoring(act: Callable[[], object]) -> Callable[[Any], object]:
    return lambda _: act()


@pytest.mark.fault("F-48")
def test_a_callback_sees_no_lock_held(pair: kinds.Pair) -> None:
    """Another thread can use the descriptor, begin and close, while a callback runs."""
    results: list[Any] = []
    with kinds.pair_of("tcp4") as second:

        def callback(_: Any) -> None:
            def use() -> None:
                pair.peer.send(b"y")
                results.append(pair.local.recv(1))
                results.append(second.local.begin_send(b"z").result(0))
                pair.local.close()
                results.append(ss.statistics().pending)

            other = threading.Thread(target=use)
            other.start()
            other.join(PATIENCE_S)
            results.append(other.is_alive())

        operation = pair.local.begin_recv(1)
        told = threading.Event()
        operation.add_done_callback(callback)
        operation.add_done_callback(lambda _: told.set())
        pair.peer.send(b"x")
        assert told.wait(PATIENCE_S)
        assert results == [b"y", 1, 0, False]


@pytest.mark.fault("F-48")
def test_a_close_from_a_signal_handler_on_top_of_the_wait_for_the_result(pair: kinds.Pair) -> None:
    operation = pair.local.begin_recv(16)
    before = signal.signal(signal.SIGUSR1, lambda *_: pair.local.close())
    main = threading.main_thread().native_id
    assert main is not None
    about_to_wait = threading.Event()

    def knock() -> None:
        about_to_wait.wait(PATIENCE_S)
        while thread_facts(os.getpid(), main).state != "S":
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGUSR1)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        about_to_wait.set()
        assert error_of(operation).winerror == 995
    finally:
        knocking.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.fault("F-114")
def test_a_descriptor_that_is_collected_ends_its_requests(pair: kinds.Pair) -> None:
    """A pending request does not keep its SharedSocket alive; the collector runs no callback (F-115)."""
    told: list[str] = []
    plain = socket.socket(fileno=os.dup(pair.local.fileno()))
    shared = ss.adopt(plain)
    operation = shared.begin_recv(16)
    operation.add_done_callback(lambda _: told.append(threading.current_thread().name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del shared
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert error_of(operation).winerror == 995
    requests.wait_service_idle()
    assert told == [requests.service.NAME]
