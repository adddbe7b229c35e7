"""Every kind of socket, in every state, comes out of a ticket as what went in; and what its holders have in common."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Actors, Raised, Received, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors.kinds import (
    DATAGRAM_KINDS,
    LISTENER_KINDS,
    LOOPBACK,
    STREAM_KINDS,
    client_of,
    full_door,
    listener_of,
    pair_of,
)
from tests.descriptors.sharers import cookie_in, cookie_of, is_open_for, wait_end_of, wait_until


def _what(has: Belongings) -> tuple[int, int, int, Any, Any]:
    shared = has["socket"]
    return shared.family, shared.type, shared.proto, shared.getsockname(), shared.getpeername()


# -- F-17: kinds ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-17", "F-37")
@pytest.mark.rule("DUP-2", "DUP-14", "DUP-21", "REF-2")
@pytest.mark.parametrize("kind", [*STREAM_KINDS, *DATAGRAM_KINDS])
def test_each_kind_goes_over_whole(actors: Actors, kind: str) -> None:
    """LPWSPSOCKET: the new descriptor refers to the same socket; each may send and receive."""
    (target,) = actors.start("target")
    with pair_of(kind) as pair:
        ours = pair.local
        target.do("take", ours.share(target.pid))
        assert target.do("call_with", cookie_in) == cookie_of(ours)
        protocol = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
        what = ours.family, ours.type, protocol, ours.getsockname(), ours.getpeername()
        assert target.do("call_with", _what) == what
        target.sendall(b"theirs")
        ours.sendall(b"ours")
        is_stream = kind in STREAM_KINDS and kind != "unix-seqpacket"
        assert [pair.peer.recv(10), b"" if is_stream else pair.peer.recv(10)] in (
            [b"theirsours", b""],
            [b"theirs", b"ours"],
        )
        reading = target.thread("reader").recv(32)
        target.wait_until_blocked("reader")
        ours.close()
        pair.peer.send(b"to the one that is left")
        assert reading.value() == b"to the one that is left"
        if kind in STREAM_KINDS:
            assert is_open_for(pair.peer)
            target.close()
            wait_end_of(pair.peer)


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25", "CLOSE-43")
@pytest.mark.parametrize("kind", LISTENER_KINDS)
def test_a_listener_goes_over_with_its_backlog(actors: Actors, kind: str) -> None:
    """The client that came before the ticket is accepted by its redeemer, after the sharer's close."""
    (target,) = actors.start("target")
    with listener_of(kind) as listener, client_of(listener) as early:
        name = listener.getsockname()
        target.do("take", listener.share(target.pid))
        listener.close()
        target.thread("main").accept().value()
        target.sendall(b"welcome", on="client")
        assert early.recv(16) == b"welcome"
        accepting = target.thread("acceptor").accept(into="late")
        target.wait_until_blocked("acceptor")
        with socket.socket(early.family, early.type) as late:
            late.connect(name)
            accepting.value()
        target.close()
        with socket.socket(early.family, early.type) as too_late, pytest.raises(OSError) as caught:
            too_late.connect(name)
        assert caught.value.errno in (errno.ECONNREFUSED, errno.ENOENT)


# -- DUP-25: states ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25")
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "unix-stream"])
def test_an_unconnected_socket_is_connected_by_whoever_does(actors: Actors, kind: str) -> None:
    """The state is the socket's: what the redeemer connects is connected for the sharer."""
    (target,) = actors.start("target")
    with listener_of(kind) as listener, ss.SharedSocket(listener.family, listener.type) as ours:
        target.do("take", ours.share(target.pid))
        with pytest.raises(OSError) as caught:
            ours.getpeername()
        assert caught.value.errno == errno.ENOTCONN
        target.do("call_with", _connect, listener.getsockname())
        far, _ = listener.accept()
        with far:
            assert ours.getpeername() == listener.getsockname()
            ours.sendall(b"by both")
            assert far.recv(16) == b"by both"


