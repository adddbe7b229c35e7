"""How TLS over a descriptor ends: by a close of this process, a goodbye, the peer; and who is not touched by it."""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.tls import TLSSocket
from tests.kernel.stage import Call, wait_for
from tests.sharedsocket.tls_parties import (
    HOST,
    Contexts,
    Parties,
    make_contexts,
    talking,
    talking_to_the_stdlib,
    tcp_pair,
    wait_blocked,
    wire,
)

__all__ = ["wire"]  # every test of this file over a descriptor, and over a chain of providers

ENDS: dict[str, Callable[[Parties], object]] = {
    "close": lambda parties: parties.client.close(),
    "abort": lambda parties: parties.client.abort(),
    "the socket's close": lambda parties: parties.client_socket.close(),
}


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return make_contexts()


@pytest.fixture
def parties(contexts: Contexts) -> Iterator[Parties]:
    with talking(contexts) as found:
        yield found


# -- a close of this process ----------------------------------------------------------------------------------------


@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("recv", lambda client: client.recv(10)),
        ("recv", lambda client: client.makefile("rb").read(10)),
        ("sendall", lambda client: client.sendall(bytes(20_000_000))),
        ("unwrap", lambda client: client.unwrap()),
    ],
    ids=["recv", "makefile", "sendall", "unwrap"],
)
def test_a_close_ends_a_blocked_call(
    parties: Parties, bounds: Any, kind: str, call: Callable[[TLSSocket], object], end: str
) -> None:
    """Closing Sockets: operations of this process on the descriptor end; 10004 for a synchronous call."""
    client = parties.client
    blocked = Call(call, client)
    wait_blocked(client, kind)
    began_s = monotonic()
    if end == "close":
        client._io_refs = 0  # a close is deferred while a makefile() object is open, which is not the subject here
    ENDS[end](parties)
    error = blocked.error(ss.OperationAborted)
    bounds.check("T_abort", blocked.ended_s - began_s)
    assert (error.winerror, error.operation) == (10004, kind)
    assert error.closed_by
    for later in (lambda: client.recv(1), lambda: client.sendall(b"x"), client.unwrap, client.pending):
        with pytest.raises(ss.NotASocket) as caught:
            later()
        assert caught.value.winerror == 10038


@pytest.mark.rule("CLOSE-20")
def test_a_close_ends_a_handshake(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with theirs:
        secured = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, do_handshake_on_connect=False)
        shaking = Call(secured.do_handshake)
        wait_blocked(secured, "handshake")
        secured.close()
        assert shaking.error(ss.OperationAborted).operation == "handshake"


@pytest.mark.rule("CLOSE-20")
def test_a_close_ends_those_who_wait_for_their_turn(parties: Parties) -> None:
    """Of four that receive at once, one waits at the wire and three behind it."""
    client = parties.client
    blocked = [Call(client.recv, 10) for _ in range(4)]
    wait_blocked(client, "recv")
    client.close()
    for call in blocked:
        # One that had not begun yet finds the descriptor closed.
        call.thread.join()
        assert isinstance(call._error, ss.OperationAborted | ss.NotASocket)
    assert sum(isinstance(call._error, ss.OperationAborted) for call in blocked) >= 1


def test_several_receivers_share_the_stream(parties: Parties) -> None:
    """Each record goes to one of them, whole; whoever has his turn later is not stuck behind the wire."""
    client, server, *_ = parties
    blocked = [Call(client.recv, 10) for _ in range(4)]
    for number in range(4):
        server.sendall(bytes([number]) * 10)
    assert sorted(call.outcome() for call in blocked) == [bytes([number]) * 10 for number in range(4)]


def test_a_close_leaves_no_plaintext_behind(parties: Parties) -> None:
    """Bytes that had been deciphered are not given out after the close: later use fails."""
    client, server, *_ = parties
    server.sendall(b"a word")
    assert client.recv(1) == b"a"
    client.close()
    client.close()
    with pytest.raises(ss.NotASocket):
        client.recv(5)


