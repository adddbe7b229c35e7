"""The engine of the races: one thread calls, another closes under it, and the offset between them tunes itself.

Nothing holds anybody: the caller is given a fresh descriptor through a queue, the closer lets a random time pass and
closes. Where the call wins more often than not, the closer comes sooner the next time, and later where it loses, so
that both sides of the race are run through all along. The interpreter changes threads every 20 us meanwhile.
"""

from __future__ import annotations

import queue
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

from sharedsock import NotASocket, OperationAborted

__all__ = ["HANG_S", "Caller", "Tuner", "lively_interpreter", "race"]

HANG_S: Final = 60.0
_SHORT_S: Final = 0.0001
_LONGEST_S: Final = 0.02
_MOST_ROUNDS: Final = 4  # times what was asked for, until both sides have been hit often enough
ENOUGH: Final = 0.05
# In fewer rounds than that a share is a matter of luck and of what else runs: then each side must be hit, no more.
FEW: Final = 1000
_FACTORS: Final = {"won": 0.93, "aborted": 1.04, "refused": 1.15}


class Tuner:
    """The time between the start of a call and the close under it."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._mean_s = 0.0002

    def offset_s(self) -> float:
        """Return how long to wait this time."""
        return self._mean_s * 2 * self._dice.random()

    def learn(self, outcome: str) -> None:
        """Come sooner or later the next time."""
        self._mean_s = min(_LONGEST_S, self._mean_s * _FACTORS[outcome] + 1e-6)


class Caller:
    """A thread that makes one call after the other: ("won", result), ("aborted", bytes queued), ("refused", 0)."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="caller")
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._outcomes.put(("won", call()))
            except OperationAborted as error:
                self._outcomes.put(("aborted", error.bytes_transferred))
            except NotASocket:
                self._outcomes.put(("refused", 0))
            except BaseException as error:
                self._outcomes.put(("failed", error.with_traceback(None)))
            del call  # with it the descriptor

    def begin(self, call: Callable[[], Any]) -> None:
        """Have it called."""
        self._calls.put(call)

    def outcome(self) -> tuple[str, Any]:
        """Wait for what it came to."""
        return self._outcomes.get(timeout=HANG_S)

    def end(self) -> None:
        """End the thread."""
        self._calls.put(None)
        self._thread.join(HANG_S)


_never: Final = threading.Event()


def _let_pass(seconds: float) -> None:
    """Spend some time: the long part of it asleep, which is not exact, and need not be."""
    until = perf_counter() + seconds
    if seconds > _SHORT_S:
        _never.wait(seconds - _SHORT_S)
    while perf_counter() < until:
        pass


def race(
    rounds: int,
    dice: random.Random,
    begin: Callable[[int], tuple[Any, Callable[[], Any]]],
    after: Callable[[int, str, Any], None],
) -> Counter[str]:
    """Close against a call, so many times; return how often the call won, was aborted, or came too late.

    Runs on, up to four times as long, until it has won and been aborted in 5 % of the rounds each; fewer than 1,000
    rounds need not come so far, but hit both.

    Args:
        begin: makes the round's descriptor, and the call through it.
        after: looks at the outcome when both are done: "won" and its result, "aborted" and the bytes it had queued,
            "refused" and 0.
    """
    tally: Counter[str] = Counter()
    tuner = Tuner(dice)
    caller = Caller()
    try:
        for number in range(rounds * _MOST_ROUNDS):
            if number >= rounds and min(tally["won"], tally["aborted"]) >= ENOUGH * number:
                break
            descriptor, call = begin(number)
            caller.begin(call)
            del call
            _let_pass(tuner.offset_s())
            descriptor.close()
            outcome, value = caller.outcome()
            assert outcome != "failed", f"round {number}: {value!r}"
            tally[outcome] += 1
            tuner.learn(outcome)
            after(number, outcome, value)
    finally:
        caller.end()
    enough = 1 if rounds < FEW else ENOUGH * tally.total()
    assert min(tally["won"], tally["aborted"]) >= enough, f"one side is hardly ever hit: {dict(tally)}"
    return tally


@contextmanager
def lively_interpreter() -> Iterator[None]:
    """Have the interpreter change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
