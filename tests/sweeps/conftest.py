"""What the sweeps share: the table of scenes, a registry for a module, and a stage for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock.descriptors import service
from tests.sweeps.scenes import Stage


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture
def stage(registry: ss.Registry, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Where the scenes of one test play; the service thread ends as soon as it is idle."""
    monkeypatch.setattr(service, "_IDLE_S", 0.0)
    return Stage(registry)
