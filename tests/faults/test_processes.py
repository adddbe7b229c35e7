"""Processes beside the holders: one between fork and exec, multiprocessing's own helpers, workers of a test run."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import pytest

from tests.descriptors.kinds import pair_of
from tests.descriptors.sharers import is_open_for, wait_end_of, wait_until


class Window:
    """A child held between its fork and its exec, until `open`."""

    def __init__(self) -> None:
        self._reached, self._reach = os.pipe()
        self._wait, self._go = os.pipe()

    def hold(self) -> None:
        """In the child."""
        os.write(self._reach, b"x")
        os.read(self._wait, 1)

    def wait_reached(self) -> None:
        assert os.read(self._reached, 1) == b"x"

    def open(self) -> None:
        os.write(self._go, b"x")

    def close(self) -> None:
        for number in (self._reached, self._reach, self._wait, self._go):
            os.close(number)


def _popen(window: Window) -> Callable[[], None]:
    """subprocess, with hooks: it returns when the child has executed, so it runs in a thread."""
    opening = Thread(target=lambda: subprocess.run(["/bin/true"], preexec_fn=window.hold, close_fds=False, check=True))
    opening.start()
    return opening.join


def _fork_without_hooks(window: Window) -> Callable[[], object]:
    """A fork that Python does not see, as a C extension's."""
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        window.hold()
        os.execv("/bin/true", ["true"])
    return lambda: os.waitpid(pid, 0)


@pytest.mark.fault("F-92", "I3")
@pytest.mark.parametrize("start", [_popen, _fork_without_hooks], ids=["subprocess", "a fork without hooks"])
def test_between_fork_and_exec_an_end_may_be_late_but_never_lost(
    start: Callable[[Window], Callable[[], object]], bounds: Any
) -> None:
    """A child with hooks has closed what it inherited before anything runs in it; another one keeps it until its exec,
    since every number is close-on-exec."""
    window = Window()
    with pair_of("tcp4") as pair:
        wait_ended = start(window)
        window.wait_reached()
        pair.local.close()
        if start is _fork_without_hooks:
            assert is_open_for(pair.peer), "the child has it still"
            began_s = monotonic()
            window.open()
            wait_end_of(pair.peer)
            bounds.check("T_eof", monotonic() - began_s)
        else:
            bounds.check("T_eof", wait_end_of(pair.peer))
            window.open()
        wait_ended()
    window.close()


PRELOADED = """
    import json, multiprocessing, os, socket
    from multiprocessing import forkserver, resource_tracker

    def hold(shared, peer_says):
        shared.sendall(b"from a child")
        peer_says.recv()

    def files(pid):
        # Not what it imports from: a helper that has just been started has a module's file open, or a directory.
        found = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                file = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if not file.startswith("/") or file.startswith(("/memfd:", "/dev/")):
                found.append(file)
        return sorted(found)

    if __name__ == "__main__":
        import sharedsock
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sharedsock", "sharedsock.descriptors.overlapped"])
        resource_tracker.ensure_running()
        forkserver.ensure_running()
        before = files(forkserver._forkserver._forkserver_pid), files(resource_tracker._resource_tracker._pid)
        ours, peer = sharedsock.socketpair()
        operation = peer.begin_recv(64)
        here, there = context.Pipe()
        child = context.Process(target=hold, args=(ours, there))
        child.start()
        assert operation.result(60) == b"from a child"
        inode = os.readlink(f"/proc/self/fd/{ours.fileno()}")
        after = files(forkserver._forkserver._forkserver_pid), files(resource_tracker._resource_tracker._pid)
        here.send(None)
        child.join()
        ours.close(), peer.close()
        print(json.dumps([before, after, inode, child.exitcode]))
"""


@pytest.mark.fault("F-94")
def test_neither_the_fork_server_nor_the_resource_tracker_has_anything_of_ours(tmp_path: Path) -> None:
    """Preloaded with the package, and with a child that has a shared socket."""
    script = tmp_path / "preloaded.py"
    script.write_text(textwrap.dedent(PRELOADED))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    before, after, inode, exitcode = json.loads(done.stdout)
    assert exitcode == 0
    for files in after:
        assert inode not in files
        assert not [file for file in files if "eventfd" in file or "sharedsock" in file]
    assert after[1] == before[1], "the resource tracker's"
    # A fork server has a selector of its own, and a pipe for each child that lives.
    assert [file for file in after[0] if "socket" in file] == [file for file in before[0] if "socket" in file]


WORKERS = """
    import os, signal, socket
    import pytest
    import sharedsock as ss

    @pytest.mark.parametrize("n", range(16))
    def test_share(n, worker_id):
        ours, peer = ss.socketpair()
        with ours, peer:
            with ss.fromshare(ours.share(os.getpid())) as twin:
                twin.sendall(b"x")
                assert peer.recv(1) == b"x"
                assert ours.references() == 2
                counted = ours._descriptor.client.sockets()
                assert len(counted) == 1, "another worker's sockets are counted here"
                with open(os.environ["SEEN"], "a") as seen:
                    print(worker_id, ours._descriptor.client.pid, file=seen)
                if n == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault("F-120")
@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.campaign)])
def test_a_killed_worker_leaves_nothing_and_disturbs_nobody(count: int, tmp_path: Path) -> None:
    """Each worker has a registry of its own; that of the killed one ends by itself, as do the others'."""
    (tmp_path / "test_workers.py").write_text(textwrap.dedent(WORKERS))
    runtime, seen = tmp_path / "runtime", tmp_path / "seen"
    runtime.mkdir(0o700)
    removed = ("PYTEST_", "SHAREDSOCK_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "xdist", f"-n{count}", f"--rootdir={tmp_path}", tmp_path],
        env=variables | {"XDG_RUNTIME_DIR": str(runtime), "SEEN": str(seen), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "15 passed" in done.stdout, done.stdout + done.stderr
    assert "crashed while running 'test_workers.py::test_share[5]'" in done.stdout
    pairs = {tuple(line.split()) for line in seen.read_text().splitlines()}
    workers = {worker for worker, _ in pairs}
    assert len(pairs) == len(workers) == len({registry for _, registry in pairs}), "one registry for each worker"
    wait_until(lambda: not any(_is_alive(int(registry)) for _, registry in pairs), "the registries to end")
    assert list(runtime.iterdir()) == []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
