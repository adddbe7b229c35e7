"""`use_provider`: a chain under the Python face, in every process that shares the socket."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import sharedsock as ss
from sharedsock import spi
from sharedsock.chaining import spelling
from sharedsock.chaining.face import ChainedSocket
from sharedsock.descriptors import providing
from tests.kernel.stage import wait_blocked
from tests.spi.chains import Shouting, pair


class Picky(spi.LayeredProvider):
    """Refuses to open, to accept and to close, as told."""

    def __init__(self, lower: Any, lower_info: Any, refused: str) -> None:
        super().__init__(lower, lower_info)
        self.refused = refused

    def WSPSocket(self, *arguments: Any) -> int:
        handle = super().WSPSocket(*arguments)
        if self.refused == "open":
            raise spi.WSAError(10055, "no more today")
        return handle

    def WSPAccept(self, s: int, *arguments: Any) -> tuple[int, Any]:
        found = super().WSPAccept(s, *arguments)
        if self.refused == "accept":
            raise spi.WSAError(10055, "no more today")
        return found

    def WSPCloseSocket(self, s: int) -> None:
        if self.refused == "close":
            raise spi.WSAError(10055, "it stays")
        super().WSPCloseSocket(s)


@pytest.fixture(autouse=True)
def nothing_stays_in_use() -> Iterator[None]:
    yield
    assert providing.current is None


# -- what goes through it ---------------------------------------------------------------------------------------------


def test_no_chain_no_change() -> None:
    face, peer = pair()
    with face, peer:
        assert type(face) is ss.SharedSocket
        assert face._descriptor.chain is None
        with ss.use_provider(Shouting):
            assert type(face) is ss.SharedSocket, "what is open keeps what it has"
            with ss.use_provider(None):
                unchained = ss.SharedSocket()
            chained = ss.SharedSocket()
        assert (type(unchained), type(chained)) == (ss.SharedSocket, ChainedSocket)
        unchained.close()
        chained.close()


def test_every_call_of_a_stream_goes_through_the_chain(caplog: pytest.LogCaptureFixture) -> None:
    """Tracing sees the calls of an unchanged program, from create_server to the last close."""
    caplog.set_level(logging.INFO, logger="seen")
    with ss.use_provider(spi.Tracing, logger="seen"):
        server = ss.create_server(("127.0.0.1", 0))
        client = ss.create_connection(server.getsockname())
    served, address = server.accept()
    assert address == client.getsockname()
    assert served.getpeername() == address
    client.sendall(b"12345678")
    buffer = bytearray(2)
    assert (served.recv(2), served.recv_into(buffer), bytes(buffer)) == (b"12", 2, b"34")
    assert served.recvmsg(2)[0] == b"56"
    with served.makefile("rb") as file:
        assert file.read(2) == b"78"
    assert client.sendmsg([b"a", b"b"]) == 2
    assert served.recv(2, socket.MSG_PEEK) == b"ab"
    first, second = bytearray(1), bytearray(1)
    assert (served.recvmsg_into([first, second])[0], bytes(first + second)) == (2, b"ab")
    served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert served.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
    with pytest.raises(BlockingIOError):
        served.recv(1, socket.MSG_DONTWAIT)
    client.shutdown(socket.SHUT_WR)
    assert served.recv(1) == b""
    for one in (client, served, server):
        one.close()
        one.close()
    seen = [record.getMessage().split()[2].partition("(")[0] for record in caplog.records]
    for call in (
        *("WSPSocket", "WSPBind", "WSPListen", "WSPConnect", "WSPAccept", "WSPGetSockName", "WSPGetPeerName"),
        *("WSPSend", "WSPRecv", "WSPRecvFrom", "WSPSetSockOpt", "WSPGetSockOpt", "WSPShutdown", "WSPCloseSocket"),
    ):
        assert call in seen
    assert seen.count("WSPCloseSocket") == 3, "once for each"


def test_messages_go_through_the_chain() -> None:
    with ss.use_provider((spi.Tracing, {}), (spi.Chaos, {"at": {"WSPSendTo": {2: "refuse"}}})):
        one = ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM)
    with one:
        one.bind(("127.0.0.1", 0))
        assert one.sendto(b"first", one.getsockname()) == 5
        with pytest.raises(OSError) as refused:
            one.sendto(b"second", 0, one.getsockname())
        assert (refused.value.errno, refused.value.winerror) == (errno.ENOBUFS, 10055)  # type: ignore[attr-defined]
        assert one.sendmsg([b"thi", b"rd"], [], 0, one.getsockname()) == 5
        assert one.recvfrom(9) == (b"first", one.getsockname())
        buffer = bytearray(9)
        assert one.recvfrom_into(buffer) == (5, one.getsockname())
        assert buffer[:5] == b"third"


def test_what_a_chain_does_not_carry_is_refused(tmp_path: Path) -> None:
    """10045, and nothing goes around the chain; sendfile() falls back to sends that go through it."""
    import ssl

    with ss.use_provider(Shouting):
        face, peer = pair()
    with face, peer:
        for call in (
            face.detach,
            lambda: face.begin_connect(("127.0.0.1", 1)),
            face.begin_accept,
            lambda: face.sendmsg_afalg([b"x"]),
            lambda: ssl.create_default_context().wrap_socket(face, server_hostname="x"),
        ):
            with pytest.raises(OSError) as refused:
                call()
            assert refused.value.winerror == 10045  # type: ignore[attr-defined]
        (tmp_path / "file").write_bytes(b"quiet")
        with (tmp_path / "file").open("rb") as file:
            assert face.sendfile(file) == 5
        assert peer.recv(9) == b"QUIET"
    with ss.use_provider(Shouting), pytest.raises(OSError, match="no provider of the catalogue has iAddressFamily"):
        ss.SharedSocket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


def test_a_subclass_keeps_its_own_calls_above_the_chain() -> None:
    class Polite(ss.SharedSocket):
        __slots__ = ()

        def sendall(self, data: Any, *more: Any) -> None:
            super().sendall(data + b" please", *more)

    with ss.use_provider(Shouting):
        face = Polite()
    with socket.create_server(("127.0.0.1", 0)) as door, face:
        face.connect(door.getsockname())
        peer, _ = door.accept()
        with peer:
            face.sendall(b"more")
            assert isinstance(face, Polite)
            assert peer.recv(64) == b"MORE PLEASE"


# -- faults, as the program knows them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "call", "kind"),
    [
        ("refuse", "WSPConnect", ConnectionRefusedError),
        ("reset", "WSPSend", ConnectionResetError),
        ("reset", "WSPRecv", ConnectionResetError),
    ],
)
def test_a_fault_is_the_error_a_program_knows(fault: str, call: str, kind: type[OSError]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, ss.use_provider(spi.Chaos, at={call: {1: fault}}):

        def program() -> bytes:
            with ss.create_connection(door.getsockname()) as s:
                s.sendall(b"question")
                return s.recv(64)

        with pytest.raises(kind):
            program()
        if call != "WSPConnect":
            peer, _ = door.accept()
            with peer, pytest.raises(ConnectionResetError):
                while peer.recv(64):
                    pass


def test_throttling_cuts_what_a_program_puts_together_again() -> None:
    with ss.use_provider(spi.Throttling, most_bytes=7, seed=1):
        face, peer = pair()
    with face, peer:
        face.sendall(bytes(200))
        got = b""
        while len(got) < 200:
            got += peer.recv(200)
        peer.sendall(bytes(50))
        assert 1 <= len(face.recv(50)) <= 7


@pytest.mark.parametrize("refused", ["open", "accept", "close"])
def test_a_layer_that_refuses_leaves_nothing_behind(refused: str) -> None:
    """An opened socket and an accepted client end; a refused close has closed nothing, and abort() closes."""
    with ss.use_provider(Picky, refused=refused):
        if refused == "open":
            with pytest.raises(OSError, match="no more today"):
                ss.SharedSocket()
            assert ss.statistics().descriptors == 0
            return
        server = ss.create_server(("127.0.0.1", 0))
    with closing(socket.create_connection(server.getsockname())) as client:
        if refused == "accept":
            with pytest.raises(OSError, match="no more today"):
                server.accept()
            client.settimeout(60)
            assert client.recv(1) == b"", "the client's socket was closed"
            server.close()
        else:
            with pytest.raises(OSError, match="it stays"):
                server.close()
            assert server.getsockname() == client.getpeername()
            with pytest.raises(OSError, match="it stays"):
                server.abort()
    with pytest.raises(ss.NotASocket):
        server.getsockname()


# -- the promises, through the chain ----------------------------------------------------------------------------------


def blocked_receiver(face: ss.SharedSocket) -> tuple[threading.Thread, list[BaseException | bytes]]:
    outcome: list[BaseException | bytes] = []

    def receive() -> None:
        try:
            outcome.append(face.recv(1))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    wait_blocked(thread, face.pending_operations)
    return thread, outcome


@pytest.mark.rule("CLOSE-20", "CLOSE-4", "NONIFS-5")
def test_a_close_ends_the_calls_of_its_process_through_the_chain(registry: ss.Registry) -> None:
    """10004 for the call that waits, 10038 for the next one; another descriptor goes on."""
    with ss.use_provider((spi.Tracing, {}), (Shouting, {})):
        face, peer = pair()
    with peer:
        other = face.dup()
        assert isinstance(other, ChainedSocket)
        waiting, theirs = blocked_receiver(other)
        thread, outcome = blocked_receiver(face)
        face.close()
        thread.join(60)
        (error,) = outcome
        assert isinstance(error, ss.OperationAborted)
        assert (error.winerror, error.operation, error.bytes_transferred) == (10004, "recv_into", 0)
        with pytest.raises(ss.NotASocket):
            face.recv(1)
        assert not theirs
        peer.sendall(b"!")
        waiting.join(60)
        assert theirs == [b"!"]
        other.sendall(b"last")
        other.close()
        assert peer.recv(9) + peer.recv(9) == b"LAST"


def test_a_close_ends_a_call_that_a_layer_holds() -> None:
    with ss.use_provider(spi.Chaos, at={"WSPRecv": {1: "stall"}}, stall_s=60):
        face, peer = pair()
    with peer:
        chain: Any = face._descriptor.chain
        top = chain.routes[face._descriptor.id].top
        luck = top.layer(chain.routes[face._descriptor.id].handle)
        outcome: list[BaseException] = []

        def receive() -> None:
            with pytest.raises(OSError) as raised:
                face.recv(1)
            outcome.append(raised.value)

        thread = threading.Thread(target=receive)
        thread.start()
        while not luck.calls["WSPRecv"]:
            thread.join(0.005)
        face.close()
        thread.join(60)
        (error,) = outcome
        assert isinstance(error, ss.OperationAborted | ss.NotASocket)


@pytest.mark.rule("CLOSE-11", "NONIFS-11")
def test_a_refused_close_has_changed_nothing() -> None:
    """10035 under a chain: the descriptor, its handles and what is queued stay."""
    with ss.use_provider(Shouting):
        face, peer = pair()
    with peer:
        face.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\x05\0\0\0")
        face.setblocking(False)
        queued = 0
        with pytest.raises(BlockingIOError):
            while True:
                queued += face.send(bytes(65536))
        with pytest.raises(BlockingIOError):
            face.close()
        got = 0
        while got < queued:
            got += len(peer.recv(65536))
        face.settimeout(60)
        face.sendall(b"on")
        assert peer.recv(9) == b"ON"
        face.close()
        assert peer.recv(9) == b""


# -- other processes --------------------------------------------------------------------------------------------------


def echo_once(s: ss.SharedSocket) -> str:
    """An unchanged program: it knows of no provider."""
    try:
        while data := s.recv(64):
            s.sendall(data)
    except ConnectionResetError:
        return "reset"
    finally:
        s.close()
    return "end"


def echo_in_child(s: ss.SharedSocket, outcome: Any) -> None:
    outcome.send((echo_once(s), providing.current is None))
    outcome.close()


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_chaos_is_under_an_unchanged_program_in_a_child(registry: ss.Registry, method: str) -> None:
    """The chain comes along with an argument of a process; its second send there is the one that is reset."""
    context: Any = multiprocessing.get_context(method)
    with ss.use_provider((Shouting, {}), (spi.Chaos, {"at": {"WSPSend": {2: "reset"}}})):
        face, peer = pair()
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=echo_in_child, args=(face, theirs))
        child.start()
    theirs.close()
    face.close()
    with peer, ours:
        peer.sendall(b"one")
        assert peer.recv(9) == b"ONE"
        peer.sendall(b"two")
        with pytest.raises(ConnectionResetError):
            peer.recv(9)
        assert ours.recv() == ("reset", True)
    child.join(60)
    assert child.exitcode == 0


SERVER = """
import http.server, sys, sharedsock as ss
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "5"); self.end_headers(); self.wfile.write(b"hello")
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Hello, bind_and_activate=False)
server.socket.close()
server.socket = ss.fromshare(bytes.fromhex(sys.stdin.readline()))
server.server_name, server.server_port = "localhost", 0
server.timeout = 60
for _ in range(2):
    server.handle_request()
