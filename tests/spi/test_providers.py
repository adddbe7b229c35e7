"""The shipped layers: tracing, throttling, chaos. Each over real sockets, alone and in a chain."""

from __future__ import annotations

import logging
import socket
import threading
from time import monotonic
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import SOCK_DGRAM
from sharedsock.spi import Chaos, Throttling, Tracing, UpcallTable
from sharedsock.testing import Actors
from tests.spi.parties import Entries, Running, base_entry, code_of, ends_with_reset, installed, recv, take

pytestmark = pytest.mark.usefixtures("started", "registry")


class Announcing(threading.Event):
    """An event that says when somebody begins to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.entered.set()
        return super().wait(timeout)


def entries_of(info: Any) -> Entries:
    return Entries(info, info)


def test_tracing_tells_each_call_its_outcome_and_its_time(caplog: pytest.LogCaptureFixture) -> None:
    with installed(Tracing, base_entry(), logger="told") as info, caplog.at_level(logging.INFO, "told"):
        with entries_of(info).connected() as (s, far):
            spi.WSPSend(s, [b"abc"])
            far.sendall(b"x")
            recv(s)
            assert code_of(spi.WSPShutdown, s, 7) == 10022
            spi.WSPCloseSocket(s)
        lines = [record.getMessage() for record in caplog.records]
    calls = [line.split(" ", 2)[2] for line in lines]
    assert [call.split("(")[0] for call in calls] == [
        "WSPSocket", "WSPConnect", "WSPSend", "WSPRecv", "WSPShutdown", "WSPCloseSocket",
    ]  # fmt: skip
    assert calls[2].startswith(f"WSPSend({s}) = 3 ")
    assert "WSAEINVAL" in calls[4]
    assert all(line.endswith(" ms") and float(line.split()[-2]) >= 0 for line in lines)


def test_throttling_is_as_slow_as_it_says() -> None:
    with installed(Throttling, base_entry(), bytes_per_s=100_000, latency_s=0.01, jitter_s=0.01, seed=1) as info:
        with entries_of(info).connected() as (s, far):
            began_s = monotonic()
            for _ in range(4):
                assert spi.WSPSend(s, [bytes(2000)]) == 2000
            # three waits for 2,000 bytes at 100,000 a second, and four latencies
            assert monotonic() - began_s >= 3 * 0.02 + 4 * 0.01
            assert far.recv(8000, socket.MSG_WAITALL) == bytes(8000)
            spi.WSPCloseSocket(s)


def test_throttling_slows_messages_and_cuts_none() -> None:
    below = base_entry(SOCK_DGRAM)
    with installed(Throttling, below, bytes_per_s=100_000, latency_s=0.005, most_bytes=3, seed=1) as info:
        s, t = (entries_of(info).datagrams() for _ in "12")
        began_s = monotonic()
        for _ in range(3):
            assert spi.WSPSendTo(s, [bytes(1000)], 0, spi.WSPGetSockName(t)) == 1000
        for _ in range(3):
            assert spi.WSPRecvFrom(t, [bytearray(2000)]) == (1000, 0, spi.WSPGetSockName(s))
        # two waits for 1,000 bytes at 100,000 a second in either direction, and six latencies
        assert monotonic() - began_s >= 4 * 0.01 + 6 * 0.005
        for handle in (s, t):
            spi.WSPCloseSocket(handle)


def test_throttling_moves_short_pieces_the_same_in_every_run() -> None:
    pieces = []
    for _ in range(2):
        with installed(Throttling, base_entry(), most_bytes=9, seed=3) as info:
            with entries_of(info).connected() as (s, far):
                sent = [spi.WSPSend(s, [b"ab", bytes(100)]) for _ in range(20)]
                far.sendall(bytes(50))
                spi.WSPSelect([s], None, None, 60.0)
                pieces.append((sent, [len(recv(s, 64)) for _ in range(5)]))
                spi.WSPCloseSocket(s)
    assert pieces[0] == pieces[1]
    assert set(pieces[0][0]) == set(range(1, 10))


def test_a_close_ends_a_throttled_wait() -> None:
    with installed(Throttling, base_entry(), latency_s=60.0) as info:
        with entries_of(info).connected() as (s, _far):
            closed = UpcallTable().WPUQuerySocketHandleContext(s).closed = Announcing()
            waiting = Running(recv, s)
            assert closed.entered.wait(60)
            spi.WSPCloseSocket(s)
            assert waiting.code() == 10004


@pytest.mark.parametrize(
    ("at", "codes"),
    [
        ({"WSPSend": {2: "refuse"}}, [0, 10055, 0, 0]),
        ({"WSPSend": {3: "reset"}}, [0, 0, 10054, 10054]),
        ({"WSPSend": {1: "stall"}}, [0, 0, 0, 0]),
    ],
)
def test_chaos_comes_at_the_chosen_call(at: Any, codes: list[int]) -> None:
    with installed(Chaos, base_entry(), at=at, stall_s=0.01) as info:
        with entries_of(info).connected() as (s, far):
            assert [code_of(spi.WSPSend, s, [b"x"]) for _ in codes] == codes
            assert ends_with_reset(far) if 10054 in codes else far.recv(8) == b"x" * codes.count(0)
            spi.WSPCloseSocket(s)


def test_chaos_refuses_connects_and_draws_the_same_luck_in_every_run() -> None:
    runs = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        for _ in range(2):
            with installed(Chaos, base_entry(), seed=5, refuse=0.5) as info:
                handles = [entries_of(info).open() for _ in range(16)]
                runs.append([code_of(spi.WSPConnect, s, door.getsockname()) for s in handles])
                for s in handles:
                    spi.WSPCloseSocket(s)
    assert runs[0] == runs[1]
    assert set(runs[0]) == {0, 10061}


def test_a_reset_by_chaos_is_every_sharer_s(actors: Actors) -> None:
    with installed(Chaos, base_entry(), at={"WSPSend": {1: "reset"}}) as info:
        (other,) = actors.start("other")
        with entries_of(info).connected() as (s, far):
            theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
            assert code_of(spi.WSPSend, s, [b"x"]) == 10054
            assert other.call(code_of, recv, theirs) == 10054
            assert ends_with_reset(far)
            other.call(spi.WSPCloseSocket, theirs)
            spi.WSPCloseSocket(s)


def test_a_close_ends_a_stall() -> None:
    with installed(Chaos, base_entry(), at={"WSPRecv": {1: "stall"}}, stall_s=60.0) as info:
        with entries_of(info).connected() as (s, _far):
            closed = UpcallTable().WPUQuerySocketHandleContext(s).closed = Announcing()
            waiting = Running(recv, s)
            assert closed.entered.wait(60)
            spi.WSPCloseSocket(s)
            assert waiting.code() == 10004


@pytest.mark.parametrize("at", [{"WSPSend": {1: "explode"}}, {"WSPNothing": {1: "reset"}}])
def test_chaos_refuses_what_it_does_not_know(at: Any) -> None:
    assert code_of(spi.WSCInstallProvider, Chaos, base_entry(), at=at) == 10022


def test_a_chain_of_all_three_keeps_the_promise(actors: Actors) -> None:
    with installed(Chaos, base_entry()) as low, installed(Throttling, low, most_bytes=3, seed=1) as middle:
        with installed(Tracing, middle) as top:
            (other,) = actors.start("other")
            with entries_of(top).connected() as (s, far):
                theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
                mine = Running(recv, s)
                mine.wait_blocked()
                spi.WSPCloseSocket(s)
                assert mine.code() == 10004
                far.sendall(b"x")
                assert other.call(recv, theirs) == b"x"
                other.call(spi.WSPCloseSocket, theirs)
                assert far.recv(1) == b""
