"""Interleaved rounds: each contender once per round, in random order; the result is the median of per-round ratios.

Absolute times drift by a quarter on shared machines; a ratio taken inside one round drifts with both sides.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

__all__ = ["Result", "Settings", "interleave", "interleave_anew", "one_core", "ratio"]

ROUNDS: Final = 15
QUICK_ROUNDS: Final = 3
# How one process lies in memory moves its figure by a fifth, for as long as it lives.
PARTS: Final = 5


@dataclass(frozen=True)
class Settings:
    """How much is measured. `quick` is a smoke test: its figures mean little."""

    quick: bool
    seed: int

    @property
    def rounds(self) -> int:
        """How many rounds."""
        return QUICK_ROUNDS if self.quick else ROUNDS

    def scaled(self, repeats: int) -> int:
        """Return how often to repeat what a full run repeats `repeats` times."""
        return max(1, repeats // 20) if self.quick else repeats


@dataclass(frozen=True)
class Result:
    """One line of the table: what was measured, between which bounds it should lie."""

    item: str
    case: str
    measured: float
    goal: float
    floor: float
    higher_is_better: bool = True
    spread: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is reached, or the floor kept."""
        sign = 1 if self.higher_is_better else -1
        if sign * self.measured >= sign * self.goal:
            return "goal"
        return "floor" if sign * self.measured >= sign * self.floor else "BELOW"


@contextmanager
def one_core() -> Iterator[int]:
    """Run on one core, the last one, which has the fewest interrupts; yield its number."""
    everywhere = os.sched_getaffinity(0)
    core = max(everywhere)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, everywhere)


def interleave(
    contenders: Mapping[str, Callable[[], float]], settings: Settings, rounds: int | None = None
) -> dict[str, list[float]]:
    """Measure each contender once per round; return its values in the order of the rounds.

    Args:
        rounds: how many, where the contenders are made anew between parts of the measurement; default all.
    """
    order = random.Random(settings.seed)
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for measure in contenders.values():
        measure()  # one round to warm up, which counts for nothing
    for _ in range(settings.rounds if rounds is None else rounds):
        names = list(contenders)
        order.shuffle(names)
        for name in names:
            values[name].append(contenders[name]())
    return values


def interleave_anew(
    prepare: Callable[[], AbstractContextManager[Mapping[str, Callable[[], float]]]], settings: Settings
) -> dict[str, list[float]]:
    """As `interleave`, with contenders that are made anew for each part of the rounds, so that no luck lasts."""
    parts = 1 if settings.quick else PARTS
    values: dict[str, list[float]] = {}
    for _ in range(parts):
        with prepare() as contenders:
            for name, measured in interleave(contenders, settings, settings.rounds // parts).items():
                values.setdefault(name, []).extend(measured)
    return values


def ratio(above: list[float], below: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of the per-round ratios, and their quartiles."""
    ratios = sorted(one / other for one, other in zip(above, below, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return statistics.median(ratios), (quartiles[0], quartiles[2])
