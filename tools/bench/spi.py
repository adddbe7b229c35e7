"""P17, P18: a ping-pong through the SPI vs the Python face, and through a layer vs what it stands on."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

import sharedsock as ss
from sharedsock import spi
from sharedsock.model.winsock import AF_INET, IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY
from tools.bench.rounds import Result, Settings, interleave_anew, one_core, ratio

__all__ = ["measure"]

ROUND_TRIPS: Final = 2000
CONTENDERS: Final = ("python", "base", "one layer", "two layers")
MESSAGE: Final = b"m"


def _entry(contender: str) -> spi.WSAPROTOCOL_INFO:
    """Return the entry of a contender, installing the layers it needs."""
    info = next(info for info in spi.WSCEnumProtocols() if info.szProtocol == "TCP/IPv4")
    for _ in range(CONTENDERS.index(contender) - 1):
        info = spi.WSCInstallProvider(spi.LayeredProvider, info)
    return info


Calls = tuple[Callable[[], Any], Callable[[], Any], Callable[[], None]]


def _calls(contender: str, made: Any) -> Calls:
    """Return a call that sends one message, one that receives one, and one that closes."""
    if contender == "python":
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return partial(made.sendall, MESSAGE), partial(made.recv, 1), made.close
    spi.WSPSetSockOpt(made, IPPROTO_TCP, TCP_NODELAY, True)
    return partial(spi.WSPSend, made, [MESSAGE]), partial(_receive, made), partial(spi.WSPCloseSocket, made)


def _connected(contender: str, address: Any) -> Calls:
    """Connect."""
    if contender == "python":
        return _calls(contender, ss.create_connection(address))
    spi.WSPStartup()
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, _entry(contender))
    spi.WSPConnect(s, address)
    return _calls(contender, s)


def _listening(contender: str) -> tuple[Any, Callable[[], Calls]]:
    """Listen; return the address, and a call that accepts one client and stops listening."""
    if contender == "python":
        listener = ss.create_server(("127.0.0.1", 0))

        def accept() -> Calls:
            with listener:
                return _calls(contender, listener.accept()[0])

        return listener.getsockname(), accept
    door = spi.WSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, _entry(contender))
    spi.WSPBind(door, ("127.0.0.1", 0))
    spi.WSPListen(door, 1)

    def accept_handle() -> Calls:
        calls = _calls(contender, spi.WSPAccept(door)[0])
        spi.WSPCloseSocket(door)
        return calls

    return spi.WSPGetSockName(door), accept_handle


def _receive(s: int) -> bytes:
    """Receive one message as a program does: into a buffer, of which it takes what has come."""
    buffer = bytearray(1)
    count, _ = spi.WSPRecv(s, [buffer])
    return bytes(buffer[:count])


def _echo(contender: str, address: Any, core: int) -> None:
    """The other end, in a process of its own: send back whatever comes."""
    os.sched_setaffinity(0, {core})
    send, receive, close = _connected(contender, address)
    while receive():
        send()
    close()


@contextmanager
def _pair(contender: str, core: int) -> Iterator[Callable[[int], float]]:
    """Have two processes talk; give a function that measures round trips, in seconds each."""
    address, accept = _listening(contender)
    process = multiprocessing.get_context("spawn").Process(target=_echo, args=(contender, address, core), daemon=True)
    process.start()
    send, receive, close = accept()

    def measure(round_trips: int) -> float:
        begin = perf_counter()
        for _ in range(round_trips):
            send()
            receive()
        return (perf_counter() - begin) / round_trips

    try:
        yield measure
    finally:
        close()
        process.join(10.0)


@contextmanager
def _pairs(core: int, round_trips: int) -> Iterator[dict[str, Callable[[], float]]]:
    with ExitStack() as stack:
        spi.WSPStartup()
        stack.callback(spi.WSPCleanup)
        yield {name: partial(stack.enter_context(_pair(name, core)), round_trips) for name in CONTENDERS}


def measure(settings: Settings) -> Iterator[Result]:
    """Yield P17 and P18: times of a round trip, as ratios; less is better."""
    with one_core() as core:
        times = interleave_anew(partial(_pairs, core, settings.scaled(ROUND_TRIPS)), settings)
    measured, spread = ratio(times["base"], times["python"])
    yield Result("P17", "TCP 1 B, ping-pong by the SPI vs by the Python face", measured, 2.0, 2.0, False, spread)
    for above, below in (("one layer", "base"), ("two layers", "one layer")):
        measured, spread = ratio(times[above], times[below])
        yield Result("P18", f"TCP 1 B, ping-pong through {above} vs {below}", measured, 1.5, 1.5, False, spread)
