"""The pure state machines in every order: ledger, recovery, lifecycles, and what a process does in between."""

from __future__ import annotations

import pytest

from tests.schedules import broken
from tests.schedules.explorer import Counterexample, explore, play, replay
from tests.schedules.stories import LARGE, LONG, SMALL, Stage

stories = Stage()

# What may come out of each story, over all orders.
OUTCOMES = {
    "two_closers": {("the socket: reset",)},
    "a_closer_is_killed": {("the socket: closed",), ("the socket: reset",)},
    "a_close_ends_a_receive": {
        ("A: aborted", "the socket: open"),
        ("A: record 0", "the socket: open"),
        ("A: refused", "the socket: open"),
    },
    "a_number_is_reused": {("A: aborted", "the socket: closed"), ("A: refused", "the socket: closed")},
    "a_sharer_closes_at_once": {("t at B: a descriptor", "the socket: open")},
}


@pytest.mark.fault("F-59", "F-75", "F-12", "F-18", "F-22", "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8")
@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_a_small_story_keeps_the_invariants(name: str) -> None:
    outcomes = explore(getattr(stories, name))
    assert set(outcomes) == OUTCOMES.get(name, set(outcomes))


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("part", range(2))
def test_orders_from_a_seed_keep_the_invariants(name: str, part: int) -> None:
    found = {play(getattr(stories, name), seed) for seed in range(part * 75, part * 75 + 75)}
    assert len(found) > 1


@pytest.mark.campaign
@pytest.mark.parametrize("name", LONG)
def test_every_order_of_a_longer_story_keeps_the_invariants(name: str) -> None:
    assert explore(getattr(stories, name), most_states=2_000_000)


@pytest.mark.campaign
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_many_orders_from_a_seed_keep_the_invariants(name: str) -> None:
    for seed in range(4_000):
        play(getattr(stories, name), seed)


@pytest.mark.parametrize("name", [name for name in broken.BROKEN if broken.BROKEN[name][1] in SMALL])
def test_a_guard_that_is_taken_out_is_found_and_its_schedule_shows_it_again(name: str) -> None:
    stage, story, invariant = broken.BROKEN[name]
    with pytest.raises(Counterexample) as caught:
        explore(getattr(stage, story))
    assert caught.value.invariant == invariant
    assert f"def test_{story}_found() -> None:\n    replay(stories.{story}, " in str(caught.value)
    schedule = " ".join(caught.value.schedule)
    with pytest.raises(AssertionError, match=rf"^{invariant}: "):
        replay(getattr(stage, story), schedule)


@pytest.mark.parametrize("name", ["everyone is told LAST", "a new registry awaits nobody", "what was taken is dropped"])
def test_seeded_orders_find_a_missing_guard_as_well(name: str) -> None:
    stage, story, invariant = broken.BROKEN[name]
    with pytest.raises(Counterexample) as caught:
        for seed in range(1000):
            play(getattr(stage, story), seed)
    assert caught.value.invariant == invariant


def test_leaving_out_states_that_were_seen_loses_no_outcome() -> None:
    """Each order of a story that is small enough for all of them."""
    every = explore(stories.a_receive_that_is_served, is_reduced=False)
    reduced = explore(stories.a_receive_that_is_served)
    assert set(every) == set(reduced)
    assert every.total() > 2 * reduced.total()


def test_a_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"serve:A cannot come now, but A\.begin, B\.begin"):
        replay(stories.two_closers, "serve:A")
