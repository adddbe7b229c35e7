"""WHO IS ALIVE: process instances, watched by pidfd, and what may become a ticket's target.

A holder is a process instance, not a pid (rule 9). Its pidfd is taken when its connection is accepted (SO_PEERPIDFD,
which names who connected, even if it is dead by now; else pidfd_open, then a look whether the connection still stands).
Death is the pidfd becoming readable: not end-of-file on the channel, which comes first in some kills while the dying
process still holds sockets, and not kill(pid, 0), which a zombie answers. It works for processes that are nobody's or
somebody else's children, and reaps none (F-99, F-101).

While the pidfd of a watched process is not readable its pid means that very process: nobody else can have the number.
So the same pid is the same `ProcessId` as long as it lives, and a new one as soon as it has died (F-19, F-100); deaths
found on the way are left in `take_dead()`, to be reaped before the new instance is used.

Where pidfds are missing the same questions are asked of /proc at intervals, else of kill(pid, 0): `needs_polling`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from sharedsock.model import trace
from sharedsock.model.errors import TicketError, from_errno
from sharedsock.model.identity import ProcessId

__all__ = ["Credentials", "Liveness", "ProcessStat", "System", "peer_credentials"]

_SO_PEERPIDFD: Final = 77  # Linux 6.5; the socket module has no name for it before CPython 3.15
_UCRED: Final = struct.Struct("3i")


class Credentials(NamedTuple):
    """Who connected, by the kernel's word (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What /proc says of a pid at one moment.

    Attributes:
        image: where its program begins and where its stack does; another after exec, None where it cannot be seen
            (the process is dying, or between two programs).
    """

    name: str
    ended: bool
    start_ticks: int
    image: tuple[int, int] | None


def peer_credentials(channel: socket.socket) -> Credentials:
    """Return who connected; the pid is 0 for a process this PID namespace cannot see."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(raw))


class System:
    """The system's answers about processes; tests replace single methods (another uid, a reused pid, no pidfd)."""

    def euid(self) -> int:
        """Return the uid whose processes are ours."""
        return os.geteuid()

    def pidfd(self, pid: int) -> int | None:
        """Return a pidfd (close-on-exec), None where the system has none.

        Raises:
            ProcessLookupError: no such process.
        """
        try:
            return os.pidfd_open(pid)
        except AttributeError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM, errno.ENODEV):  # old kernel, or a filter forbids the call
                return None
            if error.errno in (errno.EINVAL, errno.ENOENT):  # the number of a thread (ENOENT: Linux 6.18)
                raise ProcessLookupError(errno.ESRCH, "no such process") from None
            raise

    def peer_pidfd(self, channel: socket.socket) -> int | None:
        """Return a pidfd of the process that connected, None where the system cannot say.

        Raises:
            ProcessLookupError: it is gone.
        """
        try:
            return channel.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None

    def is_readable(self, fd: int) -> bool:
        """Say whether a pidfd reports the end of its process."""
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))

    def stat(self, pid: int) -> ProcessStat | None:
        """Return what /proc says, None: no such process, or no /proc."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                raw = file.read(4096)
        except OSError:
            return None
        name, _, rest = raw.partition(b"(")[2].rpartition(b")")  # the name may have parentheses of its own
        fields = rest.split()
        # proc_pid_stat(5), numbered from 3 on here: 3 state, 20 num_threads, 22 starttime, 26 startcode, 28 startstack.
        # A leader that has ended is shown as Z while other threads of the process live on.
        ended = fields[0] in (b"Z", b"X", b"x") and int(fields[17]) <= 1
        image = (int(fields[23]), int(fields[25]))
        return ProcessStat(name.decode("utf-8", "replace"), ended, int(fields[19]), image if all(image) else None)

    def uid(self, pid: int) -> int | None:
        """Return the effective uid of a process, None: gone, or not to be found out; -1 for the number of a thread."""
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                for line in file:
                    if line.startswith(b"Tgid:") and int(line.split()[1]) != pid:
                        return -1
                    if line.startswith(b"Uid:"):
                        return int(line.split()[2])
        except OSError:
            pass
        return None

    def can_signal(self, pid: int) -> bool | None:
        """Say whether a process of that number exists and is ours (a zombie may be); None: it is another user's."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return None
        return True

    def namespace(self, pid: int) -> str | None:
        """Return the name of a process's PID namespace, None where it cannot be seen."""
        try:
            return os.readlink(f"/proc/{pid}/ns/pid")
        except OSError:
            return None


@dataclass(slots=True)
class _Watch:
    process: ProcessId
    pidfd: int | None
    is_neighbour: bool = False  # seen in our PID namespace, which it cannot leave


