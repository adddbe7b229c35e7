"""`sharedsock run`: options, exit codes, forms of output."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sharedsock.cli import main
from sharedsock.cli.run import SCHEMA, run_scenario
from sharedsock.simulator.runner import SCENARIOS, play
from sharedsock.simulator.scenario import Options, Report, Scenario
from sharedsock.simulator.stage import Stage
from sharedsock.simulator.transports import CLAUSES, TRANSPORTS

SMALL = ("--processes", "2", "--threads", "1")
COMMAND = (sys.executable, "-m", "sharedsock")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "run", "closing-sockets", *arguments], capture_output=True, text=True, timeout=60, **options
    )


def test_the_main_job_prints_table_and_timeline_and_exits_0() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 processes x 3 threads, fork, tcp, linger off; close order A, B (killed), C;" in done.stdout
    assert done.stdout.rstrip().endswith("closing-sockets: 6 promises held")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 112
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        [str(promise.number), promise.name] for promise in SCENARIOS["closing-sockets"].promises
    ]


def _answer_with(report: Report, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Options, bool]]:
    """Have the verb given this report instead of a play; return what it asks for: the options, and to tell progress."""
    asked: list[tuple[Options, bool]] = []

    def play_again(scenario: Scenario, options: Options, *, progress: object) -> Report:
        assert scenario is report.scenario
        asked.append((options, progress is not None))
        return dataclasses.replace(report, options=options)

    monkeypatch.setattr("sharedsock.cli.run.play", play_again)
    return asked


@pytest.mark.parametrize(
    ("arguments", "options", "shown"),
    [
        (
            ("--processes", "4", "--threads", "1"),
            Options(processes=4, threads=1),
            "4 processes x 1 threads, fork, tcp, linger off; close order A, B (killed), C, D;",
        ),
        (
            ("--processes", "2", "--threads", "5"),
            Options(processes=2, threads=5),
            "2 processes x 5 threads, fork, tcp, linger off; close order A, B;",
        ),
        (("--start-method", "forkserver"), Options(start_method="forkserver"), "threads, forkserver, tcp, linger off;"),
        (("--start-method", "spawn"), Options(start_method="spawn"), "threads, spawn, tcp, linger off;"),
        (("--linger", "0"), Options(linger="0"), "threads, fork, tcp, linger 0;"),
        (("--linger", "1"), Options(linger="1"), "threads, fork, tcp, linger 1 s;"),
        (("--transport", "unix"), Options(transport="unix"), "threads, fork, unix, linger off;"),
        (
            ("--close-order", "B,A,C", "--kill", "none"),
            Options(close_order=("B", "A", "C"), kill="none"),
            "linger off; close order B, A, C;",
        ),
        (
            ("--close-order", "B, A, C", "--kill", "A"),
            Options(close_order=("B", "A", "C"), kill="A"),
            "linger off; close order B, A (killed), C;",
        ),
    ],
)
def test_each_option_is_what_is_played_and_shown(
    arguments: tuple[str, ...],
    options: Options,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    report_of: Callable[..., Report],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The simulator's own tests play every value; see also the JSON of a run with several of them, below."""
    asked = _answer_with(report_of(), monkeypatch)
    assert main(["run", "closing-sockets", *arguments]) == 0
    assert asked == [(options, True)]
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def small() -> Report:
    """A real run of two processes."""
    return play(SCENARIOS["closing-sockets"], Options(processes=2, threads=1))


