"""What tests of this room share: a registry for a whole module, and a company of actors for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock.testing import Actors


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children: a start costs more than most tests."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture
def actors(registry: ss.Registry) -> Iterator[Actors]:
    """A company that forks its actors, which is the fastest way to a real process."""
    with Actors("fork") as company:
        yield company
