"""`sharedsock dump`: the merged page of a run, or of one process and those below it, while it goes on.

Processes of a run of the pytest plug-in answer with the stacks of all their threads and what waits; of any other the
kernel tells what its threads sleep in. Nothing is ended.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from sharedsock.testing.observation import children
from sharedsock.testing.page import collect, page_of
from sharedsock.testing.runs import Run, runs_below

__all__ = ["add_parser", "run_called"]


def add_parser(verbs: Any) -> None:
    """Add the verb `dump`."""
    parser = verbs.add_parser(
        "dump",
        help="every stack of a run, what waits, and who waits for whom",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", metavar="NAME", help="a run's directory, or its controller's pid; default: all")
    what.add_argument("--pid", type=int, metavar="PID", help="a process, and those below it")
    parser.set_defaults(handler=dump)


def dump(arguments: argparse.Namespace) -> int:
    """Print the page; return 1 if there is nothing to look at."""
    if arguments.pid is not None:
        return _dump_process(arguments.pid)
    if arguments.run is not None:
        run = run_called(arguments.run)
        runs = [] if run is None else [run]
    else:
        runs = [run for run in runs_below() if run.is_alive()]
    if not runs:
        known = ", ".join(os.path.basename(run.directory) for run in runs_below())
        print(f"no run {arguments.run}; there are {known or 'none'}" if arguments.run is not None else "no run lives")
        return 1
    for run in runs:
        _print(run, run.processes(), f"run of process {run.controller}, {run.directory}")
    return 0


def run_called(name: str) -> Run | None:
    """Return the run with a directory, or of a controller's pid; None if there is none."""
    for run in runs_below():
        if name in (run.directory, os.path.basename(run.directory), str(run.controller)):
            return run
    return None


def _dump_process(pid: int) -> int:
    pids = _below(pid)
    if not pids:
        print(f"no process {pid}")
        return 1
    run = next((run for run in runs_below() if pid in run.processes()), None)
    _print(run, tuple(pids), f"process {pid}")
    return 0


def _below(pid: int) -> list[int]:
    if not os.path.exists(f"/proc/{pid}"):
        return []
    return [pid, *(below for child in children(pid) for below in _below(child))]


def _print(run: Run | None, pids: tuple[int, ...], what: str) -> None:
    pages = collect(tuple(pid for pid in pids if pid != os.getpid()), run.directory if run is not None else "")
    print(page_of(pages, what))
