"""What can be set, and where: each option has an ini twin and an environment twin; the command line wins, then the
environment, then the ini file.

    --sharedsock-leaks=sockets    SHAREDSOCK_LEAKS=sockets    sharedsock_leaks = sockets

Values are checked once, when pytest is configured. A value that is none is an error that lists those there are, and
so is an option, a variable or a key that begins like ours and is none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pytest

from sharedsock.model.environment import check_variables

__all__ = [
    "KINDS",
    "START_METHODS",
    "Settings",
    "add_options",
    "check_words",
    "kinds_of",
    "read_settings",
    "seconds_of",
    "start_of",
]

KINDS: Final = ("references", "sockets", "descriptors", "threads", "processes")
ACTIONS: Final = ("fail", "warn", "report")
START_METHODS: Final = ("fork", "forkserver", "spawn", "exec")


class Settings(NamedTuple):
    """What holds for the whole session.

    Attributes:
        leaks: the kinds every test is checked for; None: nothing was said, so only tests that use our fixtures are
            checked; empty: no test is.
        leaks_timeout_s: how long a test's things may take to go after its end.
        hang_timeout_s: after which time without progress the run is ended; 0: never.
    """

    leaks: frozenset[str] | None
    leaks_action: str
    leaks_timeout_s: float
    leaks_baseline: str
    hang_timeout_s: float
    report: str
    start_method: str | None


def kinds_of(value: str) -> frozenset[str]:
    """Return the kinds a value names: a list of them, "all", or "none".

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    names = {name.strip() for name in value.split(",")} - {""}
    if names == {"all"}:
        return frozenset(KINDS)
    if names == {"none"}:
        return frozenset()
    unknown = names - set(KINDS)
    if unknown or not names:
        raise ValueError(f"{', '.join(sorted(unknown)) or 'nothing'} is no kind of leak; there are {_listed(KINDS)}, "
                         "and all or none by themselves")  # fmt: skip
    return frozenset(names)


def seconds_of(value: Any) -> float:
    """Return a time in seconds, not negative.

    Raises:
        ValueError: anything else.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no number of seconds") from None
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is no time: it must be 0 or more seconds")
    return seconds


def start_of(value: str) -> str:
    """Return a start method for actors.

    Raises:
        ValueError: there is no such one; the message lists them.
    """
    return _one_of(value, START_METHODS, "start method")


def _action_of(value: str) -> str:
    return _one_of(value, ACTIONS, "action")


def _one_of(value: str, known: tuple[str, ...], what: str) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is no {what}; there are {_listed(known)}")
    return value


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


class _Option(NamedTuple):
    """One option: its name with hyphens, what a value must be, and what holds when nothing was said."""

    name: str
    metavar: str
    read: Callable[[str], Any]
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return f"--sharedsock-{self.name}"

    @property
    def key(self) -> str:
        return "sharedsock_" + self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return self.key.upper()


_OPTIONS: Final = (
    _Option("leaks", "KINDS", kinds_of, None,
            "check every test for leaks of these kinds: " + _listed(KINDS) + ", all or none; without it, "
            "tests that use a fixture of sharedsock are checked for all"),
    _Option("leaks-action", "ACTION", _action_of, "fail", "what a leak does: fail the test, warn, or report only"),
    _Option("leaks-timeout", "SECONDS", seconds_of, 1.0, "how long a test's things may take to go (default 1)"),
    _Option("leaks-baseline", "FILE", str, "", "known leaks, in lines as --sharedsock-report writes them"),
    _Option("hang-timeout", "SECONDS", seconds_of, 0.0,
            "print every stack and end the run when nothing moves for so long (default 0: never)"),
    _Option("report", "FILE", str, "", "write every finding to a file, one JSON object in each line"),
    _Option("start-method", "METHOD", start_of, None, "how actors start: " + _listed(START_METHODS)),
)  # fmt: skip


def add_options(parser: pytest.Parser) -> None:
    """Declare every option and its ini twin."""
    group = parser.getgroup("sharedsock", "sharedsock: leaks with an owner, no silent hangs")
    for option in _OPTIONS:
        group.addoption(option.flag, metavar=option.metavar, dest=option.key, default=None, help=option.help)
        parser.addini(option.key, f"{option.help}; also {option.variable} in the environment", default="")


def check_words(words: Sequence[str]) -> None:
    """Refuse an option of ours that is none; pytest's own refusal would not say which there are.

    Raises:
        pytest.UsageError: it lists them.
    """
    ours = [word.partition("=")[0] for word in words if word.startswith("--sharedsock-")]
    _check_names(ours, [option.flag for option in _OPTIONS])


def _check_names(names: list[str], known: list[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise pytest.UsageError(f"{', '.join(unknown)}: no such option; there are {', '.join(known)}")


def read_settings(config: pytest.Config) -> Settings:
    """Return what holds, each value from the first place that says something.

    Raises:
        pytest.UsageError: a value or name that is none; it names where it was said, and what could have been.
    """
    try:
        check_variables(os.environ)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    # pytest itself only warns of a key it does not know. Its dictionary of what the file says had two names so far.
    said = vars(config).get("_inicfg", vars(config).get("inicfg", {}))
    _check_names([key for key in said if key.startswith("sharedsock_")], [option.key for option in _OPTIONS])
    values = {}
    for option in _OPTIONS:
        places = (
            (option.flag, config.getoption(option.key)),
            (option.variable, os.environ.get(option.variable)),
            (option.key, config.getini(option.key)),
        )
        values[option.key.removeprefix("sharedsock_")] = option.default
        for place, value in places:
            if value:
                try:
                    values[option.key.removeprefix("sharedsock_")] = option.read(value)
                except ValueError as error:
                    raise pytest.UsageError(f"{place}: {error}") from None
                break
    return Settings(
        leaks=values["leaks"],
        leaks_action=values["leaks_action"],
        leaks_timeout_s=values["leaks_timeout"],
        leaks_baseline=values["leaks_baseline"],
        hang_timeout_s=values["hang_timeout"],
        report=values["report"],
        start_method=values["start_method"],
    )
