"""What this process has at one moment, by identity: the raw material of a leak check.

Descriptors are known by what they refer to (a socket's or pipe's inode, a path), since a number is reused; threads are
the objects, since a name is not unique; processes are pid and start time. Registry references are known by holder and
descriptor, and only those of this process and its descendants count: other workers share the registry.

Nothing the kernel owns alone is seen (TIME_WAIT, orphaned connections), nor what belongs to the life of the process:
what multiprocessing keeps (resource tracker, fork server), what sharedsock keeps (its channel with the pipe and the
thread that go with it, wakers, dead file), and what the instruments themselves have open.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sharedsock.testing.loaded import loaded
from sharedsock.testing.origins import recordings

if TYPE_CHECKING:
    from sharedsock.model.identity import Holder

__all__ = ["Census", "Child", "Kept", "Reference", "Residue", "keep"]

_FILES = "/proc/self/fd"
_PAGE: Final = "/memfd:sharedsock-common"
_O_PATH: Final = getattr(os, "O_PATH", 0)


@dataclass(frozen=True, slots=True)
class Child:
    """A descendant, by pid and start time in clock ticks; `parent` was its parent when it was seen."""

    pid: int
    ticks: int
    parent: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference a registry counts, of this process or a descendant."""

    registry: str
    socket: int
    family: int
    holder: Holder


@dataclass(slots=True)
class Residue:
    """What is there in a later census and was not in an earlier one."""

    descriptors: dict[int, str] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.threads or self.children or self.references)


@dataclass(slots=True)
class Kept:
    """What the instruments keep for longer than a test; `references` are descriptors of this process, by their ids."""

    numbers: set[int] = field(default_factory=set)
    threads: set[threading.Thread] = field(default_factory=set)
    references: set[int] = field(default_factory=set)


_keepers: Final[list[Callable[[], Kept]]] = []


def keep(what: Callable[[], Kept]) -> Callable[[], None]:
    """Except something from every census from now on; return what takes the exception back."""
    _keepers.append(what)
    return lambda: _keepers.remove(what)


