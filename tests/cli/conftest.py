"""A report as a play makes it, without a play."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sharedsock.simulator.runner import SCENARIOS
from sharedsock.simulator.scenario import Finding, Options, Promise, Report, Standing, Verdict
from sharedsock.simulator.timeline import Lane, Mark, Moment, Timeline


def _report(standing: Standing = Standing.HELD, reason: str = "") -> Report:
    promise = Promise(1, "share", "Something is shared", lambda stage: None)
    finding = Finding("what was looked at, in words that need room", "what was there", "DUP-2", True, 0.0012, 0.05)
    verdict = Verdict(promise, standing, (finding,), reason, 1.0, 2.0)
    timeline = Timeline((Lane("A", "recv-1", (Moment(Mark.BLOCKED, 1.5),)),), ((1, "share", 1.0, 2.0),))
    environment = {"python": "3.11.0", "implementation": "CPython", "system": "Linux 6"}
    return Report(SCENARIOS["closing-sockets"], Options(), (verdict,), timeline, environment)


@pytest.fixture(scope="session")
def report_of() -> Callable[..., Report]:
    """Make a report of one promise: report_of(standing, reason)."""
    return _report
