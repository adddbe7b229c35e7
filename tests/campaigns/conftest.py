"""Campaigns: long random runs over real processes, each with a small edition in the usual suite.

    python -m pytest -m campaign tests/campaigns                  all of it, in parts of a minute at most
    python -m pytest -m campaign tests/campaigns -k races --campaign-scale 0.1
    python -m pytest -m campaign tests/campaigns -k "races and recv" --campaign-seed 77

Every test draws a seed, which is printed at the end with what happened, and when it fails. A test takes `run`, which
has the seed's dice and says how many rounds there are to be; what it notes there is added up by its first word.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

_PROPERTY = "campaign"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where this directory is named on the command line."""
    group = parser.getgroup("campaign")
    group.addoption("--campaign-seed", type=int, default=None, help="the seed of every test, instead of a drawn one")
    group.addoption("--campaign-scale", type=float, default=1.0, help="how much of the full count of rounds (1.0: all)")


class Run:
    """One test's part of a campaign: its dice, its scale, and what it has to report."""

    def __init__(self, seed: int, scale: float) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.figures: Counter[str] = Counter()
        self._scale = scale

    def rounds(self, full: int) -> int:
        """Return how many rounds of a full campaign's this run makes, one at least."""
        return max(1, round(full * self._scale))

    def note(self, **figures: int) -> None:
        """Add to what is reported."""
        self.figures.update(figures)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The dice and the count of this test; its figures are printed at the end of the session."""
    seed = request.config.getoption("--campaign-seed", None)
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    scale = request.config.getoption("--campaign-scale", 1.0)
    made = Run(seed, scale if request.node.get_closest_marker("campaign") else 1.0)
    print(f"seed {seed}")  # noqa: T201  # shown with a failure
    began_s = time.monotonic()
    yield made
    seconds = time.monotonic() - began_s
    request.node.user_properties.append((_PROPERTY, (seed, seconds, dict(made.figures))))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what each campaign did: rounds, outcomes, seconds, seeds."""
    rows = [
        (report.nodeid.rpartition("/")[2], *value)
        for report in terminalreporter.stats.get("", [])
        if report.when == "teardown"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if not rows:
        return
    terminalreporter.section("campaigns")
    for name, seed, seconds, figures in rows:
        said = ", ".join(f"{key} {count:,}" for key, count in figures.items())
        terminalreporter.write_line(f"{name} {seconds:.1f} s, seed {seed}: {said}")
