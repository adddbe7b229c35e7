"""Side by side: each method of `socket.socket`, on a plain socket and on a SharedSocket, does the same.

A script gets a connected pair and returns a value, or raises; both runs must agree, on the class and errno of an error
too. What differs on purpose is not here but in the tests that promise it: closing, timeouts, shutdown, SO_LINGER.
"""

from __future__ import annotations

import array
import io
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import sharedsock as ss

Ends = tuple[socket.socket, socket.socket]
STREAMS = ["tcp4", "tcp6", "unix-stream"]
DATAGRAMS = ["udp4", "udp6", "unix-dgram"]
FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@contextmanager
def pair(kind: str, make: Callable[[socket.socket], socket.socket]) -> Iterator[Ends]:
    """Open a connected pair of plain sockets, of which `make` makes what is to be tried."""
    with ExitStack() as stack:
        if kind.startswith("unix"):
            types = {"unix-stream": socket.SOCK_STREAM, "unix-dgram": socket.SOCK_DGRAM}
            left, right = socket.socketpair(socket.AF_UNIX, types[kind])
        elif kind.startswith("udp"):
            family = FAMILIES[kind[3]]
            left, right = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
            left.bind((HOSTS[family], 0))
            right.bind((HOSTS[family], 0))
            left.connect(right.getsockname())
            right.connect(left.getsockname())
        else:
            family = FAMILIES[kind[3]]
            with socket.create_server((HOSTS[family], 0), family=family) as door:
                left = socket.create_connection(door.getsockname()[:2])
                right, _ = door.accept()
        left.settimeout(60)
        right.settimeout(60)
        stack.enter_context(right)
        yield stack.enter_context(make(left)), right


def outcome(script: Callable[[socket.socket, socket.socket], Any], ends: Ends) -> Any:
    """Run a script; an error counts by the class the standard library has for it, and its errno."""
    try:
        return script(*ends)
    except OSError as error:
        return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), error.errno
    except (TypeError, ValueError, BufferError, OverflowError) as error:
        return type(error).__name__


def into(end: socket.socket, peer: socket.socket, size: int, *arguments: Any, **keywords: Any) -> Any:
    peer.send(b"0123456789")
    buffer = bytearray(size)
    return end.recv_into(buffer, *arguments, **keywords), bytes(buffer)


def from_into(end: socket.socket, peer: socket.socket, size: int, *arguments: Any) -> Any:
    peer.send(b"0123456789")
    buffer = bytearray(size)
    count, _ = end.recvfrom_into(buffer, *arguments)
    return count, bytes(buffer)


def read_lines(end: socket.socket, peer: socket.socket) -> Any:
    peer.sendall(b"one\ntwo\nthree")
    peer.shutdown(socket.SHUT_WR)
    with end.makefile("r", encoding="utf-8") as reader:
        return list(reader)


def write_lines(end: socket.socket, peer: socket.socket) -> Any:
    with end.makefile("w", encoding="utf-8", newline="\n") as writer:
        writer.write("ä\n")
        writer.writelines(["b\n", "c\n"])
    return peer.recv(100)


def both_ways(end: socket.socket, peer: socket.socket) -> Any:
    with end.makefile("rwb", buffering=0) as raw:
        raw.write(b"ping")
        got = peer.recv(4)
        peer.sendall(b"pong")
        return got, raw.read(4), raw.readable(), raw.writable(), raw.seekable(), raw.name == end.fileno(), raw.mode


def send_file(end: socket.socket, peer: socket.socket, *arguments: Any) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 10)
        file.flush()
        file.seek(0)
        sent = end.sendfile(file, *arguments)
        position = file.tell()
    return sent, position, peer.recv(1000)


def send_file_in_memory(end: socket.socket, peer: socket.socket) -> Any:
    sent = end.sendfile(io.BytesIO(b"x" * 100))  # no file number: sent by reading
    return sent, peer.recv(1000)


