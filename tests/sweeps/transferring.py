"""Scenes of the calls that move bytes and clients: receive, send, accept, connect; at once and after a wait."""

from __future__ import annotations

import array
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import sharedsock as ss
from sharedsock.kernel import operations
from tests.descriptors.sharers import Running
from tests.sweeps.scenes import PATIENCE_S, TAGGED, Outcome, Scene, Stage, scene

Acts = Generator[Callable[[], Any], Outcome, None]

HEAD = 64


def _buffer() -> bytearray:
    return bytearray(HEAD)


# name -> (make the call's buffer, the call, what it has received)
RECEIVES: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Any], Callable[[Any, Any], bytes]]] = {
    "recv": (lambda: None, lambda s, _: s.recv(HEAD), lambda value, _: bytes(value)),
    "recvfrom": (lambda: None, lambda s, _: s.recvfrom(HEAD), lambda value, _: bytes(value[0])),
    "recvmsg": (lambda: None, lambda s, _: s.recvmsg(HEAD, 64), lambda value, _: bytes(value[0])),
    "recv_into": (_buffer, lambda s, into: s.recv_into(into), lambda value, into: bytes(into[:value])),
    "recvfrom_into": (_buffer, lambda s, into: s.recvfrom_into(into), lambda value, into: bytes(into[: value[0]])),
    "recvmsg_into": (
        lambda: [bytearray(1), bytearray(HEAD - 1)],
        lambda s, into: s.recvmsg_into(into, 64),
        lambda value, into: b"".join(into)[: value[0]],
    ),
}

# How the call comes to its data: at once, behind a wait, and in a conversation, where only recv() can be.
WAYS = {"at once": 0, "after a wait": 1}


def _receiving(name: str, way: str, timeout_s: float | None, kind: str = "unix") -> Scene:
    make, call, received = RECEIVES[name]

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected(kind, timeout_s)
        peer.sendall(TAGGED)
        if WAYS[way]:  # the last receive had to wait: this one waits first
            operations.note_streak(ours._descriptor.kernel, True)
        into = make()
        outcome = yield lambda: call(ours, into)
        if outcome.error is not None:
            into = make()
        found = received(outcome.value_or(lambda: call(ours, into)), into) + stage.rest_of(ours)
        # DESIGN.md 5: what had to wait keeps what it took; with data ready the guarantee is the stdlib's, whose C call
        # has handed the bytes to a program that is interrupted before it has stored them.
        assert found == TAGGED or (way == "at once" and outcome.was_interrupted and found == TAGGED[HEAD:])

    return play


for _name in RECEIVES:
    scene(f"SharedSocket.{_name}/at once")(_receiving(_name, "at once", None))
    scene(f"SharedSocket.{_name}/after a wait")(_receiving(_name, "after a wait", PATIENCE_S))
scene("SharedSocket.recv/TCP")(_receiving("recv", "after a wait", PATIENCE_S, "tcp"))


@scene("SharedSocket.recv/in a conversation")
def recv_in_a_conversation(stage: Stage) -> Acts:
    ours, peer = stage.connected(timeout_s=None)
    operations.note_streak(ours._descriptor.kernel, True)
    for _ in range(2):
        peer.sendall(b"a" * HEAD)
        assert ours.recv(HEAD) == b"a" * HEAD
    assert ours._talk is not None
    peer.sendall(TAGGED)
    outcome = yield lambda: ours.recv(HEAD)
    assert outcome.value_or(lambda: ours.recv(HEAD)) + stage.rest_of(ours) == TAGGED


@scene("SharedSocket.recv/datagrams")
def recv_datagrams(stage: Stage) -> Acts:
    """Datagrams stay whole, and none is lost."""
    ours, peer = stage.connected("datagram")
    operations.note_streak(ours._descriptor.kernel, True)
    peer.send(b"first")
    peer.send(b"second")
    outcome = yield lambda: ours.recv(HEAD)
    found = [outcome.value_or(lambda: ours.recv(HEAD)), stage.rest_of(ours)]
    assert found == [b"first", b"second"]


@scene("SharedSocket.recvmsg/with a descriptor")
def recvmsg_with_a_descriptor(stage: Stage) -> Acts:
    """A number that came along is the caller's, who closes it; where the call failed it is there for the next."""
    ours, peer = stage.connected()
    passed = stage.has(socket.socket())
    socket.send_fds(peer, [b"x"], [passed.fileno()])
    outcome = yield lambda: ours.recvmsg(HEAD, socket.CMSG_SPACE(4))
    data, ancillary, flags, _ = outcome.value_or(lambda: ours.recvmsg(HEAD, socket.CMSG_SPACE(4)))
    assert data == b"x"
    numbers = array.array("i", b"".join(value for *_, value in ancillary))
    assert bool(numbers) != bool(flags & socket.MSG_CTRUNC), "without room for it the kernel says so, and has closed it"
    for number in numbers:
        os.close(number)


