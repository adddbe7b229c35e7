"""What a scenario is: promises in an order, the options of a run, and the report of what was observed.

Values only. A promise is a function over the stage of the run: it returns when it held, raises `PromiseBroken` when
it did not, `NoMeaning` when the options leave it nothing to say. The first broken promise ends the story, as
what follows it was promised on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sharedsock.simulator.stage import Stage
    from sharedsock.simulator.timeline import Timeline

__all__ = [
    "LINGERS",
    "MOST_PROCESSES",
    "MOST_THREADS",
    "START_METHODS",
    "Finding",
    "NoMeaning",
    "Options",
    "Promise",
    "PromiseBroken",
    "Report",
    "Scenario",
    "Standing",
    "Verdict",
]

START_METHODS: Final = ("fork", "forkserver", "spawn")
LINGERS: Final = ("off", "0")
MOST_PROCESSES: Final = 26  # a letter for each
MOST_THREADS: Final = 100


class PromiseBroken(AssertionError):
    """What was observed is not what was promised."""


class NoMeaning(Exception):
    """The options of this run leave the promise nothing to say; the message says why."""


class Standing(Enum):
    """How a promise came out; the values are what the table and the JSON print."""

    HELD = "ok"
    BROKEN = "broken"
    NO_MEANING = "n/a"
    NOT_REACHED = "not run"


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can choose for a run.

    Attributes:
        processes: how many share the sockets, 2 to 26; the far peer is one more.
        threads: how many of each block in recv, 1 to 100; one more blocks in accept.
        start_method: how multiprocessing starts them.
        linger: "off" (DONTLINGER) or "0" (LINGER(0): the last close resets).
    """

    processes: int = 3
    threads: int = 3
    start_method: str = "fork"
    linger: str = "off"

    def __post_init__(self) -> None:
        if not 2 <= self.processes <= MOST_PROCESSES:
            raise ValueError(
                f"processes: {self.processes} is not in 2 to {MOST_PROCESSES} (one process alone shares nothing)"
            )
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads: {self.threads} is not in 1 to {MOST_THREADS}")
        if self.start_method not in START_METHODS:
            raise ValueError(f"start-method: {self.start_method!r} is none of {', '.join(START_METHODS)}")
        if self.linger not in LINGERS:
            raise ValueError(f"linger: {self.linger!r} is none of {', '.join(LINGERS)}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was observed for a promise.

    Attributes:
        what: what was looked at; `observed` what was there.
        rule: the number in the Winsock digest ("CLOSE-20") or the invariant ("I6") it belongs to.
        measured_s: how long it took, where time is part of the promise; `bound_s` how long it may take.
    """

    what: str
    observed: str
    rule: str
    holds: bool
    measured_s: float | None = None
    bound_s: float | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of a scenario; `name` is its short name in commands, JSON and the timeline."""

    number: int
    name: str
    text: str
    check: Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: its name on the command line, one line about it, its promises in order."""

    name: str
    title: str
    promises: tuple[Promise, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one promise came out; `reason` says why it is broken or has no meaning."""

    promise: Promise
    standing: Standing
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    began_s: float = 0.0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one run; `slack` is by what the bounds were multiplied at the end, 4 on a loaded machine."""

    scenario: Scenario
    options: Options
    verdicts: tuple[Verdict, ...]
    timeline: Timeline
    environment: Mapping[str, Any] = field(default_factory=dict)
    slack: float = 1.0

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The promises that did not hold, one at most: the story ends there."""
        return tuple(verdict for verdict in self.verdicts if verdict.standing is Standing.BROKEN)

    @property
    def holds(self) -> bool:
        """Report whether every promise held or had no meaning."""
        return all(verdict.standing in (Standing.HELD, Standing.NO_MEANING) for verdict in self.verdicts)
