"""The merged page: every process of a run, every thread's stack, what waits, and who waits for whom.

Built from outside, by whoever is not stuck. Stacks and pending operations come from the processes that answer (see
`stacks`); of all the others, programs without Python for instance, the kernel tells what each thread sleeps in. Who
waits for whom is read from the kernel as well: the other end of a pipe or a connection, the child that is waited for.
A thread that waits for a lock is shown with its stack; nobody can tell who has a lock.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sharedsock.kernel.diagnosis import unix_peers
from sharedsock.testing.observation import ThreadFacts, files, thread_facts, threads
from sharedsock.testing.runs import Run
from sharedsock.testing.stacks import Look, look_at

__all__ = ["ProcessPage", "Wait", "collect", "page_of", "write_page"]

# Calls whose first argument is the number that is waited on, or the process.
_ON_X86: Final = {"0": "read", "43": "accept", "45": "recvfrom", "47": "recvmsg", "61": "wait4", "288": "accept4"}
_GENERIC: Final = {"63": "read", "202": "accept", "207": "recvfrom", "212": "recvmsg", "242": "accept4", "260": "wait4"}
_CALLS: Final = _ON_X86 if platform.machine() == "x86_64" else _GENERIC
_ESTABLISHED: Final = 1
_RULE: Final = "=" * 8


@dataclass(frozen=True, slots=True)
class Wait:
    """One thread that waits for something, and the processes that could end it.

    Attributes:
        what: the call and what it is on: "recv on 127.0.0.1:5000 -> 127.0.0.1:6000".
        on: the pids that have the other end; empty where that is unknown.
    """

    pid: int
    thread: str
    what: str
    on: tuple[int, ...] = ()


@dataclass(slots=True)
class ProcessPage:
    """One process on the page."""

    pid: int
    parent: int
    command: str
    look: Look
    threads: list[tuple[int, ThreadFacts]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is in the run, or the program it runs."""
        return str(self.look.known.get("name") or os.path.basename(self.command.partition(" ")[0]) or "?")


def write_page(run: Run, reason: str) -> str:
    """Return the whole page of a run as text."""
    pids = tuple(pid for pid in run.processes() if pid != os.getpid())
    return page_of(collect(pids, run.directory), reason)


