"""Leak checks: what was not there before, who made it, and who has it.

    with no_leaks():                            every kind
    with Checkers.only("sockets", "threads"):   these

A check counts before and after, by identity (see `census`). What is left gets a grace period: a registry takes a moment
to notice a death, a thread to end. Only then is it described (see `describing`) and raised, or returned. A check that
finds nothing costs two listings of /proc; nothing of it runs while the code under check does, but the hook that notes
origins (see `origins`).
"""

from __future__ import annotations

import gc
import select
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final, Self

from sharedsock.testing.census import Census, Residue
from sharedsock.testing.describing import describe
from sharedsock.testing.findings import KINDS, Finding
from sharedsock.testing.origins import Recording

__all__ = ["GRACE_S", "Check", "Checkers", "LeakError", "known_kinds", "left_of", "no_leaks"]

GRACE_S: Final = 1.0


class LeakError(AssertionError):
    """Something was left behind.

    Attributes:
        findings: what, worst first.
    """

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return "\n".join(["left behind:", *(line for finding in self.findings for line in finding.lines())])


def known_kinds(*kinds: str) -> frozenset[str]:
    """Return kinds as a set; all of them if none is named.

    Raises:
        ValueError: there is no such kind; the message lists them.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is no kind of leak; there are {', '.join(KINDS)}")
    return frozenset(kinds or KINDS)


def _wait_gone(residue: Callable[[], Residue], grace_s: float) -> Residue:
    """Wait until nothing is left, for the grace period at most; return what is."""
    found = residue()
    if not found:
        return found
    gc.collect()  # a caught error and its traceback are a cycle, which may hold the last frame of a socket
    deadline_s = monotonic() + grace_s
    interval_ms = 1
    while (found := residue()) and monotonic() < deadline_s:
        select.poll().poll(interval_ms)
        interval_ms = min(interval_ms * 2, 50)
    return found


class Check:
    """One check, from `begin` to `findings`. It shares a recording with others, or has its own."""

    def __init__(self, kinds: frozenset[str], recording: Recording, grace_s: float = GRACE_S) -> None:
        self.kinds = kinds
        self.grace_s = grace_s
        self._recording = recording
        self._before = Census(kinds)
        # What came meanwhile and belongs to somebody who lives longer: a fixture of a wider scope.
        self._excused: list[tuple[Census, Residue]] = []

    def excuse(self, since: Census) -> Residue:
        """Except from the verdict what has come since a census; return it."""
        residue = since.residue()
        if residue:
            self._excused.append((since, residue))
        return residue

    def residue(self) -> Residue:
        """Return what is left now, without waiting."""
        found = self._before.residue()
        for _, excused in self._excused:
            found.descriptors = {n: t for n, t in found.descriptors.items() if excused.descriptors.get(n) != t}
            found.threads = [one for one in found.threads if one not in excused.threads]
            found.children = [one for one in found.children if one not in excused.children]
            known = {(one.registry, one.socket, one.holder) for one in excused.references}
            found.references = [r for r in found.references if (r.registry, r.socket, r.holder) not in known]
        return found

    def wait_gone(self) -> Residue:
        """Wait until nothing is left, for the grace period at most; return what is."""
        return _wait_gone(self.residue, self.grace_s)

    def findings(self) -> list[Finding]:
        """Return what is left once the grace period is over, described, worst first."""
        residue = self.wait_gone()
        return describe(residue, self._recording) if residue else []


class Checkers:
    """A block of code that must leave nothing behind; `findings` after it, for who wants no error.

    Args:
        grace_s: how long what is left may take to go.
        raises: False: the block only fills `findings`.
    """

    def __init__(self, *, grace_s: float = GRACE_S, raises: bool = True) -> None:
        self.kinds = known_kinds()
        self.findings: tuple[Finding, ...] = ()
        self._grace_s = grace_s
        self._raises = raises
        self._recording = Recording()
        self._check: Check | None = None

    @classmethod
    def only(cls, *kinds: str, grace_s: float = GRACE_S, raises: bool = True) -> Self:
        """Check for some kinds: "references", "sockets", "descriptors", "threads", "processes".

        Raises:
            ValueError: an unknown kind; the message lists the known ones.
        """
        made = cls(grace_s=grace_s, raises=raises)
        made.kinds = known_kinds(*kinds)
        return made

    def __enter__(self) -> Self:
        self._recording.start()
        self._check = Check(self.kinds, self._recording, self._grace_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        check, self._check = self._check, None
        assert check is not None  # __enter__ comes first
        try:
            # After an error its traceback keeps every local alive: no verdict would be fair.
            if kind is None:
                self.findings = tuple(check.findings())
        finally:
            self._recording.stop()
        if self.findings and self._raises:
            raise LeakError(self.findings)


def no_leaks(*, grace_s: float = GRACE_S) -> Checkers:
    """Check a block of code for every kind of leak: `with no_leaks(): ...`

    Raises:
        LeakError: at the end of the block, if something is left; it names what, who made it, and who has it.
    """
    return Checkers(grace_s=grace_s)


def left_of(since: Census, residue: Residue, recording: Recording, grace_s: float = GRACE_S) -> list[Finding]:
    """Return what is left of an earlier residue once the grace period is over: of a fixture that has ended."""

    def still_there() -> Residue:
        now = since.residue()
        return Residue(
            {number: target for number, target in now.descriptors.items() if residue.descriptors.get(number) == target},
            [thread for thread in now.threads if thread in residue.threads],
            [child for child in now.children if child in residue.children],
            [one for one in now.references if one in residue.references],
        )

    left = _wait_gone(still_there, grace_s)
    return describe(left, recording) if left else []