def pass_descriptor(end: socket.socket, peer: socket.socket) -> Any:
    with tempfile.TemporaryFile() as file:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
        end.sendmsg([b"one"], rights)
        data, ancillary, flags, _ = peer.recvmsg(10, socket.CMSG_SPACE(4))
        (number,) = struct.unpack("i", ancillary[0][2])
        os.close(number)
        return data, len(ancillary), flags & ~getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def take_descriptor(end: socket.socket, peer: socket.socket) -> Any:
    with tempfile.TemporaryFile() as file:
        peer.sendmsg([b"one"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
        data, ancillary, _, _ = end.recvmsg(10, socket.CMSG_SPACE(4))
        (number,) = struct.unpack("i", ancillary[0][2])
        os.close(number)
        return data, ancillary[0][:2]


def peek(end: socket.socket, peer: socket.socket) -> Any:
    peer.send(b"0123456789")
    return end.recv(4, socket.MSG_PEEK), end.recv(10, socket.MSG_PEEK), end.recv(100)


def wait_all(end: socket.socket, peer: socket.socket) -> Any:
    peer.send(b"01234")
    peer.send(b"56789")
    return end.recv(5), end.recv(5)


def close_twice(end: Any, peer: Any) -> Any:
    end.close()
    end.close()
    return end.fileno()


def use_after_close(end: Any, peer: Any) -> Any:
    end.close()
    return end.recv(1)


def detach_twice(end: Any, peer: Any) -> Any:
    os.close(end.detach())
    return end.detach(), end.fileno()


def use_after_detach(end: Any, peer: Any) -> Any:
    os.close(end.detach())
    return end.send(b"x")


ANY: dict[str, Callable[[Any, Any], Any]] = {
    "recv": lambda end, peer: (peer.send(b"0123456789"), end.recv(100))[1],
    "recv, less than there is": lambda end, peer: (peer.send(b"0123456789"), end.recv(3))[1],
    "recv nothing": lambda end, peer: (peer.send(b"x"), end.recv(0), end.recv(1))[1:],
    "recv negative": lambda end, peer: end.recv(-1),
    "recv of a text": lambda end, peer: end.recv("1"),
    "recv of None": lambda end, peer: end.recv(None),
    "recv without": lambda end, peer: end.recv(),
    "peek": peek,
    "truncated is signalled": lambda end, peer: (peer.send(b"0123456789"), end.recvmsg(4)[2] & socket.MSG_TRUNC)[1],
    "recv_into": lambda end, peer: into(end, peer, 20),
    "recv_into, exactly": lambda end, peer: into(end, peer, 4),
    "recv_into, some": lambda end, peer: into(end, peer, 20, 4),
    "recv_into, none": lambda end, peer: into(end, peer, 0),
    "recv_into, flags": lambda end, peer: into(end, peer, 20, 4, socket.MSG_PEEK),
    "recv_into, keywords": lambda end, peer: into(end, peer, 20, nbytes=3, flags=0),
    "recv_into, too many": lambda end, peer: into(end, peer, 4, 20),
    "recv_into, negative": lambda end, peer: into(end, peer, 4, -1),
    "recv_into bytes": lambda end, peer: end.recv_into(b"0000"),
    "recv_into a slice": lambda end, peer: (peer.send(b"0123"), end.recv_into(memoryview(bytearray(8))[2:4]))[1],
    "recv_into an array": lambda end, peer: (peer.send(b"01234567"), end.recv_into(array.array("i", [0, 0])))[1],
    "recvfrom": lambda end, peer: (peer.send(b"0123456789"), end.recvfrom(4)[0])[1],
    "recvfrom, flags": lambda end, peer: (peer.send(b"01"), end.recvfrom(4, socket.MSG_PEEK)[0], end.recv(9))[1:],
    "recvfrom_into": lambda end, peer: from_into(end, peer, 20),
    "recvfrom_into, some": lambda end, peer: from_into(end, peer, 20, 3),
    "recvfrom_into, too many": lambda end, peer: from_into(end, peer, 4, 20),
    "recvmsg": lambda end, peer: (peer.send(b"0123456789"), end.recvmsg(100)[:2])[1],
    "recvmsg_into": lambda end, peer: (peer.send(b"0123"), end.recvmsg_into([bytearray(2), bytearray(9)])[:2])[1],
    "recvmsg_into nothing": lambda end, peer: (peer.send(b"0123"), end.recvmsg_into([bytearray(0)])[0])[1],
    "recvmsg_into a generator": lambda end, peer: (peer.send(b"01"), end.recvmsg_into(bytearray(9) for _ in "a")[0])[1],
    "send": lambda end, peer: (end.send(b"0123456789"), peer.recv(100)),
    "send, flags": lambda end, peer: (end.send(b"0123456789", socket.MSG_DONTROUTE & 0), peer.recv(100)),
    "send a text": lambda end, peer: end.send("text"),
    "send an array": lambda end, peer: (end.send(array.array("i", [1, 2])), peer.recv(100)),
    "sendall": lambda end, peer: (end.sendall(b"0123456789"), peer.recv(100)),
    "sendall a view": lambda end, peer: (end.sendall(memoryview(b"0123456789")[2:5]), peer.recv(100)),
    "sendall an array": lambda end, peer: (end.sendall(array.array("d", [1.5])), peer.recv(100)),
    "sendall a bytearray": lambda end, peer: (end.sendall(bytearray(b"xyz")), peer.recv(100)),
    "sendall a text": lambda end, peer: end.sendall("text"),
    "sendall a view with gaps": lambda end, peer: end.sendall(memoryview(b"0123456789")[::2]),
    "sendmsg": lambda end, peer: (end.sendmsg([b"01", bytearray(b"23")]), peer.recv(100)),
    "sendmsg nothing": lambda end, peer: end.sendmsg([]) if end.type == socket.SOCK_STREAM else 0,
    "sendmsg text": lambda end, peer: end.sendmsg(["text"]),
    "sendto without": lambda end, peer: end.sendto(b"x"),
    "sendto too much": lambda end, peer: end.sendto(b"x", 0, peer.getsockname(), 0),
    "bind again": lambda end, peer: end.bind(peer.getsockname()) if end.family != socket.AF_UNIX else None,
    "option": lambda end, peer: end.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "option as bytes": lambda end, peer: end.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4),
    "option that is none": lambda end, peer: end.getsockopt(socket.SOL_SOCKET, 9999),
    "set option": lambda end, peer: (
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    ),
    "set option as bytes": lambda end, peer: end.setsockopt(
        socket.SOL_SOCKET, socket.SO_KEEPALIVE, struct.pack("i", 1)
    ),
    "set option to None": lambda end, peer: end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4),
    "set option to a text": lambda end, peer: end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, "1"),
    "set linger to a number": lambda end, peer: end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 1),
    "inheritable": lambda end, peer: (end.get_inheritable(), end.set_inheritable(True), end.get_inheritable()),
    "timeout": lambda end, peer: (
        end.gettimeout(),
        end.timeout,
        end.getblocking(),
        end.settimeout(2),
        end.gettimeout(),
    ),
    "timeout negative": lambda end, peer: end.settimeout(-1),
    "timeout of a text": lambda end, peer: end.settimeout("x"),
    "timeout of a number as text": lambda end, peer: end.settimeout("3"),
    "timeout of no number": lambda end, peer: end.settimeout(float("nan")),
    "timeout without end": lambda end, peer: end.settimeout(float("inf")),
    "timeout of a month": lambda end, peer: end.settimeout(31 * 86400),
    "timeout of an age": lambda end, peer: end.settimeout(1e10),
    "timeout of three weeks": lambda end, peer: (end.settimeout(21 * 86400), end.gettimeout()),
    "timeout of a truth": lambda end, peer: (end.settimeout(True), end.gettimeout()),
    "timeout of an int": lambda end, peer: (end.settimeout(3), end.gettimeout(), type(end.gettimeout()).__name__),
    "blocking": lambda end, peer: (end.setblocking(False), end.gettimeout(), end.getblocking(), end.setblocking(True)),
    "blocking 0": lambda end, peer: (end.setblocking(0), end.gettimeout()),
    "would block": lambda end, peer: (end.setblocking(False), end.recv(1)),
    "times out": lambda end, peer: (end.settimeout(0.01), end.recv(1)),
    "would block, into": lambda end, peer: (end.setblocking(False), end.recv_into(bytearray(1))),
    "would block, from": lambda end, peer: (end.setblocking(False), end.recvfrom(1)),
    "names": lambda end, peer: (end.getpeername() == peer.getsockname(), end.getsockname() == peer.getpeername()),
    "kind": lambda end, peer: (end.family, end.type, end.proto),
    "number": lambda end, peer: os.fstat(end.fileno()).st_mode == os.fstat(peer.fileno()).st_mode,
    "listen when connected": lambda end, peer: end.listen() if end.family != socket.AF_UNIX else None,
    "connect_ex when connected": lambda end, peer: end.connect_ex(peer.getsockname()) if end.family != 1 else None,
    "context manager": lambda end, peer: (end.__enter__() is end, end.__exit__(None, None, None), end.fileno()),
    "close twice": close_twice,
    "detach twice": detach_twice,
    "use after close": use_after_close,
    "use after detach": use_after_detach,
    "its state": lambda end, peer: end.__getstate__(),
}


