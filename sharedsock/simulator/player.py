"""What the players of a story do in their own processes, beyond the commands every actor knows.

Each function is called there with the actor's belongings first (`call_with`), and returns what it saw as plain values.
"""

from __future__ import annotations

import hashlib
import select
import socket
import struct
from time import monotonic
from typing import Any, Final

from sharedsock.model.errors import wsa_number
from sharedsock.registry.connect import default_client
from sharedsock.testing.commands import Belongings

__all__ = [
    "connect_clients",
    "greetings",
    "is_refused",
    "queue_all_it_takes",
    "read_to_the_end",
    "record",
    "record_number",
    "registry_pid",
    "registry_view",
    "send_records",
    "watch_the_end",
]

_NUMBER: Final = struct.Struct("!Q")
_CHUNK: Final = 16 << 10


def record(number: int, size: int) -> bytes:
    """Return record `number`: its number, then bytes that follow from it."""
    return _NUMBER.pack(number) + bytes([number % 251]) * (size - _NUMBER.size)


def record_number(data: bytes) -> int:
    """Return the number of a record."""
    return int(_NUMBER.unpack_from(data)[0])


def send_records(has: Belongings, on: str, numbers: range, size: int) -> None:
    """Send records, each by a call of its own and not delayed, so that no reader ever finds half a record."""
    has[on].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in numbers:
        has[on].sendall(record(number, size))


def connect_clients(has: Belongings, address: Any, numbers: range) -> list[int]:
    """Connect a plain client for each number and keep it; return their ports, by which the acceptor knows them."""
    ports = []
    for number in numbers:
        client = has.sockets[f"client-{number}"] = socket.create_connection(address)
        ports.append(client.getsockname()[1])
    return ports


def greetings(has: Belongings, numbers: range) -> dict[int, str]:
    """Read each client's greeting up to the FIN; return who greeted the client of each port, and close the clients."""
    greeted = {}
    for number in numbers:
        with has.sockets.pop(f"client-{number}") as client:
            port = client.getsockname()[1]
            chunks = []
            while chunk := client.recv(256):
                chunks.append(chunk)
            greeted[port] = b"".join(chunks).decode()
    return greeted


def is_refused(has: Belongings, address: Any) -> bool:
    """Report whether a connect to the address is refused."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
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
