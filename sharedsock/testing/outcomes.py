"""What a command given to an actor came to, as a value that a test compares with `==`.

Only what a promise speaks of takes part in the comparison: the bytes, the address, the WSA number. Times are kept
by the pending result, the text of an error beside it. Values cross the control pipe, so all of them are picklable.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from sharedsock.model.errors import OperationAborted, wsa_name

__all__ = [
    "Aborted",
    "Accepted",
    "ActorRaised",
    "Outcome",
    "Raised",
    "Received",
    "Returned",
    "describe_exit",
    "from_error",
    "value_of",
]


@dataclass(frozen=True, slots=True)
class Received:
    """A receive ended with data; `b""` on a stream is the peer's FIN."""

    data: bytes

    def __str__(self) -> str:
        return f"received {len(self.data)} bytes" if self.data else "received the peer's FIN"


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accept ended with a client, whose own address this is; the actor keeps the new socket."""

    address: Any

    def __str__(self) -> str:
        return f"accepted {self.address}"


@dataclass(frozen=True, slots=True)
class Aborted:
    """`OperationAborted`: the actor's own process closed the descriptor while the operation waited.

    `Aborted(10004)` equals what any aborted synchronous call comes to; 995 is the overlapped one.
    """

    winerror: int
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"OperationAborted {self.winerror}"


@dataclass(frozen=True, slots=True)
class Raised:
    """Any other exception: its class by name, and the two numbers an `OSError` carries (None elsewhere)."""

    type: str
    winerror: int | None = None
    errno: int | None = None
    text: str = field(default="", compare=False)
    trace: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        number = "" if self.winerror is None else f" {wsa_name(self.winerror)} ({self.winerror})"
        return f"{self.type}{number}"


@dataclass(frozen=True, slots=True)
class Returned:
    """The command returned this value."""

    value: Any = None

    def __str__(self) -> str:
        return f"returned {self.value!r}"


Outcome = Received | Accepted | Aborted | Raised | Returned


class ActorRaised(RuntimeError):
    """A command whose value was asked for raised in the actor.

    Attributes:
        outcome: what it came to, `Aborted` or `Raised`.
    """

    def __init__(self, actor: str, outcome: Aborted | Raised) -> None:
        super().__init__(actor, outcome)
        self.actor = actor
        self.outcome = outcome

    def __str__(self) -> str:
        place = f"\n{self.outcome.trace}" if isinstance(self.outcome, Raised) and self.outcome.trace else ""
        return f"actor {self.actor}: {self.outcome}: {self.outcome.text}{place}"


def from_error(error: BaseException) -> Aborted | Raised:
    """Turn what a command raised into its outcome."""
    if isinstance(error, OperationAborted):
        return Aborted(error.winerror, str(error))
    trace = "".join(traceback.format_exception(error))
    number = getattr(error, "errno", None)
    return Raised(type(error).__name__, getattr(error, "winerror", None), number, str(error), trace)


def value_of(actor: str, outcome: Outcome) -> Any:
    """Return the value an outcome stands for.

    Raises:
        ActorRaised: the command raised.
    """
    match outcome:
        case Received(data):
            return data
        case Accepted(address):
            return address
        case Returned(value):
            return value
        case _:
            raise ActorRaised(actor, outcome)


def describe_exit(status: int | None) -> str:
    """Say how a process ended, from the exit status `multiprocessing` and `subprocess` report (negative: a signal)."""
    if status is None:
        return "ended"
    if status < 0:
        import signal

        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exited with {status}"
