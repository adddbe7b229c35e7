"""Race: file numbers are reused while calls are on their way. No call ever reaches another socket (F-47, I5)."""

from __future__ import annotations

import random
import socket
import threading
from time import monotonic

import pytest

from sharedsock.kernel import operations, sockets
from sharedsock.kernel.operations import READ
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import NotASocket, OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair

STORM_S = 2.0


@pytest.mark.fault("F-47", "I5")
@pytest.mark.parametrize("point", ["op.enter", "op.waiting", "op.ready"])
def test_a_call_held_anywhere_meets_the_dead_file(pair: Pair, point: str, points: stage.Points) -> None:
    """Its socket is closed and new ones are opened meanwhile: none of them gets its number, none loses a byte."""
    kernel = kinds.adopt(pair.local)
    hold = points.hold(point)
    call = stage.performing(kernel, RECEIVES[0], has_tried=point == "op.ready")
    if point == "op.ready":
        pair.peer.send(b"wake")
    hold.wait_reached()
    number = kernel.number
    sockets.abort(kernel, "the test")
    sockets.keep_and_bury(kernel, keep=False)
    del kernel
    strangers = [kinds.make_pair("unix-stream") for _ in range(8)]
    for stranger in strangers:
        assert number not in (stranger.local.fileno(), stranger.peer.fileno())
        stranger.peer.send(b"mine")
    hold.release()
    call.error(NotASocket if point == "op.enter" else OperationAborted)
    for stranger in strangers:
        assert stranger.local.recv(16) == b"mine"
        stranger.close()


@pytest.mark.fault("F-47", "I5")
def test_a_direct_call_meets_the_dead_file(pair: Pair) -> None:
    """The fast path's call, between look-up and system call: it has the object, and the object has a dead number."""
    kernel = kinds.adopt(pair.local)
    recv, send = kernel.recv, kernel.send
    kinds.close(kernel)
    del kernel
    strangers = [kinds.make_pair("unix-stream") for _ in range(8)]
    for stranger in strangers:
        stranger.peer.send(b"mine")
    for call in (lambda: recv(16, DONTWAIT), lambda: send(b"theirs", DONTWAIT)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    for stranger in strangers:
        assert stranger.local.recv(16) == b"mine"
        stranger.peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.peer.recv(16)
        stranger.close()


@pytest.mark.fault("F-47", "I5")
def test_open_and_close_storm_with_tagged_bytes() -> None:
    """Threads open, use and close as fast as they can; a socket's bytes carry its tag, and none arrives elsewhere."""
    deadline_s = monotonic() + STORM_S
    seed = random.SystemRandom().randrange(1 << 32)
    tags = iter(range(1 << 40))
    rounds = [0, 0, 0]

    def storm(index: int) -> None:
        choice = random.Random(seed + index)
        while monotonic() < deadline_s:
            tag = b"%012d" % next(tags)
            left, right = socket.socketpair()
            kernel, peer = kinds.adopt(left), kinds.adopt(right)
            reader = stage.Call(_receive_all, kernel, tag) if choice.random() < 0.2 else None
            peer.send(tag)
            if choice.random() < 0.5:
                kinds.close(peer)
                kinds.close(kernel)
            else:
                kinds.close(kernel)
                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    peer.send(tag)
                kinds.close(peer)
            if reader is not None:
                reader.outcome()
            rounds[index] += 1

    storms = [stage.Call(storm, index, name=f"storm {index}") for index in range(3)]
    for one in storms:
        one.outcome()
    assert all(rounds), f"seed {seed}"
    assert threading.active_count() == 1


def _receive_all(kernel: sockets.KernelSocket, tag: bytes) -> None:
    try:
        while data := operations.perform(kernel, "recv", READ, stage.PATIENCE_S, kernel.recv, (64,)):
            assert data == tag
    except (OperationAborted, NotASocket):
        pass
