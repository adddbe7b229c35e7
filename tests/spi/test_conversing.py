"""The short ways of WSPRecv, data that is ready and a conversation, keep what the long way promises: rules 1 to 3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.kernel import conversation, numbers, operations
from sharedsock.kernel.conversation import BUSY, SILENT
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.winsock import FD_READ, FIONBIO
from sharedsock.spi.base_sockets import Opened
from sharedsock.spi.catalog import provider_of
from sharedsock.testing import Actors
from sharedsock.testing.observation import thread_facts
from tests.kernel.interrupted import come_out_whole
from tests.kernel.stage import Call, wait_for
from tests.spi.parties import Entries, base_entry, code_of, take

SIZE = 3


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that wait for threads to start are quick enough, and not many lie between two renewals."""
    monkeypatch.setattr(conversation, "SLOW_TURN_S", 60.0)
    monkeypatch.setattr(conversation, "_PROBE_EVERY", 16)


def kept_of(s: int) -> Opened:
    """Return what the base provider keeps of one of its handles."""
    provider: Any = provider_of(base_entry().dwCatalogEntryId)
    opened: Opened = provider.opened(s)
    return opened


def receive(s: int, size: int = SIZE) -> bytes:
    buffer = bytearray(size)
    count, flags = spi.WSPRecv(s, [buffer])
    assert flags == 0
    return bytes(buffer[:count])


def asleep(call: Call) -> Call:
    """Wait until a call's thread sleeps in a wait for its socket. A look at what is pending would change its way."""
    tid = call.thread.native_id
    assert tid is not None
    wait_for(lambda: call.is_over or thread_facts(os.getpid(), tid).is_waiting, "the call to wait")
    assert not call.is_over
    return call


def answered(s: int, far: Any, data: bytes = b"xyz", size: int = SIZE) -> bytes:
    """Return what a receive that has to wait gives."""
    call = asleep(Call(receive, s, size))
    far.sendall(data)
    said: bytes = call.outcome()
    return said


@pytest.fixture
def talking(base: Entries, registry: Any) -> Iterator[tuple[int, Any]]:
    """A handle whose receives of three bytes are a conversation, and the far end."""
    with base.connected() as (s, far):
        assert [answered(s, far) for _ in range(4)] == [b"xyz"] * 4
        assert kept_of(s).talk.polled == SIZE
        yield s, far
        code_of(spi.WSPCloseSocket, s)


def test_it_goes_on_until_the_terms_change(talking: tuple[int, Any]) -> None:
    s, far = talking
    talk = kept_of(s).talk
    assert [answered(s, far) for _ in range(35)] == [b"xyz"] * 35, "probes come between"
    assert kept_of(s).talk is talk
    assert talk.polled == SIZE
    assert answered(s, far, b"abcdefgh", 8) == b"abcdefgh"
    assert [answered(s, far) for _ in range(3)] == [b"xyz"] * 3
    far.close()
    assert receive(s) == b"", "the peer's end"
    assert receive(s) == b""


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("is_ready", [False, True])
def test_wherever_an_interrupt_can_fall_the_stream_comes_out_whole(talking: tuple[int, Any], is_ready: bool) -> None:
    s, far = talking
    opened = kept_of(s)
    kernel = opened.descriptor.kernel

    def prepare() -> None:
        numbers.calm[kernel.slot] = is_ready
        kernel.streak, kernel.streak_s = 2, monotonic()
        opened.talk = talk = conversation.begin(kernel, SIZE, DONTWAIT, None, may_hold=False)
        assert talk.polled == SIZE
        opened.arguments = talk.fill(DONTWAIT)

    struck = come_out_whole(
        kernel,
        SIZE,
        far.sendall,
        lambda: receive(s),
        prepare,
        is_idle=lambda: opened.talk.polled != BUSY and not operations.pending(kernel),
    )
    assert len(struck) >= 3, "the starts, and one call"


