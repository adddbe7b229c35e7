"""LINGER(0): the last close resets, exactly then, and no close before it; whoever set the option, whoever closes last.

Source: LPWSPCLOSESOCKET, Remarks, the table; "Multiple Handles to a Single Socket" for what sharers have in common.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Actor
from sharedsock.testing.observation import tcp_sockets
from tests.descriptors import kinds
from tests.descriptors.sharers import give


@pytest.mark.fault("F-62", "F-66", "F-68")
@pytest.mark.rule("LINGER-3", "LINGER-12", "LINGER-13", "REF-2")
@pytest.mark.parametrize("setter", ["first to close", "last to close", "before sharing"])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])
def test_a_hard_linger_acts_at_the_last_close_whoever_set_it(
    kind: str, setter: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind, receive_buffer=4096) as pair:
        if setter == "before sharing":
            kinds.set_linger(pair.local, 0)
        give(pair.local, a, b)
        if setter != "before sharing":
            (a if setter == "first to close" else b).do("set_linger", True, 0)
        queued = a.do("call_with", kinds.queue_in, 1 << 18)
        a.close()
        assert kinds.is_quiet(pair.peer), "no FIN, no RST: a holder is left"
        first = kinds.drain_bytes(pair.peer, 4096)
        closing = b.thread("closer").close()
        closing.value()
        bounds.check("T_eof", closing.ended_s - closing.began_s)
        assert kinds.is_reset(pair.peer)
        with pytest.raises(ConnectionResetError):
            assert len(first) + len(kinds.receive_all(pair.peer)) < queued, "pending data is dropped"


@pytest.mark.fault("F-66")
@pytest.mark.rule("LINGER-3")
def test_a_reset_leaves_no_time_wait() -> None:
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        ports = pair.local.getsockname()[1], pair.peer.getsockname()[1]
        pair.local.close()
        assert kinds.is_reset(pair.peer)
        assert not [found for found in tcp_sockets() if (found.local_port, found.remote_port) == ports]


@pytest.mark.fault("F-66")
@pytest.mark.rule("LINGER-3")
def test_a_reset_reaches_the_peer_though_a_file_outside_the_count_refers_to_the_socket(
    company: tuple[Actor, Actor],
) -> None:
    """A holder that hangs in its close, or a program that inherited the number: the reset does not wait for them."""
    a, _ = company
    with kinds.pair_of("tcp4") as pair, socket.fromfd(pair.local.fileno(), socket.AF_INET, socket.SOCK_STREAM):
        kinds.set_linger(pair.local, 0)
        give(pair.local, a)
        assert kinds.is_silent(pair.peer)
        a.close()
        assert kinds.is_reset(pair.peer)


@pytest.mark.rule("LINGER-2", "LINGER-12")
def test_the_option_can_be_taken_back_by_any_holder(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        give(pair.local, a, b)
        a.do("set_linger", True, 0)
        b.do("set_linger", False, 0)
        queued = a.do("call_with", kinds.queue_in, 1 << 18)
        b.close()
        a.close()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


@pytest.mark.fault("F-66")
@pytest.mark.rule("LINGER-3")
def test_a_connection_on_its_way_is_dropped() -> None:
    with kinds.full_door("tcp4") as door:
        local = ss.SharedSocket(socket.AF_INET, socket.SOCK_STREAM)
        local.setblocking(False)
        kinds.set_linger(local, 0)
        with pytest.raises(BlockingIOError):
            local.connect(door.getsockname())
        local.close()


@pytest.mark.fault("F-70")
@pytest.mark.rule("LINGER-13", "DUP-12", "REF-2")
def test_a_ticket_that_is_out_keeps_a_close_from_being_the_last(company: tuple[Actor, Actor]) -> None:
    a, _ = company
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        info = pair.local.share(a.pid)
        pair.local.close()
        assert kinds.is_silent(pair.peer)
        a.do("take", info)
        a.sendall(b"alive")
        assert pair.peer.recv(5) == b"alive"
        assert a.do("references") == 1
        a.close()
        assert kinds.is_reset(pair.peer)