def test_a_promise_without_meaning_prints_na_and_is_counted_so(
    small: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(small, monkeypatch)
    assert main(["run", "closing-sockets", *SMALL]) == 0
    shown = capsys.readouterr().out
    (kill,) = [line for line in shown.splitlines() if line.startswith("4  ")]
    assert kill.split()[-1] == "n/a"
    assert shown.rstrip().endswith("closing-sockets: 5 promises held, 1 n/a")


def test_quiet_prints_one_line(
    small: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _answer_with(small, monkeypatch)
    assert main(["run", "closing-sockets", *SMALL, "--quiet"]) == 0
    assert asked == [(small.options, False)], "nobody is told of progress"
    assert capsys.readouterr() == ("closing-sockets: 5 promises held, 1 n/a\n", "")


def test_a_part_without_meaning_prints_na_with_the_reason_and_is_counted_so() -> None:
    done = run(*SMALL, "--transport", "udp", "--linger", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("closing-sockets: 5 promises held, 1 n/a; 4 parts n/a on udp")
    shown = " ".join(done.stdout.split())
    assert "linger 0: the connection is reset - SO_LINGER" in shown
    assert "SO_LINGER on a datagram socket refused, 10042 LINGER-11" in shown
    assert "FIN" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--processes", "1"), "argument --processes: 1 is not in 2 to 26"),
        (("--processes", "0"), "argument --processes: 0 is not in 2 to 26"),
        (("--processes", "-3"), "argument --processes: -3 is not in 2 to 26"),
        (("--processes", "27"), "argument --processes: 27 is not in 2 to 26"),
        (("--processes", "many"), "argument --processes: 'many' is not a whole number"),
        (("--processes", "2.5"), "argument --processes: '2.5' is not a whole number"),
        (("--threads", "0"), "argument --threads: 0 is not in 1 to 100"),
        (("--threads", "101"), "argument --threads: 101 is not in 1 to 100"),
        (("--threads", ""), "argument --threads: '' is not a whole number"),
        (("--start-method", "thread"), "argument --start-method: invalid choice: 'thread'"),
        (("--linger", "on"), "argument --linger: 'on' is not off, 0 or whole seconds up to 60"),
        (("--linger", "-1"), "argument --linger: '-1' is not off, 0 or whole seconds up to 60"),
        (("--linger", "1.5"), "argument --linger: '1.5' is not off, 0 or whole seconds up to 60 (SO_LINGER counts"),
        (("--linger",), "argument --linger: expected one argument"),
        (("--transport", "sctp"), "argument --transport: invalid choice: 'sctp'"),
        (("--close-order", "A,B"), "argument --close-order: C left out; each of A, B, C gives up once"),
        (("--close-order", "A,A,B"), "argument --close-order: 'A' is named twice; each of A, B, C gives up once"),
        (("--close-order", "A,B,X"), "argument --close-order: 'X' is no process of this run: A, B, C"),
        (("--close-order", "c,b,a"), "argument --close-order: 'c' is no process of this run: A, B, C"),
        (("--close-order", ""), "argument --close-order: '' is no process of this run: A, B, C"),
        (("--processes", "2", "--close-order", "A,B,C"), "argument --close-order: 'C' is no process of this run: A, B"),
        (("--kill", "D"), "argument --kill: 'D' is no process of this run: A, B, C, or none"),
        (("--kill", "peer"), "argument --kill: 'peer' is no process of this run: A, B, C, or none"),
        (("--processes", "2", "--kill", "C"), "argument --kill: 'C' is no process of this run: A, B, or none"),
        (("--json", "--quiet"), "not allowed with argument"),
        (("--proc", "3"), "unrecognized arguments"),
        (("--kill",), "argument --kill: expected one argument"),
        (("again",), "unrecognized arguments"),
    ],
)
def test_a_bad_value_is_named_and_exits_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedsock.cli.run.play", None)  # refused before anything is played
    with pytest.raises(SystemExit) as exited:
        main(["run", "closing-sockets", *arguments])
    captured = capsys.readouterr()
    assert exited.value.code == 2
    assert message in captured.err
    assert "usage: sharedsock" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "no-such-story"], ["walk"]])
def test_a_command_line_without_a_story_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert "usage: sharedsock" in capsys.readouterr().err


def test_help_names_the_stories_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert exited.value.code == 0
    assert "closing-sockets" in shown
    assert "exit codes: 0 every promise held, 1 one is broken, 2 wrong command line" in shown


def test_help_has_the_table_promise_x_transport(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("promises, by their number")))
    assert lines[start].split()[-len(TRANSPORTS) :] == list(TRANSPORTS)
    for clause, line in zip(CLAUSES, lines[start + 1 :], strict=False):
        assert line.startswith(f"{clause.number}  {clause.text} ")
        cells = ["n/a" if name in clause.lacking else "yes" for name in TRANSPORTS]
        assert line.split()[-len(TRANSPORTS) :] == cells
        for name, reason in clause.lacking.items():
            assert f"   n/a on {name}: {reason}" in lines
    assert max(map(len, lines)) <= 112


def _second_descriptor(stage: Stage) -> None:
    stage["A"].do("listen", "left over")


@pytest.fixture(scope="module")
def broken() -> Report:
    """A real run whose last promise a player breaks."""
    options = Options(processes=2, threads=1)
    return play(SCENARIOS["closing-sockets"], options, before={"residue": _second_descriptor})


