"""KeyboardInterrupt at a place of a call, then at a later one, up to its end: nothing is lost or left.

The default run takes every 11th place where the interpreter looks for signals; `-m campaign` takes each.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import sharing
from sharedsock.model import trace
from sharedsock.testing import Actors, Raised
from sharedsock.testing.commands import Belongings
from tests.descriptors.sharers import Running, cookie_of, hooked, is_open_for, paused
from tests.sweeps.interrupting import Interrupter

STRIDES = [pytest.param(11, id="every 11th"), pytest.param(1, id="each", marks=pytest.mark.campaign)]
TAKE_POINTS = ("take.sent", "take.received", "take.wrapped", "take.acked", "open.registered")


@pytest.fixture
def pair(registry: ss.Registry) -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    left, peer = socket.socketpair()
    with peer, ss.adopt(left) as ours:
        ss.fromshare(ours.share(os.getpid())).close()  # what is imported and opened at a first time
        yield ours, peer


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def sweep(
    prepare: Callable[[], Any],
    call: Callable[[Any], Any],
    check: Callable[[Any], None],
    end: Callable[[Any, Any], None],
    stride: int,
) -> None:
    """Interrupt `call` at its nth place, n = 0, stride, 2 stride …, and `check` after each; `end` the one that ends."""
    subject = prepare()
    end(subject, Interrupter(1 << 30).run(call, subject)[0])  # 3.13 traces a function from its second call on
    place = 0
    while True:
        subject = prepare()
        before = files()
        interrupter = Interrupter(place)
        value, is_interrupted = interrupter.run(call, subject)
        if not is_interrupted:
            assert not interrupter.where, f"the interrupt at place {place} was swallowed: {interrupter.where}"
            end(subject, value)
            break
        try:
            check(subject)
            if files() != before:
                gc.collect()  # an error met on the way and its traceback are a cycle
            assert files() == before
        except Exception as error:
            raise AssertionError(f"interrupted at place {place}: {interrupter.where}") from error
        place += stride
    assert place > 30, "the call was traced (3.13.0 shows a third of the bytecodes that others show)"


@pytest.mark.fault("F-33", "I8")
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("is_bound", [True, False], ids=["bound", "unbound"])
def test_an_interrupt_anywhere_in_a_receipt(
    pair: tuple[ss.SharedSocket, socket.socket], stride: int, is_bound: bool
) -> None:
    """The next try with the same ticket succeeds, in another thread, and then nothing is left over."""
    ours, _ = pair

    def check(info: bytes) -> None:
        assert ours.references() == 2
        again = Running(ss.fromshare, info).outcome()
        assert isinstance(again, ss.SharedSocket), again
        assert cookie_of(again) == cookie_of(ours)
        assert ours.references() == 2
        again.close()
        assert ours.references() == 1

    def end(info: bytes, redeemed: ss.SharedSocket) -> None:
        redeemed.close()
        assert ours.references() == 1

    sweep(lambda: ours.share(os.getpid() if is_bound else None), ss.fromshare, check, end, stride)


@pytest.mark.fault("F-33")
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("is_first", [False, True], ids=["again", "first"])
def test_an_interrupt_anywhere_in_a_share(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket], stride: int, is_first: bool
) -> None:
    """A ticket that its minter never saw is no reference; the next share() works, in another thread."""
    open_pairs: list[tuple[ss.SharedSocket, ss.SharedSocket]] = []

    def prepare() -> ss.SharedSocket:
        if not is_first:
            return pair[0]
        open_pairs.append(ss.socketpair())
        return open_pairs[-1][0]

    def check(shared: ss.SharedSocket) -> None:
        assert shared.references() == 1
        assert sum(count for _, count in registry.client.sockets()) <= 1
        info = Running(shared.share, os.getpid()).outcome()
        assert isinstance(info, bytes), info
        assert shared.references() == 2
        assert ss.revoke(info)

    def end(shared: ss.SharedSocket, info: bytes) -> None:
        assert ss.revoke(info)

    def prepare_anew() -> ss.SharedSocket:
        for left, right in open_pairs:
            left.close()
            right.close()
        open_pairs.clear()
        return prepare()

    if is_first:
        pair[0].close()
    sweep(prepare_anew, lambda shared: shared.share(os.getpid()), check, end, stride)
    for left, right in open_pairs:
        left.close()
        right.close()


@pytest.mark.fault("F-33")
@pytest.mark.parametrize("stride", STRIDES)
def test_an_interrupt_anywhere_in_a_dup(pair: tuple[ss.SharedSocket, socket.socket], stride: int) -> None:
    """A descriptor its caller never got is not counted; the socket is untouched."""
    ours, peer = pair

    def check(_: None) -> None:
        again = Running(ours.dup).outcome()
        assert isinstance(again, ss.SharedSocket), again
        assert ours.references() == 2
        again.close()
        assert ours.references() == 1

    def end(_: None, twin: ss.SharedSocket) -> None:
        twin.close()

    sweep(lambda: None, lambda _: ours.dup(), check, end, stride)
    assert is_open_for(peer)


class Stop(BaseException):
    """What the handler of a user's signal raises."""


