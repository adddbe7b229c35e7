"""Shutdown is felt by every sharer, close by none; and an empty receive on a stream only ever means the peer's FIN.

Source: LPWSPSHUTDOWN, LPWSPRECV, "Graceful Shutdown, Linger Options, and Socket Closure in the SPI".
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Actor, Raised, Received
from tests.descriptors import kinds

STREAMS = ("tcp4", "tcp6", "unix-stream")
ALL = (*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS)


def winerror_of(call: Any, *arguments: Any) -> int:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    number: int = caught.value.winerror  # type: ignore[attr-defined]  # typeshed: Windows only
    return number


# -- SD_SEND ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("SHUT-1", "SHUT-9", "SHUT-13")
@pytest.mark.parametrize("kind", kinds.STREAM_KINDS)
def test_after_sd_send_sends_fail_and_the_peer_gets_everything_then_fin(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.local.sendall(b"last words")
        pair.local.shutdown(socket.SHUT_WR)
        for send in (pair.local.send, pair.local.sendall, lambda data: pair.local.sendmsg([data])):
            with pytest.raises(BrokenPipeError) as caught:
                send(b"x")
            assert caught.value.winerror == 10058  # type: ignore[attr-defined]  # typeshed: Windows only
        assert pair.peer.recv(100) == b"last words"
        assert pair.peer.recv(100) == b"", "FIN after all queued data"
        pair.peer.sendall(b"still open")
        assert pair.local.recv(100) == b"still open", "the descriptor stays valid, the other direction open"


@pytest.mark.rule("SHUT-9")
def test_a_direction_that_was_shut_down_stays_so(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        pair.local.shutdown(socket.SHUT_WR)
        pair.local.shutdown(socket.SHUT_WR)  # once more changes nothing
        pair.local.shutdown(socket.SHUT_RD)
        a.do("take", pair.local.share(a.pid))
        assert a.thread("caller").send(b"x").outcome() == Raised("BrokenPipeError", 10058, errno.EPIPE)
        assert a.thread("caller").recv(1).outcome() == Raised("BrokenPipeError", 10058, errno.ESHUTDOWN)
        a.close()


# -- SD_RECEIVE ---------------------------------------------------------------------------------------------------


@pytest.mark.rule("SHUT-2")
@pytest.mark.parametrize("call", kinds.RECEIVES)
@pytest.mark.parametrize("kind", STREAMS)
def test_after_sd_receive_each_receive_fails_and_the_peer_notices_nothing(kind: str, call: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.local.shutdown(socket.SHUT_RD)
        assert winerror_of(kinds.RECEIVES[call], pair.local) == 10058
        if kind.startswith("tcp"):
            assert kinds.is_silent(pair.peer)
        pair.local.sendall(b"one way")
        assert pair.peer.recv(100) == b"one way"


@pytest.mark.rule("SHUT-2", "SHUT-9")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "udp4", "unix-dgram"])
def test_after_sd_receive_not_even_what_has_arrived_is_received(kind: str) -> None:
    """Linux goes on handing out what is queued; the contract is that receives fail."""
    with kinds.pair_of(kind) as pair:
        pair.peer.send(b"first")
        assert pair.local.recv(5) == b"first"  # the fast path is open
        pair.peer.send(b"second")
        kinds.wait_event(pair.local)
        pair.local.shutdown(socket.SHUT_RD)
        for _ in range(2):
            assert winerror_of(pair.local.recv, 100) == 10058


@pytest.mark.rule("SHUT-4")
@pytest.mark.parametrize("kind", ["udp4", "udp6"])
def test_after_sd_receive_datagrams_are_accepted_without_a_word_to_the_peer(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.local.shutdown(socket.SHUT_RD)
        for _ in range(3):
            assert pair.peer.send(b"taken in") == 8
        assert kinds.is_silent(pair.peer), "no ICMP error"


@pytest.mark.rule("DUP-18", "SHUT-2", "SHUT-10")
@pytest.mark.parametrize("kind", STREAMS)
def test_a_receive_pending_in_another_process_ends_with_10058(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        reading = b.thread("caller").recv(1)
        b.wait_until_blocked("caller")
        a.do("shutdown", socket.SHUT_RD)
        assert reading.outcome() == Raised("BrokenPipeError", 10058, errno.ESHUTDOWN)
        assert b.thread("caller").recv(1).outcome() == Raised("BrokenPipeError", 10058, errno.ESHUTDOWN)
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("DUP-18", "SHUT-1")
@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])  # a Unix socket's own shutdown wakes no sender (Linux)
def test_a_send_pending_in_another_process_ends_with_10058(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of(kind, send_buffer=8192, receive_buffer=4096) as pair:
        kinds.fill(pair.local)
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        sending = b.thread("caller").send(b"x")
        b.wait_until_blocked("caller")
        a.do("shutdown", socket.SHUT_WR)
        assert sending.outcome() == Raised("BrokenPipeError", 10058, errno.EPIPE)
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("SHUT-2")
def test_a_shutdown_is_on_record_before_the_kernel_wakes_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever the kernel wakes must find the reason: else his b"" would be taken for the peer's FIN."""
    with kinds.pair_of("tcp4") as pair:
        on_record = []
        call = ss.SharedSocket._call

        def look(shared: ss.SharedSocket, method: str, *arguments: Any) -> Any:
            on_record.append(shared._descriptor.local.shut_receive)
            return call(shared, method, *arguments)

        monkeypatch.setattr(ss.SharedSocket, "_call", look)
        pair.local.shutdown(socket.SHUT_RD)
        assert on_record == [True]


