"""Race: a close against an overlapped request being posted, tried, cancelled, looked after. Both orders of each.

Whoever serves a station looks at the mark before each try; what a try has taken is the result. Nobody waits for
anybody but a close for the frames inside the socket, and no watch outlives the socket it was for.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import service, stations
from sharedsock.kernel import polling
from tests.descriptors import kinds, requests
from tests.descriptors.requests import PATIENCE_S, error_of
from tests.kernel import stage
from tests.kernel.stage import Call


@pytest.fixture
def stream() -> Iterator[kinds.Pair]:
    requests.wait_service_idle()
    with kinds.pair_of("tcp4") as pair:
        yield pair


def closing(shared: ss.SharedSocket) -> Call:
    """Start a close in a thread, and wait until it has marked the socket."""
    kernel = shared._descriptor.kernel
    call = Call(shared.close, name="closer")
    stage.wait_for(lambda: kernel.aborted is not None, "the mark")
    return call


# -- close against begin ----------------------------------------------------------------------------------------------


@pytest.mark.fault("F-38", "F-44")
@pytest.mark.rule("CLOSE-22")
def test_close_while_a_request_is_being_posted(stream: kinds.Pair, points: stage.Points) -> None:
    """Held at the door of its first try: it takes nothing, and its poster gets an operation that has ended."""
    with stream.local.dup() as other:
        door = points.hold("op.enter")
        begin = Call(stream.local.begin_recv, 16, name="poster")
        door.wait_reached()
        stream.peer.send(b"left alone")
        close = closing(stream.local)
        door.release()
        assert error_of(begin.outcome()).winerror == 995
        close.outcome()
        assert other.recv(16) == b"left alone"


@pytest.mark.fault("F-41")
@pytest.mark.rule("OVERLAP-1")
def test_close_when_the_first_try_has_taken(stream: kinds.Pair, points: stage.Points) -> None:
    stream.peer.send(b"taken")
    kinds.wait_event(stream.local)
    done = points.hold("op.done", kind="recv")
    begin = Call(stream.local.begin_recv, 16, name="poster")
    done.wait_reached()
    close = closing(stream.local)
    done.release()
    assert begin.outcome().result(PATIENCE_S) == b"taken"
    close.outcome()


@pytest.mark.fault("F-38", "F-44")
@pytest.mark.rule("CLOSE-22")
def test_close_between_its_mark_and_its_look_while_a_request_has_just_been_posted(
    stream: kinds.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poster, seeing the mark, forgets the station: the close does not find it, so the poster has to call."""
    abort, settle_own = service.abort, stations.Station.settle_own
    marked, look = threading.Event(), threading.Event()
    closers: list[Call] = []

    def held_abort(kernel: Any) -> None:
        marked.set()
        assert look.wait(PATIENCE_S)
        abort(kernel)

    def closed_then(station: stations.Station, request: stations.Request) -> None:
        settle_own(station, request)
        closers.append(Call(stream.local.close, name="closer"))
        assert marked.wait(PATIENCE_S)

    monkeypatch.setattr(service, "abort", held_abort)
    monkeypatch.setattr(stations.Station, "settle_own", closed_then)
    operation = stream.local.begin_recv(16)
    look.set()
    closers[0].outcome()
    assert error_of(operation).winerror == 995