STREAM: dict[str, Callable[[Any, Any], Any]] = {
    "the peer's end": lambda end, peer: (peer.shutdown(socket.SHUT_WR), end.recv(10), end.recv(10)),
    "the peer's end, into": lambda end, peer: (peer.shutdown(socket.SHUT_WR), end.recv_into(bytearray(4))),
    "two pieces": wait_all,
    "much": lambda end, peer: (
        end.sendall(b"x" * 100_000),
        sum(len(peer.recv(4096, socket.MSG_WAITALL)) for _ in "1" * 24),
    ),
    "read lines": read_lines,
    "write lines": write_lines,
    "raw file": both_ways,
    "sendfile": send_file,
    "sendfile from": lambda end, peer: send_file(end, peer, 50),
    "sendfile some": lambda end, peer: send_file(end, peer, 10, 20),
    "sendfile beyond": lambda end, peer: send_file(end, peer, 95, 100),
    "sendfile in memory": send_file_in_memory,
    "sendfile nonblocking": lambda end, peer: (end.setblocking(False), send_file(end, peer)),
    "sendfile none": lambda end, peer: send_file(end, peer, 0, 0),
    "makefile of a wrong mode": lambda end, peer: end.makefile("x"),
    "makefile unbuffered text": lambda end, peer: end.makefile("r", buffering=0),
    "shutdown of a wrong kind": lambda end, peer: end.shutdown(7),
    "shutdown": lambda end, peer: (end.shutdown(socket.SHUT_WR), peer.recv(1)),
    "shutdown of a text": lambda end, peer: end.shutdown("both"),
    "accept when connected": lambda end, peer: (end.setblocking(False), end.accept()),
}
DATAGRAM: dict[str, Callable[[Any, Any], Any]] = {
    "sendto": lambda end, peer: (end.sendto(b"abc", peer.getsockname() or ""), peer.recv(10)),
    "sendto, flags": lambda end, peer: (end.sendto(b"abc", 0, peer.getsockname()), peer.recv(10)),
    "sendto a stranger": lambda end, peer: end.sendto(b"abc", "no address"),
    "recvfrom whom": lambda end, peer: (peer.send(b"x"), end.recvfrom(10)[1] == (peer.getsockname() or None))[1],
    "empty": lambda end, peer: (peer.send(b""), end.recv(10), end.send(b""), peer.recv(10)),
    "empty, all": lambda end, peer: (end.sendall(b""), peer.recv(10)),
    "too long": lambda end, peer: end.send(b"x" * (1 << 20)),
    "too long, all": lambda end, peer: end.sendall(b"x" * (1 << 20)),
    "sendfile": lambda end, peer: send_file(end, peer),
    "connect anew": lambda end, peer: end.connect(peer.getsockname()) if end.family != socket.AF_UNIX else None,
}
UNIX: dict[str, Callable[[Any, Any], Any]] = {
    "pass a descriptor": pass_descriptor,
    "take a descriptor": take_descriptor,
}


def cases() -> Iterator[Any]:
    for kinds, scripts in ((STREAMS + DATAGRAMS, ANY), (STREAMS, STREAM), (DATAGRAMS, DATAGRAM)):
        for kind in kinds:
            for name, script in scripts.items():
                yield pytest.param(kind, script, id=f"{kind}: {name}")
    for kind in ("unix-stream", "unix-dgram"):
        for name, script in UNIX.items():
            yield pytest.param(kind, script, id=f"{kind}: {name}")


@pytest.mark.parametrize(("kind", "script"), [*cases()])
def test_it_does_as_a_plain_socket_does(kind: str, script: Callable[[Any, Any], Any]) -> None:
    with pair(kind, lambda plain: plain) as ends:
        plain = outcome(script, ends)
    with pair(kind, ss.adopt) as ends:
        shared = outcome(script, ends)
    assert shared == plain
