"""Race: the last operation ends while a closer is waking it. The wake-up goes nowhere else (F-46, rule 4, I5)."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from sharedsock.kernel import sockets, system
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair

RECV = RECEIVES[0]


@pytest.fixture
def strangers() -> Iterator[list[int]]:
    """Files that take every number that is free, or becomes free; nobody but the test may make them readable."""
    files: list[int] = []
    yield files
    for number in files:
        os.close(number)


def _fill(files: list[int], count: int) -> None:
    for _ in range(count):
        files.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _is_readable(files: list[int]) -> bool:
    poll = select.poll()
    for number in files:
        poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.fault("F-46")
@pytest.mark.parametrize("fallback", ["eventfd", "pipe"])
def test_the_wake_finds_its_own_number(
    pair: Pair, fallback: str, monkeypatch: pytest.MonkeyPatch, strangers: list[int]
) -> None:
    """Held between mark and wake; the waiter leaves, a second closer buries and drops all, numbers are reused."""
    if fallback == "pipe":
        monkeypatch.setattr(system, "make_eventfd", system._no_eventfd)
    kernel = kinds.adopt(pair.local)
    numbers = {kernel.number, kinds.waker_of(kernel).number}
    held, go = threading.Event(), threading.Event()
    name = "write_eventfd" if fallback == "eventfd" else "write_pipe"
    write = getattr(system, name)

    def held_write(number: int, value: object) -> None:
        if threading.current_thread().name == "closer":
            held.set()
            assert go.wait(stage.PATIENCE_S)
        write(number, value)

    monkeypatch.setattr(system, name, held_write)
    blocked = stage.blocked(kernel, RECV)
    closer = stage.Call(sockets.abort, kernel, "the closer", name="closer")
    assert held.wait(stage.PATIENCE_S)
    kinds.close(kernel)
    blocked.error(OperationAborted)
    del kernel, blocked  # now the closer's own reference is the last
    _fill(strangers, 64)
    assert numbers.isdisjoint(strangers)
    go.set()
    closer.outcome()
    assert not _is_readable(strangers)


@pytest.mark.fault("F-46")
def test_the_numbers_are_free_when_the_last_has_left(pair: Pair, points: stage.Points) -> None:
    """The other order: the closer is done, the waiter is held; the numbers are its, and go with it."""
    kernel = kinds.adopt(pair.local)
    taken = kernel.number, kinds.waker_of(kernel).number
    ready = points.hold("op.ready")
    blocked = stage.blocked(kernel, RECV)
    sockets.abort(kernel, "the closer")
    ready.wait_reached()
    sockets.keep_and_bury(kernel, keep=False)
    del kernel
    assert sockets.retiring() == 1
    assert all(stage.is_open(number) for number in taken)
    ready.release()
    blocked.error(OperationAborted)
    del blocked
    stage.wait_for(lambda: sockets.retiring() == 0, "the last frame to leave")
    assert not any(stage.is_open(number) for number in taken)


def test_the_guard_is_the_reference_count(pair: Pair) -> None:
    """Rule 4: one strong reference keeps the number, whoever holds it; the last one to go closes it."""
    kernel: KernelSocket | None = kinds.adopt(pair.local)
    assert kernel is not None
    held_by_a_call = kernel.recv
    number = kernel.number
    kinds.close(kernel)
    kernel = None
    assert (sockets.retiring(), stage.is_open(number)) == (1, True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        held_by_a_call(1)
    del held_by_a_call
    assert (sockets.retiring(), stage.is_open(number)) == (0, False)
