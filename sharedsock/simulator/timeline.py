"""What happened, thread by thread: lanes of marks, and how they are drawn as plain text.

Time runs to the right, linearly within one promise; each promise has the same room, as the short ones are no less
worth seeing. A lane is one thread of one process; lanes of a process that look alike in every column share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sharedsock.testing.outcomes import Returned
from sharedsock.testing.pending import Event

if TYPE_CHECKING:
    from sharedsock.simulator.scenario import Verdict
    from sharedsock.simulator.stage import Stage

__all__ = ["Lane", "Mark", "Moment", "Timeline"]


class Mark(Enum):
    """What can be seen in a lane: the letter drawn, and its name in JSON. Later ones win a column."""

    WAITING = "=", "blocked"
    BLOCKED = "b", "blocks"
    RECEIVED = "r", "received"
    ACCEPTED = "a", "accepted"
    ABORTED = "x", "aborted"
    CLOSED = "c", "closed"
    LAST_CLOSE = "L", "last close"
    KILLED = "K", "killed"

    @property
    def letter(self) -> str:
        """The one character in the drawing."""
        return self.value[0]

    @property
    def label(self) -> str:
        """The name in JSON."""
        return self.value[1]


_STRENGTH: Final = {mark: place for place, mark in enumerate(Mark)}
_LEGEND: Final = "b= blocked  r received  a accepted  x aborted  c closed  L last close  K killed"
_LABEL_MIN: Final = 8
_COLUMNS_MIN: Final = 8
_COLUMNS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Moment:
    """One mark at one time, seconds on the monotonic clock."""

    mark: Mark
    at_s: float


@dataclass(frozen=True, slots=True)
class Lane:
    """One thread of one process, its moments in the order of time."""

    process: str
    thread: str
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lanes of a run and the spans of its promises as (number, name, began_s, ended_s)."""

    lanes: tuple[Lane, ...]
    spans: tuple[tuple[int, str, float, float], ...]

    @classmethod
    def of(cls, stage: Stage, verdicts: Sequence[Verdict]) -> Timeline:
        """Read the lanes of the holders' threads from what the stage has collected."""
        names = stage.schedule.holders
        threads = (*stage.readers, "accept", "main")
        found: dict[tuple[str, str], list[Moment]] = {(name, thread): [] for name in names for thread in threads}
        for event in stage.events():
            if event.kind in _WHOLE_PROCESS:
                for thread in threads if event.kind == "killed" else ("main",):
                    found[event.actor, thread].append(Moment(_WHOLE_PROCESS[event.kind], event.at_s))
            elif (event.actor, event.thread) in found and (mark := _mark_of(event)) is not None:
                found[event.actor, event.thread].append(Moment(mark, event.at_s))
        lanes = tuple(
            Lane(name, thread, tuple(sorted(moments, key=lambda moment: moment.at_s)))
            for (name, thread), moments in found.items()
        )
        spans = tuple(
            (verdict.promise.number, verdict.promise.name, verdict.began_s, verdict.ended_s)
            for verdict in verdicts
            if any(verdict.began_s <= moment.at_s < verdict.ended_s for lane in lanes for moment in lane.moments)
        )
        return cls(lanes, spans)

    def draw(self, width: int) -> list[str]:
        """Draw the timeline in lines of at most `width` characters, ASCII only; [] where nothing has happened."""
        if not self.spans:
            return []
        label_width = max(_LABEL_MIN, *(len(f"{lane.process} {lane.thread} x99") for lane in self.lanes))
        room = (width - label_width - 1) // len(self.spans) - 1
        columns = min(_COLUMNS_MAX, max(_COLUMNS_MIN, room))
        rows: list[tuple[str, list[str], str]] = []
        for lane in self.lanes:
            cells = "|".join(self._cells(lane, span[2], span[3], columns) for span in self.spans)
            if rows and rows[-1][0] == lane.process and rows[-1][2] == cells:
                rows[-1][1].append(lane.thread)
            else:
                rows.append((lane.process, [lane.thread], cells))
        heads = (f"{number} {name}"[:columns].ljust(columns) for number, name, *_ in self.spans)
        lasts = (_duration(end_s - start_s).ljust(columns) for *_, start_s, end_s in self.spans)
        lines = ["timeline".ljust(label_width) + "|" + "|".join(heads), " " * label_width + "|" + "|".join(lasts)]
        before = ""
        for process, threads, cells in rows:
            thread = threads[0] if len(threads) == 1 else f"{threads[0].rpartition('-')[0]} x{len(threads)}"
            lines.append(f"{process if process != before else ' '} {thread}".ljust(label_width) + "|" + cells)
            before = process
        return [line.rstrip() for line in (*lines, "", _LEGEND)]

    def _cells(self, lane: Lane, began_s: float, ended_s: float, columns: int) -> str:
        """Draw one lane within one promise."""
        cells = [" "] * columns
        strength = [-1] * columns
        step_s = (ended_s - began_s) / columns or 1.0
        blocked_since: float | None = None

        def column(at_s: float) -> int:
            return min(columns - 1, max(0, int((at_s - began_s) / step_s)))

        def fill(since_s: float, until_s: float) -> None:
            if until_s <= began_s or since_s >= ended_s:
                return
            for place in range(column(since_s), column(until_s) + 1):
                if strength[place] < 0:
                    cells[place], strength[place] = Mark.WAITING.letter, 0

        for moment in lane.moments:
            if moment.mark is Mark.BLOCKED:
                blocked_since = moment.at_s if blocked_since is None else blocked_since
            elif blocked_since is not None:
                fill(blocked_since, moment.at_s)
                blocked_since = None
            if began_s <= moment.at_s < ended_s and _STRENGTH[moment.mark] > strength[column(moment.at_s)]:
                place = column(moment.at_s)
                cells[place], strength[place] = moment.mark.letter, _STRENGTH[moment.mark]
        if blocked_since is not None:
            fill(blocked_since, ended_s)
        return "".join(cells)


_WHOLE_PROCESS: Final = {"killed": Mark.KILLED, "last close": Mark.LAST_CLOSE}
_POINTS: Final = {
    "op.waiting": Mark.BLOCKED,
    "op.aborted": Mark.ABORTED,
    "record": Mark.RECEIVED,
    "client": Mark.ACCEPTED,
}


def _mark_of(event: Event) -> Mark | None:
    if event.thread != "main":
        return _POINTS.get(event.kind)
    is_close = event.kind == "outcome" and event.value == ("close", Returned(None))
    return Mark.CLOSED if is_close else None


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
