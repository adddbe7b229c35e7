"""wrap_tls: the methods of ssl.SSLSocket over a descriptor. What a close does to them is in test_tls_closing.py."""

from __future__ import annotations

import copy
import http.client
import http.server
import os
import pickle
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sharedsock as ss
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
    talking_to_the_stdlib,
    tcp_pair,
)


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


# -- the session --------------------------------------------------------------------------------------------------


def test_what_the_session_tells(parties: Parties) -> None:
    client, server, *_ = parties
    assert client.version() == server.version()
    assert client.version().startswith("TLSv1")
    assert client.cipher() == server.cipher()
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "test/1"
    assert client.getpeercert()["subjectAltName"] == (("DNS", HOST),)
    assert ssl.DER_cert_to_PEM_cert(client.getpeercert(binary_form=True)).startswith("-----BEGIN CERT")
    assert server.getpeercert() is None
    assert client.server_hostname == HOST
    assert (client.server_side, server.server_side) == (False, True)
    assert server.shared_ciphers()
    assert client.compression() is None
    assert client.get_channel_binding() == server.get_channel_binding()
    assert not client.session_reused


def test_what_the_socket_tells(parties: Parties) -> None:
    client, _, below, peer = parties
    assert client.fileno() == below.fileno()
    assert client.getsockname() == peer.getpeername()
    assert client.descriptor == below.descriptor
    client.settimeout(60)
    assert below.gettimeout() == client.gettimeout() == client.timeout == 60.0
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert below.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert (client.family, client.type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert client.references() == 1
    assert "TLSv1" in repr(client)
    with pytest.raises(AttributeError, match="recvmsg"):
        client.recvmsg(1)


def test_a_session_is_resumed() -> None:
    contexts = make_contexts()
    contexts.client.maximum_version = ssl.TLSVersion.TLSv1_2  # its session is complete after the handshake
    with talking(contexts) as first:
        session = first.client.session
    ours, theirs = tcp_pair()
    with ours, theirs:
        serving = Call(lambda: ss.wrap_tls(contexts.server, theirs, server_side=True))
        again = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, session=session)
        serving.outcome()
        assert again.session_reused


