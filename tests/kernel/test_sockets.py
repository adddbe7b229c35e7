"""What a kernel socket of ours is: nonblocking once and for all, close-on-exec, its number kept by whoever uses it."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import textwrap

import pytest

from sharedsock.kernel import numbers, operations, sockets, system, waiting
from sharedsock.kernel.operations import READ, WRITE
from sharedsock.kernel.sockets import ClosedKernel
from sharedsock.model.errors import NotASocket
from tests.kernel import kinds, stage
from tests.kernel.kinds import Pair


def _flags(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_GETFL)


@pytest.mark.fault("S-15")
def test_every_number_is_close_on_exec(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket, waker (both ways), sets, kept file, dead file, reserve: nothing survives an exec."""
    before = numbers.owned()
    kernel = kinds.adopt(pair.local)
    waiting.set_of(kernel, READ)
    waiting.set_of(kernel, WRITE)
    monkeypatch.setattr(system, "make_eventfd", system._no_eventfd)
    other = sockets.open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
    kinds.waker_of(other)
    ours = set(numbers.owned() - before)
    assert len(ours) == 4 + 3
    ours |= {sockets._require_dead_file(socket.AF_UNIX), numbers._reserve}
    assert not any(map(os.get_inheritable, ours))
    kinds.close(other)
    sockets.abort(kernel, "the test")
    kept = sockets.keep_and_bury(kernel, keep=True)
    assert kept is not None
    assert not os.get_inheritable(kept)
    assert not os.get_inheritable(kernel.number)
    numbers.release(kept, numbers.current_era())


@pytest.mark.fault("F-51")
def test_o_nonblock_is_set_once_and_never_toggled(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5: it lives on the file all sharers have in common. No call of ours, with any timeout, touches it again."""
    with pair.local.dup() as other_holder:
        assert not _flags(other_holder.fileno()) & os.O_NONBLOCK
        kernel = kinds.adopt(pair.local)
        assert _flags(other_holder.fileno()) & os.O_NONBLOCK
        pair.peer.send(b"x" * 4)
        for timeout_s in (None, 5.0, 0.0):
            operations.perform(kernel, "recv", READ, timeout_s, kernel.recv, (1,))
            if pair.peer.type == socket.SOCK_DGRAM:
                pair.peer.send(b"x" * 4)
            assert _flags(other_holder.fileno()) & os.O_NONBLOCK
        kinds.close(kernel)
        assert _flags(other_holder.fileno()) & os.O_NONBLOCK


@pytest.mark.fault("F-57")
def test_a_closed_socket_is_out_of_the_sets_before_its_number_is_dead(pair: Pair) -> None:
    """Rule 6: a set that still knew it would keep reporting the socket another holder has open."""
    with pair.local.dup() as other_holder:
        kernel = kinds.adopt(pair.local)
        readers = waiting.set_of(kernel, READ)
        writers = waiting.set_of(kernel, WRITE)
        assert readers is not None
        assert writers is not None
        sockets.abort(kernel, "the test")
        sockets.keep_and_bury(kernel, keep=False)
        pair.peer.send(b"for the other")
        only_the_waker = [(kinds.waker_of(kernel).number, select.EPOLLIN)]
        assert readers.poll(0, 8) == only_the_waker
        assert writers.poll(0, 8) == only_the_waker
        assert other_holder.recv(64) == b"for the other"


def test_the_sets_go_with_the_close() -> None:
    """An error a caller keeps holds the socket's number, and no more: the sets are free when the last has left them."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    numbers_of_sets = [made.number for made in (waiting.set_of(kernel, way) for way in (READ, WRITE)) if made]
    assert numbers.owned().issuperset(numbers_of_sets)
    kinds.close(kernel)
    assert numbers.owned().isdisjoint(numbers_of_sets)
    pair.close()


def test_keep_and_bury_hands_out_the_real_file(pair: Pair) -> None:
    """The kept number is the same socket; the old one answers EBADF; the peer notices nothing."""
    kernel = kinds.adopt(pair.local)
    cookie = system.socket_cookie(kernel.number)
    sockets.abort(kernel, "the test")
    kept = sockets.keep_and_bury(kernel, keep=True)
    assert kept is not None
    assert kept in numbers.owned()
    assert system.socket_cookie(kept) == cookie
    assert sockets.keep_and_bury(kernel, keep=True) is None
    pair.peer.send(b"still there")
    with socket.socket(fileno=os.dup(kept)) as view:
        assert view.recv(64) == b"still there"
    numbers.release(kept, numbers.current_era())


def test_let_go_hands_the_number_to_the_caller(pair: Pair) -> None:
    """`detach`: the same number, open; a call that still has the object gets EBADF."""
    kernel = kinds.adopt(pair.local)
    number = kernel.number
    receive = kernel.recv
    sockets.abort(kernel, "the test")
    sockets.wait_drained(kernel)
    assert sockets.let_go(kernel) == number
    assert number not in numbers.owned()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receive(1)
    del kernel, receive
    with socket.socket(fileno=number) as plain:
        pair.peer.send(b"plain")
        assert plain.recv(64) == b"plain"


@pytest.mark.parametrize("number", [-5, 1 << 30])
def test_adopting_what_is_no_number_changes_nothing(number: int) -> None:
    """EBADF or ValueError, as the socket module says it."""
    before = numbers.owned()
    with pytest.raises((OSError, ValueError)):
        sockets.adopt(number, -1, -1, -1)
    assert numbers.owned() == before


def test_adopting_what_is_no_socket_leaves_it_open() -> None:
    """ENOTSOCK: not ours, untouched."""
    with open("/dev/null") as file:
        before = numbers.owned()
        with pytest.raises(OSError, match="non-socket"):
            sockets.adopt(file.fileno(), -1, -1, -1)
        assert numbers.owned() == before
        os.fstat(file.fileno())


def test_a_closed_kernel_refuses_everything() -> None:
    """What stands where a kernel socket stood; its slot never takes the fast path."""
    closed = ClosedKernel(lambda: NotASocket("closed"), "the test")
    assert (closed.number, closed.aborted, numbers.calm[closed.slot]) == (-1, "the test", 0)
    assert operations.pending(closed) == ()  # type: ignore[arg-type]
    for use in (lambda: closed.recv, lambda: closed.streak, closed.require):
        with pytest.raises(NotASocket):
            use()


def test_open_reports_that_a_number_exists(points: stage.Points) -> None:
    """`open.created`: from here on a kill leaves a socket to the kernel."""
    kernel = sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    assert points.seen == ["open.created"]
    assert not kernel.getblocking()
    assert _flags(kernel.number) & os.O_NONBLOCK


AT_EXIT = """
    import threading
    from sharedsock.kernel import sockets
    from tests.kernel import kinds, stage
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    cycle = [kernel]; cycle.append(cycle)
    call = stage.blocked(kernel, kinds.RECEIVES[0])
    held = kernel.recv
    import builtins
    builtins.held = held
    print("exits")
"""


@pytest.mark.fault("F-116", "F-118")
def test_an_exit_with_sockets_open_and_threads_inside_is_silent() -> None:
    """Daemon threads blocked in a wait, objects in cycles and module globals: no traceback, exit code 0."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(AT_EXIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("exits\n", "", 0)