server.server_close()
"""


def test_chaos_is_under_http_server_in_another_program(registry: ss.Registry) -> None:
    """A program that only redeems a ticket: its first answer is reset, its second is not."""
    import http.client

    with ss.use_provider(spi.Chaos, at={"WSPAccept": {1: "refuse"}}, seed=3):
        server = ss.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        program.stdin.write(server.share(program.pid).hex() + "\n")
        program.stdin.close()
        server.close()
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        client.request("GET", "/")  # the first accept is refused: handle_request() goes on with the second
        assert client.getresponse().read() == b"hello"
        client.close()
        assert program.wait(60) == 0


def test_a_process_without_the_provider_is_told_and_the_ticket_stays(registry: ss.Registry, tmp_path: Path) -> None:
    """InvalidProvider names the import, in a process that lacks it; then the ticket is redeemed where it is there."""
    (tmp_path / "local_layer.py").write_text(
        "from sharedsock import spi\nclass Mine(spi.LayeredProvider): pass\n", encoding="utf-8"
    )
    source = (
        "import sys, sharedsock as ss\n"
        "info = bytes.fromhex(sys.stdin.read())\n"
        "try:\n    ss.fromshare(info)\n"
        "except ss.InvalidProvider as error:\n    print(error.import_name, error.winerror)\n"
        "    sys.exit('sharedsock.Nothing' in str(error))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    sys.path.insert(0, str(tmp_path))
    try:
        with ss.use_provider("local_layer:Mine"):
            face, peer = pair()
        with face, peer:
            info = face.share(None)
            del environment["PYTHONPATH"]
            told = subprocess.run(
                [sys.executable, "-c", source],
                input=info.hex(),
                capture_output=True,
                text=True,
                env=environment,
                check=True,
                timeout=60,
                cwd="/",
            )
            assert told.stdout.split() == ["local_layer:Mine", "10105"], told.stderr
            with ss.fromshare(info) as again:
                assert isinstance(again, ChainedSocket)
                assert again.references() == 2
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("local_layer", None)


def test_a_redeemed_socket_has_its_own_chain_and_no_other(registry: ss.Registry) -> None:
    """Not the one in use where it is redeemed; a ticket can be redeemed again after that failed for want of a class."""
    with ss.use_provider(Shouting):
        face, peer = pair()
    plain, plain_peer = pair()
    with face, peer, plain, plain_peer:
        with ss.use_provider(spi.Tracing):
            chained, unchained = ss.fromshare(face.share(None)), ss.fromshare(plain.share(None))
        with chained, unchained:
            assert type(unchained) is ss.SharedSocket
            chained.sendall(b"x")
            unchained.sendall(b"x")
            assert (peer.recv(1), plain_peer.recv(1)) == (b"X", b"x")


def test_what_a_registry_says_is_checked(registry: ss.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that names something else has none of it called: 10105, and the ticket is as good as before."""
    with ss.use_provider(Shouting):
        face, peer = pair()
    with face, peer:
        chain: Any = face._descriptor.chain
        spelled = chain.text
        chain.text = '[["os:system",{"command":"exit 1"}]]'
        info = face.share(None)
        before = ss.statistics()
        for _ in range(2):
            with pytest.raises(ss.InvalidProvider, match="os:system is no layered"):
                ss.fromshare(info)
        assert ss.statistics() == before
        assert face.references() == 2, "the ticket counts on"
        monkeypatch.setattr(spelling, "read", lambda text: ((f"{__name__}:Shouting", {}),))
        with ss.fromshare(info) as again:
            again.sendall(b"x")
            assert peer.recv(1) == b"X"
        chain.text = spelled


