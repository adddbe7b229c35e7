"""Pages for readers: the table of promises, the timeline, the progress line, and the lines of any other verb.

Plain text, or rich where it adds colour: where it is installed and the stream is a terminal. NO_COLOR then takes the
colour away, TERM=dumb rich itself. Both ways show the same words in the same columns.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TextIO

from sharedsock.simulator.scenario import Finding, Promise, Report, Standing, Verdict
from sharedsock.simulator.schedule import Schedule
from sharedsock.simulator.timeline import Mark

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Line", "Progress", "page", "put", "show", "verdict_line", "width_of"]

_MOST_COLUMNS: Final = 112
_FEWEST_COLUMNS: Final = 80
_STYLES: Final = {
    Standing.HELD: "green",
    Standing.BROKEN: "bold red",
    Standing.NO_MEANING: "dim",
    Standing.NOT_REACHED: "dim",
}
_MARKS: Final = {
    Mark.WAITING.letter: "dim",
    Mark.WAITS.letter: "cyan",
    Mark.LINGERS.letter: "cyan",
    Mark.BLOCKED.letter: "dim",
    "|": "dim",
    Mark.RECEIVED.letter: "green",
    Mark.ACCEPTED.letter: "green",
    Mark.ABORTED.letter: "yellow",
    Mark.CLOSED.letter: "cyan",
    Mark.LAST_CLOSE.letter: "bold cyan",
    Mark.FIN.letter: "bold green",
    Mark.RESET.letter: "bold magenta",
    Mark.KILLED.letter: "bold red",
}
_LANE: Final = {*_MARKS, " "}
_CONDITIONS: Final = (
    "{options.processes} processes x {options.threads} threads, {options.start_method}, {options.transport}, "
    "linger {linger}; close order {order}; Python {environment[python]}, {environment[system]}"
)
_LOADED: Final = "; loaded machine, bounds x{report.slack:g}"
_ROOM_FOR_BOUNDS: Final = 100
_INDENT: Final = 3
_GAP: Final = 2

Line = tuple[tuple[str, str], ...]
"""A line of a page: pieces of text, each with its style."""


def is_terminal(stream: TextIO) -> bool:
    """Report whether a stream is a terminal that can do more than print."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Report whether to colour: a terminal, and NO_COLOR unset or empty. Source: no-color.org."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


class Progress:
    """Tells what is being checked while it runs: one line rewritten on a terminal, one line each elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = is_terminal(stream)

    def tell(self, promise: Promise, verdict: Verdict | None) -> None:
        """Report that a promise is being checked, or how it came out."""
        if self._rewrites:
            if verdict is None:
                self._stream.write(f"\r\x1b[K{promise.number}  {promise.text} ...")
        elif verdict is not None and verdict.standing is not Standing.NOT_REACHED:
            took_s = None if verdict.standing is Standing.NO_MEANING else verdict.ended_s - verdict.began_s
            line = f"{promise.number} {promise.name:<11} {verdict.standing.value:<7} {_time(took_s)}"
            self._stream.write(line.rstrip() + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._rewrites:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def show(report: Report, stream: TextIO) -> None:
    """Print the table, the timeline and the verdict."""
    put(page(report, width_of()), stream)


def width_of() -> int:
    """Return how many columns a page has: the terminal's, but no line gets too long to read, or too short to fit."""
    return max(_FEWEST_COLUMNS, min(_MOST_COLUMNS, shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns))


def put(lines: Iterable[Line], stream: TextIO) -> None:
    """Print lines, in colour where there is a use for it; the words are the same everywhere."""
    console = _console(stream)
    if console is not None:
        from rich.text import Text
    for line in lines:
        if console is None:
            stream.write("".join(text for text, _ in line).rstrip() + "\n")
        else:
            console.print(Text.assemble(*line), soft_wrap=True)


def _console(stream: TextIO) -> Any:
    """Return a rich console where there is a use for it, else None."""
    if not is_terminal(stream):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, no_color=not has_colour(stream), highlight=False)


def page(report: Report, width: int) -> Iterator[Line]:
    """Yield the lines of a report, each a row of (text, style)."""
    options = report.options
    yield ((report.scenario.name, "bold"),)
    yield ((report.scenario.title, ""),)
    schedule = Schedule.of(options)
    order = ", ".join(f"{name} (killed)" if name == schedule.victim else name for name in schedule.order)
    linger = f"{options.linger} s" if options.linger_s else options.linger
    conditions = _CONDITIONS.format(options=options, linger=linger, order=order, environment=report.environment)
    if report.slack > 1:
        conditions += _LOADED.format(report=report)
    for line in textwrap.wrap(conditions, width):
        yield ((line, "dim"),)
    yield ()
    yield from _table(report, width)
    drawn = report.timeline.draw(width)
    if drawn:
        yield ()
        yield from map(_coloured, drawn)
        yield ()
        for line in report.timeline.legend(width):
            yield ((line, "dim"),)
    yield ()
    yield ((verdict_line(report), _STYLES[Standing.HELD if report.holds else Standing.BROKEN]),)


def _coloured(line: str) -> Line:
    """Split a lane into runs of one style each; the label and the heads of the columns keep theirs."""
    label, bar, cells = line.partition("|")
    is_head = not set(cells) <= _LANE
    runs = (
        (style, "".join(run)) for style, run in groupby(cells, lambda cell: "" if is_head else _MARKS.get(cell, ""))
    )
    return ((label + bar, ""), *((text, style) for style, text in runs))


