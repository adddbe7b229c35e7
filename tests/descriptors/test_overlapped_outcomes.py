"""Overlapped requests and what comes of them: at once, later, in order, and never twice.

Source: "Overlapped I/O" (Winsock SPI); spec/winsock-semantics.md, section 7.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import overlapped, service
from sharedsock.kernel import polling
from tests.descriptors import kinds, requests
from tests.descriptors.requests import PATIENCE_S, error_of


@pytest.fixture
def pair() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


@pytest.fixture
def narrow() -> Iterator[kinds.Pair]:
    """A pair through which little fits before the peer reads."""
    with kinds.pair_of("tcp4", send_buffer=8192, receive_buffer=4096) as pair:
        yield pair


def kinds_pending(shared: ss.SharedSocket) -> list[str]:
    return [operation.kind for operation in shared.pending_operations()]


# -- at once, and later -------------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-1")
@pytest.mark.parametrize("kind", [*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS])
def test_what_can_finish_at_once_has_finished_before_begin_returns(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        assert pair.local.begin_send(b"out").result(0) == 3
        assert pair.peer.recv(16) == b"out"
        assert pair.local.begin_sendall(b"all").result(0) is None
        assert pair.peer.recv(16) == b"all"
        pair.peer.send(b"first")
        kinds.wait_event(pair.local)
        assert pair.local.begin_recv(16).result(0) == b"first"
        pair.peer.send(b"second")
        kinds.wait_event(pair.local)
        data, _ = pair.local.begin_recvfrom(16).result(0)
        assert data == b"second"
    assert requests.service_threads() == []


@pytest.mark.rule("OVERLAP-1")
def test_a_connect_and_an_accept_that_need_not_wait(tmp_path: Any) -> None:
    with kinds.listener_of("unix-stream") as door, ss.SharedSocket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        assert local.begin_connect(door.getsockname()).result(0) is None
        client, _ = door.begin_accept().result(0)
        with client:
            local.sendall(b"hello")
            assert client.recv(16) == b"hello"


@pytest.mark.rule("OVERLAP-1")
def test_callbacks_of_what_finished_at_once_run_when_they_are_added(pair: kinds.Pair) -> None:
    told: list[Any] = []
    pair.local.begin_send(b"x").add_done_callback(lambda operation: told.append(operation.result(0)))
    assert told == [1]


@pytest.mark.rule("OVERLAP-2", "CLOSE-23")
@pytest.mark.parametrize("kind", [*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS])
def test_an_accepted_request_is_told_of_exactly_once(kind: str) -> None:
    told: list[bytes] = []
    with kinds.pair_of(kind) as pair:
        operation = pair.local.begin_recv(16)
        operation.add_done_callback(lambda ended: told.append(ended.result(0)))
        assert not operation.done()
        with pytest.raises(TimeoutError):
            operation.result(0)
        pair.peer.send(b"late")
        assert operation.result(PATIENCE_S) == b"late"
    requests.wait_service_idle()
    assert told == [b"late"]


@pytest.mark.rule("OVERLAP-7")
def test_a_request_that_fails_has_the_socket_s_error(pair: kinds.Pair) -> None:
    receiving, more = pair.local.begin_recv(16), pair.local.begin_recv(16)
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.peer.close()
    for operation in (receiving, more):
        error = error_of(operation)
        assert isinstance(error, ConnectionResetError)
        assert error.winerror == 10054  # type: ignore[attr-defined]  # ours have it everywhere


@pytest.mark.rule("OVERLAP-7")
def test_empty_only_ever_means_the_peer_s_fin(pair: kinds.Pair) -> None:
    operation = pair.local.begin_recv(16)
    pair.peer.shutdown(socket.SHUT_WR)
    assert operation.result(PATIENCE_S) == b""
    with kinds.pair_of("tcp4") as other:
        operation = other.local.begin_recv(16)
        other.local.shutdown(socket.SHUT_RD)
        assert error_of(operation).winerror == 10058
        assert error_of(other.local.begin_recv(16)).winerror == 10058


@pytest.mark.rule("OVERLAP-7")
def test_a_refused_connection_is_the_operation_s_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = door.getsockname()
    with ss.SharedSocket() as local:
        error = error_of(local.begin_connect(address))
        assert isinstance(error, ConnectionRefusedError)
        assert error.winerror == 10061  # type: ignore[attr-defined]  # as above


def test_a_connect_waits_for_its_listener_and_then_carries_data() -> None:
    with kinds.full_door("tcp4") as door, ss.SharedSocket() as local:
        operation = local.begin_connect(door.getsockname())
        assert not operation.done()
        assert kinds_pending(local) == ["connect"]
        assert operation.cancel()


def test_a_connect_to_a_full_unix_backlog_is_tried_again_until_there_is_room() -> None:
    """The kernel has no event for it: the service looks by the clock."""
    with kinds.full_door("unix-stream") as door, ss.SharedSocket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        operation = local.begin_connect(door.getsockname())
        assert not operation.done()
        door.accept()[0].close()
        assert operation.result(PATIENCE_S) is None


# -- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-9")
def test_buffers_posted_in_order_are_filled_in_order(pair: kinds.Pair) -> None:
    operations = [pair.local.begin_recv(4) for _ in range(50)]
    pair.peer.sendall(b"".join(b"%04d" % number for number in range(50)))
    assert [operation.result(PATIENCE_S) for operation in operations] == [b"%04d" % number for number in range(50)]


@pytest.mark.rule("OVERLAP-9")
def test_buffers_posted_in_order_are_sent_in_order(narrow: kinds.Pair) -> None:
    queued = kinds.fill(narrow.local)
    operations = [narrow.local.begin_sendall(bytes([number]) * 3000) for number in range(20)]
    assert not any(operation.done() for operation in operations)
    kinds.drain(narrow.peer, queued)
    received = b""
    while len(received) < 20 * 3000:
        received += narrow.peer.recv(1 << 16)
    assert received == b"".join(bytes([number]) * 3000 for number in range(20))
    assert [operation.result(PATIENCE_S) for operation in operations] == [None] * 20


@pytest.mark.rule("OVERLAP-9")
def test_a_request_does_not_overtake_one_that_waits(pair: kinds.Pair) -> None:
    """Data is there when the second is begun, yet the first gets it."""
    first = pair.local.begin_recv(2)
    pair.peer.sendall(b"abcd")
    second = pair.local.begin_recv(2)
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (b"ab", b"cd")


def test_directions_do_not_wait_for_each_other(narrow: kinds.Pair) -> None:
    kinds.fill(narrow.local)
    sending, receiving = narrow.local.begin_send(b"x"), narrow.local.begin_recv(16)
    narrow.peer.sendall(b"for you")
    assert receiving.result(PATIENCE_S) == b"for you"
    assert not sending.done()
    assert sending.cancel()


def test_one_client_for_each_accept() -> None:
    with kinds.listener_of("tcp4") as door:
        operations = [door.begin_accept() for _ in range(3)]
        clients = [kinds.client_of(door) for _ in range(3)]
        accepted = [operation.result(PATIENCE_S) for operation in operations]
        assert sorted(address for _, address in accepted) == sorted(client.getsockname() for client in clients)
        for (served, _), client in zip(accepted, clients, strict=True):
            assert isinstance(served, ss.SharedSocket)
            served.close()
            client.close()


# -- timeouts, limits, arguments ------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-15")
@pytest.mark.parametrize("timeout_s", [0, 0.001, None])
def test_the_timeout_of_the_descriptor_does_not_matter(timeout_s: float | None, pair: kinds.Pair) -> None:
    pair.local.settimeout(timeout_s)
    operation = pair.local.begin_recv(16)
    assert not operation.done()
    pair.peer.send(b"in its own time")
    assert operation.result(PATIENCE_S) == b"in its own time"
    assert pair.local.gettimeout() == timeout_s


@pytest.mark.rule("OVERLAP-15")
def test_too_many_outstanding_are_refused_and_nothing_is_started(
    pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlapped, "MOST_PENDING", 2)
    pending = [pair.local.begin_recv(1), pair.local.begin_recv(1)]
    data = bytearray(b"mine")
    with pytest.raises(BlockingIOError) as refused:
        pair.local.begin_send(data)
    assert refused.value.winerror == 10035  # type: ignore[attr-defined]  # ours have it everywhere
    data.clear()  # it is the caller's again
    pair.peer.send(b"ab")
    assert [operation.result(PATIENCE_S) for operation in pending] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("begin_recv", ("x",), TypeError),
        ("begin_recv", (-1,), ValueError),
        ("begin_recvfrom", (None,), TypeError),
        ("begin_send", ("text",), TypeError),
        ("begin_sendall", (b"x", "flags"), TypeError),
        ("begin_connect", (5,), TypeError),
    ],
)
def test_wrong_arguments_are_raised_and_start_nothing(
    method: str, arguments: tuple[Any, ...], error: type[Exception], pair: kinds.Pair
) -> None:
    with pytest.raises(error):
        getattr(pair.local, method)(*arguments)
    assert pair.local.pending_operations() == ()


# -- who waits for what ---------------------------------------------------------------------------------------------


def test_pending_operations_are_listed_under_the_thread_that_began_them(pair: kinds.Pair) -> None:
    begun: list[ss.Operation[bytes]] = []
    worker = threading.Thread(target=lambda: begun.append(pair.local.begin_recv(1)), name="beginner")
    worker.start()
    worker.join()
    begun.append(pair.local.begin_recv(1))
    rows = pair.local.pending_operations()
    assert [(row.thread, row.kind) for row in rows] == [("beginner", "recv"), (threading.current_thread().name, "recv")]
    assert ss.statistics().pending == 2
    pair.peer.send(b"ab")
    for operation in begun:
        operation.result(PATIENCE_S)
    assert pair.local.pending_operations() == ()


def test_the_service_thread_s_housekeeping_is_no_pending_operation(
    pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it takes a socket out of its set, a close of that socket waits for it; no operation does."""
    remove = polling.PollSet.remove
    seen: list[tuple[str, tuple[ss.PendingOperation, ...]]] = []

    def look(polls: polling.PollSet, number: int) -> None:
        seen.append((threading.current_thread().name, pair.local.pending_operations()))
        remove(polls, number)

    operation = pair.local.begin_recv(1)
    monkeypatch.setattr(polling.PollSet, "remove", look)
    pair.peer.send(b"x")
    assert operation.result(PATIENCE_S) == b"x"
    assert (service.NAME, ()) in seen
    assert all(rows == () for _, rows in seen)


