"""WSPStartup and WSPCleanup: counting, versions, what the last cleanup ends and what it leaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import CF_ACCEPT
from sharedsock.spi import LayeredProvider, UpcallTable, WSAError, catalog, startup
from sharedsock.testing import Actors
from tests.descriptors.sharers import room_for
from tests.spi.parties import Entries, Plain, Running, base_entry, code_of, ends_with_reset, installed, recv, take


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    """Nothing of this process has started up, before and after."""
    assert code_of(spi.WSPCleanup) == 10093
    yield
    assert code_of(spi.WSPCleanup) == 10093


@pytest.mark.rule("STARTUP-1", "STARTUP-2", "STARTUP-3")
def test_as_many_cleanups_as_startups_and_then_a_new_life(registry: Any) -> None:
    with Entries.of("base") as entries:
        for _ in range(3):
            spi.WSPStartup()
        s = entries.open()
        for _ in range(2):
            spi.WSPCleanup()
            assert code_of(spi.WSPGetSockOpt, s, 0xFFFF, 0x1008) == 0
        spi.WSPCleanup()
        assert code_of(spi.WSPGetSockOpt, s, 0xFFFF, 0x1008) == code_of(spi.WSPCleanup) == 10093
        spi.WSPStartup()
        fresh = entries.open()
        assert fresh != s
        assert code_of(spi.WSPCloseSocket, s) == 10038
        spi.WSPCleanup()


@pytest.mark.rule("STARTUP-3")
def test_the_count_is_each_process_s_own(actors: Actors) -> None:
    spi.WSPStartup()
    (other,) = actors.start("other")
    assert other.call(code_of, spi.WSPCleanup) == 10093
    other.call(spi.WSPStartup)
    spi.WSPCleanup()
    other.call(spi.WSPCleanup)


@pytest.mark.rule("STARTUP-5")
@pytest.mark.parametrize(
    ("asked", "used"), [(0x0202, 0x0202), (0x0002, 0x0002), (0x0102, 0x0102), (0x0302, 0x0202), (0x0003, 0x0202)]
)
def test_the_version_is_the_lower_of_the_two_highest(asked: int, used: int) -> None:
    data = spi.WSPStartup(asked)
    assert (data.wVersion, data.wHighVersion) == (used, 0x0202)
    spi.WSPCleanup()


@pytest.mark.rule("STARTUP-4", "STARTUP-5")
@pytest.mark.parametrize("asked", [0x0001, 0x0101, 0x0000])
def test_a_version_below_the_lowest_is_10092_and_counts_nothing(asked: int) -> None:
    assert code_of(spi.WSPStartup, asked) == 10092
    assert code_of(spi.WSPCleanup) == 10093
    provider = catalog.provider_of(base_entry().dwCatalogEntryId)
    assert code_of(provider.WSPStartup, asked, base_entry(), UpcallTable()) == 10092
    assert code_of(provider.WSPCleanup) == 10093


class Failing(LayeredProvider):
    """Fails to start as it is told."""

    error: Exception = RuntimeError("no")

    def start(self, lpProtocolInfo: Any) -> None:
        raise self.error


@pytest.mark.rule("STARTUP-4")
def test_what_a_startup_fails_with_is_the_answer(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spi.WSPStartup()
    with installed(Failing, base_entry()) as top:
        entries = Entries(top, top)
        for code in (10091, 10067, 10106):
            monkeypatch.setattr(Failing, "error", RuntimeError("no") if code == 10106 else WSAError(code))
            assert code_of(entries.open) == code
            assert code_of(catalog.provider_of(top.dwCatalogEntryId).WSPCleanup) == 10093, "nothing was counted"
    base = catalog.provider_of(base_entry().dwCatalogEntryId)
    assert code_of(base.WSPStartup, 0x0202, base_entry(), None) == 10014
    with room_for(0):
        assert code_of(base.WSPStartup, 0x0202, base_entry(), UpcallTable()) == 10091
    listener = Entries(base_entry(), base_entry()).listener()
    codes: list[int] = []

    def condition(*_: Any) -> int:
        codes.extend((code_of(spi.WSPStartup), code_of(spi.WSPCleanup)))
        return CF_ACCEPT

    with socket.create_connection(spi.WSPGetSockName(listener)):
        spi.WSPAccept(listener, condition)
    assert codes == [10036, 10036]
    spi.WSPCleanup()


@pytest.mark.rule("STARTUP-6")
def test_only_the_latest_upcalls_are_used(registry: Any) -> None:
    spi.WSPStartup()
    first, second = UpcallTable(), UpcallTable()
    with installed(Plain, base_entry()) as top:
        provider = catalog.provider_of(top.dwCatalogEntryId)
        for table in (first, second):
            provider.WSPStartup(0x0202, top, table)
        assert provider.upcalls is second
        used: list[str] = []
        original = second.WPUCreateSocketHandle

        def spy(name: str, *arguments: Any) -> int:
            used.append(name)
            return original(*arguments)

        for name, table in (("first", first), ("second", second)):
            vars(table)["WPUCreateSocketHandle"] = partial(spy, name)
        s = provider.WSPSocket(2, 1, 6, top, 0, 1)
        assert used == ["second"]
        provider.WSPCloseSocket(s)
        provider.WSPCleanup()
        provider.WSPCleanup()
        assert code_of(provider.WSPCleanup) == 10093
    spi.WSPCleanup()


@pytest.mark.rule("CLEANUP-1", "CLEANUP-2", "CLEANUP-3", "OVERLAP-3")
@pytest.mark.parametrize("chain", ["base", "chain"])
def test_the_last_cleanup_ends_everything_without_an_indication(registry: Any, chain: str) -> None:
    """Blocked calls end; a request has 995, no event is set, no routine is queued; open connections are reset."""
    spi.WSPStartup()
    with Entries.of(chain) as entries:
        event = UpcallTable().WPUCreateEvent()
        with entries.connected() as (s, far), entries.connected() as (t, _):
            blocked = Running(recv, t)
            blocked.wait_blocked()
            by_event, by_routine = spi.WSAOVERLAPPED(event), spi.WSAOVERLAPPED()
            called: list[Any] = []
            assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, by_event) == 997
            assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, by_routine, lambda *a: called.append(a)) == 997
            waiting = Running(spi.WSPGetOverlappedResult, s, by_event, True)
            spi.WSPCleanup()
            assert blocked.code() == 10004
            assert waiting.code() == 995, "whoever waits for the result is released"
            by_routine.wait_settled()
            assert by_routine.Internal == 995
            assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 258
            assert spi.SleepEx(0, True) == 0
            assert called == []
            assert ends_with_reset(far)
        UpcallTable().WPUCloseEvent(event)


@pytest.mark.rule("CLEANUP-4")
def test_a_cleanup_ends_this_process_s_reference_only(actors: Actors) -> None:
    spi.WSPStartup()
    (other,) = actors.start("other")
    with Entries.of("base") as entries, entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        spi.WSPCleanup()
        far.sendall(b"x")
        assert other.call(recv, theirs) == b"x"
        other.call(spi.WSPSend, theirs, [b"y"])
        assert far.recv(1) == b"y"
        other.call(spi.WSPCleanup)
        assert ends_with_reset(far)


@pytest.mark.rule("CLEANUP-5", "CLEANUP-6")
def test_what_a_graceful_close_has_queued_still_arrives_after_the_cleanup(registry: Any) -> None:
    """What this provider has promised to send is the kernel's, which outlives it."""
    spi.WSPStartup()
    with Entries.of("base") as entries, entries.connected(small=True) as (s, far):
        running = Running(spi.WSPSend, s, [bytes(1 << 22)])
        running.wait_blocked()
        spi.WSPCloseSocket(s)
        assert running.code() == 10004
        assert isinstance(running.error, spi.WSAError)
        spi.WSPCleanup()
        got = 0
        while data := far.recv(1 << 16):
            got += len(data)
        assert got == running.error.bytes_transferred > 0


@pytest.mark.rule("CLEANUP-7")
def test_a_cleanup_s_codes(registry: Any) -> None:
    assert code_of(spi.WSPCleanup) == 10093
    spi.WSPStartup()
    with Entries.of("chain") as entries:
        entries.open()
        assert code_of(spi.WSPCleanup) == 0
    assert startup.WSPCleanup is spi.WSPCleanup
