"""What tests of the face share: a registry for a whole module, and children that import little."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator

import pytest

import sharedsock as ss
from tests.stdlib_helpers import stop_helpers


@pytest.fixture(scope="module")
def registry() -> Iterator[ss.Registry]:
    """One registry for the module, current in this process and in its children: a start costs more than most tests."""
    with ss.Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def light_children(registry: ss.Registry) -> Iterator[None]:
    """A spawned child imports the main program anew, which is pytest: have it import none. One fork server for all."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.sharedsocket.pickled"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", None)
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)
        yield
    stop_helpers()