@pytest.mark.rule("CLOSE-32")
def test_an_aborted_sendall_tells_how_much_was_sent(parties: Parties) -> None:
    client = parties.client
    sending = Call(client.sendall, bytes(50_000_000))
    wait_blocked(client, "sendall")
    client.close()
    error = sending.error(ss.OperationAborted)
    assert 0 < error.bytes_transferred < 50_000_000
    assert error.bytes_transferred % (1 << 16) == 0


def test_a_refused_close_leaves_tls_usable(parties: Parties) -> None:
    """LINGER-4: 10035 changed nothing."""
    client, server, *_ = parties
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantWriteError):
        while True:
            client.send(bytes(1 << 14))
    with pytest.raises(BlockingIOError) as caught:
        client.close()
    assert caught.value.winerror == 10035  # type: ignore[attr-defined]
    assert server.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    client.close()


# -- the goodbye ----------------------------------------------------------------------------------------------------


def test_unwrap_says_goodbye_and_gives_the_socket_back(parties: Parties) -> None:
    client, server, below, peer = parties
    leaving = Call(server.unwrap)
    assert client.unwrap() is below
    assert leaving.outcome() is peer
    below.sendall(b"plain")
    assert peer.recv(10) == b"plain"
    with pytest.raises(ValueError, match="TLS has ended"):
        client.recv(1)
    client.close()
    assert below.fileno() >= 0


def test_plain_bytes_right_behind_the_goodbye_are_not_lost(contexts: Contexts) -> None:
    """They came in one piece with it, so TLS had them already; the socket's next receive has them."""
    with talking(contexts) as (client, server, below, peer):
        server_said = Call(server.unwrap)
        assert client.recv(1) == b""
        # The server waits for our goodbye. Ours and plain bytes leave together.
        below.settimeout(60)
        with below.dup() as line:
            client._session.machine.unwrap()
            line.sendall(client._session._outgoing.read() + b"plain " + b"bytes")
        plain = server_said.outcome()
        assert plain is peer
        found = b""
        while len(found) < 11:
            found += plain.recv(4)
        assert found == b"plain bytes"


def test_a_peer_s_goodbye_is_the_end(contexts: Contexts) -> None:
    """b"" again and again, and our own goodbye does not wait."""
    with talking_to_the_stdlib(contexts) as (client, server):
        server.sendall(b"last words")
        leaving = Call(server.unwrap)
        assert client.recv(100) == b"last words"
        assert client.recv(1) == b""
        assert client.recv_into(bytearray(1)) == 0
        client.unwrap()
        leaving.outcome()


@pytest.mark.parametrize("suppress", [True, False])
def test_an_end_without_a_goodbye(contexts: Contexts, suppress: bool) -> None:
    """As ssl.SSLSocket: suppressed unless asked for."""
    with talking_to_the_stdlib(contexts, suppress_ragged_eofs=suppress) as (client, server):
        server.sendall(b"cut")
        server.close()
        assert client.recv(3) == b"cut"
        for _ in range(2):
            if suppress:
                assert client.recv(1) == b""
            else:
                with pytest.raises(ssl.SSLEOFError):
                    client.recv(1)
        with pytest.raises(ssl.SSLError):  # nobody is left to say goodbye to
            client.unwrap()


@pytest.mark.rule("SHUT-14")
def test_a_reset_is_a_reset(contexts: Contexts) -> None:
    with talking_to_the_stdlib(contexts) as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        for _ in range(2):
            with pytest.raises(ConnectionResetError) as caught:
                client.recv(1)
            assert caught.value.winerror == 10054  # type: ignore[attr-defined]


def test_damaged_bytes_end_the_session(contexts: Contexts) -> None:
    """Somebody else writes to the shared socket: nothing of it is ever given out as plaintext."""
    with talking(contexts) as (client, _, _, peer):
        peer.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        calls: list[Callable[[], object]] = [client.recv, client.recv, lambda: client.sendall(b"x"), client.unwrap]
        for call in calls:
            with pytest.raises(ssl.SSLError, match="BAD_RECORD"):
                call()
        client.close()


# -- other processes --------------------------------------------------------------------------------------------


def _serve_upper(listener: ss.SharedSocket, context: ssl.SSLContext) -> None:
    with listener:
        client, _ = listener.accept()
    with ss.wrap_tls(context, client, server_side=True) as secured:
        while data := secured.recv(1 << 16):
            secured.sendall(data.upper())
        secured.unwrap().close()


