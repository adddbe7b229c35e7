"""Commands on their way: a thread to give them to, a pending result, and what an actor reports meanwhile.

A command given returns at once; its outcome is waited for when it is asked for. Waiting reads the actor's pipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedsock.testing.outcomes import Outcome, value_of

if TYPE_CHECKING:
    from sharedsock.testing.actors import Actor

__all__ = ["ActorDied", "ActorIdle", "ActorThread", "ActorTimeout", "Event", "Pending"]


class ActorTimeout(TimeoutError):
    """What was waited for did not happen in time; the message carries the stacks of the actor's threads."""


class ActorDied(RuntimeError):
    """The actor's process ended while something was expected of it."""


class ActorIdle(RuntimeError):
    """A thread was to wait, and has nothing left to do; the message says what its last command came to."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in an actor.

    Attributes:
        kind: a probe point ("op.waiting" …), a report of a command ("record", "client"), or "outcome".
        at_s: when, by the monotonic clock, which all processes of one machine have in common.
        value: the facts of the point, the reported value, or (command, outcome).
    """

    actor: str
    thread: str
    kind: str
    at_s: float
    value: Any = None


class Pending:
    """A command that has been given; its outcome when there is one."""

    def __init__(self, actor: Actor, thread: str, code: str) -> None:
        self._actor = actor
        self.thread = thread
        self.code = code
        self._result: tuple[Outcome, float, float] | None = None

    def settle(self, outcome: Outcome, began_s: float, ended_s: float) -> None:
        """Take the result off the pipe."""
        self._result = outcome, began_s, ended_s

    def is_done(self) -> bool:
        """Report whether the outcome is here, after reading what the actor has sent up to now."""
        self._actor.pump(0)
        return self._result is not None

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the outcome, the actor's own timeout by default.

        Raises:
            ActorTimeout: there is none yet; it carries the actor's stacks.
            ActorDied: there will be none.
        """
        return self._wait(timeout_s)[0]

    def value(self, timeout_s: float | None = None) -> Any:
        """Wait for the outcome and return the value in it.

        Raises:
            ActorRaised: the command raised.
        """
        return value_of(self._actor.name, self.outcome(timeout_s))

    @property
    def began_s(self) -> float:
        """When the command began (monotonic)."""
        return self._wait(None)[1]

    @property
    def ended_s(self) -> float:
        """When its thread had the outcome (monotonic), before anything was sent."""
        return self._wait(None)[2]

    def _wait(self, timeout_s: float | None) -> tuple[Outcome, float, float]:
        self._actor.wait_for(lambda: self._result is not None, f"{self.code} in thread {self.thread}", timeout_s)
        assert self._result is not None  # wait_for: the condition held
        return self._result


class ActorThread:
    """A named thread of an actor. Each method gives it a command of `commands.COMMANDS`."""

    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self.name = name

    def do(self, code: str, *arguments: Any, **keywords: Any) -> Pending:
        """Give any command of the table."""
        return self._actor.give(self.name, code, arguments, keywords)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Pending:
        """Call a picklable callable there."""
        return self.do("call", function, *arguments, **keywords)

    def recv(self, size: int, flags: int = 0, on: str = "socket") -> Pending:
        """Receive at most `size` bytes."""
        return self.do("recv", size, flags, on=on)

    def send(self, data: bytes, on: str = "socket") -> Pending:
        """Send once."""
        return self.do("send", data, on=on)

    def sendall(self, data: bytes, on: str = "socket") -> Pending:
        """Send all of it."""
        return self.do("sendall", data, on=on)

    def accept(self, on: str = "socket", into: str = "client") -> Pending:
        """Accept one client, kept under the name `into`."""
        return self.do("accept", on=on, into=into)

    def close(self, on: str = "socket") -> Pending:
        """Close the descriptor."""
        return self.do("close", on=on)
