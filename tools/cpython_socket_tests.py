"""CPython's own `test.test_socket`, run with SharedSocket in the place of socket.socket.

    python tools/cpython_socket_tests.py [--part I/N] [NAME ...]     all of it (3 minutes), or what has NAME in its name

Each test runs twice, in worker processes of its own: once with the plain class, once with ours. What the plain class
does not pass on this machine (skipped, failed, hung: no VSOCK, no CAN) does not count. What it passes and SharedSocket
does not is a deviation: it must stand in DEVIATIONS with the rule that causes it, or the run exits 1. Windows' own
TestSocketSharing, skipped everywhere else, runs against `share` and `fromshare`, and has to pass.

A test that is silent for STALL_S is hung: its stacks are kept, its worker is killed, and the next worker goes on behind
it. A difference counts only if it comes back when that test runs again alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["DEVIATIONS", "STALL_S", "WINDOWS_ONLY", "Deviation", "Outcome", "Verdict", "compare", "main", "run"]

STALL_S: Final = 20.0
_START_S: Final = 60.0
_MODULE: Final = "test.test_socket"
_ROOT: Final = Path(__file__).resolve().parents[1]


class Deviation(NamedTuple):
    """A test that SharedSocket fails on purpose: its name as "Class.method" (* is any ending), the rule, and why."""

    test: str
    rule: str
    why: str


DEVIATIONS: Final = (
    Deviation("GeneralModuleTests.test_pickle", "DUP-1", "pickling a SharedSocket is no TypeError, it mints a ticket"),
    Deviation(
        "NonBlockingTCPTests.testSetBlocking*",
        "DUP-17",
        "O_NONBLOCK belongs to all sharers, so it is always set; blocking is computed per descriptor",
    ),
    Deviation("NonblockConstantTest.test_SOCK_NONBLOCK", "DUP-17", "O_NONBLOCK is set without SOCK_NONBLOCK as well"),
    Deviation(
        "TestExceptions.test_setblocking_invalidfd",
        "DUP-17",
        "setblocking() asks nothing of the kernel, so it cannot notice that the number was closed behind its back",
    ),
)

# Windows' own: skipped with the plain class, for want of socket.share; here it has to pass.
WINDOWS_ONLY: Final = "TestSocketSharing"


class Outcome(NamedTuple):
    """How one test ended: passed, failed, skipped, hung or crashed; and the end of its traceback."""

    kind: str
    detail: str = ""


class Verdict(NamedTuple):
    """The comparison of both runs: tests that passed with both, and what did not, listed or not."""

    passed: list[str]
    listed: list[tuple[str, Deviation, Outcome]]
    unlisted: list[tuple[str, Outcome]]
    stale: list[Deviation]
    uncounted: Counter[str]


# -- the worker: this file again, in a process of its own ----------------------------------------------------------


class _Reporter(unittest.TestResult):
    """Tells each test's begin and outcome through a pipe, as lines of JSON."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._pipe = os.fdopen(number, "w", buffering=1)
        self._outcome = Outcome("passed")

    def tell(self, *message: Any) -> None:
        self._pipe.write(json.dumps(message) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = Outcome("passed")
        self.tell("begin", _name(test))

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.tell("end", _name(test), *self._outcome)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._outcome = Outcome("skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(test, err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._fail(test, err)

    def _fail(self, test: unittest.TestCase, err: Any) -> None:
        text: str = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]  # unittest's own
        self._outcome = Outcome("failed", text.strip())


def _name(test: unittest.TestCase) -> str:
    return ".".join(test.id().split(".")[-2:])


def _tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests_of(test)
        else:
            yield test


def _work(side: str, number: int) -> int:
    """Run the tests named on standard input, in a directory of their own; with no names, tell what there is."""
    os.set_inheritable(number, False)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    names = json.loads(sys.stdin.read())
    reporter = _Reporter(number)
    if side == "shared":
        _substitute()
    module = __import__(_MODULE, fromlist=["*"])
    if side == "shared":
        getattr(module, WINDOWS_ONLY).__unittest_skip__ = False
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    found = {_name(test): test for test in _tests_of(suite)}
    if names:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            unittest.TestSuite(found[name] for name in names).run(reporter)
    else:
        for name in found:
            reporter.tell("name", name)
    reporter.tell("over")
    return 0


def _substitute() -> None:
    """Put SharedSocket where the socket module and its users look for their class."""
    import socket

    import sharedsock

    # The suite counts threads: the one that goes with the channel to the registry has to be there before.
    near, far = sharedsock.socketpair()
    with near, far, near.dup():
        pass
    socket.socket = sharedsock.SharedSocket  # type: ignore[misc]
    socket.fromshare = sharedsock.fromshare  # type: ignore[attr-defined]  # typeshed: Windows only


# -- the controller ------------------------------------------------------------------------------------------------


class _Worker:
    """One worker process: its messages, each within a time; killed with its own children when it is left."""

    def __init__(self, side: str, names: Sequence[str]) -> None:
        reading, writing = os.pipe()
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the worker: end() closes it
        with os.fdopen(writing, "w"):
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, "--worker", side, str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stacks,
                pass_fds=(writing,),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(names)).encode())
        self._process.stdin.close()
        self._number = reading
        self._buffer = b""

    def messages(self, stall_s: float) -> Iterator[list[Any]]:
        """Yield what it tells; end with ["over"], ["hung", stacks] or ["crashed", what it last said]."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._number, selectors.EVENT_READ)
            bound_s = _START_S
            while True:
                while b"\n" in self._buffer:
                    line, self._buffer = self._buffer.split(b"\n", 1)
                    message = json.loads(line)
                    bound_s = stall_s if message[0] == "begin" else _START_S
                    yield message
                    if message == ["over"]:
                        return
                if not selector.select(bound_s):
                    yield ["hung", self._dump()]
                    return
                chunk = os.read(self._number, 1 << 16)
                if not chunk:
                    self._process.wait()
                    yield ["crashed", f"exit {self._process.returncode}\n{self._said()}"]
                    return
                self._buffer += chunk

    def _dump(self) -> str:
        """Let faulthandler write every thread's stack, and return it."""
        self._process.send_signal(signal.SIGUSR1)
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
        return self._said()

    def _said(self) -> str:
        self._stacks.seek(0)
        return self._stacks.read().decode(errors="replace").strip()[-4000:]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: itself and what its tests have started
        self._process.wait()
        os.close(self._number)
        self._stacks.close()


