"""The fixtures in plain sessions: no conftest, with and without workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

EACH_FIXTURE = """
    import http.client, os, socket, subprocess, sys
    import pytest, sharedsock as ss

    def test_tcp_listener(tcp_listener):
        assert isinstance(tcp_listener, socket.socket)
        assert os.get_blocking(tcp_listener.fileno())
        with socket.create_connection(tcp_listener.address) as client, tcp_listener.accept()[0] as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"

    def test_tcp_listener_factory(tcp_listener_factory):
        leases = [tcp_listener_factory() for _ in range(5)] + [tcp_listener_factory(host="::1")]
        assert len({lease.port for lease in leases}) == 6

    def test_unix_listener(unix_listener):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(unix_listener.path)

    def test_actors(actors):
        ours, peer = ss.socketpair()
        with ours, peer:
            one, other = actors.share(ours)
            reading = one.thread("reader").recv(16)
            one.wait_until_blocked("reader")
            other.sendall(b"from the other")
            assert peer.recv(64) == b"from the other"
            peer.sendall(b"to the first")
            assert reading.value() == b"to the first"

    @pytest.mark.sharedsock(start_method="exec")
    def test_marked_actors(actors):
        assert actors.start("a")[0].start_method == "exec"

    @pytest.mark.parametrize("place", range(4))
    def test_shared_by_name(shared_socket_factory, place):
        server = shared_socket_factory("server")
        assert server is shared_socket_factory("server")
        with open(f"seen-{place}", "w") as file:
            file.write(os.environ["SHAREDSOCK_TREE"])
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_every_fixture_works_without_a_conftest(
    session: Callable[..., Any], sessions: Any, workers: tuple[str, ...]
) -> None:
    done = session(EACH_FIXTURE, "-q", *workers)
    assert (done.code, done.counts()["passed"]) == (0, 9), done.out
    assert done.findings == []
    seen = {path.read_text() for path in sessions.directory.glob("seen-*")}
    assert len(seen) == 1, "one registry for the whole run"


SHARED = """
    import os, select, socket, sharedsock as ss

    def meet(what):
        open(f"{what}-{os.environ['PYTEST_XDIST_WORKER']}", "w").close()
        for _ in range(2000):
            if all(os.path.exists(f"{what}-gw{number}") for number in range(4)):
                return
            select.poll().poll(5)
        raise TimeoutError(what)

    def test_all_workers_have_one_socket_until_the_last_has_closed(shared_socket_factory):
        server = shared_socket_factory("server")
        meet("opened")
        assert server.references() == 4
        address = server.getsockname()
        meet("counted")
        if os.environ["PYTEST_XDIST_WORKER"] != "gw3":
            server.close()
            meet("closed")
        else:
            open("closed-gw3", "w").close()
            meet("closed")
            assert server.references() == 1
            with socket.create_connection(address), server.accept()[0]:
                pass
            again = shared_socket_factory("server")
            assert again is server
            server.close()
            try:
                socket.create_connection(address).close()
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError("the last close ends it")
"""


def test_the_last_users_close_ends_a_socket_that_all_workers_share(session: Callable[..., Any]) -> None:
    done = session(SHARED, "-q", "-n4", "--dist=each", "--sharedsock-leaks=all")
    assert (done.code, done.counts()["passed"]) == (0, 4), done.out


def test_the_option_says_how_actors_start_and_a_marker_says_it_nearer(session: Callable[..., Any]) -> None:
    done = session(
        """
        import pytest

        def test_option(actors):
            assert actors.start("a")[0].start_method == "spawn"

        @pytest.mark.sharedsock(start_method="fork")
        def test_marker(actors):
            assert actors.start("a")[0].start_method == "fork"
        """,
        "--sharedsock-start-method=spawn",
    )
    assert (done.code, done.counts()["passed"]) == (0, 2), done.out


def test_the_actors_of_a_failed_test_are_gone_before_the_next(session: Callable[..., Any]) -> None:
    done = session(
        """
        import os, sharedsock as ss
        pids = []

        def test_fails_while_an_actor_is_blocked(actors):
            ours, peer = ss.socketpair()
            a, = actors.share(ours, count=1)
            a.thread("reader").recv(1)
            a.wait_until_blocked("reader")
            pids.append(a.pid)
            assert False

        def test_it_has_gone():
            assert not os.path.exists(f"/proc/{pids[0]}")
        """
    )
    counts = done.counts()
    assert (done.code, counts["failed"], counts["passed"]) == (1, 1, 1), done.out
