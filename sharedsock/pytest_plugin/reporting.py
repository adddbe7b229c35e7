"""What was found, told once, by the controller: on the terminal, as JSON lines, to GitHub.

Findings arrive with the tests' reports, from this process or from workers, and at the end of a worker. Under xdist the
controller checks nothing itself, so nothing is told twice. JUnit has them as properties of the test case already.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Generator
from typing import Any, Final

import pytest

from sharedsock.pytest_plugin.checking import FINDINGS
from sharedsock.pytest_plugin.session import Session

__all__ = ["Hooks", "Reporting"]

_MOST_SHOWN: Final = 20
_MOST_LINES: Final = 8
_WORST_FIRST: Final = ("references", "sockets", "processes", "threads", "descriptors")


_Status = tuple[str, str, tuple[str, dict[str, bool]]]


class Hooks:
    """Hooks of this plug-in's own."""

    def pytest_sharedsock_findings(self, findings: list[dict[str, Any]]) -> None:
        """Called in the controller with findings that belong to no test's report."""


class Reporting:
    """Collects and tells the findings of a session.

    Raises:
        pytest.UsageError: the report's file cannot be written.
    """

    def __init__(self, session: Session) -> None:
        self._config = session.config
        self._fails = session.settings.leaks_action == "fail"
        self._path = session.settings.report
        self._found: list[dict[str, Any]] = []
        self._late = False
        if self._path:
            try:
                with open(self._path, "w", encoding="utf-8"):
                    pass
            except OSError as error:
                raise pytest.UsageError(f"no report can be written to {self._path}: {error.strerror}") from None

    # -- collecting ---------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what a test's report brings."""
        for values in getattr(report, FINDINGS, ()):
            self._take(values | {"after": report.nodeid})

    def pytest_sharedsock_findings(self, findings: list[dict[str, Any]]) -> None:
        """Take in what a session's end brings."""
        for values in findings:
            self._take(values | {"after": ""})
            self._late = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker's end brings; one that crashed brings nothing."""
        self.pytest_sharedsock_findings(getattr(node, "workeroutput", {}).get("sharedsock_findings", []))

    def _take(self, values: dict[str, Any]) -> None:
        values["reproduce"] = self._command(values)
        self._found.append(values)
        if self._path:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def _command(self, values: dict[str, Any]) -> str:
        """Return the command that shows a finding again, from where pytest was called."""
        words = ["python", "-m", "pytest"]
        if values["after"]:
            words.append(str(self._config.cwd_relative_nodeid(values["after"])))
        if self._config.pluginmanager.has_plugin("xdist"):
            words.append("-n0")
        return shlex.join([*words, f"--sharedsock-leaks={values['kind']}"])

    # -- telling ------------------------------------------------------------------------------------------------

    def pytest_report_teststatus(self, report: pytest.TestReport) -> _Status | None:
        """A test that fails by what it leaves has a letter of its own."""
        found = getattr(report, FINDINGS, ())
        if report.when == "teardown" and report.failed and any(one["verdict"] == "fail" for one in found):
            return "leaked", "L", ("LEAKED", {"red": True})
        return None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """What was left at the end of a worker fails the session as well."""
        result = yield
        if self._late and self._fails and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the findings, worst first and not more than a screen or two of them."""
        if not self._found:
            return
        found = sorted(self._found, key=lambda one: (one["verdict"] != "fail", _WORST_FIRST.index(one["kind"])))
        terminalreporter.section(f"sharedsock: {len(found)} left behind")
        for values in found[:_MOST_SHOWN]:
            worker = f" [{values['worker']}]" if values["worker"] else ""
            verdict = "" if values["verdict"] in ("fail", "warn", "report") else f" ({values['verdict']})"
            terminalreporter.write_line(f"{values['after'] or values['test']}{worker}{verdict}", bold=True)
            for line in _lines(values):
                terminalreporter.write_line(f"  {line}")
            terminalreporter.write_line(f"  again: {values['reproduce']}")
        if len(found) > _MOST_SHOWN:
            terminalreporter.write_line(f"... and {len(found) - _MOST_SHOWN} more; --sharedsock-report=FILE has all")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            self._tell_github(terminalreporter, found)

    def _tell_github(self, terminalreporter: pytest.TerminalReporter, found: list[dict[str, Any]]) -> None:
        """Annotate the lines that opened something, and add a table to the step's summary."""
        for values in found[:_MOST_SHOWN]:
            level = "error" if values["verdict"] == "fail" else "warning"
            path, _, line = values["place"].partition(" in ")[0].rpartition(":")
            where = f" file={_property(_relative(path))},line={line}," if line.isdigit() else " "
            title = _property(f"sharedsock: {values['kind']} left behind")
            text = _data("\n".join([*_lines(values), f"again: {values['reproduce']}"]))
            terminalreporter.write_line(f"::{level}{where}title={title}::{text}")
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            rows = ["", f"### sharedsock: {len(found)} left behind", "", "| test | kind | what | place | again |"]
            rows.append("| --- | --- | --- | --- | --- |")
            for values in found[:_MOST_SHOWN]:
                cells = (values["after"] or values["test"], values["kind"], values["what"], values["place"])
                rows.append(f"| {' | '.join(map(_cell, cells))} | `{_cell(values['reproduce'])}` |")
            with open(summary, "a", encoding="utf-8") as file:
                file.write("\n".join(rows) + "\n")


def _lines(values: dict[str, Any]) -> list[str]:
    from sharedsock.testing.findings import finding_of

    known = {name: value for name, value in values.items() if name not in ("verdict", "after", "reproduce")}
    lines = finding_of(known).lines()
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 2], "  ...", lines[-1]]


def _relative(path: str) -> str:
    workspace = os.environ.get("GITHUB_WORKSPACE", os.getcwd())
    return os.path.relpath(path, workspace) if path.startswith(workspace + os.sep) else path


# https://docs.github.com/actions: workflow commands; % and line ends are escaped, in properties : and , as well.
def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