def _names() -> list[str]:
    worker = _Worker("plain", [])
    try:
        found = []
        for kind, *rest in worker.messages(STALL_S):
            if kind == "name":
                found.append(rest[0])
            elif kind != "over":
                raise RuntimeError(f"{_MODULE} cannot be listed: {kind} {rest}")
        return found
    finally:
        worker.end()


def run(side: str, names: Sequence[str], stall_s: float = STALL_S) -> dict[str, Outcome]:
    """Run tests on one side, "plain" or "shared"; return how each ended. A hung or crashed test costs one worker."""
    outcomes: dict[str, Outcome] = {}
    left = list(names)
    while left:
        worker = _Worker(side, left)
        current = ""
        try:
            for kind, *rest in worker.messages(stall_s):
                if kind == "begin":
                    current = rest[0]
                elif kind == "end":
                    outcomes[rest[0]] = Outcome(*rest[1:])
                    current = ""
                elif kind == "over":
                    return outcomes
                elif kind in ("hung", "crashed"):
                    if not current:
                        raise RuntimeError(f"a {side} worker {kind} between two tests: {rest[0]}")
                    outcomes[current] = Outcome(kind, rest[0])
        finally:
            worker.end()
        left = left[left.index(current) + 1 :]
    return outcomes


def _run_both(names: Sequence[str], stall_s: float) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Run both sides side by side."""
    results: dict[str, dict[str, Outcome]] = {}
    side = threading.Thread(target=lambda: results.update(plain=run("plain", names, stall_s)))
    side.start()
    try:
        shared = run("shared", names, stall_s)
    finally:
        side.join()
    return results["plain"], shared


def _has_to_pass(name: str, plain: dict[str, Outcome]) -> bool:
    return plain.get(name, Outcome("absent")).kind == "passed" or name.startswith(WINDOWS_ONLY + ".")


def _listing(name: str) -> Deviation | None:
    return next((row for row in DEVIATIONS if fnmatchcase(name, row.test)), None)


def compare(plain: dict[str, Outcome], shared: dict[str, Outcome]) -> Verdict:
    """Sort tests by what both sides made of them."""
    verdict = Verdict([], [], [], [], Counter())
    used = set()
    for name in plain:
        if not _has_to_pass(name, plain):
            verdict.uncounted[plain[name].kind] += 1
            continue
        outcome = shared.get(name, Outcome("absent"))
        row = _listing(name)
        if outcome.kind == "passed":
            verdict.passed.append(name)
        elif row is None:
            verdict.unlisted.append((name, outcome))
        else:
            used.add(row)
            verdict.listed.append((name, row, outcome))
    seen = [row for row in DEVIATIONS if any(fnmatchcase(name, row.test) for name in verdict.passed)]
    verdict.stale.extend(row for row in seen if row not in used)
    return verdict


def _select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if not patterns or any(pattern in name for pattern in patterns)]


def _page(verdict: Verdict, is_wordy: bool) -> Iterator[str]:
    total = len(verdict.passed) + len(verdict.listed) + len(verdict.unlisted)
    yield f"Python {sys.version.split()[0]}: {_MODULE} with SharedSocket for socket.socket"
    yield f"  passed        {len(verdict.passed):4} of {total} that the plain class passes here, or only Windows runs"
    yield f"  deviations    {len(verdict.listed):4} listed, {len(verdict.unlisted)} not"
    uncounted = ", ".join(f"{count} {kind}" for kind, count in sorted(verdict.uncounted.items())) or "none"
    yield f"  not counted   {sum(verdict.uncounted.values()):4} (with the plain class: {uncounted})"
    for name, row, outcome in sorted(verdict.listed):
        yield f"  {row.rule:10} {name} {outcome.kind}: {row.why}"
    for row in verdict.stale:
        yield f"  listed, but passes: {row.test}"
    for name, outcome in verdict.unlisted:
        yield f"  NOT LISTED {name} {outcome.kind}"
        lines = outcome.detail.splitlines()
        yield from (f"      {line}" for line in (lines if is_wordy else lines[-1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if there is a deviation that is not listed, or one listed that is none."""
    parser = argparse.ArgumentParser(description="CPython's test_socket with SharedSocket for socket.socket")
    parser.add_argument("names", nargs="*", help="parts of test names; without any, all")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only each N-th of them, from the I-th on")
    parser.add_argument("--stall", type=float, default=STALL_S, metavar="SECONDS", help="silence that means hung")
    parser.add_argument("--verbose", action="store_true", help="the whole traceback of what is not listed")
    options = parser.parse_args(arguments)
    first, _, step = options.part.partition("/")
    names = _select(_names(), options.names)[int(first) - 1 :: int(step)]
    if not names:
        parser.error("no such test")
    plain, shared = _run_both(names, options.stall)
    verdict = compare(plain, shared)
    if verdict.unlisted:
        # Many of these tests are about time, and the machine has other work: what does not come back was that.
        again = [name for name, _ in verdict.unlisted]
        shared |= run("shared", again, options.stall)
        verdict = compare(plain, shared)
    for line in _page(verdict, options.verbose):
        print(line)
    return 1 if verdict.unlisted or verdict.stale or not verdict.passed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        raise SystemExit(_work(sys.argv[2], int(sys.argv[3])))
    raise SystemExit(main())
