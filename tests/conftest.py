"""What every test is held to: it leaves nothing behind, it keeps the bounds, and it is alone with its registry.

- *Alone*: each session, and each xdist worker, has a runtime directory of its own; sessions and workers never meet.
- *The oracle*, after every test: descriptors by what they refer to (socket and pipe inodes), threads, child processes
  and theirs, and the registry's count are what they were before. It waits for that, within RESIDUE_BOUND_S, since a
  registry takes T_reap to notice a death. A test without residue pays for three directory listings.
- *At the end of the session*: no runtime directory is left (registries end by themselves), and no process that was
  started with our environment.
- *Bounds*: `bounds.check("T_abort", seconds)` allows four times the bound, and half a second at least, since
  other processes load the machine and a virtual one may stand still; the worst of each is printed at the end.

Tests live in tests/<room>/ without __init__.py (import mode importlib): a helper module beside them is loaded by path
or is a fixture in that directory's conftest.py.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

RESIDUE_BOUND_S: Final = 10.0
THREAD_END_BOUND_S: Final = 0.02
SESSION_END_BOUND_S: Final = 30.0
# spec/fault-catalogue.md A.1, in seconds.
BOUNDS: Final = {
    "T_abort": 0.050,
    "T_eof": 0.100,
    "T_reap": 0.250,
    "T_dead": 0.100,
    "T_rpc": 2.0,
    "T_auth": 1.0,
    "T_exit": 1.0,
    # Of the pytest plug-in: the page of a run that hangs is printed, a killed run has left nothing.
    "T_page": 2.0,
    "T_gone": 1.0,
}
UNDER_LOAD: Final = 4
STALL_S: Final = 0.5  # a machine that we share may give us no processor for so long, whatever we are measuring

_BASE_VARIABLE: Final = "TESTS_OF_SHAREDSOCK_BASE"
_worst: dict[str, tuple[float, str]] = {}
_late_residue: list[str] = []


# -- alone --------------------------------------------------------------------------------------------------------


def _make_base() -> Path:
    """Make this session's runtime directory; a worker's lies in its controller's, which removes all of them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return Path(tempfile.mkdtemp(prefix="sharedsock-tests-"))  # 0700
    return Path(tempfile.mkdtemp(prefix=f"{worker}-", dir=os.environ[_BASE_VARIABLE]))


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: a directory of our own, and no registry of whoever started us."""
    base = _make_base()
    config.stash[_base_key] = base
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[_BASE_VARIABLE] = str(base)
    os.environ["XDG_RUNTIME_DIR"] = str(base)
    for name in ("SHAREDSOCK_TREE", "SHAREDSOCK_REGISTRY", "SHAREDSOCK_AUDIT", "SHAREDSOCK_DEBUG"):
        os.environ.pop(name, None)
    # A shell that starts us in the background has SIGINT ignored, and every process of ours would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_base_key: Final = pytest.StashKey[Path]()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what is there before the first test: thousands of tests, and pytest.

    A full collection with them takes 0.2 s (3.11), without them 0.01 s; the oracle asks for one in each test that has
    caught an error, and some tests have one at every allocation.
    """
    gc.collect()
    gc.freeze()


# -- waiting ------------------------------------------------------------------------------------------------------


def _is_soon(condition: Callable[[], bool], bound_s: float) -> bool:
    """Whether a condition of another process or thread becomes true within a bound; it has no event to wait for."""
    never = threading.Event()
    deadline = time.monotonic() + bound_s
    interval_s = 0.001
    while not condition():
        if time.monotonic() > deadline:
            return False
        never.wait(interval_s)
        interval_s = min(interval_s * 2, 0.05)
    return True


# -- the oracle ---------------------------------------------------------------------------------------------------


class Census:
    """What this process and its children have at one moment, by identity."""

    def __init__(self) -> None:
        self.descriptors = _descriptors()
        self.threads = {thread for thread in threading.enumerate() if thread.is_alive()}
        self.children = _descendants(os.getpid())

    def residue(self) -> list[str]:
        """Name what is here now and was not then."""
        now = Census()
        tracked = _of_the_stdlib()
        descriptors = now.descriptors - self.descriptors
        children = now.children - self.children - tracked
        return [
            *(f"descriptor {target} x {count}" for target, count in sorted(descriptors.items())),
            *(f"thread {thread.name}" for thread in now.threads - self.threads if thread.is_alive()),
            *(f"process {_describe(pid)}" for pid in sorted(children)),
        ]


def _descriptors() -> Counter[str]:
    """Count this process's open files by what they refer to; a socket or pipe is named by its inode."""
    targets: Counter[str] = Counter()
    ours = _files_of_the_stdlib()
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) in ours:
            continue
        try:
            targets[os.readlink(f"/proc/self/fd/{entry}")] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return targets


