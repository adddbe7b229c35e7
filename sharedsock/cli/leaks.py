"""`sharedsock leaks -- CMD ...`: run any command, and say what outlives it: processes, their sockets, references.

The exit code is the command's own if that is not 0, else 1 if something was left.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import suppress
from typing import Any

from sharedsock.testing.commands_checked import check_command

__all__ = ["add_parser"]


def add_parser(verbs: Any) -> None:
    """Add the verb `leaks`."""
    parser = verbs.add_parser(
        "leaks",
        help="run a command and say what outlives it",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--grace", type=_seconds, default=1.0, metavar="SECONDS", help="what is left may take so long to go"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each finding, on standard output")
    parser.add_argument("--kill", action="store_true", help="end the processes that are left")
    parser.add_argument("command", nargs="+", metavar="CMD", help="the command and its arguments, after --")
    parser.set_defaults(handler=leaks)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no time between 0 and 3600 seconds")


def leaks(arguments: argparse.Namespace) -> int:
    """Run the command and report; see the module for the exit code."""
    try:
        code, findings = check_command(arguments.command, grace_s=arguments.grace, kill=arguments.kill)
    except OSError as error:
        print(f"sharedsock leaks: {arguments.command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    again = shlex.join(["sharedsock", "leaks", "--", *arguments.command])
    for finding in findings:
        if arguments.json:
            print(json.dumps(finding.as_dict() | {"reproduce": again}))
        else:
            print("\n".join(finding.lines()), file=sys.stderr)
    if not arguments.json and findings:
        print(f"again: {again}\n{len(findings)} left behind", file=sys.stderr)
    return code or bool(findings)
