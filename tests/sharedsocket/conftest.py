"""What tests of the face share: a registry for a whole module, and children that import little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from tests.stdlib_helpers import light_children_with


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children: a start costs more than most tests."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def light_children(registry: ss.Registry) -> Iterator[None]:
    """Children that start fast, however they are started."""
    with light_children_with("tests.sharedsocket.pickled"):
        yield
