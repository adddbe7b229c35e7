"""Overlapped calls, ancillary data and a call's own timeout over a chain of providers under the Python face."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, ClassVar

import pytest

import sharedsock as ss
from sharedsock import spi
from sharedsock.descriptors import overlapped
from sharedsock.model.winsock import WSA_IO_PENDING
from sharedsock.spi.provider import Buffers
from tests.descriptors import requests
from tests.descriptors.requests import PATIENCE_S, error_of
from tests.kernel import stage
from tests.spi.chains import Shouting, pair


class Greedy(spi.LayeredProvider):
    """Receives what comes, and then says that it could not."""

    def WSPRecvFrom(self, s: int, lpBuffers: Buffers, *more: Any) -> Any:
        super().WSPRecvFrom(s, lpBuffers, *more)
        raise spi.WSAError(10055, "no room here")


class Late(spi.LayeredProvider):
    """Takes requests to receive, and completes them as aborted only when it is told, whatever becomes of the socket."""

    held: ClassVar[list[Any]] = []

    def WSPRecv(self, s: int, lpBuffers: Buffers, dwFlags: int = 0, lpOverlapped: Any = None, *more: Any) -> Any:
        if lpOverlapped is None:
            return super().WSPRecv(s, lpBuffers, dwFlags)
        self.held.append((self.upcalls, s, lpOverlapped))
        raise spi.WSAError(WSA_IO_PENDING)


class Elsewhere(spi.LayeredProvider):
    """Passes requests down in a thread of its own, in which no call of the face is under way."""

    def WSPRecv(self, s: int, lpBuffers: Buffers, dwFlags: int = 0, lpOverlapped: Any = None, *more: Any) -> Any:
        def pass_down() -> None:
            with suppress(spi.WSAError):  # 997
                super(Elsewhere, self).WSPRecv(s, lpBuffers, dwFlags, lpOverlapped)

        passing = threading.Thread(target=pass_down)
        passing.start()
        passing.join()
        raise spi.WSAError(WSA_IO_PENDING)


@pytest.fixture
def chained() -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    with ss.use_provider((Shouting, {}), (spi.Tracing, {"logger": "seen"})):
        face, peer = pair()
    with face, peer:
        yield face, peer


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-1")
def test_requests_go_through_the_chain(
    chained: tuple[ss.SharedSocket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """What need not wait has ended; what has to wait is pending on the socket, and ends when it can."""
    caplog.set_level(logging.INFO, logger="seen")
    face, peer = chained
    waiting = face.begin_recv(16)
    assert (waiting.done(), [found.kind for found in face.pending_operations()]) == (False, ["recv"])
    peer.send(b"late")
    assert (waiting.result(PATIENCE_S), waiting.bytes_transferred) == (b"late", 4)
    sent = face.begin_send(b"loud")
    assert (sent.done(), sent.result(), sent.bytes_transferred, peer.recv(16)) == (True, 4, 4, b"LOUD")
    peer.send(b"from")
    kind, address = face.begin_recvfrom(16).result(PATIENCE_S)
    assert (kind, address) == (b"from", None), "as on a plain face: a stream's bytes have no sender"
    peer.shutdown(socket.SHUT_WR)
    assert face.begin_recv(16).result(PATIENCE_S) == b""
    seen = [record.getMessage().split()[2].partition("(")[0] for record in caplog.records]
    assert [call for call in seen if call in ("WSPRecv", "WSPRecvFrom", "WSPSend")] == [
        *("WSPRecv", "WSPSend", "WSPRecvFrom", "WSPRecv")
    ]


def test_a_request_to_send_everything_ends_when_everything_is_queued(
    chained: tuple[ss.SharedSocket, socket.socket],
) -> None:
    face, peer = chained
    data = bytes(range(97, 123)) * 200_000
    operation = face.begin_sendall(data)
    assert not operation.done(), "nobody has received yet"
    found = bytearray()
    while len(found) < len(data):
        found += peer.recv(1 << 20)
    assert operation.result(PATIENCE_S) is None
    assert (operation.bytes_transferred, bytes(found)) == (len(data), data.upper())


def test_datagrams_and_their_senders() -> None:
    with ss.use_provider(spi.Tracing):
        face = ss.SharedSocket(socket.AF_INET, socket.SOCK_DGRAM)
    with face, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        face.bind(("127.0.0.1", 0))
        operation = face.begin_recvfrom(3)
        peer.sendto(b"message", face.getsockname())
        assert operation.result(PATIENCE_S) == (b"mes", peer.getsockname())


@pytest.mark.rule("CLOSE-22")
def test_a_close_ends_a_request_through_the_chain(chained: tuple[ss.SharedSocket, socket.socket]) -> None:
    face, peer = chained
    told: list[Any] = []
    with face.dup() as other:
        operation = face.begin_recv(16)
        operation.add_done_callback(told.append)
        face.close()
        error = error_of(operation)
        assert isinstance(error, ss.OperationAborted)
        assert (error.winerror, error.operation, "test_chained_requests" in str(error.closed_by)) == (995, "recv", True)
        with pytest.raises(ss.NotASocket):
            face.begin_recv(16)
        peer.send(b"left alone")
        assert other.recv(16) == b"left alone"
    assert told == [operation], "exactly once"


def test_cancel_ends_one_request_alone(chained: tuple[ss.SharedSocket, socket.socket]) -> None:
    face, peer = chained
    first, second = face.begin_recv(16), face.begin_recv(16)
    assert first.cancel()
    assert first.cancelled()
    peer.send(b"for the second")
    assert second.result(PATIENCE_S) == b"for the second"
    assert not second.cancel()


@pytest.mark.parametrize("fault", ["refuse", "reset"])
def test_a_fault_is_in_the_operation(fault: str) -> None:
    """What a layer answers a request with is its outcome, as what the network answers would be."""
    with ss.use_provider(spi.Chaos, at={"WSPRecv": {1: fault}}):
        face, peer = pair()
    with face, peer:
        error = error_of(face.begin_recv(16))
        assert error.winerror == {"refuse": 10055, "reset": 10054}[fault]


def test_a_layer_that_keeps_a_request_decides_its_end() -> None:
    """It is asked nothing when its client cancels; its own word at a close is what a close says."""
    with ss.use_provider(Late):
        face, peer = pair()
    with face, peer:
        operation = face.begin_recv(16)
        assert not operation.cancel(), "the layer has it in hand"
        face.close()
        upcalls, s, lpOverlapped = Late.held.pop()
        upcalls.WPUCompleteOverlappedRequest(s, lpOverlapped, 995, 0)
        error = error_of(operation)
        assert isinstance(error, ss.OperationAborted)
        assert (error.winerror, error.closed_by is not None) == (995, True)


def test_a_request_that_a_layer_makes_by_itself_is_kept_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[weakref.ref[Any]] = []
    real = overlapped.begin_recv

    def noted(*arguments: Any) -> Any:
        operation = real(*arguments)
        begun.append(weakref.ref(operation))
        return operation

    monkeypatch.setattr(overlapped, "begin_recv", noted)
    with ss.use_provider(Elsewhere):
        face, peer = pair()
    with face, peer:
        operation = face.begin_recv(16)
        peer.send(b"by a thread")
        assert operation.result(PATIENCE_S) == b"by a thread"
        requests.wait_service_idle()
        gc.collect()
        assert [one() for one in begun] == [None]


def test_an_interrupted_begin_leaves_no_request(chained: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Its caller never sees the operation: it must not take what comes later."""
    face, peer = chained
    begun: list[Any] = []

    def interrupted(operation: Any, callback: Any) -> None:
        begun.append(operation)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlapped.Operation, "add_done_callback", interrupted)
        with pytest.raises(KeyboardInterrupt):
            face.begin_recv(16)
    assert begun[0].cancelled()
    peer.send(b"for the next")
    assert face.recv(16) == b"for the next"


