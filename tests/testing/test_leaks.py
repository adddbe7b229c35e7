"""`no_leaks()` and `Checkers`: the leak checks without pytest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

import sharedsock as ss
from sharedsock.testing import Actors, Checkers, LeakError, census, no_leaks
from sharedsock.testing.census import Census
from sharedsock.testing.findings import KINDS, SocketLeak, finding_of

QUICK_S = 0.05


@contextmanager
def a_file() -> Iterator[None]:
    number = os.open(os.devnull, os.O_RDONLY)
    yield
    os.close(number)


@contextmanager
def a_socket() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)):
        yield


@contextmanager
def a_thread() -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left")
    thread.start()
    yield
    stop.set()
    thread.join()


@contextmanager
def a_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield
        process.communicate(b"\n")


@contextmanager
def a_zombie() -> Iterator[None]:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield
    os.waitpid(pid, 0)


@contextmanager
def a_ticket() -> Iterator[None]:
    ours, peer = ss.socketpair()
    with peer:
        ticket = ours.share(None)
        ours.close()
        yield
        assert ss.revoke(ticket)


@contextmanager
def a_reference_of_an_actor() -> Iterator[None]:
    with Actors("fork") as actors:
        ours, peer = ss.socketpair()
        with peer:
            with ours:
                actors.share(ours, count=1)
            yield


@pytest.mark.parametrize(
    ("left", "kind", "says"),
    [
        (a_file, "descriptors", "/dev/null"),
        (a_socket, "sockets", "TCP listener 127.0.0.1:"),
        (a_thread, "threads", "left, native id"),
        (a_process, "processes", "-S -c input()"),
        (a_zombie, "processes", "ended, and nobody waited for it"),
        (a_ticket, "references", "a ticket for whoever comes first that nobody has redeemed"),
        (a_reference_of_an_actor, "references", "on a shared AF_UNIX socket"),
    ],
)
def test_each_kind_is_found_and_told_with_its_place(
    left: Callable[[], AbstractContextManager[None]], kind: str, says: str
) -> None:
    block = left()
    with pytest.raises(LeakError) as raised:
        with Checkers.only(kind, grace_s=QUICK_S):
            block.__enter__()
    block.__exit__(None, None, None)
    (finding,) = raised.value.findings
    assert finding.kind == kind
    assert says in finding.what
    if kind != "references" or left is a_ticket:
        assert finding.pid in (os.getpid(), 0)
        assert f"{__file__}:" in finding.place
    assert finding_of(finding.as_dict()) == finding
    assert "left behind:" in str(raised.value)


def test_a_block_that_leaves_nothing_raises_nothing() -> None:
    with no_leaks():
        with a_file(), a_socket(), a_thread(), a_zombie(), a_ticket():
            pass


def test_only_the_kinds_asked_for_are_checked() -> None:
    with a_file():
        pass
    number = -1
    with Checkers.only("sockets", "threads") as check:
        number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)
    assert check.findings == ()


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"sokets is no kind of leak; there are {', '.join(KINDS)}"):
        Checkers.only("sokets")


def test_findings_without_an_error_for_who_wants_none() -> None:
    with Checkers(raises=False, grace_s=QUICK_S) as check:
        made = socket.socket()
    made.close()
    (finding,) = check.findings
    assert isinstance(finding, SocketLeak)
    assert (finding.role, finding.state, finding.thread) == ("unconnected", "CLOSE", "MainThread") or finding.role == ""


def test_an_error_of_the_block_is_not_hidden_by_what_it_left() -> None:
    kept = []
    with pytest.raises(KeyError):
        with no_leaks(grace_s=QUICK_S):
            kept.append(socket.socket())
            raise KeyError
    kept[0].close()


def test_what_goes_within_the_grace_period_is_no_leak() -> None:
    with no_leaks(grace_s=60):
        threading.Timer(0.05, int).start()


def test_a_number_that_was_reused_is_seen_and_one_that_moved_is_not() -> None:
    """By identity: the same count, another socket; another number, the same socket."""
    first = socket.socket()
    before = Census(frozenset({"sockets"}))
    number = first.fileno()
    first.close()
    second = socket.socket()
    assert second.fileno() == number
    assert list(before.residue().descriptors) == [number]
    before = Census(frozenset({"sockets"}))
    moved = second.dup()
    second.close()
    assert not before.residue()
    moved.close()


def test_without_proc_sockets_and_files_are_known_by_their_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "_FILES", "/no/such/directory")
    before = Census(frozenset({"sockets", "descriptors"}))
    with socket.socket() as made, open(os.devnull) as file:
        assert sorted(before.residue().descriptors) == sorted([made.fileno(), file.fileno()])
    assert not before.residue()


def test_connections_the_kernel_ends_by_itself_are_no_leak() -> None:
    """TIME_WAIT belongs to nobody."""
    with no_leaks():
        with socket.create_server(("127.0.0.1", 0)) as door:
            with socket.create_connection(door.getsockname()) as client, door.accept()[0] as server:
                client.shutdown(socket.SHUT_RDWR)
                server.recv(1)


def test_what_an_older_child_starts_is_its_own() -> None:
    program = (
        "import subprocess\ninput()\nchild = subprocess.Popen(['sleep', '300'])\nprint('started', flush=True)\n"
        "input()\nchild.kill()\nchild.wait()\n"
    )
    command = [sys.executable, "-S", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        with Checkers.only("processes"):
            server.stdin.write("\n")
            server.stdin.flush()
            assert server.stdout.readline() == "started\n"
        server.communicate("\n")