@pytest.mark.fault("F-33")
@pytest.mark.parametrize("point", TAKE_POINTS)
def test_a_signal_that_raises_at_a_point_of_a_receipt(pair: tuple[ss.SharedSocket, socket.socket], point: str) -> None:
    """Any exception, from a handler of the user's: as KeyboardInterrupt."""
    ours, _ = pair

    def stop(number: int, frame: object) -> None:
        raise Stop

    def interrupt(reached: str, context: Mapping[str, Any]) -> None:
        if reached == point:
            trace.hook = None
            signal.raise_signal(signal.SIGUSR1)

    info = ours.share(os.getpid())
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with hooked(interrupt), pytest.raises(Stop):
            ss.fromshare(info)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ours.references() == 2
    with ss.fromshare(info) as redeemed:
        assert cookie_of(redeemed) == cookie_of(ours)
    assert ours.references() == 1


# -- what waits for the next try --------------------------------------------------------------------------------------


def interrupted(info: bytes) -> None:
    """Redeem, and be interrupted when it is counted already."""

    def interrupt(point: str, context: Mapping[str, Any]) -> None:
        if point == "take.acked":
            trace.hook = None
            raise KeyboardInterrupt

    with hooked(interrupt), pytest.raises(KeyboardInterrupt):
        ss.fromshare(info)


@pytest.mark.fault("F-33", "F-22")
def test_what_was_kept_goes_to_one_of_two_threads(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Exactly one handle, also of two tries that come at once."""
    ours, _ = pair
    info = ours.share(os.getpid())
    interrupted(info)
    with paused("open.registered") as pause:
        first = Running(ss.fromshare, info)
        pause.wait_reached()
        second = Running(ss.fromshare, info).outcome()
        pause.release()
        redeemed = first.outcome()
    assert isinstance(redeemed, ss.SharedSocket)
    assert isinstance(second, ss.TicketAlreadyClaimed)
    assert ours.references() == 2
    redeemed.close()


@pytest.mark.fault("F-33")
def test_what_nobody_asks_for_again_is_closed_in_the_end(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """At most eight wait; the oldest goes first, as any close."""
    ours, _ = pair
    infos = [ours.share(os.getpid()) for _ in range(9)]
    for info in infos:
        interrupted(info)
    assert ours.references() == 1 + 8
    assert len(sharing._undelivered) == 8
    with pytest.raises(ss.TicketAlreadyClaimed):
        ss.fromshare(infos[0])
    for info in infos[1:]:
        ss.fromshare(info).close()
    assert ours.references() == 1
    assert not sharing._undelivered


def _interrupted_then_fork(has: Belongings, info: bytes) -> int:
    from sharedsock.testing.faults import ActorProbe

    probe = trace.hook
    assert isinstance(probe, ActorProbe)
    trace.hook = None
    interrupted(info)
    trace.hook = probe
    pid = os.fork()
    if pid == 0:
        try:
            ss.fromshare(info)
        except ss.TicketInvalid:
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.fault("F-33", "F-25")
def test_a_child_does_not_inherit_what_was_kept(actors: Actors, pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """After a fork the child owns nothing, nor can it redeem its parent's ticket; the parent still can."""
    ours, _ = pair
    (target,) = actors.start("target")
    info = ours.share(target.pid)
    assert target.do("call_with", _interrupted_then_fork, info) == 0
    target.do("take", info)
    assert ours.references() == 2
    again = Raised("TicketAlreadyClaimed", 10022, 22)
    assert target.thread("main").do("take", info, on="again").outcome() == again
