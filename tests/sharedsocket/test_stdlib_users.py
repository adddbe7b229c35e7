"""The standard library's users of sockets, over SharedSockets: servers, clients, selectors, children, asyncio, ssl."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import multiprocessing
import os
import select
import selectors
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trustme

import sharedsock as ss

LOOPBACK = ("127.0.0.1", 0)
TIMEOUT_S = 20.0


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[Any]:
    """Run a server in a thread; yield its address."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def on_shared(server: socketserver.TCPServer) -> Any:
    """Give a server that has not bound yet a SharedSocket to listen on."""
    server.socket.close()
    server.socket = ss.create_server(LOOPBACK)
    server.server_address = server.socket.getsockname()
    return server


# -- socketserver -------------------------------------------------------------------------------------------------


class _Upper(socketserver.StreamRequestHandler):
    """Answers each line in capitals; says what kind of socket it has."""

    def handle(self) -> None:
        assert isinstance(self.request, ss.SharedSocket)
        for line in self.rfile:
            self.wfile.write(line.upper())


class _ForkingServer(socketserver.ForkingMixIn, socketserver.TCPServer):
    """A raw fork passes nothing on, so the client goes to the child as a ticket."""

    def process_request(self, request: Any, client_address: Any) -> None:
        with request:
            super().process_request(request.ticket(), client_address)

    def close_request(self, request: Any) -> None:
        """The parent has nothing of the ticket, and the child has closed what it has redeemed."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        with request.redeem() as shared:
            super().finish_request(shared, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closing is enough: the client is the child's alone."""


SERVERS: list[Callable[..., socketserver.TCPServer]] = [
    socketserver.TCPServer,
    socketserver.ThreadingTCPServer,
    _ForkingServer,
]


@pytest.mark.parametrize("make", SERVERS, ids=["plain", "threading", "forking"])
def test_socketserver_serves_over_a_shared_listener(
    registry: ss.Registry, make: Callable[..., socketserver.TCPServer]
) -> None:
    with serving(on_shared(make(LOOPBACK, _Upper, bind_and_activate=False))) as address:
        for word in (b"one\n", b"two\n"):
            with ss.create_connection(address, timeout=TIMEOUT_S) as client:
                client.sendall(word)
                assert client.recv(100) == word.upper()
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""


def test_a_udp_server_serves_over_a_shared_socket() -> None:
    class Echo(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read()[::-1])

    server = socketserver.UDPServer(LOOPBACK, Echo, bind_and_activate=False)
    server.socket.close()
    server.socket = ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM)
    server.server_bind()
    with serving(server) as address, ss.SharedSocket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT_S)
        client.sendto(b"abc", address)
        assert client.recvfrom(100) == (b"cba", address)


# -- http ---------------------------------------------------------------------------------------------------------


class _Pages(http.server.BaseHTTPRequestHandler):
    """Answers GET with the path and POST with the body, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes) -> None:
        assert isinstance(self.connection, ss.SharedSocket)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(f"{self.path} of {os.getpid()}".encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:  # as in the base class
        pass


class _Connection(http.client.HTTPConnection):
    """http.client over a SharedSocket; its seam is this one attribute."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._create_connection = ss.create_connection


class _Handler(urllib.request.HTTPHandler):
    """urllib over such connections."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


@pytest.fixture
def site() -> Iterator[tuple[str, int]]:
    """A web server on a shared listener, a thread per connection."""
    with serving(on_shared(http.server.ThreadingHTTPServer(LOOPBACK, _Pages, bind_and_activate=False))) as address:
        yield address


def test_http_client_keeps_its_connection_over_a_shared_socket(site: tuple[str, int]) -> None:
    connection = _Connection(*site, timeout=TIMEOUT_S)
    body = os.urandom(300_000)
    for _ in range(2):
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body
    assert isinstance(connection.sock, ss.SharedSocket)
    connection.close()


def test_urllib_reads_over_shared_sockets(site: tuple[str, int]) -> None:
    """The response outlives the connection's own close: the last makefile() object closes it."""
    opener = urllib.request.build_opener(_Handler, urllib.request.ProxyHandler({}))
    with opener.open(f"http://{site[0]}:{site[1]}/page", timeout=TIMEOUT_S) as response:
        assert response.read() == f"/page of {os.getpid()}".encode()


