"""Custody: only the announced socket comes in, and the last one out is closed as Winsock's last close is."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from sharedsock.model.identity import SocketId
from sharedsock.registry.custody import DRAIN_BYTES, DRAIN_S, Custody, Drain
from sharedsock.registry.facts import socket_facts

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, far:
        far.settimeout(60)
        yield ours, far


def take(custody: Custody, ours: socket.socket, number: int = 1) -> None:
    """Put the only descriptor of a socket into custody."""
    custody.keep(number, ours.detach())


def identity(ours: socket.socket) -> SocketId:
    facts = socket_facts(ours.fileno())
    assert facts is not None
    return facts.socket


def wait_arrived(ours: socket.socket) -> None:
    assert select.select([ours], [], [], 60)[0]


@pytest.mark.fault("F-34", "S-13")
def test_what_is_not_the_announced_socket_is_refused(pair: Pair) -> None:
    ours, far = pair
    custody = Custody()
    assert custody.admit(ours.fileno(), identity(ours)).family == socket.AF_INET
    twin = ours.dup()
    assert custody.admit(twin.fileno(), identity(ours)).socket == identity(ours), "the same socket by another number"
    twin.close()
    read_end, write_end = os.pipe()
    for number in (far.fileno(), read_end):
        with pytest.raises(OSError, match=r"another socket|not a socket"):
            custody.admit(number, identity(ours))
    os.close(read_end)
    os.close(write_end)
    assert len(custody) == 0


@pytest.mark.fault("F-17")
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_DGRAM),
    ],
)
def test_every_kind_of_socket_can_be_kept_and_closed(family: int, kind: int) -> None:
    with socket.socket(family, kind) as unconnected:
        custody = Custody()
        facts = custody.admit(unconnected.fileno(), identity(unconnected))
        assert (facts.family, facts.type) == (family, kind)
        take(custody, unconnected)
        assert custody.release(1, last=True, linger_s=None, now=0.0) is None
        assert len(custody) == 0


@pytest.mark.rule("REF-2")
@pytest.mark.parametrize("linger_s", [None, 0])
def test_a_release_that_is_not_the_last_leaves_the_socket_alone(pair: Pair, linger_s: int | None) -> None:
    ours, far = pair
    custody = Custody()
    custody.keep(1, os.dup(ours.fileno()))
    far.sendall(b"unread")
    wait_arrived(ours)
    assert custody.release(1, last=False, linger_s=linger_s, now=0.0) is None
    ours.sendall(b"goes on")
    assert far.recv(7) == b"goes on"
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)


@pytest.mark.rule("REF-4")
@pytest.mark.fault("F-64")
@pytest.mark.parametrize("linger_s", [None, 5], ids=["DONTLINGER", "LINGER(t)"])
def test_the_last_close_sends_what_is_queued_and_fin(pair: Pair, linger_s: int | None) -> None:
    ours, far = pair
    ours.sendall(b"x" * 10_000)
    custody = Custody()
    take(custody, ours)
    assert custody.release(1, last=True, linger_s=linger_s, now=0.0) is None
    received = b""
    while data := far.recv(65_536):
        received += data
    assert received == b"x" * 10_000


@pytest.mark.rule("LINGER-2")
@pytest.mark.fault("F-66")
def test_linger_zero_resets(pair: Pair) -> None:
    ours, far = pair
    custody = Custody()
    take(custody, ours)
    assert custody.release(1, last=True, linger_s=0, now=0.0) is None
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@pytest.mark.rule("REF-7")
@pytest.mark.fault("F-67")
def test_unread_input_is_drained_so_that_the_queued_data_arrives(pair: Pair) -> None:
    """close() with unread input would be a reset, which may destroy what we had queued."""
    ours, far = pair
    far.sendall(b"never read")
    wait_arrived(ours)
    ours.sendall(b"answer")
    custody = Custody()
    take(custody, ours)
    drain = custody.release(1, last=True, linger_s=None, now=0.0)
    assert drain is not None
    assert far.recv(16) == b"answer"
    assert far.recv(16) == b"", "FIN"
    far.sendall(b"more")
    wait_arrived(drain.connection)
    assert not drain.step(1.0)
    far.close()
    wait_arrived(drain.connection)
    assert drain.step(1.0), "the peer has ended its side"
    drain.close()


@pytest.mark.fault("F-67")
def test_a_drain_has_an_end_in_time_and_in_bytes(pair: Pair) -> None:
    ours, far = pair
    drain = Drain(ours, until=DRAIN_S)
    assert not drain.step(0.0)
    assert drain.step(DRAIN_S)
    far.sendall(b"y" * 100)
    wait_arrived(ours)
    greedy = Drain(ours, until=DRAIN_S, left_bytes=50)
    assert greedy.step(0.0)
    assert DRAIN_BYTES > 1 << 20


def test_unread_input_under_linger_zero_is_still_a_reset(pair: Pair) -> None:
    ours, far = pair
    far.sendall(b"unread")
    wait_arrived(ours)
    custody = Custody()
    take(custody, ours)
    assert custody.release(1, last=True, linger_s=0, now=0.0) is None
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_a_foreign_linger_time_does_not_block_the_registry(pair: Pair) -> None:
    """Rule 14: somebody set it on the kernel socket behind our back; the close must not wait for it."""
    import time

    ours, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setblocking(False)
    try:
        while True:
            ours.send(b"z" * 65_536)
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    custody = Custody()
    take(custody, ours)
    started = time.monotonic()
    custody.release(1, last=True, linger_s=None, now=0.0)
    assert time.monotonic() - started < 5.0


def test_a_listener_and_an_empty_number_are_just_closed() -> None:
    custody = Custody()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    take(custody, listener)
    assert custody.release(1, last=True, linger_s=None, now=0.0) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)
    assert custody.release(1, last=True, linger_s=None, now=0.0) is None, "doubled: no effect"
    custody.keep(2, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    custody.close()
    assert len(custody) == 0
