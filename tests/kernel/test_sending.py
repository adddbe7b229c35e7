"""Sends that go in pieces, and "ready" that is none: what was queued is told, and nothing spins (F-43, I7)."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from sharedsock.kernel import operations, sockets, waiting
from sharedsock.kernel.operations import WRITE
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import NotASocket, OperationAborted
from tests.kernel import kinds, stage

BLOCK = bytes(range(256)) * 4096 * 8


@pytest.mark.fault("F-43")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_an_aborted_send_reports_what_the_peer_gets(kind: str, way: str) -> None:
    """`bytes_transferred` is exactly what was queued: the peer reads that many bytes, in order, then the end."""
    pair = kinds.make_pair(kind)
    kernel = kinds.adopt(pair.local)
    call = stage.Call(operations.send_all, kernel, memoryview(BLOCK), DONTWAIT | NOSIGNAL, None)
    call.wait_blocked(kernel)
    kinds.close(kernel)
    error = call.error(OperationAborted)
    assert 0 < error.bytes_transferred < len(BLOCK)
    assert kinds.drain(pair.peer, error.bytes_transferred) == BLOCK[: error.bytes_transferred]
    assert pair.peer.recv(1) == b""
    pair.close()


@pytest.mark.fault("F-43")
@pytest.mark.parametrize("point", ["op.done", "op.waiting"])
def test_a_close_between_two_sends_reports_the_first(point: str, points: stage.Points) -> None:
    """Between two pieces of one operation nobody is registered; the operation is aborted all the same, not refused."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    points.act(point, lambda: kinds.close(kernel, "a callback"))
    with pytest.raises(OperationAborted) as ended:
        operations.send_all(kernel, memoryview(BLOCK), DONTWAIT | NOSIGNAL, 5.0)
    assert ended.value.bytes_transferred > 0
    assert len(kinds.drain(pair.peer, ended.value.bytes_transferred)) == ended.value.bytes_transferred
    assert pair.peer.recv(1) == b""
    pair.close()


def test_a_send_of_nothing_sent_yet_is_refused_on_a_closed_socket() -> None:
    """10038, as any call that begins after the close."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    kinds.close(kernel)
    with pytest.raises(NotASocket):
        operations.send_all(kernel, memoryview(b"x"), DONTWAIT, None)
    pair.close()


def test_send_all_sends_all(way: str) -> None:
    """Through a small buffer, against a reader that is slower."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    call = stage.Call(operations.send_all, kernel, memoryview(BLOCK), DONTWAIT | NOSIGNAL, 10.0)
    assert kinds.drain(pair.peer, len(BLOCK)) == BLOCK
    call.outcome()
    kinds.close(kernel)
    pair.close()


def test_send_all_keeps_one_budget_of_time_for_all_pieces() -> None:
    """F-49: a peer that reads a little now and then does not renew it."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    call = stage.Call(operations.send_all, kernel, memoryview(BLOCK), DONTWAIT | NOSIGNAL, 0.1)
    call.error(TimeoutError)
    kinds.close(kernel)
    pair.close()


@pytest.mark.parametrize("wakes", ["room", "abort", "time"])
def test_a_full_receiver_of_an_unconnected_datagram_socket_makes_no_spin(wakes: str, tmp_path: Path, way: str) -> None:
    """I7: poll reports room in our buffer, sendto wants room in the receiver's queue; EAGAIN at full speed.

    Linux, unix_dgram_poll() looks at the peer's queue for a connected socket only.
    """
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "receiver"))
    receiver.settimeout(60)
    kernel = kinds.adopt(kinds.make_client("unix-datagram"))
    address = receiver.getsockname()
    queued = 0
    with pytest.raises(BlockingIOError):
        while True:
            kernel.sendto(b"x", DONTWAIT, address)
            queued += 1
    tries = 0
    paused = threading.Event()
    pause = waiting.pause

    def counted(*arguments: Any) -> object:
        nonlocal tries
        tries += 1
        return kernel.sendto(*arguments)

    def noted(*arguments: Any) -> bool:
        paused.set()
        return pause(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharedsock.kernel.operations.pause", noted)
        timeout_s = 0.2 if wakes == "time" else 10.0
        arguments = b"last", DONTWAIT, address
        call = stage.Call(operations.perform, kernel, "sendto", WRITE, timeout_s, counted, arguments)
        if wakes != "time":  # which may be over first, where the machine stands still
            assert paused.wait(stage.PATIENCE_S), "it spins"
        if wakes == "room":
            for _ in range(queued):
                receiver.recv(16)
            assert call.outcome() == 4
            assert receiver.recv(16) == b"last"
        elif wakes == "time":
            call.error(TimeoutError)
            assert tries < 1000  # at full speed it is a hundred thousand
        else:
            sockets.abort(kernel, "the test")
            call.error(OperationAborted)
    kinds.close(kernel)
    receiver.close()


@pytest.mark.fault("F-40")
def test_honest_competition_is_no_spin(points: stage.Points) -> None:
    """A waiter that was beaten many times goes on waiting in the set, where it blocks."""
    pair = kinds.make_pair("udp4")
    with pair.local.dup() as rival:
        kernel = kinds.adopt(pair.local)
        call = stage.blocked(kernel, kinds.RECEIVES[0])
        for _ in range(8):
            hold = points.hold("op.ready")
            pair.peer.send(b"contested")
            hold.wait_reached()
            assert rival.recv(64) == b"contested"
            hold.release()
            call.wait_blocked(kernel)
        pair.peer.send(b"won")
        assert call.outcome() == b"won"
        kinds.close(kernel)
    pair.close()


@pytest.mark.fault("F-44")
def test_a_wait_keeps_its_time_although_it_is_woken_in_vain(points: stage.Points) -> None:
    """Each new wait gets what is left of the time, not all of it."""
    pair = kinds.make_pair("udp4")
    with pair.local.dup() as rival:
        rival.settimeout(60)
        kernel = kinds.adopt(pair.local)
        points.act("op.ready", lambda: rival.recv(64))
        pair.peer.send(b"contested")
        call = stage.performing(kernel, kinds.RECEIVES[0], timeout_s=0.1, has_tried=True)
        call.error(TimeoutError)
        kinds.close(kernel)
    pair.close()
