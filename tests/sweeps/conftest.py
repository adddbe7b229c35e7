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
        assert registry.manager.refusals() == {}  # a second channel: it lives on while a test has closed its own
        yield registry


@pytest.fixture
def stage(registry: ss.Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Where the scenes of one test play; the service thread ends as soon as it is idle."""
    monkeypatch.setattr(service, "_IDLE_S", 0.0)
    yield Stage(registry)
    registry.client.close()  # trouble may have made it another one than it was