def test_a_forked_child_has_no_part_in_a_request(chained: tuple[ss.SharedSocket, socket.socket]) -> None:
    face, peer = chained
    operation = face.begin_recv(16)

    def ask(line: stage.Line) -> None:
        try:
            operation.result(0)
        except ss.ForkedDescriptor:
            line.say(b"refused")

    with stage.sibling(ask) as child:
        assert child.hear() == b"refused"
    peer.send(b"the parent's")
    assert operation.result(PATIENCE_S) == b"the parent's"


# -- ancillary data ---------------------------------------------------------------------------------------------------


def test_ancillary_data_goes_beside_the_calls() -> None:
    """The layer changes the bytes; the descriptors that travel with them arrive as they are."""
    with ss.use_provider(Shouting):
        ours, theirs = ss.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, open(os.devnull, "rb") as file:
        assert socket.send_fds(ours, [b"here"], [file.fileno()]) == 4
        data, (number,), _, _ = socket.recv_fds(theirs, 16, 1)
        try:
            assert (data, os.path.sameopenfile(number, file.fileno())) == (b"HERE", True)
        finally:
            os.close(number)
        assert ours.send(b"alone") == 5
        assert theirs.recvmsg(16, socket.CMSG_SPACE(4))[:2] == (b"ALONE", [])


def test_descriptors_a_layer_lost_are_closed() -> None:
    with ss.use_provider(Greedy):
        ours, theirs = ss.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near, far = os.pipe()
    with ours, theirs, open(near, "rb", buffering=0) as reading:
        socket.send_fds(ours, [b"x"], [far])
        os.close(far)
        with pytest.raises(OSError, match="no room here"):
            theirs.recvmsg(1, socket.CMSG_SPACE(4))
        os.set_blocking(near, False)
        assert reading.read(1) == b"", "nobody has the writing end any more"


# -- the time of a whole call -----------------------------------------------------------------------------------------


def test_the_timeout_of_sendall_is_for_all_of_it() -> None:
    """Each send below takes a little, and a peer that takes a little as well keeps none of them waiting for long."""
    with ss.use_provider(spi.Throttling, most_bytes=1000):
        face, peer = pair()
    with face, peer:
        face.settimeout(0.2)
        over = threading.Event()

        def take_little() -> None:
            while not over.is_set():
                peer.recv(4096)

        taking = threading.Thread(target=take_little)
        taking.start()
        began_s = monotonic()
        try:
            with pytest.raises(TimeoutError) as caught:
                face.sendall(bytes(200_000_000))
            assert caught.value.winerror == 10060  # type: ignore[attr-defined]
            assert monotonic() - began_s >= 0.2
        finally:
            over.set()
            face.close()
            peer.shutdown(socket.SHUT_RDWR)
            taking.join()
