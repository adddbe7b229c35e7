"""Where a registry lives: at the end of a long path, and removed while processes share sockets through it.

Source: spec/fault-catalogue.md, F-08, F-09.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sharedsock as ss
from sharedsock.registry import runtime
from sharedsock.testing import Actors, Raised
from tests.descriptors.sharers import BOUND_S, is_open_for, wait_end_of
from tests.registry.double import tree

LIMIT_BYTES = 107  # of sun_path, without the byte that ends it; the name in the directory is "/s"


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="ss", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def pair() -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    """A SharedSocket and its peer, a plain socket; no registry is needed yet."""
    left, peer = socket.socketpair()
    peer.settimeout(BOUND_S)
    with peer, ss.adopt(left) as ours:
        yield ours, peer


@pytest.mark.fault("F-08")
@pytest.mark.parametrize("length", [LIMIT_BYTES - 2, LIMIT_BYTES - 1, 220, 600])
def test_sockets_are_shared_through_a_directory_at_the_end_of_any_path(
    length: int, base: Path, pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, peer = pair
    with tree(monkeypatch, _deepened(base, length)) as path, Actors("fork") as actors:
        assert len(path) == length
        a, b = actors.share(ours)
        ours.close()
        assert (a.do("references"), b.do("references")) == (2, 2)
        a.close()
        assert is_open_for(peer)
        b.close()
        wait_end_of(peer)


def _deepened(base: Path, length: int) -> Path:
    """Make a directory in which a runtime directory's path has so many bytes."""
    missing = length - len(os.path.join(base, os.path.basename(runtime.new_directory_name())))
    while missing > 0:
        part = missing - 1 if missing <= 200 else 100
        base /= "d" * part
        missing -= part + 1
    base.mkdir(parents=True, exist_ok=True)
    return base


@pytest.mark.fault("F-09")
def test_a_directory_that_is_removed_ends_nothing_that_is_open(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls wait on, counts are true, the last close is the last; only who comes anew finds nobody, and is told so."""
    ours, peer = pair
    with tree(monkeypatch) as path, Actors("fork") as actors:
        a, b = actors.share(ours)
        (stranger,) = actors.start("stranger")
        reading = b.thread("caller").recv(16)
        b.wait_until_blocked("caller")
        ticket = ours.share(None)
        shutil.rmtree(path)
        refusal = stranger.thread("caller").do("take", ticket).outcome()
        assert isinstance(refusal, Raised)
        assert refusal.type == "TicketInvalid"
        assert ss.revoke(ticket), "nothing is lost by the refusal"
        assert (ours.references(), a.do("references")) == (3, 3)
        ours.close()
        a.close()
        assert is_open_for(peer)
        peer.sendall(b"still here")
        assert reading.value() == b"still here"
        b.close()
        wait_end_of(peer)