def verdict_line(report: Report) -> str:
    """Return the result in one line; a broken promise is named by number and name, with what was seen."""
    count = {standing: sum(one.standing is standing for one in report.verdicts) for standing in Standing}
    if report.holds:
        tail = f", {count[Standing.NO_MEANING]} n/a" if count[Standing.NO_MEANING] else ""
        lacking = sum(len(one.lacking) for one in report.verdicts)
        parts = f"; {lacking} part{'s' if lacking > 1 else ''} n/a on {report.options.transport}" if lacking else ""
        return f"{report.scenario.name}: {count[Standing.HELD]} promises held{tail}{parts}"
    first = report.broken[0]
    reason = first.reason.partition("\n")[0]
    return f"{report.scenario.name}: promise {first.promise.number} ({first.promise.name}) broken: {reason}"


def _table(report: Report, width: int) -> Iterator[Line]:
    """Yield the promises, each with what was found for it."""
    widths = _Widths.of(width, [finding for verdict in report.verdicts for finding in verdict.findings])
    yield ((widths.row("promise", "observed", "rule", "time", "bound"), "dim"),)
    for verdict in report.verdicts:
        status = verdict.standing.value
        yield (
            (f"{verdict.promise.number}  {verdict.promise.text}".ljust(widths.total - len(status)), "bold"),
            (status, _STYLES[verdict.standing]),
        )
        for finding in verdict.findings:
            for line in widths.wrapped(finding):
                yield ((line, "" if finding.holds else _STYLES[Standing.BROKEN]),)
        for clause, reason in verdict.lacking:
            yield from (((line, _STYLES[Standing.NO_MEANING]),) for line in widths.spread(clause.text, reason))
        for line in verdict.reason.splitlines():
            yield ((f"   {line}", _STYLES[verdict.standing]),)


@dataclass(frozen=True, slots=True)
class _Widths:
    """The widths of the columns, in characters; a narrow page has no column of bounds."""

    what: int
    observed: int
    rule: int
    time: int
    bound: int

    @classmethod
    def of(cls, width: int, findings: Sequence[Finding]) -> _Widths:
        """Give each column what it needs; what the page does not have, the two of words do without, in fewest lines."""
        rule = max(4, *(len(finding.rule) for finding in findings)) if findings else 4
        time = max(4, *(len(_time(finding.measured_s)) for finding in findings)) if findings else 4
        bound = max(5, *(len(_time(finding.bound_s)) for finding in findings)) if findings else 5
        if width < _ROOM_FOR_BOUNDS:
            bound = 0
        rest = width - _INDENT - rule - time - (bound + _GAP if bound else 0) - 3 * _GAP
        what = max((len(finding.what) for finding in findings), default=7)
        observed = max((len(finding.observed) for finding in findings), default=8)
        if what + observed > rest:

            def lines(what: int) -> int:
                return sum(_height(one.what, what, one.observed, rest - what) for one in findings)

            what = min(range(12, rest - 12), key=lines)
            observed = rest - what
        return cls(what, max(8, observed), rule, time, bound)

    @property
    def total(self) -> int:
        """The width of a row."""
        bound = self.bound + _GAP if self.bound else 0
        return _INDENT + self.what + self.observed + self.rule + self.time + bound + 3 * _GAP

    def row(self, what: str, observed: str, rule: str, time: str, bound: str) -> str:
        """Return one line of the table."""
        gap = " " * _GAP
        cells = [
            what.ljust(self.what),
            observed.ljust(self.observed),
            rule.ljust(self.rule),
            time.rjust(self.time),
        ]
        if self.bound:
            cells.append(bound.rjust(self.bound))
        return " " * _INDENT + gap.join(cells)

    def spread(self, what: str, reason: str) -> Iterator[str]:
        """Yield the lines of what has no meaning: over all columns, "n/a" at the end of the first."""
        status = Standing.NO_MEANING.value
        room = self.total - _INDENT - _GAP - len(status)
        first, *rest = textwrap.wrap(f"{what} - {reason}", room)
        yield " " * _INDENT + first.ljust(room) + " " * _GAP + status
        yield from (" " * (_INDENT + _GAP) + line for line in rest)

    def wrapped(self, finding: Finding) -> Iterator[str]:
        """Yield the lines of one finding, words wrapped inside their columns."""
        what = textwrap.wrap(finding.what, self.what) or [""]
        observed = textwrap.wrap(finding.observed, self.observed) or [""]
        once = finding.rule, _time(finding.measured_s), _time(finding.bound_s)
        for place in range(max(len(what), len(observed))):
            yield self.row(
                what[place] if place < len(what) else "",
                observed[place] if place < len(observed) else "",
                *(once if place == 0 else ("", "", "")),
            )


def _height(what: str, what_columns: int, observed: str, observed_columns: int) -> int:
    """Return how many lines two texts side by side take."""
    return max(len(textwrap.wrap(what, what_columns)), len(textwrap.wrap(observed, observed_columns)))


def _time(seconds: float | None) -> str:
    """Return a time for a reader, at a precision that says something."""
    if seconds is None:
        return ""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
