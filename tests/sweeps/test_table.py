"""Every public call has a scene, or a reason why it needs none: a new one cannot be forgotten."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import sharedsock as ss
from tests.sweeps.scenes import Stage, plainly, play
from tests.sweeps.table import CALLS, WITHOUT

CLASSES = [ss.SharedSocket, ss.Ticket, ss.Operation, ss.Selector, ss.Registry]
# What an object has from its birth, and does nothing of its own.
DUNDERS = ("__init__", "__del__", "__exit__", "__repr__", "__reduce__", "__reduce_ex__")


def _public(kind: type) -> set[str]:
    own = {name for one in kind.__mro__ if one is not object for name in vars(one)}
    return {name for name in own if not name.startswith("_")} | {
        name for name in DUNDERS if getattr(kind, name, None) is not getattr(object, name, None)
    }


def _calls() -> set[str]:
    functions = {name for name in ss.__all__ if not inspect.isclass(getattr(ss, name))}
    return functions | {f"{kind.__name__}.{name}" for kind in CLASSES for name in _public(kind)}


def test_each_public_class_is_looked_into_or_only_a_value() -> None:
    classes = {getattr(ss, name) for name in ss.__all__ if inspect.isclass(getattr(ss, name))}
    values = {ss.DescriptorId, ss.Holder, ss.PendingOperation, ss.Statistics}
    assert {kind for kind in classes - values if not issubclass(kind, BaseException)} == set(CLASSES)


def test_each_public_call_has_a_scene_or_a_reason() -> None:
    staged = {name.partition("/")[0] for name in CALLS}
    missing = _calls() - staged - set(WITHOUT)
    assert not missing, f"neither a scene nor a reason: {sorted(missing)}"


def test_the_tables_name_nothing_that_is_not_there() -> None:
    staged = {name.partition("/")[0] for name in CALLS}
    assert not (staged | set(WITHOUT)) - _calls()
    assert not staged & set(WITHOUT), "a scene and a reason to have none"


@pytest.mark.parametrize("name", CALLS)
def test_the_scene_plays(stage: Stage, name: str) -> None:
    """Without trouble: what it asserts of a call that succeeds."""
    outcome: Any = play(stage, name, plainly)
    assert outcome.error is None