def test_http_and_urllib_where_the_class_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No seam at all: every socket these modules make is ours."""
    monkeypatch.setattr(socket, "socket", ss.SharedSocket)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serving(http.server.ThreadingHTTPServer(LOOPBACK, _Pages)) as (host, port):
        with opener.open(f"http://{host}:{port}/all", timeout=TIMEOUT_S) as response:
            assert response.read() == f"/all of {os.getpid()}".encode()


def _serve_one_page(listener: ss.SharedSocket) -> None:
    with on_shared_listener(listener) as server:
        server.handle_request()


def on_shared_listener(listener: ss.SharedSocket) -> http.server.HTTPServer:
    """Let a web server take a listener that another process has bound."""
    server = http.server.HTTPServer(LOOPBACK, _Pages, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = "localhost", listener.getsockname()[1]
    return server


@pytest.mark.rule("CLOSE-43", "DUP-12")
def test_a_child_serves_pages_on_the_listener_its_parent_has_closed(registry: ss.Registry) -> None:
    """Prefork, as one line: the address is bound before the server exists, and no port number is raced for."""
    listener = ss.create_server(LOOPBACK)
    host, port = listener.getsockname()
    child = multiprocessing.get_context("fork").Process(target=_serve_one_page, args=(listener,))
    child.start()
    listener.close()
    with urllib.request.build_opener(_Handler).open(f"http://{host}:{port}/x", timeout=TIMEOUT_S) as response:
        assert response.read() == f"/x of {child.pid}".encode()
    child.join()
    assert child.exitcode == 0
    child.close()


# -- select and selectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [selectors.SelectSelector, selectors.PollSelector, selectors.DefaultSelector])
@pytest.mark.parametrize("by_number", [True, False])
def test_selectors_see_a_shared_socket(kind: type[selectors.BaseSelector], by_number: bool) -> None:
    """By its number, or by the object, whose fileno() they ask."""
    a, b = ss.socketpair()
    key: Any = a.fileno() if by_number else a
    with a, b, kind() as selector:
        selector.register(key, selectors.EVENT_READ)
        assert selector.select(0) == []
        b.sendall(b"x")
        assert [(found.fileobj, event) for found, event in selector.select(TIMEOUT_S)] == [(key, selectors.EVENT_READ)]
        assert a.recv(1) == b"x"
        selector.modify(key, selectors.EVENT_READ | selectors.EVENT_WRITE)
        assert [event for _, event in selector.select(TIMEOUT_S)] == [selectors.EVENT_WRITE]
        selector.unregister(key)


def test_select_and_poll_see_a_shared_socket() -> None:
    a, b = ss.socketpair()
    with a, b:
        assert select.select([a, b], [a], [], 0) == ([], [a], [])
        b.sendall(b"x")
        assert select.select([a, b], [], [], TIMEOUT_S) == ([a], [], [])
        poll = select.poll()
        poll.register(a, select.POLLIN)
        assert poll.poll(TIMEOUT_S * 1000) == [(a.fileno(), select.POLLIN)]


# -- subprocess ---------------------------------------------------------------------------------------------------

# A program that knows nothing of sharedsock. The file is nonblocking, for all who have it, until it says otherwise:
# without a timeout it clears the flag, for us as well.
_FOREIGN = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as s:
    s.settimeout(float(sys.argv[2]) if sys.argv[2:] else None)
    while data := s.recv(100):
        s.sendall(data.upper())
        if data.endswith(b"!"):
            break
sys.stdin.read()
"""


def test_a_program_without_sharedsock_gets_a_lent_reference(registry: ss.Registry) -> None:
    """`pass_fds` gives it the number, `lend` counts it until that process ends."""
    a, b = ss.socketpair()
    b.settimeout(TIMEOUT_S)
    with subprocess.Popen(
        [sys.executable, "-c", _FOREIGN, str(a.fileno()), "20"], pass_fds=(a.fileno(),), stdin=subprocess.PIPE
    ) as program:
        a.lend(program.pid)
        assert a.references() == 2
        assert program.pid in {holder.pid for holder in a.holders()}
        watch = a.dup()
        a.close()
        assert watch.references() == 2
        b.sendall(b"hello")
        assert b.recv(100) == b"HELLO"
        b.sendall(b"and more!")
        assert b.recv(100) == b"AND MORE!"
        assert watch.references() == 2  # it has closed its number, but a lent reference ends with the process
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait() == 0
        b.sendall(b"to the last holder")
        assert watch.recv(100) == b"to the last holder"
        watch.close()
    assert b.recv(1) == b""
    b.close()


