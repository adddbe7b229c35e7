"""Leak checks of tests: which tests, from when to when, and what becomes of what is found.

A test is checked for the kinds its marker names (all without a word), or the option, or, if nothing was said, for all
kinds if it uses a fixture of ours. The count before comes right before its setup, so that what runs around the whole
test (a timeout's timer) is no part of it; the count after comes after its teardown. What a fixture of a wider scope
makes meanwhile is the fixture's: it has to be gone at the end of the session. After a failed test nothing is a
verdict: its traceback keeps every local alive; what was found is reported all the same.

In a worker as in the controller; the reports bring the findings to the controller (see `reporting`).
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from sharedsock.pytest_plugin.marks import FIXTURES, Wishes, known_leaks
from sharedsock.pytest_plugin.session import FAILED, WISHES, Session

if TYPE_CHECKING:
    from sharedsock.testing.census import Census, Residue
    from sharedsock.testing.findings import Finding
    from sharedsock.testing.leaks import Check
    from sharedsock.testing.origins import Recording

__all__ = ["FINDINGS", "Checking", "LeakWarning"]


class LeakWarning(pytest.PytestWarning):
    """A test has left something behind, and the action is "warn"."""


_CHECK: Final = pytest.StashKey["Check"]()
_FOUND: Final = pytest.StashKey[list[dict[str, Any]]]()


class Checking:
    """The checks of one process.

    Raises:
        pytest.UsageError: the baseline cannot be read.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings
        self._recording: Recording | None = None
        self._active: Check | None = None
        self._kept: list[tuple[str, Census, Residue]] = []
        self._baseline = _read_baseline(self._settings.leaks_baseline)

    # -- which tests --------------------------------------------------------------------------------------------

    def _kinds(self, item: pytest.Item) -> frozenset[str]:
        settings = self._settings
        if settings.leaks is not None and not settings.leaks:
            return frozenset()
        wished = item.stash.get(WISHES, Wishes()).leaks
        if wished is not None:
            kinds = wished
        elif settings.leaks is not None:
            kinds = settings.leaks
        else:
            uses_ours = not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
            kinds = _ALL if uses_ours else frozenset()
        for known in known_leaks(item):
            kinds |= known.kinds
        return kinds | {kind for kind, _, _ in self._baseline.get(item.nodeid, ())}

    # -- from when to when --------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Count what is there before the test."""
        if _CHECK in item.stash:  # an earlier attempt of a test that is run again
            del item.stash[_CHECK]
        try:
            kinds = self._kinds(item)
        except ValueError:  # a marker that says what is not known: the session's own setup refuses it
            kinds = frozenset()
        if kinds:
            self._begin(item, kinds)
        return (yield)

    def _begin(self, item: pytest.Item, kinds: frozenset[str]) -> None:
        from sharedsock.testing.leaks import Check
        from sharedsock.testing.origins import Recording

        if self._recording is None:
            self._recording = Recording()
            self._recording.start()
        self._recording.begin(item.nodeid)
        self._active = item.stash[_CHECK] = Check(kinds, self._recording, self._settings.leaks_timeout_s)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """What a fixture of a wider scope makes outlives the test that happens to be the first to use it."""
        if self._active is None or fixturedef.scope == "function":
            return (yield)
        from sharedsock.testing.census import Census

        since = Census(self._active.kinds)
        try:
            return (yield)
        finally:
            residue = self._active.excuse(since)
            if residue:
                self._kept.append((f"fixture {fixturedef.argname} ({fixturedef.scope})", since, residue))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Count what is there after the test, and judge."""
        try:
            result = yield
        except BaseException:
            item.stash[FAILED] = True
            self._judge(item)
            raise
        verdict = self._judge(item)
        if verdict:
            pytest.fail(verdict, pytrace=False)
        return result

    def _judge(self, item: pytest.Item) -> str:
        """Note what was found on the test; return why it fails, or nothing."""
        check, self._active = item.stash.get(_CHECK, None), None
        if check is None:
            return ""
        findings = [self._placed(finding) for finding in check.findings()]
        if item.stash.get(FAILED, False):
            item.stash[_FOUND] = [finding.as_dict() | {"verdict": "the test failed"} for finding in findings]
            return ""
        new, known, gone = self._sorted(item, findings)
        item.stash[_FOUND] = [
            *(finding.as_dict() | {"verdict": self._settings.leaks_action} for finding in new),
            *(finding.as_dict() | {"verdict": f"known: {reason}"} for finding, reason in known),
        ]
        item.user_properties += [("sharedsock_leak", f"{one.kind}: {one.what}") for one in new]
        text = "\n".join(line for finding in new for line in finding.lines())
        match self._settings.leaks_action:
            case "fail" if new:
                return "\n".join([f"{item.nodeid} leaves behind:", text, *gone])
            case "warn" if new:
                item.warn(LeakWarning(f"{item.nodeid} leaves behind:\n{text}"))
        return "\n".join(gone)

    def _placed(self, finding: Finding) -> Finding:
        return replace(finding, worker=self._session.worker)

    # -- what is known ------------------------------------------------------------------------------------------

    def _sorted(
        self, item: pytest.Item, findings: list[Finding]
    ) -> tuple[list[Finding], list[tuple[Finding, str]], list[str]]:
        """Return what is new, what is known and why, and what is known and has not been found."""
        known: list[tuple[Finding, str]] = []
        gone: list[str] = []
        for mark in known_leaks(item):
            seen = [finding for finding in findings if finding.kind in mark.kinds]
            known += [(finding, mark.reason) for finding in seen]
            findings = [finding for finding in findings if finding.kind not in mark.kinds]
            missing = mark.kinds - {finding.kind for finding in seen}
            if missing and mark.strict:
                gone.append(
                    f"{item.nodeid} no longer leaks {', '.join(sorted(missing))} ({mark.reason}): "
                    "take its known_leak marker away"
                )
        for line in self._baseline.get(item.nodeid, ()):
            match = next((finding for finding in findings if finding.fingerprint == line), None)
            if match is None:
                kind, _, place = line
                gone.append(
                    f"{item.nodeid} no longer leaks {kind} made at {place or 'an unknown place'}: "
                    f"take its line out of {self._settings.leaks_baseline}"
                )
            else:
                findings.remove(match)
                known.append((match, "baseline"))
        return findings, known, gone

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the teardown's report carry what was found."""
        report = yield
        if report.when == "teardown" and (found := item.stash.get(_FOUND, None)):
            setattr(report, FINDINGS, found)
            del item.stash[_FOUND]
        return report

    # -- the end ------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """See that what wider fixtures made has gone with them; findings go to the controller, or to the reports.

        The innermost wrapper: after the last fixtures have ended, before the terminal's wrapper prints its summary.
        """
        result = yield
        found = self._left_by_fixtures()
        if self._recording is not None:
            self._recording.stop()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["sharedsock_findings"] = found
        elif found:
            session.config.pluginmanager.hook.pytest_sharedsock_findings(findings=found)
            if self._settings.leaks_action == "fail" and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def _left_by_fixtures(self) -> list[dict[str, Any]]:
        if not self._kept:
            return []
        from sharedsock.testing.leaks import left_of

        assert self._recording is not None  # something was noted while it was on
        return [
            self._placed(replace(finding, test=fixture)).as_dict() | {"verdict": self._settings.leaks_action}
            for fixture, since, residue in self._kept
            for finding in left_of(since, residue, self._recording, self._settings.leaks_timeout_s)
        ]


FINDINGS: Final = "sharedsock_findings"
"""The attribute of a teardown's report; reports travel with all their attributes."""
_ALL: Final = frozenset({"references", "sockets", "descriptors", "threads", "processes"})


def _read_baseline(path: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return the known leaks of each test, from lines as the report writes them."""
    if not path:
        return {}
    from sharedsock.testing.findings import finding_of

    known: dict[str, list[tuple[str, str, str]]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        values = json.loads(line)
                        finding = finding_of(values)
                    except (ValueError, TypeError) as error:
                        raise pytest.UsageError(f"{path}:{number}: no finding: {error}") from None
                    known.setdefault(values.get("after") or finding.test, []).append(finding.fingerprint)
    except OSError as error:
        raise pytest.UsageError(f"no baseline of leaks at {path}: {error.strerror}") from None
    return known
