"""What a leak check finds: one type for each kind, with who made it, where, and who has it now.

A finding is a plain value: it crosses from a worker to the controller as a dictionary, is a line of the JSONL report,
and is recognised in a baseline by its kind, test and place. Worst first: what other processes feel before what only
this one does.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Final

__all__ = [
    "KINDS",
    "DescriptorLeak",
    "Finding",
    "Holding",
    "ProcessLeak",
    "ReferenceLeak",
    "SocketLeak",
    "ThreadLeak",
    "finding_of",
]


@dataclass(frozen=True, slots=True)
class Holding:
    """One process, or descriptor in it, that keeps the thing alive.

    Attributes:
        how: "descriptor 7", "ticket", "number 12".
        since_s: since when, in seconds since the epoch; 0 where nobody knows.
        ended: "" of who has it now, else how that ended: "closed" or "died". Only a registry remembers these.
    """

    pid: int
    name: str
    how: str
    place: str = ""
    since_s: float = 0.0
    ended: str = ""

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.name})" if self.pid else "nobody yet"
        text = f"{who}, {self.how}" + (f", from {self.place}" if self.place else "")
        return text + (f", which {_ENDED[self.ended]}" if self.ended else "")


_ENDED: Final = {"closed": "it has closed", "died": "ended with the process"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is there after a test and was not there before.

    Attributes:
        what: the thing itself, in a few words.
        test: what ran when it was made; pid, process, thread and place: who made it, and in which line.
        holders: who has had it, then who has it now, each in the order in which they came.
        worker: the xdist worker, "" without xdist.
    """

    kind: ClassVar[str] = ""

    what: str
    test: str = ""
    pid: int = 0
    process: str = ""
    thread: str = ""
    place: str = ""
    holders: tuple[Holding, ...] = ()
    worker: str = ""

    @property
    def fingerprint(self) -> tuple[str, str, str]:
        """Kind, test, and place without its line: what stays the same from run to run, and through small edits."""
        head, _, function = self.place.partition(" in ")
        return self.kind, self.test, f"{os.path.basename(head.rpartition(':')[0])} in {function}" if self.place else ""

    def lines(self) -> list[str]:
        """Return the finding as text: what, made by whom, and who has it."""
        made = ", ".join(
            part
            for part in (
                self.test and f"{'by' if self.place else 'during'} {self.test}",
                self.pid and f"in process {self.pid}" + (f" ({self.process})" if self.process else ""),
                self.thread and f"thread {self.thread}",
                self.place and f"at {self.place}",
                not self.place and f"at no place that was seen: {_UNSEEN}",
            )
            if part
        )
        lines = [f"{self.kind}: {self.what}", f"  made {made}"]
        lines += [f"  then held by {holder}" for holder in self.holders[:-1]]
        return lines + [f"  last held by {holder}" for holder in self.holders[-1:]]

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON takes it; `finding_of` is the way back."""
        return {"kind": self.kind, **dataclasses.asdict(self), "holders": [dataclasses.asdict(h) for h in self.holders]}


@dataclass(frozen=True, slots=True)
class ReferenceLeak(Finding):
    """A registry still counts a reference."""

    kind: ClassVar[str] = "references"


@dataclass(frozen=True, slots=True)
class SocketLeak(Finding):
    """A socket is still open.

    Attributes:
        state: "LISTEN", "ESTABLISHED", "CLOSE_WAIT" …; peer: its address; role: "listener", "accepted", "connected" ….
    """

    kind: ClassVar[str] = "sockets"

    state: str = ""
    peer: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class DescriptorLeak(Finding):
    """A file, pipe or other descriptor is still open."""

    kind: ClassVar[str] = "descriptors"


@dataclass(frozen=True, slots=True)
class ThreadLeak(Finding):
    """A thread still runs."""

    kind: ClassVar[str] = "threads"


@dataclass(frozen=True, slots=True)
class ProcessLeak(Finding):
    """A child process, or one of its own, still runs, or has ended and nobody waited for it."""

    kind: ClassVar[str] = "processes"


_UNSEEN: Final = "outside Python, or through a name imported before the check began"
_TYPES: Final = (ReferenceLeak, SocketLeak, ProcessLeak, ThreadLeak, DescriptorLeak)
KINDS: Final = tuple(one.kind for one in _TYPES)
"""Every kind, worst first."""


def finding_of(values: dict[str, Any]) -> Finding:
    """Return the finding a dictionary stands for.

    Raises:
        ValueError: it stands for none.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    for one in _TYPES:
        if one.kind == kind:
            known = {field.name for field in dataclasses.fields(one)}
            holders = tuple(Holding(**holder) for holder in values.pop("holders", ()))
            return one(**{name: value for name, value in values.items() if name in known}, holders=holders)
    raise ValueError(f"{kind!r} is no kind of finding; there are {', '.join(KINDS)}")
