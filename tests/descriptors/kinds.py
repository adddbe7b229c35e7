"""Socket kinds and blocking calls, as tables that tests of closing run through.

A kind is a connected pair, of which one end is a `SharedSocket` that will be shared; a call is something that blocks
on it. Functions here run in actors too, so they are plain and picklable by name.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import sharedsock as ss
from sharedsock.testing.commands import Belongings

STREAM_KINDS: Final = ("tcp4", "tcp6", "unix-stream", "unix-seqpacket")
DATAGRAM_KINDS: Final = ("udp4", "udp6", "unix-dgram")
LISTENER_KINDS: Final = ("tcp4", "tcp6", "unix-stream")
_FAMILIES: Final = {"tcp4": socket.AF_INET, "tcp6": socket.AF_INET6, "udp4": socket.AF_INET, "udp6": socket.AF_INET6}
_UNIX_TYPES: Final = {
    "unix-stream": socket.SOCK_STREAM,
    "unix-seqpacket": socket.SOCK_SEQPACKET,
    "unix-dgram": socket.SOCK_DGRAM,
}
LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
PEER_TIMEOUT_S: Final = 60.0
ON_ITS_WAY_S: Final = 0.5
_SIOCOUTQNSD: Final = 0x894B  # bytes not sent yet; TIOCOUTQ counts those not acknowledged as well


@dataclass(frozen=True)
class Pair:
    """Two connected ends: `local` is to be shared, `peer` is a plain socket in the test's process."""

    local: ss.SharedSocket
    peer: socket.socket


@contextmanager
def pair_of(kind: str, *, send_buffer: int | None = None, receive_buffer: int | None = None) -> Iterator[Pair]:
    """Open a connected pair; `send_buffer` is the local end's, `receive_buffer` the peer's."""
    local, peer = _plain_pair(kind, send_buffer, receive_buffer)
    peer.settimeout(PEER_TIMEOUT_S)
    with peer, ss.adopt(local) as shared:
        yield Pair(shared, peer)


def _plain_pair(kind: str, send_buffer: int | None, receive_buffer: int | None) -> tuple[socket.socket, socket.socket]:
    if kind in _UNIX_TYPES:
        local, peer = socket.socketpair(socket.AF_UNIX, _UNIX_TYPES[kind])
        if send_buffer is not None:
            local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        return local, peer
    family = _FAMILIES[kind]
    address = LOOPBACK[family], 0
    if kind.startswith("udp"):
        local, peer = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
        for end in (local, peer):
            end.bind(address)
        local.connect(peer.getsockname())
        peer.connect(local.getsockname())
        return local, peer
    with socket.socket(family) as door, socket.socket(family) as local:
        if receive_buffer is not None:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # accepted sockets inherit it
        door.bind(address)
        door.listen()
        if send_buffer is not None:
            local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        local.connect(door.getsockname())
        peer, _ = door.accept()
        return socket.socket(fileno=local.detach()), peer


@contextmanager
def listener_of(kind: str, backlog: int = 16) -> Iterator[ss.SharedSocket]:
    """Open a listener to be shared."""
    if kind in _UNIX_TYPES:
        with tempfile.TemporaryDirectory() as directory:
            with ss.SharedSocket(socket.AF_UNIX, _UNIX_TYPES[kind]) as listener:
                listener.bind(os.path.join(directory, "door"))
                listener.listen(backlog)
                yield listener
        return
    family = _FAMILIES[kind]
    with ss.SharedSocket(family, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK[family], 0))
        listener.listen(backlog)
        yield listener


def client_of(listener: socket.socket) -> socket.socket:
    """Connect a plain client to a listener."""
    client = socket.socket(listener.family, listener.type)
    client.settimeout(PEER_TIMEOUT_S)
    client.connect(listener.getsockname())
    return client


