"""Real pytest sessions in processes of their own, in a directory of the test's own, with nothing but the plug-in.

A session is given its test file as text, and is judged by what it printed, its exit code, and its JSONL report. The
modules it imports are compiled once for all sessions. No conftest, no configuration of this project reaches it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SESSION_S = 100.0
# Plug-ins that are installed for other tests: a session has ours, xdist, and what a test asks for.
OTHERS = ("hypothesispytest", "timeout", "rerunfailures", "asyncio", "anyio", "socket", "randomly", "pytest_cov")


@dataclass
class Done:
    """A session that has ended."""

    code: int
    out: str
    findings: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[float, str]] = field(default_factory=list, repr=False)

    def seen_s(self, text: str) -> float:
        """Return when a line with a text was printed, in seconds since the epoch."""
        return next(at_s for at_s, line in self.seen if text in line)

    def counts(self) -> dict[str, int]:
        """Return the counts of the last line of a session: {"passed": 3, "leaked": 1}."""
        lines = [line for line in self.out.splitlines() if re.search(r"\d \w+ in \d+\.\d+s", line)]
        words = lines[-1].replace(",", "").replace("=", "").split() if lines else []
        return {what: int(count) for count, what in pairwise(words) if count.isdigit()}


class Sessions:
    """Starts sessions in one directory."""

    def __init__(self, directory: Path, compiled: Path) -> None:
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "SHAREDSOCK_LEAKS", "GITHUB_"))
            and name not in ("SHAREDSOCK_TREE", "SHAREDSOCK_REGISTRY", "SHAREDSOCK_AUDIT", "PYTHONDONTWRITEBYTECODE")
        }
        self.environment |= {"PYTHONPYCACHEPREFIX": str(compiled), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        self._running: list[subprocess.Popen[str]] = []

    def write(self, text: str, name: str = "test_inner.py") -> None:
        """Write a test file."""
        (self.directory / name).write_text(textwrap.dedent(text))

    def start(self, *arguments: str, plugins: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Start a session; it is ended with the test if it has not ended before."""
        off = [word for name in OTHERS if name not in plugins for word in ("-p", f"no:{name}")]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *off, *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._running.append(process)
        return process

    def run(
        self, *arguments: str, plugins: tuple[str, ...] = (), within_s: float = SESSION_S, **environment: str
    ) -> Done:
        """Run a session to its end."""
        report = self.directory / "report.jsonl"
        wants = [] if any(one.startswith("--sharedsock-report") for one in arguments) else [str(report)]
        process = self.start(*arguments, *(f"--sharedsock-report={path}" for path in wants), plugins=plugins,
                             **environment)  # fmt: skip
        late = threading.Timer(within_s, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            seen = [(time.time(), line) for line in process.stdout]
            process.wait()
        finally:
            late.cancel()
            late.join()
        findings = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        return Done(process.returncode, "".join(line for _, line in seen), findings, seen)

    def end(self) -> None:
        """End what still runs."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sessions keep what they have compiled; one place for all workers, whose directories lie side by side."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session")
def make_sessions() -> type[Sessions]:
    """Starts sessions in a directory, for whoever shares one between tests."""
    return Sessions


@pytest.fixture
def sessions(tmp_path: Path, compiled: Path) -> Iterator[Sessions]:
    """Starts pytest sessions in a directory of their own."""
    made = Sessions(tmp_path, compiled)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def session(sessions: Sessions) -> Callable[..., Done]:
    """Write a test file and run one session: session(text, *arguments, **environment)."""

    def run(text: str, *arguments: str, **keywords: Any) -> Done:
        sessions.write(text)
        return sessions.run(*arguments, **keywords)

    return run
