"""A connected pair whose near end is a SharedSocket, and a company of actors that ends with the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import sharedsock as ss
from sharedsock.testing import Actors


@dataclass(frozen=True)
class Pair:
    """`local` is to be shared, `peer` is a plain socket at the far end."""

    local: ss.SharedSocket
    peer: socket.socket


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        with ss.create_connection(door.getsockname()) as local:
            peer, _ = door.accept()
            with peer:
                peer.settimeout(60)
                yield Pair(local, peer)


@pytest.fixture
def actors() -> Iterator[Actors]:
    with Actors("fork") as company:
        yield company
