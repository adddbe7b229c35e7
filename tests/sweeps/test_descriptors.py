"""The descriptor sweep (F-96): each public call with exactly k free file numbers, k = 0, 1, 2 … until it succeeds.

Each try succeeds or is EMFILE (10024), nothing is left, and nothing is used up: the next call succeeds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.descriptors.sharers import room_for
from tests.sweeps.scenes import Outcome, Stage, plainly, play
from tests.sweeps.table import CALLS

MOST_NEEDED = 24


def with_room_for(free: int) -> Callable[[Callable[[], Any]], Outcome]:
    def trouble(call: Callable[[], Any]) -> Outcome:
        with room_for(free):
            try:
                return Outcome(call())
            except OSError as error:
                return Outcome(error=error)

    return trouble


@pytest.mark.fault("F-03", "F-96", "I6", "I8", "I10")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the stdlib's, where a call of ours begins with one of its
@pytest.mark.parametrize("name", CALLS)
def test_with_few_free_numbers(stage: Stage, name: str) -> None:
    play(stage, name, plainly)  # what is imported and opened at a first time
    for free in range(MOST_NEEDED):
        try:
            outcome = play(stage, name, with_room_for(free))
            if outcome.error is None:
                return
            assert isinstance(outcome.error, OSError)
            assert (outcome.error.errno, getattr(outcome.error, "winerror", None)) == (errno.EMFILE, 10024)
        except Exception as error:
            error.add_note(f"with {free} free numbers")
            raise
    raise AssertionError(f"{name} never succeeds")