@pytest.mark.rule("EXIT-2")
def test_an_operation_outlives_the_thread_that_began_it(pair: kinds.Pair) -> None:
    """EXIT-2 speaks of requests bound to their thread's alertable waits; ours are the process's, as those of a
    completion port are: a Future that an executor's worker began must not end with that worker.
    """
    begun: list[ss.Operation[bytes]] = []
    worker = threading.Thread(target=lambda: begun.append(pair.local.begin_recv(16)))
    worker.start()
    worker.join()
    assert not begun[0].done()
    pair.peer.send(b"still wanted")
    assert begun[0].result(PATIENCE_S) == b"still wanted"


@pytest.mark.rule("CLOSE-27")
def test_a_buffer_belongs_to_its_request_until_that_has_ended(narrow: kinds.Pair) -> None:
    kinds.fill(narrow.local)
    data = bytearray(b"x" * 10)
    operation = narrow.local.begin_sendall(data)
    with pytest.raises(BufferError):
        data.clear()
    narrow.local.close()
    error_of(operation)
    data.clear()


# -- cancelling -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-17")
def test_a_cancelled_request_took_nothing_and_the_descriptor_stays_usable(pair: kinds.Pair) -> None:
    told: list[bool] = []
    first, second = pair.local.begin_recv(4), pair.local.begin_recv(4)
    first.add_done_callback(lambda operation: told.append(operation.cancelled()))
    assert first.cancel()
    assert first.cancelled()
    assert told == [True]
    assert first.cancel(), "cancelling again changes nothing"
    with pytest.raises(CancelledError):
        first.result(0)
    done, waiting = concurrent.futures.wait([first, second], 0)
    assert (done, waiting) == ({first}, {second})
    pair.peer.send(b"data")
    assert second.result(PATIENCE_S) == b"data"
    assert not second.cancel(), "too late"
    assert second.result(0) == b"data"


