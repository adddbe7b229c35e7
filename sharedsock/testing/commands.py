"""What an actor can be told: one table, code -> handler.

A handler runs in the named thread of the actor that the command was given to, takes the actor's `Belongings` first,
and returns the command's outcome or raises. Sockets are spoken of by the name under which the actor keeps them;
"socket" where a test needs only one. A name serves a `SharedSocket` and a plain `socket.socket` alike, so the far
peer of a story can be an actor too.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import sharedsock as ss
from sharedsock.testing.outcomes import Accepted, Outcome, Received, Returned

__all__ = ["COMMANDS", "Belongings", "Handler"]

_ANY_PORT: Final = ("127.0.0.1", 0)


class Belongings:
    """What an actor has: its sockets by name, and the way to tell its controller what happened meanwhile."""

    def __init__(self, name: str, report: Callable[[str, Any], None]) -> None:
        self.name = name
        self.sockets: dict[str, socket.socket] = {}
        self.report = report

    def __getitem__(self, name: str) -> socket.socket:
        try:
            return self.sockets[name]
        except KeyError:
            raise KeyError(f"actor {self.name} keeps no socket {name!r}, only {sorted(self.sockets)}") from None

    def shared(self, name: str) -> ss.SharedSocket:
        """Return a socket kept under a name that must be a SharedSocket."""
        held = self[name]
        if not isinstance(held, ss.SharedSocket):
            raise TypeError(f"socket {name!r} of actor {self.name} is a plain socket")
        return held


Handler = Callable[..., Outcome]
_commands: dict[str, Handler] = {}


def command(handler: Handler) -> Handler:
    """Enter a handler into the table under its own name."""
    _commands[handler.__name__.rstrip("_")] = handler
    return handler


COMMANDS: Final[Mapping[str, Handler]] = MappingProxyType(_commands)


@command
def call(has: Belongings, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Outcome:
    """Call any picklable callable."""
    return Returned(function(*arguments, **keywords))


@command
def call_with(has: Belongings, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Outcome:
    """Call any picklable callable with the actor's belongings as its first argument."""
    return Returned(function(has, *arguments, **keywords))


@command
def listen(
    has: Belongings,
    on: str,
    address: Any = _ANY_PORT,
    backlog: int = 128,
    plain: bool = False,
    receive_buffer: int | None = None,
) -> Outcome:
    """Open a listening TCP socket; return its address."""
    made: socket.socket = (socket.socket if plain else ss.SharedSocket)(socket.AF_INET, socket.SOCK_STREAM)
    has.sockets[on] = made
    if receive_buffer is not None:
        # Before listen(): accepted sockets inherit it, and with it the window they may offer.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.bind(address)
    made.listen(backlog)
    return Returned(made.getsockname())


@command
def connect(has: Belongings, on: str, address: Any, plain: bool = False, send_buffer: int | None = None) -> Outcome:
    """Open a TCP socket and connect it; return its own address."""
    made: socket.socket = (socket.socket if plain else ss.SharedSocket)(socket.AF_INET, socket.SOCK_STREAM)
    has.sockets[on] = made
    if send_buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    made.connect(address)
    return Returned(made.getsockname())


@command
def accept(has: Belongings, on: str = "socket", into: str = "client") -> Outcome:
    """Accept one client and keep it under the name `into`."""
    has.sockets[into], address = has[on].accept()
    return Accepted(address)


@command
def recv(has: Belongings, size: int, flags: int = 0, on: str = "socket") -> Outcome:
    """Receive at most `size` bytes."""
    return Received(has[on].recv(size, flags) if flags else has[on].recv(size))


@command
def receive_all(has: Belongings, on: str = "socket", size: int = 1 << 16) -> Outcome:
    """Receive until the peer's FIN, and return all of it."""
    chunks = []
    while chunk := has[on].recv(size):
        chunks.append(chunk)
    return Received(b"".join(chunks))


@command
def receive_records(has: Belongings, size: int, on: str = "socket") -> Outcome:
    """Receive again and again, reporting each record ("record", bytes), until the peer's FIN or an error."""
    while data := has[on].recv(size):
        has.report("record", data)
    return Received(b"")


@command
def serve_clients(has: Belongings, on: str = "socket") -> Outcome:
    """Accept again and again, reporting each client ("client", address); greet it with our name and close it."""
    while True:
        client, address = has[on].accept()
        has.report("client", address)
        with client:
            client.sendall(has.name.encode())


@command
def send(has: Belongings, data: bytes, on: str = "socket") -> Outcome:
    """Send once; return how many bytes went."""
    return Returned(has[on].send(data))


@command
def sendall(has: Belongings, data: bytes, on: str = "socket") -> Outcome:
    """Send all of it."""
    has[on].sendall(data)
    return Returned()


@command
def shutdown(has: Belongings, how: int, on: str = "socket") -> Outcome:
    """Shut down; every sharer feels it."""
    has[on].shutdown(how)
    return Returned()


@command
def close(has: Belongings, on: str = "socket") -> Outcome:
    """Close; the name stays, so that later use can be tried."""
    has[on].close()
    return Returned()


@command
def abort(has: Belongings, on: str = "socket") -> Outcome:
    """Close at once, even while a makefile() object would defer it."""
    has.shared(on).abort()
    return Returned()


@command
def keep(has: Belongings, made: socket.socket, on: str = "socket") -> Outcome:
    """Keep a socket that came with the command itself."""
    has.sockets[on] = made
    return Returned()


@command
def share(has: Belongings, pid: int | None, on: str = "socket", expires_s: float | None = None) -> Outcome:
    """Mint a ticket for a process; return its bytes."""
    return Returned(has.shared(on).share(pid, expires_s=expires_s))


@command
def take(has: Belongings, ticket: bytes, on: str = "socket") -> Outcome:
    """Redeem a ticket and keep the descriptor."""
    has.sockets[on] = ss.fromshare(ticket)
    return Returned()


@command
def drop(has: Belongings, on: str = "socket") -> Outcome:
    """Forget a name, without a close: what happens is what a forgotten socket comes to."""
    has[on]
    del has.sockets[on]
    return Returned()


@command
def references(has: Belongings, on: str = "socket") -> Outcome:
    """Return how many references the underlying socket has."""
    return Returned(has.shared(on).references())


@command
def holders(has: Belongings, on: str = "socket") -> Outcome:
    """Return who has the underlying socket."""
    return Returned(has.shared(on).holders())


@command
def facts(has: Belongings, on: str = "socket") -> Outcome:
    """Return (file number, inode) of a socket as this process's kernel table has it."""
    number = has[on].fileno()
    return Returned((number, os.fstat(number).st_ino))


@command
def set_linger(has: Belongings, is_on: bool, linger_s: int, on: str = "socket") -> Outcome:
    """Set SO_LINGER on the underlying socket, for whoever closes it last."""
    has[on].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, linger_s))
    return Returned()


@command
def set_timeout(has: Belongings, timeout_s: float | None, on: str = "socket") -> Outcome:
    """Set the timeout of this descriptor."""
    has[on].settimeout(timeout_s)
    return Returned()


@command
def watch(has: Belongings, on: str = "socket") -> Outcome:
    """Sleep in one poll(2) until the kernel has anything to say about a plain socket; return the event mask."""
    poll = select.poll()
    poll.register(has[on], select.POLLIN | select.POLLPRI | select.POLLRDHUP)
    return Returned(poll.poll()[0][1])


@command
def thread_names(has: Belongings) -> Outcome:
    """Return the names of the threads of this process."""
    return Returned(sorted(thread.name for thread in threading.enumerate()))
