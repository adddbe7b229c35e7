"""Any command under the check: what outlives it, whatever it is written in.

The command gets a run and a registry of its own, by its environment. When it has ended, what is still there of it is a
leak: processes with the run's name, the sockets and pipes they have, and what the registry counts, of programs that use
sharedsock (SHAREDSOCK_AUDIT has them announce what they open). What the command itself had open went with it; in Python
programs a ResourceWarning of something that was collected without close carries the place where it was opened.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from sharedsock.registry.connect import Registry
from sharedsock.testing.census import Reference
from sharedsock.testing.describing import name_of, of_reference
from sharedsock.testing.findings import Finding, Holding, ProcessLeak, SocketLeak
from sharedsock.testing.observation import files
from sharedsock.testing.origins import Recording
from sharedsock.testing.runs import RUN_VARIABLE, Run, begin_run
from sharedsock.testing.warden import send

__all__ = ["check_command"]

_AUDIT: Final = "SHAREDSOCK_AUDIT"
_PATH: Final = "PYTHONPATH"
_NOTING: Final = os.path.join(os.path.dirname(__file__), "noting")


def check_command(command: Sequence[str], *, grace_s: float = 1.0, kill: bool = False) -> tuple[int, list[Finding]]:
    """Run a command to its end; return its exit status (128 + n after a signal n) and what outlives it.

    Args:
        grace_s: how long what is left may take to go.
        kill: end the processes that are left, after they have been described.

    Raises:
        OSError: the command cannot be started.
    """
    before = {name: os.environ.get(name) for name in (RUN_VARIABLE, _AUDIT, _PATH)}
    run = begin_run()
    os.environ[_AUDIT] = "1"
    os.environ[_PATH] = os.pathsep.join([_NOTING, *filter(None, [before[_PATH]])])
    try:
        with Registry() as registry:
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has it as well, and ends; then we look
            try:
                code = subprocess.Popen(command).wait()
            finally:
                signal.signal(signal.SIGINT, handler)
            return (128 - code if code < 0 else code), _left(run, registry, grace_s, kill)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        run.remove_directory()


def _left(run: Run, registry: Registry, grace_s: float, kill: bool) -> list[Finding]:
    deadline_s = monotonic() + grace_s
    interval_ms = 1
    while (pids := _others(run)) or registry.client.sockets():
        if monotonic() >= deadline_s:
            break
        select.poll().poll(interval_ms)
        interval_ms = min(2 * interval_ms, 50)
    found: list[Finding] = []
    recording = Recording()
    for facts, _ in registry.client.sockets():
        for holder in registry.client.holders(facts.socket):
            found.append(of_reference(Reference(registry.runtime, facts.socket, facts.family, holder), recording))
    found += _sockets(pids)
    found += [ProcessLeak(f"process {pid}: {_command(pid)}", pid=pid, process=name_of(pid)) for pid in pids]
    if kill:
        for pid in pids:
            send(pid, signal.SIGKILL, run.has)
    return found


def _others(run: Run) -> list[int]:
    return [pid for pid in run.processes() if pid != os.getpid()]


def _sockets(pids: list[int]) -> list[Finding]:
    holders: dict[str, list[Holding]] = {}
    for pid in pids:
        for number, target in files(pid).items():
            if target.startswith("socket:"):
                holders.setdefault(target, []).append(Holding(pid, name_of(pid), f"number {number}"))
    return [
        SocketLeak(target, pid=rows[0].pid, process=rows[0].name, holders=tuple(rows))
        for target, rows in sorted(holders.items())
    ]


def _command(pid: int) -> str:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\0").replace(b"\0", b" ")).partition("\n")[0][:120]
    return "ended"
