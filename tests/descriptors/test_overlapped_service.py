"""The service thread: one at most, none without work, none across a fork, none that an interpreter's end waits for.

Source: spec/fault-catalogue.md, I6, I7, F-03, F-07, F-52, F-86, F-90, F-116.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from time import monotonic
from typing import Any, NoReturn

import pytest

import sharedsock as ss
from sharedsock.descriptors import service, stations
from sharedsock.kernel import polling, system
from tests.descriptors import kinds, requests, sharers
from tests.descriptors.requests import PATIENCE_S, error_of


@pytest.fixture
def pair() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


@pytest.fixture(params=["epoll", "poll"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of waiting for many: an epoll set, and poll where none can be had."""
    requests.wait_service_idle()
    if request.param == "poll":
        monkeypatch.setattr(system, "make_epoll", _no_set)
    return str(request.param)


def _no_set() -> NoReturn:
    raise OSError(errno.EMFILE, "no set can be had")


# -- one thread, and none --------------------------------------------------------------------------------------------


def test_no_thread_per_operation_and_none_when_idle(way: str) -> None:
    pairs = [kinds.pair_of("unix-stream") for _ in range(20)]
    ends = [pair.__enter__() for pair in pairs]
    try:
        before = threading.active_count()
        begun = [end.local.begin_recv(16) for end in ends for _ in range(5)]
        assert threading.active_count() == before + 1
        assert len(requests.service_threads()) == 1
        for end in ends:
            end.peer.sendall(b"0123456789abcdef" * 5)
        assert {operation.result(PATIENCE_S) for operation in begun} == {b"0123456789abcdef"}
        requests.wait_service_idle()
        assert threading.active_count() == before
        assert service._current is None
    finally:
        for pair in pairs:
            pair.__exit__(None, None, None)


def test_a_request_that_comes_when_the_thread_has_just_ended_starts_another(pair: kinds.Pair, way: str) -> None:
    for _ in range(3):
        operation = pair.local.begin_recv(1)
        pair.peer.send(b"x")
        assert operation.result(PATIENCE_S) == b"x"
        requests.wait_service_idle()


def test_cancelling_the_last_request_lets_the_thread_end(pair: kinds.Pair, way: str) -> None:
    operation = pair.local.begin_recv(1)
    assert operation.cancel()
    with pytest.raises(CancelledError):
        operation.result(0)
    requests.wait_service_idle()
    pair.peer.send(b"x")
    assert pair.local.recv(1) == b"x"


def test_a_close_is_served_where_no_set_can_be_had(pair: kinds.Pair, way: str, bounds: Any) -> None:
    operation = pair.local.begin_recv(1)
    pair.local.close()
    assert error_of(operation).winerror == 995


# -- nothing to be had ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-07")
def test_a_thread_that_cannot_start_is_10035_and_nothing_is_started(
    pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.wait_service_idle()

    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    data = bytearray(b"x")
    kinds.fill(pair.local)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BlockingIOError, match="can't start new thread") as refused:
            pair.local.begin_send(data)
        assert refused.value.winerror == 10035  # type: ignore[attr-defined]  # ours have it everywhere
    data.clear()
    assert pair.local.pending_operations() == ()
    operation = pair.local.begin_recv(1)
    pair.peer.send(b"y")
    assert operation.result(PATIENCE_S) == b"y"


@pytest.mark.fault("F-03", "F-96")
@pytest.mark.parametrize("free", [0, 1, 2])
def test_with_no_number_left_a_request_is_refused_or_served(pair: kinds.Pair, free: int) -> None:
    """One number is the bell's, without which nobody could be woken; without one for a set, poll serves."""
    requests.wait_service_idle()
    with sharers.room_for(free):
        if free == 0:
            with pytest.raises(OSError) as refused:
                pair.local.begin_recv(1)
            assert refused.value.errno == errno.EMFILE
            assert pair.local.pending_operations() == ()
        else:
            operation = pair.local.begin_recv(1)
            pair.peer.send(b"x")
            assert operation.result(PATIENCE_S) == b"x"
        requests.wait_service_idle()


