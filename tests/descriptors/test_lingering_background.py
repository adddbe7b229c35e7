"""DONTLINGER: the last close returns at once, what is queued still arrives, and then FIN.

Source: LPWSPCLOSESOCKET, Remarks, the table; "Closing Sockets".
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import pytest

from sharedsock.descriptors import lingering
from sharedsock.testing import Actor
from tests.descriptors import kinds
from tests.descriptors.sharers import give

TWO_MIB = 2 << 20


@pytest.mark.fault("F-64")
@pytest.mark.rule("LINGER-2", "REF-4", "SHUT-16", "CLOSE-10")
@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])
def test_dontlinger_returns_at_once_and_every_byte_arrives_then_fin(
    kind: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind, receive_buffer=1 << 16) as pair:
        give(pair.local, a, b)
        assert a.do("call_with", kinds.queue_in, TWO_MIB) == TWO_MIB
        a.close()
        poll = select.poll()
        poll.register(pair.peer, select.POLLRDHUP)
        assert not poll.poll(0), "a close that is not the last ends nothing"
        closing = b.thread("closer").close()
        closing.value()
        bounds.check("T_eof", closing.ended_s - closing.began_s)
        assert kinds.receive_all(pair.peer) == kinds.payload(TWO_MIB)


@pytest.mark.fault("F-64")
@pytest.mark.rule("LINGER-2")
@pytest.mark.parametrize("is_blocking", [True, False])
def test_dontlinger_never_refuses(is_blocking: bool) -> None:
    """Never WSAEWOULDBLOCK, whether the socket blocks or not."""
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        assert kinds.queue(pair.local, TWO_MIB) == TWO_MIB
        pair.local.setblocking(is_blocking)
        pair.local.close()
        assert kinds.receive_all(pair.peer) == kinds.payload(TWO_MIB)


@pytest.mark.fault("F-67")
@pytest.mark.rule("LINGER-2", "REF-7", "LINGER-14")
@pytest.mark.parametrize("unread", [1, 1 << 20])
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_unread_input_does_not_cut_what_was_queued(kind: str, unread: int, company: tuple[Actor, Actor]) -> None:
    """The kernel resets a connection that is closed with input unread, and the peer loses what was queued."""
    a, _ = company
    with kinds.pair_of(kind, receive_buffer=1 << 16) as pair:
        queued = kinds.queue(pair.local, 1 << 18)
        arrived = kinds.queue(pair.peer, unread) if unread > 1 else pair.peer.send(b"x")
        assert arrived
        give(pair.local, a)
        reader = threading.Thread(target=lambda: received.append(kinds.receive_all(pair.peer)))
        received: list[bytes] = []
        reader.start()
        closing = a.thread("closer").close()
        closing.value()
        reader.join(60)
        assert received == [kinds.payload(queued)], "every byte, then FIN"
        assert closing.ended_s - closing.began_s < 4 * lingering.DRAIN_BOUND_S


@pytest.mark.fault("F-67")
@pytest.mark.rule("LINGER-14")
def test_a_peer_that_sends_without_end_does_not_hold_the_close_up() -> None:
    """Nor reads: what we have queued stays. The drain has a bound; afterwards the connection is reset."""
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        kinds.queue(pair.local, 1 << 18)
        ended = threading.Event()

        def send_for_ever() -> None:
            try:
                while True:
                    pair.peer.sendall(b"x" * 65536)
            except OSError:
                ended.set()

        sender = threading.Thread(target=send_for_ever)
        sender.start()
        kinds.wait_event(pair.local)
        closing: list[float] = []
        kinds.timed(pair.local.close, closing)
        assert lingering.DRAIN_BOUND_S <= closing[0] < 4 * lingering.DRAIN_BOUND_S
        assert ended.wait(60), "the peer's send fails"
        sender.join(60)


@pytest.mark.rule("REF-7")
@pytest.mark.fault("F-67")
def test_a_close_that_is_not_the_last_drains_nothing(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, a, b)
        pair.peer.sendall(b"for whoever stays")
        a.close()
        assert kinds.is_silent(pair.peer)
        assert b.recv(100) == b"for whoever stays"
        b.close()


@pytest.mark.rule("REF-7")
@pytest.mark.fault("F-67")
def test_unread_packets_of_a_seqpacket_socket_do_not_reset_it() -> None:
    with kinds.pair_of("unix-seqpacket") as pair:
        pair.peer.send(b"unread")
        pair.local.send(b"answer")
        pair.local.close()
        assert pair.peer.recv(100) == b"answer"
        assert pair.peer.recv(100) == b""


@pytest.mark.rule("LINGER-15")
@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shutdown_never_waits_whatever_so_linger_says(how: int, bounds: Any) -> None:
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        kinds.set_linger(pair.local, 30)
        kinds.queue(pair.local, 1 << 18)
        took: list[float] = []
        kinds.timed(lambda: pair.local.shutdown(how), took)
        bounds.check("T_abort", took[0])
        kinds.set_linger(pair.local, None)
