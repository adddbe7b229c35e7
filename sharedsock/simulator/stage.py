"""The stage of one run: its players, what was found, what each process held before anything began.

The far peer is an actor like the others, with plain sockets; all actors start before there is any socket, so that
none of them has a copy of one by a fork. The run has a registry of its own, found by its own runtime directory and
started, as everywhere, by the first share.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final, TypeVar

import sharedsock as ss
from sharedsock.registry.runtime import TREE_VARIABLE, new_directory_name
from sharedsock.simulator import player
from sharedsock.simulator.invariants import ProcessResidue, bound_under, look_at, slack
from sharedsock.simulator.scenario import Finding, Options, PromiseBroken
from sharedsock.simulator.schedule import Schedule
from sharedsock.simulator.transports import CLAUSES, TRANSPORTS, Clause
from sharedsock.testing.actors import Actor
from sharedsock.testing.commands import Belongings
from sharedsock.testing.company import Actors
from sharedsock.testing.launch import start_helpers
from sharedsock.testing.observation import ThreadFacts
from sharedsock.testing.outcomes import ActorRaised
from sharedsock.testing.pending import ActorDied, ActorTimeout, Event, Pending

__all__ = ["LISTENER", "PEER", "STREAM", "UNREAD", "Stage", "StageError", "open_stage"]

PEER: Final = "peer"
STREAM: Final = "stream"
"""The connected socket all holders share, under this name in each of them; the peer's end has it too."""
LISTENER: Final = "listener"
UNREAD: Final = "unread"
"""A second connection, whose peer takes nothing: there where a linger with a time is to run out."""
_CLAUSES: Final = {clause.name: clause for clause in CLAUSES}
_PATH_ROOM: Final = 107  # sockaddr_un.sun_path on Linux, less the final NUL
_Found = TypeVar("_Found")


class StageError(RuntimeError):
    """A run could not begin; nothing was observed."""


