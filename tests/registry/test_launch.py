"""The start of a registry: one per directory, nobody's child, nothing left when it fails."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedsock.model.errors import RegistryGone
from sharedsock.registry import connect, launch, runtime
from tests.registry.double import T_EXIT_S, Script, in_child, open_numbers, registries, tree, wait_ended
from tests.stdlib_helpers import stop_helpers


@pytest.fixture
def own_tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tree(monkeypatch) as path:
        yield path


STARTER = """
import os, sys
from sharedsock.model import trace
from sharedsock.registry import connect
def hold(point, context):
    if point == "reg.lock" and context["stage"] == "waiting":
        print("at the lock", flush=True); sys.stdin.readline()
trace.hook = hold
client = connect.default_client()
print(client.pid, client.incarnation.hex(), flush=True)
sys.stdin.readline()
"""


def _race(count: int) -> list[str]:
    """Let processes meet at the lock and start at once; return what each of them found, then let them end."""
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(Script(STARTER)) for _ in range(count)]
        for starter in starters:
            assert starter.hear() == "at the lock"
        for starter in starters:
            starter.tell()
        found = [starter.hear() for starter in starters]
        for starter in starters:
            assert starter.finish() == 0
    return found


@pytest.mark.fault("F-05")
def test_eight_processes_that_start_at_once_have_one_registry(own_tree: str) -> None:
    found = _race(8)
    assert len(set(found)) == 1, found
    pid = int(found[0].split()[0])
    assert set(registries(own_tree)) <= {pid}
    with contextlib.suppress(ProcessLookupError):
        wait_ended(pid, T_EXIT_S)
    assert not os.path.exists(own_tree)


@pytest.mark.fault("F-05")
def test_eight_threads_that_start_at_once_have_one_registry_and_one_channel(own_tree: str) -> None:
    barrier = threading.Barrier(8)
    found: list[tuple[int, bytes, int]] = []

    def first_use() -> None:
        barrier.wait()
        client = connect.default_client()
        found.append((client.pid, client.incarnation, client.statistics().clients))

    threads = [threading.Thread(target=first_use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0][2] == 1
    assert registries(own_tree) == [found[0][0]]


@pytest.mark.fault("F-77")
def test_two_starters_after_a_crash_have_one_registry(own_tree: str) -> None:
    first = connect.default_client()
    pid, incarnation = first.pid, first.incarnation
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    found = _race(2)
    assert len(set(found)) == 1
    assert found[0].split()[1] != incarnation.hex()


@pytest.mark.fault("F-06")
@pytest.mark.parametrize("moment", ["holding the lock", "waiting for the report"])
def test_a_starter_that_dies_leaves_the_lock_to_the_next(own_tree: str, moment: str) -> None:
    dying = """