class Census:
    """One count, of the kinds asked for."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        wants_files = not kinds.isdisjoint(("sockets", "descriptors"))
        self.descriptors = _descriptors() if wants_files else {}
        self.threads = set(threading.enumerate()) if "threads" in kinds else set()
        self.children = _descendants(os.getpid()) if not kinds.isdisjoint(("processes", "references")) else set()
        self.references = _references(self.children) if "references" in kinds else {}

    def residue(self) -> Residue:
        """Return what this process has now and had not then."""
        now = Census(self.kinds)
        kept = _kept()
        wants = self.kinds.__contains__
        found = Residue()
        for number in _newer(self.descriptors, now.descriptors):
            target = now.descriptors[number]
            is_socket = target.startswith("socket:")
            if not wants("sockets" if is_socket else "descriptors") or number in kept.numbers:
                continue
            if not _belongs_to_the_package(number, target):
                found.descriptors[number] = target
        if wants("threads"):
            older = self.threads | kept.threads | _threads_of_the_package()
            found.threads = [one for one in now.threads - older if one.is_alive()]
        if wants("processes"):
            found.children = self._new_children(now.children)
        if wants("references"):
            new = [one for key, one in now.references.items() if key not in self.references]
            found.references = [
                one for one in new if one.holder.pid != os.getpid() or one.holder.descriptor not in kept.references
            ]
        return found

    def _new_children(self, now: set[Child]) -> list[Child]:
        """Return the processes that are new here. What an older one starts, a server its workers, is its own affair;
        the fork server's children are whoever's asked for them, so ours."""
        helpers = _of_multiprocessing()[1]
        starters = {os.getpid()} | helpers
        found: list[Child] = []
        fresh = now - self.children
        while more := [one for one in fresh if one.parent in starters and one not in found]:
            starters |= {one.pid for one in more}
            found += more
        return sorted((one for one in found if one.pid not in helpers), key=lambda one: one.pid)


def _newer(before: dict[int, str], now: dict[int, str]) -> list[int]:
    """Return the numbers of what is more than it was. What only moved to another number is no more than it was."""
    surplus = Counter(now.values())
    surplus.subtract(Counter(before.values()))
    found = []
    # Numbers that were something else before are the likelier ones.
    for number, target in sorted(now.items(), key=lambda item: (before.get(item[0]) == item[1], -item[0])):
        if surplus[target] > 0:
            surplus[target] -= 1
            found.append(number)
    return sorted(found)


def _descriptors() -> dict[int, str]:
    """Return what each file number refers to, as the kernel names it; by device and inode where there is no /proc."""
    found = {}
    if not os.path.isdir(_FILES):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                status = os.fstat(int(name))
                kind = "socket" if stat.S_ISSOCK(status.st_mode) else f"file:{status.st_dev}"
                found[int(name)] = f"{kind}:[{status.st_ino}]"
        return found
    for name in os.listdir(_FILES):
        with suppress(FileNotFoundError):  # the listing's own
            found[int(name)] = os.readlink(f"{_FILES}/{name}")
    return found


def _belongs_to_the_package(number: int, target: str) -> bool:
    """Whether a number is one that sharedsock keeps for itself, or part of a socket that is told by itself."""
    if target.startswith(_PAGE) or (target == "/" and _is_path_only(number)):
        return True
    if number in _of_multiprocessing()[0]:
        return True
    kernel = loaded("sharedsock.kernel.numbers")
    if kernel is not None and target.startswith("anon_inode:") and number in kernel.owned():
        return True
    registry = loaded("sharedsock.registry.numbers")
    return registry is not None and number in registry.noted_numbers()


def _threads_of_the_package() -> set[threading.Thread | None]:
    """Return the thread that sharedsock keeps as long as its channel."""
    service = loaded("sharedsock.descriptors.service")
    return set() if service is None else {service.kept_thread()}


def _is_path_only(number: int) -> bool:
    with suppress(OSError):
        with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as file:
            flags = next(line for line in file if line.startswith("flags:"))
        return bool(int(flags.split()[1], 8) & _O_PATH)
    return False


def _of_multiprocessing() -> tuple[set[int], set[int]]:
    """Return the numbers and pids that multiprocessing keeps for the life of a process; there is no public name."""
    numbers: set[Any] = set()
    pids: set[Any] = set()
    tracker = loaded("multiprocessing.resource_tracker")
    server = loaded("multiprocessing.forkserver")
    if tracker is not None:
        numbers.add(tracker._resource_tracker._fd)
        pids.add(tracker._resource_tracker._pid)
    if server is not None:
        numbers.add(server._forkserver._forkserver_alive_fd)
        pids.add(server._forkserver._forkserver_pid)
    return numbers - {None}, pids - {None}


def _kept() -> Kept:
    found = Kept()
    for keeper in _keepers:
        more = keeper()
        found.numbers |= more.numbers
        found.threads |= more.threads
        found.references |= more.references
    return found


def _descendants(pid: int) -> set[Child]:
    """Return the processes below one, zombies as well."""
    found: set[Child] = set()
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                    below = file.read().split()
                for child in map(int, below):
                    with suppress(OSError):
                        with open(f"/proc/{child}/stat", "rb") as file:
                            ticks = int(file.read().rpartition(b")")[2].split()[19])
                        found.add(Child(child, ticks, pid))
                        found |= _descendants(child)
    return found


def _is_known_place(place: str) -> bool:
    """Whether a recording has seen a socket of this process opened there."""
    return any(recording.of_place(place) is not None for recording in recordings())


def _references(children: set[Child]) -> dict[tuple[Any, ...], Reference]:
    """Return what the connected registries count for this process and those below it."""
    connect = loaded("sharedsock.registry.connect")
    if connect is None:
        return {}
    own = {os.getpid()} | {child.pid for child in children}
    found = {}
    for client in connect.connected_clients():
        with suppress(OSError):  # a registry that has gone counts nothing
            for facts, _ in client.sockets():
                holders = client.holders(facts.socket)
                # A ticket for whoever comes first names nobody. It is ours if we have the socket as well, or if the
                # socket was opened at a line where we have opened one: other workers may run that line too, but a
                # ticket of theirs that is redeemed within the grace period is no finding here.
                is_ours = any(holder.pid in own for holder in holders)
                for holder in holders:
                    is_open = holder.kind == "ticket" and not holder.pid
                    if holder.pid in own or (is_open and (is_ours or _is_known_place(holder.opened_at))):
                        key = (client.runtime, facts.socket, holder.pid, holder.descriptor, holder.kind, holder.since_s)
                        found[key] = Reference(client.runtime, facts.socket, facts.family, holder)
    return found
