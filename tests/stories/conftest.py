"""What stories share: a registry, children that start fast, and what may lie under the Python face."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock import spi
from sharedsock.descriptors import providing
from sharedsock.descriptors.providing import spelled
from sharedsock.testing.commands import Belongings
from tests.descriptors.conftest import registry
from tests.stdlib_helpers import light_children_with

__all__ = ["LAYERS", "light_children", "put_under", "registry", "under"]

LAYERS = (spi.LayeredProvider, spi.LayeredProvider)


def put_under(has: Belongings) -> None:
    """In an actor: use what `under` uses."""
    ss.use_provider(*LAYERS)


@pytest.fixture(scope="module")
def light_children(registry: ss.Registry) -> Iterator[None]:
    """Children that start fast, however they are started."""
    with light_children_with("sharedsock.testing.acting"):
        yield


@pytest.fixture(params=["alone", "chained"])
def under(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have nothing under the sockets a story opens, or two layers that do nothing of their own; say how it is spelled.

    An actor has it under what it is given; under what it opens itself, once `put_under` was called there.
    """
    if request.param == "alone":
        yield ""
        return
    with ss.use_provider(*LAYERS):
        yield spelled(providing.current)
