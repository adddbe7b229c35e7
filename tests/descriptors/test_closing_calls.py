"""F-38: a close ends each blocking call of its own process, on each kind of socket, and no call of another process.

Two processes block in the same call on one socket. One closes: its call ends with 10004 within T_abort and took
nothing; the other's has made no system call meanwhile, and afterwards does what it was called for.

Source: "Closing Sockets" (Winsock SPI); Windows Sockets 1.1 sec. 2.7 for the number.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Aborted, Accepted, Actor, Actors, Pending, Returned
from tests.descriptors import kinds
from tests.descriptors.sharers import give

ON = "socket"


@pytest.fixture(scope="module", params=[True, False], ids=["watched", "unwatched"])
def company(request: pytest.FixtureRequest) -> Iterator[tuple[Actor, Actor]]:
    """Unwatched, they take the fast paths, which a probe keeps them from."""
    with Actors("fork", is_watched=request.param) as actors:
        a, b = actors.start("A", "B")
        yield a, b


def close_under(actor: Actor, other: Actor, blocked: Pending, bounds: Any, how: str = "close") -> None:
    """Close in one process; its call is aborted in time, the other process's thread stays asleep in the same wait."""
    actor.wait_until_blocked("caller")
    asleep = other.wait_until_blocked("caller")
    closing = actor.thread("closer").do(how, on=ON)
    assert blocked.outcome() == Aborted(10004)
    assert closing.outcome() == Returned()
    bounds.check("T_abort", blocked.ended_s - closing.began_s)
    assert other.wait_until_blocked("caller") == asleep, "the other process made a system call meanwhile"


def how_to_close(call: str) -> str:
    """While a makefile() object is open a close is deferred, as in the stdlib; abort() is not."""
    return "abort" if call.startswith("makefile") else "close"


RECEIVING = [
    *((kind, call) for kind in (*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS) for call in kinds.RECEIVES),
    *((kind, call) for kind in ("tcp4", "unix-stream") for call in kinds.READERS),
]


@pytest.mark.fault("F-38", "I4")
@pytest.mark.rule("CLOSE-20", "CLOSE-28")
@pytest.mark.parametrize(("kind", "call"), RECEIVING)
def test_a_close_ends_this_process_s_receive_and_no_other_s(
    kind: str, call: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind) as pair:
        give(pair.local, a, b)
        ours = a.thread("caller").do("call_with", kinds.receive_by, call, ON)
        theirs = b.thread("caller").do("call_with", kinds.receive_by, call, ON)
        close_under(a, b, ours, bounds, how_to_close(call))
        assert kinds.is_silent(pair.peer)
        pair.peer.send(b"for B\n")
        assert theirs.value() == b"for B\n"
        b.close(on=ON)


SENDING = [
    *((kind, call) for kind in ("tcp4", "unix-stream") for call in kinds.SENDS),
    *((kind, call) for kind in ("tcp6", "unix-seqpacket", "unix-dgram") for call in ("send", "sendall", "sendmsg")),
    ("tcp6", "sendfile"),
]


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20", "CLOSE-28", "CLOSE-32")
@pytest.mark.parametrize(("kind", "call"), SENDING)
def test_a_close_ends_this_process_s_send_and_no_other_s(
    kind: str, call: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.pair_of(kind, send_buffer=8192, receive_buffer=4096) as pair:
        queued = kinds.fill(pair.local)
        give(pair.local, a, b)
        ours = a.thread("caller").do("call_with", kinds.send_by, call, b"aa", ON)
        theirs = b.thread("caller").do("call_with", kinds.send_by, call, b"bb", ON)
        close_under(a, b, ours, bounds, how_to_close(call))
        kinds.drain(pair.peer, queued)
        assert theirs.value() in (2, None)
        assert pair.peer.recv(16) == b"bb", "the aborted send has queued nothing"
        b.close(on=ON)


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-31")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_close_ends_this_process_s_accept_and_takes_no_client(
    kind: str, company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.listener_of(kind) as listener:
        address = listener.getsockname()
        family = listener.family
        give(listener, a, b)
        ours = a.thread("caller").accept(on=ON)
        theirs = b.thread("caller").accept(on=ON, into="client")
        close_under(a, b, ours, bounds)
        with socket.socket(family) as client:
            client.settimeout(kinds.PEER_TIMEOUT_S)
            client.connect(address)
            assert isinstance(theirs.outcome(), Accepted)
            b.sendall(b"hello", on="client")
            assert client.recv(16) == b"hello"
        b.close(on="client")
        b.close(on=ON)


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20", "CLOSE-30")
def test_a_close_ends_this_process_s_connect_and_the_attempt_belongs_to_the_socket(
    company: tuple[Actor, Actor], bounds: Any
) -> None:
    a, b = company
    with kinds.full_door("tcp4") as door, ss.SharedSocket(socket.AF_INET, socket.SOCK_STREAM) as local:
        address = door.getsockname()
        give(local, a, b)
        ours = a.thread("caller").do("call_with", kinds.connect_to, address, ON)
        a.wait_until_blocked("caller")
        theirs = b.thread("caller").do("call_with", kinds.connect_to, address, ON)
        close_under(a, b, ours, bounds)
        (_, inode) = b.do("facts", on=ON)
        assert _is_connecting(inode)
        b.close(on=ON)
        assert theirs.outcome() == Aborted(10004)
        assert not _is_connecting(inode), "the last close drops the half-open connection"


def _is_connecting(inode: int) -> bool:
    from sharedsock.testing.observation import tcp_sockets

    return any(found.inode == inode and found.state == 2 for found in tcp_sockets())  # SYN_SENT


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20")
def test_a_close_ends_a_connect_to_a_full_unix_backlog(company: tuple[Actor, Actor], bounds: Any) -> None:
    a, b = company
    with kinds.full_door("unix-stream") as door, ss.SharedSocket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        give(local, a, b)
        ours = a.thread("caller").do("call_with", kinds.connect_to, door.getsockname(), ON)
        theirs = b.thread("caller").do("call_with", kinds.connect_to, door.getsockname(), ON)
        a.wait_until_blocked("caller")
        b.wait_until_blocked("caller")
        closing = a.thread("closer").close(on=ON)
        assert ours.outcome() == Aborted(10004)
        bounds.check("T_abort", ours.ended_s - closing.began_s)
        assert not theirs.is_done()
        door.accept()[0].close()
        assert theirs.outcome() == Returned()
        b.close(on=ON)


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20", "CLOSE-28")
def test_a_close_ends_this_process_s_sendto_and_no_other_s(company: tuple[Actor, Actor], bounds: Any) -> None:
    """Of the kinds of datagram socket only a Unix one waits for room: its peer's queue is full."""
    a, b = company
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        path = f"{directory}/peer"
        peer.bind(path)
        peer.settimeout(kinds.PEER_TIMEOUT_S)
        with ss.SharedSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
            local.connect(path)
            queued = kinds.fill(local)
            give(local, a, b)
        ours = a.thread("caller").do("call_with", kinds.attribute_of, "sendto", ON, b"aa", path)
        theirs = b.thread("caller").do("call_with", kinds.attribute_of, "sendto", ON, b"bb", path)
        close_under(a, b, ours, bounds)
        kinds.drain(peer, queued)
        assert theirs.value() == 2
        assert peer.recv(16) == b"bb"
        b.close(on=ON)