@pytest.mark.rule("CLOSE-20", "CLOSE-31")
def test_a_close_ends_it_and_it_took_nothing(talking: tuple[int, Any], actors: Actors) -> None:
    s, far = talking
    (other,) = actors.start("other")
    theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
    assert [answered(s, far) for _ in range(3)] == [b"xyz"] * 3
    opened = kept_of(s)
    talk, kernel = opened.talk, opened.descriptor.kernel
    call = asleep(Call(receive, s))
    assert talk.polled == BUSY, "in the conversation"
    assert [waits.kind for waits in operations.pending(kernel)] == ["recv"]
    spi.WSPCloseSocket(s)
    assert call.error(spi.WSAError).winerror == 10004
    assert code_of(receive, s) == 10038
    far.sendall(b"for another")
    assert other.call(receive, theirs, 64) == b"for another"
    other.call(spi.WSPCloseSocket, theirs)


@pytest.mark.fault("F-40")
def test_bytes_that_another_holder_took_are_waited_for_again(talking: tuple[int, Any]) -> None:
    s, far = talking
    opened = kept_of(s)
    talk, kernel = opened.talk, opened.descriptor.kernel
    wait = talk.wait

    def wait_and_be_late() -> None:
        talk.wait = wait
        wait()
        kernel.recv(16)

    talk.wait = wait_and_be_late
    far.sendall(b"stolen")
    call = Call(receive, s)
    wait_for(lambda: bool(kernel.waiters), "it to wait the long way")
    assert talk.polled != BUSY
    far.sendall(b"abc")
    assert call.outcome() == b"abc"


def test_whoever_comes_second_takes_the_long_way(talking: tuple[int, Any]) -> None:
    """Two threads at once; both receive, and nobody's buffer gets the other's bytes."""
    s, far = talking
    opened = kept_of(s)
    first = asleep(Call(receive, s))
    assert opened.talk.polled == BUSY
    second = asleep(Call(receive, s))
    assert len(opened.descriptor.kernel.waiters) == 1
    far.sendall(b"abc")
    wait_for(lambda: first.is_over or second.is_over, "one of them to receive")
    far.sendall(b"def")
    assert {first.outcome(), second.outcome()} == {b"abc", b"def"}


@pytest.mark.rule("DUP-17", "EVENT-1")
def test_what_another_process_decides_governs_the_next_receive(talking: tuple[int, Any], actors: Actors) -> None:
    """The mode and the registration are the socket's: the short ways look at them too, without a registry call."""
    s, far = talking
    (other,) = actors.start("other")
    theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
    assert [answered(s, far) for _ in range(3)] == [b"xyz"] * 3
    talk = kept_of(s).talk
    assert talk.polled == SIZE, "of a shared socket as well"
    other.call(spi.WSPIoctl, theirs, FIONBIO, 1)
    assert code_of(receive, s) == 10035
    other.call(spi.WSPIoctl, theirs, FIONBIO, 0)
    assert [answered(s, far) for _ in range(3)] == [b"xyz"] * 3
    other.call(register, theirs)
    assert code_of(receive, s) == 10035, "a registration makes the socket nonblocking"
    other.call(spi.WSPShutdown, theirs, 0)
    assert code_of(receive, s) == 10058
    other.call(spi.WSPCloseSocket, theirs)


def register(s: int) -> None:
    spi.WSPEventSelect(s, spi.UpcallTable().WPUCreateEvent(), FD_READ)


def test_data_that_is_there_is_taken_without_waiting(base: Entries) -> None:
    with base.connected() as (s, far):
        far.sendall(b"abcdefghi")
        spi.WSPSelect([s], None, None, 60.0)
        assert [receive(s) for _ in range(2)] == [b"abc", b"def"]
        opened = kept_of(s)
        assert opened.calm
        assert opened.plain is opened.descriptor.local
        assert opened.talk is SILENT
        assert receive(s, 8) == b"ghi"
        far.close()
        assert receive(s) == b""
        spi.WSPCloseSocket(s)
