"""FACE: the pytest plug-in. `pip install "sharedsock[pytest]"`, then plain `pytest -n auto`; no conftest is needed.

Fixtures, markers and options are declared here; what they do is imported when a test asks for it (P16).
"""

from __future__ import annotations

import pytest

from sharedsock.pytest_plugin.fixtures import (
    actors,
    shared_socket_factory,
    tcp_listener,
    tcp_listener_factory,
    unix_listener,
)
from sharedsock.pytest_plugin.marks import asks_for_something, declare_marks, has_timeout
from sharedsock.pytest_plugin.options import add_options, check_words, read_settings
from sharedsock.pytest_plugin.session import SESSION, Beats, Session, Tests

__all__ = [
    "actors",
    "pytest_addoption",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "shared_socket_factory",
    "tcp_listener",
    "tcp_listener_factory",
    "unix_listener",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Refuse an option of ours that is none, before the command line is parsed."""
    check_words(args)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and take part in the session."""
    declare_marks(config)
    settings = read_settings(config)
    session = Session(config, settings)
    config.stash[SESSION] = session
    manager = config.pluginmanager
    manager.register(session, "sharedsock-session")
    if settings.hang_timeout_s:
        manager.register(Beats(session), "sharedsock-beats")
    # Under xdist the controller runs no test: it has only to tell what the workers found.
    if not session.is_distributing:
        arming = _Arming(session)
        manager.register(arming, "sharedsock-arming")
        if settings.leaks_baseline or settings.report:  # files are opened now, so that what is wrong with them is told
            arming.arm()
    else:
        _register_reporting(session)


class _Arming:
    """Waits for the collected tests: hooks of ours run with them only if one of them asks for something of ours."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_armed = False

    @pytest.hookimpl(tryfirst=True)  # before xdist's, which tells the controller
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take part in the tests, if there is something to do."""
        settings = self._session.settings
        if settings.leaks or settings.hang_timeout_s or any(map(asks_for_something, session.items)):
            self.arm()
        # Every worker collects all tests, so all are on the page of a hang, whoever runs the test that hangs.
        if self._session.worker and any(map(has_timeout, session.items)):
            assert self._session.run is not None

    def arm(self) -> None:
        """Take part in the tests."""
        if not self._is_armed:
            from sharedsock.pytest_plugin.checking import Checking

            self._is_armed = True
            manager = self._session.config.pluginmanager
            manager.register(Tests(self._session), "sharedsock-tests")
            manager.register(Checking(self._session), "sharedsock-checking")
            if not self._session.worker:
                _register_reporting(self._session)


def _register_reporting(session: Session) -> None:
    from sharedsock.pytest_plugin.reporting import Hooks, Reporting

    session.config.pluginmanager.add_hookspecs(Hooks)
    session.config.pluginmanager.register(Reporting(session), "sharedsock-reporting")
