"""What tests of the face share: a registry for a whole module, and children that import little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from tests.descriptors.conftest import pair, registry
from tests.stdlib_helpers import light_children_with

__all__ = ["light_children", "pair", "registry"]


@pytest.fixture(scope="module")
def light_children(registry: ss.Registry) -> Iterator[None]:
    """Children that start fast, however they are started."""
    with light_children_with("tests.sharedsocket.pickled"):
        yield
