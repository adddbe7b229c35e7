"""What `sharedsock run` shows: pages of any width, with colour or without, and progress on a terminal."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from sharedsock.cli.pages import Progress, show
from sharedsock.simulator.scenario import Report, Standing
from sharedsock.simulator.transports import CLAUSES


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(stream: io.StringIO, report: Report) -> str:
    show(report, stream)
    return stream.getvalue()


@pytest.fixture
def report(report_of: Callable[..., Report]) -> Report:
    return report_of()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return _Terminal()


def test_a_terminal_gets_colour_and_the_same_words(
    report: Report, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = _shown(terminal, report)
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    bare = _shown(_Terminal(), report)
    assert "\x1b[3" not in bare, "NO_COLOR takes the colour away"
    assert _without_escapes(bare) == _without_escapes(coloured) == _shown(io.StringIO(), report)


def test_no_terminal_no_rich_and_a_dumb_terminal_get_plain_text(
    report: Report, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _shown(io.StringIO(), report)
    assert "\x1b" not in plain
    monkeypatch.setenv("TERM", "dumb")
    assert _shown(_Terminal(), report) == plain
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert _shown(_Terminal(), report) == plain


def _without_escapes(text: str) -> str:
    return "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n"))


@pytest.mark.parametrize("columns", [20, 80, 90, 112, 500])
def test_a_page_fits_its_terminal_and_stays_aligned(
    report: Report, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = _shown(io.StringIO(), report).splitlines()
    assert max(map(len, lines)) <= max(80, min(columns, 112))
    header = next(line for line in lines if line.lstrip().startswith("promise"))
    status = next(line for line in lines if line.startswith("1  "))
    assert len(header) == len(status), "the last column is right-aligned"


@pytest.mark.parametrize(
    ("standing", "reason"),
    [(Standing.BROKEN, "there: not here\nand a trace"), (Standing.NO_MEANING, "nobody to spare")],
)
def test_the_reason_is_shown_under_the_promise(
    report_of: Callable[..., Report], standing: Standing, reason: str
) -> None:
    shown = _shown(io.StringIO(), report_of(standing, reason))
    for line in reason.splitlines():
        assert f"\n   {line}\n" in shown


def test_what_is_lacking_is_a_line_under_its_promise(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clause = next(clause for clause in CLAUSES if clause.lacking)
    verdict = dataclasses.replace(report.verdicts[0], lacking=((clause, "there is none"),))
    report = dataclasses.replace(report, verdicts=(verdict,))
    shown = _shown(io.StringIO(), report)
    (line,) = [line for line in shown.splitlines() if line.startswith(f"   {clause.text} - there is none ")]
    assert line.endswith("n/a")
    assert len(line) == len(next(one for one in shown.splitlines() if one.startswith("1  ")))
    assert shown.rstrip().endswith("closing-sockets: 1 promises held; 1 part n/a on tcp")


@pytest.mark.parametrize(("slack", "is_said"), [(1.0, False), (4.0, True)])
def test_longer_bounds_are_said_to_be_so(
    report: Report, slack: float, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "112")
    report = dataclasses.replace(report, slack=slack)
    assert ("; loaded machine, bounds x4 " in _shown(io.StringIO(), report).replace("\n", " ")) is is_said


def test_progress_rewrites_its_line_on_a_terminal_and_takes_it_away(report: Report, terminal: _Terminal) -> None:
    verdict = report.verdicts[0]
    progress = Progress(terminal)
    progress.tell(verdict.promise, None)
    progress.tell(verdict.promise, verdict)
    progress.end()
    assert terminal.getvalue() == "\r\x1b[K1  Something is shared ...\r\x1b[K"
    lines = io.StringIO()
    progress = Progress(lines)
    progress.tell(verdict.promise, None)
    progress.tell(verdict.promise, verdict)
    progress.end()
    assert lines.getvalue().split() == ["1", "share", "ok", "1000", "ms"]


def test_the_main_job_on_a_real_terminal() -> None:
    master, slave = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "sharedsock", "run", "closing-sockets", "--processes", "2", "--threads", "1"]
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as job:
        os.close(slave)
        shown = bytearray()
        try:
            while chunk := os.read(master, 1 << 16):
                shown += chunk
        except OSError:
            pass  # EIO: the far end of a pty has closed
        finally:
            os.close(master)
    assert job.returncode == 0
    assert b"\r\x1b[K1  Real processes share" in shown
    assert b"\x1b[1m" in shown
    assert b"5 promises held, 1 n/a" in shown
