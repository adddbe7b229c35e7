"""The instruments look at modules that somebody has imported, never at one that a thread is in the middle of."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sharedsock.testing.census import Census
from sharedsock.testing.findings import KINDS
from sharedsock.testing.loaded import loaded
from tests.descriptors.sharers import Running, wait_until

NAME = "imported_slowly"
SOURCE = "import threading\ngo_on = threading.Event()\nassert go_on.wait(60)\nvalue = 1\n"


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A thread that is in the middle of importing a module."""
    (tmp_path / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    running = Running(importlib.import_module, NAME)
    try:
        wait_until(lambda: hasattr(sys.modules.get(NAME), "go_on"), "the import to begin")
        yield running
    finally:
        sys.modules[NAME].go_on.set()
        running.outcome()
        del sys.modules[NAME]


def test_a_module_counts_from_the_end_of_its_import(importing: Running) -> None:
    assert loaded("no_such_module") is None
    assert loaded(NAME) is None
    sys.modules[NAME].go_on.set()
    module = importing.outcome()
    assert isinstance(module, ModuleType)
    assert loaded(NAME) is module
    assert module.value == 1


def test_a_leak_check_may_begin_while_another_thread_imports(
    importing: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sharedsock.registry.connect", sys.modules[NAME])
    assert Census(frozenset(KINDS)).references == {}