def test_a_certificate_for_somebody_else_is_refused(contexts: Contexts) -> None:
    """The alert reaches the peer; both sockets are open still, and closed by their owner."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        serving = Call(lambda: ss.wrap_tls(contexts.server, theirs, server_side=True))
        with pytest.raises(ssl.SSLCertVerificationError):
            ss.wrap_tls(contexts.client, ours, server_hostname="elsewhere")
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            serving.outcome()
        assert ours.fileno() >= 0


def test_a_peer_that_speaks_no_tls_is_refused(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        theirs.sendall(b"220 hello, this is no TLS\r\n")
        with pytest.raises(ssl.SSLError):
            ss.wrap_tls(contexts.client, ours, server_hostname=HOST)


def test_what_wrap_tls_refuses(contexts: Contexts) -> None:
    """Before a byte has moved."""
    a, b = tcp_pair()
    with a, b, ss.SharedSocket() as alone, ss.SharedSocket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(TypeError, match="adopt"):
            ss.wrap_tls(contexts.client, socket.socket, server_hostname=HOST)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="stream"):
            ss.wrap_tls(contexts.client, datagrams, server_hostname=HOST)
        with pytest.raises(ValueError, match="client's"):
            ss.wrap_tls(contexts.server, a, server_side=True, server_hostname=HOST)
        with pytest.raises(ValueError, match="server_hostname"):
            ss.wrap_tls(contexts.client, a)
        with pytest.raises(OSError) as caught:
            ss.wrap_tls(contexts.client, alone, server_hostname=HOST)
        assert caught.value.winerror == 10057  # type: ignore[attr-defined]
        a.setblocking(False)
        with pytest.raises(ValueError, match="handshake"):
            ss.wrap_tls(contexts.client, a, server_hostname=HOST)
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            b.recv(1)


# -- bytes --------------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways_at_once(parties: Parties) -> None:
    """Two threads on each side, more than any buffer holds."""
    client, server, *_ = parties
    calls = [Call(one.sendall, BIG) for one in (client, server)]
    receipts = [Call(receive_all, one, len(BIG)) for one in (client, server)]
    for receipt in receipts:
        assert receipt.outcome() == BIG
    for call in calls:
        call.outcome()


def test_the_standard_library_understands(contexts: Contexts) -> None:
    with talking_to_the_stdlib(contexts) as (client, server):
        sending = Call(client.sendall, BIG)
        assert receive_all(server, len(BIG)) == BIG
        sending.outcome()
        server.sendall(b"and back")
        assert client.recv(100) == b"and back"
        finishing = Call(server.unwrap)
        client.unwrap().sendall(b"plain")
        assert finishing.outcome().recv(5) == b"plain"


def test_every_way_to_receive(parties: Parties) -> None:
    client, server, *_ = parties
    server.sendall(b"abcdefghijklmnop")
    assert client.recv(3) == b"abc"
    buffer = bytearray(8)
    assert client.recv_into(buffer, 3) == 3
    assert client.recv_into(memoryview(buffer)[3:]) == 5
    assert buffer == b"defghijk"
    assert client.read(2) == b"lm"
    assert client.read(2, buffer) == 2
    assert client.recv(0) == b""
    assert client.pending() == 1
    assert client.recv() == b"p"
    with pytest.raises(ValueError, match="too small"):
        client.recv_into(bytearray(1), 2)
    with pytest.raises(ValueError, match="negative"):
        client.recv(-1)
    for call in (lambda: client.recv(1, socket.MSG_PEEK), lambda: client.send(b"x", 1), lambda: client.sendall(b"", 1)):
        with pytest.raises(ValueError, match="flags"):
            call()


def test_every_way_to_send(parties: Parties) -> None:
    client, server, *_ = parties
    assert client.send(b"ab") == 2
    assert client.write(memoryview(b"cd")) == 2
    client.sendall(bytearray(b"ef"))
    assert client.send(b"") == 0
    client.sendall(b"")
    assert receive_all(server, 6) == b"abcdef"
    assert client.send(bytes(1 << 20)) == 1 << 16


def test_pending_tells_what_no_selector_sees(parties: Parties) -> None:
    """Several records come in one receive of the wire; none may be forgotten before the next select()."""
    client, server, *_ = parties
    for word in (b"one", b"two", b"three"):
        server.send(word)
    select.select([client], [], [])
    assert client.pending() == 0
    found = client.recv(100)
    while client.pending():
        found += client.recv(100)
    if found != b"onetwothree":  # the rest was late
        found += receive_all(client, len(b"onetwothree") - len(found))
    assert found == b"onetwothree"


def test_makefile_reads_lines_and_defers_the_close(parties: Parties) -> None:
    client, server, below, _ = parties
    with client.makefile("rwb") as file:
        client.close()
        file.write(b"over a file\n")
        file.flush()
        with server.makefile("r", encoding="ascii") as lines:
            assert lines.readline() == "over a file\n"
        server.sendall(b"answer\n")
        assert file.readline() == b"answer\n"
        assert below.fileno() >= 0
    assert below.fileno() == -1
    with pytest.raises(ss.NotASocket):
        client.recv(1)


# -- never shared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["share", "ticket", "lend", "dup", "detach"])
def test_tls_state_is_not_shared(parties: Parties, name: str) -> None:
    client, *_ = parties
    with pytest.raises(OSError, match="before wrap_tls") as caught:
        getattr(client, name)(*([os.getpid()] if name in ("share", "lend") else []))
    assert caught.value.winerror == 10045  # type: ignore[attr-defined]
    assert client.references() == 1


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_tls_state_is_not_pickled_or_copied(parties: Parties, make: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="TLS state"):
        make(parties.client)


# -- used for real ------------------------------------------------------------------------------------------------


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.connection, TLSSocket)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BIG)

    def log_message(self, format: str, *args: Any) -> None:  # as in the base class
        pass


def test_http_over_tls(contexts: Contexts) -> None:
    """http.server and http.client see a socket like any other."""

    class Server(http.server.HTTPServer):
        def get_request(self) -> Any:
            client, address = self.socket.accept()
            assert isinstance(client, ss.SharedSocket)
            return ss.wrap_tls(contexts.server, client, server_side=True), address

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            plain = ss.create_connection((self.host, self.port))
            self.sock: Any = ss.wrap_tls(contexts.client, plain, server_hostname=HOST)

    server = Server(("127.0.0.1", 0), _Page, bind_and_activate=False)
    server.socket.close()
    server.socket = ss.create_server(("127.0.0.1", 0))
    serving = Call(server.handle_request)
    connection = Connection(*server.socket.getsockname())
    connection.request("GET", "/")
    assert connection.getresponse().read() == BIG
    connection.close()
    serving.outcome()
    server.server_close()
