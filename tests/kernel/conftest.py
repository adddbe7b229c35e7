"""What tests of this room share: pairs of every kind, probe points, and both ways of waiting."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NoReturn

import pytest

from sharedsock.kernel import system
from tests.kernel import kinds, stage


@pytest.fixture
def points() -> Iterator[stage.Points]:
    """The probe points of this process."""
    with stage.probing() as points:
        yield points


@pytest.fixture(params=kinds.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of socket."""
    return str(request.param)


@pytest.fixture
def pair(kind: str) -> Iterator[kinds.Pair]:
    """A connected pair of each kind."""
    pair = kinds.make_pair(kind)
    yield pair
    pair.close()


def _no_set() -> NoReturn:
    raise OSError(errno.EMFILE, "no set can be had")


@pytest.fixture(params=["epoll", "poll"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of waiting: the shared set, and poll where no set can be had."""
    if request.param == "poll":
        monkeypatch.setattr(system, "make_epoll", _no_set)
    return str(request.param)
