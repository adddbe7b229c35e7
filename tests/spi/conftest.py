"""What tests of this room share: a started face, a chain beside the base provider, a registry, a company of actors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock import spi
from sharedsock.spi import handles
from sharedsock.testing import Actors
from tests.spi.parties import CHAINS, Entries


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture
def started() -> Iterator[None]:
    """This process has started up; at the end it has cleaned up, and nothing is left in the table."""
    spi.WSPStartup()
    yield
    spi.WSPCleanup()
    assert not handles.routes


@pytest.fixture(params=CHAINS)
def entries(request: pytest.FixtureRequest, started: None) -> Iterator[Entries]:
    """The base provider's entries, or those of a chain of two layers on top of them."""
    with Entries.of(request.param) as made:
        yield made


@pytest.fixture
def base(started: None) -> Iterator[Entries]:
    """The base provider's entries alone."""
    with Entries.of("base") as made:
        yield made


@pytest.fixture
def actors(registry: ss.Registry) -> Iterator[Actors]:
    """A company of forked actors."""
    with Actors("fork") as company:
        yield company
