"""What the kernel says about processes and threads, read from /proc: evidence from outside, which asks nobody.

Nothing here waits for a condition or disturbs what it looks at. A thread that is asleep in one system call
from one look to the next has made none meanwhile: same call, same stack pointer, same count of switches.
"""

from __future__ import annotations

import os
import platform
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

__all__ = [
    "TcpFacts",
    "ThreadFacts",
    "children",
    "files",
    "runnable",
    "socket_inodes",
    "tcp_sockets",
    "thread_facts",
    "threads",
]

_ON_X86: Final = {
    7: "poll",
    23: "select",
    45: "recvfrom",
    202: "futex",
    232: "epoll_wait",
    270: "pselect6",
    271: "ppoll",
    281: "epoll_pwait",
    441: "epoll_pwait2",
}
_GENERIC: Final = {22: "epoll_pwait", 72: "pselect6", 73: "ppoll", 98: "futex", 207: "recvfrom", 441: "epoll_pwait2"}
_NAMES: Final = _ON_X86 if platform.machine() == "x86_64" else _GENERIC
_MOST_LOOKS: Final = 10
WAITS: Final = frozenset({"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2"})


@dataclass(frozen=True, slots=True)
class ThreadFacts:
    """One look at one thread. Two equal looks, both asleep: it made no system call in between.

    Attributes:
        state: "S" asleep, "R" running, "T" stopped ….
        call: the name of the system call it is in, its number as text where we have no name, "" where none is seen.
        where: the call's arguments, stack and instruction pointer, as the kernel prints them.
        switches: how often it gave up the processor by itself, and how often it was taken from it.
        ticks: processor time used, in clock ticks.
    """

    state: str
    call: str
    where: str
    switches: tuple[int, int]
    ticks: int

    @property
    def is_waiting(self) -> bool:
        """Report whether it sleeps in a system call that waits for descriptors."""
        return self.state in ("S", "T") and self.call in WAITS


def thread_facts(pid: int, tid: int) -> ThreadFacts:
    """Look at one thread.

    The kernel answers in three files, and what is returned is of one moment: a thread that fell asleep between two of
    them is looked at again; one that keeps doing so, several times at most.

    Raises:
        ProcessLookupError: there is no such thread.
    """
    base = f"/proc/{pid}/task/{tid}/"
    try:
        switches = _switches(base)
        for _ in range(_MOST_LOOKS):
            name, where = _call(base)
            stat = _read(base + "stat").rpartition(")")[2].split()
            before, switches = switches, _switches(base)
            if switches == before:
                break
    except OSError as error:
        raise ProcessLookupError(f"no thread {tid} in process {pid}") from error
    return ThreadFacts(stat[0], name, where, switches, int(stat[11]) + int(stat[12]))


def _switches(base: str) -> tuple[int, int]:
    status = dict(line.split(":\t", 1) for line in _read(base + "status").splitlines() if ":\t" in line)
    return int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"])


def _call(base: str) -> tuple[str, str]:
    """Return the system call a thread is in, and where."""
    try:
        call, _, where = _read(base + "syscall").strip().partition(" ")
    except OSError:
        # A kernel without CONFIG_HAVE_ARCH_TRACEHOOK, or ptrace scope: the kernel function it sleeps in says it too.
        return _from_channel(base), ""
    return _NAMES.get(int(call), call) if call.isdigit() else ("" if call == "running" else call), where


def _from_channel(base: str) -> str:
    try:
        channel = _read(base + "wchan")
    except OSError:
        return ""
    return "epoll_wait" if "ep_poll" in channel or "epoll" in channel else "poll" if "poll" in channel else ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def threads(pid: int) -> tuple[int, ...]:
    """Return the native ids of a process's threads, ascending; empty once it is gone."""
    with suppress(OSError):
        return tuple(sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")))
    return ()


def runnable() -> int:
    """Return how many threads of the whole machine run or want to at this moment, ourselves included; 0 if unknown."""
    with suppress(OSError):
        return int(_read("/proc/loadavg").split()[3].partition("/")[0])
    return 0


def children(pid: int) -> tuple[int, ...]:
    """Return the direct children of a process, zombies too, ascending."""
    found: set[int] = set()
    for tid in threads(pid):
        with suppress(OSError):
            found.update(int(child) for child in _read(f"/proc/{pid}/task/{tid}/children").split())
    return tuple(sorted(found))


def files(pid: int) -> dict[int, str]:
    """Return what each file number of a process is, as the kernel names it: "socket:[12345]", a path …"""
    found = {}
    directory = f"/proc/{pid}/fd"
    with suppress(OSError):  # the process has ended: it has no files
        for name in os.listdir(directory):
            with suppress(OSError):  # closed since the listing; also the listing's own number, if we look at ourselves
                found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


def socket_inodes(pid: int) -> frozenset[int]:
    """Return the inodes of all sockets a process holds: one inode is one underlying socket, whoever holds it."""
    return frozenset(int(name[8:-1]) for name in files(pid).values() if name.startswith("socket:["))


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """A TCP socket as /proc/net/tcp and tcp6 show it.

    Attributes:
        state: 1 ESTABLISHED, 4 FIN_WAIT1, 10 LISTEN …
        unsent_bytes: queued and not acknowledged by the peer's kernel.
        unread_bytes: arrived and not read.
        inode: 0 once no process holds it.
    """

    local_port: int
    remote_port: int
    state: int
    unsent_bytes: int
    unread_bytes: int
    inode: int


def tcp_sockets(family: int = socket.AF_INET) -> tuple[TcpFacts, ...]:
    """Return the TCP sockets of this network namespace, those of IPv4 or of IPv6."""
    found = []
    for line in _read("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp").splitlines()[1:]:
        fields = line.split()
        local, remote, state, queues = fields[1:5]
        unsent, _, unread = queues.partition(":")
        found.append(
            TcpFacts(
                local_port=int(local.partition(":")[2], 16),
                remote_port=int(remote.partition(":")[2], 16),
                state=int(state, 16),
                unsent_bytes=int(unsent, 16),
                unread_bytes=int(unread, 16),
                inode=int(fields[9]),
            )
        )
    return tuple(found)