@pytest.mark.fault("F-03")
def test_where_a_set_takes_no_more_the_clock_serves(pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC: the limit of epoll watches. There is no event then, but there is a result, and a close."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "no more watches")

    monkeypatch.setattr(polling.PollSet, "add", refuse)
    operation, left = pair.local.begin_recv(1), pair.local.begin_recv(1)
    pair.peer.send(b"x")
    assert operation.result(PATIENCE_S) == b"x"
    pair.local.close()
    assert error_of(left).winerror == 995


@pytest.mark.fault("F-52")
def test_an_event_that_comes_to_nothing_does_not_spin(way: str) -> None:
    """A queued refusal (IP_RECVERR) is reported by poll until somebody reads the error queue; a receive is blind to it.

    160 tries that spun would take 3 ms; with their pauses they take more than 100.
    """
    tries = 0
    enough = threading.Event()

    def count(point: str, context: Mapping[str, Any]) -> None:
        nonlocal tries
        tries += point == "op.enter"
        if tries == 160:
            enough.set()

    with ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM) as local:
        local.bind(("127.0.0.1", 0))
        local.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            address = gone.getsockname()
        local.sendto(b"x", address)
        sharers.wait_until(lambda: _has_queued_error(local), "the refusal")
        with pytest.raises(ConnectionRefusedError):
            local.recv(1)
        assert _has_queued_error(local)
        began_s = monotonic()
        with sharers.hooked(count):
            operation = local.begin_recv(1)
            assert enough.wait(PATIENCE_S)
        assert monotonic() - began_s > 0.1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"y", local.getsockname())
        assert operation.result(PATIENCE_S) == b"y"


_IP_RECVERR = 11  # the socket module has no name for it


def _has_queued_error(shared: ss.SharedSocket) -> bool:
    poll = select.poll()
    poll.register(shared, 0)
    return bool(poll.poll(0))


