"""The socket stays open while there is a reference, and a ticket is one: whoever closes, exits or dies meanwhile."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Actors, Raised
from sharedsock.testing.commands import Belongings
from tests.descriptors.kinds import STREAM_KINDS, pair_of
from tests.descriptors.sharers import is_open_for, wait_end_of, wait_until

MEBIBYTE = 1 << 20


@pytest.fixture
def peer_and_local(registry: ss.Registry) -> Iterator[tuple[socket.socket, ss.SharedSocket]]:
    with pair_of("tcp4") as pair:
        yield pair.peer, pair.local


def counted(registry: ss.Registry) -> int:
    """The references of all sockets the registry knows."""
    return sum(count for _, count in registry.client.sockets())


# -- F-11: the sharer dies --------------------------------------------------------------------------------------------


@pytest.mark.fault("F-11")
@pytest.mark.rule("EXIT-1", "REF-2")
def test_a_sharer_killed_before_it_has_asked_leaves_nothing(
    registry: ss.Registry, actors: Actors, peer_and_local: tuple[socket.socket, ss.SharedSocket], bounds: Any
) -> None:
    """No ticket was issued: the last holder's death is the end of the socket."""
    peer, local = peer_and_local
    sharer, target = actors.start("sharer", "target")
    actors.share(local, sharer)
    local.close()
    sharer.kill_at("share.begin")
    sharer.thread("main").do("share", target.pid)
    bounds.check("T_eof", wait_end_of(peer))
    assert sharer.wait_dead() == "killed by SIGKILL"
    bounds.check("T_reap", wait_until(lambda: counted(registry) == 0, "the sharer's reference to go"))


@pytest.mark.fault("F-11")
@pytest.mark.rule("EXIT-1", "REF-2", "DUP-13")
@pytest.mark.parametrize("point", ["share.fd_sent", "share.issued"])
def test_a_sharer_killed_with_its_ticket_under_way_leaves_what_the_target_ends(
    registry: ss.Registry,
    actors: Actors,
    peer_and_local: tuple[socket.socket, ss.SharedSocket],
    bounds: Any,
    point: str,
) -> None:
    """A ticket that was issued is a reference, also of a dead sharer; nobody has it, so its target's end is its end.

    Killed at fd_sent, the request may meet a registry that has seen the death first: then there is no ticket.
    """
    peer, local = peer_and_local
    sharer, target = actors.start("sharer", "target")
    actors.share(local, sharer)
    local.close()
    sharer.kill_at(point)
    sharer.thread("main").do("share", target.pid)
    assert sharer.wait_dead() == "killed by SIGKILL"
    wait_until(lambda: counted(registry) <= 1, "the sharer's own reference to go")
    if point == "share.issued":
        assert counted(registry) == 1
        assert is_open_for(peer)
    target.kill()
    wait_end_of(peer)
    bounds.check("T_reap", wait_until(lambda: counted(registry) == 0, "the ticket to go with its target"))


@pytest.mark.fault("F-11", "F-12")
@pytest.mark.rule("DUP-12", "EXIT-1", "REF-2")
def test_a_ticket_outlives_its_sharer(
    registry: ss.Registry, actors: Actors, peer_and_local: tuple[socket.socket, ss.SharedSocket]
) -> None:
    """The sharer is killed after it has handed the ticket on: the target redeems, the peer has noticed nothing."""
    peer, local = peer_and_local
    sharer, target = actors.start("sharer", "target")
    actors.share(local, sharer)
    local.close()
    info = sharer.do("share", target.pid)
    sharer.kill()
    wait_until(lambda: counted(registry) == 1, "the sharer's own reference to go")
    assert is_open_for(peer)
    target.do("take", info)
    target.sendall(b"from the heir")
    assert peer.recv(32) == b"from the heir"
    target.close()
    wait_end_of(peer)


# -- F-12: the sharer closes ------------------------------------------------------------------------------------------


