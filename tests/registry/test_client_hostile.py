"""A registry that lies, reorders, doubles, delays or says nothing: the client believes the kernel and its own ids."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedsock.model.errors import RegistryGone, TicketInvalid
from sharedsock.model.identity import DescriptorId, SocketId
from sharedsock.registry import runtime
from sharedsock.registry.client import Client
from sharedsock.registry.messages import Code, Message, encode
from tests.registry.double import (
    BOUND_S,
    T_DEAD_S,
    Hostile,
    Reply,
    claimed,
    facts,
    facts_of,
    forget,
    ok,
    open_numbers,
)

SECRET = b"s" * 32
Answer = Callable[[Message, list[int]], list[Reply] | None]


def _number(message: Message, value: int) -> bytes:
    return encode(Code.NUMBER, message.request, value=value)


def _ask(path: Path, answer: Answer, call: Callable[[Client], object], timeout_s: float = 2.0) -> list[Message]:
    """Make one call against a double; return what it has heard once the client is gone."""
    with Hostile(str(path / "r"), answer) as double:
        client = double.client(timeout_s)
        try:
            call(client)
        finally:
            forget(client)
    return double.heard


@pytest.mark.fault("F-34", "S-13")
@pytest.mark.parametrize("what", ["pipe", "another socket", "nothing", "two"])
def test_what_is_no_descriptor_of_the_socket_is_closed_and_handed_back(tmp_path: Path, what: str) -> None:
    ours, peer = socket.socketpair()
    reader, writer = os.pipe()
    sent = {
        "pipe": [reader],
        "another socket": [peer.fileno()],
        "nothing": [],
        "two": [ours.fileno(), ours.fileno()],
    }[what]

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        if message.code is Code.CLAIM:
            return [(claimed(message, facts_of(ours)), sent)]
        return [(ok(message), [])]

    def call(client: Client) -> None:
        client.connect()
        before = open_numbers()
        with pytest.raises(TicketInvalid) as caught:
            client.claim(SECRET)
        assert caught.value.winerror == 10022
        assert open_numbers() == before
        client.end_close(DescriptorId(1))  # the double has heard all before this

    heard = _ask(tmp_path, answer, call)
    assert [message.code for message in heard[:2]] == [Code.CLAIM, Code.REFUSE]
    assert heard[1].number == 7
    for end in (ours, peer):
        end.close()
    os.close(reader)
    os.close(writer)


@pytest.mark.fault("F-37")
def test_family_type_and_protocol_are_read_from_the_kernel(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ours:
        found = facts_of(ours)
        lie = type(found)(found.socket, socket.AF_UNIX, socket.SOCK_STREAM, 99)

        def answer(message: Message, numbers: list[int]) -> list[Reply]:
            return [(claimed(message, lie), [ours.fileno()])]

        def call(client: Client) -> None:
            claim = client.claim(SECRET)
            os.close(claim.fd)
            assert claim.socket == found
            assert (claim.socket.family, claim.socket.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
            assert claim.socket.protocol == socket.IPPROTO_UDP

        _ask(tmp_path, answer, call)


@pytest.mark.fault("F-113")
def test_replies_in_any_order_reach_their_callers(tmp_path: Path) -> None:
    waiting: list[Message] = []

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        waiting.append(message)
        if len(waiting) != 8:
            return []
        return [(_number(each, each.socket * 10), []) for each in reversed(waiting)]

    def call(client: Client) -> None:
        client.connect()
        answers: dict[int, int] = {}
        threads = [
            threading.Thread(target=lambda n=n: answers.update({n: client.references(SocketId(n))})) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert answers == {n: n * 10 for n in range(8)}

    _ask(tmp_path, answer, call, timeout_s=BOUND_S)


@pytest.mark.fault("F-113", "F-78")
@pytest.mark.parametrize("kind", ["doubled", "stale", "unasked"])
def test_a_reply_nobody_waits_for_changes_no_other(tmp_path: Path, kind: str) -> None:
    ours, peer = socket.socketpair()
    count = 0
    late: list[Message] = []

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        nonlocal count
        if message.code is not Code.REFERENCES:
            return []
        count += 1
        good: Reply = (_number(message, count), [])
        if kind == "doubled":
            return [good, (_number(message, 1000), [])]
        if kind == "unasked":
            stray = Message(Code.CLAIM, 0x7FFFFFFF)
            return [(claimed(stray, facts_of(ours), 31), [ours.fileno()]), good]
        if count == 1:
            late.append(message)
            return []
        return [(_number(late[0], 1000), []), good]

    def call(client: Client) -> None:
        client.rpc_timeout_s = 0.2
        client.connect()
        before = open_numbers()
        if kind == "stale":
            with pytest.raises(RegistryGone):
                client.references(SocketId(1))
        client.rpc_timeout_s = BOUND_S
        first = count
        assert [client.references(SocketId(1)) for _ in range(5)] == list(range(first + 1, first + 6))
        assert open_numbers() == before, "what came with a stray reply is closed"

    heard = _ask(tmp_path, answer, call)
    assert any(message.code is Code.REFUSE and message.number == 31 for message in heard) == (kind == "unasked")
    ours.close()
    peer.close()


@pytest.mark.fault("F-113", "F-33")
def test_a_claim_that_is_answered_too_late_is_handed_back(tmp_path: Path) -> None:
    ours, peer = socket.socketpair()
    late: list[Message] = []

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        if message.code is Code.CLAIM:
            late.append(message)
            return []
        if message.code is Code.REFERENCES:
            return [(claimed(late[0], facts_of(ours), 5), [ours.fileno()]), (_number(message, 1), [])]
        return [(ok(message), [])]

    def call(client: Client) -> None:
        client.rpc_timeout_s = 0.1
        client.connect()
        before = open_numbers()
        with pytest.raises(RegistryGone):
            client.claim(SECRET)
        client.rpc_timeout_s = BOUND_S
        assert client.references(SocketId(1)) == 1
        assert open_numbers() == before
        client.end_close(DescriptorId(1))

    heard = _ask(tmp_path, answer, call)
    assert [(m.code, m.values.get("number")) for m in heard if m.code is Code.REFUSE] == [(Code.REFUSE, 5)]
    ours.close()
    peer.close()


@pytest.mark.fault("F-32")
def test_an_acknowledgement_whose_reply_is_lost_is_tried_once_more(tmp_path: Path) -> None:
    ours, peer = socket.socketpair()
    acks: list[Message] = []

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        if message.code is Code.CLAIM:
            return [(claimed(message, facts_of(ours)), [ours.fileno()])]
        if message.code is not Code.ACK:
            return []
        acks.append(message)
        return [] if len(acks) == 1 else [(ok(message), [])]

    def call(client: Client) -> None:
        claim = client.claim(SECRET)
        client.rpc_timeout_s = 0.4
        client.acknowledge(claim, facts(3))
        os.close(claim.fd)

    _ask(tmp_path, answer, call)
    assert [m.values for m in acks] == [acks[0].values] * 2
    assert acks[0].request != acks[1].request
    ours.close()
    peer.close()


@pytest.mark.fault("F-32", "F-63")
@pytest.mark.parametrize(("end", "said"), [("lost", 2), ("answered", 1), ("in order", 1)])
def test_what_is_posted_is_said_again_over_a_new_channel_unless_it_is_known_to_be_done(
    tmp_path: Path, end: str, said: int
) -> None:
    """Nobody waits for it, so a channel that ends before a later reply may have taken it along."""
    ours, peer = socket.socketpair()
    hangs_up = [True]

    def answer(message: Message, numbers: list[int]) -> list[Reply] | None:
        if message.code is Code.CLAIM:
            return [(claimed(message, facts_of(ours)), [ours.fileno()])]
        if message.code is Code.BEGIN_CLOSE:
            return [(encode(Code.FLAG, message.request, value=False), [])]
        if message.code is Code.REFERENCES and hangs_up:
            hangs_up.pop()
            return None
        if message.code is Code.CANCEL_CLOSE:
            return [(ok(message), [])]
        return [] if message.request == 0 else [(encode(Code.NUMBER, message.request, value=1), [])]

    def call(client: Client) -> None:
        claim = client.claim(SECRET)
        client.acknowledge(claim, facts(3), posted=True)
        os.close(claim.fd)
        client.begin_close(DescriptorId(3))  # its reply shows that the acknowledgement is done
        client.end_close(DescriptorId(3))
        if end == "in order":
            hangs_up.clear()
            client.close()
        elif end == "answered":
            client.cancel_close(DescriptorId(4))
        if hangs_up:
            with pytest.raises(RegistryGone):
                client.references(SocketId(1))
        assert client.references(SocketId(1)) == 1

    heard = _ask(tmp_path, answer, call)
    posted = [(message.code, message.values) for message in heard if message.request == 0]
    assert [code for code, _ in posted if code is not Code.BYE] == [Code.ACK, *[Code.END_CLOSE] * said]
    ours.close()
    peer.close()


@pytest.mark.fault("F-104", "F-113")
@pytest.mark.parametrize(
    "bytes_",
    [b"x", b"\0" * 4096, struct.pack("!HHHI", 0x5353, 1, 0x86, 1), b"\x80\x04N.", "wrong code"],
    ids=["one byte", "zeros", "truncated", "pickle", "wrong code"],
)
def test_nonsense_ends_the_channel_and_nothing_else(tmp_path: Path, bytes_: bytes | str) -> None:
    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        return [(ok(message) if isinstance(bytes_, str) else bytes_, [])]

    def call(client: Client) -> None:
        client.connect()
        began = time.monotonic()
        with pytest.raises(RegistryGone) as caught:
            client.references(SocketId(1))
        assert caught.value.winerror == 10050
        assert time.monotonic() - began < T_DEAD_S
        assert not client.is_alive

    _ask(tmp_path, answer, call)


def test_a_list_that_goes_round_is_left(tmp_path: Path) -> None:
    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        return [(encode(Code.SOCKETS_PAGE, message.request, following=1, items=[(1, 1, 1, 1, 1)]), [])]

    def call(client: Client) -> None:
        assert len(client.sockets()) == 2

    _ask(tmp_path, answer, call)


@pytest.mark.fault("F-02")
@pytest.mark.parametrize("kind", ["nothing", "not listening", "silent", "hangs up", "no registry"])
def test_an_address_without_a_registry_is_gone_within_the_time(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "r")
    directory = runtime.make_directory(path)
    key = runtime.write_key(directory)
    assert len(key) == 32
    stop, stopped = os.pipe()
    listener: socket.socket | None = None
    thread: threading.Thread | None = None
    if kind == "not listening":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.path.join(path, "s"))
    elif kind != "nothing":
        listener = runtime.bind_listener(directory, path)
        listener.setblocking(True)

        def serve() -> None:
            assert listener is not None
            with listener.accept()[0] as connection:
                if kind == "no registry":
                    connection.send(encode(Code.CHALLENGE, nonce=b"n" * 32))
                    connection.recv(4096)
                    welcome = {"proof": b"p" * 32, "incarnation": b"i" * 16, "pid": 1, "page": False}
                    connection.send(encode(Code.WELCOME, **welcome))
                if kind != "hangs up":
                    os.read(stop, 1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
    client = Client(path)
    client.rpc_timeout_s = 0.3
    before = set(open_numbers())
    began = time.monotonic()
    with pytest.raises(RegistryGone):
        client.references(SocketId(1))
    assert time.monotonic() - began < 0.3 + T_DEAD_S
    os.close(stopped)
    if thread is not None:
        thread.join(BOUND_S)
    assert set(open_numbers()) <= before, "F-02: the descriptor is closed"
    os.close(stop)
    if listener is not None:
        listener.close()
    runtime.remove_directory(path, directory)
    os.close(directory)


@pytest.mark.fault("F-14")
def test_a_descriptor_that_cannot_be_sent_is_tried_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, peer = socket.socketpair()

    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        return [(ok(message), [])]

    def call(client: Client) -> None:
        client.connect()
        exchange = client._session.channel
        assert exchange is not None
        failures = [errno.ETOOMANYREFS] * 3

        class Full:
            def __init__(self, inner: socket.socket) -> None:
                self.inner = inner

            def sendmsg(self, *arguments: object) -> int:
                if failures:
                    raise OSError(failures.pop(), "too many references")
                return self.inner.sendmsg(*arguments)  # type: ignore[arg-type]

            def __getattr__(self, name: str) -> object:
                return getattr(self.inner, name)

        monkeypatch.setattr(exchange, "_socket", Full(exchange._socket))
        assert len(client.issue(SocketId(1), DescriptorId(1), ours.fileno(), None, None)) == len(SECRET)
        assert not failures
        failures.extend([errno.ETOOMANYREFS] * 1000)
        client.rpc_timeout_s = 0.1
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            client.issue(SocketId(1), DescriptorId(1), ours.fileno(), None, None)
        assert caught.value.errno == errno.ETOOMANYREFS
        assert time.monotonic() - began < 0.1 + T_DEAD_S
        failures.clear()
        failures.append(errno.EPIPE)
        with pytest.raises(RegistryGone):
            client.begin_close(DescriptorId(1))

    _ask(tmp_path, answer, call)
    ours.close()
    peer.close()


def test_a_closed_number_cannot_be_shared(tmp_path: Path) -> None:
    def answer(message: Message, numbers: list[int]) -> list[Reply]:
        return [(_number(message, 1), [])]

    def call(client: Client) -> None:
        client.connect()
        number = os.dup(0)
        os.close(number)
        with pytest.raises(OSError) as caught:
            client.issue(SocketId(1), DescriptorId(1), number, None, None)
        assert getattr(caught.value, "winerror", None) == 10038
        assert client.references(SocketId(1)) == 1, "the channel is as before"

    _ask(tmp_path, answer, call)
