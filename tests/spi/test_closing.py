"""LPWSPCLOSESOCKET, over the base provider and over a chain: what a close ends, what it leaves, what it answers."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.linger import SPI_CLOSE_CODES
from sharedsock.model.winsock import (
    CF_ACCEPT,
    CF_DEFER,
    CF_REJECT,
    FIONBIO,
    SD_SEND,
    SO_DONTLINGER,
    SO_LINGER,
    SOL_SOCKET,
)
from sharedsock.spi import LINGER, handles
from sharedsock.testing import Actors
from tests.spi.parties import Entries, Running, code_of, ends_with_reset, fill, is_quiet, recv, take


@pytest.mark.rule("CLOSE-1", "CLOSE-2", "CLOSE-3", "CLOSE-4", "CLOSE-34")
def test_a_closed_handle_is_10038_from_then_on_and_its_number_is_never_given_out_again(entries: Entries) -> None:
    with entries.connected() as (s, far):
        spi.WSPCloseSocket(s)
        assert far.recv(1) == b""
        later = [entries.open() for _ in range(50)]
        assert len({s, *later}) == 51
        assert code_of(spi.WSPSend, s, [b"x"]) == code_of(spi.WSPCloseSocket, s) == 10038
        for number in later:
            spi.WSPCloseSocket(number)
        assert all(code_of(spi.WSPCloseSocket, number) == 10038 for number in later)


@pytest.mark.rule("CLOSE-5")
def test_before_a_startup_and_after_the_last_cleanup_every_call_is_10093() -> None:
    assert code_of(spi.WSPCloseSocket, 1) == 10093
    spi.WSPStartup()
    with Entries.of("base") as entries:
        s = entries.open()
        assert code_of(spi.WSPCloseSocket, s + 1000) == 10038
        spi.WSPCleanup()
        assert code_of(spi.WSPCloseSocket, s) == code_of(entries.open) == 10093


@pytest.mark.rule("CLOSE-20", "CLOSE-31")
@pytest.mark.parametrize("kind", ["recv", "accept", "send", "select"])
def test_a_blocked_call_ends_with_10004_and_names_the_closer(entries: Entries, kind: str) -> None:
    listener = entries.listener()
    with entries.connected(small=True) as (s, _far):
        calls: dict[str, tuple[Any, ...]] = {
            "recv": (recv, s),
            "accept": (spi.WSPAccept, listener),
            "send": (spi.WSPSend, s, [bytes(1 << 24)]),
            "select": (spi.WSPSelect, [s], [], []),
        }
        running = Running(*calls[kind])
        running.wait_blocked()
        spi.WSPCloseSocket(listener if kind == "accept" else s)
        assert running.code() == 10004
        error = running.error
        assert isinstance(error, spi.WSAError)
        assert "test_closing.py" in str(error.closed_by) or kind == "select"
        for handle in (listener, s):
            code_of(spi.WSPCloseSocket, handle)


@pytest.mark.rule("CLOSE-32")
def test_an_aborted_send_says_how_much_is_queued_and_that_arrives(entries: Entries) -> None:
    with entries.connected(small=True) as (s, far):
        running = Running(spi.WSPSend, s, [bytes(1 << 24)])
        running.wait_blocked()
        spi.WSPCloseSocket(s)
        assert running.code() == 10004
        assert isinstance(running.error, spi.WSAError)
        queued = running.error.bytes_transferred
        assert 0 < queued < 1 << 24
        got = 0
        while data := far.recv(1 << 16):
            got += len(data)
        assert got == queued


@pytest.mark.rule("CLOSE-28", "REF-2")
def test_another_process_goes_on(entries: Entries, actors: Actors) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        reading = other.thread("reader").do("call", recv, theirs)
        other.wait_until_blocked("reader")
        mine = Running(recv, s)
        mine.wait_blocked()
        spi.WSPCloseSocket(s)
        assert mine.code() == 10004
        assert is_quiet(far)
        far.sendall(b"still here")
        assert reading.value() == b"still here"
        other.call(spi.WSPCloseSocket, theirs)
        assert far.recv(1) == b""


@pytest.mark.rule("CLOSE-7", "CANCEL-7", "REF-6")
def test_a_call_from_inside_a_condition_function_is_10036_and_changes_nothing(entries: Entries) -> None:
    listener = entries.listener()
    codes = []

    def condition(caller: Any, callee: Any, data: Any) -> int:
        codes.append(code_of(spi.WSPCloseSocket, listener))
        codes.append(code_of(spi.WSPGetSockName, listener))
        codes.append(code_of(spi.WSPCleanup))
        codes.append(code_of(spi.WSPStartup))
        codes.append(code_of(entries.open))
        codes.append(Running(spi.WSPGetSockName, listener).code())  # another thread is inside no callback
        return CF_ACCEPT

    with socket.create_connection(spi.WSPGetSockName(listener)) as far:
        client, address = spi.WSPAccept(listener, condition, "data")
        assert codes == [10036] * 5 + [0]
        assert address == far.getsockname()
        far.sendall(b"x")
        assert recv(client) == b"x"
        assert code_of(spi.WSPGetSockName, listener) == 0
        spi.WSPCloseSocket(client)
        spi.WSPCloseSocket(listener)


def test_a_condition_function_rejects_defers_and_is_told_who_calls(entries: Entries) -> None:
    listener = entries.listener()
    asked = []

    def answer(code: int) -> Any:
        def condition(caller: Any, callee: Any, data: Any) -> int:
            asked.append((caller, callee, data))
            return code

        return condition

    with socket.create_connection(spi.WSPGetSockName(listener)) as far:
        assert code_of(spi.WSPAccept, listener, answer(CF_DEFER), 7) == 11002
        assert asked == [(far.getsockname(), far.getpeername(), 7)]
        assert is_quiet(far)
        assert code_of(spi.WSPAccept, listener, answer(CF_DEFER)) == 11002
        assert code_of(spi.WSPAccept, listener, answer(99)) == 10022
        assert code_of(spi.WSPAccept, listener, answer(CF_REJECT)) == 10061
        far.settimeout(60)
        assert ends_with_reset(far)
    spi.WSPCloseSocket(listener)


@pytest.mark.rule("CLOSE-40", "CLOSE-41")
def test_a_client_starts_with_its_listeners_mode_and_linger_option_and_outlives_it(entries: Entries) -> None:
    listener = entries.listener()
    spi.WSPIoctl(listener, FIONBIO, 1)
    spi.WSPSetSockOpt(listener, SOL_SOCKET, SO_LINGER, LINGER(1, 7))
    assert code_of(spi.WSPAccept, listener) == 10035
    with socket.create_connection(spi.WSPGetSockName(listener)) as far:
        spi.WSPSelect([listener], None, None, 60.0)
        client, _ = spi.WSPAccept(listener)
        spi.WSPCloseSocket(listener)
        assert code_of(recv, client) == 10035
        assert spi.WSPGetSockOpt(client, SOL_SOCKET, SO_LINGER) == LINGER(1, 7)
        far.sendall(b"x")
        spi.WSPSelect([client], None, None, 60.0)
        assert recv(client) == b"x"
        spi.WSPIoctl(client, FIONBIO, 0)
        spi.WSPCloseSocket(client)


@pytest.mark.rule("CLOSE-9", "CLOSE-11", "LINGER-4", "LINGER-5", "NONIFS-11", "REF-6")
@pytest.mark.parametrize("remedy", ["DONTLINGER", "LINGER(0)", "drain"])
def test_a_refused_close_has_changed_nothing(entries: Entries, remedy: str) -> None:
    with entries.connected(small=True) as (s, far):
        queued = fill(s)
        spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 30))
        spi.WSPIoctl(s, FIONBIO, 1)
        before = dict(handles.routes)
        for _ in range(3):
            assert code_of(spi.WSPCloseSocket, s) == 10035
        assert handles.routes == before, "no handle was given back"
        assert code_of(recv, s) == 10035, "the handle is valid, and nothing was shut down"
        far.sendall(b"x")
        spi.WSPSelect([s], None, None, 60.0)
        assert recv(s) == b"x"
        if remedy == "DONTLINGER":
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, True)
            spi.WSPCloseSocket(s)
            assert sum(map(len, iter(lambda: far.recv(1 << 16), b""))) == queued
        elif remedy == "LINGER(0)":
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 0))
            spi.WSPCloseSocket(s)
            assert ends_with_reset(far)
        else:
            left = queued
            while left:
                left -= len(far.recv(1 << 16))
            spi.WSPIoctl(s, FIONBIO, 0)  # the last acknowledgements may be under way
            spi.WSPCloseSocket(s)
            assert far.recv(1) == b""


@pytest.mark.rule("LINGER-3", "LINGER-13")
def test_linger_0_resets_at_the_last_close_and_only_there(entries: Entries, actors: Actors) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 0))
        spi.WSPCloseSocket(s)
        assert is_quiet(far)
        other.call(spi.WSPSend, theirs, [b"x"])
        assert far.recv(1) == b"x"
        other.call(spi.WSPCloseSocket, theirs)
        assert ends_with_reset(far)


@pytest.mark.rule("LINGER-15")
def test_shutdown_and_disconnect_never_wait_whatever_linger_says(entries: Entries) -> None:
    for call, arguments in ((spi.WSPShutdown, (SD_SEND,)), (spi.WSPSendDisconnect, ()), (spi.WSPRecvDisconnect, ())):
        with entries.connected(small=True) as (s, _far):
            fill(s)
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 60))
            assert Running(call, s, *arguments).code() == 0
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 0))
            spi.WSPCloseSocket(s)


@pytest.mark.rule("CLOSE-11")
def test_a_close_answers_with_the_codes_of_the_page_and_no_other(entries: Entries) -> None:
    s = entries.open()
    seen = {code_of(spi.WSPCloseSocket, handle) for handle in (s, s, 0, -1, None, "7", 2.5, [s])}
    assert seen == {0, 10038}
    assert seen <= SPI_CLOSE_CODES


@pytest.mark.rule("CLOSE-35")
def test_of_two_closers_one_closes_and_the_other_is_10038(entries: Entries) -> None:
    for _ in range(20):
        s = entries.open()
        racers = [Running(spi.WSPCloseSocket, s) for _ in range(4)]
        assert sorted(racer.code() for racer in racers) == [0, 10038, 10038, 10038]
