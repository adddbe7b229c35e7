"""The package's front: it imports nothing until it is asked for something, and then has every public name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sharedsock as ss


def answer(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_the_package_imports_no_room() -> None:
    loaded = answer("import sys, sharedsock; print([name for name in sys.modules if name.startswith('sharedsock.')])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", ss.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(ss, name) is getattr(ss, name)
    assert name in dir(ss)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Socket'"):
        ss.Socket  # noqa: B018


def test_a_registry_alone_knows_of_forks() -> None:
    assert answer(
        "import sys, sharedsock; sharedsock.Registry; print('sharedsock.descriptors.table' in sys.modules)"
    ).startswith("True")
