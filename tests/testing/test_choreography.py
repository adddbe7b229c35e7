"""Who waits for whom is a fact: blocked threads, held points, points in order."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any, Final

import pytest

from sharedsock.testing import Aborted, ActorIdle, Actors, ActorTimeout, Received, in_order
from sharedsock.testing.observation import thread_facts

LONG_S: Final = 60.0  # no test waits for it


def test_a_blocked_thread_makes_no_system_call_until_something_happens_to_it(actors: Actors, pair: Any) -> None:
    a, b = actors.share(pair.local)
    for actor in (a, b):
        actor.thread("reader").recv(16)
    before = b.wait_until_blocked("reader")
    a.wait_until_blocked("reader")
    a.close()
    b.call(os.getpid)
    assert b.wait_until_blocked("reader") == before, "the other process's close moved it"
    pair.peer.sendall(b"x")
    b.thread("reader").recv(16)
    after = b.wait_until_blocked("reader")
    assert after.call == before.call
    assert after.switches[0] > before.switches[0]


def test_an_idle_thread_is_not_blocked(actors: Actors, pair: Any) -> None:
    """It sleeps, but no operation of it is registered."""
    (actor,) = actors.share(pair.local, count=1)
    actor.thread("reader").call(abs, 1).value()
    assert actor.kinds_waiting("reader") == ()
    with pytest.raises(ActorIdle, match="thread reader waits for nothing; its last command, call, returned 1"):
        actor.wait_until_blocked("reader")
    with pytest.raises(ActorIdle, match="thread other waits for nothing; it was given no command"):
        actor.wait_until_blocked("other")


def test_a_thread_is_not_idle_before_its_command_has_ended(actors: Actors, pair: Any) -> None:
    """Held with what it has received, it neither waits nor has ended; the end is heard of whenever it comes."""
    (actor,) = actors.share(pair.local, count=1)
    actor.thread("reader").recv(16)
    actor.wait_until_blocked("reader")
    with actor.hold_at("op.done") as barrier:
        pair.peer.sendall(b"x")
        barrier.wait_reached()
        for wait in (actor.wait_until_blocked, actor.wait_until_asleep):
            with pytest.raises(ActorTimeout, match="thread reader to"):
                wait("reader", 0.02)
    for wait in (actor.wait_until_blocked, actor.wait_until_asleep):
        with pytest.raises(ActorIdle, match="its last command, recv, received 1 bytes"):
            wait("reader")


def test_a_registered_thread_that_is_held_is_not_blocked(actors: Actors, pair: Any) -> None:
    """Its operation is registered, but the kernel does not show it in a wait for descriptors."""
    (actor,) = actors.share(pair.local, count=1)
    with actor.hold_at("op.waiting") as barrier:
        actor.thread("reader").recv(16)
        barrier.wait_reached()
        assert actor.kinds_waiting("reader") == ("recv",)
        with pytest.raises(ActorTimeout, match="thread reader to block"):
            actor.wait_until_blocked("reader", timeout_s=0.02)
    actor.wait_until_blocked("reader")


@pytest.mark.fault("F-40")
def test_a_thread_held_at_ready_finds_nothing_and_waits_on(actors: Actors, pair: Any) -> None:
    a, b = actors.share(pair.local)
    reading = a.thread("reader").recv(16)
    a.wait_until_blocked("reader")
    barrier = a.hold_at("op.ready")
    pair.peer.sendall(b"for b")
    assert barrier.wait_reached()[0] == "reader"
    assert b.recv(16) == b"for b"
    assert not reading.is_done()
    barrier.release()
    barrier.release()
    a.wait_until_blocked("reader")
    pair.peer.sendall(b"for a")
    assert reading.outcome() == Received(b"for a")


def test_a_barrier_holds_the_named_thread_only(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    with actor.hold_at("op.waiting", thread="two") as barrier:
        actor.thread("one").recv(1)
        actor.wait_until_blocked("one")
        actor.thread("two").recv(1)
        assert barrier.wait_reached(thread="two")[0] == "two"
        assert [name for name, _ in barrier.reached] == ["two"]


def test_a_barrier_holds_the_nth_and_as_many_as_it_is_told(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    second = actor.hold_at("op.waiting", nth=2)
    for name in ("one", "two", "three"):
        actor.thread(name).recv(1)
        if name != "two":
            actor.wait_until_blocked(name)
        else:
            second.wait_reached()
    assert [name for name, _ in second.reached] == ["two"]
    second.release()
    everyone = actor.hold_at("op.ready", count=None)
    for name in ("one", "two", "three"):
        actor.wait_until_blocked(name)
    pair.peer.sendall(b"abc")
    everyone.wait_reached(count=3)
    assert sorted(name for name, _ in everyone.reached) == ["one", "three", "two"]
    everyone.release()


def test_a_barrier_holds_one_kind_of_operation_only(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    actor.do("listen", "listener")
    with actor.hold_at("op.waiting", kind="accept") as barrier:
        actor.thread("reader").recv(1)
        actor.wait_until_blocked("reader")
        actor.thread("server").accept("listener")
        assert barrier.wait_reached()[0] == "server"


def test_nobody_at_the_barrier_is_a_timeout_with_stacks(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    with actor.hold_at("op.ready") as barrier, pytest.raises(ActorTimeout, match=r"op\.ready to be reached"):
        barrier.wait_reached(timeout_s=0.02)


@pytest.mark.fault("F-39")
@pytest.mark.parametrize("first", ["data", "close"])
def test_points_are_passed_in_the_order_given(first: str, actors: Actors, pair: Any) -> None:
    """A reader woken by data, and a close of the same descriptor: each order has its own outcome."""
    (actor,) = actors.share(pair.local, count=1)
    reading = actor.thread("reader").recv(16)
    actor.wait_until_blocked("reader")
    steps = [(actor, "op.ready", "reader"), (actor, "close.begin", "closer")]
    with in_order(*(steps if first == "data" else steps[::-1])) as order:
        pair.peer.sendall(b"data")
        closing = actor.thread("closer").close()
        (one, one_s), (two, two_s) = order.run()
    closing.value()
    assert one_s
    assert two_s
    assert (one, two) == (("reader", "closer") if first == "data" else ("closer", "reader"))
    assert reading.outcome() in (Received(b"data"), Aborted(10004))


@pytest.mark.parametrize("who", ["the actor", "the company"])
def test_what_a_condition_itself_takes_in_is_seen_at_once(who: str, actors: Actors, pair: Any) -> None:
    """It looks at one command, and reads the pipe for another: nothing more may come that would wake the waiter."""
    (actor,) = actors.share(pair.local, count=1)
    reading = actor.thread("reader").recv(16)
    actor.wait_until_blocked("reader")

    def is_done() -> bool:
        was_done = reading.is_done()
        if not was_done:
            pair.peer.sendall(b"data")
            reading.outcome()
        return was_done

    waiting = actor if who == "the actor" else actors
    began_s = monotonic()
    waiting.wait_for(is_done, "the data", LONG_S)
    assert monotonic() - began_s < LONG_S / 2


def test_a_look_at_a_thread_that_is_gone_says_so() -> None:
    with pytest.raises(ProcessLookupError):
        thread_facts(os.getpid(), 1)
