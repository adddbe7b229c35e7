"""`sharedsock reap`: end what a dead run has left, and nothing else; without --yes it only says what that is.

A run is dead when its controller is, that very process, and no warden answers; what has its name in the environment,
or a file of its directory open, is left of it. A run that was started within it and lives is somebody's: its processes
are spared. A runtime directory is dead when no process holds its registry's lock.
"""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sharedsock.registry import runtime
from sharedsock.registry.directory import new_directory_name
from sharedsock.registry.numbers import close_number
from sharedsock.testing.observation import children
from sharedsock.testing.runs import Run, living_runs, runs_below
from sharedsock.testing.warden import end_processes, is_watched

__all__ = ["add_parser"]

_NAME: Final = re.compile(r"sharedsock-[0-9a-f]{32}")  # as registry/directory.py draws them


def add_parser(verbs: Any) -> None:
    """Add the verb `reap`."""
    parser = verbs.add_parser(
        "reap",
        help="end what dead runs have left; says what, and does it with --yes",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.set_defaults(handler=reap)


def reap(arguments: argparse.Namespace) -> int:
    """Tell what is left, or end it; return 1 if something is left afterwards."""
    left = 0
    for run in runs_below():
        if run.is_alive() or is_watched(run):  # a warden sees to the end of its run itself
            continue
        pids = _left_of(run)
        left += 1
        print(f"run of process {run.controller}, which has ended: {run.directory}")
        for pid in pids:
            print(f"  process {pid}: {_command(pid)}")
        if arguments.yes:
            end_processes(run, partial(_left_of, run))
            run.remove_directory()
            left -= not os.path.exists(run.directory)
    for path in _dead_registries():
        left += 1
        print(f"registry that has ended: {path}")
        if arguments.yes:
            _remove(path)
            left -= not os.path.exists(path)
    if left:
        print("nothing was ended; --yes does it" if not arguments.yes else f"{left} could not be removed")
    elif not arguments.yes:
        print("nothing is left of any dead run")
    return 1 if left else 0


def _left_of(run: Run) -> list[int]:
    """Return the processes of a dead run, but for those of a run within it that lives, and what they have forked."""
    pids = run.processes()
    living = living_runs()
    spared = {pid for pid in pids if any(one.has(pid) for one in living)}
    more = spared
    while more:  # a fork has the names its parent was started with, and they are the dead run's
        more = {below for pid in more for below in children(pid) if below in pids} - spared
        spared |= more
    return [pid for pid in pids if pid not in spared]


def _command(pid: int) -> str:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().replace(b"\0", b" "))[:120]
    return "ended"


def _dead_registries() -> list[str]:
    """Return the runtime directories of this user in which no registry lives, nor is being started."""
    found = []
    base = os.path.dirname(new_directory_name())
    for name in sorted(os.listdir(base)):
        path = os.path.join(base, name)
        with suppress(OSError):
            if _NAME.fullmatch(name) and not runtime.in_directory(path, runtime.is_alive):
                found.append(path)
    return found


def _remove(path: str) -> None:
    """Remove a dead registry's directory, under both of its locks."""
    directory, lock = runtime.acquire_start_lock(path, 1.0)
    try:
        alive = runtime.hold_alive_lock(directory)
        if alive is not None:
            try:
                runtime.remove_directory(path, directory)
            finally:
                runtime.release_lock(alive)
    finally:
        runtime.release_lock(lock)
        close_number(directory)