@pytest.mark.fault("F-12")
@pytest.mark.rule("DUP-12", "DUP-2", "REF-2")
@pytest.mark.parametrize("kind", [kind for kind in STREAM_KINDS if kind != "unix-seqpacket"])
def test_a_mebibyte_after_the_sharer_has_closed(registry: ss.Registry, actors: Actors, kind: str) -> None:
    """LPWSPDUPLICATESOCKET: the sharer may close as soon as it has shared; every byte arrives, both ways."""
    data = hashlib.sha256(kind.encode()).digest() * (MEBIBYTE // 32)
    (target,) = actors.start("target")
    with pair_of(kind) as pair:
        info = pair.local.share(target.pid)
        pair.local.close()
        assert counted(registry) == 1
        assert is_open_for(pair.peer)
        target.do("take", info)
        sending = target.thread("sender").sendall(data)
        received = bytearray()
        while len(received) < MEBIBYTE:
            received += pair.peer.recv(1 << 18)
        assert received == data
        sending.value()
        receiving = target.thread("receiver").do("receive_all")
        pair.peer.sendall(data)
        pair.peer.shutdown(socket.SHUT_WR)
        assert receiving.value() == data
        target.close()
        wait_end_of(pair.peer)


@pytest.mark.fault("F-70")
@pytest.mark.rule("DUP-12", "REF-2", "LINGER-13")
@pytest.mark.parametrize("end", ["redeemed", "revoked", "target dies"])
def test_a_close_is_not_the_last_while_a_ticket_is_out(
    registry: ss.Registry, actors: Actors, peer_and_local: tuple[socket.socket, ss.SharedSocket], end: str
) -> None:
    """LINGER(0) makes a last close visible: a reset. It comes with the end of the ticket, not with the close."""
    peer, local = peer_and_local
    sharer, target = actors.start("sharer", "target")
    actors.share(local, sharer)
    local.close()
    sharer.do("set_linger", True, 0)
    info = sharer.do("share", target.pid)
    sharer.close()
    assert counted(registry) == 1
    assert is_open_for(peer)
    if end == "redeemed":
        target.do("take", info)
        target.sendall(b"alive")
        assert peer.recv(8) == b"alive"
        target.close()
    elif end == "revoked":
        assert sharer.call(ss.revoke, info)
    else:
        target.kill()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    wait_until(lambda: counted(registry) == 0, "the count to be true")


# -- REF: counts and orders -------------------------------------------------------------------------------------------


@pytest.mark.rule("REF-1", "CLOSE-40")
def test_each_way_to_a_descriptor_counts_one(registry: ss.Registry, actors: Actors) -> None:
    """Create, accept and import each add one; each close takes one; a client counts for itself."""
    (target,) = actors.start("target")
    with ss.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        client, _ = listener.accept()
        assert (listener.references(), client.references()) == (1, 1)
        info = client.share(target.pid)
        assert (listener.references(), client.references()) == (1, 2)
        target.do("take", info)
        assert client.references() == 2
        twin = client.dup()
        assert client.references() == 3
        assert [holder.pid for holder in client.holders()] == [os.getpid(), target.pid, os.getpid()]
        assert [holder.kind for holder in client.holders()] == ["descriptor"] * 3
        twin.close()
        assert client.references() == 2
        client.close()
        assert target.do("references") == 1
        assert is_open_for(peer)
        target.close()
        wait_end_of(peer)
        assert counted(registry) == 0


@pytest.mark.rule("REF-5", "REF-2")
@pytest.mark.parametrize("order", list(itertools.permutations(("source", "child", "grandchild"))))
def test_the_order_of_closes_is_irrelevant(
    registry: ss.Registry,
    actors: Actors,
    peer_and_local: tuple[socket.socket, ss.SharedSocket],
    order: tuple[str, ...],
) -> None:
    """KB 198663, KB 229658: the socket leaked when the source was closed first. Here only the count decides."""
    peer, local = peer_and_local
    everybody = actors.start("source", "child", "grandchild")
    source, child, grandchild = everybody
    actors.share(local, source)
    local.close()
    source.give_to(child)
    child.give_to(grandchild)
    assert counted(registry) == 3
    for left, name in zip((2, 1, 0), order, strict=True):
        assert is_open_for(peer)
        actors[name].close()
        wait_until(lambda left=left: counted(registry) == left, f"{left} references")  # type: ignore[misc]
    wait_end_of(peer)
    for one in everybody:
        assert one.thread("main").recv(1).outcome() == Raised("NotASocket", 10038, 9)


@pytest.mark.rule("REF-2")
def test_a_close_that_is_not_the_last_changes_nothing(
    actors: Actors, peer_and_local: tuple[socket.socket, ss.SharedSocket]
) -> None:
    """Names, options and queued data are the socket's, not the descriptor's."""
    peer, local = peer_and_local
    (other,) = actors.share(local, count=1)
    local.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.sendall(b"queued")
    names = local.getsockname(), local.getpeername()
    local.close()
    assert other.do("call_with", _looks) == (names, 1)
    assert other.recv(16) == b"queued"


def _looks(has: Belongings) -> tuple[Any, int]:
    shared = has["socket"]
    names = shared.getsockname(), shared.getpeername()
    return names, shared.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.rule("EXIT-1")
@pytest.mark.parametrize("way", ["SIGKILL", "exit", "os._exit", "exit without a close"])
def test_a_process_that_ends_gives_back_what_it_held(
    registry: ss.Registry, actors: Actors, peer_and_local: tuple[socket.socket, ss.SharedSocket], way: str, bounds: Any
) -> None:
    """LPWSPCLEANUP: a process may end without cleanup; its references go, the other holders are unaffected."""
    peer, local = peer_and_local
    one, two = actors.share(local, count=2)
    reading = two.thread("reader").recv(16)
    two.wait_until_blocked("reader")
    assert local.references() == 3
    if way == "SIGKILL":
        one.kill()
    elif way == "os._exit":
        one.thread("main").call(os._exit, 0)
        one.wait_dead()
    else:
        one.exit(close=way == "exit")
    bounds.check("T_reap", wait_until(lambda: local.references() == 2, "the reference of the dead"))
    assert {holder.pid for holder in local.holders()} == {os.getpid(), two.pid}
    assert not reading.is_done()
    peer.sendall(b"still here")
    assert reading.value() == b"still here"
    assert is_open_for(peer)
