"""Requests that are posted, nobody waiting for a reply, and the loop on a system without epoll."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedsock.registry.messages import Code, encode
from tests.registry.dialogue import Dialogue, Stepped

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Stepped]:
    made = Stepped(str(tmp_path / "r"))
    yield made
    made.close()


@pytest.fixture
def peer(registry: Stepped) -> Dialogue:
    return registry.peer()


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize("ends_first", [False, True], ids=["asked first", "posted first"])
def test_a_posted_request_is_done_before_what_another_asks_after_it(
    registry: Stepped, pair: Pair, ends_first: bool
) -> None:
    """Nobody waits for its reply, so whoever posted may have told another process, which then asks."""
    peers = registry.peer(), registry.peer()
    poster, asker = peers[::-1] if ends_first else peers  # whichever of them the pass would meet first
    poster.announce(pair[0], 1)
    asker.announce(pair[0], 2)
    poster.send_raw(encode(Code.BEGIN_CLOSE, 0, descriptor=1))
    poster.send_raw(encode(Code.END_CLOSE, 0, descriptor=1))
    assert asker.references(pair[0]) == 1
    assert poster.references(pair[0]) == 1, "the first reply it gets is this one's"


def test_a_refused_posted_request_is_counted_and_not_answered(registry: Stepped, peer: Dialogue) -> None:
    peer.send_raw(encode(Code.END_CLOSE, 0, descriptor=7))
    assert peer.refusals() == {"END_CLOSE: NotASocket": 1}


def test_poll_serves_where_there_is_no_epoll(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Pair) -> None:
    """The named fallback: the same answers, the same deaths noticed, nothing left."""
    monkeypatch.delattr("select.epoll")
    registry = Stepped(str(tmp_path / "r"))
    try:
        peers = registry.peer(), registry.peer()
        for number, one in enumerate(peers, 1):
            one.announce(pair[0], number)
        assert peers[0].references(pair[0]) == 2
        peers[1].send(Code.BYE)
        assert peers[1].is_gone()
        assert peers[0].statistics()["clients"] == 1
    finally:
        registry.close()
