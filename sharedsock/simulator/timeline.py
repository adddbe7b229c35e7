"""What happened, thread by thread: lanes of marks, and how they are drawn as plain text.

Time runs to the right, linearly within one promise; each promise has the same room, as the short ones are no less
worth seeing. A lane is one thread of one process; lanes of a process that look alike in every column share a row.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sharedsock.simulator.stage import PEER
from sharedsock.testing.outcomes import Returned
from sharedsock.testing.pending import Event

if TYPE_CHECKING:
    from sharedsock.simulator.scenario import Verdict
    from sharedsock.simulator.stage import Stage

__all__ = ["Lane", "Mark", "Moment", "Timeline"]


class Mark(Enum):
    """What can be seen in a lane: the letter drawn, and its name in JSON. Later ones win a column."""

    WAITING = "=", "blocked"
    WAITS = "~", "lingering"
    BLOCKED = "b", "blocks"
    RECEIVED = "r", "received"
    ACCEPTED = "a", "accepted"
    ABORTED = "x", "aborted"
    LINGERS = "l", "lingers"
    CLOSED = "c", "closed"
    LAST_CLOSE = "L", "last close"
    FIN = "F", "FIN"
    RESET = "R", "reset"
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
_GOES_ON: Final = {Mark.BLOCKED: Mark.WAITING, Mark.LINGERS: Mark.WAITS}
"""What is drawn from a mark to the next one of its lane."""
_LINGERS_FROM_S: Final = 0.002
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
        """Read the lanes of the holders' threads, and of the far peer, from what the stage has collected."""
        names = stage.schedule.holders
        threads = (*stage.blocking, "main")
        found: dict[tuple[str, str], list[Moment]] = {(name, thread): [] for name in names for thread in threads}
        found[PEER, "main"] = []
        last_s = 0.0
        for event in stage.events():
            if event.kind in _BY_CONTROLLER:
                for thread in threads if event.kind == "killed" else ("main",):
                    found[event.actor, thread].append(Moment(_BY_CONTROLLER[event.kind], event.at_s))
            elif event.kind == "close.last":
                last_s = event.at_s
            elif event.kind == "close.linger":
                if event.at_s - last_s > _LINGERS_FROM_S and stage.lingers:
                    found[event.actor, event.thread].append(Moment(Mark.LINGERS, last_s))
            elif (
                event.actor in names and (event.actor, event.thread) in found and (mark := _mark_of(event)) is not None
            ):
                found[event.actor, event.thread].append(Moment(mark, event.at_s))
        lanes = tuple(
            Lane(name, thread, tuple(sorted(moments, key=lambda moment: moment.at_s)))
            for (name, thread), moments in found.items()
            if moments or name != PEER
        )
        spans = tuple(
            (verdict.promise.number, verdict.promise.name, verdict.began_s, verdict.ended_s)
            for verdict in verdicts
            if any(verdict.began_s <= moment.at_s < verdict.ended_s for lane in lanes for moment in lane.moments)
        )
        return cls(lanes, spans)

    def draw(self, width: int) -> list[str]:
        """Draw the lanes in lines of at most `width` characters, ASCII only; [] where nothing has happened."""
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
        return [line.rstrip() for line in lines]

    def legend(self, width: int) -> list[str]:
        """Return what the marks that occur mean, in lines of at most `width` characters."""
        occur = {moment.mark for lane in self.lanes for moment in lane.moments}
        entries = []
        for mark in Mark:
            if mark in occur:
                goes_on = _GOES_ON.get(mark)
                name = goes_on.label if goes_on else mark.label
                entries.append(f"{mark.letter}{goes_on.letter if goes_on else ''} {name}".replace(" ", "\0"))
        return [line.replace("\0", " ") for line in textwrap.wrap("  ".join(entries), width)]

    def _cells(self, lane: Lane, began_s: float, ended_s: float, columns: int) -> str:
        """Draw one lane within one promise."""
        cells = [" "] * columns
        strength = [-1] * columns
        step_s = (ended_s - began_s) / columns or 1.0
        since: Moment | None = None

        def column(at_s: float) -> int:
            return min(columns - 1, max(0, int((at_s - began_s) / step_s)))

        def fill(moment: Moment, until_s: float) -> None:
            if until_s <= began_s or moment.at_s >= ended_s:
                return
            for place in range(column(moment.at_s), column(until_s) + 1):
                if strength[place] < 0:
                    cells[place], strength[place] = _GOES_ON[moment.mark].letter, 0

        for moment in lane.moments:
            if moment.mark is not Mark.BLOCKED or since is None:
                if since is not None:
                    fill(since, moment.at_s)
                since = moment if moment.mark in _GOES_ON else None
            if began_s <= moment.at_s < ended_s and _STRENGTH[moment.mark] > strength[column(moment.at_s)]:
                place = column(moment.at_s)
                cells[place], strength[place] = moment.mark.letter, _STRENGTH[moment.mark]
        if since is not None:
            fill(since, ended_s)
        return "".join(cells)


_BY_CONTROLLER: Final = {mark.label: mark for mark in (Mark.KILLED, Mark.LAST_CLOSE, Mark.FIN, Mark.RESET)}
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