@pytest.mark.fault("F-57")
@pytest.mark.parametrize("order", ["close first", "watch first"])
def test_close_while_a_request_is_being_watched(
    order: str, stream: kinds.Pair, points: stage.Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch entered too late would report the socket for as long as somebody else holds it: the thread would spin."""
    real, reached, go_on = polling.PollSet.add, threading.Event(), threading.Event()

    def held(polls: polling.PollSet, number: int, mask: int) -> None:
        if order == "watch first":
            real(polls, number, mask)
        reached.set()
        assert go_on.wait(PATIENCE_S)
        if order == "close first":
            real(polls, number, mask)

    with stream.local.dup() as other, monkeypatch.context() as patch:
        patch.setattr(polling.PollSet, "add", held)
        begin = Call(stream.local.begin_recv, 16, name="poster")
        assert reached.wait(PATIENCE_S)
        assert stream.local._descriptor.kernel.waiters, "the close can not bury the number under the poster's hands"
        close = closing(stream.local)
        go_on.set()
        assert error_of(begin.outcome()).winerror == 995
        close.outcome()
        stream.peer.send(b"a ghost would see this")
        thread = service._current  # `other` is shared: there is one as long as that is open
        assert thread is not None
        stage.wait_for(lambda: not thread.armed, "the dismissal, which the service is called for")
        assert thread.polls.wait(0) == []
        assert other.recv(32) == b"a ghost would see this"


# -- close against the service ----------------------------------------------------------------------------------------


@pytest.mark.fault("F-39")
@pytest.mark.rule("CLOSE-20", "CLOSE-22")
def test_close_first_when_data_is_there_already(stream: kinds.Pair, points: stage.Points) -> None:
    """The service is about to try: it sees the mark, and leaves without taking."""
    with stream.local.dup() as other:
        operation = stream.local.begin_recv(16)
        door = points.hold("op.enter")
        stream.peer.send(b"not taken")
        door.wait_reached()
        close = closing(stream.local)
        assert not close.is_over, "the close waits for the frame inside"
        door.release()
        close.outcome()
        assert error_of(operation).winerror == 995
        assert other.recv(16) == b"not taken"


@pytest.mark.fault("F-39", "F-41")
@pytest.mark.rule("CLOSE-20")
def test_taken_first_then_close(stream: kinds.Pair, points: stage.Points) -> None:
    first, second = stream.local.begin_recv(5), stream.local.begin_recv(5)
    with stream.local.dup() as other:
        done = points.hold("op.done", kind="recv")
        stream.peer.send(b"takenleft!")
        done.wait_reached()
        close = closing(stream.local)
        done.release()
        close.outcome()
        assert first.result(PATIENCE_S) == b"taken"
        assert error_of(second).winerror == 995
        assert other.recv(16) == b"left!"


@pytest.mark.fault("F-41")
def test_an_accept_won_as_close_is_called_is_delivered(points: stage.Points) -> None:
    with kinds.listener_of("tcp4") as door:
        address = door.getsockname()
        operation = door.begin_accept()
        done = points.hold("op.done", kind="accept")
        with socket.create_connection(address) as client:
            done.wait_reached()
            close = closing(door)
            done.release()
            close.outcome()
            served, _ = operation.result(PATIENCE_S)
            with served:
                served.sendall(b"not reset")
                assert client.recv(16) == b"not reset"


# -- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-7")
def test_cancel_against_a_try_that_takes(stream: kinds.Pair, points: stage.Points) -> None:
    """Taken first: the cancel comes too late, and says so."""
    operation = stream.local.begin_recv(16)
    done = points.hold("op.done", kind="recv")
    stream.peer.send(b"taken")
    done.wait_reached()
    cancel = Call(operation.cancel, name="canceller")
    done.release()
    assert cancel.outcome() is False
    assert operation.result(PATIENCE_S) == b"taken"


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("point", ["op.enter", "op.done"])
def test_cancel_on_top_of_this_thread_s_own_try(point: str, stream: kinds.Pair, points: stage.Points) -> None:
    """A signal handler's, while its thread tries for the request: too late, whatever the try comes to."""
    answers: list[bool] = []
    his = stream.local.begin_recv(4)
    with requests.service_held():
        stream.peer.send(b"his mine")
        kinds.wait_event(stream.local)
        points.act(point, lambda: answers.append(his.cancel()))
        mine = stream.local.begin_recv(4)
        assert mine.result(0) == b"mine"
    assert his.result(PATIENCE_S) == b"his "
    assert answers == [False]


@pytest.mark.rule("OVERLAP-9")
@pytest.mark.parametrize("point", ["op.enter", "op.done"])
def test_begin_on_top_of_this_thread_s_own_try(point: str, stream: kinds.Pair, points: stage.Points) -> None:
    """A signal handler's: it queues behind, and the frame below serves it."""
    third: list[ss.Operation[bytes]] = []
    first = stream.local.begin_recv(4)
    with requests.service_held():
        stream.peer.send(b"1st 2nd 3rd ")
        kinds.wait_event(stream.local)
        points.act(point, lambda: third.append(stream.local.begin_recv(4)))
        second = stream.local.begin_recv(4)
        assert second.result(0) == b"2nd "
    assert first.result(PATIENCE_S) == b"1st "
    assert third[0].result(PATIENCE_S) == b"3rd "


@pytest.mark.fault("F-48")
@pytest.mark.parametrize("point", ["op.enter", "op.done"])
def test_close_on_top_of_this_thread_s_own_try(point: str, stream: kinds.Pair, points: stage.Points) -> None:
    """A signal handler's: what the try below it has taken is delivered, and nothing is taken after it."""
    with stream.local.dup() as other:
        his = stream.local.begin_recv(4)
        with requests.service_held():
            stream.peer.send(b"his mine")
            kinds.wait_event(stream.local)
            points.act(point, stream.local.close)
            mine = stream.local.begin_recv(4)
        assert error_of(mine).winerror == 995
        if point == "op.done":
            assert his.result(PATIENCE_S) == b"his "
            assert other.recv(16) == b"mine"
        else:
            assert error_of(his).winerror == 995
            assert other.recv(16) == b"his mine"


@pytest.mark.rule("OVERLAP-17")
@pytest.mark.parametrize("order", ["cancel first", "close first"])
def test_cancel_against_close(order: str, stream: kinds.Pair) -> None:
    operation, told = stream.local.begin_recv(16), list[Any]()
    operation.add_done_callback(told.append)
    acts: list[Any] = [operation.cancel, stream.local.close]
    first, second = acts if order == "cancel first" else reversed(acts)
    answers = [first(), second()]
    assert operation.cancelled() is (True in answers)
    if not operation.cancelled():
        assert error_of(operation).winerror == 995
    requests.wait_service_idle()
    assert told == [operation]


@pytest.mark.fault("F-48")
def test_two_closers_while_the_service_tries(stream: kinds.Pair, points: stage.Points) -> None:
    told: list[Any] = []
    operation = stream.local.begin_recv(16)
    operation.add_done_callback(told.append)
    door = points.hold("op.enter")
    stream.peer.send(b"x")
    door.wait_reached()
    first = closing(stream.local)
    second = Call(stream.local.close, name="second closer")
    second.outcome()
    door.release()
    first.outcome()
    assert error_of(operation).winerror == 995
    requests.wait_service_idle()
    assert told == [operation]


@pytest.mark.fault("F-39")
def test_free_running_rounds_lose_and_double_nothing() -> None:
    """Without barriers: data against close, and every byte is in the operation or left for the other descriptor."""
    sides = {"taken": 0, "left": 0}
    for number in range(40):
        with kinds.pair_of("unix-stream") as pair, pair.local.dup() as other:
            operation = pair.local.begin_recv(16)
            data = b"%d" % number
            sender = Call(pair.peer.send, data, name="sender")
            if number % 3:
                os.sched_yield()
            pair.local.close()
            sender.outcome()
            if operation.exception(PATIENCE_S) is None:
                assert operation.result(0) == data
                assert kinds.is_silent(other)
                sides["taken"] += 1
            else:
                assert error_of(operation).winerror == 995
                assert other.recv(16) == data
                sides["left"] += 1
    assert sum(sides.values()) == 40