class Stage:
    """Everything the promises of a run work with.

    Attributes:
        holding: who holds the sockets now, in the order of leaving.
        lacking: the clauses of the promise being checked that have no meaning here, each with the reason.
    """

    def __init__(self, options: Options, actors: Actors, directory: str, paths: str) -> None:
        self.options = options
        self.schedule = Schedule.of(options)
        self.transport = TRANSPORTS[options.transport]
        self.actors = actors
        self.directory = directory
        self.holding = self.schedule.order
        self.findings: list[Finding] = []
        self.lacking: list[tuple[Clause, str]] = []
        self.marks: list[Event] = []
        self.facts: dict[str, Any] = {}
        self.waiting: dict[tuple[str, str], Pending] = {}
        self.slack = slack()
        self._paths = paths
        self._clause = ""
        start_helpers(actors.start_method)
        self.before_start = look_at(os.getpid())
        actors.start(*self.schedule.holders, PEER)
        for name in self.schedule.holders:
            actors[name].do("call_with", _warm_up)
        # The players' own threads stay to the end, so they are there before the first look.
        for name, threads in (*((name, self.blocking) for name in self.schedule.holders), (PEER, ("main", "watch"))):
            for thread in threads:
                actors[name].thread(thread).call(os.getpid).value()
        self.facts["registry_pid"] = actors[self.schedule.maker].do("call_with", player.registry_pid)
        self.before = self.look()

    def __getitem__(self, name: str) -> Actor:
        return self.actors[name]

    @property
    def peer(self) -> Actor:
        """The far end of the connection, which shares nothing."""
        return self.actors[PEER]

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the threads that block in recv in every holder."""
        return tuple(f"recv-{place + 1}" for place in range(self.options.threads))

    @property
    def blocking(self) -> tuple[str, ...]:
        """The names of all threads that block, in every holder."""
        return (*self.readers, "accept") if self.transport.has_connections else self.readers

    @property
    def shared(self) -> tuple[str, ...]:
        """The names of the sockets all holders share."""
        if not self.transport.has_connections:
            return (STREAM,)
        return (STREAM, LISTENER, UNREAD) if self.lingers else (STREAM, LISTENER)

    @property
    def lingers(self) -> bool:
        """Whether the last close waits: linger with a time, where that means anything, and somebody left to wait."""
        return self.transport.is_tcp and self.options.linger_kind == "t" and not self.schedule.ends_with_kill

    def address(self, name: str) -> Any:
        """Return an address to bind: any port on loopback, or a path by this name."""
        return (self.transport.host, 0) if self.transport.host else os.path.join(self._paths, name)

    def begin(self) -> None:
        """Have a clean sheet for the next promise."""
        self.findings, self.lacking, self._clause = [], [], ""

    def asks(self, name: str) -> bool:
        """Report whether a clause has a meaning here, and note it as lacking if not; findings to come belong to it."""
        clause = _CLAUSES[name]
        self._clause = ""
        if clause.linger not in ("", self.options.linger_kind):
            return False
        reason = clause.lacking.get(self.transport.name, "")
        if not reason and clause.linger == "t" and self.schedule.ends_with_kill:
            reason = f"{self.schedule.last} is killed: nobody is left to wait"
        if reason:
            if (clause, reason) not in self.lacking:
                self.lacking.append((clause, reason))
            return False
        self._clause = name
        return True

    def expect(
        self,
        what: str,
        observed: object,
        rule: str,
        holds: bool = True,
        measured_s: float | None = None,
        bound_s: float | None = None,
        *,
        beyond_s: float = 0.0,
    ) -> None:
        """Write down one finding; a time over its bound breaks the promise as a false condition does.

        Args:
            beyond_s: time that has to pass anyway; the bound is for what comes beyond it.

        Raises:
            PromiseBroken: it does not hold.
        """
        if bound_s is not None:
            self.slack = max(self.slack, slack())
            bound_s = beyond_s + bound_under(self.slack, bound_s)
        in_time = measured_s is None or bound_s is None or measured_s <= bound_s
        found = Finding(what, str(observed), rule, holds and in_time, measured_s, bound_s, self._clause)
        self.findings.append(found)
        if not holds:
            raise PromiseBroken(f"{what}: {observed}")
        if not in_time:
            raise PromiseBroken(f"{what}: took {measured_s:.3f} s, more than {bound_s:g} s")

    def leave(self, name: str) -> None:
        """Note that a holder has given the sockets up."""
        self.holding = tuple(one for one in self.holding if one != name)

    def mark(self, actor: str, kind: str, at_s: float) -> None:
        """Write down what the controller did to an actor as a whole."""
        self.marks.append(Event(actor, "", kind, at_s))

    def look(self) -> dict[str, ProcessResidue]:
        """Look at what every process of the run holds now: the actors that live, and the registry."""
        pids = {actor.name: actor.pid for actor in self.actors if actor.is_alive}
        if "registry_pid" in self.facts:
            pids["registry"] = self.facts["registry_pid"]
        return {name: look_at(pid) for name, pid in pids.items()}

    def wait_all_blocked(self, names: Collection[str]) -> dict[tuple[str, str], ThreadFacts]:
        """Wait until every blocking thread of these holders is blocked; return the looks that showed it."""
        return {(name, thread): self[name].wait_until_blocked(thread) for name in names for thread in self.blocking}

    def wait_until(self, ask: Callable[[], _Found], wanted: _Found, within_s: float) -> tuple[_Found, float]:
        """Ask again until the answer is the wanted one or the time is over; return the last, and when it came."""
        deadline_s = monotonic() + within_s
        while True:
            found = ask()
            now_s = monotonic()
            if found == wanted or now_s > deadline_s:
                return found, now_s

    def events(self) -> list[Event]:
        """Return everything that happened up to now, in the order of time."""
        every = [*self.marks, *(event for actor in self.actors for event in actor.events)]
        return sorted(every, key=lambda event: event.at_s)


def _warm_up(has: Belongings) -> None:
    """Share a socket with ourselves, so that what a process opens once and keeps is there before the first look."""
    left, right = ss.socketpair()
    with left, right, ss.fromshare(left.share(os.getpid())):
        pass


def _set_up(options: Options, actors: Actors, directory: str, paths: str) -> Stage:
    try:
        return Stage(options, actors, directory, paths)
    except (ActorRaised, ActorDied, ActorTimeout, OSError) as error:
        raise StageError(f"the players could not be started: {error}") from error


def _make_paths(options: Options) -> str:
    """Make the directory for the paths of Unix sockets; "" where the transport has none.

    Raises:
        StageError: the transport cannot be had on this machine.
    """
    transport = TRANSPORTS[options.transport]
    if not transport.is_available():
        raise StageError(f"this machine has no {transport.title} on loopback")
    if transport.host:
        return ""
    paths = tempfile.mkdtemp(prefix="sharedsock-run-")
    if len(os.fsencode(os.path.join(paths, LISTENER))) > _PATH_ROOM:
        os.rmdir(paths)
        raise StageError(f"TMPDIR is too long for the path of a Unix socket: {paths}")
    return paths


@contextmanager
def open_stage(options: Options) -> Iterator[Stage]:
    """Start the players of a run, and end them all at the end of the block.

    Raises:
        StageError: not all of them could be started; none is left.
    """
    paths = _make_paths(options)
    directory = new_directory_name()
    environment = {TREE_VARIABLE: directory, "SHAREDSOCK_REGISTRY": None}
    try:
        actors = Actors(options.start_method, environment=environment)
        try:
            yield _set_up(options, actors, directory, paths)
        except BaseException:
            actors.kill()
            raise
        with suppress(ActorDied):  # the promise of an orderly end has been checked, or an earlier one is broken
            actors.close()
    finally:
        if paths:
            shutil.rmtree(paths)
