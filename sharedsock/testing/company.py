"""A company of actors: starts them, hands them sockets, and ends them all, however it ends itself.

    with Actors() as actors:
        a, b = actors.share(connected)
        reading = b.thread("reader").recv(16)
        b.wait_until_blocked("reader")
        b.close()
        assert reading.outcome() == Aborted(10004)

Leaving the block ends the actors; so does the end of the controller's process, by whatever cause.
"""

from __future__ import annotations

import multiprocessing.util
import os
import select
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final

from sharedsock.testing.actors import Actor
from sharedsock.testing.launch import usable_start_method
from sharedsock.testing.pending import ActorDied, ActorTimeout

if TYPE_CHECKING:
    import sharedsock as ss

__all__ = ["Actors"]

_TIMEOUT_S: Final = 30.0


class Actors:
    """A company of actors; leaving the block ends them all, in order after success, by SIGKILL after an error.

    Args:
        start_method: "fork", "forkserver", "spawn", "exec"; None: multiprocessing's default. In a daemonic worker
            it is always "exec", as a daemonic process may have no children through multiprocessing.
        environment: variables the actors get; None removes one.
        timeout_s: seconds a wait for an actor takes at most, unless it says otherwise.
        is_watched: whether actors report every probe point they pass. False: they run as processes without us do, on
            the fast paths too, until a hold or a fault is asked for; `events` are outcomes only up to then.
    """

    def __init__(
        self,
        start_method: str | None = None,
        *,
        environment: Mapping[str, str | None] | None = None,
        timeout_s: float = _TIMEOUT_S,
        is_watched: bool = True,
    ) -> None:
        self.is_watched = is_watched
        self.start_method = usable_start_method(start_method)
        self.timeout_s = timeout_s
        self._environment = dict(environment or {})
        for name, value in os.environ.items():
            if name.startswith("SHAREDSOCK_"):
                self._environment.setdefault(name, value)
        self._all: dict[str, Actor] = {}
        # An interpreter that exits joins its children: without this it would wait for actors that wait for it.
        self._at_exit = multiprocessing.util.Finalize(self, _kill_all, args=(self._all,), exitpriority=100)

    def __enter__(self) -> Actors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def __iter__(self) -> Iterator[Actor]:
        return iter(tuple(self._all.values()))

    def __getitem__(self, name: str) -> Actor:
        return self._all[name]

    def start(self, *names: str) -> tuple[Actor, ...]:
        """Start actors by name, all at once; return when each of them takes commands."""
        for name in names:
            if name in self._all:
                raise ValueError(f"there is an actor {name!r} already")
            self._all[name] = Actor(name, self.start_method, self._environment, self.timeout_s, self.is_watched)
        started = tuple(self._all[name] for name in names)
        for actor in started:
            actor.wait_ready()
        return started

    def share(self, shared: ss.SharedSocket, *to: Actor, count: int = 2, on: str = "socket") -> tuple[Actor, ...]:
        """Hand a socket of this process to actors, by a ticket for each; without `to`, to `count` new ones."""
        if not to:
            taken = len(self._all)
            to = self.start(*(f"actor-{taken + place + 1}" for place in range(count)))
        for actor in to:
            actor.do("take", shared.share(actor.pid), on=on)
        return to

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float | None = None) -> None:
        """Take in what all actors send until a condition over it holds.

        Raises:
            ActorTimeout: it does not hold in time; carries the stacks of every actor.
        """
        deadline_s = monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            heard = sum(actor.heard for actor in self)
            if condition():
                return
            alive = [actor for actor in self if actor.is_alive]
            if monotonic() >= deadline_s or not alive:
                pages = "\n".join(f"actor {actor.name}:\n{actor.stacks()}" for actor in alive)
                raise ActorTimeout(f"waited in vain for {what}\n{pages}")
            if sum(actor.heard for actor in self) != heard:  # as in Actor.wait_for
                continue
            poll = select.poll()
            for actor in alive:
                poll.register(actor, select.POLLIN)
            poll.poll(max(0.0, deadline_s - monotonic()) * 1000)
            for actor in alive:
                actor.pump(0)

    def kill(self) -> None:
        """SIGKILL all actors and wait until they are dead and reaped."""
        self._at_exit()

    def close(self) -> None:
        """End all actors; those that are gone are no error, those that had to be killed are.

        Raises:
            ActorDied: an actor did not end when it was told to, or ended with an error; all are gone all the same.
        """
        failures = []
        for actor in self:
            if not actor.is_alive:
                actor.kill()  # dead already: takes its exit status
                continue
            try:
                actor.exit()
            except ActorDied as error:
                failures.append(error)
        self.kill()
        if failures:
            raise failures[0]


def _kill_all(actors: dict[str, Actor]) -> None:
    for actor in actors.values():
        actor.kill()
