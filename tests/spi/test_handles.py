"""Handles, contexts and upcalls: what the DLL's table owns, and what a provider owes it (IFS-*, NONIFS-*)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.descriptors import table
from sharedsock.model.identity import DescriptorId
from sharedsock.model.winsock import AF_INET, FIONBIO, SO_LINGER, SOCK_STREAM, SOL_SOCKET, XP1_IFS_HANDLES
from sharedsock.spi import LINGER, LayeredProvider, UpcallTable, handles
from sharedsock.spi.layered import Layer
from tests.spi.parties import Entries, Plain, Running, base_entry, code_of, fill, installed, recv

DLL = UpcallTable()


class Counting(UpcallTable):
    """The DLL's upcalls, counted by name and handle."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def WPUCreateSocketHandle(self, dwCatalogEntryId: int, lpContext: Any) -> int:
        s = super().WPUCreateSocketHandle(dwCatalogEntryId, lpContext)
        self.calls.append(("create", s))
        return s

    def WPUCloseSocketHandle(self, s: int) -> None:
        self.calls.append(("close", s))
        super().WPUCloseSocketHandle(s)


@pytest.fixture
def counting() -> Iterator[Counting]:
    """Have every provider that starts up from now on get counted upcalls."""
    made = Counting()
    spi.WSPStartup(0x0202, made)
    yield made
    spi.WSPCleanup()


# -- IFS ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("IFS-1")
def test_a_base_handle_is_one_of_the_operating_system_s(base: Entries) -> None:
    """The table that is the operating system here is the one below: it knows the number, and a file behind it."""
    assert base.tcp.dwServiceFlags1 & XP1_IFS_HANDLES
    s = base.open()
    descriptor = table.find(DescriptorId(s))
    assert descriptor is not None
    assert os.readlink(f"/proc/self/fd/{descriptor.kernel.number}").startswith("socket:")
    spi.WSPCloseSocket(s)
    assert table.find(DescriptorId(s)) is None


@pytest.mark.rule("IFS-2")
def test_a_base_provider_exposes_only_the_handle_the_upcall_gave_back(
    started: None, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = UpcallTable.WPUModifyIFSHandle
    modified: dict[int, int] = {}

    def modify(self: Any, dwCatalogEntryId: int, ProposedHandle: int) -> int:
        entry = handles.discard(original(self, dwCatalogEntryId, ProposedHandle))
        other = handles.add(ProposedHandle + 100_000, entry.provider, dwCatalogEntryId, None, is_ifs=True)
        modified[other] = ProposedHandle
        return other

    monkeypatch.setattr(UpcallTable, "WPUModifyIFSHandle", modify)
    with Entries.of("base") as entries:
        listener = entries.listener()
        with entries.connected() as (s, far):
            twin = spi.WSPSocket(-1, -1, -1, spi.WSPDuplicateSocket(s, os.getpid()))
            assert {listener, s, twin} == set(modified), "creating, connecting and importing alike"
            for proposed in modified.values():
                assert code_of(spi.WSPGetSockName, proposed) == 10038
            far.sendall(b"x")
            assert recv(twin) == b"x"
            for handle in (listener, s, twin):
                spi.WSPCloseSocket(handle)


@pytest.mark.rule("IFS-3")
@pytest.mark.parametrize("proposed", [0, -1, 10**9, None, "7"])
def test_what_is_no_handle_of_the_operating_system_is_refused(base: Entries, proposed: Any) -> None:
    assert code_of(DLL.WPUModifyIFSHandle, base.tcp.dwCatalogEntryId, proposed) == 10022
    assert code_of(DLL.WPUModifyIFSHandle, 7, proposed) == 10022


@pytest.mark.rule("IFS-4")
def test_an_ifs_handle_has_no_context(base: Entries) -> None:
    s = base.open()
    assert code_of(DLL.WPUQuerySocketHandleContext, s) == code_of(DLL.WPUCloseSocketHandle, s) == 10038
    assert code_of(spi.WSPGetSockOpt, s, SOL_SOCKET, SO_LINGER) == 0, "and is as it was"
    spi.WSPCloseSocket(s)


# -- non-IFS ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("NONIFS-1", "NONIFS-4", "NONIFS-13")
def test_a_layer_s_client_gets_the_dll_s_handle_whose_context_is_the_layer_s(started: None, registry: Any) -> None:
    with installed(Plain, base_entry()) as top:
        entries = Entries(top, top)
        listener = entries.listener()
        with entries.connected() as (s, _far):
            twin = spi.WSPSocket(-1, -1, -1, spi.WSPDuplicateSocket(s, os.getpid()))
            client = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, top)
            spi.WSPConnect(client, spi.WSPGetSockName(listener))
            accepted, _ = spi.WSPAccept(listener)
            for handle in (listener, s, twin, client, accepted):
                context = DLL.WPUQuerySocketHandleContext(handle)
                assert isinstance(context, Layer)
                assert context.handle == handle != context.lower
                assert handles.require(context.lower).is_ifs
                spi.WSPCloseSocket(handle)
                assert code_of(DLL.WPUQuerySocketHandleContext, handle) == 10038
                assert context.handle == handle, "the object is the provider's: the table has let go of the word"


