"""LPWSPEVENTSELECT and LPWSPENUMNETWORKEVENTS: one registration per socket, in whatever process; one record."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import (
    FD_ACCEPT,
    FD_CLOSE,
    FD_CONNECT,
    FD_OOB,
    FD_READ,
    FD_WRITE,
    FIONBIO,
    SD_SEND,
    WAIT_TIMEOUT,
)
from sharedsock.spi import UpcallTable
from sharedsock.testing import Actors
from tests.spi.parties import Entries, code_of, recv, take

DLL = UpcallTable()
BOUND_MS = 60_000


@contextlib.contextmanager
def event_objects(count: int = 1) -> Iterator[list[int]]:
    made = [DLL.WPUCreateEvent() for _ in range(count)]
    try:
        yield made
    finally:
        for event in made:
            DLL.WPUCloseEvent(event)


def happened(s: int, event: int, wanted: int) -> dict[int, int]:
    """Wait until all of these have been recorded; return the errors of all that have."""
    errors: dict[int, int] = {}
    while wanted & ~sum(errors):
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0, f"only {errors}, not {wanted}"
        found = spi.WSPEnumNetworkEvents(s, event)
        assert found.lNetworkEvents == sum(found.iErrorCode)
        errors |= found.iErrorCode
    return errors


def is_silent(event: int) -> bool:
    """Whether nothing has been signalled, after the recorder has had its turn with everything before."""
    settle()
    return spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == WAIT_TIMEOUT


def settle() -> None:
    """Wait until the recorder has looked at all that was ready: it serves its set in order."""
    ours, theirs = socket.socketpair()
    with ours, theirs, event_objects() as (event,), Entries.of("base") as entries:
        s = entries.datagrams()
        spi.WSPEventSelect(s, event, FD_READ)
        for _ in range(2):
            spi.WSPSendTo(s, [b"x"], 0, spi.WSPGetSockName(s))
            happened(s, event, FD_READ)
            recv(s)
        spi.WSPCloseSocket(s)


@pytest.fixture
def event() -> Iterator[int]:
    with event_objects() as (one,):
        yield one


@pytest.mark.rule("EVENT-6", "EVENT-7", "EVENT-8", "EVENT-9")
def test_each_event_is_recorded_once_until_its_call_reenables_it(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ | FD_CLOSE)
        assert is_silent(event)
        far.sendall(b"abc")
        assert happened(s, event, FD_READ) == {FD_READ: 0}
        far.sendall(b"def")
        assert is_silent(event), "recorded once, though more has come"
        assert recv(s, 1) == b"a"
        assert happened(s, event, FD_READ) == {FD_READ: 0}, "level-triggered at the re-enabling call"
        assert recv(s, 64) == b"bcdef"
        assert is_silent(event), "the receive has left nothing"
        assert code_of(recv, s) == 10035
        far.sendall(b"g")
        assert happened(s, event, FD_READ) == {FD_READ: 0}, "a receive that failed re-enables as well"
        far.shutdown(socket.SHUT_WR)
        assert happened(s, event, FD_CLOSE) == {FD_CLOSE: 0}
        assert recv(s) == b"g"
        assert recv(s) == b""
        assert is_silent(event), "an end is no FD_READ, and is told once"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-8")
def test_what_is_there_already_is_recorded_at_registration(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        far.sendall(b"x")
        far.send(b"!", socket.MSG_OOB)
        spi.WSPEventSelect(s, event, FD_READ | FD_OOB)
        assert happened(s, event, FD_READ | FD_OOB) == {FD_READ: 0, FD_OOB: 0}
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-7", "EVENT-8")
def test_fd_write_comes_after_connecting_and_when_space_returns_after_a_10035(entries: Entries, event: int) -> None:
    with entries.connected(small=True) as (s, far):
        spi.WSPEventSelect(s, event, FD_WRITE)
        assert happened(s, event, FD_WRITE) == {FD_WRITE: 0}
        spi.WSPSend(s, [b"x"])
        assert is_silent(event), "not for a send that found room"
        sent = 1
        with contextlib.suppress(spi.WSAError):
            while True:
                sent += spi.WSPSend(s, [bytes(1 << 16)])
        assert is_silent(event)
        while sent:
            sent -= len(far.recv(1 << 16))
        assert happened(s, event, FD_WRITE) == {FD_WRITE: 0}
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-7")
def test_fd_write_comes_again_after_a_message_found_no_room(started: None, event: int, tmp_path: Path) -> None:
    entry = next(info for info in spi.WSCEnumProtocols() if info.szProtocol == "Unix datagram")
    s = spi.WSPSocket(entry.iAddressFamily, entry.iSocketType, 0, entry)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(str(tmp_path / "far"))
        spi.WSPEventSelect(s, event, FD_WRITE)
        assert happened(s, event, FD_WRITE) == {FD_WRITE: 0}
        while not code_of(spi.WSPSendTo, s, [b"x"], 0, far.getsockname()):
            assert is_silent(event), "not for a message that found room"
        far.recv(1)
        assert happened(s, event, FD_WRITE) == {FD_WRITE: 0}
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-7", "EVENT-8", "CLOSE-41")
def test_a_listener_accepts_and_its_clients_inherit_the_registration(entries: Entries, event: int) -> None:
    listener = entries.listener()
    spi.WSPEventSelect(listener, event, FD_ACCEPT | FD_READ)
    with socket.create_connection(spi.WSPGetSockName(listener)) as one:
        assert happened(listener, event, FD_ACCEPT) == {FD_ACCEPT: 0}
        with socket.create_connection(spi.WSPGetSockName(listener)) as two:
            assert is_silent(event)
            first, _ = spi.WSPAccept(listener)
            assert happened(listener, event, FD_ACCEPT) == {FD_ACCEPT: 0}
            second, _ = spi.WSPAccept(listener)
            one.sendall(b"1")
            assert happened(first, event, FD_READ) == {FD_READ: 0}
            two.sendall(b"2")
            assert happened(second, event, FD_READ) == {FD_READ: 0}
    for s in (listener, first, second):
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-9", "CLOSE-30")
def test_fd_connect_has_the_outcome(entries: Entries, event: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        s = entries.open()
        spi.WSPEventSelect(s, event, FD_CONNECT | FD_WRITE)
        assert is_silent(event), "nothing happens on a socket that is not connected"
        assert code_of(spi.WSPConnect, s, door.getsockname()) in (0, 10035)
        assert happened(s, event, FD_CONNECT | FD_WRITE) == {FD_CONNECT: 0, FD_WRITE: 0}
        spi.WSPCloseSocket(s)
        address = door.getsockname()
    s = entries.open()
    spi.WSPEventSelect(s, event, FD_CONNECT)
    code_of(spi.WSPConnect, s, address)
    assert happened(s, event, FD_CONNECT) == {FD_CONNECT: 10061}
    spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-9", "SHUT-13", "SHUT-14")
def test_a_reset_is_fd_close_with_10054(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ | FD_CLOSE)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        assert happened(s, event, FD_CLOSE) == {FD_CLOSE: 10054}
        assert code_of(recv, s) == 10054, "the record has not used the error up"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-2", "EVENT-3", "EVENT-4", "EVENT-6")
def test_a_registration_replaces_the_earlier_one_with_its_record_and_makes_nonblocking(entries: Entries) -> None:
    with event_objects(2) as (one, two), entries.connected() as (s, far):
        spi.WSPEventSelect(s, one, FD_READ)
        assert code_of(recv, s) == 10035
        far.sendall(b"x")
        assert spi.WSAWaitForMultipleEvents([one], dwTimeout=BOUND_MS) == 0
        spi.WSPEventSelect(s, two, FD_CLOSE)
        assert spi.WSPEnumNetworkEvents(s) == (0, {}), "the record was cleared"
        DLL.WPUResetEvent(one)
        recv(s)
        far.sendall(b"y")
        assert is_silent(one), "two event objects for two events of one socket there are not"
        far.shutdown(socket.SHUT_WR)
        assert happened(s, two, FD_CLOSE) == {FD_CLOSE: 0}
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 10022
        spi.WSPEventSelect(s, None, 0)
        recv(s)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 0
        spi.WSPEventSelect(s, None, 0)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 0, "mask 0 makes nonblocking, and FIONBIO may end that"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-2")
def test_mask_0_alone_makes_nonblocking(entries: Entries) -> None:
    with entries.connected() as (s, _far):
        spi.WSPEventSelect(s, None, 0)
        assert code_of(recv, s) == 10035
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-5", "EVENT-12")
def test_enum_clears_the_record_and_the_event_or_nothing(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ)
        far.sendall(b"x")
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=BOUND_MS) == 0
        assert code_of(spi.WSPEnumNetworkEvents, s, 10**9) == 6
        assert spi.WSPEnumNetworkEvents(s, event) == (FD_READ, {FD_READ: 0})
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == WAIT_TIMEOUT
        assert spi.WSPEnumNetworkEvents(s, event) == (0, {})
        for arguments, code in (((event, 64), 10022), ((event, "1"), 10022), ((None, FD_READ), 10022), ((7**9, 1), 6)):
            assert code_of(spi.WSPEventSelect, s, *arguments) == code
        spi.WSPCloseSocket(s)
        assert code_of(spi.WSPEventSelect, s, event, FD_READ) == code_of(spi.WSPEnumNetworkEvents, s) == 10038


@pytest.mark.rule("CLOSE-24", "CLOSE-25", "CLOSE-26", "CLOSE-45")
def test_a_local_close_signals_nothing_and_leaves_the_event_object(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ | FD_CLOSE)
        spi.WSPCloseSocket(s)
        far.close()
        assert is_silent(event)
        DLL.WPUSetEvent(event)
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ)
        spi.WSPCloseSocket(s)
        assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 0, "one that is set stays set"


@pytest.mark.rule("EVENT-1", "EVENT-4", "EVENT-10", "DUP-17")
def test_a_registration_of_another_process_ends_this_one_and_its_receives_reenable_ours(
    entries: Entries, actors: Actors, event: int
) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        spi.WSPEventSelect(s, event, FD_READ)
        assert other.call(code_of, spi.WSPIoctl, theirs, FIONBIO, 0) == 10022, "a registration is active"
        far.sendall(b"ab")
        assert happened(s, event, FD_READ) == {FD_READ: 0}
        assert is_silent(event)
        assert other.call(recv, theirs, 1) == b"a"
        assert happened(s, event, FD_READ) == {FD_READ: 0}, "the record is the socket's"
        assert other.call(register_there, theirs, FD_READ) is None
        assert other.call(wait_there, theirs, FD_READ) == {FD_READ: 0}
        far.sendall(b"c")
        assert other.call(wait_there, theirs, FD_READ) == {FD_READ: 0}
        assert is_silent(event)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 10022
        other.call(spi.WSPEventSelect, theirs, None, 0)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 0
        spi.WSPCloseSocket(s)
        other.call(spi.WSPCloseSocket, theirs)


@pytest.mark.rule("EVENT-11")
@pytest.mark.parametrize("how", ["close", "kill"])
def test_a_registration_ends_with_its_owner_s_descriptor(entries: Entries, actors: Actors, how: str) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        other.call(register_there, theirs, FD_READ)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 10022
        if how == "close":
            other.call(spi.WSPCloseSocket, theirs)
        else:
            other.kill()
        deadline = threading.Event()
        for _ in range(1000):
            if not code_of(spi.WSPIoctl, s, FIONBIO, 0):
                break
            deadline.wait(0.002)
        assert code_of(spi.WSPIoctl, s, FIONBIO, 0) == 0
        far.sendall(b"x")
        assert recv(s) == b"x"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("EVENT-11")
def test_and_with_its_descriptor_where_another_is_open_in_the_same_process(entries: Entries, event: int) -> None:
    with entries.connected() as (s, _far):
        twin = spi.WSPSocket(-1, -1, -1, spi.WSPDuplicateSocket(s, os.getpid()))
        spi.WSPEventSelect(s, event, FD_READ)
        assert code_of(spi.WSPIoctl, twin, FIONBIO, 0) == 10022
        spi.WSPCloseSocket(s)
        assert code_of(spi.WSPIoctl, twin, FIONBIO, 0) == 0
        spi.WSPCloseSocket(twin)


@pytest.mark.rule("SHUT-1", "SHUT-13", "SHUT-15")
def test_the_recommended_sequence_of_an_end(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_CLOSE)
        spi.WSPShutdown(s, SD_SEND)
        assert far.recv(1) == b""
        far.sendall(b"the last words")
        far.shutdown(socket.SHUT_WR)
        assert happened(s, event, FD_CLOSE) == {FD_CLOSE: 0}
        assert recv(s) == b"the last words"
        assert recv(s) == b"", "no error: the end was graceful"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("SELECT-4")
def test_select_does_not_disturb_a_registration(entries: Entries, event: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPEventSelect(s, event, FD_READ)
        far.sendall(b"x")
        assert spi.WSPSelect([s], None, None, 60.0) == ([s], [], [])
        assert happened(s, event, FD_READ) == {FD_READ: 0}
        spi.WSPCloseSocket(s)


# -- what an actor does --------------------------------------------------------------------------------------------

_there: dict[int, int] = {}


def register_there(s: int, mask: int) -> None:
    _there[s] = DLL.WPUCreateEvent()
    spi.WSPEventSelect(s, _there[s], mask)


def wait_there(s: int, mask: int) -> Any:
    found = happened(s, _there[s], mask)
    recv(s)
    return found
