"""LPWSPCANCELBLOCKINGCALL: a Windows Sockets 1.1 thread cancels its own blocking call from its blocking hook."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import SO_LINGER, SOL_SOCKET
from sharedsock.spi import LINGER, UpcallTable
from sharedsock.spi.callbacks import set_blocking_hook
from tests.spi.parties import Entries, Running, code_of, ends_with_reset, fill, recv


@contextlib.contextmanager
def hook(call: Callable[[], Any], after: int = 3) -> Iterator[list[int]]:
    """Have a hook of this thread make a call at its nth turn."""
    turns: list[int] = []

    def turn(context: Any) -> bool:
        assert context == "context"
        turns.append(len(turns))
        if len(turns) == after:
            call()
        return len(turns) % 2 == 1  # there was something to do: it is called again at once

    set_blocking_hook(turn, "context")
    try:
        yield turns
    finally:
        set_blocking_hook(None)


@pytest.mark.rule("CANCEL-1", "CANCEL-3")
@pytest.mark.parametrize("kind", ["recv", "accept", "select"])
def test_a_cancelled_call_ends_with_10004_and_has_taken_nothing(entries: Entries, kind: str) -> None:
    listener = entries.listener()
    with entries.connected() as (s, far):
        calls: dict[str, tuple[Any, ...]] = {
            "recv": (recv, s),
            "accept": (spi.WSPAccept, listener),
            "select": (spi.WSPSelect, [s], [], []),
        }
        with hook(spi.WSPCancelBlockingCall) as turns, pytest.raises(spi.WSAError) as cancelled:
            call, *arguments = calls[kind]
            call(*arguments)
        assert cancelled.value.winerror == 10004
        assert cancelled.value.closed_by is None, "no close has ended it"
        assert len(turns) == 3
        far.sendall(b"x")
        assert spi.WSPSelect([s], None, None, 60.0) == ([s], [], [])
        assert recv(s) == b"x"
        with socket.create_connection(spi.WSPGetSockName(listener)):
            client, _ = spi.WSPAccept(listener)
        for handle in (client, s, listener):
            spi.WSPCloseSocket(handle)


@pytest.mark.rule("CANCEL-2")
def test_nothing_outstanding_is_10022(entries: Entries) -> None:
    assert code_of(spi.WSPCancelBlockingCall) == 10022
    with entries.connected() as (s, far):
        blocked = Running(recv, s)
        blocked.wait_blocked()
        assert code_of(spi.WSPCancelBlockingCall) == 10022, "another thread's is not ours"
        far.sendall(b"x")
        assert blocked.code() == 0
        spi.WSPCloseSocket(s)


@pytest.mark.rule("CANCEL-4")
def test_a_send_cancelled_in_the_middle_has_torn_the_stream(entries: Entries) -> None:
    with entries.connected(small=True) as (s, far):
        with hook(spi.WSPCancelBlockingCall), pytest.raises(spi.WSAError) as cancelled:
            spi.WSPSend(s, [bytes(1 << 24)])
        assert cancelled.value.winerror == 10004
        assert 0 < cancelled.value.bytes_transferred < 1 << 24
        assert ends_with_reset(far)
        for call, arguments in (
            (spi.WSPSend, ([b"x"],)),
            (spi.WSPRecv, ([bytearray(1)],)),
            (spi.WSPGetSockName, ()),
            (spi.WSPShutdown, (1,)),
        ):
            assert code_of(call, s, *arguments) == 10053
        assert code_of(spi.WSPCloseSocket, s) == 0


@pytest.mark.rule("CANCEL-5")
def test_what_has_finished_first_is_a_success(entries: Entries) -> None:
    with entries.connected() as (s, far):

        def too_late() -> None:
            far.sendall(b"first")
            assert spi.WSPSelect is not None
            assert spi.WSPCancelBlockingCall() is None  # type: ignore[func-returns-value]

        with hook(too_late):
            assert recv(s) == b"first"
        spi.WSPCloseSocket(s)


@pytest.mark.rule("CANCEL-6")
def test_the_hook_is_asked_for_by_upcall_and_a_thread_without_one_is_never_interrupted(entries: Entries) -> None:
    assert not hasattr(spi, "WSACancelBlockingCall")
    entry = entries.tcp.dwCatalogEntryId
    assert UpcallTable().WPUQueryBlockingCallback(entry) is None
    with hook(lambda: None):
        found = UpcallTable().WPUQueryBlockingCallback(entry)
        assert found is not None
        assert found[1] == "context"
    assert code_of(UpcallTable().WPUQueryBlockingCallback, 7) == 10022


@pytest.mark.rule("CLOSE-8")
def test_a_lingering_close_that_is_cancelled_is_10004_and_the_descriptor_is_gone(entries: Entries) -> None:
    with entries.connected(small=True) as (s, _far):
        fill(s)
        spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 60))
        with hook(spi.WSPCancelBlockingCall):
            assert code_of(spi.WSPCloseSocket, s) == 10004
        assert code_of(spi.WSPCloseSocket, s) == 10038


def test_a_connect_waits_with_the_hook_in_between(entries: Entries) -> None:
    listener = entries.listener()
    s = entries.open()
    with hook(lambda: None):
        spi.WSPConnect(s, spi.WSPGetSockName(listener))
    client, _ = spi.WSPAccept(listener)
    for handle in (client, s, listener):
        spi.WSPCloseSocket(handle)
