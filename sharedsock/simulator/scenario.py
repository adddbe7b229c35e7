"""What a scenario is: promises in an order, the options of a run, and the report of what was observed.

Values only. A promise is a function over the stage of the run: it returns when it held, raises `PromiseBroken` when
it did not, `NoMeaning` when the options leave it nothing to say. The first broken promise ends the story, as
what follows it was promised on top of it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from sharedsock.simulator.transports import TRANSPORTS, Clause

if TYPE_CHECKING:
    from sharedsock.simulator.stage import Stage
    from sharedsock.simulator.timeline import Timeline

__all__ = [
    "MOST_LINGER_S",
    "MOST_PROCESSES",
    "MOST_THREADS",
    "NOBODY",
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
MOST_PROCESSES: Final = 26  # a letter for each
MOST_THREADS: Final = 100
MOST_LINGER_S: Final = 60  # a run waits it out
NOBODY: Final = "none"


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
    """What a user can choose for a run; a choice that cannot be played is refused here, before anything starts.

    Attributes:
        processes: how many share the sockets, 2 to 26; the far peer is one more.
        threads: how many of each block in recv, 1 to 100; one more blocks in accept.
        start_method: how multiprocessing starts them.
        linger: "off" (DONTLINGER), "0" (the last close resets) or whole seconds (it waits so long, then resets).
        transport: the kind of socket, a name of `transports.TRANSPORTS`.
        close_order: the processes in the order in which they give the sockets up; empty: A, B, C ….
        kill: who is killed when its turn comes to close; "none": nobody; "": the second, if there are three or more.
    """

    processes: int = 3
    threads: int = 3
    start_method: str = "fork"
    linger: str = "off"
    transport: str = "tcp"
    close_order: tuple[str, ...] = ()
    kill: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.processes <= MOST_PROCESSES:
            raise ValueError(
                f"processes: {self.processes} is not in 2 to {MOST_PROCESSES} (one process alone shares nothing)"
            )
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads: {self.threads} is not in 1 to {MOST_THREADS}")
        for name, value, known in (
            ("start-method", self.start_method, START_METHODS),
            ("transport", self.transport, tuple(TRANSPORTS)),
        ):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
        self._check_linger()
        self._check_names()

    def _check_linger(self) -> None:
        if self.linger == "off" or (self.linger.isdecimal() and int(self.linger) <= MOST_LINGER_S):
            return
        try:
            is_fraction = 0 < float(self.linger) < MOST_LINGER_S
        except ValueError:
            is_fraction = False
        why = " (SO_LINGER counts in whole seconds)" if is_fraction else ""
        raise ValueError(f"linger: {self.linger!r} is not off, 0 or whole seconds up to {MOST_LINGER_S}{why}")

    def _check_names(self) -> None:
        known = ", ".join(self.names)
        for name in self.close_order:
            if name not in self.names:
                raise ValueError(f"close-order: {name!r} is no process of this run: {known}")
            if self.close_order.count(name) > 1:
                raise ValueError(f"close-order: {name!r} is named twice; each of {known} gives up once")
        if self.close_order and (left_out := [name for name in self.names if name not in self.close_order]):
            raise ValueError(f"close-order: {', '.join(left_out)} left out; each of {known} gives up once")
        if self.kill not in ("", NOBODY, *self.names):
            raise ValueError(f"kill: {self.kill!r} is no process of this run: {known}, or {NOBODY}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the processes that share the sockets; the first of them makes them."""
        return tuple(string.ascii_uppercase[: self.processes])

    @property
    def linger_s(self) -> int | None:
        """The linger option as seconds; None: DONTLINGER."""
        return None if self.linger == "off" else int(self.linger)

    @property
    def linger_kind(self) -> str:
        """The linger option as the close table tells it apart: "off", "0" or "t"."""
        return "t" if self.linger_s else "off" if self.linger_s is None else "0"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was observed for a promise.

    Attributes:
        what: what was looked at; `observed` what was there.
        rule: the number in the Winsock digest ("CLOSE-20") or the invariant ("I6") it belongs to.
        measured_s: how long it took, where time is part of the promise; `bound_s` how long it may take.
        clause: the name of the clause it was looked at for, "" for none in particular.
    """

    what: str
    observed: str
    rule: str
    holds: bool
    measured_s: float | None = None
    bound_s: float | None = None
    clause: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of a scenario; `name` is its short name in commands, JSON and the timeline."""

    number: int
    name: str
    text: str
    check: Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: its name on the command line, one line about it, and its promises in the order of a run."""

    name: str
    title: str
    promises_for: Callable[[Options], tuple[Promise, ...]]

    @property
    def promises(self) -> tuple[Promise, ...]:
        """The promises as they come when nothing is chosen."""
        return self.promises_for(Options())


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one promise came out; `reason` says why it is broken or has no meaning.

    Attributes:
        lacking: clauses of the promise that have no meaning in this run, each with the reason.
    """

    promise: Promise
    standing: Standing
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    began_s: float = 0.0
    ended_s: float = 0.0
    lacking: tuple[tuple[Clause, str], ...] = ()


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