def _connect(has: Belongings, address: Any) -> None:
    has["socket"].connect(address)


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_unconnected_datagram_socket_keeps_its_name(actors: Actors, family: socket.AddressFamily) -> None:
    """Bound, never connected: what is sent to it is received by either holder, once."""
    (target,) = actors.start("target")
    with ss.SharedSocket(family, socket.SOCK_DGRAM) as ours, socket.socket(family, socket.SOCK_DGRAM) as far:
        ours.bind((LOOPBACK[family], 0))
        far.bind((LOOPBACK[family], 0))
        target.do("take", ours.share(target.pid))
        name = ours.getsockname()
        ours.close()
        far.sendto(b"ping", name)
        assert target.recv(16) == b"ping"
        target.do("call_with", _send_to, far.getsockname())
        assert far.recvfrom(16) == (b"pong", name)


def _send_to(has: Belongings, address: Any) -> None:
    has["socket"].sendto(b"pong", address)


@contextmanager
def connecting(kind: str) -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    """Give a socket whose connect has begun, and the listener whose full backlog holds it up."""
    with full_door(kind) as door, ss.SharedSocket(door.family, socket.SOCK_STREAM) as ours:
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.connect(door.getsockname())
        yield ours, door


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25")
@pytest.mark.parametrize("outcome", ["accepted", "refused"])
def test_a_socket_that_is_connecting_goes_on_elsewhere(actors: Actors, outcome: str) -> None:
    """The attempt belongs to the socket: its outcome reaches the redeemer, after the sharer's close."""
    (target,) = actors.start("target")
    with connecting("tcp4") as (ours, door):
        name = ours.getsockname()
        target.do("take", ours.share(target.pid))
        ours.close()
        connecting_there = target.thread("connector").do("call_with", _connect, door.getsockname())
        target.wait_until_blocked("connector")
        if outcome == "refused":
            target.close()
            assert str(connecting_there.outcome()) == "OperationAborted 10004"
            return
        door.settimeout(60)
        address = None
        while address != name:  # make room: those that filled the backlog come first
            client, address = door.accept()
            client.close()
        assert connecting_there.outcome() == Returned(None)


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25", "DUP-18")
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "unix-stream"])
def test_a_shut_down_socket_is_shut_down_for_its_redeemer(actors: Actors, kind: str) -> None:
    """Both directions: what the kernel keeps, and what it does not tell (SD_RECEIVE)."""
    (target,) = actors.start("target")
    with pair_of(kind) as pair:
        pair.local.shutdown(socket.SHUT_WR)
        target.do("take", pair.local.share(target.pid))
        assert target.thread("main").send(b"x").outcome() == Raised("BrokenPipeError", 10058, errno.EPIPE)
        pair.peer.sendall(b"one way still open")
        assert target.recv(32) == b"one way still open"
        pair.local.shutdown(socket.SHUT_RD)
        outcome = target.thread("main").recv(1).outcome()
        assert isinstance(outcome, Raised)
        assert outcome.winerror == 10058


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25")
def test_a_reset_connection_is_reset_for_its_redeemer(actors: Actors) -> None:
    """Reset before the ticket was made: the redeemer is not told that the peer has finished."""
    (target,) = actors.start("target")
    with pair_of("tcp4") as pair:
        pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.peer.close()
        poll = select.poll()
        poll.register(pair.local.fileno(), select.POLLIN)
        assert poll.poll(60_000)
        target.do("take", pair.local.share(target.pid))
        assert target.thread("main").recv(1).outcome() == Raised("ConnectionResetError", 10054, errno.ECONNRESET)
        with pytest.raises(ConnectionResetError):
            pair.local.recv(1)


@pytest.mark.fault("F-17")
@pytest.mark.rule("DUP-25")
def test_a_unix_path_stays_the_sockets_name(actors: Actors) -> None:
    """AF_UNIX path names: the same for every holder, and bound once."""
    (target,) = actors.start("target")
    with tempfile.TemporaryDirectory() as directory, ss.SharedSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        path = os.path.join(directory, "name")
        ours.bind(path)
        target.do("take", ours.share(target.pid))
        ours.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.sendto(b"by name", path)
        assert target.recv(16) == b"by name"


# -- what all have in common, and what each has alone -----------------------------------------------------------------


