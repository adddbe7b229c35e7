"""What a promise is, and what comes of one that is not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sharedsock.testing.conformance.stage import Stage

__all__ = ["PROMISES", "Broken", "Failure", "NotConforming", "Promise", "expect", "promise"]


class Failure(NamedTuple):
    """One promise that was not kept: its name, its rules, and what happened instead."""

    promise: str
    rules: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.promise} ({', '.join(self.rules)}): {self.reason}"


class NotConforming(AssertionError):
    """A provider has broken promises.

    Attributes:
        failures: each of them.
    """

    def __init__(self, provider: str, failures: tuple[Failure, ...]) -> None:
        super().__init__(f"{provider}:\n  " + "\n  ".join(map(str, failures)))
        self.failures = failures


class Broken(Exception):
    """What a promise raises where it is not kept."""


class Promise(NamedTuple):
    """One promise: its name, its rules, and how it is tried."""

    name: str
    rules: tuple[str, ...]
    check: Callable[[Stage], None]


PROMISES: Final[list[Promise]] = []


def promise(*rules: str) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Enter a function as a promise, by its own name."""

    def enter(check: Callable[[Stage], None]) -> Callable[[Stage], None]:
        PROMISES.append(Promise(check.__name__, rules, check))
        return check

    return enter


def expect(holds: bool, reason: str) -> None:
    """Say that a promise is broken unless something holds."""
    if not holds:
        raise Broken(reason)