def collect(pids: tuple[int, ...], directory: str) -> list[ProcessPage]:
    """Look at processes: ask those that answer, read of the others what the kernel tells."""
    looks = look_at(pids, directory)
    pages = []
    for pid in pids:
        with suppress(OSError, IndexError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            page = ProcessPage(pid, parent, _command(pid), looks[pid])
            for tid in threads(pid):
                with suppress(ProcessLookupError):
                    page.threads.append((tid, thread_facts(pid, tid)))
            pages.append(page)
    ends = _Ends(pages)
    for page in pages:
        page.waits = list(_waits(page, ends))
    return pages


def page_of(pages: list[ProcessPage], reason: str) -> str:
    """Return the page of processes that have been looked at."""
    names = {page.pid: page.name for page in pages}
    lines = ["", f"{_RULE} sharedsock: {reason} {_RULE}", "", "who waits for whom:"]
    waits = [wait for page in pages for wait in page.waits]
    for wait in waits:
        whom = ", ".join(f"{names.get(pid, '?')} (process {pid})" for pid in wait.on)
        lines.append(
            f"  {names[wait.pid]} (process {wait.pid}) thread {wait.thread}: {wait.what}"
            + (f"  waits for {whom}" if whom else "")
        )
    if not waits:
        lines.append("  no call that waits for another process is known")
    for page in pages:
        lines += ["", *_of_process(page)]
    return "\n".join([*lines, "", f"{_RULE} end of the page: {len(pages)} processes {_RULE}", ""])


def _of_process(page: ProcessPage) -> Iterator[str]:
    doing = page.look.known.get("doing")
    yield f"process {page.pid} {page.name}, child of {page.parent}: {page.command[:200]}"
    if doing:
        yield f"  at {doing}"
    for row in page.look.known.get("pending", ()):
        yield (
            f"  pending {row['since_s']:.1f} s: {_on(row)} in thread {row['thread']}, "
            f"descriptor {row['descriptor']} opened at {row['opened_at']}"
        )
    natives = page.look.known.get("natives", {})
    for tid, facts in page.threads:
        name = natives.get(str(tid), str(tid))
        yield f"  thread {name} ({tid}): {_STATES.get(facts.state, facts.state)}{_in(facts)}"
    if page.look.stacks:
        yield from (f"    {line}" for line in page.look.stacks.rstrip().splitlines())
    else:
        yield "    no stacks: not a process that answers"


_STATES: Final = {"S": "asleep", "R": "running", "T": "stopped", "D": "in the kernel", "Z": "ended, not waited for"}


def _in(facts: ThreadFacts) -> str:
    return f" in {_CALLS.get(facts.call, facts.call)}" if facts.state in ("S", "D") and facts.call else ""


def _on(row: dict[str, Any]) -> str:
    return f"{row['kind']} on {_address(row['local'])}" + (f" -> {_address(row['peer'])}" if row["peer"] else "")


def _address(address: Any) -> str:
    if isinstance(address, list) and len(address) > 1:
        return f"{address[0]}:{address[1]}"
    return str(address or "an unnamed socket")


def _waits(page: ProcessPage, ends: _Ends) -> Iterator[Wait]:
    pending = page.look.known.get("pending", ())
    for row in pending:
        yield Wait(page.pid, row["thread"], _on(row), ends.of_socket(row["inode"])[1])
    told = {row["thread_id"] for row in pending}
    natives = page.look.known.get("natives", {})
    for tid, facts in page.threads:
        call = _CALLS.get(facts.call)
        if tid in told or facts.state not in ("S", "D") or call is None:
            continue
        argument = int(facts.where.split()[0], 16) if facts.where else 0
        thread = natives.get(str(tid), str(tid))
        if call == "wait4":
            child = argument & 0xFFFFFFFF
            if child < 1 << 31:
                yield Wait(page.pid, thread, f"wait for process {child}", (child,))
            else:  # -1, or a group
                yield Wait(page.pid, thread, "wait for any child", ends.children_of(page.pid))
        else:
            what, on = ends.of_number(page.pid, argument)
            yield Wait(page.pid, thread, f"{call} on {what}", on)


class _Ends:
    """Who has the other end of what: the files of the processes on the page, and the kernel's tables of connections."""

    def __init__(self, pages: list[ProcessPage]) -> None:
        self._parents = {page.pid: page.parent for page in pages}
        self._files = {page.pid: files(page.pid) for page in pages}
        self._tcp = {inode: (local, remote) for local, remote, inode in _connections()}
        self._unix = unix_peers()

    def children_of(self, pid: int) -> tuple[int, ...]:
        """Return the children of a process that are on the page."""
        return tuple(child for child, parent in self._parents.items() if parent == pid)

    def _holders(self, target: str, besides: int = 0) -> tuple[int, ...]:
        return tuple(pid for pid, held in self._files.items() if pid != besides and target in held.values())

    def _writes(self, pid: int, target: str) -> bool:
        """Whether a process has a pipe open for writing: the mode of the link in /proc says so."""
        for number in (number for number, name in self._files[pid].items() if name == target):
            with suppress(OSError):
                if os.lstat(f"/proc/{pid}/fd/{number}").st_mode & 0o200:
                    return True
        return False

    def of_socket(self, inode: int) -> tuple[str, tuple[int, ...]]:
        """Return what a connected socket is, and who has the socket at its other end."""
        if inode in self._unix:
            return "a Unix socket", self._holders(f"socket:[{self._unix[inode]}]")
        if inode not in self._tcp:
            return "a socket", ()
        local, remote = self._tcp[inode]
        other = next((found for found, ports in self._tcp.items() if ports == (remote, local)), 0)
        return f"TCP port {local} -> {remote}", self._holders(f"socket:[{other}]")

    def of_number(self, pid: int, number: int) -> tuple[str, tuple[int, ...]]:
        """Return what a number of a process is, and who has the other end of it."""
        target = self._files.get(pid, {}).get(number, f"number {number}")
        if target.startswith("pipe:"):
            return target, tuple(other for other in self._holders(target, besides=pid) if self._writes(other, target))
        if target.startswith("socket:["):
            return self.of_socket(int(target[8:-1]))
        return target, ()


def _connections() -> Iterator[tuple[int, int, int]]:
    """Yield (local port, remote port, inode) of the established TCP connections."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                next(file)
                for line in file:
                    fields = line.split()
                    if int(fields[3], 16) == _ESTABLISHED:
                        ports = [int(fields[place].rpartition(":")[2], 16) for place in (1, 2)]
                        yield ports[0], ports[1], int(fields[9])


def _command(pid: int) -> str:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
        return " ".join(os.fsdecode(word).partition("\n")[0] for word in words)
    return ""