@pytest.mark.fault("F-84")
def test_a_callback_that_raises_harms_nobody(pair: kinds.Pair, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> NoReturn:
        raise ValueError("mine")

    first, second = pair.local.begin_recv(1), pair.local.begin_recv(1)
    first.add_done_callback(fail)
    pair.peer.send(b"ab")
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (b"a", b"b")
    requests.wait_service_idle()
    assert "mine" in caplog.text, "concurrent.futures has logged it"
    caplog.clear()  # its record holds the traceback, and that the service's frames


@pytest.mark.fault("F-119")
def test_a_callback_that_exits_does_not_end_the_service(pair: kinds.Pair) -> None:
    first, second = pair.local.begin_recv(1), pair.local.begin_recv(1)
    first.add_done_callback(lambda _: sys.exit("mine"))
    pair.peer.send(b"ab")
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (b"a", b"b")


@pytest.mark.fault("F-84", "F-97")
def test_what_fails_for_want_of_memory_is_tried_again(pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the service's own books, not in the request, which would have the error as its outcome."""
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda report: reported.append(report.exc_type))
    operation = pair.local.begin_recv(1)
    real = stations.Station._note_losses

    def fail(station: stations.Station, has_progress: bool) -> None:
        monkeypatch.setattr(stations.Station, "_note_losses", real)
        raise MemoryError

    monkeypatch.setattr(stations.Station, "_note_losses", fail)
    pair.peer.send(b"x")
    assert operation.result(PATIENCE_S) == b"x"
    assert reported == [MemoryError]


@pytest.mark.fault("F-47")
def test_a_detached_number_that_is_another_descriptor_s_by_now_is_left_to_that(pair: kinds.Pair) -> None:
    """The service comes to the old station late: the number it had is watched for the new one."""
    inside, go_on = threading.Event(), threading.Event()
    with kinds.pair_of("unix-stream") as other, kinds.pair_of("unix-stream") as spare:
        holding, detached = other.local.begin_recv(1), pair.local.begin_recv(1)

        def hold(_: object) -> None:
            inside.set()
            go_on.wait(PATIENCE_S)

        holding.add_done_callback(hold)
        other.peer.send(b"x")
        assert inside.wait(PATIENCE_S)
        number = pair.local.detach()
        plain = spare.local.detach()
        os.dup2(plain, number, inheritable=False)
        os.close(plain)
        with ss.adopt(socket.socket(fileno=number)) as fresh:
            operation = fresh.begin_recv(1)
            go_on.set()
            assert error_of(detached).winerror == 995
            spare.peer.send(b"y")
            assert operation.result(PATIENCE_S) == b"y"


# -- forks ------------------------------------------------------------------------------------------------------------


def in_child(act: Callable[[], object]) -> None:
    """Run something in a forked child, which must end well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.fault("F-86", "F-87")
def test_the_thread_is_stopped_before_a_fork_and_goes_on_behind_it(pair: kinds.Pair, way: str) -> None:
    """3.12 and later warn at a fork with threads alive: there is none of ours."""
    operation, more = pair.local.begin_recv(1), pair.local.begin_recv(1)
    alive: list[int] = []
    os.register_at_fork(before=lambda: alive.append(len(requests.service_threads())))  # runs before ours does

    def child() -> None:
        assert requests.service_threads() == []
        assert service._current is None
        for inherited in (operation, more):
            with pytest.raises(ss.ForkedDescriptor):
                inherited.result(0)
            with pytest.raises(ss.ForkedDescriptor):
                inherited.exception()
            assert not inherited.cancel()
        with kinds.pair_of("unix-stream") as own:  # it can have a service of its own
            begun = own.local.begin_recv(16)
            own.peer.send(b"child")
            assert begun.result(PATIENCE_S) == b"child"

    in_child(child)
    assert not operation.done()
    pair.peer.send(b"ab")
    assert (operation.result(PATIENCE_S), more.result(PATIENCE_S)) == (b"a", b"b")
    in_child(lambda: operation.result(0) == b"a" or os.abort())


@pytest.mark.fault("F-86")
def test_an_idle_thread_is_not_started_again_behind_a_fork(pair: kinds.Pair) -> None:
    operation = pair.local.begin_recv(1)
    pair.peer.send(b"x")
    assert operation.result(PATIENCE_S) == b"x"
    in_child(lambda: None)
    with service._starting:  # the thread says it has ended in two steps, under this lock
        assert service._current is None or service._current.thread is not None
    requests.wait_service_idle()


@pytest.mark.fault("F-87")
def test_a_fork_does_not_wait_for_a_callback(pair: kinds.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback may itself wait for whoever forks."""
    monkeypatch.setattr(service, "_HALT_BOUND_S", PATIENCE_S)
    forked, told = threading.Event(), threading.Event()
    inside = threading.Event()

    def callback(_: object) -> None:
        inside.set()
        told.set() if forked.wait(PATIENCE_S) else None

    operation, later = pair.local.begin_recv(1), pair.local.begin_recv(1)
    operation.add_done_callback(callback)
    pair.peer.send(b"x")
    assert inside.wait(PATIENCE_S)
    began_s = monotonic()
    in_child(lambda: None)
    assert monotonic() - began_s < PATIENCE_S / 2
    forked.set()
    assert told.wait(PATIENCE_S)
    pair.peer.send(b"y")
    assert later.result(PATIENCE_S) == b"y", "the thread went on behind the fork"


@pytest.mark.fault("F-95")
def test_a_fork_inside_a_callback(pair: kinds.Pair) -> None:
    """The child's only thread is then the service thread: it ends with the callback, and settles nothing."""
    statuses: list[int] = []
    told = threading.Event()

    def callback(_: object) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        told.set()

    operation, later = pair.local.begin_recv(1), pair.local.begin_recv(1)
    operation.add_done_callback(callback)
    pair.peer.send(b"xy")
    assert told.wait(PATIENCE_S)
    assert statuses == [7]
    assert later.result(PATIENCE_S) == b"y"


@pytest.mark.fault("F-90")
def test_a_fork_that_ran_no_hooks(pair: kinds.Pair) -> None:
    operation = pair.local.begin_recv(1)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        status = 1
        try:
            with pytest.raises(ss.ForkedDescriptor):
                operation.result(0)
            assert not operation.cancel()
            with kinds.pair_of("unix-stream") as own:
                begun = own.local.begin_recv(1)
                own.peer.send(b"c")
                status = 0 if begun.result(PATIENCE_S) == b"c" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pair.peer.send(b"x")
    assert operation.result(PATIENCE_S) == b"x"


# -- the end of the interpreter ---------------------------------------------------------------------------------------

_AT_EXIT = """
import sys, threading
import sharedsock as ss
left, right = ss.socketpair()
pending = left.begin_recv(1)
{}
"""
_ENDS = {
    "pending": "",
    "inside a callback": """
inside = threading.Event()
pending.add_done_callback(lambda _: (inside.set(), threading.Event().wait()))
right.send(b"x")
inside.wait()
""",
    "a daemon waits for the result": """
threading.Thread(target=pending.result, daemon=True).start()
""",
    "begun at exit": """
import atexit
@atexit.register
def late():
    try:
        right.begin_recv(1)
    except BlockingIOError:
        pass
""",
}


@pytest.mark.fault("F-116", "F-118")
@pytest.mark.rule("EXIT-1")
@pytest.mark.parametrize("end", _ENDS)
def test_an_interpreter_ends_with_requests_pending(end: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", _AT_EXIT.format(_ENDS[end])],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