def fork(target: Callable[..., object], *arguments: Any) -> Any:
    """Start a child."""
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


def reap(child: Any) -> None:
    """Wait for a child, which must have ended well."""
    child.join()
    assert child.exitcode == 0
    child.close()


def test_two_processes_talk(registry: ss.Registry, contexts: Contexts) -> None:
    """The child serves on a listener the parent has bound, handed over and closed."""
    listener = ss.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    child = fork(_serve_upper, listener, contexts.server)
    listener.close()
    with ss.wrap_tls(contexts.client, ss.create_connection(address), server_hostname=HOST) as client:
        data = b"spoken in two processes" * 20_000
        sending = Call(client.sendall, data)
        found = b""
        while len(found) < len(data):
            found += client.recv(1 << 16)
        sending.outcome()
        assert found == data.upper()
        client.unwrap().close()
    reap(child)


def _hold(shared: ss.SharedSocket, held: Any, done: Any) -> None:
    with shared:
        held.set()
        done.wait()
        assert shared.references() == 1


@pytest.mark.rule("CLOSE-28", "REF-2")
def test_a_close_here_leaves_the_socket_to_the_other_process(registry: ss.Registry, contexts: Contexts) -> None:
    """Our blocked TLS receive ends; the peer sees no end while another process holds the socket."""
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    with talking(contexts) as (client, server, below, _):
        child = fork(_hold, below, held, done)
        held.wait()
        wait_for(lambda: below.references() == 2, "the child's reference")
        blocked = Call(client.recv, 10)
        wait_blocked(client, "recv")
        client.close()
        blocked.error(ss.OperationAborted)
        server.settimeout(0.02)
        with pytest.raises(TimeoutError):
            server.recv(1)
        server.sendall(b"to whoever is there")
        done.set()
        reap(child)
        server.settimeout(60)
        with pytest.raises(OSError) as caught:  # unread bytes: reset
            while server.recv(1):
                pass
            raise ConnectionResetError(104, "or an end")
        assert caught.value.errno == 104


def _use(secured: TLSSocket, others: Any) -> None:
    for call in (lambda: secured.recv(1), lambda: secured.sendall(b"x"), secured.unwrap, secured.pending):
        with pytest.raises(ss.ForkedDescriptor):
            call()
    secured.close()
    with pytest.raises(OSError):
        others.share(None)


def test_a_forked_child_has_no_tls(registry: ss.Registry, contexts: Contexts) -> None:
    """Two processes with one set of keys and counters would break both: no ticket is minted for what is below."""
    with talking(contexts) as (client, server, below, _):
        child = fork(_use, client, client)
        reap(child)
        assert below.references() == 1
        server.sendall(b"unharmed")
        assert client.recv(10) == b"unharmed"
        client.sendall(b"both ways")
        assert server.recv(10) == b"both ways"


def _use_below(secured: TLSSocket, below: ss.SharedSocket) -> None:
    assert below.references() == 2
    with pytest.raises(ss.ForkedDescriptor):
        secured.recv(1)
    below.close()


def test_a_child_that_gets_the_socket_below_gets_no_tls(registry: ss.Registry, contexts: Contexts) -> None:
    with talking(contexts) as (client, server, below, _):
        reap(fork(_use_below, client, below))
        server.sendall(b"unharmed")
        assert client.recv(10) == b"unharmed"


def test_tls_begins_where_the_connection_was_handed_to(registry: ss.Registry, contexts: Contexts) -> None:
    """Accept here, speak TLS there."""
    ours, theirs = tcp_pair()
    child = fork(_serve_connection, theirs, contexts.server)
    theirs.close()
    with ss.wrap_tls(contexts.client, ours, server_hostname=HOST) as client:
        client.sendall(b"who")
        assert client.recv(10) == b"a child"
    reap(child)


def _serve_connection(shared: ss.SharedSocket, context: ssl.SSLContext) -> None:
    with ss.wrap_tls(context, shared, server_side=True) as secured:
        assert secured.recv(10) == b"who"
        secured.sendall(b"a child")
        assert secured.recv(1) == b""
