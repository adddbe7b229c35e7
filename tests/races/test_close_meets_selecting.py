"""Race: a close against a select or a selector that is about to wait, waits, or has just been told of an event."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from selectors import EVENT_READ

import pytest

import sharedsock as ss
from sharedsock.kernel import polling
from tests.descriptors import kinds
from tests.descriptors.requests import PATIENCE_S
from tests.kernel import stage
from tests.kernel.stage import Call


@pytest.fixture
def stream() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


@pytest.mark.fault("F-44")
@pytest.mark.rule("CLOSE-21", "CLOSE-44")
@pytest.mark.parametrize(
    ("point", "error"),
    [("op.enter", ss.NotASocket), ("op.waiting", ss.OperationAborted), ("op.ready", ss.OperationAborted)],
)
def test_close_against_a_select(
    point: str, error: type[ss.SharedSocketError], stream: kinds.Pair, points: stage.Points
) -> None:
    """Before it waits it was closed already; from there on it is ended, also when something was ready as well."""
    here = points.hold(point, kind="select")
    if point == "op.ready":
        stream.peer.send(b"ready")
    call = Call(ss.select, [stream.local], [], [], None)
    here.wait_reached()
    kernel = stream.local._descriptor.kernel
    close = Call(stream.local.close, name="closer")
    stage.wait_for(lambda: kernel.aborted is not None, "the mark")
    here.release()
    call.error(error)
    close.outcome()


@pytest.mark.fault("F-57")
@pytest.mark.parametrize("order", ["close first", "watch first"])
def test_close_against_a_register(order: str, stream: kinds.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch entered after the close had taken all out would be a ghost, with nobody to exorcise it."""
    real, reached, go_on = polling.PollSet.add, threading.Event(), threading.Event()

    def held(polls: polling.PollSet, number: int, mask: int) -> None:
        if order == "watch first":
            real(polls, number, mask)
        reached.set()
        assert go_on.wait(PATIENCE_S)
        if order == "close first":
            real(polls, number, mask)

    with stream.local.dup() as other, ss.Selector() as selector:
        with monkeypatch.context() as patch:
            patch.setattr(polling.PollSet, "add", held)
            register = Call(selector.register, stream.local, EVENT_READ)
            assert reached.wait(PATIENCE_S)
            kernel = stream.local._descriptor.kernel
            assert kernel.waiters, "the close can not bury the number under the registering thread's hands"
            close = Call(stream.local.close, name="closer")
            stage.wait_for(lambda: kernel.aborted is not None, "the mark")
            go_on.set()
            register.error(ss.NotASocket)
            close.outcome()
        stream.peer.send(b"x")
        assert selector.select(0) == []
        assert selector._polls.wait(0) == [], "no ghost below the keys either"
        assert other.recv(1) == b"x"


@pytest.mark.fault("F-47", "F-57")
def test_an_event_of_a_closed_descriptor_is_not_its_number_s_next_bearer_s(
    stream: kinds.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the kernel's answer and our look-up the number becomes another socket's, registered as well."""
    real = polling.PollSet.wait
    with kinds.pair_of("unix-stream") as spare, ss.Selector() as selector:
        selector.register(stream.local, EVENT_READ, "old")
        stream.peer.send(b"x")
        kinds.wait_event(stream.local)
        number = stream.local.fileno()
        bearers: list[ss.SharedSocket] = []

        def wait(polls: polling.PollSet, timeout_s: float | None) -> list[tuple[int, int]]:
            events = real(polls, timeout_s)
            if not bearers:
                assert [one for one, _ in events] == [number]
                stream.local.close()
                bearers.append(_bearer_of(number, spare.local))
                selector.register(bearers[0], EVENT_READ, "new")
            return events

        monkeypatch.setattr(polling.PollSet, "wait", wait)
        assert selector.select(0) == []
        spare.peer.send(b"y")
        assert [key.data for key, _ in selector.select(60)] == ["new"]
        bearers[0].close()


def _bearer_of(number: int, shared: ss.SharedSocket) -> ss.SharedSocket:
    """Return a SharedSocket over a copy of another's file that has this very number."""
    tried = [os.dup(shared.fileno())]
    try:
        while tried[-1] != number:
            assert len(tried) < 16, f"{number} is not free"
            tried.append(os.dup(shared.fileno()))
        return ss.adopt(socket.socket(fileno=tried.pop()))
    finally:
        for one in tried:
            os.close(one)
