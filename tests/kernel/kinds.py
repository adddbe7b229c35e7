"""Every kind of socket the data plane carries, as plain pairs; and each call that can block on it.

A plain pair is what a test forks or hands over before it adopts an end: `sockets.adopt` closes its number in a forked
child, a plain socket stays.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedsock.kernel import sockets, waiting
from sharedsock.kernel.operations import READ, WRITE
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.kernel.waker import Waker

_SIOCOUTQNSD = 0x894B  # bytes not sent yet; TIOCOUTQ counts those not acknowledged as well

STREAMS = ("tcp4", "tcp6", "unix-stream")
DATAGRAMS = ("udp4", "unix-datagram")
KINDS = STREAMS + DATAGRAMS

_FAMILIES = {
    "tcp4": (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    "udp4": (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
    "unix-stream": (socket.AF_UNIX, socket.SOCK_STREAM, ""),
    "unix-datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, ""),
}


@dataclass
class Pair:
    """Two connected plain sockets: `local`, which the test adopts or shares, and its `peer`."""

    local: socket.socket
    peer: socket.socket

    def close(self) -> None:
        self.local.close()
        self.peer.close()


def make_pair(kind: str) -> Pair:
    """Connect a pair of one kind; the peer never waits longer than five seconds."""
    family, type_, host = _FAMILIES[kind]
    if family == socket.AF_UNIX:
        local, peer = socket.socketpair(family, type_)
    elif type_ == socket.SOCK_STREAM:
        with make_listener(kind) as listener:
            local = socket.socket(family, type_)
            local.connect(listener.getsockname())
            peer, _ = listener.accept()
    else:
        local, peer = socket.socket(family, type_), socket.socket(family, type_)
        local.bind((host, 0))
        peer.bind((host, 0))
        local.connect(peer.getsockname())
        peer.connect(local.getsockname())
    peer.settimeout(60)
    return Pair(local, peer)


def make_listener(kind: str, directory: Path | None = None, backlog: int = 16) -> socket.socket:
    """Bind and listen; a Unix listener lies in `directory`."""
    family, type_, host = _FAMILIES[kind]
    listener = socket.socket(family, type_)
    if family == socket.AF_UNIX:
        assert directory is not None
        listener.bind(str(directory / "listener"))
    else:
        listener.bind((host, 0))
    listener.listen(backlog)
    return listener


def make_client(kind: str) -> socket.socket:
    """Make a plain, unconnected socket."""
    family, type_, _ = _FAMILIES[kind]
    return socket.socket(family, type_)


def adopt(plain: socket.socket) -> KernelSocket:
    """Take a plain socket over."""
    family, type_, protocol = plain.family, plain.type, plain.proto
    return sockets.adopt(plain.detach(), family, type_, protocol)


def waker_of(kernel: KernelSocket) -> Waker:
    """Return the waker, made if nobody has waited so far."""
    waker = waiting.waker_of(kernel)
    assert waker is not None
    return waker


def close(kernel: KernelSocket, closed_by: str = "the test") -> None:
    """Close as `descriptors.closing` does, without a registry: abort, drain, bury."""
    sockets.abort(kernel, closed_by)
    sockets.wait_drained(kernel)
    sockets.keep_and_bury(kernel, keep=False)


@dataclass(frozen=True)
class BlockingCall:
    """One method that can block: what `perform` gets for it."""

    method: str
    direction: int
    arguments: Callable[[], tuple[Any, ...]]

    def of(self, kernel: KernelSocket) -> tuple[str, int, Callable[..., Any], tuple[Any, ...]]:
        return self.method, self.direction, getattr(kernel, self.method), self.arguments()


RECEIVES = (
    BlockingCall("recv", READ, lambda: (16, DONTWAIT)),
    BlockingCall("recv_into", READ, lambda: (bytearray(16), 16, DONTWAIT)),
    BlockingCall("recvfrom", READ, lambda: (16, DONTWAIT)),
    BlockingCall("recvfrom_into", READ, lambda: (bytearray(16), 16, DONTWAIT)),
    BlockingCall("recvmsg", READ, lambda: (16, 0, DONTWAIT)),
    BlockingCall("recvmsg_into", READ, lambda: ([bytearray(16)], 0, DONTWAIT)),
)
SENDS = (
    BlockingCall("send", WRITE, lambda: (b"x" * 512, DONTWAIT | NOSIGNAL)),
    BlockingCall("sendmsg", WRITE, lambda: ([b"x" * 512], [], DONTWAIT | NOSIGNAL)),
)


def fill(kernel: KernelSocket) -> int:
    """Send until the kernel takes no more, and will not by itself; return how many bytes it took.

    An acknowledgement on its way makes room again: TCP is full when nothing is in flight and bytes are left unsent.
    """
    sent = 0
    sizes = (65536, 512, 1)
    for size in sizes:
        was_quiet = is_quiet = False
        while not (was_quiet and is_quiet):  # quiet before and after a send that found no room
            was_quiet = is_quiet
            try:
                sent += kernel.send(b"f" * size, DONTWAIT | NOSIGNAL)
                is_quiet = False
            except BlockingIOError:
                is_quiet = not _is_in_flight(kernel)
    return sent


def _is_in_flight(kernel: KernelSocket) -> bool:
    if kernel.family == socket.AF_UNIX or kernel.type != socket.SOCK_STREAM:
        return False
    queued = struct.unpack("i", fcntl.ioctl(kernel.number, termios.TIOCOUTQ, b"\0" * 4))[0]
    unsent = struct.unpack("i", fcntl.ioctl(kernel.number, _SIOCOUTQNSD, b"\0" * 4))[0]
    return bool(queued != unsent)


def drain(peer: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes of a stream."""
    chunks = []
    while count:
        chunk = peer.recv(min(count, 1 << 20))
        assert chunk, "end of stream"
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
