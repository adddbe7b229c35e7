"""What the players of a story do in their own processes, beyond the commands every actor knows.

Each function is called there with the actor's belongings first (`call_with`), and returns what it saw as plain values.
"""

from __future__ import annotations

import errno
import hashlib
import select
import socket
import struct
from time import monotonic
from typing import Any, Final

import sharedsock as ss
from sharedsock.kernel import system
from sharedsock.model.errors import wsa_number
from sharedsock.registry.connect import default_client
from sharedsock.simulator.transports import TRANSPORTS
from sharedsock.testing.commands import Belongings

__all__ = [
    "connect_clients",
    "greetings",
    "is_refused",
    "listen",
    "open_near",
    "open_peer",
    "queue_all_it_takes",
    "read_datagrams",
    "read_to_the_end",
    "record",
    "record_number",
    "registry_pid",
    "registry_view",
    "send_records",
    "unread",
    "watch_the_end",
]

_NUMBER: Final = struct.Struct("!Q")
_CHUNK: Final = 16 << 10
_UNIX_TOGETHER: Final = 16
_QUICK_S: Final = 1.0  # loopback answers within microseconds; a peer that waits longer waits for nothing


def record(number: int, size: int) -> bytes:
    """Return record `number`: its number, then bytes that follow from it."""
    return _NUMBER.pack(number) + bytes([number % 251]) * (size - _NUMBER.size)


def record_number(data: bytes) -> int:
    """Return the number of a record."""
    return int(_NUMBER.unpack_from(data)[0])


def listen(
    has: Belongings, on: str, transport: str, address: Any, *, plain: bool = False, receive_buffer: int | None = None
) -> Any:
    """Open a listener, shareable or plain; return its address."""
    sort = TRANSPORTS[transport]
    made = has.sockets[on] = (socket.socket if plain else ss.SharedSocket)(sort.family, sort.kind)
    if receive_buffer is not None:
        # Before listen(): accepted sockets inherit it, and with it the window they may offer.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.bind(address)
    made.listen(128)
    return made.getsockname()


def open_near(has: Belongings, on: str, transport: str, address: Any, buffer: int) -> Any:
    """Open a shareable socket connected to an address, with room to queue and to receive; return its own address."""
    sort = TRANSPORTS[transport]
    made = has.sockets[on] = ss.SharedSocket(sort.family, sort.kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    if not sort.has_connections:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.connect(address)
    return made.getsockname()


def open_peer(has: Belongings, on: str, transport: str, address: Any, far: Any = None) -> Any:
    """Open the peer's plain datagram socket, or connect the one that is there to the far end; return its address."""
    sort = TRANSPORTS[transport]
    if far is not None:
        has[on].connect(far)
    else:
        has.sockets[on] = socket.socket(sort.family, sort.kind)
        has[on].bind(address)
    return has[on].getsockname()


def send_records(has: Belongings, on: str, numbers: range, size: int) -> None:
    """Send records so that no reader ever finds half of one: each by a call of its own and not delayed.

    A Unix stream keeps each call in a buffer of its own, of which the kernel allows few: there some go together.
    """
    together = 1
    if has[on].family == socket.AF_UNIX:
        together = _UNIX_TOGETHER
    elif has[on].type == socket.SOCK_STREAM:
        has[on].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for place in range(0, len(numbers), together):
        has[on].sendall(b"".join(record(number, size) for number in numbers[place : place + together]))


def read_datagrams(has: Belongings, on: str) -> list[bytes]:
    """Read the datagrams that have arrived, and no more."""
    came = []
    try:
        while True:
            came.append(has[on].recv(_CHUNK, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return came


def unread(has: Belongings, on: str) -> int:
    """Return how many bytes have arrived and have not been read."""
    return system.unread_bytes(has[on].fileno())


def connect_clients(has: Belongings, transport: str, address: Any, numbers: range) -> list[Any]:
    """Connect a plain client for each number and keep it; return what the acceptor will know each by."""
    sort = TRANSPORTS[transport]
    names = []
    for number in numbers:
        client = has.sockets[f"client-{number}"] = socket.socket(sort.family, sort.kind)
        if not sort.host:
            client.bind("")  # a name of the kernel's choice; a Unix client has none of its own (unix(7), autobind)
        client.connect(address)
        names.append(sort.name_of(client.getsockname()))
    return names


def greetings(has: Belongings, transport: str, numbers: range) -> dict[Any, str]:
    """Read each client's greeting up to the FIN; return who greeted the client of each name, and close the clients."""
    greeted = {}
    for number in numbers:
        with has.sockets.pop(f"client-{number}") as client:
            name = TRANSPORTS[transport].name_of(client.getsockname())
            chunks = []
            while chunk := client.recv(256):
                chunks.append(chunk)
            greeted[name] = b"".join(chunks).decode()
    return greeted


def is_refused(has: Belongings, transport: str, address: Any, on: str) -> bool:
    """Report whether nobody is there any more: a new connect, or a datagram to the far end, is refused."""
    sort = TRANSPORTS[transport]
    if not sort.has_connections:
        has[on].send(b"anybody?")
        poll = select.poll()
        poll.register(has[on], 0)
        poll.poll(_QUICK_S * 1000)  # POLLERR: the ICMP error came back
        return bool(has[on].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)
    with socket.socket(sort.family, sort.kind) as client:
        try:
            client.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):  # ENOENT: the path of a Unix listener has gone with it
            return True
    return False


def queue_all_it_takes(has: Belongings, on: str) -> tuple[int, str]:
    """Send without waiting until the kernel takes no more; return how many bytes it took, and their digest."""
    held = has[on]
    before_s = held.gettimeout()
    held.settimeout(0)
    digest = hashlib.sha256()
    total = 0
    try:
        while True:
            chunk = record(total, _CHUNK)
            sent = held.send(chunk)
            digest.update(chunk[:sent])
            total += sent
    except BlockingIOError:
        return total, digest.hexdigest()
    finally:
        held.settimeout(before_s)


def read_to_the_end(has: Belongings, on: str) -> tuple[int, str, str, float]:
    """Read until the stream ends; return how many bytes, their digest, the end, and the seconds it came after them.

    The end is "FIN", or the WSA number of the error.
    """
    digest = hashlib.sha256()
    total = 0
    last_s = monotonic()
    end = "FIN"
    try:
        while chunk := has[on].recv(_CHUNK):
            digest.update(chunk)
            total += len(chunk)
            last_s = monotonic()
    except OSError as error:
        end = str(wsa_number(error.errno or 0))
    return total, digest.hexdigest(), end, monotonic() - last_s


def watch_the_end(has: Belongings, on: str) -> int:
    """Sleep in one poll(2) until the connection breaks, whatever is there to read; return the event mask."""
    poll = select.poll()
    poll.register(has[on], 0)
    return int(poll.poll()[0][1])


def registry_pid(has: Belongings) -> int:
    """Return the process of the registry this actor's sockets are registered with."""
    return default_client().pid


def registry_view(has: Belongings) -> tuple[int, int, int]:
    """Return what the registry counts at all: sockets, tickets, descriptors in its own custody."""
    counts = default_client().statistics()
    return counts.sockets, counts.tickets, counts.custody
