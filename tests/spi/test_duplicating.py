"""LPWSPDUPLICATESOCKET and "Shared Sockets in the SPI": one socket, descriptors in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest

from sharedsock import spi
from sharedsock.model.winsock import (
    AF_INET,
    AF_INET6,
    FIONBIO,
    FROM_PROTOCOL_INFO,
    SIO_SET_QOS,
    SO_KEEPALIVE,
    SO_LINGER,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    WSA_FLAG_OVERLAPPED,
)
from sharedsock.spi import LINGER, WSAPROTOCOL_INFO, LayeredProvider, UpcallTable, catalog, handles
from sharedsock.testing import Actor, Actors
from tests.spi.parties import Entries, Plain, base_entry, code_of, installed, is_quiet, recv, take


def take_oneself(info: WSAPROTOCOL_INFO, flags: int = WSA_FLAG_OVERLAPPED) -> int:
    return spi.WSPSocket(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, info, 0, flags)


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-3", "DUP-12", "DUP-14", "DUP-15", "DUP-21", "REF-1", "REF-5")
@pytest.mark.parametrize("first", ["source", "target"])
def test_the_sequence_of_the_page(entries: Entries, actors: Actors, first: str) -> None:
    """Source creates, duplicates for the target, sends the info; target creates from it; each closes when it likes."""
    (target,) = actors.start("target")
    with entries.connected() as (s, far):
        info = spi.WSPDuplicateSocket(s, target.pid)
        spi.WSPSend(s, [b"5"])
        assert far.recv(1) == b"5", "the source's descriptor is unchanged"
        travelled = WSAPROTOCOL_INFO.from_bytes(bytes(info))
        assert travelled == info
        theirs = target.call(take, travelled)
        assert target.call(code_of, take, travelled) == 10022, "an info is good for one descriptor"
        far.sendall(b"ab")
        assert recv(s, 1) + target.call(recv, theirs, 1) == b"ab"
        closes = [partial(spi.WSPCloseSocket, s), partial(target.call, spi.WSPCloseSocket, theirs)]
        if first == "target":
            closes.reverse()
        closes[0]()
        assert is_quiet(far)
        closes[1]()
        assert far.recv(1) == b""


@pytest.mark.rule("DUP-12")
def test_an_info_keeps_the_socket_open_when_its_source_has_closed(entries: Entries, actors: Actors) -> None:
    (target,) = actors.start("target")
    with entries.connected() as (s, far):
        info = spi.WSPDuplicateSocket(s, target.pid)
        spi.WSPCloseSocket(s)
        assert is_quiet(far)
        theirs = target.call(take, info)
        target.call(spi.WSPSend, theirs, [b"x"])
        assert far.recv(1) == b"x"
        target.call(spi.WSPCloseSocket, theirs)
        assert far.recv(1) == b""


def damaged(info: WSAPROTOCOL_INFO) -> list[WSAPROTOCOL_INFO]:
    """Infos that are incomplete, corrupt, or say something else than the one that was made."""
    reserved = info.dwProviderReserved
    return [
        replace(info, dwProviderReserved=reserved[:-1]),
        replace(info, dwProviderReserved=reserved[:8]),
        replace(info, dwProviderReserved=bytes([reserved[0] ^ 1]) + reserved[1:]),
        replace(info, dwProviderReserved=reserved[:-1] + bytes([reserved[-1] ^ 1])),
        replace(info, iAddressFamily=AF_INET6),
        replace(info, iSocketType=SOCK_DGRAM),
        replace(info, ProviderId=type(info.ProviderId)(int=7)),
    ]


@pytest.mark.rule("DUP-4", "DUP-5", "DUP-20")
def test_a_refused_info_is_not_used_up(entries: Entries, actors: Actors) -> None:
    """Corrupt, another process's, with other flags: 10022 each, and then it is as good as new."""
    target, stranger = actors.start("target", "stranger")
    with entries.connected() as (s, _far):
        info = spi.WSPDuplicateSocket(s, target.pid)
        for one in damaged(info):
            assert target.call(code_of, take, one) == 10022
        assert stranger.call(code_of, take, info) == code_of(take_oneself, info) == 10022
        assert target.call(code_of, take_oneself, info, 0) == 10022
        assert target.call(code_of, spi.WSPSocket, AF_INET6, SOCK_STREAM, 0, info) == 10022
        theirs = target.call(take, info)
        target.call(spi.WSPCloseSocket, theirs)
        spi.WSPCloseSocket(s)


