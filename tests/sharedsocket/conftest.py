"""What tests of the face share: a registry for a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children: a start costs more than most tests."""
    with ss.Registry() as registry:
        yield registry
