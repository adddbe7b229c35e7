"""Signals while a call waits: a storm of them, and SIGSTOP. Budgets are kept, nothing returns early, nothing spins.

A signal whose handler does not raise interrupts each system call with EINTR, a thousand times a second; PEP 475 has it
made again, with the time that is left.
"""

from __future__ import annotations

import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic, process_time
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Aborted, Actors, Raised, Received
from tests.descriptors.kinds import pair_of

BUDGET_S = 0.25


@pytest.fixture
def storm() -> Iterator[list[int]]:
    """A signal each millisecond; the list holds how many there were."""
    count = [0]

    def note(number: int, frame: object) -> None:
        count[0] += 1

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield count
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _selects(s: ss.SharedSocket) -> None:
    assert ss.select([s], [], [], BUDGET_S) == ([], [], [])
    raise TimeoutError


def _selector_selects(s: ss.SharedSocket) -> None:
    with ss.Selector() as selector:
        selector.register(s, selectors.EVENT_READ)
        assert selector.select(BUDGET_S) == []
    raise TimeoutError


def _operation_waits(s: ss.SharedSocket) -> None:
    operation = s.begin_recv(1)
    try:
        operation.result(BUDGET_S)
    finally:
        assert operation.cancel()  # it goes on otherwise, and takes the next byte


WAITS: dict[str, Callable[[Any], object]] = {
    "recv": lambda s: s.recv(1),
    "recv_into": lambda s: s.recv_into(bytearray(1)),
    "recvmsg": lambda s: s.recvmsg(1),
    "sendall": lambda s: s.sendall(bytes(1 << 24)),
    "select": _selects,
    "Selector.select": _selector_selects,
    "Operation.result": _operation_waits,
}


@pytest.mark.fault("F-49", "I7")
@pytest.mark.parametrize("name", WAITS)
def test_a_storm_of_signals_neither_shortens_nor_lengthens_a_wait(name: str, storm: list[int]) -> None:
    with pair_of("tcp4", send_buffer=4096, receive_buffer=4096) as pair:
        pair.local.settimeout(BUDGET_S)
        began_s, busy_s, seen = monotonic(), process_time(), storm[0]
        with pytest.raises(TimeoutError):
            WAITS[name](pair.local)
        took_s, busy_s = monotonic() - began_s, process_time() - busy_s
        assert took_s >= BUDGET_S - 0.002, "it returned early"
        assert took_s < 20 * BUDGET_S, "each signal began the time anew"
        assert storm[0] - seen > 5, "there was no storm"
        assert busy_s < 0.5 * took_s, "it spins"
        pair.peer.sendall(b"x")
        assert pair.local.recv(1) == b"x"


@pytest.mark.fault("F-49", "I1")
def test_a_stream_comes_whole_through_a_storm_of_signals(storm: list[int]) -> None:
    """1 MiB, in pieces that each have to be waited for."""
    data = bytes(range(256)) * 4096
    with pair_of("tcp4", receive_buffer=4096) as pair:
        sending = threading.Thread(target=pair.peer.sendall, args=(data,))
        sending.start()
        received = bytearray()
        while len(received) < len(data):
            received += pair.local.recv(1 << 16)
        sending.join()
        assert received == data
    assert storm[0]


@pytest.mark.fault("F-49")
def test_connect_and_accept_in_a_storm_of_signals(storm: list[int]) -> None:
    with ss.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(BUDGET_S)
        began_s = monotonic()
        with pytest.raises(TimeoutError):
            listener.accept()
        assert monotonic() - began_s >= BUDGET_S - 0.002
        for _ in range(20):
            with ss.create_connection(listener.getsockname()) as client, listener.accept()[0] as served:
                served.sendall(b"x")
                assert client.recv(1) == b"x"
    assert storm[0] > 5


@pytest.mark.fault("F-56")
@pytest.mark.rule("CLOSE-20")
def test_a_holder_stopped_while_it_waits_is_aborted_when_it_goes_on(actors: Actors, bounds: Any) -> None:
    """Another process is not held up meanwhile; the close, and T_abort, begin with SIGCONT."""
    with pair_of("tcp4") as pair:
        a, b = actors.start("a", "b")
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        pair.local.close()
        stopped, other = b.thread("reader").recv(16), a.thread("reader").recv(16)
        b.wait_until_blocked("reader")
        asleep = a.wait_until_blocked("reader")
        b.stop()
        closing = b.thread("closer").close()  # lies in its pipe
        assert a.wait_until_blocked("reader") == asleep
        continued_s = monotonic()
        b.cont()
        assert stopped.outcome() == Aborted(10004)
        bounds.check("T_abort", stopped.ended_s - max(continued_s, closing.began_s))
        closing.value()
        assert a.wait_until_blocked("reader") == asleep
        pair.peer.sendall(b"still here")
        assert other.outcome() == Received(b"still here")


@pytest.mark.fault("F-56")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "udp4"])
def test_a_wait_goes_on_where_it_was_stopped(kind: str, actors: Actors) -> None:
    """SIGCONT ends no wait, and what arrived meanwhile is there."""
    with pair_of(kind) as pair:
        (b,) = actors.start("b")
        b.do("take", pair.local.share(b.pid))
        reading = b.thread("reader").recv(16)
        b.wait_until_blocked("reader")
        b.stop()
        b.cont()
        b.wait_until_blocked("reader")
        b.stop()
        pair.peer.send(b"meanwhile")
        b.cont()
        assert reading.outcome() == Received(b"meanwhile")


@pytest.mark.fault("F-53", "I4")
def test_a_refused_datagram_is_told_to_one_holder_and_the_others_go_on(actors: Actors) -> None:
    """The kernel keeps one pending error per socket and tells it once, to whoever asks first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    with ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.connect(address)
        a, b = actors.start("a", "b")
        for actor in (a, b):
            actor.do("take", ours.share(actor.pid))
        readings = {actor: actor.thread("reader").recv(16) for actor in (a, b)}
        for actor in readings:
            actor.wait_until_blocked("reader")
        assert ours.send(b"to nobody") == 9
        actors.wait_for(lambda: any(reading.is_done() for reading in readings.values()), "one holder to be told")
        (refused,) = (actor for actor, reading in readings.items() if reading.is_done())
        (spared,) = {a, b} - {refused}
        assert readings[refused].outcome() == Raised("ConnectionRefusedError", 10061, 111)
        spared.wait_until_blocked("reader")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
            somebody.bind(address)
            somebody.sendto(b"after all", ours.getsockname())
            assert readings[spared].outcome() == Received(b"after all")
            again = refused.thread("reader").recv(16)
            somebody.sendto(b"to you too", ours.getsockname())
            assert again.outcome() == Received(b"to you too")