import os, signal, sys
from sharedsock.model import trace
from sharedsock.registry import connect, launch
def die(*ignored):
    print("dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "holding the lock":
    trace.hook = lambda point, context: context["stage"] == "held" and die()
else:
    launch._wait_report = die
connect.default_client()
"""
    with Script(dying, moment) as starter:
        assert starter.hear() == "dying"
        assert starter.hear() == ""
        assert starter.process.wait(60) == -signal.SIGKILL
        client = connect.default_client()
        assert client.statistics().clients == 1
        others = set(registries(own_tree)) - {client.pid}
        for other in others:  # one that lost the race for the address ends by itself
            wait_ended(other, T_EXIT_S)


@pytest.mark.fault("F-07")
def test_no_process_to_be_had_is_a_clear_error_and_leaves_nothing(
    own_tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    before = open_numbers()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(RegistryGone) as caught:
            connect.default_client()
    assert caught.value.winerror == 10050
    assert isinstance(caught.value.__cause__, BlockingIOError)
    assert open_numbers() == before
    assert connect.default_client().statistics().clients == 1, "the lock is free, the next try works"


@pytest.mark.fault("F-07")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the user whom the limit binds")
def test_a_user_at_the_limit_of_processes_gets_a_clear_error(own_tree: str, tmp_path: Path) -> None:
    def limited() -> tuple[str, int | None, bool]:
        import resource

        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        path = runtime.new_directory_name()
        try:
            launch.start(path, 5.0)
        except RegistryGone as error:
            cause = error.__cause__
            number = runtime.open_directory(path)
            free = runtime.try_start_lock(number) is not None
            runtime.remove_directory(path, number)
            return type(cause).__name__, getattr(cause, "errno", None), free
        return "started", None, False

    assert in_child(limited) == ("BlockingIOError", errno.EAGAIN, True)


def test_a_registry_that_fails_to_start_says_why(own_tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_CODE", "import os, sys; os.write(int(sys.argv[3]), b'OSError: no room')")
    with pytest.raises(RegistryGone, match="no room"):
        connect.default_client()
    monkeypatch.setattr(launch, "_CODE", "raise SystemExit(3)")
    with pytest.raises(RegistryGone, match="without a word"):
        connect.default_client()
    monkeypatch.setattr(launch, "_CODE", "import signal; signal.pause()")
    with pytest.raises(RegistryGone, match="in time"):
        launch.start(own_tree, 0.2)
    number = runtime.open_directory(own_tree)
    runtime.remove_directory(own_tree, number)
    os.close(number)


@pytest.mark.fault("S-16", "S-06", "S-15")
def test_the_process_is_nobodys_child_and_shows_no_secret(own_tree: str) -> None:
    inheritable = os.dup2(0, 60, inheritable=True)
    try:
        client = connect.default_client()
    finally:
        os.close(inheritable)
    pid = client.pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["PPid"]) != os.getpid()
    assert os.getsid(pid) != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    numbers = {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    assert [numbers[n] for n in (0, 1, 2)] == ["/dev/null"] * 3
    assert 60 not in numbers
    kinds = ("/dev/null", "socket:", "anon_inode:", "/memfd:sharedsock-common", own_tree)
    assert all(what.startswith(kinds) for what in numbers.values()), numbers
    directory = runtime.open_directory(own_tree)
    key = runtime.read_key(directory)
    os.close(directory)
    for place in ("cmdline", "environ"):
        seen = Path(f"/proc/{pid}/{place}").read_bytes()
        assert key not in seen
        assert key.hex().encode() not in seen


def _children() -> set[int]:
    return {int(p) for p in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()}


def test_the_starter_keeps_no_child_and_no_zombie(own_tree: str) -> None:
    before = _children()
    connect.default_client()
    assert _children() == before


@pytest.mark.fault("F-101")
def test_a_start_works_where_children_are_reaped_by_others(own_tree: str) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert connect.default_client().pid
    finally:
        signal.signal(signal.SIGCHLD, before)


def _from_a_worker(pipe: Any) -> None:
    pipe.send((connect.default_client().pid, multiprocessing.current_process().daemon))
    pipe.recv()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_daemonic_worker_can_start_it(own_tree: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=_from_a_worker, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    worker.start()
    try:
        assert ours.poll(60)
        pid, daemonic = ours.recv()
        assert daemonic
        assert connect.default_client().pid == pid
        ours.send("done")
    finally:
        worker.join(60)
        worker.close()
        ours.close()
        theirs.close()
        # multiprocessing keeps these two for the next worker; here each test ends with no process of its own.
        stop_helpers()


@pytest.mark.fault("F-79")
def test_it_ignores_what_ends_a_session_and_ends_in_order_on_term(own_tree: str) -> None:
    client = connect.default_client()
    pid, incarnation = client.pid, client.incarnation
    for _ in range(20):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    assert client.statistics().pid == pid
    assert client.incarnation == incarnation
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_ended(pid, T_EXIT_S)
    assert not os.path.exists(own_tree)
    assert not client.is_alive


@pytest.mark.fault("F-79")
def test_a_ctrl_c_to_the_group_of_the_starter_does_not_reach_it(own_tree: str) -> None:
    text = "from sharedsock.registry import connect; import os, sys; os.setpgid(0, 0)\n"
    text += "print(connect.default_client().pid, flush=True); sys.stdin.read()"
    with Script(text) as starter:
        pid = int(starter.hear())
        client = connect.default_client()
        assert client.pid == pid
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.process.wait(60) != 0
        assert client.statistics().pid == pid


@pytest.mark.fault("F-80")
@pytest.mark.parametrize("end", ["exits", "killed"])
def test_it_outlives_its_starter_and_ends_with_the_last_client(own_tree: str, end: str) -> None:
    text = "from sharedsock.registry import connect; import sys\n"
    text += "print(connect.default_client().pid, flush=True); sys.stdin.read()"
    with Script(text) as starter:
        pid = int(starter.hear())
        client = connect.default_client()
        assert client.pid == pid
        if end == "exits":
            assert starter.finish() == 0
        else:
            starter.kill()
        assert client.statistics().pid == pid
    client.close()
    assert wait_ended(pid, T_EXIT_S) < T_EXIT_S
    assert not os.path.exists(own_tree)


@pytest.mark.fault("S-03")
def test_what_is_in_the_directory_is_ours_alone(own_tree: str) -> None:
    before = os.umask(0)
    try:
        connect.default_client()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(own_tree).st_mode) == 0o700
    names = sorted(os.listdir(own_tree))
    assert names == ["alive.lock", "key", "s", "start.lock"]
    for name in names:
        assert stat.S_IMODE(os.stat(os.path.join(own_tree, name)).st_mode) == 0o600


@pytest.mark.fault("F-09")
def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.TREE_VARIABLE, str(tmp_path / "none" / "r"))
    with pytest.raises(RegistryGone):
        connect.default_client()
    connect._clients.pop(str(tmp_path / "none" / "r"))


@pytest.mark.fault("F-09")
def test_a_directory_removed_under_a_registry_leaves_its_channel_working(own_tree: str) -> None:
    client = connect.default_client()
    pid = client.pid
    for name in os.listdir(own_tree):
        os.unlink(os.path.join(own_tree, name))
    os.rmdir(own_tree)
    assert client.statistics().pid == pid
    client.close()
    assert connect.default_client().pid != pid
    wait_ended(pid, T_EXIT_S)


def test_a_long_path_works_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tmp_path / ("d" * 150)
    base.mkdir(mode=0o700)
    with tree(monkeypatch, base) as path:
        assert len(path) > 200
        assert connect.default_client().statistics().clients == 1
