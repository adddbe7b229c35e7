"""The interrupt sweep: Ctrl-C at a place of a public call, then at a later one, up to its end.

After each: the next call succeeds in another thread, no byte, client, ticket or count is lost, and nothing is left.
The suite takes some places of each call, evenly spread; `-m campaign` takes each.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

from tests.sweeps.interrupting import Interrupter, at_signals
from tests.sweeps.scenes import Outcome, Stage, plainly, play
from tests.sweeps.table import CALLS

PLACES = [pytest.param(8, id="some places"), pytest.param(1 << 30, id="each place", marks=pytest.mark.campaign)]


STDLIB_LOCKS = os.path.dirname(threading.__file__) + "/threading.py"
STDLIB_FILE = socket.SocketIO.__init__.__code__
# Starting a process for each place takes its time.
SLOW = ("Registry.", "connect_registry")


def at_our_signals(code: CodeType) -> Any:
    """Not in two places of the stdlib: `with condition` may keep its lock, a SocketIO half made cannot be closed."""
    if code.co_filename == STDLIB_LOCKS or code is STDLIB_FILE:
        return None
    return at_signals(code)


def interrupted_at(interrupter: Interrupter) -> Callable[[Callable[[], Any]], Outcome]:
    def trouble(call: Callable[[], Any]) -> Outcome:
        value, was_interrupted = interrupter.run(call)
        return Outcome(value, KeyboardInterrupt() if was_interrupted else None)

    return trouble


@pytest.mark.fault("F-33", "F-48", "F-50", "F-73", "I1", "I2", "I6")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what its caller never got is collected
@pytest.mark.parametrize("most", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_anywhere(stage: Stage, name: str, most: int) -> None:
    if name.startswith(SLOW):
        most = min(most, 3)
    play(stage, name, plainly)  # what is imported and opened at a first time
    counting = Interrupter(1 << 30, at_our_signals)
    play(stage, name, interrupted_at(counting))  # 3.13 traces a function from its second call on
    counting = Interrupter(1 << 30, at_our_signals)
    play(stage, name, interrupted_at(counting))
    assert counting.passed > 0, "the call was traced"
    step = max(counting.passed // most, 1)
    place = 0
    while True:
        interrupter = Interrupter(place, at_our_signals)
        try:
            outcome = play(stage, name, interrupted_at(interrupter))
        except Exception as error:
            error.add_note(f"interrupted at place {place} of {counting.passed}: {interrupter.where}")
            raise
        if outcome.error is None:
            assert not interrupter.has_struck, f"the interrupt at place {place} was swallowed: {interrupter.where}"
            return
        place += step
