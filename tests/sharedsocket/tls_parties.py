"""Two sides of a TLS connection in one process: certificates of an authority of our own, and waits that can be seen."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import trustme

import sharedsock as ss
from sharedsock import spi
from sharedsock.tls import TLSSocket
from tests.kernel.stage import Call, wait_for

HOST = "localhost"
BIG = os.urandom(1 << 16) * 24


class Contexts(NamedTuple):
    """A server's context, with a certificate for HOST, and a client's that trusts who has issued it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_contexts() -> Contexts:
    """Return fresh contexts; making the keys takes some milliseconds."""
    authority = trustme.CA()
    made = Contexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert(HOST).configure_cert(made.server)
    authority.configure_trust(made.client)
    for context in made:
        context.set_alpn_protocols(["test/1"])
    return made


@pytest.fixture(autouse=True, params=["descriptor", "chain"])
def wire(request: pytest.FixtureRequest) -> Iterator[None]:
    """What TLS stands on: in a chain, every call of the wire goes through a provider."""
    with ss.use_provider(*((spi.Tracing,) if request.param == "chain" else (None,))):
        yield


class Parties(NamedTuple):
    """Both sides, and the sockets below."""

    client: TLSSocket
    server: TLSSocket
    client_socket: ss.SharedSocket
    server_socket: ss.SharedSocket


def tcp_pair() -> tuple[ss.SharedSocket, ss.SharedSocket]:
    """Return a connected pair of TCP sockets."""
    with ss.create_server(("127.0.0.1", 0)) as listener:
        client = ss.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@contextmanager
def talking(contexts: Contexts, **keywords: Any) -> Iterator[Parties]:
    """Shake hands over TCP; close both sides in the end."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        serving = Call(lambda: ss.wrap_tls(contexts.server, theirs, server_side=True, **keywords))
        client = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, **keywords)
        server = serving.outcome()
        yield Parties(client, server, ours, theirs)


@contextmanager
def talking_to_the_stdlib(contexts: Contexts, **keywords: Any) -> Iterator[tuple[TLSSocket, ssl.SSLSocket]]:
    """A client of ours, and the standard library's server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = ss.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    with ours, theirs:
        serving = Call(lambda: contexts.server.wrap_socket(theirs, server_side=True))
        client = ss.wrap_tls(contexts.client, ours, server_hostname=HOST, **keywords)
        with serving.outcome() as server:
            yield client, server


def wait_blocked(secured: TLSSocket, kind: str) -> None:
    """Wait until a call of this kind waits at the wire."""
    wait_for(lambda: kind in {found.kind for found in secured.pending_operations()}, f"a blocked {kind}")


def receive_all(secured: Any, size: int) -> bytes:
    """Receive so many bytes."""
    found = bytearray()
    while len(found) < size:
        data = secured.recv(1 << 16)
        assert data
        found += data
    return bytes(found)
