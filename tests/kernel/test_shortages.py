"""No number, no memory: each shortage is a clear error or a fallback, and leaves nothing open (F-03, I6, I10)."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import pytest

from sharedsock.kernel import numbers, operations, polling, sockets, system, waiting
from sharedsock.kernel.operations import READ
from sharedsock.kernel.waker import Waker
from sharedsock.model.errors import OperationAborted
from tests.conftest import Bounds
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _open_numbers() -> set[int]:
    """By asking for each: a listing would need a number itself."""
    return {number for number in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if stage.is_open(number)}


def plug_all(plugs: list[int]) -> None:
    """Take every number that is free."""
    with suppress(OSError):
        while True:
            plugs.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


@contextmanager
def free_numbers(count: int) -> Iterator[list[int]]:
    """Leave exactly `count` file numbers free, for the time of a block; yields the numbers that fill the gaps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    plugs: list[int] = []
    try:
        # The limit goes just above what is open, and plugs fill the gaps below it.
        top = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + count, hard))
        plug_all(plugs)
        for _ in range(count):
            os.close(plugs.pop())
        yield plugs
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for plug in plugs:
            os.close(plug)


def _sweep(call: Callable[[], Any]) -> list[int]:
    """Run a call with 0, 1, 2 … free numbers until it succeeds; each failure is EMFILE and leaves nothing."""
    tried: list[int] = []
    for free in range(16):
        with free_numbers(free):
            before = _open_numbers(), numbers.owned()
            failure: OSError | None = None
            try:
                call()
            except OSError as error:
                failure = error
            # Now, while the error and its traceback are still held.
            assert (_open_numbers(), numbers.owned()) == before
        if failure is None:
            return tried
        assert failure.errno == errno.EMFILE
        tried.append(free)
    raise AssertionError("never succeeded")


@pytest.mark.fault("F-03")
def test_descriptor_sweep_of_open() -> None:
    """A socket needs one number, as anybody's; without it, EMFILE and nothing left open."""
    sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0)  # the dead file and the reserve are there
    assert _sweep(lambda: sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0)) == [0]


