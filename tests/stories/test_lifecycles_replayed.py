"""The lifecycle tables hold the code: what real sockets report at their probe points is replayed by `advance()`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.model.errors import InternalError
from sharedsock.model.lifecycle import (
    DESCRIPTOR,
    DESCRIPTOR_POINTS,
    OPERATION,
    OPERATION_POINTS,
    DescriptorState,
    OperationState,
    advance,
)
from tests.kernel.stage import wait_blocked

Event = tuple[int, str, Mapping[str, Any]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Event]]:
    """Every probe point that this process reaches, with the thread that reached it."""
    seen: list[Event] = []
    monkeypatch.setattr(trace, "hook", lambda point, context: seen.append((threading.get_ident(), point, context)))
    yield seen
    monkeypatch.undo()


def replay(events: list[Event]) -> tuple[dict[int, DescriptorState], list[OperationState]]:
    """Move every descriptor and operation as the trace says; return where each is at the end. A miss raises."""
    descriptors: dict[int, DescriptorState] = {}
    running: dict[int, OperationState] = {}
    ended: list[OperationState] = []
    for thread, point, context in events:
        if point == "op.enter":
            running[thread] = OPERATION.first
        elif point in OPERATION_POINTS:
            state = running[thread] = advance(running[thread], OPERATION_POINTS[point])
            if state in OPERATION.ends():
                ended.append(running.pop(thread))
        elif point in DESCRIPTOR_POINTS:
            number = context["descriptor"]
            descriptors[number] = advance(descriptors.get(number, DESCRIPTOR.first), DESCRIPTOR_POINTS[point])
    return descriptors, ended + list(running.values())


def _blocked(ours: ss.SharedSocket, call: Callable[[], object]) -> threading.Thread:
    """Start a call in a thread; return once it waits, and sleeps."""

    def run() -> None:
        try:
            call()
        except (ss.OperationAborted, TimeoutError):
            pass

    thread = threading.Thread(target=run)
    thread.start()
    wait_blocked(thread, ours.pending_operations)
    return thread


def test_a_receive_that_waits_and_takes(events: list[Event]) -> None:
    ours, theirs = ss.socketpair()
    reader = _blocked(ours, lambda: ours.recv(8))
    theirs.sendall(b"data")
    reader.join()
    ours.close()
    theirs.close()
    descriptors, operations = replay(events)
    assert operations == [OperationState.COMPLETED]
    assert set(descriptors.values()) == {DescriptorState.CLOSED}
    assert len(descriptors) == 2


def test_every_waiter_of_a_closed_descriptor_is_aborted(events: list[Event]) -> None:
    ours, theirs = ss.socketpair()
    readers = [_blocked(ours, lambda: ours.recv(8)) for _ in range(3)]
    ours.close()
    for reader in readers:
        reader.join()
    theirs.close()
    descriptors, operations = replay(events)
    assert operations == [OperationState.ABORTED] * 3
    assert set(descriptors.values()) == {DescriptorState.CLOSED}


def test_shared_descriptors_only_the_last_of_which_lingers(events: list[Event]) -> None:
    ours, theirs = ss.socketpair()
    second = ss.fromshare(ours.share(os.getpid()))
    waiting = _blocked(second, lambda: second.recv(8))
    ours.close()
    second.close()
    waiting.join()
    theirs.close()
    descriptors, operations = replay(events)
    assert operations == [OperationState.ABORTED]
    assert set(descriptors.values()) == {DescriptorState.CLOSED}
    told_last = [context["descriptor"] for _, point, context in events if point == "close.last"]
    assert ours.descriptor not in told_last


def test_an_accept_and_a_timed_wait(events: list[Event]) -> None:
    with ss.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            connection.close()
    _, operations = replay(events)
    assert set(operations) <= {OperationState.COMPLETED, OperationState.TRYING}


def test_a_trace_out_of_order_is_not_replayed(events: list[Event]) -> None:
    """The replay can fail: any two neighbouring steps of a close, exchanged, are a miss."""
    ours, theirs = ss.socketpair()
    ours.close()
    theirs.close()
    steps = [event for event in events if event[1] in DESCRIPTOR_POINTS]
    replay(steps)
    for index in range(len(steps) - 1):
        if steps[index][2]["descriptor"] == steps[index + 1][2]["descriptor"]:
            swapped = [*steps[:index], steps[index + 1], steps[index], *steps[index + 2 :]]
            with pytest.raises(InternalError):
                replay(swapped)
