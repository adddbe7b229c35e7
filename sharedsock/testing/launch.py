"""Starting an actor's process, by each of multiprocessing's start methods, and seeing it end.

A daemonic worker (a Pool's, for instance) may not have children through multiprocessing; there, and where it is
asked for, the start method is "exec": a plain subprocess of the same interpreter. Death is seen through a pidfd
where there is one: a child of the actor that holds the far end of a pipe cannot hide it.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Final, Protocol, cast

from sharedsock.testing.acting import Billing, serve
from sharedsock.testing.frames import encode

__all__ = ["START_METHODS", "Running", "launch", "start_helpers", "usable_start_method"]

START_METHODS: Final = ("fork", "forkserver", "spawn", "exec")
_PROGRAM: Final = "from sharedsock.testing.acting import serve_inherited; serve_inherited({number})"


class _Process(Protocol):
    """What a multiprocessing.Process and a subprocess.Popen have in common for us, once wrapped."""

    pid: int

    def status(self) -> int | None: ...
    def wait(self, timeout_s: float) -> int | None: ...
    def dispose(self) -> None: ...


class _Multiprocessing:
    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = cast(int, process.pid)

    def status(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int | None:
        self._process.join(timeout_s)
        return self._process.exitcode

    def dispose(self) -> None:
        self._process.close()


class _Subprocess:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def status(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode

    def dispose(self) -> None:
        """Nothing is held beyond the status."""


class Running:
    """A process that has been started, until it has been waited for."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self.pid = process.pid
        self._status: int | None = None
        self._is_over = False
        self._pidfd: int | None = None
        with suppress(AttributeError, OSError):  # no pidfd on this platform: the wait below is multiprocessing's own
            self._pidfd = os.pidfd_open(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to this very process; one that has ended gets none."""
        if self._is_over:
            return
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the process is dead and reaped; report False if it lives on."""
        if self._is_over:
            return True
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                return False
            # A fork server reports the status by itself, a moment after the death.
            self._status = self._process.status()
        if self._status is None:
            self._status = self._process.wait(timeout_s)
            if self._status is None:
                return False
        self._is_over = True
        self._process.dispose()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return True

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal, once `wait_ended` has reported True."""
        return self._status


def usable_start_method(wanted: str | None) -> str:
    """Return the start method an actor gets here: the wanted one, the default, or "exec" in a daemonic worker.

    Raises:
        ValueError: there is no such start method.
    """
    method = multiprocessing.get_start_method() if wanted is None else wanted
    if method not in START_METHODS:
        raise ValueError(f"start method {method!r} is none of {', '.join(START_METHODS)}")
    return "exec" if multiprocessing.current_process().daemon else method


def start_helpers(method: str) -> None:
    """Start the processes multiprocessing keeps for a start method as long as this process lives, if it keeps any.

    They would be started with the first process anyway; a count of what is open wants them there before it begins.
    """
    if method in ("forkserver", "spawn"):
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()


def launch(
    name: str,
    ours: socket.socket,
    theirs: socket.socket,
    method: str,
    environment: dict[str, str | None],
    is_watched: bool,
) -> Running:
    """Start the process of an actor; `theirs` is its end of the pipe, which the caller closes here afterwards."""
    # The kernel's "die with your parent" means the thread that started the process, and only the main one lasts.
    has_lasting_parent = threading.current_thread() is threading.main_thread()
    parent = os.getpid() if has_lasting_parent and method != "forkserver" else None
    billing = Billing(name, environment, method, parent, is_watched)
    if method == "exec":
        running = Running(_Subprocess(_start_plain(theirs)))
        ours.sendall(encode((billing,)))
        return running
    context = multiprocessing.get_context(method)
    # Not daemonic: an actor may start processes of its own. It ends with its pipe all the same.
    process = context.Process(target=serve, args=(theirs, billing), name=f"actor-{name}")  # type: ignore[attr-defined]  # typeshed: BaseContext lacks it
    process.start()
    return Running(_Multiprocessing(process))


def _start_plain(pipe: socket.socket) -> subprocess.Popen[bytes]:
    package_home = str(Path(__file__).resolve().parents[2])
    path = [package_home, *(entry for entry in sys.path if entry)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
    number = pipe.fileno()
    return subprocess.Popen(
        [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _PROGRAM.format(number=number)],  # type: ignore[attr-defined]  # as multiprocessing does
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        env=variables,
    )
