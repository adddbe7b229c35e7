"""Leases: a listening socket instead of a port number."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from time import monotonic_ns

import pytest

from sharedsock.testing import Actors, TcpLease, UnixLease, activated, lease_tcp, lease_unix

Holding = tuple[int, int, int]
"""A port, and from when to when (monotonic, in nanoseconds) it was held."""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_lease_listens_and_is_a_plain_blocking_socket(host: str) -> None:
    with lease_tcp(host) as lease:
        assert isinstance(lease, socket.socket)
        assert lease.gettimeout() is None
        assert os.get_blocking(lease.fileno())
        assert not lease.get_inheritable()
        assert lease.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert (lease.host, lease.port) == lease.getsockname()[:2]
        assert lease.url == (f"http://[::1]:{lease.port}" if host == "::1" else f"http://127.0.0.1:{lease.port}")
        with socket.create_connection(lease.address) as client, lease.accept()[0] as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
    assert lease.fileno() == -1


def test_a_lease_blocks_whatever_the_default_timeout_is() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        with lease_tcp() as lease:
            assert os.get_blocking(lease.fileno())
    finally:
        socket.setdefaulttimeout(before)


def test_nobody_else_can_listen_on_a_leased_port() -> None:
    with lease_tcp() as lease, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError) as raised:
            other.bind(lease.address)
        assert raised.value.errno == errno.EADDRINUSE


def test_a_unix_lease_has_a_path_of_its_own_that_goes_with_it() -> None:
    with lease_unix() as lease, socket.socket(socket.AF_UNIX) as client:
        directory = os.path.dirname(lease.path)
        assert os.stat(directory).st_mode & 0o077 == 0
        client.connect(lease.path)
        lease.accept()[0].close()
    assert not os.path.exists(directory)


def test_a_forked_childs_close_leaves_the_path_to_its_owner() -> None:
    with lease_unix() as lease:
        pid = os.fork()
        if pid == 0:
            lease.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.path.exists(lease.path)


def test_a_child_that_is_handed_the_number_accepts() -> None:
    program = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); c, _ = s.accept(); c.sendall(b'served')"
    with lease_tcp() as lease:
        command = [sys.executable, "-S", "-c", program, str(lease.fileno())]
        with socket.create_connection(lease.address) as client:  # before the server is there: it waits in the backlog
            with subprocess.Popen(command, pass_fds=lease.pass_fds) as server:
                lease.close()
                assert client.recv(16) == b"served"
            assert server.returncode == 0


def test_several_leases_go_over_as_listen_fds_in_their_order() -> None:
    program = (
        "import os, socket; assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "for number in range(3, 3 + int(os.environ['LISTEN_FDS'])):\n"
        "    print(socket.socket(fileno=number).getsockname())\n"
    )
    with lease_tcp() as one, lease_tcp("::1") as two, lease_unix() as three:
        leases: list[TcpLease | UnixLease] = [three, two, one]
        # Numbers 3 to 5 may be among our own: none may be lost while they are put in place.
        done = subprocess.run(
            activated([sys.executable, "-S", "-c", program], *leases),
            pass_fds=[lease.fileno() for lease in leases],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [str(lease.getsockname()) for lease in leases]
    with pytest.raises(ValueError, match="no lease"):
        activated(["true"])


# -- many workers -------------------------------------------------------------------------------------------------


def take_leases(count: int, at_once: int) -> list[Holding]:
    """Take leases, so many at once; return what was held when."""
    held = []
    for _ in range(count // at_once):
        leases = []
        for _ in range(at_once):
            leases.append((lease_tcp(), monotonic_ns()))
        for lease, since_ns in leases:
            port = lease.port
            held.append((port, since_ns, monotonic_ns()))
            lease.close()
    return held


def check_then_bind(count: int, at_once: int) -> int:
    """Do the same with ports that are looked up first and bound later; return how many had gone by then."""
    lost = 0
    for _ in range(count // at_once):
        ports = []
        for _ in range(at_once):
            with socket.socket() as looking:
                looking.bind(("127.0.0.1", 0))
                ports.append(looking.getsockname()[1])
        bound = []
        for port in ports:
            made = socket.socket()
            try:
                made.bind(("127.0.0.1", port))
                made.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                lost += 1
            bound.append(made)
        for made in bound:
            made.close()
    return lost


def collisions(held: list[Holding]) -> int:
    """Count the holdings of one port that overlap in time."""
    return sum(one[0] == other[0] and other[1] < one[2] for one, other in pairwise(sorted(held)))


def race(workers: int, each: int, at_once: int) -> tuple[int, int]:
    """Return the collisions of leases, and of ports that were looked up first, among so many workers at once."""
    with Actors("fork", timeout_s=300) as actors:
        company = actors.start(*(f"worker-{number}" for number in range(workers)))
        taking = [actor.thread("main").call(take_leases, each, at_once) for actor in company]
        held = [one for pending in taking for one in pending.value()]
        looking = [actor.thread("main").call(check_then_bind, each, at_once) for actor in company]
        lost = sum(pending.value() for pending in looking)
    assert len(held) == workers * each
    return collisions(held), lost


def test_leases_of_eight_workers_never_collide() -> None:
    assert race(8, 100, 20)[0] == 0


def test_the_count_of_collisions_sees_one() -> None:
    assert collisions([(1, 0, 10), (2, 0, 10), (1, 10, 20)]) == 0
    assert collisions([(1, 0, 10), (2, 0, 10), (1, 9, 20)]) == 1


@pytest.mark.campaign
def test_twenty_thousand_leases_never_collide_where_ports_looked_up_first_do(
    record_property: Callable[[str, object], None],
) -> None:
    leased, lost = race(8, 2500, 50)
    record_property("check_then_bind_lost", lost)
    assert leased == 0
    assert lost > 0