@pytest.mark.rule("OVERLAP-17")
def test_a_send_that_has_begun_is_ended_by_a_close_only(narrow: kinds.Pair) -> None:
    """Cancelled half way it would tear the stream."""
    operation = narrow.local.begin_sendall(b"x" * (1 << 20))
    assert operation.running()
    assert not operation.cancel()
    queued = operation.bytes_transferred
    assert 0 < queued < 1 << 20
    narrow.local.close()
    error = error_of(operation)
    assert isinstance(error, ss.OperationAborted)
    assert error.bytes_transferred == operation.bytes_transferred >= queued
    assert not operation.running()


def test_an_operation_is_a_future_for_asyncio_and_for_executors_alike(pair: kinds.Pair) -> None:
    async def receive() -> bytes:
        operation = pair.local.begin_recv(16)
        pair.peer.send(b"awaited")
        return await asyncio.wrap_future(operation)

    assert asyncio.run(receive()) == b"awaited"
    operations = [pair.local.begin_recv(1) for _ in range(3)]
    pair.peer.send(b"xyz")
    ended = [operation.result() for operation in concurrent.futures.as_completed(operations, PATIENCE_S)]
    assert sorted(ended) == [b"x", b"y", b"z"]


def test_a_shut_descriptor_begins_nothing(pair: kinds.Pair) -> None:
    pair.local.close()
    for begin in (
        lambda: pair.local.begin_recv(1),
        lambda: pair.local.begin_recvfrom(1),
        lambda: pair.local.begin_send(b"x"),
        lambda: pair.local.begin_sendall(b"x"),
        lambda: pair.local.begin_accept(),
        lambda: pair.local.begin_connect(("127.0.0.1", 1)),
    ):
        with pytest.raises(ss.NotASocket) as refused:
            begin()
        assert refused.value.winerror == 10038
    assert not service._stations