@pytest.mark.rule("DUP-1")
def test_sharing_changes_nothing_for_the_sharer(actors: Actors) -> None:
    """LPWSPDUPLICATESOCKET: the descriptor is unchanged and stays open; also one that is in use."""
    (target,) = actors.start("target")
    with pair_of("tcp4") as pair:
        before = pair.local.descriptor, pair.local.fileno(), pair.local.gettimeout(), cookie_of(pair.local)
        info = pair.local.share(target.pid)
        assert isinstance(info, bytes)
        assert before == (pair.local.descriptor, pair.local.fileno(), pair.local.gettimeout(), cookie_of(pair.local))
        pair.local.sendall(b"unchanged")
        assert pair.peer.recv(16) == b"unchanged"
        assert ss.revoke(info)


@pytest.mark.rule("DUP-15", "DUP-14")
@pytest.mark.parametrize("kind", ["tcp4", "udp4", "unix-stream", "unix-dgram", "unix-seqpacket"])
def test_what_one_has_received_is_gone_for_all(actors: Actors, kind: str) -> None:
    """Sixteen messages, one queue: each is received once, by whoever comes."""
    (target,) = actors.start("target")
    with pair_of(kind) as pair:
        target.do("take", pair.local.share(target.pid))
        messages = [b"message %02d" % number for number in range(16)]
        for message in messages:
            pair.peer.send(message)
        received = []
        for _ in range(8):
            received.append(target.recv(10))
            received.append(pair.local.recv(10))
        assert received == messages
        pair.local.settimeout(0)
        with pytest.raises(BlockingIOError):
            pair.local.recv(10)


@pytest.mark.rule("DUP-16")
def test_an_option_set_by_one_is_seen_by_all(actors: Actors) -> None:
    """LPWSPDUPLICATESOCKET: options of the socket are common; both directions, kernel's and ours."""
    (target,) = actors.start("target")
    with pair_of("tcp4") as pair:
        target.do("take", pair.local.share(target.pid))
        pair.local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert target.do("call_with", _option, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        target.do("call_with", _set_option, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        linger = struct.pack("ii", 1, 42)
        target.do("set_linger", True, 42)
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
        target.do("set_linger", False, 0)
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == struct.pack("i", 0)


def _option(has: Belongings, level: int, name: int) -> int:
    return has["socket"].getsockopt(level, name)


def _set_option(has: Belongings, level: int, name: int, value: int) -> None:
    has["socket"].setsockopt(level, name, value)


@pytest.mark.rule("DUP-18")
def test_a_shutdown_is_felt_by_every_holder(actors: Actors) -> None:
    """LPWSPSHUTDOWN through one descriptor; the peer sees the FIN, the others cannot send."""
    one, two = actors.start("one", "two")
    with pair_of("tcp4") as pair:
        actors.share(pair.local, one, two)
        one.do("shutdown", socket.SHUT_WR)
        wait_end_of(pair.peer)
        assert two.thread("main").send(b"x").outcome() == Raised("BrokenPipeError", 10058, errno.EPIPE)
        with pytest.raises(BrokenPipeError):
            pair.local.send(b"x")
        two.do("shutdown", socket.SHUT_RD)
        for outcome in (one.thread("main").recv(1).outcome(), two.thread("main").recv(1).outcome()):
            assert isinstance(outcome, Raised)
            assert outcome.winerror == 10058


@pytest.mark.rule("DUP-19")
def test_a_descriptor_is_its_process_alone(actors: Actors) -> None:
    """Number, timeout, pending operations, closed or not: each process has its own."""
    one, two = actors.start("one", "two")
    with pair_of("tcp4") as pair:
        actors.share(pair.local, one, two)
        one.do("set_timeout", 0.0)
        assert one.thread("main").recv(1).outcome() == Raised("BlockingIOError", 10035, errno.EAGAIN)
        waiting = two.thread("reader").recv(8)
        two.wait_until_blocked("reader")
        assert two.call(_pending) == 1
        assert one.call(_pending) == 0
        assert pair.local.pending_operations() == ()
        assert pair.local.gettimeout() is None
        one.close()
        assert one.thread("main").recv(1).outcome() == Raised("NotASocket", 10038, errno.EBADF)
        assert not waiting.is_done()
        pair.peer.sendall(b"for two")
        assert waiting.outcome() == Received(b"for two")
        wait_until(lambda: pair.local.references() == 2, "the count to be true")


def _pending() -> int:
    return ss.statistics().pending
