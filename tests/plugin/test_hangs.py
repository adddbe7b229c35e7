"""A run that hangs prints one page of all its processes and ends, with a code that is not zero, leaving nothing."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

UNDER_LOAD = 4

HANG_S = 5  # an actor is to be started and to block in that time

DEADLOCK = """
    import threading, pytest, sharedsock as ss
    from sharedsock.testing import Actors  # here, where no clock runs
    ss.SharedSocket

    @pytest.fixture(autouse=True)
    def began(request):
        open(f"began-{{request.node.name}}", "w").close()

    def test_before(): pass

    {marker}
    def test_deadlock(actors):
        ours, peer = ss.socketpair()
        reader, = actors.share(ours, count=1)
        reader.thread("reading-thread").recv(1)
        reader.wait_until_blocked("reading-thread")
        one, other, ready = threading.Lock(), threading.Lock(), threading.Barrier(2)

        def first():
            with one:
                ready.wait()
                other.acquire()

        threading.Thread(target=first, name="first-thread").start()
        with other:
            ready.wait()
            one.acquire()
"""


def pids_with(directory: str) -> list[int]:
    """Return the processes whose command line or working directory speaks of a test's directory."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(directory):
                    found.append(int(name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("marker", "arguments"),
    [
        ("", (f"--sharedsock-hang-timeout={HANG_S}",)),
        ("", (f"--sharedsock-hang-timeout={HANG_S}", "-n2")),
        (f"@pytest.mark.sharedsock(timeout={HANG_S})", ("--sharedsock-hang-timeout=0", "--dist=no")),
    ],
    ids=["alone", "workers", "marker"],
)
def test_a_deadlock_prints_the_merged_page_and_ends_the_run(
    session: Callable[..., Any], sessions: Any, bounds: Any, marker: str, arguments: tuple[str, ...]
) -> None:
    done = session(DEADLOCK.format(marker=marker), "-q", *arguments)
    ended_s = time.time()
    # Interrupted; or killed by the warden, on a machine too busy for pytest to end within five seconds of that.
    assert done.code in (pytest.ExitCode.INTERRUPTED, -signal.SIGKILL), done.out
    page = done.out.partition("======== sharedsock: ")[2].partition("======== end of the page")[0]
    assert re.match(r"test_inner.py::test_deadlock has been running for [\d.]+ s in process \d+", page), done.out
    assert re.search(r"actor actor-1 \(process \d+\) thread reading-thread: recv on .* waits for", page), page
    assert "thread first-thread (most recent call first):" in page
    assert "in test_deadlock" in page
    assert re.search(r"pending [\d.]+ s: recv on an unnamed socket in thread reading-thread, descriptor \d+", page)
    assert re.search(r"process \d+ gw\d, child of" if "-n2" in arguments else r"process \d+ controller, child of", page)
    # HANG_S after the deadlock's test began the page is due, whole; and 2 s after it the end.
    due_s = (sessions.directory / "began-test_deadlock").stat().st_mtime + HANG_S
    page_s = done.seen_s("======== end of the page")
    bounds.check("T_page", page_s - due_s)
    assert ended_s - page_s < 2 * UNDER_LOAD + (5 if done.code < 0 else 0)
    assert pids_with(str(sessions.directory)) == []


def test_where_a_marker_has_a_time_every_process_is_on_the_page(session: Callable[..., Any]) -> None:
    """Also the one whose tests ask for nothing of ours; each of them waits for ever, so both workers are there."""
    done = session(
        """
        import threading, pytest

        @pytest.mark.sharedsock(timeout=2)
        def test_marked(): threading.Event().wait()

        def test_other(): threading.Event().wait()
        """,
        "-n2",
    )
    assert done.code != 0
    page = done.out.partition("======== sharedsock: ")[2].partition("======== end of the page")[0]
    assert sorted(re.findall(r"^process \d+ (\w+), child of", page, re.M)) == ["controller", "gw0", "gw1"], done.out
    assert "in test_marked" in page
    assert "in loop_once" in page, "xdist's loop in the controller"


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "controller"])
def test_a_hang_outside_of_any_test_is_noticed_as_well(
    session: Callable[..., Any], sessions: Any, workers: tuple[str, ...]
) -> None:
    """The controller's own: no test is under way, and nothing moves."""
    sessions.write(
        """
        import os, threading

        def pytest_sessionfinish():
            if "PYTEST_XDIST_WORKER" not in os.environ:
                threading.Event().wait()
        """,
        "conftest.py",
    )
    done = session("def test_it(): pass", "--sharedsock-hang-timeout=3", *workers)
    assert done.code != 0
    assert re.search(r"sharedsock: nothing has moved for [\d.]+ s", done.out), done.out
    assert "in pytest_sessionfinish" in done.out
    assert pids_with(str(sessions.directory)) == []


def test_a_test_that_is_slow_and_not_over_its_time_is_left_alone(session: Callable[..., Any]) -> None:
    """A marker's time is longer than the run's; and a test without a limit hangs nobody's watch."""
    done = session(
        """
        import threading, pytest

        @pytest.mark.sharedsock(timeout=30)
        def test_slow():
            threading.Event().wait(2.5)
        """,
        "--sharedsock-hang-timeout=2",
    )
    assert done.code == 0, done.out
    assert "end of the page" not in done.out
