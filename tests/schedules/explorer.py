"""The scheduler: who picks the next action. Every order of a small world, or a seeded one of a larger.

*Exhaustive*: depth first, each order begun again from its choices; a state that another order has led to already is not
gone on from. Two states are one if every thing (the socket, the registry, a channel, a process) has seen the same
actions in the same order, and every thread has come as far: what happens to different things commutes.
*Seeded*: even seeds pick evenly; odd ones give each actor a priority and change one of them now and then, which finds
what needs somebody to be late for long (Burckhardt et al., "A Randomized Scheduler", ASPLOS 2010).

A violation is raised with its schedule, written as a test that replays it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from tests.schedules.world import Violation, World

__all__ = ["Counterexample", "Story", "explore", "play", "replay"]

Story: TypeAlias = Callable[[], World]


class Counterexample(AssertionError):
    """A violation, and the test that shows it again.

    Attributes:
        schedule: the actions that led to it.
        invariant: its number.
    """

    def __init__(self, story: Story, schedule: Sequence[str], violation: BaseException) -> None:
        self.schedule = tuple(schedule)
        self.invariant = str(violation).partition(":")[0]
        lines, line = [], ""
        for action in self.schedule:
            if len(line) + len(action) > 100:
                lines.append(line)
                line = ""
            line += f" {action}"
        text = "\n       ".join((*lines, line))
        name = getattr(story, "__name__", "story")
        super().__init__(
            f"{type(violation).__name__}: {violation}\n\ndef test_{name}_found() -> None:\n"
            f'    replay(stories.{name}, """\n       {text}\n    """)\n'
        )


def _fail(story: Story, schedule: Sequence[str], error: BaseException) -> NoReturn:
    raise Counterexample(story, schedule, error) from error


def _begin(story: Story, schedule: Sequence[str]) -> World:
    world = story()
    for action in schedule:
        world.act(action)
    return world


def explore(story: Story, *, is_reduced: bool = True, most_states: int = 200_000) -> Counter[tuple[str, ...]]:
    """Play every order of a story; return how often each outcome came out.

    Raises:
        Counterexample: an order breaks an invariant.
    """
    outcomes: Counter[tuple[str, ...]] = Counter()
    seen: set[int] = set()
    left: list[list[str]] = [[]]
    states = 0
    while left:
        schedule = left.pop()
        action = ""
        try:
            # All but the last action have been played before, and went well.
            world = _begin(story, schedule)
            while True:
                mark = world.fingerprint()
                if is_reduced and mark in seen:
                    break
                seen.add(mark)
                states += 1
                assert states <= most_states, "this story is too large to be told in every order"
                enabled = world.enabled()
                if not enabled:
                    world.check_end()
                    outcomes[world.outcome()] += 1
                    break
                left.extend([*schedule, other] for other in enabled[1:])
                action = enabled[0]
                schedule.append(action)
                world.act(action)
        except (Violation, AssertionError, OSError) as error:
            _fail(story, schedule, error)
    return outcomes


def play(story: Story, seed: int) -> tuple[str, ...]:
    """Play one order, which the seed decides; return what came out.

    Raises:
        Counterexample: it breaks an invariant.
    """
    dice = random.Random(seed)
    world = story()
    schedule: list[str] = []
    priorities: dict[str, float] = {}

    def pick(enabled: list[str]) -> str:
        if seed % 2 == 0:
            return dice.choice(enabled)
        actors = {action: action.partition(".")[0] for action in enabled}
        for actor in actors.values():
            priorities.setdefault(actor, dice.random())
        chosen = max(enabled, key=lambda action: priorities[actors[action]])
        if dice.random() < 0.1:
            priorities[actors[chosen]] = dice.random() - 1.0
        return chosen

    try:
        while enabled := world.enabled():
            schedule.append(pick(enabled))
            world.act(schedule[-1])
        world.check_end()
    except (Violation, AssertionError, OSError) as error:
        _fail(story, schedule, error)
    return world.outcome()


def replay(story: Story, schedule: str) -> World:
    """Play an order that was written down; an end that leaves nothing to happen is looked at as well."""
    world = story()
    for action in schedule.split():
        assert action in world.enabled(), f"{action} cannot come now, but {', '.join(world.enabled())}"
        world.act(action)
    if not world.enabled():
        world.check_end()
    return world