class Liveness:
    """The processes a registry watches, for one thread: `on_watch` and `on_forget` tell it the pidfds to select on, and
    when one is readable it asks `notice`.

    Args:
        own_pid: the registry's own, which is nobody's target.

    Attributes:
        polled: how many are watched without a pidfd, so that somebody has to ask now and then.
    """

    def __init__(self, system: System | None = None, own_pid: int | None = None) -> None:
        self.system = system or System()
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._watched: dict[int, _Watch] = {}  # by pid: of one pid, one instance is alive
        self.polled = 0
        self._dead: list[ProcessId] = []
        self.on_watch: Callable[[ProcessId, int], None] = lambda process, pidfd: None
        self.on_forget: Callable[[int], None] = lambda pidfd: None  # before the number is closed

    def watch_peer(self, channel: socket.socket, pid: int) -> ProcessId:
        """Watch the process at the other end of a connection that was just accepted; return which one it is.

        Raises:
            ProcessLookupError: it is gone.
            OSError: EMFILE.
        """
        fd = self.system.peer_pidfd(channel)
        if fd is None:
            fd = self.system.pidfd(pid)
            # The pid may have been given to another process between connect() and here. Not if the connection is still
            # open: the process that made it then lived when the pidfd was taken.
            try:
                if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    if fd is not None:
                        os.close(fd)
                    raise ProcessLookupError(errno.ESRCH, "the peer is gone")
            except BlockingIOError:
                pass
        return self._watch(pid, fd)

    def watch_target(self, pid: int) -> ProcessId:
        """Watch a process that a ticket or a lend is for; return which one it is (DUP-6, F-10).

        Raises:
            TicketError: dead, a zombie, another user's, or the registry itself.
            OSError: EMFILE.
        """
        known = self._watched.get(pid)
        if known is not None and not self._ended(known):  # looked at when it was first watched
            return known.process
        if pid <= 0 or pid >= 1 << 31 or not self._may_be_target(pid):
            raise TicketError(f"process {pid} cannot be the target of a ticket: not running, or not of this user")
        try:
            fd = self.system.pidfd(pid)
        except ProcessLookupError:
            raise TicketError(f"process {pid} is not running") from None
        try:
            return self._watch(pid, fd)
        except ProcessLookupError:
            raise TicketError(f"process {pid} is not running") from None

    def _may_be_target(self, pid: int) -> bool:
        if pid == self._own_pid:
            return False
        uid = self.system.uid(pid)
        if uid is None:
            return bool(self.system.can_signal(pid))
        return uid == self.system.euid()

    def _watch(self, pid: int, fd: int | None) -> ProcessId:
        """Watch what a fresh pidfd names. The number is ours from here on, whatever happens."""
        try:
            known = self._watched.get(pid)
            if known is not None:
                if not self._ended(known):
                    return known.process
                self._bury(known)
            stat = self.system.stat(pid)
            process = ProcessId(pid, 0 if stat is None else stat.start_ticks)
            watch = _Watch(process, fd)
            if self._ended(watch) or (stat is None and fd is None and self.system.can_signal(pid) is False):
                raise ProcessLookupError(errno.ESRCH, f"process {pid} is not running")
            self._watched[pid] = watch
            self.polled += watch.pidfd is None
            fd = None
            if watch.pidfd is not None:
                self.on_watch(process, watch.pidfd)
            return process
        finally:
            if fd is not None:
                os.close(fd)

    def _ended(self, watch: _Watch) -> bool:
        if watch.pidfd is not None:
            return self.system.is_readable(watch.pidfd)
        stat = self.system.stat(watch.process.pid)
        if stat is None:
            return os.path.isdir("/proc/self") or self.system.can_signal(watch.process.pid) is False
        return stat.ended or stat.start_ticks != watch.process.start_ticks

    def _bury(self, watch: _Watch) -> None:
        self.forget(watch.process)
        self._dead.append(watch.process)

    def take_dead(self) -> list[ProcessId]:
        """Return the deaths found since the last time; they are watched no more."""
        dead, self._dead = self._dead, []
        return dead

    def notice(self, process: ProcessId) -> bool:
        """Look at one watched process; a death goes to `take_dead()`. Reports "reg.death_seen" to the Probe."""
        watch = self._watched.get(process.pid)
        if watch is None or watch.process != process or not self._ended(watch):
            return False
        trace.hit("reg.death_seen", pid=process.pid)
        self._bury(watch)
        return True

    def notice_all(self, *, polled_only: bool = False) -> None:
        """Look at every watched process, or only at those without a pidfd."""
        for watch in list(self._watched.values()):
            if watch.pidfd is None or not polled_only:
                self.notice(watch.process)

    def forget(self, process: ProcessId) -> None:
        """Watch a process no more."""
        watch = self._watched.get(process.pid)
        if watch is not None and watch.process == process:
            del self._watched[process.pid]
            self.polled -= watch.pidfd is None
            if watch.pidfd is not None:
                self.on_forget(watch.pidfd)
                os.close(watch.pidfd)

    def pidfd_of(self, process: ProcessId) -> int | None:
        """Return the pidfd of a watched process, None: not watched, or the system has none."""
        watch = self._watched.get(process.pid)
        return watch.pidfd if watch is not None and watch.process == process else None

    def watched(self) -> Iterator[ProcessId]:
        """Yield every watched process; forgetting one meanwhile is allowed."""
        yield from [watch.process for watch in self._watched.values()]

    def needs_polling(self) -> bool:
        """Say whether some process is watched without a pidfd, so that somebody has to ask now and then."""
        return self.polled > 0

    def describe(self, pid: int) -> ProcessStat | None:
        """Return what /proc says of a pid now."""
        return self.system.stat(pid)

    def check_same_namespace(self, pid: int) -> None:
        """Refuse a process whose pid numbers are not ours: what it calls 42 may be another process here (F-27).

        Raises:
            OSError: EINVAL.
        """
        watch = self._watched.get(pid)
        if watch is not None and watch.is_neighbour:
            return
        theirs, ours = self.system.namespace(pid), self.system.namespace(self._own_pid)
        if theirs is not None and ours is not None and theirs != ours:
            raise from_errno(errno.EINVAL, "this process counts pids in a namespace of its own; use share(None)")
        if watch is not None:
            watch.is_neighbour = True

    def close(self) -> None:
        """Close every pidfd."""
        for process in self.watched():
            self.forget(process)