def test_a_close_here_ends_no_call_of_a_program_without_sharedsock(registry: ss.Registry) -> None:
    """Its plain recv() is in the kernel when we close; the peer's next bytes are its own."""
    a, b = ss.socketpair()
    b.settimeout(TIMEOUT_S)
    command = [sys.executable, "-c", _FOREIGN, str(a.fileno())]
    with subprocess.Popen(command, pass_fds=(a.fileno(),), stdin=subprocess.PIPE) as program:
        a.lend(program.pid)
        b.sendall(b"are you there")
        assert b.recv(100) == b"ARE YOU THERE"
        a.close()
        b.sendall(b"still!")
        assert b.recv(100) == b"STILL!"
        assert program.stdin is not None
        program.stdin.close()
    assert b.recv(1) == b""
    b.close()


# -- asyncio ------------------------------------------------------------------------------------------------------


def test_asyncio_sock_calls() -> None:
    """loop.sock_accept, sock_connect, sock_sendall, sock_recv, sock_recv_into, sock_sendfile."""

    async def converse() -> bytes:
        loop = asyncio.get_running_loop()
        with ss.create_server(LOOPBACK) as listener, ss.SharedSocket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await loop.sock_connect(client, listener.getsockname())
            served, _ = await accepting
            with served:
                assert isinstance(served, ss.SharedSocket)
                receiving = asyncio.ensure_future(loop.sock_recv(served, 100))
                await asyncio.wait({receiving}, timeout=0)  # one turn of the loop, so that it waits
                await loop.sock_sendall(client, b"hello")
                assert await receiving == b"hello"
                big = bytearray(3_000_000)
                sending = asyncio.ensure_future(loop.sock_sendall(client, b"y" * len(big)))
                view = memoryview(big)
                while view:
                    view = view[await loop.sock_recv_into(served, view) :]
                await sending
                with open(__file__, "rb") as file:
                    sending_file = asyncio.ensure_future(loop.sock_sendfile(served, file))
                    found = b""
                    while len(found) < os.path.getsize(__file__):
                        found += await loop.sock_recv(client, 1 << 16)
                    await sending_file
                assert set(big) == {ord("y")}
                return found

    with open(__file__, "rb") as file:
        assert asyncio.run(converse()) == file.read()


def test_asyncio_streams_over_a_shared_listener_and_a_shared_client() -> None:
    """start_server(sock=...) and open_connection(sock=...)."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def converse() -> bytes:
        listener = ss.create_server(LOOPBACK)
        address = listener.getsockname()
        server = await asyncio.start_server(upper, sock=listener)
        client = ss.create_connection(address)
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"streams\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer

    assert asyncio.run(converse()) == b"STREAMS\n"


# -- ssl ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context, with a certificate for localhost of an authority of our own."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_ssl_takes_the_number_of_a_socket_that_was_never_shared(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """context.wrap_socket() detaches: from then on the socket is the standard library's."""
    a, b = ss.socketpair()
    b.settimeout(TIMEOUT_S)
    answers: list[bytes] = []

    def serve() -> None:
        with contexts[0].wrap_socket(a, server_side=True) as served:
            answers.append(served.recv(100))
            served.sendall(b"and back")

    thread = threading.Thread(target=serve)
    thread.start()
    with contexts[1].wrap_socket(b, server_hostname="localhost") as client:
        assert b.fileno() == -1
        assert client.gettimeout() == TIMEOUT_S
        client.sendall(b"there")
        assert client.recv(100) == b"and back"
        assert client.recv(100) == b""
    thread.join()
    assert answers == [b"there"]


def test_ssl_refuses_a_shared_socket_and_leaves_it_alone(
    registry: ss.Registry, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """SSLSocket takes the number before it asks for it, and closes it when detach() fails: so it does not get it."""
    a, b = ss.socketpair()
    twin = a.dup()
    number = a.fileno()
    with pytest.raises(OSError, match="wrap_tls") as caught:
        contexts[1].wrap_socket(a, server_hostname="localhost")
    assert caught.value.winerror == 10022  # type: ignore[attr-defined]
    assert a.fileno() == number
    for s in (a, twin):
        s.sendall(b"x")
        assert b.recv(1) == b"x"
    for s in (a, twin, b):
        s.close()
