"""Faults at named probe points: kill, raise, hold. A fault is a value; the actor it is armed in carries it out.

`ActorProbe` is the hook an actor installs into `model.trace`: it reports every point to the controller, for the
timeline, and meets the armed faults. There is no other switch: a process without an actor has no hook at all.
A short count needs no point of its own: a small SO_SNDBUF, or one byte at a time from the peer, makes a real one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sharedsock.model import trace
from sharedsock.model.errors import from_errno

__all__ = ["ActorProbe", "Fault", "Hold", "Kill", "Raise"]


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL the actor at the point: nothing after it runs, no finalizer either."""


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise at the point: the `OSError` of an errno, or an exception of this class."""

    error: int | type[BaseException]


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the thread at the point until the controller releases the barrier with this number."""

    barrier: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens where.

    Attributes:
        point: one of `model.trace.POINTS`.
        action: what is done there.
        thread: only when this thread comes by; None: any.
        kind: only for operations of this kind, "recv", "accept" …; None: any.
        nth: the first hit that counts, from 1.
        count: how many hits from the nth on; None: all, until the fault is taken back.
    """

    point: str
    action: Kill | Raise | Hold
    thread: str | None = None
    kind: str | None = None
    nth: int = 1
    count: int | None = 1

    def __post_init__(self) -> None:
        if self.point not in trace.POINTS:
            raise ValueError(f"{self.point!r} is no probe point; see sharedsock.model.trace.POINTS")
        if self.nth < 1 or (self.count is not None and self.count < 1):
            raise ValueError("nth and count start at 1")

    def is_met_by(self, point: str, thread: str, context: Mapping[str, Any]) -> bool:
        """Report whether a hit is one this fault speaks of, counted or not."""
        return (
            point == self.point
            and self.thread in (None, thread)
            and (self.kind is None or context.get("kind") == self.kind)
        )


class _Armed:
    """A fault with its count of hits, and the gate of a hold."""

    __slots__ = ("fault", "gate", "hits")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.hits = 0
        self.gate = threading.Event()


class ActorProbe:
    """The hook of an actor's process: reports points, carries out armed faults.

    A process forked from the actor shares neither the pipe nor the barriers: there only Kill and Raise act.
    """

    def __init__(self, post: Callable[[tuple[Any, ...]], None]) -> None:
        self._post = post
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._armed: dict[int, _Armed] = {}

    def __call__(self, point: str, context: Mapping[str, Any]) -> None:
        thread = threading.current_thread().name
        is_own = os.getpid() == self._pid
        if is_own:
            facts = {name: value for name, value in context.items() if isinstance(value, str | int)}
            self._post(("point", thread, point, monotonic(), facts))
        if not self._armed:
            return
        due = []
        with self._lock:
            for armed in self._armed.values():
                if armed.fault.is_met_by(point, thread, context):
                    armed.hits += 1
                    over = armed.hits - armed.fault.nth
                    if over >= 0 and (armed.fault.count is None or over < armed.fault.count):
                        due.append(armed)
        for armed in due:
            match armed.fault.action:
                case Kill():
                    os.kill(os.getpid(), signal.SIGKILL)
                case Raise(error):
                    raise from_errno(error, f"injected at {point}") if isinstance(error, int) else error()
                case Hold(barrier) if is_own and not armed.gate.is_set():
                    self._post(("reached", barrier, thread, monotonic()))
                    armed.gate.wait()

    def arm(self, number: int, fault: Fault) -> None:
        """Arm a fault under a number of the controller's choice."""
        with self._lock:
            self._armed[number] = _Armed(fault)

    def disarm(self, number: int) -> None:
        """Take a fault back; whoever it holds goes on."""
        with self._lock:
            armed = self._armed.pop(number, None)
        if armed is not None:
            armed.gate.set()
