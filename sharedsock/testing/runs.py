"""A run: all processes of one test session, wherever they were started, and the directory they have in common.

The controller draws the directory's name and leaves it in SHAREDSOCK_RUN, which every descendant inherits; the name
says who the controller is, so that a run whose controller has died can be told from a living one. The directory itself,
and the run's warden (see `warden`), are made by the first process that needs them:

    <base>/ss-run-<pid>-<start ticks>-<48 random bits>/
        w               the warden's datagram socket
        stacks-<pid>    where a process writes its stacks when it is asked (see `stacks`)
        doors/          sockets that are shared by name (see `rendezvous`)

A process belongs to the run if it was started with its name in the environment, or has a file of its directory open,
as a forked child of such a process has. No list is kept: what the kernel knows cannot be forgotten by a crash.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

__all__ = ["RUN_VARIABLE", "Run", "begin_run", "current_run", "living_runs", "runs_below", "start_ticks"]

RUN_VARIABLE: Final = "SHAREDSOCK_RUN"
_PREFIX: Final = "ss-run-"
# Paths in the directory are addresses of Unix sockets: 107 bytes, of which the names below need 60.
_LONGEST_BASE: Final = 45


@dataclass(frozen=True, slots=True)
class Run:
    """One run, by its directory, which need not exist yet.

    Attributes:
        controller: the pid of the session's first process; `since_ticks`: when that started.
    """

    directory: str
    controller: int
    since_ticks: int

    @property
    def has_directory(self) -> bool:
        """Whether somebody has needed it yet."""
        return os.path.isdir(self.directory)

    def make_directory(self) -> None:
        """Make the directory, for this user alone."""
        with suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)
        found = os.lstat(self.directory)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self.directory} is not ours alone")

    def remove_directory(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_alive(self) -> bool:
        """Whether the controller lives: that process, not another one with its number."""
        return start_ticks(self.controller) == self.since_ticks

    def processes(self) -> tuple[int, ...]:
        """Return the pids of the run that live now, the controller first.

        A registry is not among them, nor the warden: they belong to nobody, and end by themselves.
        """
        marker = f"{RUN_VARIABLE}={self.directory}".encode()
        found = {self.controller} if self.is_alive() else set()
        for name in os.listdir("/proc"):
            if name.isdigit() and self._has(name, marker):
                found.add(int(name))
        return tuple(sorted(found, key=lambda pid: (pid != self.controller, pid)))

    def has(self, pid: int) -> bool:
        """Whether the process that has a number now is of the run."""
        if pid == self.controller and self.is_alive():
            return True
        return self._has(str(pid), f"{RUN_VARIABLE}={self.directory}".encode())

    def _has(self, pid: str, marker: bytes) -> bool:
        if start_ticks(int(pid)) is None or _is_helper(pid):
            return False
        return _was_started_with(pid, marker) or _has_file_below(pid, self.directory + "/")


def _is_helper(pid: str) -> bool:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            program = file.read()
        return b"run_registry()" in program or b"sharedsock.testing.warden" in program
    return False


def _was_started_with(pid: str, marker: bytes) -> bool:
    with suppress(OSError):
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read().split(b"\0")
    return False


def _has_file_below(pid: str, prefix: str) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith(prefix):
                    return True
    return False


def living_runs() -> list[Run]:
    """Return every run of this user that lives, also one that has not needed its directory yet.

    Such a one is known by the processes it has started, which have its name.
    """
    named = set(runs_below())
    marker = f"{RUN_VARIABLE}=".encode()
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit():
                with open(f"/proc/{name}/environ", "rb") as file:
                    words = [word for word in file.read().split(b"\0") if word.startswith(marker)]
                named |= {run for word in words if (run := _parsed(os.fsdecode(word[len(marker) :]))) is not None}
    return [run for run in named if run.is_alive()]


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _base() -> str:
    """Return where runs have their directories: the user's own place if its path is short enough, else /tmp."""
    from sharedsock.registry.directory import new_directory_name

    own = os.path.dirname(new_directory_name())
    return own if len(own) <= _LONGEST_BASE else "/tmp"


def begin_run() -> Run:
    """Draw the name of this process's run and leave it to its descendants; nothing is made."""
    pid = os.getpid()
    ticks = start_ticks(pid) or 0
    directory = os.path.join(_base(), f"{_PREFIX}{pid}-{ticks}-{os.urandom(6).hex()}")
    os.environ[RUN_VARIABLE] = directory
    return Run(directory, pid, ticks)


def current_run() -> Run | None:
    """Return the run this process was started in, or has begun."""
    return _parsed(os.environ.get(RUN_VARIABLE, ""))


def _parsed(directory: str) -> Run | None:
    head, _, rest = os.path.basename(directory).partition(_PREFIX)
    parts = rest.split("-")
    if head or len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return Run(directory, int(parts[0]), int(parts[1]))


def runs_below() -> list[Run]:
    """Return every run of this user that has left a directory, alive or not."""
    found = []
    base = _base()
    with suppress(OSError):
        for name in sorted(os.listdir(base)):
            run = _parsed(os.path.join(base, name))
            with suppress(OSError):
                if run is not None and os.lstat(run.directory).st_uid == os.geteuid():
                    found.append(run)
    return found
