"""FACE: the command line, `sharedsock VERB …` or `python -m sharedsock VERB …`.

Exit codes, for every verb: 0 what was asked for holds, 1 it does not (the last line names what), 2 the command line
is wrong (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sharedsock.cli import doctor, dump, errors, leaks, ps, reap, run
from sharedsock.model.environment import check_variables

__all__ = ["main"]

_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, one subparser for each verb."""
    parser = argparse.ArgumentParser(
        prog="sharedsock",
        description="Sockets shared by real processes, closed as Winsock closes them.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (run, ps, dump, leaks, reap, errors, doctor):
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's own); return the exit code.

    A wrong command line is reported by argparse's way out: SystemExit(2) after a message on standard error.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        check_variables(os.environ)
    except ValueError as error:
        parser.error(str(error))
    try:
        code: int = arguments.handler(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not fail over it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    return code