@pytest.mark.rule("NONIFS-2")
def test_a_full_table_is_10055_and_leaves_nothing_behind(entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    s = entries.open()
    monkeypatch.setattr(handles, "MOST_HANDLES", len(handles.routes))
    assert code_of(entries.open) == 10055
    monkeypatch.setattr(handles, "MOST_HANDLES", len(handles.routes) + 1)  # room for a lower handle, not for its layer
    if not entries.tcp.is_ifs:
        assert code_of(entries.open) == 10055
    spi.WSPCloseSocket(s)
    assert not handles.routes


@pytest.mark.rule("NONIFS-3")
def test_an_entry_says_truly_whose_handles_it_has(base: Entries) -> None:
    with installed(Plain, base.tcp) as top:
        assert not top.is_ifs
        assert code_of(DLL.WPUCreateSocketHandle, base.tcp.dwCatalogEntryId, "context") == 10022
        s = base.open()
        assert code_of(DLL.WPUModifyIFSHandle, top.dwCatalogEntryId, s) == 10022
        spi.WSPCloseSocket(s)
        assert code_of(DLL.WPUCreateSocketHandle, 7, "context") == 10022


@pytest.mark.rule("NONIFS-5", "NONIFS-10", "NONIFS-11")
def test_each_handle_is_given_back_exactly_once_last_or_not_and_not_on_a_refusal(
    counting: Counting, registry: Any
) -> None:
    with installed(Plain, base_entry()) as top:
        entries = Entries(top, top)
        with entries.connected(small=True) as (s, _far):
            twin = spi.WSPSocket(-1, -1, -1, spi.WSPDuplicateSocket(s, os.getpid()))
            spi.WSPCloseSocket(twin)  # not the last
            assert counting.calls == [("create", s), ("create", twin), ("close", twin)]
            fill(s)
            spi.WSPIoctl(s, FIONBIO, 1)
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 30))
            assert code_of(spi.WSPCloseSocket, s) == 10035
            assert ("close", s) not in counting.calls
            spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 0))
            racers = [Running(spi.WSPCloseSocket, s) for _ in range(4)]
            assert sorted(racer.code() for racer in racers) == [0, 10038, 10038, 10038]
            assert counting.calls.count(("close", s)) == 1


@pytest.mark.rule("NONIFS-6", "NONIFS-7", "NONIFS-13")
def test_giving_a_handle_back_takes_it_out_of_the_table_and_does_nothing_else(started: None, registry: Any) -> None:
    with installed(Plain, base_entry()) as top:
        with Entries(top, top).connected() as (s, far):
            lower = DLL.WPUQuerySocketHandleContext(s).lower
            DLL.WPUCloseSocketHandle(s)
            assert code_of(spi.WSPSend, s, [b"x"]) == 10038
            assert code_of(DLL.WPUCloseSocketHandle, s) == code_of(DLL.WPUCloseSocketHandle, lower) == 10038
            spi.WSPSend(lower, [b"still there"])
            assert far.recv(64) == b"still there"
            spi.WSPCloseSocket(lower)


class Forgetful(LayeredProvider):
    """Closes, and never gives a handle back."""

    def give_back(self, layer: Layer) -> None:
        self._layers.pop(layer.handle, None)


