"""Race: a close that needs no dead file against a call that is about to begin, or has begun (I5, F-43).

A number is closed at once only where no call is inside and none can come any more. Each order is tried by stopping one
side before every single instruction of it, and letting the other one run there.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.model.errors import NotASocket, OperationAborted
from tests.kernel import stage

OURS = os.path.dirname(ss.__file__)
# None of them registers as a waiter: a close would wait for it, and it is stopped.
CALLS: dict[str, Callable[[ss.SharedSocket], Any]] = {
    "recv": lambda shared: shared.recv(16),
    "send": lambda shared: shared.send(b"mine"),
    "sendall": lambda shared: shared.sendall(b"mine"),
    "getsockopt": lambda shared: shared.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "settimeout": lambda shared: shared.settimeout(1.0),
}


@contextmanager
def stopped_before(step: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Run `act` before the instruction of that number, of all that this thread runs in the package; say where."""
    left = step
    where: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace = trace  # 3.13 turns opcodes on when the trace function is set, not when it is returned
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not where:
            if left == 0:
                where.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
                act()
            left -= 1
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12: some frame must have it when tracing begins
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)


def _elsewhere(call: Callable[[], object]) -> object:
    """Run a call in a thread of its own, to its end; return what came of it, or its error."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except OSError as error:
            outcome.append(error.with_traceback(None))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(stage.PATIENCE_S)
    return outcome[0]


@pytest.mark.fault("F-43")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_never_uses_a_number_that_a_close_has_freed(name: str) -> None:
    """Stopped before each instruction of a call: a close comes in full, and a stranger takes the number if free."""
    outcomes: set[type] = set()
    were_free: set[bool] = set()
    for step in count():
        shared, peer = ss.socketpair()
        stranger, strangers_peer = socket.socketpair()
        strangers_peer.send(b"the stranger's")
        number = shared.fileno()
        taken: list[int] = []

        def close_and_reuse(shared: ss.SharedSocket = shared, stranger: socket.socket = stranger) -> None:
            _elsewhere(shared.close)
            taken.extend(os.dup(stranger.fileno()) for _ in range(4))  # noqa: B023  # run in this round

        if name == "recv":  # what is unread keeps a close from being plain
            peer.sendall(b"data")
        with stopped_before(step, close_and_reuse) as where:
            try:
                result = CALLS[name](shared)
            except (NotASocket, OperationAborted) as error:
                result = error.with_traceback(None)
        were_free.add(number in taken)
        outcomes.add(type(result))
        assert stranger.recv(64, socket.MSG_DONTWAIT) == b"the stranger's", where
        with pytest.raises(BlockingIOError):
            strangers_peer.recv(64, socket.MSG_DONTWAIT)
        for end in (shared, peer, stranger, strangers_peer):
            end.close()
        for copy in taken:
            os.close(copy)
        if not where:
            break
    assert NotASocket in outcomes
    assert were_free == {True, False}, "some instructions find nobody inside, and some do"


@pytest.mark.fault("F-43")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_the_midst_of_a_close_meets_the_socket_or_an_error(name: str) -> None:
    """Stopped before each instruction of the close: a call comes in full. Afterwards nothing of the socket is left.

    A receive finds no data, which is its way to meet the socket.
    """
    outcomes: set[bool] = set()
    for step in count():
        shared, peer = ss.socketpair()
        shared.settimeout(0.0)
        number = shared.fileno()
        found: list[object] = []
        with stopped_before(step, lambda: found.append(_elsewhere(lambda: CALLS[name](shared)))) as where:  # noqa: B023
            shared.close()
        assert not stage.is_open(number), where
        assert ss.statistics().retiring == 0, where
        outcomes.update(isinstance(outcome, NotASocket | OperationAborted) for outcome in found)
        peer.close()
        if not where:
            break
    assert outcomes == {True, False}


@pytest.mark.fault("F-43")
def test_who_gets_in_during_a_close_keeps_the_number_from_being_reused() -> None:
    """Stopped before each instruction of the close: somebody looks the kernel socket up, and is slow to call it."""
    inside = set()
    for step in count():
        shared, peer = ss.socketpair()
        number = shared.fileno()
        held: list[Any] = []
        with stopped_before(step, lambda: held.append(shared._kernel)) as where:  # noqa: B023
            shared.close()
        is_inside = bool(held) and held[0].__class__.__name__ == "KernelSocket"
        inside.add(is_inside)
        assert stage.is_open(number) == is_inside, where
        if held:
            with pytest.raises(OSError, match=r"Bad file descriptor|was closed by"):
                held[0].recv(1)
        assert peer.recv(1) == b""
        held.clear()
        assert not stage.is_open(number), where
        peer.close()
        if not where:
            break
    assert inside == {True, False}
