"""One session of pytest, in the controller or a worker: its run, its settings, and what it tells the run's warden.

Nothing is made before it is needed: a session whose tests use nothing of ours imports nothing and runs no hook of ours
with its tests. The registry of the run is started by whoever shares first; all processes find it by the name that the
controller has drawn.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

from sharedsock.pytest_plugin.marks import Wishes, known_leaks, wishes_of
from sharedsock.pytest_plugin.options import Settings

if TYPE_CHECKING:
    from sharedsock.testing.rendezvous import SharedSockets
    from sharedsock.testing.runs import Run
    from sharedsock.testing.warden import Reporter

__all__ = ["FAILED", "SESSION", "WISHES", "Beats", "Session", "Tests"]

_TREE: Final = "SHAREDSOCK_TREE"
_RUN: Final = "SHAREDSOCK_RUN"

WISHES: Final = pytest.StashKey[Wishes]()
FAILED: Final = pytest.StashKey[bool]()


class Session:
    """The plug-in object of one session.

    Attributes:
        settings: what the options say.
        worker: "gw0" in an xdist worker, "" in the controller and without xdist.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        workerinput = getattr(config, "workerinput", None)
        self.worker = str(workerinput["workerid"]) if workerinput is not None else ""
        self._before: dict[str, str | None] = {name: os.environ.get(name) for name in (_TREE, _RUN)}
        self._run: Run | None = None
        self._reporter: Reporter | None = None
        # Standard error before any capture, for a page that may have to be printed in the middle of a test.
        self._terminal = _terminal_number()
        self._shared: SharedSockets | None = None
        if not self.worker:
            os.environ.pop(_RUN, None)  # of a session that has started ours; this one's comes when it is needed

    # -- the run ------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The run, with its directory and warden; this process belongs to it from here on."""
        if self._run is None:
            from sharedsock.testing.census import Kept, keep
            from sharedsock.testing.runs import begin_run, current_run
            from sharedsock.testing.stacks import enroll, number_in
            from sharedsock.testing.warden import Reporter, start_warden

            run = current_run() or begin_run()
            start_warden(run, hang_timeout_s=self.settings.hang_timeout_s, terminal=self._terminal)
            enroll(run.directory, self.worker or "controller")
            reporter = self._reporter = Reporter(run)
            keep(lambda: Kept(numbers={number_in(run.directory), reporter.fileno()}))
            self._reporter.tell("hello", worker=self.worker)
            self._run = run
        return self._run

    @property
    def shared(self) -> SharedSockets:
        """The sockets that the run shares by name."""
        if self._shared is None:
            from sharedsock.testing.census import keep
            from sharedsock.testing.rendezvous import SharedSockets

            shared = self._shared = SharedSockets(self.run)
            self._forget = keep(shared.kept)
        return self._shared

    def close_shared(self) -> None:
        """Close what this process has of them."""
        if self._shared is not None:
            self._shared.close()
            self._forget()
            self._shared = None

    @property
    def is_watched(self) -> bool:
        """Whether there is a warden to tell anything."""
        return self._reporter is not None

    def tell(self, what: str, **details: Any) -> None:
        """Tell the warden, if there is one."""
        if self._reporter is not None:
            self._reporter.tell(what, **details)

    # -- hooks --------------------------------------------------------------------------------------------------

    @property
    def is_distributing(self) -> bool:
        """Whether this is a controller that has workers run the tests."""
        return not self.worker and getattr(self.config.option, "dist", "no") != "no"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Name the run and its registry before xdist starts workers; start the warden now if it is to watch for hangs.

        Without workers a name is drawn by whoever needs it first. A registry that was named by who started us stays.
        """
        if self.is_distributing:
            from sharedsock.registry.directory import tree_directory
            from sharedsock.testing.runs import begin_run

            tree_directory()
            begin_run()
        if self.settings.hang_timeout_s:
            assert self.run is not None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Be on the page of a hang too, if a worker that has collected watches tests with a time of their own."""
        from sharedsock.testing.runs import current_run

        run = current_run()
        if run is not None and run.has_directory:
            assert self.run is not None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Close what this process shares with the run."""
        self.close_shared()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Leave the run; the controller ends it."""
        self.close_shared()
        if self._run is not None and self._reporter is not None:
            from sharedsock.testing.stacks import withdraw

            self.tell("bye")
            self._reporter.close()
            withdraw(self._run.directory)
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        if not self.worker:
            self._end_run()
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _end_run(self) -> None:
        if _RUN not in os.environ:
            return
        from sharedsock.testing.runs import current_run

        run = current_run()
        if run is not None and run.has_directory:
            if self._reporter is None:  # a worker had needed the warden, we had not
                from sharedsock.testing.warden import Reporter

                reporter = Reporter(run)
                reporter.tell("bye")
                reporter.close()
            run.remove_directory()


class Tests:
    """What concerns single tests; a plug-in object of a process in which one of them asks for something of ours."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell the warden when a test begins and ends."""
        with suppress(ValueError):  # told by the test's setup
            item.stash[WISHES] = wishes_of(item)
        wishes = item.stash.get(WISHES, Wishes())
        timeout_s = self._session.settings.hang_timeout_s if wishes.timeout_s is None else wishes.timeout_s
        if wishes.timeout_s:
            assert self._session.run is not None
        if not self._session.is_watched:
            return (yield)
        from sharedsock.testing.stacks import note_doing

        note_doing(item.nodeid)
        self._session.tell("begin", test=item.nodeid, timeout_s=timeout_s)
        try:
            return (yield)
        finally:
            self._session.tell("end")
            note_doing("")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Refuse a marker that says what is not known; another attempt of a test has not failed yet."""
        item.stash[FAILED] = False
        try:
            wishes_of(item)
            known_leaks(item)
        except ValueError as error:
            pytest.fail(str(error), pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember that a test has failed: its actors are then killed, not asked, and what it leaves is no verdict."""
        report = yield
        if report.failed:
            item.stash[FAILED] = True
        return report


class Beats:
    """Tells the warden of every progress, so that it can tell a hang outside of any test."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_collectreport(self) -> None:
        """Collecting is progress."""
        self._session.tell("beat")

    def pytest_runtest_logreport(self) -> None:
        """So is a report, here or from a worker."""
        self._session.tell("beat")


SESSION: Final = pytest.StashKey[Session]()


def _terminal_number() -> int | None:
    """Return a duplicate of standard error: while pytest is being configured, no capture is active."""
    with suppress(OSError):
        return os.dup(2)
    return None
