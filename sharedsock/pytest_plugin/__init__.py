"""FACE: the pytest plug-in. `pip install "sharedsock[pytest]"`, then plain `pytest -n auto`; no conftest is needed.

Fixtures, markers and options are declared here; what they do is imported when a test asks for it (P16).
"""

from __future__ import annotations

import pytest

from sharedsock.pytest_plugin.checking import Checking
from sharedsock.pytest_plugin.fixtures import (
    actors,
    shared_socket_factory,
    tcp_listener,
    tcp_listener_factory,
    unix_listener,
)
from sharedsock.pytest_plugin.marks import declare_marks
from sharedsock.pytest_plugin.options import add_options, read_settings
from sharedsock.pytest_plugin.reporting import Hooks, Reporting
from sharedsock.pytest_plugin.session import SESSION, Session

__all__ = [
    "actors",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_configure",
    "shared_socket_factory",
    "tcp_listener",
    "tcp_listener_factory",
    "unix_listener",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hook by which findings that belong to no test reach the reports."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and take part in the session."""
    declare_marks(config)
    session = Session(config, read_settings(config))
    config.stash[SESSION] = session
    config.pluginmanager.register(session, "sharedsock-session")
    # Under xdist the controller runs no test: it has only to tell what the workers found.
    if session.worker or getattr(config.option, "dist", "no") == "no":
        config.pluginmanager.register(Checking(session), "sharedsock-checking")
    if not session.worker:
        config.pluginmanager.register(Reporting(session), "sharedsock-reporting")
