"""The house keeps its rules, and each rule goes red on a made-up violation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_architecture import LONG, RANKS, RULES, Violation, check, long_files

ROOT = Path(__file__).resolve().parents[1]

# Each: where, what is written there, the rule that must speak, and a piece of what it says.
MADE_UP = [
    ("model/a.py", "import sharedsock.kernel.b\n", "imports", "model (0) must not import kernel"),
    ("kernel/a.py", "from sharedsock.registry.client import Client\n", "imports", "strangers"),
    ("registry/a.py", "from sharedsock.kernel import system\n", "imports", "strangers"),
    ("spi/a.py", "from sharedsock.sharedsocket import SharedSocket\n", "imports", "strangers"),
    ("sharedsocket.py", "import sharedsock.spi.calls\n", "imports", "strangers"),
    ("simulator/a.py", "from sharedsock import pytest_plugin\n", "imports", "strangers"),
    ("descriptors/a.py", "def f():\n    from sharedsock.testing import actors\n", "imports", "must not import testing"),
    ("descriptors/a.py", "import sharedsock as ss\n", "imports", "must not import __init__"),
    (
        "kernel/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sharedsock.descriptors.table import Table\n",
        "imports",
        "must not import descriptors",
    ),
    ("__init__.py", "from sharedsock.testing import actors\n", "imports", "must not import testing"),
    ("kernel/a.py", "from . import system\n", "imports", "relative"),
    ("kernel/a.py", "from sharedsock.attic import thing\n", "imports", "attic is no room"),
    ("attic/a.py", "", "rooms", "attic is no room"),
    ("descriptors/a.py", "import select\nselect.epoll()\n", "only-here", "select.epoll"),
    ("testing/a.py", "from select import EPOLLIN\n", "only-here", "select.EPOLLIN"),
    ("testing/a.py", "import os\nos.eventfd(0)\n", "only-here", "os.eventfd"),
    ("descriptors/a.py", "import fcntl\n", "only-here", "fcntl"),
    ("kernel/a.py", "import selectors\n", "only-here", "selectors"),
    ("cli/a.py", "from multiprocessing import managers\n", "only-here", "multiprocessing.managers"),
    ("cli/a.py", "from multiprocessing.managers import BaseManager\n", "only-here", "multiprocessing.managers"),
    ("descriptors/a.py", "import socket\nx = socket.SCM_RIGHTS\n", "only-here", "socket.SCM_RIGHTS"),
    ("testing/a.py", "from socket import send_fds\n", "only-here", "socket.send_fds"),
    ("kernel/a.py", "import os\nos.pidfd_open(1)\n", "only-here", "os.pidfd_open"),
    ("simulator/a.py", "import subprocess\n", "only-here", "subprocess"),
    ("registry/a.py", "import psutil\n", "only-here", "psutil"),
    ("testing/a.py", "import pytest\n", "only-here", "pytest"),
    ("simulator/a.py", "import argparse\n", "only-here", "argparse"),
    ("testing/a.py", "from rich.console import Console\n", "only-here", "rich.console"),
    ("registry/a.py", "import pickle\n", "only-here", "pickle"),
    ("descriptors/a.py", "import signal\nsignal.pthread_kill(1, 2)\n", "only-here", "signal.pthread_kill"),
    ("model/a.py", "import threading\n", "pure", "threading"),
    ("model/a.py", "from time import monotonic\n", "pure", "time"),
    ("registry/a.py", "number = 10038\n", "wsa", "10038"),
    ("registry/a.py", "if error.winerror == 995:\n    pass\n", "wsa", "995"),
    ("kernel/a.py", "import time\ntime.sleep(1)\n", "sleep", "time.sleep"),
    ("kernel/a.py", "from time import sleep\n", "sleep", "time.sleep"),
    ("kernel/a.py", "from sharedsock.model.errors import _restore\n", "private", "_restore"),
    ("kernel/a.py", "__all__ = ['gone']\n", "__all__", "gone is not defined here"),
    ("kernel/a.py", "__all__ = ['x', 'x']\nx = 1\n", "__all__", "lists x twice"),
    ("kernel/a.py", "x = 1  # " + "TODO: two\n", "unfinished", "TODO"),
]


def _house(root: Path, path: str = "", text: str = "") -> Path:
    """Build a small, flawless package, and one file more."""
    files = {
        "sharedsock/__init__.py": '"""The package."""\n',
        "sharedsock/model/values.py": '"""Values."""\nfrom enum import Enum\n__all__ = ["A"]\nA = Enum("A", "X")\n',
        "sharedsock/kernel/user.py": '"""A user."""\nfrom sharedsock.model.values import A\n__all__ = ["B"]\nB = A.X\n',
        "tests/kernel/test_user.py": '"""A test."""\n',
        "tools/tool.py": '"""A tool."""\n\nimport time\n\ntime.sleep(0)\n',
    }
    if path:
        header = '"""Made up."""\n' + ("" if "__all__" in text else "__all__ = []\n")
        files[path] = header + text
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_the_house_keeps_its_rules() -> None:
    """ROOMS: imports run downward only, siblings are strangers, each thing has its room."""
    assert [str(violation) for violation in check(ROOT)] == []


def test_every_room_has_its_rank() -> None:
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "sharedsock").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__pycache__"} <= set(RANKS)


def test_a_flawless_house_is_silent(tmp_path: Path) -> None:
    assert check(_house(tmp_path)) == []


@pytest.mark.parametrize(("path", "text", "rule", "says"), MADE_UP, ids=lambda value: value.split("\n")[0][:40])
def test_a_made_up_violation_is_seen(tmp_path: Path, path: str, text: str, rule: str, says: str) -> None:
    found = check(_house(tmp_path, f"sharedsock/{path}", text))
    assert {violation.rule for violation in found} == {rule}, found
    assert any(says in violation.message for violation in found), found
    assert {violation.path for violation in found} == {f"sharedsock/{path}"}


def test_a_test_must_not_sleep_and_must_say_what_it_is_for(tmp_path: Path) -> None:
    found = check(_house(tmp_path, "tests/kernel/test_slow.py", "from time import sleep\n"))
    assert [violation.rule for violation in found] == ["sleep"]
    (tmp_path / "tests/kernel/test_slow.py").write_text("x = 1\n")
    assert [violation.rule for violation in check(tmp_path)] == ["docstring"]


def test_a_module_must_have_its_list(tmp_path: Path) -> None:
    root = _house(tmp_path)
    for text in ("x = 1\n", "__all__ = [name for name in 'ab']\n"):
        (root / "sharedsock/kernel/user.py").write_text('"""A user."""\n' + text)
        assert check(root) == [Violation("sharedsock/kernel/user.py", 1, "__all__", "is missing")]


@pytest.mark.parametrize(
    "text",
    [
        "from sharedsock.model.values import Enum\n",
        "from sharedsock.model import values\nx = values.Enum\n",
        "def f():\n    from sharedsock.model import values\n    return values.Enum\n",
    ],
)
def test_what_another_file_uses_must_be_listed(tmp_path: Path, text: str) -> None:
    found = check(_house(tmp_path, "sharedsock/kernel/a.py", text))
    assert [violation.message for violation in found] == ["sharedsock.model.values does not list Enum"]


def test_no_rule_is_without_its_violation() -> None:
    """The made-up ones above cover every rule that the table of rules has."""
    shown = {rule for _, _, rule, _ in MADE_UP} | {"docstring"}
    assert shown == {
        "imports",
        "rooms",
        "only-here",
        "pure",
        "wsa",
        "sleep",
        "private",
        "__all__",
        "unfinished",
        "docstring",
    }
    assert len(RULES) == len(shown) - 1, "imports and rooms are one function"


def test_long_files_are_reported_and_no_violation(tmp_path: Path) -> None:
    root = _house(tmp_path, "sharedsock/kernel/long.py", "\n" * (LONG + 1))
    assert check(root) == []
    assert [path for path, _ in long_files(root)] == ["sharedsock/kernel/long.py"]
