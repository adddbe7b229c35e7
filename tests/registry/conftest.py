"""What tests of this room share: a client of a registry of its own, sockets, and a ledger."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sharedsock.registry import connect
from sharedsock.registry.client import Client
from sharedsock.registry.ledger import Ledger
from tests.registry.double import end_registry, shared_socket, tree
from tests.registry.ledger_cast import with_one


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The client of the default registry, in a tree of its own."""
    with tree(monkeypatch):
        yield connect.default_client()


@pytest.fixture
def pair(client: Client) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket the registry counts one descriptor of, and its peer."""
    ours, peer, _ = shared_socket(client)
    with ours, peer:
        yield ours, peer
    end_registry(client)


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    """A plain socket."""
    with socket.socket() as made:
        yield made


@pytest.fixture
def ledger() -> Ledger:
    """A ledger in which A has descriptor 1 on S."""
    return with_one()