@pytest.mark.rule("DUP-4")
def test_no_other_bytes_are_an_info(entries: Entries) -> None:
    s = entries.open()
    whole = bytes(spi.WSPDuplicateSocket(s, os.getpid()))
    for size in range(len(whole)):
        with pytest.raises(spi.WSAError) as refused:
            WSAPROTOCOL_INFO.from_bytes(whole[:size])
        assert refused.value.winerror == 10022
    for data in (b"", whole + b"x", b"x" + whole[1:]):
        assert code_of(WSAPROTOCOL_INFO.from_bytes, data) == 10022
    spi.WSPCloseSocket(take_oneself(WSAPROTOCOL_INFO.from_bytes(whole)))
    spi.WSPCloseSocket(s)


@pytest.mark.rule("DUP-6", "DUP-7", "DUP-8")
def test_what_cannot_be_duplicated(entries: Entries) -> None:
    s = entries.open()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    codes = {pid: code_of(spi.WSPDuplicateSocket, s, pid) for pid in (ended.pid, 0, -1, None, "1", 2**40)}
    assert set(codes.values()) == {10022}, codes
    spi.WSPCloseSocket(s)
    assert code_of(spi.WSPDuplicateSocket, s, os.getpid()) == 10038


@pytest.mark.rule("DUP-9")
def test_no_socket_is_ever_qos_enabled(entries: Entries) -> None:
    """wsaduplicatesocketw forbids it for one that is; here no call makes one."""
    s = entries.open()
    assert code_of(spi.WSPIoctl, s, SIO_SET_QOS, b"") == 10045
    spi.WSPCloseSocket(s)


@pytest.mark.rule("DUP-10", "DUP-11", "CLOSE-29")
def test_one_info_per_descriptor_also_in_the_own_process(entries: Entries) -> None:
    with entries.connected() as (s, far):
        twin = take_oneself(spi.WSPDuplicateSocket(s, os.getpid()))
        assert twin != s
        far.sendall(b"ab")
        assert recv(s, 1) + recv(twin, 1) == b"ab"
        spi.WSPCloseSocket(s)
        spi.WSPSend(twin, [b"x"])
        assert far.recv(1) == b"x"
        spi.WSPCloseSocket(twin)
        assert far.recv(1) == b""


@pytest.mark.rule("DUP-16", "DUP-17", "DUP-18", "DUP-19", "LINGER-12")
def test_what_is_common_and_what_is_each_descriptors_own(entries: Entries, actors: Actors) -> None:
    (other,) = actors.start("other")
    with entries.connected() as (s, far):
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        spi.WSPSetSockOpt(s, SOL_SOCKET, SO_KEEPALIVE, True)
        assert other.call(spi.WSPGetSockOpt, theirs, SOL_SOCKET, SO_KEEPALIVE) is True
        other.call(spi.WSPSetSockOpt, theirs, SOL_SOCKET, SO_LINGER, LINGER(1, 9))
        assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_LINGER) == LINGER(1, 9)
        # FIONBIO governs the other's next call; and the other way round.
        spi.WSPIoctl(s, FIONBIO, 1)
        assert other.call(code_of, recv, theirs) == 10035
        other.call(spi.WSPIoctl, theirs, FIONBIO, 0)
        waiting = other.thread("reader").do("call", recv, theirs)
        other.wait_until_blocked("reader")
        far.sendall(b"x")
        assert waiting.value() == b"x"
        # A shutdown is everybody's; a close is not.
        other.call(spi.WSPShutdown, theirs, 1)
        assert code_of(spi.WSPSend, s, [b"x"]) == 10058
        spi.WSPCloseSocket(s)
        assert other.call(code_of, spi.WSPGetSockName, theirs) == 0
        other.call(spi.WSPCloseSocket, theirs)


@pytest.mark.rule("DUP-25")
def test_a_duplicate_is_in_exactly_the_state_of_its_source(entries: Entries, actors: Actors) -> None:
    (other,) = actors.start("other")
    listener = entries.listener()
    theirs = other.call(take, spi.WSPDuplicateSocket(listener, other.pid))
    assert other.call(spi.WSPGetSockName, theirs) == spi.WSPGetSockName(listener)
    other.call(spi.WSPCloseSocket, theirs)
    spi.WSPCloseSocket(listener)
    with entries.connected() as (s, far):
        spi.WSPShutdown(s, 0)
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        assert other.call(code_of, recv, theirs) == 10058
        spi.WSPCloseSocket(s)
        other.call(spi.WSPCloseSocket, theirs)
    with entries.connected() as (s, far):
        far.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert code_of(recv, s) == 10054
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        assert other.call(code_of, recv, theirs) == 10054
        spi.WSPCloseSocket(s)
        other.call(spi.WSPCloseSocket, theirs)


