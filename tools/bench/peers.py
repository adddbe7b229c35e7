"""P5: the same ping-pong through what else can be aborted: asyncio, uvloop, gevent, trio; both ends in the same.

Each uses its own equivalent of recv and sendall on a connected socket. What is not installed is said to be absent.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

__all__ = ["PEERS", "absent", "echo", "pinger"]

PEERS: Final = ("asyncio", "uvloop", "gevent", "trio")

Run = Callable[[int], float]


def absent() -> list[str]:
    """Return the peers that are not installed; the `bench` extra brings them."""
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def echo(name: str, family: int, address: Any, size: int, core: int) -> None:
    """The other end, in a process of its own: send back whatever comes."""
    os.sched_setaffinity(0, {core})
    connection = socket.socket(family)
    connection.connect(address)
    _ECHOES[name](connection, size)


def pinger(name: str, connection: socket.socket, message: bytes) -> Run:
    """Return a function that measures some round trips on a connected socket, which it takes over, in seconds."""
    return _PINGERS[name](connection, message)


# -- asyncio, and uvloop under it -------------------------------------------------------------------------------------


def _new_loop(name: str) -> Any:
    return importlib.import_module(name).new_event_loop()


def _echo_in_loop(name: str, connection: socket.socket, size: int) -> None:
    loop = _new_loop(name)
    connection.setblocking(False)

    async def answer() -> None:
        while data := await loop.sock_recv(connection, size):
            await loop.sock_sendall(connection, data)

    loop.run_until_complete(answer())
    loop.close()


def _ping_in_loop(name: str, connection: socket.socket, message: bytes) -> Run:
    loop = _new_loop(name)
    connection.setblocking(False)

    async def ping(round_trips: int) -> float:
        size = len(message)
        begin = perf_counter()
        for _ in range(round_trips):
            await loop.sock_sendall(connection, message)
            await loop.sock_recv(connection, size)
        return perf_counter() - begin

    return lambda round_trips: loop.run_until_complete(ping(round_trips))


# -- gevent -----------------------------------------------------------------------------------------------------------


def _of_gevent(connection: socket.socket) -> Any:
    kind = importlib.import_module("gevent.socket").socket
    return kind(connection.family, connection.type, fileno=connection.detach())


def _echo_in_gevent(connection: socket.socket, size: int) -> None:
    end = _of_gevent(connection)
    while data := end.recv(size):
        end.sendall(data)


def _ping_in_gevent(connection: socket.socket, message: bytes) -> Run:
    end = _of_gevent(connection)

    def ping(round_trips: int) -> float:
        size = len(message)
        begin = perf_counter()
        for _ in range(round_trips):
            end.sendall(message)
            end.recv(size)
        return perf_counter() - begin

    return ping


# -- trio -------------------------------------------------------------------------------------------------------------


def _echo_in_trio(connection: socket.socket, size: int) -> None:
    trio = importlib.import_module("trio")

    async def answer() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        while data := await stream.receive_some(size):
            await stream.send_all(data)

    trio.run(answer)


def _ping_in_trio(connection: socket.socket, message: bytes) -> Run:
    trio = importlib.import_module("trio")

    async def ping(round_trips: int) -> float:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        size = len(message)
        begin = perf_counter()
        for _ in range(round_trips):
            await stream.send_all(message)
            await stream.receive_some(size)
        return perf_counter() - begin

    return lambda round_trips: float(trio.run(ping, round_trips))


_ECHOES: Final[dict[str, Callable[[socket.socket, int], None]]] = {
    "asyncio": lambda connection, size: _echo_in_loop("asyncio", connection, size),
    "uvloop": lambda connection, size: _echo_in_loop("uvloop", connection, size),
    "gevent": _echo_in_gevent,
    "trio": _echo_in_trio,
}
_PINGERS: Final[dict[str, Callable[[socket.socket, bytes], Run]]] = {
    "asyncio": lambda connection, message: _ping_in_loop("asyncio", connection, message),
    "uvloop": lambda connection, message: _ping_in_loop("uvloop", connection, message),
    "gevent": _ping_in_gevent,
    "trio": _ping_in_trio,
}
