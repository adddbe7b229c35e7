"""What is no handle, no buffer, no flag and no state: one code each, from every call, and nothing is consumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import (
    AF_INET,
    AF_UNIX,
    FIONBIO,
    INVALID_SOCKET,
    SO_ACCEPTCONN,
    SO_KEEPALIVE,
    SO_LINGER,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
)
from sharedsock.spi import WSAOVERLAPPED, handles
from sharedsock.spi.catalog import provider_of
from sharedsock.spi.provider import CALLS_ON_A_SOCKET
from tests.spi.parties import Entries, base_entry, code_of, installed, recv

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "WSPAccept": (),
    "WSPAsyncSelect": (1, 2, 3),
    "WSPBind": (("127.0.0.1", 0),),
    "WSPCloseSocket": (),
    "WSPConnect": (("127.0.0.1", 9),),
    "WSPDuplicateSocket": (1,),
    "WSPEnumNetworkEvents": (),
    "WSPEventSelect": (None, 0),
    "WSPGetOverlappedResult": (WSAOVERLAPPED(),),
    "WSPGetPeerName": (),
    "WSPGetSockName": (),
    "WSPGetSockOpt": (SOL_SOCKET, SO_LINGER),
    "WSPIoctl": (FIONBIO, 1),
    "WSPJoinLeaf": (("127.0.0.1", 9),),
    "WSPListen": (1,),
    "WSPRecv": ([bytearray(1)],),
    "WSPRecvDisconnect": (),
    "WSPRecvFrom": ([bytearray(1)],),
    "WSPSend": ([b"x"],),
    "WSPSendDisconnect": (),
    "WSPSendTo": ([b"x"], 0, ("127.0.0.1", 9)),
    "WSPSetSockOpt": (SOL_SOCKET, SO_KEEPALIVE, True),
    "WSPShutdown": (1,),
}


def test_the_table_has_every_call() -> None:
    assert list(ARGUMENTS) == CALLS_ON_A_SOCKET
    assert {name for name in spi.__all__ if name.startswith("WSP")} == {
        *CALLS_ON_A_SOCKET, "WSPSocket", "WSPSelect", "WSPCancelBlockingCall", "WSPStartup", "WSPCleanup",
        "WSPStringToAddress", "WSPAddressToString", "WSPDATA",
    }  # fmt: skip


@pytest.mark.rule("CLOSE-2", "DUP-7", "EVENT-12", "SHUT-8")
@pytest.mark.parametrize("name", CALLS_ON_A_SOCKET)
@pytest.mark.parametrize("chain", ["base", "chain"])
def test_what_is_no_handle_is_10038_from_every_call(registry: Any, started: None, name: str, chain: str) -> None:
    with Entries.of(chain) as entries, Entries.of("base") as other:
        closed, open_ = entries.open(), other.open()
        spi.WSPCloseSocket(closed)
        call = getattr(spi, name)
        for s in (0, INVALID_SOCKET, 2**64 - 1, 10**12, closed, None, "1", 2.5, [1]):
            assert code_of(call, s, *ARGUMENTS[name]) == 10038, s
        # Another provider's handle, which the router would never bring here.
        foreign = Entries.of("chain" if chain == "base" else "base")
        with foreign as strangers:
            theirs = strangers.open()
            provider = provider_of(entries.tcp.dwCatalogEntryId)
            provider.WSPStartup(0x0202, entries.tcp, spi.UpcallTable())
            assert code_of(getattr(provider, name), theirs, *ARGUMENTS[name]) == 10038
            provider.WSPCleanup()
            code_of(spi.WSPCloseSocket, theirs)
        code_of(spi.WSPCloseSocket, open_)


@pytest.mark.rule("NONIFS-3", "CLOSE-2")
def test_a_layer_knows_its_own_handles(started: None, registry: Any) -> None:
    """Two layers stand on one base provider, which would take either's lower handle: each refuses the other's."""
    with installed(spi.Tracing, base_entry()) as one, installed(spi.Chaos, base_entry()) as other:
        s, theirs = (spi.WSPSocket(AF_INET, SOCK_STREAM, 0, info) for info in (one, other))
        provider = provider_of(one.dwCatalogEntryId)
        for name in CALLS_ON_A_SOCKET:
            assert code_of(getattr(provider, name), theirs, *ARGUMENTS[name]) == 10038, name
        assert code_of(provider.WSPSelect, [theirs], None, None, 0.0) == 10038
        for handle in (s, theirs):
            spi.WSPCloseSocket(handle)


@pytest.mark.rule("SHUT-6", "SHUT-7", "SELECT-1")
def test_bad_arguments_have_the_codes_of_the_pages(entries: Entries) -> None:
    s = entries.open()
    with entries.connected() as (c, far):
        far.sendall(b"kept")
        too_small = memoryview(bytearray(4))[::2]
        cases: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = [
            (10014, spi.WSPSend, (c, None)),
            (10014, spi.WSPSend, (c, b"not an array")),
            (10014, spi.WSPSend, (c, [None])),
            (10014, spi.WSPSend, (c, ["text"])),
            (10022, spi.WSPSend, (c, [])),
            (10014, spi.WSPRecv, (c, None)),
            (10014, spi.WSPRecv, (c, [b"read-only"])),
            (10014, spi.WSPRecv, (c, [bytearray(1), b"read-only"])),
            (10014, spi.WSPRecv, (c, [too_small])),
            (10022, spi.WSPRecv, (c, [])),
            (10014, spi.WSPRecvFrom, (c, [None])),
            (10045, spi.WSPSend, (c, [b"x"], 0x4000)),
            (10045, spi.WSPRecv, (c, [bytearray(1)], 0x4000)),
            (10045, spi.WSPRecv, (c, [bytearray(1)], "2")),
            (10022, spi.WSPRecv, (c, [bytearray(1)], 0, "no overlapped")),
            (10022, spi.WSPRecv, (c, [bytearray(1)], 0, WSAOVERLAPPED(), "no routine")),
            (6, spi.WSPRecv, (c, [bytearray(1)], 0, WSAOVERLAPPED(10**9))),
            (10022, spi.WSPShutdown, (c, 3)),
            (10022, spi.WSPShutdown, (c, None)),
            (10057, spi.WSPSend, (s, [b"x"])),
            (10057, spi.WSPShutdown, (s, 1)),
            (10057, spi.WSPSendDisconnect, (s,)),
            (10057, spi.WSPRecvDisconnect, (s,)),
            (10057, spi.WSPGetPeerName, (s,)),
            (10022, spi.WSPGetSockName, (s,)),
            (10022, spi.WSPListen, (s, 5)),
            (10022, spi.WSPListen, (s, "5")),
            (10056, spi.WSPListen, (c, 5)),
            (10022, spi.WSPAccept, (c,)),
            (10014, spi.WSPBind, (s, None)),
            (10014, spi.WSPBind, (s, ("127.0.0.1", 70_000))),
            (10014, spi.WSPConnect, (s, "no tuple")),
            (10042, spi.WSPConnect, (s, ("127.0.0.1", 9), b"data")),
            (10056, spi.WSPConnect, (c, ("127.0.0.1", 9))),
            (10042, spi.WSPGetSockOpt, (s, SOL_SOCKET, 0x7777)),
            (10042, spi.WSPSetSockOpt, (s, SOL_SOCKET, SO_ACCEPTCONN, 1)),
            (10014, spi.WSPSetSockOpt, (s, SOL_SOCKET, SO_KEEPALIVE, None)),
            (10014, spi.WSPSetSockOpt, (s, SOL_SOCKET, SO_LINGER, 7)),
            (10022, spi.WSPSetSockOpt, (s, SOL_SOCKET, SO_LINGER, (1, 70_000))),
            (10014, spi.WSPIoctl, (s, FIONBIO, None)),
            (10045, spi.WSPIoctl, (s, 12345)),
            (10045, spi.WSPJoinLeaf, (s, ("127.0.0.1", 9))),
            (10045, spi.WSPAsyncSelect, (s, 1, 2, 3)),
            (10022, spi.WSPSelect, (None, None, None)),
            (10014, spi.WSPSelect, (s, None, None)),
            (10022, spi.WSPSelect, ([], [], [], 1.0)),
            (10022, spi.WSPSelect, ([s], None, None, -1.0)),
            (10022, spi.WSPSelect, ([s], None, None, "soon")),
            (10038, spi.WSPSelect, ([s, 0], None, None, 0.0)),
            (10047, spi.WSPSocket, (99, SOCK_STREAM, 0)),
            (10044, spi.WSPSocket, (AF_INET, 99, 0)),
            (10043, spi.WSPSocket, (AF_INET, SOCK_STREAM, 99)),
            (10022, spi.WSPSocket, (-1, SOCK_STREAM, 0)),
            (10014, spi.WSPSocket, (AF_INET, SOCK_STREAM, 0, "no info")),
            (10022, spi.WSPSocket, (AF_INET, SOCK_DGRAM, 0, entries.tcp)),
            (10022, spi.WSPSocket, (AF_INET, SOCK_STREAM, 0, None, 1)),
            (10022, spi.WSPSocket, (AF_INET, SOCK_STREAM, 0, None, 0, 64)),
            (10014, spi.WSPStringToAddress, (None, AF_INET)),
            (10022, spi.WSPStringToAddress, ("localhost", AF_INET)),
            (10022, spi.WSPStringToAddress, ("127.0.0.1:", AF_INET)),
            (10022, spi.WSPStringToAddress, ("127.0.0.1:70000", AF_INET)),
            (10014, spi.WSPAddressToString, (7,)),
            (10014, spi.WSPAddressToString, ("path", "no info")),
            (10014, spi.WSPStringToAddress, ("path", AF_UNIX, "no info")),
            (10022, spi.WSPSocket, (AF_INET, SOCK_STREAM, 0, None, 0, "1")),
            (10022, spi.WSPShutdown, (c, 0.0)),
            (10014, spi.WSCWriteProviderOrder, (None,)),
        ]
        wrong = [
            (expected, call.__name__, arguments, found)
            for expected, call, arguments in cases
            if (found := code_of(call, *arguments)) != expected
        ]
        assert wrong == []
        assert recv(c) == b"kept", "nothing was consumed by a refusal"
        spi.WSPSend(c, [b"still connected"])
        assert far.recv(64) == b"still connected"
        before = len(handles.routes)
        spi.WSPCloseSocket(c)
        spi.WSPCloseSocket(s)
        assert len(handles.routes) < before


def test_sets_of_several_providers_are_refused(started: None, registry: Any) -> None:
    with Entries.of("base") as one, Entries.of("chain") as two:
        s, t = one.open(), two.open()
        assert code_of(spi.WSPSelect, [s, t], None, None, 0.0) == 10022
        spi.WSPCloseSocket(s)
        spi.WSPCloseSocket(t)


@pytest.mark.parametrize(
    ("text", "family", "address"),
    [
        ("127.0.0.1", AF_INET, ("127.0.0.1", 0)),
        ("127.0.0.1:80", AF_INET, ("127.0.0.1", 80)),
        ("::1", 23, ("::1", 0, 0, 0)),
        ("[::1]:80", 23, ("::1", 80, 0, 0)),
        ("[fe80::1%2]:80", 23, ("fe80::1", 80, 0, 2)),
        ("/tmp/x", AF_UNIX, "/tmp/x"),
    ],
)
def test_addresses_are_text_and_back(started: None, text: str, family: int, address: Any) -> None:
    assert spi.WSPStringToAddress(text, family) == address
    assert spi.WSPAddressToString(address) == text


def test_a_duplicate_of_one_s_own_is_refused_to_nobody(base: Entries) -> None:
    s = base.open()
    info = spi.WSPDuplicateSocket(s, os.getpid())
    twin = spi.WSPSocket(0, 0, 0, info)
    assert code_of(spi.WSPSocket, 0, 0, 0, info) == 10022
    for handle in (s, twin):
        spi.WSPCloseSocket(handle)


JUNK: tuple[Any, ...] = (
    None, "", "x", "\0", b"", b"x", bytearray(2), memoryview(bytearray(2)), [], [None], (), {}, set(), 0.0, 2.5, -1,
    float("nan"), 2**31, 2**64, 2**70, object(), WSAOVERLAPPED(10**9), lambda *_: 0,
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CALLS_ON_A_SOCKET if name != "WSPCloseSocket"])
@pytest.mark.parametrize("chain", ["base", "chain"])
def test_junk_in_any_place_is_a_code_and_nothing_else(registry: Any, started: None, name: str, chain: str) -> None:
    """Whatever stands in whichever place: the call succeeds, or WSAError is raised. And the handle goes on working."""
    with Entries.of(chain) as entries:
        d = entries.datagrams()
        spi.WSPIoctl(d, FIONBIO, 1)
        call, usual = getattr(spi, name), (d, *ARGUMENTS[name])
        for place in range(len(usual)):
            for junk in JUNK:
                arguments = (*usual[:place], junk, *usual[place + 1 :])
                found = code_of(call, *arguments)
                assert place or found == 10038, arguments
        spi.WSPIoctl(d, FIONBIO, 1)
        assert spi.WSPSendTo(d, [b"x"], 0, spi.WSPGetSockName(d)) == 1 or name == "WSPConnect"
        spi.WSPCloseSocket(d)