@scene("SharedSocket.recv/of a shared socket")
def recv_of_a_shared_socket(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    twin = stage.has(ours.dup())
    operations.note_streak(ours._descriptor.kernel, True)
    peer.sendall(TAGGED)
    outcome = yield lambda: ours.recv(HEAD)
    assert outcome.value_or(lambda: ours.recv(HEAD)) + stage.rest_of(ours) == TAGGED
    assert twin.references() == 2


# -- sending ----------------------------------------------------------------------------------------------------------

SENDS: dict[str, Callable[[Any, bytes], Any]] = {
    "send": lambda s, data: s.send(data),
    "sendall": lambda s, data: s.sendall(data),
    "sendmsg": lambda s, data: s.sendmsg([data[:7], data[7:]]),
}


def _sending(name: str, kind: str = "unix") -> Scene:
    """A call that was cut short has sent all of it or nothing; whatever it sent is the peer's, in order and once."""

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected(kind)
        outcome = yield lambda: SENDS[name](ours, TAGGED)
        ours.sendall(b"!")
        received = bytearray()
        while not received.endswith(b"!"):
            received += peer.recv(1 << 16)
        if outcome.error is None:
            assert received == TAGGED + b"!"
        else:
            assert received in (b"!", TAGGED + b"!")

    return play


for _name in SENDS:
    scene(f"SharedSocket.{_name}")(_sending(_name))
scene("SharedSocket.sendall/TCP")(_sending("sendall", "tcp"))


@scene("SharedSocket.sendto")
def sendto(stage: Stage) -> Acts:
    peer = stage.has(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.bind(("127.0.0.1", 0))
    peer.settimeout(PATIENCE_S)
    ours = stage.has(ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM))
    outcome = yield lambda: ours.sendto(TAGGED, peer.getsockname())
    ours.sendto(b"!", peer.getsockname())
    first = peer.recv(1 << 16)
    assert first == TAGGED or (outcome.error is not None and first == b"!")


@scene("SharedSocket.sendall/that must wait")
def sendall_that_must_wait(stage: Stage) -> Acts:
    """The peer reads while the call waits for room: what it gets is the data from its beginning, without a gap."""
    ours, peer = stage.connected()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    data = TAGGED * 64
    reading = Running(_read_all, peer)
    outcome = yield lambda: ours.sendall(data)
    ours.shutdown(socket.SHUT_WR)
    received = reading.outcome()
    assert received == data if outcome.error is None else data.startswith(received)


def _read_all(peer: socket.socket) -> bytes:
    received = bytearray()
    while more := peer.recv(1 << 16):
        received += more
    return bytes(received)


@scene("SharedSocket.sendfile")
def sendfile(stage: Stage) -> Acts:
    """What of the file was sent is a prefix of it, and its position tells how much."""
    ours, peer = stage.connected("tcp")
    file = stage.has(tempfile.TemporaryFile())  # noqa: SIM115  # the stage closes it
    file.write(TAGGED)
    file.seek(0)
    outcome = yield lambda: ours.sendfile(file)
    ours.shutdown(socket.SHUT_WR)
    received = _read_all(peer)
    assert received == TAGGED if outcome.error is None else received in (b"", TAGGED)


# -- connections ------------------------------------------------------------------------------------------------------


@scene("SharedSocket.accept")
def accept(stage: Stage) -> Acts:
    """No client is lost, and none is reset."""
    listener = stage.listener()
    clients = [stage.client_of(listener) for _ in range(2)]
    outcome = yield listener.accept
    accepted = [outcome.value_or(listener.accept), listener.accept()]
    assert [address for _, address in accepted] == [client.getsockname() for client in clients]
    for client, (served, _) in zip(clients, accepted, strict=True):
        stage.has(served).sendall(b"served")
        assert client.recv(16) == b"served"


@scene("SharedSocket.accept/after a wait")
def accept_after_a_wait(stage: Stage) -> Acts:
    listener = stage.listener()
    listener.settimeout(PATIENCE_S)
    operations.note_streak(listener._descriptor.kernel, True)
    client = stage.client_of(listener)
    outcome = yield listener.accept
    served, address = outcome.value_or(listener.accept)
    assert address == client.getsockname()
    stage.has(served).sendall(b"served")
    assert client.recv(16) == b"served"


def _connecting(call: Callable[[Any, Any], Any]) -> Scene:
    """An attempt that was cut short goes on: the socket is connected, or can be."""

    def play(stage: Stage) -> Acts:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = stage.has(ss.SharedSocket())
            ours.settimeout(PATIENCE_S)
            address = listener.getsockname()
            outcome = yield lambda: call(ours, address)
            listener.settimeout(PATIENCE_S)
            if outcome.error is not None or outcome.value:
                assert ours.connect_ex(address) in (0, errno.EISCONN, errno.EALREADY)
            peer = stage.has(listener.accept()[0])
            ours.sendall(TAGGED)
            peer.settimeout(PATIENCE_S)
            assert peer.recv(1 << 16) == TAGGED

    return play


scene("SharedSocket.connect")(_connecting(lambda ours, address: ours.connect(address)))
scene("SharedSocket.connect_ex")(_connecting(lambda ours, address: ours.connect_ex(address)))