@pytest.mark.rule("NONIFS-8")
def test_a_handle_that_is_never_given_back_leaks_and_the_audit_says_where_it_was_made(
    started: None, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed(Forgetful, base_entry()) as top:
        entries = Entries(top, top)
        s = entries.open()  # the place
        spi.WSPCloseSocket(s)
        (leak,) = spi.unreturned_handles()
        assert leak.handle == s
        assert leak.provider.endswith("Forgetful")
        assert "parties.py" in leak.created_at
        assert isinstance(DLL.WPUQuerySocketHandleContext(s), Layer), "a dangling context"
        assert code_of(spi.WSPSend, s, [b"x"]) == 10038, "the call is routed, and the provider answers"
        # The supply ends.
        monkeypatch.setattr(handles, "MOST_HANDLES", len(handles.routes) + 2)
        assert code_of(entries.open) == 0
        monkeypatch.setenv("SHAREDSOCK_AUDIT", "1")
        (last,) = (number for number, one in handles.routes.items() if not one.is_ifs and number != s)
        with pytest.warns(ResourceWarning, match=rf"handle {last}, created at .*parties.py.* is closed"):
            spi.WSPCloseSocket(last)
        assert code_of(entries.open) == 10055
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spi.WSPCleanup()
        spi.WSPStartup()
        assert spi.unreturned_handles() == ()


@pytest.mark.rule("NONIFS-9")
def test_the_handle_is_given_back_after_the_abort_and_before_nothing_else_can_use_it(
    counting: Counting, registry: Any
) -> None:
    """When WPUCloseSocketHandle is called, this process's blocked call has ended and the lower handle answers 10038."""
    with installed(Plain, base_entry()) as top:
        with Entries(top, top).connected() as (s, _far):
            lower = DLL.WPUQuerySocketHandleContext(s).lower
            reading = Running(recv, s)
            reading.wait_blocked()
            seen: list[Any] = []
            original = counting.WPUCloseSocketHandle

            def look(handle: int) -> None:
                seen.extend((reading.code(), code_of(spi.WSPGetSockName, lower)))
                original(handle)

            vars(counting)["WPUCloseSocketHandle"] = look
            spi.WSPCloseSocket(s)
            assert seen == [10004, 10038]


@pytest.mark.rule("NONIFS-4", "NONIFS-7")
@pytest.mark.parametrize("s", [0, -1, 2**64 - 1, 10**9, None, "7", 2.5, []])
def test_upcalls_with_what_is_no_handle_are_10038(started: None, s: Any) -> None:
    assert code_of(DLL.WPUQuerySocketHandleContext, s) == code_of(DLL.WPUCloseSocketHandle, s) == 10038


def test_events_threads_and_sets_by_upcall(started: None) -> None:
    event = DLL.WPUCreateEvent()
    assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 258
    DLL.WPUSetEvent(event)
    assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 0
    DLL.WPUResetEvent(event)
    assert spi.WSAWaitForMultipleEvents([event], dwTimeout=0) == 258
    DLL.WPUCloseEvent(event)
    for call in (DLL.WPUSetEvent, DLL.WPUResetEvent, DLL.WPUCloseEvent):
        assert code_of(call, event) == 6
    thread = DLL.WPUOpenCurrentThread()
    ran: list[Any] = []
    DLL.WPUQueueApc(thread, ran.append, "context")
    assert spi.SleepEx(0, False) == 0
    assert ran == []
    assert spi.SleepEx(0, True) == 192
    assert ran == ["context"]
    DLL.WPUCloseThread(thread)
    assert code_of(DLL.WPUCloseThread, thread) == code_of(DLL.WPUCloseThread, None) == 10022
    assert code_of(DLL.WPUQueueApc, None, ran.append, 1) == 10022
    assert DLL.WPUFDIsSet(3, [1, 3])
    assert not DLL.WPUFDIsSet(3, [])


def test_a_provider_is_found_by_its_id(base: Entries) -> None:
    with installed("tests.spi.parties:Plain", base.tcp) as top:
        assert DLL.WPUGetProviderPath(top.ProviderId) == "tests.spi.parties:Plain"
        assert DLL.WPUGetProviderPath(base.tcp.ProviderId) == "sharedsock.spi.base:BaseProvider"
    assert code_of(DLL.WPUGetProviderPath, top.ProviderId) == 10105
