"""KeyboardInterrupt anywhere in a call: what the call had taken comes out of the next one (F-50, rule 3, I1).

A signal arrives when the interpreter looks for one: after a call, at a jump backward, at the start of a function. The
sweep raises at every instruction of ours that a handler covers, which is stricter than any signal.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedsock.kernel import numbers, operations, sockets, waiting, waker
from sharedsock.kernel.operations import READ
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.kernel.system import DONTWAIT
from sharedsock.testing.observation import thread_facts
from tests.kernel import kinds, stage
from tests.sweeps.interrupting import InstructionsOf, Interrupter

STREAM = bytes(range(256)) * 8


def sweep(call: Callable[[], object], *functions: Any) -> Iterator[tuple[Interrupter, bool]]:
    """Run a call again and again, interrupted one instruction later each time, until one run is untouched.

    Yields:
        After each run: where it was interrupted, and whether the call returned.
    """
    rule = InstructionsOf(*functions)
    for k in range(2000):
        interrupt = Interrupter(k, rule)
        returned = not interrupt.run(call)[1]
        assert not numbers.gate._is_owned(), interrupt.where  # type: ignore[attr-defined]  # no public question
        yield interrupt, returned
        if not interrupt.has_struck:
            return
    raise AssertionError("the sweep never ended")


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("waits", [False, True], ids=["data ready", "after a wait"])
@pytest.mark.parametrize("way_out", ["recv", "recv_into"])
def test_a_tagged_stream_comes_out_whole(waits: bool, way_out: str, way: str) -> None:
    """Every byte once and in order, whichever instruction the interrupt falls on; the socket stays usable."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    waiting.set_of(kernel, READ)
    received = bytearray()
    buffer = bytearray(3)

    def receive() -> None:
        if way_out == "recv":
            received.extend(perform(kernel.recv, (3, DONTWAIT), bytes))
        else:
            received.extend(
                buffer[: perform(kernel.recv_into, (buffer, 3, DONTWAIT), lambda count: bytes(buffer[:count]))]
            )

    def perform(method: Callable[..., Any], arguments: tuple[Any, ...], keep: Callable[[Any], object]) -> Any:
        return operations.perform(kernel, way_out, READ, 5.0, method, arguments, keep, waits)

    sent = 0
    struck = set()
    for interrupt, returned in sweep_with_data(pair, kernel, receive):
        sent += 3
        if interrupt.has_struck:
            struck.add(interrupt.where)
        assert returned or interrupt.has_struck
        assert len(kernel.kept) <= 1
        while kernel.kept:  # what the next call of a face returns
            received += kernel.kept.pop(0)
        assert not kernel.waiters, interrupt.where
        assert numbers.calm[kernel.slot] == 0 or not kernel.kept
        if len(received) < sent:  # nothing had been taken: it is all still there
            received += kernel.recv(3)
        assert bytes(received) == (STREAM * 4)[:sent], interrupt.where
    assert len(struck) > 10
    kinds.close(kernel)
    pair.close()


def sweep_with_data(
    pair: kinds.Pair, kernel: KernelSocket, receive: Callable[[], None]
) -> Iterator[tuple[Interrupter, bool]]:
    """Put the next three tagged bytes there before each run."""
    pair.peer.sendall((STREAM * 4)[:3])
    at = 3
    for outcome in sweep(receive, operations.perform, operations.note_streak, waiting.wait, waiting.set_of):
        yield outcome
        pair.peer.sendall((STREAM * 4)[at : at + 3])
        at += 3
    assert kernel.recv(3, socket.MSG_PEEK)


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("way_in", ["signal", "interrupt_main"])
def test_control_c_while_blocked_takes_nothing(way_in: str, way: str) -> None:
    """The wait ends, the bytes that come later are there."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)

    def interrupt() -> None:
        tid = threading.main_thread().native_id
        assert tid is not None
        stage.wait_for(
            lambda: thread_facts(os.getpid(), tid).is_waiting and bool(kernel.waiters), "the main thread to block"
        )
        if way_in == "signal":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()
            pair.peer.send(b"wakes it, so that it looks")

    other = stage.Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        operations.perform(kernel, "recv", READ, 10.0, kernel.recv, (16,), bytes)
    other.outcome()
    assert not kernel.waiters
    pair.peer.send(b"later")
    kept = b"".join(kernel.kept)
    assert kept + operations.perform(kernel, "recv", READ, 10.0, kernel.recv, (64,)) in (
        b"later",
        b"wakes it, so that it looks",
        b"wakes it, so that it lookslater",
    )
    kinds.close(kernel)
    pair.close()


@pytest.mark.fault("F-50")
def test_what_is_kept_closes_the_fast_path_until_it_is_taken(points: stage.Points) -> None:
    """Or the next fast receive would hand out later bytes before earlier ones, also when another thread opens it."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    pair.peer.send(b"first")

    def interrupt() -> None:
        raise KeyboardInterrupt

    points.act("op.done", interrupt)
    with pytest.raises(KeyboardInterrupt):
        operations.perform(kernel, "recv", READ, 5.0, kernel.recv, (16,), bytes)
    assert (kernel.kept, numbers.calm[kernel.slot]) == ([b"first"], 0)
    pair.peer.send(b"second")
    assert stage.performing(kernel, kinds.RECEIVES[0]).outcome() == b"second"
    assert numbers.calm[kernel.slot] == 0
    assert kernel.kept.pop() == b"first"
    pair.peer.send(b"third")
    assert operations.perform(kernel, "recv", READ, 5.0, kernel.recv, (16,)) == b"third"
    assert numbers.calm[kernel.slot] == 1
    kinds.close(kernel)
    pair.close()


@pytest.mark.fault("F-50")
def test_an_interrupted_open_leaves_nothing_open() -> None:
    """I6: whichever instruction of the wrapping it falls on, no number stays without an owner."""
    sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    before = numbers.owned(), _files()
    functions = KernelSocket.__init__, sockets.open_socket
    opened = sweep(lambda: sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0), *functions)
    for interrupt, _ in opened:
        assert (numbers.owned(), _files()) == before, (interrupt.where, before)


@pytest.mark.fault("F-50")
def test_an_interrupted_set_leaves_nothing_open() -> None:
    """The same for the set and the waker a first wait makes."""
    kernel = kinds.adopt(kinds.make_client("tcp4"))
    before = numbers.owned(), _files()

    def make() -> None:
        waiting.set_of(kernel, READ)

    functions = waiting.set_of, waiting.WaitSet.__init__, waiting.waker_of, waker.Waker.__init__
    for interrupt, _ in sweep(make, *functions):
        kernel.sets[READ] = kernel.waker = None
        assert (numbers.owned(), _files()) == before, interrupt.where


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))
