"""Whom the warden of a run sends a signal: processes of that run, never one that has only taken over a number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sharedsock.testing import stacks
from sharedsock.testing.runs import RUN_VARIABLE, Run
from sharedsock.testing.warden import end_processes, send

ANSWERING = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose controller has ended."""
    return Run(str(tmp_path / "ss-run-1-1-aa"), 1, -1)


@pytest.fixture
def processes(run: Run) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """One process of the run, and a stranger."""
    command = [sys.executable, "-S", "-E", "-c", ANSWERING]
    ours = {**os.environ, RUN_VARIABLE: run.directory}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ours) as member,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger,
    ):
        try:
            for process in (member, stranger):
                assert _answers(process)
            yield member, stranger
        finally:
            member.kill()
            stranger.kill()


def _answers(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process lives, and goes on: a signal sent before would have ended it first."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"?\n")
        process.stdin.flush()
    return process.stdout.readline() == b"?\n"


def test_a_signal_reaches_who_is_meant_and_nobody_else(
    run: Run, processes: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]
) -> None:
    """As if each number had been noted before: who has it now decides."""
    member, stranger = processes
    for process in processes:
        send(process.pid, signal.SIGKILL, run.has)
    assert member.wait(60) == -signal.SIGKILL
    assert _answers(stranger)


def test_the_end_of_a_run_spares_strangers_and_who_asks(
    run: Run,
    processes: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:
    """`sharedsock reap` may have been called from a shell that the dead run has left."""
    member, stranger = processes
    run.make_directory()
    with open(os.path.join(run.directory, "ours"), "wb"):
        assert run.has(os.getpid())
        end_processes(run)
    assert member.wait(60) == -signal.SIGKILL
    assert _answers(stranger)


def test_who_does_not_answer_with_stacks_is_not_asked(
    processes: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The signal that asks for stacks ends whoever does not catch it."""
    file = tmp_path / "stacks-1"
    file.touch()
    assert stacks._ask(processes[1].pid, str(file)) is None
    assert _answers(processes[1])