@pytest.mark.parametrize("form", ["page", "quiet", "json"])
def test_a_broken_promise_exits_1_and_is_named(
    form: str, broken: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer_with(broken, monkeypatch)
    code = run_scenario("closing-sockets", broken.options, form)
    shown = capsys.readouterr().out
    assert code == 1
    if form == "json":
        report = json.loads(shown)
        assert (report["held"], report["broken"]) == (False, ["residue"])
        assert report["promises"][5]["status"] == "broken"
        assert report["promises"][5]["findings"][-1]["held"] is False
    else:
        last = shown.rstrip().splitlines()[-1]
        assert last.startswith("closing-sockets: promise 6 (residue) broken: ")
        assert "A holds 1 more sockets" in last


def test_json_is_one_object_of_a_stable_shape(
    small: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _answer_with(small, monkeypatch)
    assert main(["run", "closing-sockets", *SMALL, "--json"]) == 0
    assert asked == [(small.options, False)]
    shown = capsys.readouterr()
    assert shown.err == ""
    report = json.loads(shown.out)
    assert report["schema"] == SCHEMA
    assert list(report) == [
        "schema", "scenario", "options", "environment", "slack", "held", "broken", "promises", "timeline",
    ]  # fmt: skip
    assert report["slack"] in (1.0, 4.0)
    assert report["options"] == {
        "processes": 2, "threads": 1, "start_method": "fork", "linger": "off",
        "transport": "tcp", "close_order": ["A", "B"], "kill": None,
    }  # fmt: skip
    assert list(report["environment"]) == ["python", "implementation", "system"]
    assert (report["scenario"], report["held"], report["broken"]) == ("closing-sockets", True, [])
    assert [one["status"] for one in report["promises"]] == ["ok", "ok", "ok", "n/a", "ok", "ok"]
    for promise in report["promises"]:
        assert list(promise) == ["number", "name", "promise", "status", "reason", "seconds", "findings", "no_meaning"]
        assert promise["no_meaning"] == []
        for finding in promise["findings"]:
            assert list(finding) == ["what", "observed", "rule", "held", "measured_s", "bound_s", "clause"]
            assert finding["held"] is True
            assert finding["measured_s"] is None or finding["measured_s"] >= 0
    timeline = report["timeline"]
    assert list(timeline) == ["spans", "lanes"]
    assert {(lane["process"], lane["thread"]) for lane in timeline["lanes"]} == {
        *((process, thread) for process in "AB" for thread in ("recv-1", "accept", "main")), ("peer", "main"),
    }  # fmt: skip
    marks = {lane["process"] + lane["thread"]: [one["mark"] for one in lane["marks"]] for lane in timeline["lanes"]}
    assert marks["Arecv-1"] == ["blocks", "aborted"]
    assert marks["Amain"] == ["closed", "closed"]
    assert "last close" in marks["Bmain"]
    assert marks["Baccept"].count("accepted") == 8
    assert marks["peermain"] == ["FIN"]


def test_json_has_what_was_chosen_and_what_is_na() -> None:
    done = run(
        "--threads", "1", "--transport", "unix", "--linger", "1", "--close-order", "C,A,B", "--kill", "C", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    options = report["options"]
    assert (options["transport"], options["linger"]) == ("unix", "1")
    assert (options["close_order"], options["kill"]) == (["C", "A", "B"], "C")
    assert [one["number"] for one in report["promises"]] == [1, 4, 3, 2, 5, 6], "in the order played"
    last = report["promises"][4]
    assert last["status"] == "ok"
    assert last["no_meaning"] == [
        {"clause": clause.name, "what": clause.text, "rule": clause.rule, "reason": clause.lacking["unix"]}
        for clause in CLAUSES
        if clause.linger == "t"
    ]
    clauses = {finding["clause"] for promise in report["promises"] for finding in promise["findings"]}
    assert {"recv", "accept", "records", "clients", "reap", "nobody", "residue"} <= clauses


def test_a_run_that_cannot_begin_exits_1_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedsock.simulator.stage.new_directory_name", lambda: "/proc/no-such-place/registry")
    assert main(["run", "closing-sockets", *SMALL, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("closing-sockets: the players could not be started: actor A: ")


def test_an_interrupt_ends_the_players_and_exits_130() -> None:
    """Ctrl-C goes to the whole group; the players leave it to the controller, which ends them."""
    with subprocess.Popen(
        [*COMMAND, "run", "closing-sockets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as job:  # fmt: skip
        assert job.stderr is not None
        assert job.stderr.readline().startswith("1 share")
        os.killpg(job.pid, signal.SIGINT)
        rest = job.stderr.read()
    assert job.returncode == 130
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest


def test_a_reader_that_has_seen_enough_is_no_error_to_shout_about() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "closing-sockets", *SMALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.close()
        shown = job.stderr.read()
    assert job.returncode == 1
    assert "Traceback" not in shown
    assert "BrokenPipeError" not in shown