def _descendants(pid: int) -> set[int]:
    """Return the pids below a process, zombies as well; by /proc, which costs a tenth of psutil's walk."""
    found: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found |= {child} | _descendants(child)
    except (FileNotFoundError, ProcessLookupError):
        if pid == os.getpid():  # a kernel without CONFIG_PROC_CHILDREN
            return {child.pid for child in psutil.Process().children(recursive=True)}
    return found


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} ({process.status()}): {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return str(pid)


# multiprocessing keeps one resource tracker and one forkserver per process for its life; they are nobody's leak, and
# there is no public name for them.
def _files_of_the_stdlib() -> set[int | None]:
    tracker: Any = resource_tracker._resource_tracker
    server: Any = forkserver._forkserver
    return {tracker._fd, server._forkserver_alive_fd}


def _of_the_stdlib() -> set[int | None]:
    tracker: Any = resource_tracker._resource_tracker
    server: Any = forkserver._forkserver
    return {tracker._pid, server._forkserver_pid}


def _registry_residue() -> list[str]:
    """Ask every registry this process is connected to what it still counts, then let go of the idle channels."""
    connect = sys.modules.get("sharedsock.registry.connect")
    if connect is None:
        return []
    residue = []
    for path, client in connect._clients.copy().items():
        if client.is_connected() and os.path.exists(path):
            residue += [f"registry: {facts} has {count} references" for facts, count in client.sockets()]
    if not residue:
        connect.close_idle_clients()
    return residue


_warmed: list[object] = []


def _warm() -> None:
    """Open what the package keeps for the life of the process (the dead file, the reserve number) before any count."""
    if not _warmed:
        from sharedsock.kernel import sockets  # importing the package alone imports no room

        _warmed.append(sockets)
        sockets.open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)


@pytest.fixture(autouse=True)
def oracle(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor, thread, process or counted reference of its own (I6)."""
    _warm()
    before = Census()
    yield
    residue: list[str] = []

    def is_clean() -> bool:
        residue[:] = _registry_residue() or before.residue()
        return not residue

    if _is_soon(is_clean, THREAD_END_BOUND_S):  # the service thread ends with the channel that has just been given up
        return

    def is_clean_but_for_cycles() -> bool:
        # A caught error and its traceback are one, which may hold the last frame of a closed descriptor; and a thread
        # that is not yet at its end may be in it, so each time anew.
        gc.collect()
        return is_clean()

    if not _is_soon(is_clean_but_for_cycles, RESIDUE_BOUND_S):
        pytest.fail(f"{request.node.nodeid} leaves behind:\n  " + "\n  ".join(residue), pytrace=False)


# -- bounds -------------------------------------------------------------------------------------------------------


class Bounds:
    """The catalogue's time bounds; remembers the worst value of each."""

    def __init__(self, test: str) -> None:
        self._test = test

    def check(self, name: str, seconds: float) -> None:
        """Assert that a measured time keeps the bound, on a loaded machine, and note it if it is the worst so far."""
        if seconds > _worst.get(name, (0.0, ""))[0]:
            _worst[name] = (seconds, self._test)
        assert seconds <= max(UNDER_LOAD * BOUNDS[name], BOUNDS[name] + STALL_S), (
            f"{name}: {seconds * 1e3:.1f} ms, bound {BOUNDS[name] * 1e3:.0f} ms"
        )


@pytest.fixture
def bounds(request: pytest.FixtureRequest) -> Bounds:
    """The time bounds of the fault catalogue."""
    return Bounds(request.node.nodeid)


def _merge_worst(others: dict[str, tuple[float, str]]) -> None:
    for name, (seconds, test) in others.items():
        if seconds > _worst.get(name, (0.0, ""))[0]:
            _worst[name] = (seconds, test)


# -- the end of the session ---------------------------------------------------------------------------------------


def _processes_below(base: Path) -> list[int]:
    """Return the processes started with this session's environment, but not this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(_BASE_VARIABLE) == str(base):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait until registries have ended; hand what was seen to the controller, or let it decide the exit status."""
    base = session.config.stash[_base_key]
    _registry_residue()
    if not _is_soon(lambda: not any(base.glob("**/sharedsock-*")), SESSION_END_BOUND_S):
        _late_residue.extend(f"runtime directory {path}" for path in base.glob("**/sharedsock-*"))
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["bounds"] = _worst
        output["late_residue"] = _late_residue
        return
    if not _is_soon(lambda: not _processes_below(base), SESSION_END_BOUND_S):
        _late_residue.extend(f"process {_describe(pid)}" for pid in _processes_below(base))
    shutil.rmtree(base, ignore_errors=True)
    if _late_residue and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what an xdist worker has seen; one that crashed has nothing to tell."""
    output = getattr(node, "workeroutput", {})
    _merge_worst(output.get("bounds", {}))
    _late_residue.extend(output.get("late_residue", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the worst time seen for each bound, and what the whole session left behind."""
    if _worst:
        terminalreporter.section("bounds: worst seen")
        for name in (name for name in BOUNDS if name in _worst):
            seconds, test = _worst[name]
            limit_ms = BOUNDS[name] * 1e3
            verdict = "kept" if seconds <= BOUNDS[name] else "under load"
            terminalreporter.write_line(f"{name:8} {seconds * 1e3:9.1f} ms of {limit_ms:6.0f} ms  {verdict:14} {test}")
    if _late_residue:
        terminalreporter.section("left behind by the session")
        for line in _late_residue:
            terminalreporter.write_line(line)