@pytest.mark.rule("SHUT-5")
@pytest.mark.parametrize("kind", STREAMS)
def test_sd_both_is_both(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.local.shutdown(socket.SHUT_RDWR)
        assert winerror_of(pair.local.recv, 1) == 10058
        assert winerror_of(pair.local.send, b"x") == 10058
        assert pair.peer.recv(1) == b""


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("SHUT-6")
@pytest.mark.parametrize("how", [-1, 3, 99])
def test_a_direction_that_does_not_exist_is_10022_and_changes_nothing(how: int) -> None:
    with kinds.pair_of("tcp4") as pair:
        assert winerror_of(pair.local.shutdown, how) == 10022
        pair.local.sendall(b"x")
        assert pair.peer.recv(1) == b"x"


@pytest.mark.rule("SHUT-7")
@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_stream_that_is_not_connected_is_10057(how: int) -> None:
    with ss.SharedSocket(socket.AF_INET, socket.SOCK_STREAM) as local:
        assert winerror_of(local.shutdown, how) == 10057
        # Linux has done it all the same, so that an empty receive would say nothing about a peer.
        assert winerror_of(local.recv, 1) == (10057 if how == socket.SHUT_WR else 10058)


@pytest.mark.rule("SHUT-7")
def test_a_datagram_socket_that_is_not_connected_can_be_shut_down() -> None:
    """Only sockets of connections refuse; Linux answers ENOTCONN here, and does it all the same."""
    with ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM) as local:
        local.bind(("127.0.0.1", 0))
        local.shutdown(socket.SHUT_RD)
        assert winerror_of(local.recv, 1) == 10058


@pytest.mark.rule("SHUT-8", "CLOSE-2")
def test_shutdown_of_a_closed_descriptor_is_10038() -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.local.close()
        assert winerror_of(pair.local.shutdown, socket.SHUT_WR) == 10038


# -- what b"" means -----------------------------------------------------------------------------------------------


@pytest.mark.rule("SHUT-13")
@pytest.mark.parametrize("kind", STREAMS)
def test_the_peer_s_fin_is_empty_for_every_holder_again_and_again(kind: str, company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        pair.peer.shutdown(socket.SHUT_WR)
        for actor in (a, b, a, b):
            assert actor.thread("caller").recv(1).outcome() == Received(b"")
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("SHUT-14")
@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])
def test_a_reset_another_holder_has_read_is_a_reset_here(kind: str, company: tuple[Actor, Actor]) -> None:
    """The kernel tells a reset once; afterwards it says b""."""
    a, b = company
    with kinds.pair_of(kind) as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        reset(pair.peer)
        for actor in (a, b, a, b):
            outcome = actor.thread("caller").recv(1).outcome()
            assert outcome == Raised("ConnectionResetError", 10054, errno.ECONNRESET)
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("SHUT-14")
@pytest.mark.parametrize("kind", ["unix-stream", "unix-seqpacket"])
def test_a_unix_reset_is_put_on_record_for_the_other_holders(kind: str, company: tuple[Actor, Actor]) -> None:
    """A Unix stream is reset when its peer closes with input unread; no state of the socket remembers that."""
    a, b = company
    with kinds.pair_of(kind) as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        pair.local.send(b"never read")
        pair.peer.close()
        for actor in (a, b, a, b):
            outcome = actor.thread("caller").recv(1).outcome()
            assert outcome == Raised("ConnectionResetError", 10054, errno.ECONNRESET)
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("SHUT-14")
@pytest.mark.parametrize("call", kinds.RECEIVES)
def test_a_reset_another_thread_has_read_is_a_reset_for_each_receive(call: str) -> None:
    with kinds.pair_of("tcp4") as pair:
        reset(pair.peer)
        kinds.wait_event(pair.local)
        assert winerror_of(pair.local.recv, 1) == 10054
        assert winerror_of(kinds.RECEIVES[call], pair.local) == 10054


@pytest.mark.rule("SHUT-14")
def test_a_reset_is_known_by_the_state_of_the_socket_even_if_nobody_has_recorded_it() -> None:
    """A holder without sharedsock, or one that died on the way, may have read the error."""
    with kinds.pair_of("tcp4") as pair:
        reset(pair.peer)
        kinds.wait_event(pair.local)
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert winerror_of(pair.local.recv, 1) == 10054


@pytest.mark.rule("SHUT-14")
def test_a_send_after_a_reset_is_10054_not_10058() -> None:
    with kinds.pair_of("tcp4") as pair:
        reset(pair.peer)
        kinds.wait_event(pair.local)
        assert winerror_of(pair.local.send, b"x") == 10054
        assert winerror_of(pair.local.send, b"x") == 10054, "EPIPE, but nobody here has shut it down"


@pytest.mark.rule("SHUT-13")
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_a_connection_that_both_sides_have_ended_is_no_reset(order: str) -> None:
    """Both FINs leave the socket in CLOSE as well; our own SD_SEND on record tells the difference."""
    with kinds.pair_of("tcp4") as pair:
        for end in (pair.local, pair.peer) if order == "ours first" else (pair.peer, pair.local):
            end.shutdown(socket.SHUT_WR)
        assert pair.local.recv(1) == b""
        pair.peer.close()
        assert pair.local.recv(1) == b""


@pytest.mark.rule("SHUT-13")
@pytest.mark.parametrize("kind", kinds.DATAGRAM_KINDS)
def test_an_empty_datagram_is_empty(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.peer.send(b"")
        assert pair.local.recv(10) == b""


@pytest.mark.rule("SHUT-13")
def test_a_receive_of_nothing_is_nothing(company: tuple[Actor, Actor]) -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.peer.sendall(b"x")
        assert pair.local.recv(0) == b""
        assert pair.local.recv_into(bytearray(0)) == 0
        assert pair.local.recv(1) == b"x"


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()
