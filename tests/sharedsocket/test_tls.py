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
    HOST,
    Contexts,
    Parties,
    make_contexts,
    talking,
    talking_to_the_stdlib,
    tcp_pair,
    wait_blocked,
)

BIG = os.urandom(1 << 16) * 24


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


def receive_all(secured: Any, size: int) -> bytes:
    """Receive so many bytes."""
    found = bytearray()
    while len(found) < size:
        data = secured.recv(1 << 16)
        assert data
        found += data
    return bytes(found)


# -- the session --------------------------------------------------------------------------------------------------


def test_what_the_session_tells(parties: Parties) -> None:
    client, server, *_ = parties
    assert client.version() == server.version() != None  # noqa: E711
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
    client.settimeout(5.0)
    assert below.gettimeout() == client.gettimeout() == client.timeout == 5.0
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
    server.settimeout(10)
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
