"""SIGKILL of the controller, of a worker, of an actor: nothing of theirs is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0

HOLDING = """
    import json, multiprocessing, os, signal, subprocess, sys, threading
    import pytest, sharedsock as ss

    def test_holds(actors, unix_listener, shared_socket_factory):
        name = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        if name == "gw2":
            return  # the worker that takes a killed one's place
        ours, peer = ss.socketpair()
        reader, stopped = actors.share(ours)
        reader.thread("reader").recv(1)
        reader.wait_until_blocked("reader")
        shared_socket_factory("server")
        program = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
        fork = multiprocessing.get_context("fork").Process(target=signal.pause)
        fork.start()
        stopped.stop()
        pids = [reader.pid, stopped.pid, program.pid, fork.pid]
        facts = {"self": os.getpid(), "pids": pids}
        facts |= {"run": os.environ["SHAREDSOCK_RUN"], "tree": os.environ["SHAREDSOCK_TREE"]}
        with open(f"{name}.draft", "w") as file:
            json.dump(facts, file)
        os.rename(f"{name}.draft", f"{name}.json")
        while True:
            signal.pause()
"""


def is_soon(condition: Callable[[], bool], bound_s: float) -> bool:
    """Whether something of other processes, which announces nothing, comes true within a bound."""
    never = threading.Event()
    deadline_s = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        never.wait(0.005)
    return True


class Killed:
    """Sends SIGKILL, and sees what is gone how soon after it."""

    def __init__(self, pid: int, bounds: Any) -> None:
        self._bounds = bounds
        self._began_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    def leaves_no(self, pids: list[int], *paths: str) -> None:
        """All of it has gone within the bound."""

        def left() -> list[Any]:
            return [*(pid for pid in pids if not is_gone(pid)), *filter(os.path.exists, paths)]

        assert is_soon(lambda: not left(), START_S), left()
        self._bounds.check("T_gone", time.monotonic() - self._began_s)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; who is to wait for it may not have done so yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def holding(sessions: Any, *names: str) -> dict[str, dict[str, Any]]:
    """Wait until the tests of these workers hold what they hold."""
    paths = {name: sessions.directory / f"{name}.json" for name in names}
    assert is_soon(lambda: all(path.exists() for path in paths.values()), START_S)
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_after_a_kill_of_pytest_itself_nothing_is_left(sessions: Any, bounds: Any, method: str) -> None:
    sessions.write(HOLDING)
    process = sessions.start(f"--sharedsock-start-method={method}")
    facts = holding(sessions, "alone")["alone"]
    Killed(process.pid, bounds).leaves_no(facts["pids"], facts["run"], facts["tree"])


def test_after_a_kill_of_the_controller_nothing_is_left(sessions: Any, bounds: Any) -> None:
    sessions.write(HOLDING + "\n    test_again = test_holds\n")
    process = sessions.start("-n2")
    facts = holding(sessions, "gw0", "gw1")
    pids = [pid for each in facts.values() for pid in (each["self"], *each["pids"])]
    Killed(process.pid, bounds).leaves_no(pids, facts["gw0"]["run"], facts["gw0"]["tree"])


def test_after_a_kill_of_a_worker_only_what_it_started_is_gone(sessions: Any, bounds: Any) -> None:
    sessions.write(HOLDING + "\n    test_again = test_holds\n")
    process = sessions.start("-n2")
    facts = holding(sessions, "gw0", "gw1")
    Killed(facts["gw0"]["self"], bounds).leaves_no(facts["gw0"]["pids"])
    assert not any(map(is_gone, facts["gw1"]["pids"]))
    Killed(facts["gw1"]["self"], bounds).leaves_no(facts["gw1"]["pids"])
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "worker 'gw0' crashed while running" in out
    assert not os.path.exists(facts["gw0"]["run"])


def test_after_a_kill_of_an_actor_its_references_are_gone(session: Callable[..., Any]) -> None:
    done = session(
        """
        import os, threading, sharedsock as ss

        def test_it(actors):
            ours, peer = ss.socketpair()
            with ours, peer:
                a, b = actors.share(ours)
                assert ours.references() == 3
                a.kill()
                assert not os.path.exists(f"/proc/{a.pid}")
                for _ in range(1000):
                    if ours.references() == 2:
                        break
                    threading.Event().wait(0.005)
                else:
                    raise AssertionError(ours.holders())
        """,
        "--sharedsock-leaks=all",
    )
    assert (done.code, done.findings) == (0, []), done.out
