"""MSG_DONTWAIT given by the caller: that one call never waits, whatever timeout the descriptor has."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sharedsock as ss

DONTWAIT = socket.MSG_DONTWAIT

RECEIVES: dict[str, Callable[[ss.SharedSocket], Any]] = {
    "recv": lambda s: s.recv(1, DONTWAIT),
    "recv with a plain int": lambda s: s.recv(1, int(DONTWAIT)),
    "recv_into": lambda s: s.recv_into(bytearray(1), 1, DONTWAIT),
    "recvfrom": lambda s: s.recvfrom(1, DONTWAIT),
    "recvfrom_into": lambda s: s.recvfrom_into(bytearray(1), 1, DONTWAIT),
    "recvmsg": lambda s: s.recvmsg(1, 0, DONTWAIT),
    "recvmsg_into": lambda s: s.recvmsg_into([bytearray(1)], 0, DONTWAIT),
}
SENDS: dict[str, Callable[[ss.SharedSocket], Any]] = {
    "send": lambda s: s.send(b"x" * 1000, DONTWAIT),
    "sendall": lambda s: s.sendall(b"x" * 1000, DONTWAIT),
    "sendmsg": lambda s: s.sendmsg([b"x" * 1000], [], DONTWAIT),
}


@pytest.fixture
def pair() -> Iterator[tuple[ss.SharedSocket, ss.SharedSocket]]:
    """A connected pair."""
    a, b = ss.socketpair()
    with a, b:
        yield a, b


@pytest.mark.parametrize("timeout_s", [None, 60.0, 0.0])
@pytest.mark.parametrize("kind", RECEIVES)
def test_a_receive_that_was_told_not_to_wait_does_not(
    pair: tuple[ss.SharedSocket, ss.SharedSocket], kind: str, timeout_s: float | None
) -> None:
    """recv(2), MSG_DONTWAIT: if the operation would block, the call fails with EAGAIN."""
    a, b = pair
    a.settimeout(timeout_s)
    for _ in range(3):
        with pytest.raises(BlockingIOError) as caught:
            RECEIVES[kind](a)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.winerror == 10035  # type: ignore[attr-defined]
    b.send(b"y")
    assert RECEIVES[kind](a)


@pytest.mark.parametrize("timeout_s", [None, 60.0, 0.0])
@pytest.mark.parametrize("kind", SENDS)
def test_a_send_that_was_told_not_to_wait_does_not(
    pair: tuple[ss.SharedSocket, ss.SharedSocket], kind: str, timeout_s: float | None
) -> None:
    """send(2), MSG_DONTWAIT."""
    a, b = pair
    a.settimeout(timeout_s)

    def fill() -> None:
        while True:
            SENDS[kind](a)

    with pytest.raises(BlockingIOError) as caught:
        fill()
    assert caught.value.winerror == 10035  # type: ignore[attr-defined]
    b.setblocking(False)
    while True:
        try:
            b.recv(1 << 20)
        except BlockingIOError:
            break
    SENDS[kind](a)


def test_a_receive_without_flags_still_waits(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    a, _ = pair
    a.settimeout(0.01)
    with pytest.raises(TimeoutError):
        a.recv(1)
    with pytest.raises(TimeoutError):
        a.recv(1, socket.MSG_PEEK)
