"""Who waits for whom: blocked threads as a fact, threads held at probe points, points passed in a given order.

Nothing here guesses a delay. `wait_until_blocked` is true when two independent things are: the actor's own table
lists the thread as waiting, and the kernel shows it asleep in a call that waits for descriptors.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from sharedsock.testing.faults import Fault, Hold
from sharedsock.testing.observation import ThreadFacts, thread_facts

if TYPE_CHECKING:
    from sharedsock.testing.actors import Actor

__all__ = ["Barrier", "Reached", "in_order", "wait_until_asleep", "wait_until_blocked"]

# Between "registered" and "asleep" lie a few instructions of the thread: nothing announces the end of that gap.
_LOOK_AGAIN_S = 0.001

Reached = tuple[str, float]
"""A thread's name, and when (monotonic) it was held."""


class Barrier:
    """A held point in one actor. As a context manager it releases at the end, whatever happens."""

    def __init__(self, actor: Actor, fault: Fault) -> None:
        self._actor = actor
        self.number = actor.next_number()
        self.fault = Fault(fault.point, Hold(self.number), fault.thread, fault.kind, fault.nth, fault.count)
        self.reached: list[Reached] = []
        self._is_open = False
        actor.arm_barrier(self)

    def __enter__(self) -> Barrier:
        return self

    def __exit__(self, *error: object) -> None:
        if self._actor.is_alive:
            self.release()

    def wait_reached(self, count: int = 1, *, thread: str | None = None, timeout_s: float | None = None) -> Reached:
        """Wait until `count` threads (or the named thread) have been held here; return the last of them.

        Raises:
            ActorTimeout: nobody came in time; it carries the actor's stacks.
        """

        def come() -> list[Reached]:
            return [one for one in self.reached if thread in (None, one[0])]

        self._actor.wait_for(lambda: len(come()) >= count, f"{self.fault.point} to be reached", timeout_s)
        return come()[count - 1]

    def release(self) -> None:
        """Let whoever is held go on, and hold nobody any more; a second release does nothing."""
        if not self._is_open:
            self._is_open = True
            self._actor.disarm(self.number)


def wait_until_blocked(actor: Actor, thread: str, timeout_s: float | None = None) -> ThreadFacts:
    """Wait until a thread's operation is registered as waiting and the kernel shows it asleep in its wait.

    Returns:
        The look that showed it; a second, equal look later shows that it made no system call in between.

    Raises:
        ActorIdle: its commands have ended instead.
        ActorTimeout: it did not block in time; carries the stacks.
    """
    deadline_s = monotonic() + (actor.timeout_s if timeout_s is None else timeout_s)
    what = f"thread {thread} to block"
    while True:
        if actor.kinds_waiting(thread):
            facts = thread_facts(actor.pid, actor.tid(thread))
            # Still registered after the look: the look was not at the wait before the last wake-up.
            if facts.is_waiting and actor.kinds_waiting(thread):
                return facts
        actor.fail_idle(thread)
        actor.pump(min(deadline_s, monotonic() + _LOOK_AGAIN_S))
        if monotonic() >= deadline_s:
            actor.fail_waiting(what)


def wait_until_asleep(actor: Actor, thread: str, timeout_s: float | None = None) -> ThreadFacts:
    """Wait until the kernel shows a thread asleep in poll, select or epoll; for threads that use plain sockets.

    Raises:
        ActorIdle: its commands have ended instead.
        ActorTimeout: it did not fall asleep in time; carries the stacks.
    """
    deadline_s = monotonic() + (actor.timeout_s if timeout_s is None else timeout_s)
    while not (facts := thread_facts(actor.pid, actor.tid(thread))).is_waiting:
        actor.fail_idle(thread)
        actor.pump(min(deadline_s, monotonic() + _LOOK_AGAIN_S))
        if monotonic() >= deadline_s:
            actor.fail_waiting(f"thread {thread} to sleep in a wait")
    return facts


class in_order:  # reads as a statement: with in_order((a, "op.ready"), (b, "close.marked")) as order:
    """Have points passed in the order given: each thread is held at its point until all before it have gone on.

    Every point is armed on entry; trigger the calls inside the block, `order.run()` lets them through one by one.
    """

    def __init__(self, *steps: tuple[Actor, str] | tuple[Actor, str, str]) -> None:
        self._steps = steps
        self._barriers: list[Barrier] = []

    def __enter__(self) -> in_order:
        for actor, point, *thread in self._steps:
            self._barriers.append(Barrier(actor, Fault(point, Hold(0), thread[0] if thread else None)))
        return self

    def run(self, timeout_s: float | None = None) -> tuple[Reached, ...]:
        """Wait for each point in turn and let it go on; return who came when."""
        passed = []
        for barrier in self._barriers:
            passed.append(barrier.wait_reached(timeout_s=timeout_s))
            barrier.release()
        return tuple(passed)

    def __exit__(self, *error: object) -> None:
        for barrier in self._barriers:
            barrier.__exit__(*error)
