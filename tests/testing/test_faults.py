"""An armed fault happens at its point, to whom it is meant for, as often as it says."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sharedsock.testing import ActorDied, Actors, Fault, Kill, Raised, Received


def test_an_actor_kills_itself_at_the_point(actors: Actors, pair: Any) -> None:
    a, b = actors.share(pair.local)
    reading = a.thread("reader").recv(16)
    a.wait_until_blocked("reader")
    a.kill_at("op.ready")
    pair.peer.sendall(b"for b")
    assert a.wait_dead() == "killed by SIGKILL"
    with pytest.raises(ActorDied):
        reading.outcome()
    assert b.recv(16) == b"for b", "the killed reader had taken nothing"


def test_an_errno_is_raised_at_the_point_once(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    actor.raise_at("op.waiting", errno.EMFILE)
    assert actor.thread("reader").recv(1).outcome() == Raised("OSError", 10024, errno.EMFILE)
    reading = actor.thread("reader").recv(1)
    actor.wait_until_blocked("reader")
    pair.peer.sendall(b"x")
    assert reading.outcome() == Received(b"x")


def test_an_exception_class_is_raised_at_the_nth_hit(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    actor.raise_at("op.waiting", MemoryError, nth=2)
    first = actor.thread("one").recv(1)
    actor.wait_until_blocked("one")
    assert actor.thread("two").recv(1).outcome() == Raised("MemoryError")
    assert not first.is_done()


def test_a_fault_taken_back_does_not_happen(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    actor.disarm(actor.kill_at("op.ready", thread="reader"))
    pair.peer.sendall(b"x")
    assert actor.thread("reader").recv(1).outcome() == Received(b"x")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"point": "op.nowhere"}, "no probe point"), ({"nth": 0}, "start at 1"), ({"count": 0}, "start at 1")],
)
def test_a_fault_that_cannot_happen_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault(**{"point": "op.ready", "action": Kill(), **values})