class Recording(LayeredProvider):
    """Notes the infos it is given and gives."""

    seen: ClassVar[list[tuple[str, WSAPROTOCOL_INFO]]] = []

    def WSPSocket(self, af: int, type: int, protocol: int, lpProtocolInfo: Any, g: int = 0, dwFlags: int = 0) -> int:
        Recording.seen.append(("made of", lpProtocolInfo))
        return super().WSPSocket(af, type, protocol, lpProtocolInfo, g, dwFlags)

    def WSPDuplicateSocket(self, s: int, dwProcessId: int) -> WSAPROTOCOL_INFO:
        info = super().WSPDuplicateSocket(s, dwProcessId)
        Recording.seen.append(("gives", info))
        return info


@pytest.mark.rule("DUP-22")
def test_each_layer_sees_the_chains_info_and_the_base_provider_its_own(
    started: None, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcp = base_entry()
    monkeypatch.setattr(Recording, "seen", [])
    below: list[WSAPROTOCOL_INFO] = []
    base = catalog.provider_of(tcp.dwCatalogEntryId)
    original = base.WSPSocket

    def spy(*arguments: Any) -> int:
        below.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(base, "WSPSocket", spy)
    with installed(Recording, tcp) as middle, installed(Plain, middle) as top:
        s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, top)
        info = spi.WSPDuplicateSocket(s, os.getpid())
        assert (info.ProviderId, info.ProtocolChain) == (top.ProviderId, top.ProtocolChain)
        twin = take_oneself(info)
        made = [one for what, one in Recording.seen if what == "made of"]
        assert [one.ProtocolChain for one in made] == [top.ProtocolChain] * 2
        assert made[1] == info, "unmodified"
        assert [one.ProtocolChain for one in below] == [tcp.ProtocolChain] * 2, "a base provider never sees a chain"
        assert [one.ProviderId for one in below] == [tcp.ProviderId] * 2
        assert below[1].dwProviderReserved == info.dwProviderReserved
        for handle in (s, twin):
            spi.WSPCloseSocket(handle)


@pytest.mark.rule("DUP-23", "DUP-24")
def test_a_duplicate_is_made_known_by_the_upcall_of_its_kind(
    started: None, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("WPUCreateSocketHandle", "WPUModifyIFSHandle"):
        original = getattr(UpcallTable, name)

        def spy(self: Any, *arguments: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(UpcallTable, name, spy)
    with installed(Plain, base_entry()) as top:
        for info, expected in (
            (base_entry(), ["WPUModifyIFSHandle"]),
            (top, ["WPUModifyIFSHandle", "WPUCreateSocketHandle"]),
        ):
            s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, info)
            calls.clear()
            twin = take_oneself(spi.WSPDuplicateSocket(s, os.getpid()))
            assert calls == expected
            assert handles.require(twin).is_ifs is (info is not top)
            for handle in (s, twin):
                spi.WSPCloseSocket(handle)


@pytest.mark.rule("DUP-13")
def test_an_info_of_a_target_that_dies_gives_its_reference_back(entries: Entries, actors: Actors) -> None:
    (target,) = actors.start("target")
    with entries.connected() as (s, far):
        spi.WSPDuplicateSocket(s, target.pid)
        spi.WSPCloseSocket(s)
        assert is_quiet(far)
        target.kill()
        assert far.recv(1) == b""


@pytest.mark.rule("EXIT-1")
def test_a_process_that_dies_without_cleanup_loses_its_references_only(entries: Entries, actors: Actors) -> None:
    dying, other = actors.start("dying", "other")
    with entries.connected() as (s, far):
        for actor in (dying, other):
            handle = actor.call(take, spi.WSPDuplicateSocket(s, actor.pid))
        spi.WSPCloseSocket(s)
        dying.kill()
        far.sendall(b"x")
        assert other.call(recv, handle) == b"x"
        other.call(spi.WSPCloseSocket, handle)
        assert far.recv(1) == b""


def test_a_forked_child_owns_nothing_and_has_not_started_up(entries: Entries, actors: Actors) -> None:
    s = entries.open()
    (child,) = actors.start("child")

    def codes(actor: Actor) -> list[int]:
        return [actor.call(code_of, spi.WSPGetSockName, s), actor.call(code_of, spi.WSPCleanup)]

    assert codes(child) == [10093, 10093]
    child.call(spi.WSPStartup)
    assert child.call(code_of, spi.WSPGetSockName, s) == 10038
    child.call(spi.WSPCleanup)
    spi.WSPCloseSocket(s)
