"""The fixtures: listeners that are handed over, actors, sockets shared by the whole run.

Each imports what it needs when a test asks for it: a session that uses none of them pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from sharedsock.pytest_plugin.session import FAILED, SESSION, WISHES

if TYPE_CHECKING:
    from sharedsock.testing import Actors
    from sharedsock.testing.leases import TcpLease, UnixLease
    from sharedsock.testing.rendezvous import SharedSockets

__all__ = ["actors", "shared_socket_factory", "tcp_listener", "tcp_listener_factory", "unix_listener"]


@pytest.fixture
def tcp_listener() -> Iterator[TcpLease]:
    """A plain TCP socket that listens on a loopback port nobody else has; closed after the test."""
    from sharedsock.testing.leases import lease_tcp

    with lease_tcp() as lease:
        yield lease


@pytest.fixture
def tcp_listener_factory() -> Iterator[Callable[..., TcpLease]]:
    """Makes any number of them: `tcp_listener_factory(host="127.0.0.1", backlog=128)`; closed after the test."""
    from sharedsock.testing.leases import lease_tcp

    with ExitStack() as leases:

        def lease(host: str = "127.0.0.1", *, backlog: int = 128) -> TcpLease:
            made: TcpLease = leases.enter_context(lease_tcp(host, backlog=backlog))
            return made

        yield lease


@pytest.fixture
def unix_listener(request: pytest.FixtureRequest) -> Iterator[UnixLease]:
    """A plain Unix stream socket that listens on a path of its own, which goes with the test."""
    from sharedsock.testing.leases import lease_unix

    run = request.config.stash[SESSION].run
    with lease_unix(run.directory) as lease:
        yield lease


@pytest.fixture
def actors(request: pytest.FixtureRequest) -> Iterator[Actors]:
    """A company of real processes that do what they are told; all of them end with the test.

    The start method is the marker's, or the option's, or multiprocessing's default.
    """
    from sharedsock.testing import Actors

    session = request.config.stash[SESSION]
    wishes = request.node.stash.get(WISHES, None)
    method = (wishes.start_method if wishes is not None else None) or session.settings.start_method
    assert session.run is not None  # so that their stacks can be asked for
    company = Actors(method)
    try:
        yield company
    except BaseException:
        company.kill()
        raise
    if request.node.stash.get(FAILED, False):
        company.kill()  # a failed test may have left them blocked: nothing is to be learned from asking
    else:
        company.close()


@pytest.fixture(scope="session")
def shared_socket_factory(request: pytest.FixtureRequest) -> Iterator[SharedSockets]:
    """Gives the run's socket of a name: `shared_socket_factory("server", create=...)`.

    The first user's process makes it, all workers share it, the close of the last one ends it; each worker closes its
    own at the end of the session, or earlier by itself.
    """
    session = request.config.stash[SESSION]
    yield session.shared
    session.close_shared()
