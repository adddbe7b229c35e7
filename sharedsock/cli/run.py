"""The verb `run`: play one scenario with real processes, and show each promise as it was observed.

    sharedsock run closing-sockets [--processes N] [--threads N] [--start-method fork|forkserver|spawn]
                                   [--transport tcp|tcp6|unix|udp] [--linger off|0|SECONDS]
                                   [--close-order A,B,C] [--kill NAME|none] [--json | --quiet]

Standard output gets the result and nothing else: the table and the timeline, with --quiet one line, with --json one
JSON object. Progress goes to standard error, not with --quiet or --json. `as_json` says what the object holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from sharedsock.cli.pages import Progress, show, verdict_line
from sharedsock.simulator.runner import SCENARIOS, play
from sharedsock.simulator.scenario import MOST_LINGER_S, NOBODY, START_METHODS, Finding, Options, Report, Verdict
from sharedsock.simulator.schedule import Schedule
from sharedsock.simulator.stage import StageError
from sharedsock.simulator.transports import CLAUSES, TRANSPORTS

__all__ = ["SCHEMA", "add_parser", "as_json", "run_scenario"]

SCHEMA: Final = 1
_DEFAULTS: Final = Options()


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the verb into the command line."""
    listed = "\n".join(f"  {scenario.name:<18} {scenario.title}" for scenario in SCENARIOS.values())
    parser = verbs.add_parser(
        "run",
        help="play a scenario with real processes and check its promises",
        description="Play a scenario with real processes on loopback, checking each promise as it happens.",
        epilog=f"scenarios:\n{listed}\n\n{_clauses()}\n\n"
        "exit codes: 0 every promise held, 1 one is broken, 2 wrong command line",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scenario", choices=tuple(SCENARIOS), metavar="SCENARIO", help="which one; see below")
    parser.add_argument(
        "--processes",
        type=_whole,
        default=_DEFAULTS.processes,
        metavar="N",
        help="how many processes share the sockets (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=_whole,
        default=_DEFAULTS.threads,
        metavar="N",
        help="how many threads of each block in recv; one more blocks in accept (default: %(default)s)",
    )
    parser.add_argument(
        "--start-method",
        choices=START_METHODS,
        default=_DEFAULTS.start_method,
        help="how multiprocessing starts them (default: %(default)s)",
    )
    parser.add_argument(
        "--transport",
        choices=tuple(TRANSPORTS),
        default=_DEFAULTS.transport,
        help="what kind of socket they share (default: %(default)s)",
    )
    parser.add_argument(
        "--linger",
        default=_DEFAULTS.linger,
        metavar="SECONDS",
        help="at the last close. off: all data, then FIN; 0: reset; "
        f"1 to {MOST_LINGER_S}: wait so long for the peer, then reset (default: %(default)s)",
    )
    parser.add_argument(
        "--close-order",
        type=_names,
        default=_DEFAULTS.close_order,
        metavar="A,B,C",
        help="the processes in the order in which they give the sockets up (default: A,B,C ...)",
    )
    parser.add_argument(
        "--kill",
        default=_DEFAULTS.kill,
        metavar="NAME",
        help=f"who is killed in its turn, instead of closing; {NOBODY}: nobody "
        "(default: the second, if there are three or more)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object instead of table and timeline")
    output.add_argument("--quiet", action="store_true", help="print one line only")
    parser.set_defaults(handler=lambda arguments: _run(parser, arguments))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _clauses() -> str:
    """Return the table promise x transport for the help page; a transport that lacks a clause has its reason below."""
    width = max(len(clause.text) for clause in CLAUSES)
    heads = "  ".join(f"{name:<4}" for name in TRANSPORTS)
    lines = [f"{'promises, by their number':<{width + 3}}  {heads}".rstrip()]
    for clause in CLAUSES:
        cells = "  ".join(f"{'n/a' if name in clause.lacking else 'yes':<4}" for name in TRANSPORTS)
        lines.append(f"{clause.number}  {clause.text:<{width}}  {cells}".rstrip())
    lacking = {(name, reason): None for clause in CLAUSES for name, reason in clause.lacking.items()}
    return "\n".join((*lines, *(f"   n/a on {name}: {reason}" for name, reason in lacking)))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        options = Options(
            arguments.processes,
            arguments.threads,
            arguments.start_method,
            arguments.linger,
            arguments.transport,
            arguments.close_order,
            arguments.kill,
        )
    except ValueError as error:
        parser.error(f"argument --{error}")
    form = "json" if arguments.json else "quiet" if arguments.quiet else "page"
    return run_scenario(arguments.scenario, options, form)


def run_scenario(name: str, options: Options, form: str = "page") -> int:
    """Play a scenario and print its report; return the exit code.

    Args:
        form: "page", "quiet" or "json".
    """
    progress = Progress(sys.stderr) if form == "page" else None
    try:
        report = play(SCENARIOS[name], options, progress=progress.tell if progress else None)
    except StageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    finally:
        if progress is not None:
            progress.end()
    if form == "json":
        print(json.dumps(as_json(report), indent=2))
    elif form == "page":
        show(report, sys.stdout)
    if form == "quiet":
        print(verdict_line(report))
    return 0 if report.holds else 1


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain values. Within one `schema` number keys are added, never changed or removed.

    Shape::

        schema        1
        scenario      its name
        options       {processes, threads, start_method, linger, transport, close_order, kill}; kill: a name or null
        environment   {python, implementation, system}
        slack         by what the bounds were multiplied: 1.0, or 4.0 while other processes load the machine
        held          true if every promise held or had no meaning
        broken        names of the promises that did not hold
        promises      [{number, name, promise, status, reason, seconds, findings, no_meaning}], in the order played
                      status: "ok", "broken", "n/a", "not run"; reason: "" unless broken or n/a
          findings    [{what, observed, rule, held, measured_s, bound_s, clause}]; times are null where they are no
                      part of it; clause: the row of the table promise x transport, "" for none
          no_meaning  [{clause, what, rule, reason}], the parts of the promise that are n/a in this run
        timeline      {spans, lanes}; times are seconds since the first promise began
          spans       [{number, name, began_s, ended_s}], one for each promise with marks in the lanes
          lanes       [{process, thread, marks: [{mark, at_s}]}]
                      mark: "blocks", "received", "accepted", "aborted", "lingers", "closed", "last close",
                      "FIN", "reset" (both seen by process "peer"), "killed"
    """
    schedule = Schedule.of(report.options)
    origin_s = min((span[2] for span in report.timeline.spans), default=0.0)
    return {
        "schema": SCHEMA,
        "scenario": report.scenario.name,
        "options": {
            "processes": report.options.processes,
            "threads": report.options.threads,
            "start_method": report.options.start_method,
            "linger": report.options.linger,
            "transport": report.options.transport,
            "close_order": list(schedule.order),
            "kill": schedule.victim,
        },
        "environment": dict(report.environment),
        "slack": report.slack,
        "held": report.holds,
        "broken": [verdict.promise.name for verdict in report.broken],
        "promises": [_promise_as_json(verdict) for verdict in report.verdicts],
        "timeline": {
            "spans": [
                {
                    "number": number,
                    "name": name,
                    "began_s": _since(began_s, origin_s),
                    "ended_s": _since(ended_s, origin_s),
                }
                for number, name, began_s, ended_s in report.timeline.spans
            ],
            "lanes": [
                {
                    "process": lane.process,
                    "thread": lane.thread,
                    "marks": [
                        {"mark": moment.mark.label, "at_s": _since(moment.at_s, origin_s)} for moment in lane.moments
                    ],
                }
                for lane in report.timeline.lanes
            ],
        },
    }


def _promise_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "number": verdict.promise.number,
        "name": verdict.promise.name,
        "promise": verdict.promise.text,
        "status": verdict.standing.value,
        "reason": verdict.reason,
        "seconds": round(verdict.ended_s - verdict.began_s, 6),
        "findings": [_finding_as_json(finding) for finding in verdict.findings],
        "no_meaning": [
            {"clause": clause.name, "what": clause.text, "rule": clause.rule, "reason": reason}
            for clause, reason in verdict.lacking
        ],
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "observed": finding.observed,
        "rule": finding.rule,
        "held": finding.holds,
        "measured_s": None if finding.measured_s is None else round(finding.measured_s, 6),
        "bound_s": finding.bound_s,
        "clause": finding.clause,
    }


def _since(at_s: float, origin_s: float) -> float:
    return round(at_s - origin_s, 6)
