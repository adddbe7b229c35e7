"""What tests of this room share: a registry for a whole module, and a company of actors for one test."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock.testing import Actor, Actors
from tests.descriptors.sharers import BOUND_S
from tests.stdlib_helpers import light_children_with


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children: a start costs more than most tests."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture
def actors(registry: ss.Registry) -> Iterator[Actors]:
    """A company that forks its actors, which is the fastest way to a real process."""
    with Actors("fork") as company:
        yield company


@pytest.fixture(scope="module")
def company() -> Iterator[tuple[Actor, Actor]]:
    """Two actors for the module."""
    with Actors("fork") as actors:
        a, b = actors.start("A", "B")
        yield a, b


@pytest.fixture
def pair(registry: ss.Registry) -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    """A SharedSocket and its peer, a plain socket."""
    left, peer = socket.socketpair()
    peer.settimeout(BOUND_S)
    with peer, ss.adopt(left) as ours:
        yield ours, peer


@pytest.fixture(scope="module")
def light_children(registry: ss.Registry) -> Iterator[None]:
    """Children that start fast, however they are started."""
    with light_children_with("tests.descriptors.launched"):
        yield