# -- spelling ---------------------------------------------------------------------------------------------------------


def test_a_spelling_is_read_as_it_was_spelled() -> None:
    layers: spelling.Layers = (("a.b:C.D", {"at": {"x": {3: "y"}, "": 1}, "n": None, "t": (1, 2.5, True)}), ("m:K", {}))
    (first, second) = spelling.read(spelling.spell(layers))
    assert first == ("a.b:C.D", {"at": {"x": {3: "y"}, "": 1}, "n": None, "t": [1, 2.5, True]})
    assert second == ("m:K", {})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "7", "[[]]", '[["m:K"]]', '[["m:K",[]]]', '[[3,{}]]', '[["m:K",{"":[[1,2]]}]]', "[" * 2000,
     '[["m:K",{"":[[[],1]]}]]', str([["m:K", {}]] * 7).replace("'", '"')],
)  # fmt: skip
def test_what_is_no_spelling_is_refused(text: str) -> None:
    with pytest.raises(ss.InvalidProvider):
        spelling.read(text)


@pytest.mark.parametrize(
    "name",
    ["os:system", "os", ":", "os:", "os;x:y", "../x:Y", "os:path.join", "no_such_module_here:X",
     "sharedsock.spi:Nothing", "sharedsock.spi:Provider", "sharedsock.spi:BaseProvider",
     "sharedsock.spi:Chaos.__init__", "a b:c", 7],
)  # fmt: skip
def test_what_is_no_layer_is_refused_and_named(name: Any) -> None:
    with pytest.raises(ss.InvalidProvider) as refused:
        spelling.provider_class(name)
    assert refused.value.import_name == str(name)
    assert str(name) in str(refused.value)


def test_use_provider_refuses_what_another_process_could_not_make() -> None:
    class Local(spi.LayeredProvider):
        pass

    with pytest.raises(ss.InvalidProvider, match="Local"):
        ss.use_provider(Local)
    with pytest.raises(ss.InvalidProvider, match="Chaos"):
        ss.use_provider(spi.Chaos, no_such_parameter=1)
    with pytest.raises(ss.InvalidProvider, match="faults are"):
        ss.use_provider(spi.Chaos, at={"WSPSend": {1: "explode"}})
    with pytest.raises(TypeError, match="plain values"):
        ss.use_provider(spi.Tracing, logger=logging.getLogger())
    with pytest.raises(TypeError, match="of one layer"):
        ss.use_provider(spi.Tracing, spi.Chaos, seed=1)
    with pytest.raises(ValueError, match="1 to 6"):
        ss.use_provider()
    with pytest.raises(ValueError, match="2048"):
        ss.use_provider(spi.Tracing, logger="x" * 3000)
    assert providing.current is None
