"""What the SPI pages list: the linger option of a new socket, and the other codes a duplication may end with."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import sharedsock as ss
from sharedsock.model import winsock
from sharedsock.registry import connect

LINGER = struct.Struct("ii")


def _linger(s: ss.SharedSocket) -> tuple[int, int]:
    """Return (l_onoff, l_linger)."""
    onoff, seconds = LINGER.unpack(s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER.size))
    return onoff, seconds


@pytest.mark.rule("LINGER-1")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_new_stream_socket_does_not_linger(address: str) -> None:
    """LPWSPGetSockOpt: SO_DONTLINGER is TRUE by default; so is it however the socket came here."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ss.create_server((address, 0), family=family) as listener, ss.SharedSocket(family) as fresh:
        with ss.create_connection(listener.getsockname()[:2]) as ours, listener.accept()[0] as accepted:
            with ss.fromshare(ours.share(os.getpid())) as shared, ss.adopt(socket.socket(family)) as adopted:
                for s in (listener, fresh, ours, accepted, shared, adopted):
                    assert _linger(s)[0] == 0


@contextmanager
def _no_number_left() -> Iterator[None]:
    """Open files up to the limit, which is lowered for the time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 50, hard))
    with suppress(OSError):  # EMFILE
        while True:
            taken.append(os.dup(taken[0]))
    try:
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.rule("DUP-8")
def test_a_duplication_without_a_free_number_is_10024_and_leaves_nothing() -> None:
    """WSAEMFILE: no channel to the registry can be had; with room again, the same call succeeds."""
    ours, theirs = ss.socketpair()
    with ours, theirs:
        assert ss.revoke(ours.share(os.getpid()))  # the registry runs, and knows the socket
        with ss.SharedSocket() as never_shared:
            ours.close()
            connect.close_idle_clients()
            with _no_number_left(), pytest.raises(OSError, match="open files") as caught:
                never_shared.share(os.getpid())
            assert caught.value.errno == errno.EMFILE
            assert vars(caught.value)["winerror"] == winsock.WSAEMFILE
            ticket = never_shared.share(os.getpid())
            assert never_shared.references() == 2
            assert ss.revoke(ticket)


@pytest.mark.rule("DUP-8")
def test_a_duplication_without_a_registry_is_10050_and_leaves_the_socket_open() -> None:
    """WSAENETDOWN: the registry that was chosen has ended; the socket goes on working."""
    registry = ss.Registry().start()
    ours, theirs = ss.socketpair()
    with ours, theirs:
        registry.client.shutdown()
        with pytest.raises(ss.RegistryGone) as caught:
            ours.share(os.getpid())
        assert caught.value.winerror == winsock.WSAENETDOWN
        registry.close()
        theirs.sendall(b"still here")
        assert ours.recv(16) == b"still here"