@pytest.mark.fault("F-03")
@pytest.mark.parametrize(("waker", "needs"), [("eventfd", 1), ("pipe", 2)])
def test_descriptor_sweep_of_the_waker(waker: str, needs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits first makes it: one number more, two for a pipe; with fewer there is none, and nothing left open."""
    if waker == "pipe":
        monkeypatch.setattr(system, "make_eventfd", system._no_eventfd)
    kernel = sockets.open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
    for free in range(needs):
        with free_numbers(free):
            before = _open_numbers(), numbers.owned()
            assert waiting.waker_of(kernel) is None
            assert (_open_numbers(), numbers.owned()) == before
    with free_numbers(needs):
        assert waiting.waker_of(kernel) is kernel.waker is not None
    kinds.close(kernel)


@pytest.mark.fault("F-03")
@pytest.mark.parametrize("shortage", SHORTAGES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["make_eventfd", "make_pipe"])
def test_errno_sweep_of_the_waker(name: str, shortage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each errno of eventfd(2) and pipe(2), at the call; nothing is left open."""
    if name == "make_pipe":
        monkeypatch.setattr(system, "make_eventfd", system._no_eventfd)

    def fail() -> None:
        raise OSError(shortage, os.strerror(shortage))

    monkeypatch.setattr(system, name, fail)
    before = _open_numbers(), numbers.owned()
    with pytest.raises(OSError, match=os.strerror(shortage)) as failed:
        Waker()
    assert failed.value.errno == shortage
    assert (_open_numbers(), numbers.owned()) == before


@pytest.mark.fault("F-03")
@pytest.mark.parametrize("shortage", [*SHORTAGES, errno.EACCES, errno.EAFNOSUPPORT], ids=errno.errorcode.get)
def test_errno_sweep_of_socket(shortage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each errno of socket(2) is the caller's, as it came."""

    def fail(*_: object) -> None:
        raise OSError(shortage, os.strerror(shortage))

    monkeypatch.setattr(sockets, "_kind", type("Failing", (_socket.socket,), {"__init__": fail}))
    before = _open_numbers(), numbers.owned()
    with pytest.raises(OSError, match=os.strerror(shortage)) as failed:
        sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    assert failed.value.errno == shortage
    assert (_open_numbers(), numbers.owned()) == before


@pytest.mark.fault("F-03")
@pytest.mark.parametrize("shortage", [*SHORTAGES, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["epoll_create", "epoll_ctl"])
def test_without_a_set_poll_serves(shortage: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE is no reason for a call to fail that needs no number to the outside: it waits with poll, and is ended."""
    made = system.make_epoll

    class Refusing:
        def __init__(self) -> None:
            if where == "epoll_create":
                raise OSError(shortage, os.strerror(shortage))
            self._epoll = made()
            self.fileno, self.close, self.poll = self._epoll.fileno, self._epoll.close, self._epoll.poll

        def register(self, *_: object) -> None:
            raise OSError(shortage, os.strerror(shortage))

    monkeypatch.setattr(system, "make_epoll", Refusing)
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    kinds.waker_of(kernel)
    before = _open_numbers()
    taking = stage.blocked(kernel, RECEIVES[0])
    assert _open_numbers() == before
    pair.peer.send(b"data")
    assert taking.outcome() == b"data"
    ending = stage.blocked(kernel, RECEIVES[0])
    kinds.close(kernel)
    ending.error(OperationAborted)
    assert kernel.sets == [None, None]
    pair.close()


@pytest.mark.fault("F-03")
@pytest.mark.parametrize("has_waker", [True, False])
def test_a_full_table_does_not_stop_a_wait(has_waker: bool, bounds: Bounds) -> None:
    """The same with a real limit: no number is free, and a receive waits, takes and is ended, at its first wait too."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    if has_waker:
        kinds.waker_of(kernel)
    with free_numbers(0):
        assert waiting.set_of(kernel, READ) is None
        with pytest.raises(TimeoutError):
            operations.perform(kernel, "recv", READ, 0.05, kernel.recv, (16,))
        pair.peer.send(b"data")
        assert operations.perform(kernel, "recv", READ, 5.0, kernel.recv, (16,), None, True) == b"data"
        ending = stage.performing(kernel, RECEIVES[0], has_tried=True)
        stage.wait_for(lambda: bool(kernel.waiters), "a waiter")
        assert (kernel.waker is not None) == has_waker
        began_s = monotonic()
        sockets.abort(kernel, "the test")
        ending.error(OperationAborted)
        bounds.check("T_abort", ending.ended_s - began_s)
    kinds.close(kernel)
    pair.close()


@pytest.mark.fault("F-03")
def test_a_close_keeps_the_real_file_although_the_table_is_full() -> None:
    """The reserve number is spent on it; the next number that is freed becomes the reserve."""
    pairs = [kinds.make_pair("unix-stream") for _ in range(3)]
    kernels = [kinds.adopt(pair.local) for pair in pairs]
    with free_numbers(0) as plugs:
        for pair, kernel in zip(pairs, kernels, strict=True):
            sockets.abort(kernel, "the test")
            kept = sockets.keep_and_bury(kernel, keep=True)
            assert kept is not None
            pair.peer.setblocking(False)
            with pytest.raises(BlockingIOError):  # the socket lives on in the kept file
                pair.peer.recv(1)
            numbers.release(kept, numbers.current_era())
            assert pair.peer.recv(1) == b""
            plug_all(plugs)  # somebody else takes whatever is free now
    for pair in pairs:
        pair.close()


@pytest.mark.fault("F-03")
def test_without_number_and_reserve_the_close_still_buries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be kept: the kernel's rule ends the socket, the number is dead all the same."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(system, "duplicate", fail)
    sockets.abort(kernel, "the test")
    assert sockets.keep_and_bury(kernel, keep=True) is None
    assert pair.peer.recv(1) == b""
    pair.close()


@pytest.fixture
def own_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dead file and a reserve number for one test to lose."""
    monkeypatch.setattr(sockets, "_dead", {})
    monkeypatch.setattr(numbers, "_reserve", -1)
    monkeypatch.setattr(numbers, "_reserve_identity", ())
    sockets._require_dead_file(socket.AF_UNIX)
    yield
    numbers.spend_reserve()
    for number, _ in sockets._dead.values():
        with suppress(OSError):
            os.close(number)


@pytest.mark.fault("F-03")
@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize(("free", "answer"), [(0, "non-socket"), (1, "Bad file descriptor")])
def test_a_dead_file_closed_behind_our_back_is_opened_again_or_done_without(free: int, answer: str) -> None:
    """Somebody closes every number above 2 (a daemon's start does): a stranger's file is never put over ours."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    kinds.waker_of(kernel)
    dead = sockets._require_dead_file(socket.AF_UNIX)
    _replace_by_stranger(dead)
    with free_numbers(free):
        numbers.spend_reserve()
        with open("/dev/null", buffering=0, mode="rb"):  # takes the number that was the reserve's
            sockets.abort(kernel, "the test")
            sockets.keep_and_bury(kernel, keep=False)
            with pytest.raises(OSError, match=answer):
                kernel.recv(1)
    assert os.readlink(f"/proc/self/fd/{dead}") == "/dev/null"
    os.close(dead)
    pair.close()


@pytest.mark.fault("F-03")
@pytest.mark.usefixtures("own_files")
def test_a_reserve_that_has_become_the_dead_file_is_spent_first() -> None:
    """One file for both (the reserve was opened where the dead file had been): the kept file never lies over itself."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    kinds.waker_of(kernel)
    os.close(sockets._require_dead_file(socket.AF_UNIX))
    sockets._dead[0] = numbers._reserve, numbers._reserve_identity
    with free_numbers(0):
        sockets.abort(kernel, "the test")
        kept = sockets.keep_and_bury(kernel, keep=True)
        assert kept is not None
        with pytest.raises(OSError, match="non-socket"):
            kernel.recv(1)
        numbers.release(kept, numbers.current_era())
    assert pair.peer.recv(1) == b""
    pair.close()


@pytest.mark.fault("F-03")
@pytest.mark.usefixtures("own_files")
def test_with_nothing_to_put_over_it_the_number_goes_with_the_last_call_inside() -> None:
    """No dead file, no number for another one, and nobody has ever waited, so no waker: still no stranger's (I5)."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    _replace_by_stranger(sockets._require_dead_file(socket.AF_UNIX))
    stranger = sockets._dead[0][0]
    with free_numbers(0):
        numbers.spend_reserve()
        with open("/dev/null", buffering=0, mode="rb"):  # takes the number that was the reserve's
            sockets.abort(kernel, "the test")
            sockets.keep_and_bury(kernel, keep=False)
            assert stage.is_open(kernel.number)
            del kernel
    assert pair.peer.recv(1) == b""
    os.close(stranger)
    pair.close()


def _replace_by_stranger(number: int) -> None:
    with open("/dev/null") as stranger:
        os.dup2(stranger.fileno(), number)


@pytest.mark.usefixtures("own_files")
def test_a_reserve_closed_behind_our_back_is_not_closed_again() -> None:
    """Its number may be a stranger's by now (I5)."""
    reserve = numbers._reserve
    _replace_by_stranger(reserve)
    assert not numbers.spend_reserve()
    assert os.readlink(f"/proc/self/fd/{reserve}") == "/dev/null"
    os.close(reserve)


@pytest.mark.fault("F-03")
@pytest.mark.parametrize("where", ["epoll_create", "epoll_ctl"])
def test_a_set_of_many_that_cannot_be_had_leaves_no_number(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell is all it has; its destructor is silent."""
    made = system.make_epoll

    class Refusing:
        def __init__(self) -> None:
            if where == "epoll_create":
                raise OSError(errno.EMFILE, "no set")
            self._epoll = made()
            self.fileno, self.close = self._epoll.fileno, self._epoll.close

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(system, "make_epoll", Refusing)
    before = numbers.owned()
    polls = polling.PollSet()
    assert numbers.owned() - before == {polls.bell.number}
    assert polls.wait(0) == []
    del polls
    assert numbers.owned() == before
