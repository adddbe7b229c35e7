"""Overlapped requests: posted, completed exactly once, by event object, completion routine or completion port."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import (
    FIONBIO,
    FIONREAD,
    INVALID_SOCKET,
    MSG_PEEK,
    MSG_WAITALL,
    SIO_FLUSH,
    WAIT_IO_COMPLETION,
    WAIT_TIMEOUT,
)
from sharedsock.spi import WSAOVERLAPPED, UpcallTable
from sharedsock.testing import Actors
from sharedsock.testing.observation import files
from tests.descriptors.sharers import wait_until
from tests.spi.parties import Entries, Running, code_of, fill, recv, take

DLL = UpcallTable()
BOUND_MS = 60_000


@pytest.fixture
def event() -> Iterator[int]:
    made = DLL.WPUCreateEvent()
    yield made
    DLL.WPUCloseEvent(made)


@pytest.fixture
def port() -> Iterator[int]:
    made = spi.CreateIoCompletionPort()
    yield made
    spi.CloseCompletionPort(made)


def is_set(event: int) -> bool:
    return spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 0


@pytest.mark.rule("OVERLAP-1", "OVERLAP-2", "OVERLAP-3", "OVERLAP-4", "OVERLAP-5", "OVERLAP-7")
def test_a_request_with_an_event_object(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        far.sendall(b"now")
        spi.WSPSelect([s], None, None, 60.0)
        request, buffer = WSAOVERLAPPED(event), bytearray(8)
        assert spi.WSPRecv(s, [buffer], 0, request) == (3, 0)
        assert is_set(event), "it has happened before the call returned"
        assert spi.WSPGetOverlappedResult(s, request) == (3, 0)
        assert code_of(spi.WSPRecv, s, [buffer], 0, request) == 997
        assert not is_set(event), "reset at the start"
        assert code_of(spi.WSPGetOverlappedResult, s, request) == 996
        far.sendall(b"later")
        assert spi.WSPGetOverlappedResult(s, request, True) == (5, 0)
        assert bytes(buffer[:5]) == b"later"
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        spi.WSPShutdown(s, 1)
        DLL.WPUResetEvent(event)
        assert code_of(spi.WSPSend, s, [b"x"], 0, request) == 10058
        assert not is_set(event), "one that was not started gives no indication, ever"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("OVERLAP-6", "OVERLAP-8", "OVERLAP-14", "OVERLAP-18")
def test_what_no_request_can_be_made_of(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        pending = WSAOVERLAPPED()
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, pending) == 997
        assert code_of(spi.WSPGetOverlappedResult, s, pending, True) == 10022, "no event to wait for"
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, pending) == 10022, "in use"
        assert code_of(spi.WSPSend, s, [b"x"], 0, pending) == 10022
        assert code_of(spi.WSPGetOverlappedResult, s, WSAOVERLAPPED(event)) == 10022, "no request of this handle"
        assert code_of(spi.WSPGetOverlappedResult, s, None) == 10022
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, WSAOVERLAPPED(10**9)) == 6
        far.sendall(b"x")
        pending.wait_settled()
        assert spi.WSPGetOverlappedResult(s, pending) == (1, 0)
        spi.WSPCloseSocket(s)
    with entries.connected(flags=0) as (s, _far):
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, WSAOVERLAPPED(event)) == 10022
        spi.WSPSend(s, [b"x"])
        spi.WSPCloseSocket(s)


@pytest.mark.rule("CLOSE-22", "CLOSE-23", "CLOSE-27", "CLOSE-33", "OVERLAP-7", "OVERLAP-12", "OVERLAP-13", "OVERLAP-20")
def test_a_close_completes_each_request_with_995_and_its_indication(entries: Entries, event: int, port: int) -> None:
    with entries.connected() as (s, _far), entries.connected() as (t, _):
        spi.CreateIoCompletionPort(t, port, 77)
        by_event, by_routine, by_port = WSAOVERLAPPED(event), WSAOVERLAPPED(), WSAOVERLAPPED()
        called: list[Any] = []
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, by_event) == 997
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, by_routine, lambda *facts: called.append(facts)) == 997
        assert code_of(spi.WSPRecv, t, [bytearray(1)], 0, by_port) == 997
        for handle in (s, t):
            spi.WSPCloseSocket(handle)
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        assert code_of(spi.WSPGetOverlappedResult, s, by_event) == 995, "the request is known, its socket is not"
        by_routine.wait_settled()
        assert called == [], "this thread has not waited alertably"
        assert spi.SleepEx(BOUND_MS, True) == WAIT_IO_COMPLETION
        assert called == [(995, 0, by_routine, 0)]
        assert spi.SleepEx(0, True) == 0, "once"
        packet = spi.GetQueuedCompletionStatus(port, BOUND_MS)
        assert not packet.is_success
        assert packet == (0, 77, by_port, 995)
        assert code_of(spi.GetQueuedCompletionStatus, port, 0) == WAIT_TIMEOUT, "once"
        assert code_of(spi.WSPGetOverlappedResult, s, WSAOVERLAPPED()) == 10038


@pytest.mark.rule("OVERLAP-10")
def test_the_indication_is_the_one_that_was_chosen(entries: Entries, event: int, port: int) -> None:
    """No structure: synchronous. Neither event nor routine: the port, or none. A routine: the event is ignored."""
    with entries.connected() as (s, far):
        far.sendall(b"abcde")
        spi.WSPSelect([s], None, None, 60.0)
        assert recv(s, 1) == b"a"
        alone = WSAOVERLAPPED()
        assert spi.WSPRecv(s, [bytearray(1)], 0, alone) == (1, 0)
        assert spi.WSPGetOverlappedResult(s, alone) == (1, 0)
        spi.CreateIoCompletionPort(s, port, 5)
        by_port, by_event, by_routine = WSAOVERLAPPED(), WSAOVERLAPPED(event), WSAOVERLAPPED(event)
        spi.WSPRecv(s, [bytearray(1)], 0, by_port)
        assert spi.GetQueuedCompletionStatus(port, 0) == (1, 5, by_port, 0)
        spi.WSPRecv(s, [bytearray(1)], 0, by_event)
        assert is_set(event)
        DLL.WPUResetEvent(event)
        called: list[Any] = []
        spi.WSPRecv(s, [bytearray(1)], 0, by_routine, lambda *facts: called.append(facts))
        assert spi.SleepEx(0, True) == WAIT_IO_COMPLETION
        assert called == [(0, 1, by_routine, 0)]
        assert not is_set(event)
        assert code_of(spi.GetQueuedCompletionStatus, port, 0) == WAIT_TIMEOUT
        spi.WSPCloseSocket(s)


@pytest.mark.rule("OVERLAP-11", "CLOSE-36")
def test_a_routine_runs_in_its_own_thread_in_an_alertable_wait_only_and_may_begin_the_next(entries: Entries) -> None:
    """No call on a socket is an alertable wait, so a routine interrupts none, and none is nested (CLOSE-36)."""
    with entries.connected() as (s, far):
        seen: list[tuple[int, bytes]] = []
        depth = 0
        buffer = bytearray(1)

        def routine(error: int, count: int, request: WSAOVERLAPPED, flags: int) -> None:
            nonlocal depth
            depth += 1
            assert depth == 1, "never nested"
            seen.append((threading.get_ident(), bytes(buffer)))
            if len(seen) < 3:
                code_of(spi.WSPRecv, s, [buffer], 0, WSAOVERLAPPED(), routine)
            depth -= 1

        assert code_of(spi.WSPRecv, s, [buffer], 0, WSAOVERLAPPED(), routine) == 997
        far.sendall(b"abcd")
        other = Running(spi.SleepEx, 50, True)
        assert other.code() == 0
        with entries.connected() as (t, far_t):
            blocked = threading.Timer(0.02, far_t.sendall, (b"x",))
            blocked.start()
            assert recv(t) == b"x", "a blocking call while the routine is queued"
            blocked.join()
            spi.WSPCloseSocket(t)
        assert seen == []
        while len(seen) < 3:
            assert spi.SleepEx(BOUND_MS, True) == WAIT_IO_COMPLETION
        assert seen == [(threading.get_ident(), data) for data in (b"a", b"b", b"c")]
        spi.WSPCloseSocket(s)


@pytest.mark.rule("OVERLAP-9", "OVERLAP-15")
def test_requests_are_served_in_their_order_whatever_the_mode(entries: Entries) -> None:
    with entries.connected() as (s, far):
        spi.WSPIoctl(s, FIONBIO, 1)
        buffers = [bytearray(2) for _ in range(8)]
        requests = [WSAOVERLAPPED() for _ in buffers]
        for buffer, request in zip(buffers, requests, strict=True):
            assert code_of(spi.WSPRecv, s, [buffer], 0, request) == 997
        for number in range(8):
            far.sendall(bytes([number, number]))
            requests[number].wait_settled()
        assert [bytes(buffer) for buffer in buffers] == [bytes([n, n]) for n in range(8)]
        spi.WSPCloseSocket(s)


@pytest.mark.rule("OVERLAP-16", "OVERLAP-17")
def test_flush_ends_queued_sends_with_995(entries: Entries, event: int) -> None:
    with entries.connected(small=True) as (s, far):
        queued = fill(s)
        first, second = WSAOVERLAPPED(), WSAOVERLAPPED(event)
        assert code_of(spi.WSPSend, s, [bytes(100)], 0, first) == 997
        assert code_of(spi.WSPSend, s, [bytes(100)], 0, second) == 997
        spi.WSPIoctl(s, SIO_FLUSH)
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        for request in (first, second):
            assert code_of(spi.WSPGetOverlappedResult, s, request) == 995
        spi.WSPCloseSocket(s)
        got = 0
        while data := far.recv(1 << 16):
            got += len(data)
        assert got == queued


@pytest.mark.rule("DUP-26")
def test_the_association_with_a_port_is_the_socket_s(entries: Entries, actors: Actors, port: int) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, _far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        spi.CreateIoCompletionPort(s, port, 1)
        assert other.call(associate, theirs) == 10022
        assert code_of(spi.CreateIoCompletionPort, s, port, 2) == 10022
        twin = spi.WSPSocket(-1, -1, -1, spi.WSPDuplicateSocket(s, os.getpid()))
        assert code_of(spi.CreateIoCompletionPort, twin, port, 2) == 10022
        for handle in (s, twin):
            spi.WSPCloseSocket(handle)
        other.call(spi.WSPCloseSocket, theirs)


def associate(s: int) -> int:
    port = spi.CreateIoCompletionPort()
    try:
        return code_of(spi.CreateIoCompletionPort, s, port, 0)
    finally:
        spi.CloseCompletionPort(port)


def test_ports_by_themselves(started: None, port: int) -> None:
    spi.PostQueuedCompletionStatus(port, 3, 4)
    assert spi.GetQueuedCompletionStatus(port, 0) == (3, 4, None, 0)
    for call, arguments, code in (
        (spi.GetQueuedCompletionStatus, (10**9,), 6),
        (spi.PostQueuedCompletionStatus, (10**9,), 6),
        (spi.CloseCompletionPort, (10**9,), 6),
        (spi.CreateIoCompletionPort, (INVALID_SOCKET, port), 10022),
        (spi.CreateIoCompletionPort, (INVALID_SOCKET, 10**9), 6),
        (spi.CreateIoCompletionPort, (10**9, port), 10038),
    ):
        assert code_of(call, *arguments) == code


@pytest.mark.rule("NONIFS-12")
def test_a_completion_by_upcall_is_for_handles_of_the_dll(started: None, registry: Any, event: int) -> None:
    with Entries.of("base") as base, base.connected() as (s, far):
        request = WSAOVERLAPPED(event)
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, request) == 997
        assert code_of(DLL.WPUCompleteOverlappedRequest, s, request, 0, 1) == 10022
        assert code_of(DLL.WPUCompleteOverlappedRequest, s, None, 0, 1) == 10022
        assert not is_set(event)
        far.sendall(b"x")
        assert spi.WSPGetOverlappedResult(s, request, True) == (1, 0)
        spi.WSPCloseSocket(s)
    calls: list[tuple[int, int]] = []
    with Entries.of("chain") as chain, chain.connected() as (s, far):
        original = UpcallTable.WPUCompleteOverlappedRequest

        def spy(self: Any, s: int, lpOverlapped: Any, dwError: int, cbTransferred: int, dwFlags: int = 0) -> None:
            calls.append((s, cbTransferred))
            original(self, s, lpOverlapped, dwError, cbTransferred, dwFlags)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UpcallTable, "WPUCompleteOverlappedRequest", spy)
            assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, request) == 997
            far.sendall(b"x")
            assert spi.WSPGetOverlappedResult(s, request, True) == (1, 0)
        assert calls[-1] == (s, 1), "each layer completes on the handle that is known above it"
        assert len(calls) == 2
        spi.WSPCloseSocket(s)


@pytest.mark.rule("OVERLAP-19")
def test_a_pending_receive_makes_no_reset_of_the_last_close(entries: Entries) -> None:
    with entries.connected() as (s, far):
        assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, WSAOVERLAPPED()) == 997
        spi.WSPSend(s, [b"words"])
        spi.WSPCloseSocket(s)
        assert far.recv(64) == b"words"
        assert far.recv(64) == b""


@pytest.mark.fault("I6")
def test_an_aborted_request_leaves_no_number_to_the_collector(entries: Entries, event: int) -> None:
    gc.collect()
    gc.disable()
    try:
        before = files(os.getpid())
        with entries.connected() as (s, _):
            assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, WSAOVERLAPPED(event)) == 997
            spi.WSPCloseSocket(s)
            assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        wait_until(lambda: files(os.getpid()) == before, "the service to end, and what it had in hand to go")
    finally:
        gc.enable()


def test_a_cut_message_is_10040_with_its_beginning(entries: Entries) -> None:
    s = entries.datagrams()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        for overlapped in (None, WSAOVERLAPPED()):
            far.sendto(b"abcdef", spi.WSPGetSockName(s))
            spi.WSPSelect([s], None, None, 60.0)
            buffer = bytearray(3)
            assert code_of(spi.WSPRecvFrom, s, [buffer], 0, overlapped) == 10040
            assert buffer == b"abc"
        assert spi.WSPSendTo(s, [b"ab", b"cd"], 0, far.getsockname()) == 4
        assert far.recvfrom(64) == (b"abcd", spi.WSPGetSockName(s))
    spi.WSPCloseSocket(s)


# -- messages to and from an address ----------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-1", "OVERLAP-2")
def test_messages_to_and_from_addresses(entries: Entries, event: int) -> None:
    s = entries.datagrams()
    here = spi.WSPGetSockName(s)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        there = far.getsockname()
        request = WSAOVERLAPPED(event)
        assert spi.WSPSendTo(s, [b"ab", b"cd"], 0, there, request) == 4
        assert is_set(event), "it has happened before the call returned"
        assert spi.WSPGetOverlappedResult(s, request) == (4, 0)
        assert far.recvfrom(64) == (b"abcd", here)
        assert spi.WSPSendTo(s, [b"by name"], 0, ("localhost", there[1]), WSAOVERLAPPED()) == 7
        assert far.recvfrom(64) == (b"by name", here)
        one, two = bytearray(2), bytearray(8)
        assert code_of(spi.WSPRecvFrom, s, [one, two], 0, request) == 997
        assert not is_set(event), "reset at the start"
        far.sendto(b"later", here)
        assert spi.WSPGetOverlappedResult(s, request, True) == (5, 0)
        assert (bytes(one), bytes(two[:3]), request.lpFrom) == (b"la", b"ter", there)
        far.sendto(b"now", here)
        spi.WSPSelect([s], None, None, 60.0)
        assert spi.WSPRecvFrom(s, [two], 0, request) == (3, 0, there)
        called: list[Any] = []
        for _ in range(2):
            assert (
                code_of(spi.WSPRecvFrom, s, [two], 0, WSAOVERLAPPED(), lambda *facts: called.append(facts[:2])) == 997
            )
        far.sendto(b"", here)
        assert spi.SleepEx(BOUND_MS, True) == WAIT_IO_COMPLETION
        assert called == [(0, 0)], "an empty message is one"
        spi.WSPCloseSocket(s)
        assert spi.SleepEx(BOUND_MS, True) == WAIT_IO_COMPLETION
        assert called == [(0, 0), (995, 0)]


@pytest.mark.rule("CLOSE-22", "OVERLAP-9")
def test_messages_wait_for_room_and_are_sent_in_their_order(
    started: None, registry: Any, event: int, tmp_path: Any
) -> None:
    """A Unix datagram waits for a place in its receiver's queue, of which the kernel tells nobody."""
    entry = next(info for info in spi.WSCEnumProtocols() if info.szProtocol == "Unix datagram")
    s = spi.WSPSocket(entry.iAddressFamily, entry.iSocketType, 0, entry)
    there = str(tmp_path / "far")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(there)
        far.settimeout(60)
        spi.WSPIoctl(s, FIONBIO, 1)
        queued = 0
        while not code_of(spi.WSPSendTo, s, [b"filling"], 0, there):
            queued += 1
        requests = [WSAOVERLAPPED() for _ in "12"]
        for number, request in enumerate(requests):
            assert code_of(spi.WSPSendTo, s, [bytes([number])], 0, there, request) == 997
        assert [far.recv(64) for _ in range(queued + 2)] == [b"filling"] * queued + [b"\0", b"\1"]
        for request in requests:
            request.wait_settled()
            assert spi.WSPGetOverlappedResult(s, request) == (1, 0)
        while not code_of(spi.WSPSendTo, s, [b"filling"], 0, there):
            pass
        last = WSAOVERLAPPED(event)
        assert code_of(spi.WSPSendTo, s, [b"never"], 0, there, last) == 997
        spi.WSPCloseSocket(s)
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        assert code_of(spi.WSPGetOverlappedResult, s, last) == 995
        far.setblocking(False)
        left = []
        while is_readable(far):
            left.append(far.recv(64))
        assert set(left) == {b"filling"}, "a send that was ended has sent nothing"


