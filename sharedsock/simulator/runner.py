"""Plays one scenario with one set of options, and reports what came of each promise.

The first broken promise ends the story. Whatever else goes wrong on the stage while a promise is checked (an actor
that died, a wait in vain, an error of the system) breaks that promise too: it was not seen to hold.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from time import monotonic
from types import MappingProxyType
from typing import Final

from sharedsock.simulator.closing_sockets import CLOSING_SOCKETS
from sharedsock.simulator.scenario import (
    NoMeaning,
    Options,
    Promise,
    PromiseBroken,
    Report,
    Scenario,
    Standing,
    Verdict,
)
from sharedsock.simulator.stage import Stage, open_stage
from sharedsock.simulator.timeline import Timeline
from sharedsock.testing.outcomes import ActorRaised
from sharedsock.testing.pending import ActorDied, ActorIdle, ActorTimeout

__all__ = ["SCENARIOS", "Intervention", "play"]

SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType({CLOSING_SOCKETS.name: CLOSING_SOCKETS})

Intervention = Callable[[Stage], None]
"""Something done to the stage right before a promise is checked: how a test makes a player misbehave."""

_FAILURES: Final = (PromiseBroken, ActorDied, ActorIdle, ActorTimeout, ActorRaised, OSError)


def play(
    scenario: Scenario,
    options: Options,
    *,
    progress: Callable[[Promise, Verdict | None], None] | None = None,
    before: Mapping[str, Intervention] | None = None,
) -> Report:
    """Play a scenario; every process it starts has ended when this returns or raises.

    Args:
        progress: told of each promise before it is checked (None) and after (its verdict).
        before: interventions, by the name of the promise they come before.

    Raises:
        StageError: the run could not begin.
    """
    tell = progress or (lambda promise, verdict: None)
    verdicts: list[Verdict] = []
    with open_stage(options) as stage:
        is_broken = False
        for promise in scenario.promises_for(options):
            tell(promise, None)
            if is_broken:
                verdict = Verdict(promise, Standing.NOT_REACHED)
            else:
                verdict = _check(stage, promise, (before or {}).get(promise.name))
            is_broken = is_broken or verdict.standing is Standing.BROKEN
            verdicts.append(verdict)
            tell(promise, verdict)
        timeline = Timeline.of(stage, verdicts)
    return Report(scenario, options, tuple(verdicts), timeline, _environment(), stage.slack)


def _check(stage: Stage, promise: Promise, intervene: Intervention | None) -> Verdict:
    stage.begin()
    began_s = monotonic()
    standing, reason = Standing.HELD, ""
    try:
        if intervene is not None:
            intervene(stage)
        promise.check(stage)
    except NoMeaning as error:
        standing, reason = Standing.NO_MEANING, str(error)
    except _FAILURES as error:
        standing = Standing.BROKEN
        reason = str(error) if isinstance(error, PromiseBroken) else f"{type(error).__name__}: {error}"
    return Verdict(promise, standing, tuple(stage.findings), reason, began_s, monotonic(), tuple(stage.lacking))


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
    }
