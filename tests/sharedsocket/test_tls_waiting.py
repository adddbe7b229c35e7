"""TLS calls that have to wait: timeouts, nonblocking calls, interrupts. What is under way is never lost or doubled."""

from __future__ import annotations

import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.tls import TLSSocket
from tests.kernel.stage import Call
from tests.sharedsocket.tls_parties import (
    BIG,
    HOST,
    Contexts,
    Parties,
    make_contexts,
    receive_all,
    talking,
    tcp_pair,
    wait_blocked,
    wire,
)

__all__ = ["wire"]  # every test of this file over a descriptor, and over a chain of providers


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    """TLS 1.3."""
    return make_contexts()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def parties(request: pytest.FixtureRequest) -> Iterator[Parties]:
    """Both sides of a connection, of each version."""
    contexts = make_contexts()
    contexts.client.maximum_version = request.param
    with talking(contexts) as found:
        yield found


# -- timeouts -----------------------------------------------------------------------------------------------------


def test_a_timeout_takes_nothing(parties: Parties) -> None:
    client, server, *_ = parties
    client.settimeout(0.02)
    with pytest.raises(TimeoutError) as caught:
        client.recv(10)
    assert caught.value.winerror == 10060  # type: ignore[attr-defined]
    server.sendall(b"later")
    client.settimeout(None)
    assert client.recv(10) == b"later"


def test_a_timeout_is_for_the_whole_call(contexts: Contexts) -> None:
    """Bytes that are no whole record keep the wire busy, and the caller waiting: his time runs all the same."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.settimeout(0.1)
        fed = threading.Event()

        def trickle() -> None:
            theirs.sendall(b"\x16\x03\x03\x40\x00")  # the head of a record of 16 KiB
            while not fed.wait(0.01):
                theirs.sendall(b"\x02")

        feeding = Call(trickle)
        with pytest.raises(TimeoutError):
            ss.wrap_tls(contexts.client, ours, server_hostname=HOST)
        fed.set()
        feeding.outcome()


def test_nonblocking_calls_say_what_to_wait_for(parties: Parties) -> None:
    """ssl's own errors, which are BlockingIOError (10035) as well."""
    client, server, *_ = parties
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError) as wants_read:
        client.recv(1)
    with pytest.raises(ssl.SSLWantWriteError) as wants_write:
        while True:
            client.send(BIG)
    for caught in (wants_read, wants_write):
        error: Any = caught.value
        assert isinstance(error, BlockingIOError)
        assert error.winerror == 10035  # type: ignore[attr-defined]
    with pytest.raises(ssl.SSLWantWriteError):
        client.sendall(BIG)
    server.settimeout(60)
    assert server.recv(1)


def test_a_nonblocking_file_has_nothing(parties: Parties) -> None:
    """SocketIO: None while nothing has arrived."""
    client, *_ = parties
    client.setblocking(False)
    with client.makefile("rb", buffering=0) as file:
        assert file.read(1) is None


