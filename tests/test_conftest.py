"""The oracle and the bounds of conftest.py, seen from outside: a run of made-up tests, alone and under xdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOYS = """
import os, socket, subprocess, sys, threading
import pytest

KEPT = []

@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    for thing in KEPT:
        if isinstance(thing, subprocess.Popen):
            thing.communicate()

def test_clean(bounds):
    bounds.check("T_abort", 0.011)
    a, b = socket.socketpair()
    a.close(), b.close()

def test_leaves_a_descriptor():
    KEPT.extend(os.pipe())

def test_leaves_a_thread():
    thread = threading.Thread(target=threading.Event().wait, daemon=True, name="stray")
    thread.start()

def test_leaves_a_process():
    KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_leaves_what_only_a_collection_frees(tmp_path):
    class Knot:
        def __init__(self):
            self.myself, self.number = self, os.open(tmp_path, os.O_RDONLY)
        def __del__(self):
            os.close(self.number)
    Knot()

def test_breaks_a_bound(bounds):
    bounds.check("T_reap", 1.001)

def test_keeps_a_bound_under_load(bounds):
    bounds.check("T_eof", 0.599)
"""


@pytest.fixture(scope="module", params=["alone", "xdist"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("toys")
    conftest = (HERE / "conftest.py").read_text()
    (root / "conftest.py").write_text(conftest.replace("RESIDUE_BOUND_S: Final = 10.0", "RESIDUE_BOUND_S: Final = 0.1"))
    (root / "test_toys.py").write_text(TOYS)
    (root / "pytest.ini").write_text("[pytest]\n")
    workers = ["-n", "2"] if request.param == "xdist" else ["-p", "no:xdist"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SHAREDSOCK_"))}
    environ |= {"PYTHONPATH": str(HERE.parent), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfE", *workers, str(root)],
        cwd=root, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_what_a_test_leaves_is_its_own_error(run: str) -> None:
    """I6, and by name: descriptor, thread, process."""
    for name, residue in [("descriptor", "pipe:["), ("thread", "thread stray"), ("process", "input()")]:
        assert f"ERROR test_toys.py::test_leaves_a_{name}" in run
        assert residue in run


def test_the_clean_and_the_collectable_pass(run: str) -> None:
    assert re.search(r"1 failed, 6 passed(, \d+ warnings?)?, 3 errors", run), run  # warnings: other plug-ins' own


def test_the_worst_of_each_bound_is_printed_once(run: str) -> None:
    """Merged over all workers; what is kept only with the room for a loaded machine is said."""
    assert "FAILED test_toys.py::test_breaks_a_bound - AssertionError: T_reap: 1001.0 ms, bound 250 ms" in run
    lines = run.split("bounds: worst seen")[1].splitlines()
    worst = [line.split() for line in lines if line.startswith("T_")]
    assert [row[0] for row in worst] == ["T_abort", "T_eof", "T_reap"]
    assert worst[0][1:5] == ["11.0", "ms", "of", "50"]
    assert "under load" in next(line for line in lines if line.startswith("T_eof"))


def test_nothing_of_a_session_is_left(run: str) -> None:
    """The session's runtime directory goes with it, the workers' in it."""
    assert "left behind by the session" not in run