@contextmanager
def full_door(kind: str) -> Iterator[socket.socket]:
    """Open a plain listener whose backlog is full, so that the next connect waits."""
    with tempfile.TemporaryDirectory() as directory:
        family = _FAMILIES.get(kind, socket.AF_UNIX)
        with socket.socket(family, socket.SOCK_STREAM) as door:
            door.bind(os.path.join(directory, "door") if family == socket.AF_UNIX else (LOOPBACK[family], 0))
            door.listen(0)
            clients: list[socket.socket] = []
            try:
                while not clients or _is_connected(clients[-1]):
                    clients.append(socket.socket(family, socket.SOCK_STREAM))
                    clients[-1].setblocking(False)
                    clients[-1].connect_ex(door.getsockname())
                yield door
            finally:
                for client in clients:
                    client.close()


def _is_connected(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError:  # ENOTCONN: under way, or refused for want of room
        return False
    return True


def fill(end: socket.socket) -> int:
    """Send until no more fits, and will not by itself; return how many bytes (or, of datagrams, how many).

    An acknowledgement on its way makes room again: TCP is full when nothing is in flight and bytes are left unsent.
    """
    timeout_s = end.gettimeout()
    end.settimeout(0)
    sent = 0
    was_quiet = False
    try:
        while True:
            try:
                sent += end.send(b"x" * (1 << 16 if end.type == socket.SOCK_STREAM else 1024))
                was_quiet = False
            except BlockingIOError:
                is_quiet = not _is_in_flight(end)
                if was_quiet and is_quiet:  # quiet before and after a send that found no room
                    return sent
                was_quiet = is_quiet
    finally:
        end.settimeout(timeout_s)


def _is_in_flight(end: socket.socket) -> bool:
    if end.family == socket.AF_UNIX or end.type != socket.SOCK_STREAM:
        return False
    queued = fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    unsent = fcntl.ioctl(end.fileno(), _SIOCOUTQNSD, b"\0" * 4)
    return queued != unsent


def drain(end: socket.socket, count: int) -> int:
    """Receive `count` bytes and drop them."""
    left = count
    while left > 0:
        data = end.recv(min(left, 1 << 20))
        assert data, "the peer sees no end while others hold the socket"
        left -= len(data)
    return count


# -- calls that block, by name ------------------------------------------------------------------------------------


def _recv_into(end: socket.socket) -> bytes:
    buffer = bytearray(16)
    return bytes(buffer[: end.recv_into(buffer)])


def _recvfrom_into(end: socket.socket) -> bytes:
    buffer = bytearray(16)
    return bytes(buffer[: end.recvfrom_into(buffer)[0]])


def _recvmsg_into(end: socket.socket) -> bytes:
    first, second = bytearray(2), bytearray(14)
    count = end.recvmsg_into([first, second])[0]
    return bytes(first + second)[:count]


def _readline(end: socket.socket) -> bytes:
    with end.makefile("rb") as reader:
        return reader.readline()


def _read_text(end: socket.socket) -> bytes:
    with end.makefile("r", encoding="ascii", newline="\n") as reader:
        return reader.readline().encode()


RECEIVES: Final[dict[str, Callable[[socket.socket], bytes]]] = {
    "recv": lambda end: end.recv(16),
    "recv_into": _recv_into,
    "recvfrom": lambda end: end.recvfrom(16)[0],
    "recvfrom_into": _recvfrom_into,
    "recvmsg": lambda end: end.recvmsg(16)[0],
    "recvmsg_into": _recvmsg_into,
}
READERS: Final[dict[str, Callable[[socket.socket], bytes]]] = {"makefile-rb": _readline, "makefile-r": _read_text}


def _sendfile(end: socket.socket, data: bytes) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return end.sendfile(file)


def _write(end: socket.socket, data: bytes) -> None:
    with end.makefile("wb", buffering=0) as writer:
        writer.write(data)


SENDS: Final[dict[str, Callable[[socket.socket, bytes], Any]]] = {
    "send": lambda end, data: end.send(data),
    "sendall": lambda end, data: end.sendall(data),
    "sendmsg": lambda end, data: end.sendmsg([data[:1], data[1:]]),
    "sendfile": _sendfile,
    "makefile-wb": _write,
}


def receive_by(has: Belongings, call: str, on: str) -> bytes:
    """In an actor: receive one line by the call of this name."""
    return (RECEIVES | READERS)[call](has[on])


def send_by(has: Belongings, call: str, data: bytes, on: str) -> Any:
    """In an actor: send by the call of this name."""
    return SENDS[call](has[on], data)


def connect_to(has: Belongings, address: Any, on: str) -> None:
    """In an actor: connect."""
    has[on].connect(address)


def attribute_of(has: Belongings, name: str, on: str, *arguments: Any) -> Any:
    """In an actor: call a method of a socket and return what it returns."""
    return getattr(has[on], name)(*arguments)


# -- looking ------------------------------------------------------------------------------------------------------


def is_silent(end: socket.socket) -> bool:
    """Whether nothing at all has reached this end: no data, no FIN, no reset."""
    poll = select.poll()
    poll.register(end, select.POLLIN | select.POLLPRI | select.POLLRDHUP)
    return not poll.poll(0)


def wait_event(end: socket.socket, events: int = select.POLLIN | select.POLLRDHUP, timeout_s: float = 60.0) -> float:
    """Wait until something has reached this end; return how long it took."""
    began_s = monotonic()
    poll = select.poll()
    poll.register(end, events)
    assert poll.poll(timeout_s * 1000), "nothing came"
    return monotonic() - began_s


# -- a payload whose every place is known ---------------------------------------------------------------------------


def payload(size: int) -> bytes:
    """Return bytes in which a lost, doubled or moved piece shows: 8-byte numbers, counted up."""
    return b"".join(place.to_bytes(8, "big") for place in range(size // 8))


def queue(end: socket.socket, size: int) -> int:
    """Send the payload until `size` bytes are queued, or no more fits; return how many bytes were."""
    timeout_s = end.gettimeout()
    end.settimeout(0)
    data = memoryview(payload(size))
    sent = 0
    try:
        while sent < len(data):
            sent += end.send(data[sent:])
    except BlockingIOError:
        pass
    finally:
        end.settimeout(timeout_s)
    return sent


def queue_in(has: Belongings, size: int, on: str = "socket") -> int:
    """In an actor: `queue`."""
    return queue(has[on], size)


def receive_all(end: socket.socket) -> bytes:
    """Receive until FIN; ConnectionResetError where the connection was cut."""
    chunks = []
    while chunk := end.recv(1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def set_linger(end: socket.socket, linger_s: int | None) -> None:
    """Set SO_LINGER: None is DONTLINGER."""
    value = struct.pack("ii", linger_s is not None, linger_s or 0)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)


def get_linger(end: socket.socket) -> tuple[int, int]:
    """Return SO_LINGER as (on or off, seconds)."""
    is_on, seconds = struct.unpack("ii", end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return is_on, seconds


def kernel_linger(end: ss.SharedSocket) -> tuple[int, int]:
    """Return SO_LINGER as the kernel has it."""
    is_on, seconds = struct.unpack("ii", end._descriptor.kernel.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return is_on, seconds


def was_reset(end: socket.socket) -> bool:
    """Read a peer to its end; whether that was a reset rather than FIN."""
    try:
        receive_all(end)
    except ConnectionResetError:
        return True
    return False


def timed(call: Callable[[], object], took: list[float]) -> None:
    """Call, and note how many seconds it took, also when it raises."""
    began_s = monotonic()
    try:
        call()
    finally:
        took.append(monotonic() - began_s)


def drain_bytes(end: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = end.recv(count - len(data))
        assert chunk, "the peer sees no end while others hold the socket"
        data += chunk
    return bytes(data)


def _hang_up(end: socket.socket, timeout_s: float) -> int:
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    return sum(event for _, event in poll.poll(timeout_s * 1000))


def is_quiet(end: socket.socket) -> bool:
    """Whether the connection stands: neither FIN nor reset has reached this end; data may have."""
    return not _hang_up(end, 0)


def is_reset(end: socket.socket) -> bool:
    """Whether a reset has reached this end, without reading anything.

    It is sent before the close returns; a kernel that is busy carries it over the loopback device a moment later.
    """
    return bool(_hang_up(end, ON_ITS_WAY_S) & select.POLLERR)