def test_a_handshake_without_waiting(contexts: Contexts) -> None:
    """Both sides in one thread, each step when there is something to do."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        for s in (ours, theirs):
            s.setblocking(False)
        client = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, do_handshake_on_connect=False)
        server = ss.wrap_tls(contexts.server, theirs, server_side=True, do_handshake_on_connect=False)
        left = [client, server]
        while left:
            for one in tuple(left):
                try:
                    one.do_handshake()
                    left.remove(one)
                except ssl.SSLWantReadError:
                    pass
        assert client.version() == "TLSv1.3"
        client.do_handshake()


def test_the_first_call_shakes_hands_if_nobody_has(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        client = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, do_handshake_on_connect=False)
        server = ss.wrap_tls(contexts.server, theirs, server_side=True, do_handshake_on_connect=False)
        receiving = Call(server.recv, 10)
        client.sendall(b"hello")
        assert receiving.outcome() == b"hello"


def test_a_blocking_handshake_on_a_nonblocking_socket(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        client = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, do_handshake_on_connect=False)
        serving = Call(lambda: ss.wrap_tls(contexts.server, theirs, server_side=True))
        client.do_handshake(block=True)
        serving.outcome()


@pytest.mark.parametrize("timeout_s", [0.0, 0.02])
def test_what_a_send_has_taken_arrives_once(parties: Parties, timeout_s: float) -> None:
    """A send whose record did not fit into the line has taken it all the same: the next call brings it on its way."""
    client, server, *_ = parties
    client.settimeout(timeout_s)
    sent = 0
    with pytest.raises((BlockingIOError, TimeoutError)):
        while True:
            sent += client.send(BIG[sent % len(BIG) :][: 1 << 14])
    receiving = Call(receive_all, server, sent)
    client.settimeout(None)
    client.sendall(b"")
    client.send(b"!")
    found = receiving.outcome()
    assert found == (BIG * (sent // len(BIG) + 1))[:sent]
    assert server.recv(10) == b"!"


# -- interrupts ---------------------------------------------------------------------------------------------------


def interrupted_at(point: str, call: Callable[[], object]) -> None:
    """Run a call with a KeyboardInterrupt at a probe point, the first time this thread reaches it."""
    me = threading.get_ident()
    hits: list[str] = []

    def probe(found: str, context: object) -> None:
        if found == point and threading.get_ident() == me and not hits:
            hits.append(found)
            raise KeyboardInterrupt

    trace.hook = probe
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        trace.hook = None
    assert hits


@pytest.mark.parametrize("point", ["op.enter", "op.waiting", "op.ready", "op.done"])
def test_an_interrupted_receive_loses_nothing(parties: Parties, point: str) -> None:
    """What had been taken off the wire is fed by the next call, so that no record is ever cut."""
    client, server, *_ = parties
    answering = Call(lambda: server.sendall(b"hello" * 1000)) if point != "op.waiting" else None
    interrupted_at(point, lambda: client.recv(10_000))
    if answering is None:
        server.sendall(b"hello" * 1000)
    else:
        answering.outcome()
    assert receive_all(client, 5000) == b"hello" * 1000


def block(number: int) -> bytes:
    """Return 40,000 bytes that no other block has."""
    return struct.pack("!I", number) * 10_000


@pytest.mark.parametrize("point", ["op.enter", "op.waiting", "op.ready"])
def test_an_interrupted_send_loses_and_doubles_nothing(parties: Parties, point: str) -> None:
    """What the machine has produced is on the line or will be, each record once: else the peer could read no more."""
    client, server, *_ = parties
    sent: list[int] = []

    def fill() -> None:
        while True:
            client.sendall(block(len(sent)))
            sent.append(1)

    draining = Call(receive_until, server, b"the end")
    interrupted_at(point, fill)
    client.sendall(b"the end")
    found = draining.outcome().removesuffix(b"the end")
    # The one that was interrupted has been taken; its caller cannot know, as with any sendall().
    assert found == b"".join(map(block, range(len(sent) + 1)))


def receive_until(secured: TLSSocket, end: bytes) -> bytes:
    """Receive up to these bytes."""
    found = bytearray()
    while not found.endswith(end):
        found += secured.recv(1 << 16)
    return bytes(found)


def test_a_send_may_have_to_hear_the_peer_first(contexts: Contexts) -> None:
    """A peer of TLS 1.2 may ask for another handshake: the machine then writes only after it has read."""
    with talking(contexts) as (client, server, *_):
        server.sendall(b"!")
        assert client.recv(1) == b"!"  # and the session tickets before it
        session = client._session
        real, writes = session.machine, []

        class Renegotiating:
            def write(self, data: memoryview) -> int:
                writes.append(len(data))
                if len(writes) == 1:
                    raise ssl.SSLWantReadError
                return real.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        session.machine = Renegotiating()  # type: ignore[assignment]
        sending = Call(client.sendall, b"after all")
        wait_blocked(client, "sendall")
        server.sendall(b"the peer's part")
        sending.outcome()
        assert server.recv(100) == b"after all"
        assert client.recv(100) == b"the peer's part"
        assert writes == [9, 9]