def is_readable(far: socket.socket) -> bool:
    try:
        far.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


def test_what_is_no_address_begins_no_request(entries: Entries, event: int) -> None:
    s = entries.datagrams()
    request = WSAOVERLAPPED(event)
    for address in ("no tuple", ("127.0.0.1", 70_000), ("127.0.0.1",), (7, 7), ("a..b", 7)):
        assert code_of(spi.WSPSendTo, s, [b"x"], 0, address, request) == 10014, address
    assert not request.is_pending
    assert not is_set(event)
    spi.WSPCloseSocket(s)


# -- the other requests ws2spi.h has ----------------------------------------------------------------------------------


@pytest.mark.rule("OVERLAP-2", "OVERLAP-9")
def test_a_request_for_all_its_bytes_waits_for_them(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        request, following = WSAOVERLAPPED(event), WSAOVERLAPPED()
        buffer, rest = bytearray(6), bytearray(8)
        far.sendall(b"abc")
        spi.WSPSelect([s], None, None, 60.0)
        assert code_of(spi.WSPRecv, s, [buffer], MSG_WAITALL, request) == 997, "three are not six"
        assert code_of(spi.WSPRecv, s, [rest], MSG_WAITALL, following) == 997
        assert not is_set(event)
        far.sendall(b"defgh")
        assert spi.WSPGetOverlappedResult(s, request, True) == (6, 0)
        assert buffer == b"abcdef"
        assert following.is_pending
        far.shutdown(socket.SHUT_WR)
        following.wait_settled()
        assert spi.WSPGetOverlappedResult(s, following) == (2, 0), "no more will come"
        assert rest[:2] == b"gh"
        assert spi.WSPRecv(s, [rest], MSG_WAITALL, request) == (0, 0), "the peer's end"
        for flags in (MSG_WAITALL | MSG_PEEK, MSG_WAITALL | 1):
            assert code_of(spi.WSPRecv, s, [rest], flags, request) == 10045
            assert code_of(spi.WSPRecv, s, [rest], flags) == 10045
        spi.WSPIoctl(s, FIONBIO, 1)
        assert code_of(spi.WSPRecv, s, [rest], MSG_WAITALL) == 10045, "a nonblocking call cannot wait"
        spi.WSPCloseSocket(s)
    d = entries.datagrams()
    assert code_of(spi.WSPRecvFrom, d, [rest], MSG_WAITALL) == 10045
    assert code_of(spi.WSPRecvFrom, d, [rest], MSG_WAITALL, request) == 10045
    spi.WSPCloseSocket(d)


@pytest.mark.rule("CLOSE-22")
def test_a_close_ends_a_request_that_has_a_part_of_its_bytes(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        far.sendall(b"abc")
        spi.WSPSelect([s], None, None, 60.0)
        request = WSAOVERLAPPED(event)
        assert code_of(spi.WSPRecv, s, [bytearray(6)], MSG_WAITALL, request) == 997
        spi.WSPCloseSocket(s)
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        assert code_of(spi.WSPGetOverlappedResult, s, request) == 995


@pytest.mark.rule("OVERLAP-1", "OVERLAP-3", "OVERLAP-18")
def test_a_control_code_can_be_a_request(entries: Entries, event: int, port: int) -> None:
    with entries.connected() as (s, far):
        far.sendall(b"abc")
        spi.WSPSelect([s], None, None, 60.0)
        request = WSAOVERLAPPED(event)
        assert spi.WSPIoctl(s, FIONREAD, None, request) == 3
        assert is_set(event)
        assert spi.WSPGetOverlappedResult(s, request) == (4, 0), "a number of 32 bits"
        DLL.WPUResetEvent(event)
        assert code_of(spi.WSPIoctl, s, 12345, None, request) == 10045
        assert not is_set(event)
        spi.CreateIoCompletionPort(s, port, 7)
        by_port, called = WSAOVERLAPPED(), []
        assert spi.WSPIoctl(s, FIONBIO, 1, by_port) is None
        assert spi.GetQueuedCompletionStatus(port, 0) == (0, 7, by_port, 0)
        assert code_of(spi.WSPRecv, s, [bytearray(3)]) == 0
        assert code_of(spi.WSPRecv, s, [bytearray(3)]) == 10035, "it has taken effect"
        spi.WSPIoctl(s, FIONREAD, None, WSAOVERLAPPED(), lambda *facts: called.append(facts[:2]))
        assert spi.SleepEx(0, True) == WAIT_IO_COMPLETION
        assert called == [(0, 4)]
        spi.WSPCloseSocket(s)
    with entries.connected(flags=0) as (s, _far):
        assert code_of(spi.WSPIoctl, s, FIONREAD, None, request) == 10022
        spi.WSPCloseSocket(s)
