"""Beside other plug-ins: neither breaks the other, and no leak is told that is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

ALL = "--sharedsock-leaks=all"


def beside(module: str) -> pytest.MarkDecorator:
    """Skip a test where a plug-in is not installed, because there is no wheel of it."""
    return pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"{module} is not installed")


@beside("pytest_timeout")
@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeout(session: Callable[..., Any], method: str) -> None:
    """Its timer is around the whole test, so none of the test's; a test it ends has its actors killed."""
    done = session(
        """
        import os, pytest, sharedsock as ss
        pids = []

        def test_fine(actors):
            pids.append(actors.start("a")[0].pid)

        {blocked}
        def test_blocked(actors):
            ours, peer = ss.socketpair()
            a, = actors.share(ours, count=1)
            pids.append(a.pid)
            a.recv(1)

        def test_after():
            assert not any(os.path.exists(f"/proc/{{pid}}") for pid in pids)
        """.format(blocked="@pytest.mark.timeout(1)" if method == "signal" else "@pytest.mark.skip"),
        ALL,
        "--timeout=30",
        f"--timeout-method={method}",
        plugins=("timeout",),
    )
    counts = done.counts()
    assert (counts["passed"], counts.get("failed", 0)) == (2, int(method == "signal")), done.out
    assert "leaked" not in counts


@beside("pytest_rerunfailures")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_rerunfailures(session: Callable[..., Any], workers: tuple[str, ...]) -> None:
    """Each attempt is checked by itself; a leak is told of the attempt that left it."""
    done = session(
        """
        import os, socket
        tries = []

        def test_flaky(actors):
            tries.append(actors.start("a"))
            assert len(tries) > 1

        def test_leaks():
            os.open(".", os.O_RDONLY)

        def test_clean():
            socket.socket().close()
        """,
        ALL,
        "--sharedsock-leaks-timeout=0.2",
        "--reruns=2",
        *workers,
        plugins=("rerunfailures",),
    )
    counts = done.counts()
    # The leaking test passes and leaks three times, the flaky one fails and then passes.
    assert (done.code, counts["passed"], counts["rerun"], counts["leaked"]) == (1, 5, 3, 1), done.out
    assert [one["after"] for one in done.findings if one["verdict"] == "fail"] == ["test_inner.py::test_leaks"] * 3


@beside("pytest_asyncio")
def test_asyncio(session: Callable[..., Any]) -> None:
    """Event loops and their descriptors are the fixtures'."""
    done = session(
        """
        import asyncio, pytest, pytest_asyncio

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def server(): yield await asyncio.sleep(0)

        async def serve(reader, writer):
            writer.write(await reader.read(16))
            writer.close()

        @pytest.mark.asyncio
        async def test_server_on_a_lease(tcp_listener):
            async with await asyncio.start_server(serve, sock=tcp_listener.dup()):
                reader, writer = await asyncio.open_connection(*tcp_listener.address)
                writer.write(b"there and back")
                assert await reader.read(16) == b"there and back"
                writer.close()
                await writer.wait_closed()

        @pytest.mark.asyncio(loop_scope="module")
        async def test_wider_loop(server): await asyncio.sleep(0)

        @pytest.mark.asyncio(loop_scope="module")
        async def test_same_loop(server): await asyncio.sleep(0)

        def test_no_loop(): pass
        """,
        ALL,
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        plugins=("asyncio",),
    )
    assert (done.code, done.counts()["passed"], done.findings) == (0, 4, []), done.out


@beside("anyio")
def test_anyio(session: Callable[..., Any]) -> None:
    done = session(
        """
        import anyio, pytest

        @pytest.fixture
        def anyio_backend(): return "asyncio"

        @pytest.mark.anyio
        async def test_connects_to_a_lease(tcp_listener):
            async with await anyio.connect_tcp(*tcp_listener.address) as stream:
                server, _ = tcp_listener.accept()
                with server:
                    await stream.send(b"x")
                    assert server.recv(1) == b"x"

        @pytest.mark.anyio
        async def test_thread(): await anyio.to_thread.run_sync(print)
        """,
        ALL,
        plugins=("anyio",),
    )
    assert (done.code, done.counts()["passed"], done.findings) == (0, 2, []), done.out


@beside("pytest_socket")
def test_socket(session: Callable[..., Any]) -> None:
    """Its ban is of what tests open: what we need ourselves are Unix sockets, and a lease was asked for."""
    done = session(
        """
        import socket, pytest, pytest_socket, sharedsock as ss

        def test_actors(actors):
            ours, peer = ss.socketpair()
            with ours, peer:
                a, = actors.share(ours, count=1)
                peer.sendall(b"x")
                assert a.recv(1) == b"x"

        def test_unix(unix_listener):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(unix_listener.path)

        def test_tcp(tcp_listener):
            assert tcp_listener.port
            with pytest.raises(pytest_socket.SocketBlockedError):
                socket.socket(socket.AF_INET)

        def test_shared(shared_socket_factory):
            assert shared_socket_factory("pair", create=lambda: ss.socketpair()[0]).fileno() >= 0
        """,
        ALL,
        "--disable-socket",
        "--allow-unix-socket",
        plugins=("socket",),
    )
    assert (done.code, done.counts()["passed"], done.findings) == (0, 4, []), done.out


@beside("pytest_randomly")
def test_randomly(session: Callable[..., Any]) -> None:
    done = session(
        """
        import os, pytest

        @pytest.mark.parametrize("number", range(12))
        def test_it(tcp_listener, number):
            if number % 4 == 0:
                os.open(".", os.O_RDONLY)
        """,
        "--sharedsock-leaks-timeout=0.1",
        "--randomly-seed=7",
        plugins=("randomly",),
    )
    counts = done.counts()
    assert (done.code, counts["passed"], counts["leaked"]) == (1, 12, 3), done.out
    told = [one["after"] for one in done.findings]
    assert sorted(told) == [f"test_inner.py::test_it[{number}]" for number in (0, 4, 8)]


@beside("pytest_cov")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_cov(session: Callable[..., Any], sessions: Any, workers: tuple[str, ...]) -> None:
    """What coverage keeps open is not a test's."""
    done = session(
        """
        import socket

        def test_one(actors):
            actors.start("a")

        def test_two():
            socket.socket().close()
        """,
        ALL,
        "--cov=.",
        "--cov-report=xml",
        *workers,
        plugins=("pytest_cov",),
    )
    assert (done.code, done.counts()["passed"], done.findings) == (0, 2, []), done.out
    assert 'filename="test_inner.py"' in (sessions.directory / "coverage.xml").read_text()
