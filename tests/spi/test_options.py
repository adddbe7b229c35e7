"""Options, control codes, shutdown and selection by Winsock's numbers."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from sharedsock import spi
from sharedsock.model.winsock import (
    FIONBIO,
    FIONREAD,
    IPPROTO_TCP,
    MSG_PEEK,
    MSG_WAITALL,
    SD_BOTH,
    SD_RECEIVE,
    SD_SEND,
    SIOCATMARK,
    SO_ACCEPTCONN,
    SO_DONTLINGER,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_PROTOCOL_INFOW,
    SO_RCVBUF,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    XP1_GRACEFUL_CLOSE,
)
from sharedsock.spi import LINGER, BaseProvider
from sharedsock.spi.base_options import DEFAULT_LINGER_S
from sharedsock.testing import Actors
from tests.spi.parties import Entries, code_of, ends_with_reset, fill, installed, is_quiet, recv, take


def linger(s: int) -> tuple[Any, Any]:
    return spi.WSPGetSockOpt(s, SOL_SOCKET, SO_LINGER), spi.WSPGetSockOpt(s, SOL_SOCKET, SO_DONTLINGER)


@pytest.mark.rule("LINGER-1", "LINGER-9", "LINGER-10", "LINGER-11")
def test_linger_and_dontlinger_are_each_other_s_opposite_and_the_time_is_kept(entries: Entries, actors: Actors) -> None:
    s = entries.open()
    assert linger(s) == (LINGER(0, 0), True)
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, False)
    assert linger(s) == (LINGER(1, DEFAULT_LINGER_S), False), "no time was ever given"
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 9))
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, True)
    assert linger(s) == (LINGER(0, 0), True)
    (other,) = actors.start("other")
    theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
    other.call(spi.WSPSetSockOpt, theirs, SOL_SOCKET, SO_DONTLINGER, False)
    assert linger(s) == (LINGER(1, 9), False), "reinstated by another sharer, for all"
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(0, 0))
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, False)
    assert linger(s) == (LINGER(1, 9), False)
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, True)
    other.call(spi.WSPCloseSocket, theirs)
    spi.WSPCloseSocket(s)
    d = entries.datagrams()
    for option, value in ((SO_LINGER, LINGER(1, 1)), (SO_DONTLINGER, True)):
        assert code_of(spi.WSPSetSockOpt, d, SOL_SOCKET, option, value) == 10042
        assert code_of(spi.WSPGetSockOpt, d, SOL_SOCKET, option) == 10042
    spi.WSPCloseSocket(d)


@pytest.mark.rule("LINGER-16")
def test_without_xp1_graceful_close_there_are_abortive_closes_only(base: Entries) -> None:
    with installed(BaseProvider, base.tcp, dwServiceFlags1=base.tcp.dwServiceFlags1 & ~XP1_GRACEFUL_CLOSE) as entry:
        with Entries(entry, base.udp).connected(small=True) as (s, far):
            fill(s)
            assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_DONTLINGER) is True
            spi.WSPCloseSocket(s)
            assert ends_with_reset(far)


def test_options_of_the_kernel_and_of_winsock(entries: Entries) -> None:
    s, d = entries.open(), entries.datagrams()
    assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_TYPE) == SOCK_STREAM
    assert spi.WSPGetSockOpt(d, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM
    info = spi.WSPGetSockOpt(s, SOL_SOCKET, SO_PROTOCOL_INFOW)
    assert info.dwProviderReserved == b""
    assert (info.iAddressFamily, info.iProtocol) == (2, IPPROTO_TCP)
    for level, option in ((SOL_SOCKET, SO_KEEPALIVE), (IPPROTO_TCP, TCP_NODELAY)):
        assert spi.WSPGetSockOpt(s, level, option) is False
        spi.WSPSetSockOpt(s, level, option, 1)
        assert spi.WSPGetSockOpt(s, level, option) is True
    spi.WSPSetSockOpt(s, SOL_SOCKET, SO_RCVBUF, 9000)
    assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_RCVBUF) >= 9000
    assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_ERROR) == 0
    spi.WSPIoctl(s, FIONBIO, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert code_of(spi.WSPConnect, s, taken.getsockname()) in (10035, 10061)
        spi.WSPSelect(None, [s], [s], 60.0)
        assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_ERROR) in (10061, 0)
    listener = entries.listener()
    assert spi.WSPGetSockOpt(listener, SOL_SOCKET, SO_ACCEPTCONN) is True
    for handle in (s, d, listener):
        spi.WSPCloseSocket(handle)


def test_control_codes_and_flags(entries: Entries) -> None:
    with entries.connected() as (s, far):
        assert spi.WSPIoctl(s, FIONREAD) == 0
        assert spi.WSPIoctl(s, SIOCATMARK) is True, "no out-of-band data is left to be read"
        far.sendall(b"abcdef")
        spi.WSPSelect([s], None, None, 60.0)
        assert spi.WSPIoctl(s, FIONREAD) == 6
        assert recv(s, 2, MSG_PEEK) == b"ab"
        one, two = bytearray(2), bytearray(3)
        assert spi.WSPRecv(s, [one, two]) == (5, 0)
        assert [bytes(one), bytes(two)] == [b"ab", b"cde"]
        far.sendall(b"ghij")
        assert recv(s, 5, MSG_WAITALL) == b"fghij"
        far.sendall(b"k")
        far.shutdown(socket.SHUT_WR)
        assert recv(s, 5, MSG_WAITALL) == b"k"
        assert spi.WSPSend(s, [b"l", b"", b"mn"]) == 3
        assert far.recv(8) == b"lmn"
        spi.WSPCloseSocket(s)
    with entries.connected() as (s, far):
        far.send(b"!", socket.MSG_OOB)
        spi.WSPSelect(None, None, [s], 60.0)
        assert spi.WSPIoctl(s, SIOCATMARK) is False
        assert recv(s, 1, 1) == b"!"
        assert spi.WSPIoctl(s, SIOCATMARK) is True
        spi.WSPCloseSocket(s)


@pytest.mark.rule("SHUT-1", "SHUT-2", "SHUT-5", "SHUT-9")
@pytest.mark.parametrize("how", [SD_RECEIVE, SD_SEND, SD_BOTH])
def test_a_shut_direction_is_10058_and_the_handle_stays(entries: Entries, how: int) -> None:
    with entries.connected() as (s, far):
        spi.WSPShutdown(s, how)
        assert code_of(spi.WSPSend, s, [b"x"]) == (0 if how == SD_RECEIVE else 10058)
        assert code_of(spi.WSPSend, s, [b"x"], 0, spi.WSAOVERLAPPED()) == (0 if how == SD_RECEIVE else 10058)
        if how != SD_SEND:
            assert code_of(recv, s) == 10058
            assert code_of(spi.WSPRecv, s, [bytearray(1)], 0, spi.WSAOVERLAPPED()) == 10058
        if how == SD_RECEIVE:
            assert far.recv(2) in (b"x", b"xx")
        else:
            assert far.recv(1) == b""
        assert spi.WSPGetPeerName(s) == far.getsockname()
        spi.WSPCloseSocket(s)


@pytest.mark.rule("SHUT-11", "SHUT-12")
def test_disconnects(entries: Entries) -> None:
    with entries.connected() as (s, far):
        assert code_of(spi.WSPSendDisconnect, s, b"data") == code_of(spi.WSPRecvDisconnect, s, bytearray(1)) == 10042
        spi.WSPSendDisconnect(s)
        assert code_of(spi.WSPSend, s, [b"x"]) == 10058
        assert far.recv(1) == b""
        spi.WSPCloseSocket(s)
    with entries.connected() as (s, far):
        far.sendall(b"unread")
        spi.WSPSelect([s], None, None, 60.0)
        spi.WSPRecvDisconnect(s)
        assert code_of(recv, s) == 10058
        far.sendall(b"more")
        far.sendall(b"and more")  # a reset would fail the second at the latest
        spi.WSPCloseSocket(s)
    s, d = entries.open(), entries.datagrams()
    assert code_of(spi.WSPSendDisconnect, s) == code_of(spi.WSPRecvDisconnect, s) == 10057
    assert code_of(spi.WSPSendDisconnect, d) == 10042
    for handle in (s, d):
        spi.WSPCloseSocket(handle)


def test_sd_receive_with_unread_data_resets(entries: Entries) -> None:
    """LPWSPSHUTDOWN: data that nobody will read any more ends the connection, for every sharer."""
    with entries.connected() as (s, far):
        far.sendall(b"unread")
        spi.WSPSelect([s], None, None, 60.0)
        spi.WSPShutdown(s, SD_RECEIVE)
        assert ends_with_reset(far)
        spi.WSPCloseSocket(s)


@pytest.mark.rule("SHUT-4")
def test_sd_receive_of_datagrams_refuses_nobody(entries: Entries) -> None:
    d = entries.datagrams()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.connect(spi.WSPGetSockName(d))
        spi.WSPShutdown(d, SD_RECEIVE)
        for _ in range(3):
            far.send(b"x")  # an ICMP error would be reported here
        assert is_quiet(far)
    assert code_of(recv, d) == 10058
    spi.WSPCloseSocket(d)


@pytest.mark.rule("SELECT-2", "SELECT-3", "SELECT-5", "CLOSE-44")
def test_select_over_handles(entries: Entries, actors: Actors) -> None:
    (other,) = actors.start("other")  # before there is a plain socket for it to inherit
    listener = entries.listener()
    with entries.connected() as (s, far):
        assert spi.WSPSelect([s, listener], [], [], 0) == ([], [], [])
        assert spi.WSPSelect([s], [s], None, 1.5) == ([], [s], [])
        with socket.create_connection(spi.WSPGetSockName(listener)):
            assert spi.WSPSelect([listener], None, None, 60.0) == ([listener], [], [])
            client, _ = spi.WSPAccept(listener)
        far.sendall(b"x")
        ready = [s]
        assert spi.WSPSelect(ready, None, None, 60.0) == ([s], [], [])
        assert ready == [s], "the sets stay as they are"
        theirs = other.call(take, spi.WSPDuplicateSocket(s, other.pid))
        assert other.call(recv, theirs) == b"x"
        spi.WSPIoctl(s, FIONBIO, 1)
        assert code_of(recv, s) == 10035, "ready was a hint"
        other.call(spi.WSPCloseSocket, theirs)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        assert spi.WSPSelect([s], None, None, 60.0) == ([s], [], [])
        assert code_of(recv, s) == 10054
        spi.WSPCloseSocket(client)
        assert code_of(spi.WSPSelect, [s, client], None, None, 10) == 10038
        for handle in (s, listener):
            spi.WSPCloseSocket(handle)


def test_the_catalogue(base: Entries) -> None:
    first = spi.WSCEnumProtocols()
    assert len({info.dwCatalogEntryId for info in first}) == len(first) >= 6
    with installed("tests.spi.parties:Plain", base.tcp) as top:
        assert top.ProtocolChain == (top.dwCatalogEntryId, base.tcp.dwCatalogEntryId)
        assert code_of(spi.WSCDeinstallProvider, base.tcp.dwCatalogEntryId) == 10022, "a chain stands on it"
        s = spi.WSPSocket(2, 1, 0)
        assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_PROTOCOL_INFOW) == base.tcp
        spi.WSPCloseSocket(s)
        spi.WSCWriteProviderOrder([top.dwCatalogEntryId])
        s = spi.WSPSocket(2, 1, 0)  # an unchanged program gets the chain
        assert spi.unreturned_handles() == ()
        assert spi.WSPGetSockOpt(s, SOL_SOCKET, SO_TYPE) == 1
        spi.WSPCloseSocket(s)
        assert code_of(spi.WSCWriteProviderOrder, [7]) == 10022
    assert spi.WSCEnumProtocols() == first
    for bad in ("tests.spi.parties:Nobody", "no.such.module:X", "tests.spi.parties:Entries", int, 7):
        assert code_of(spi.WSCInstallProvider, bad, base.tcp) == 10105, bad
    assert code_of(spi.WSCDeinstallProvider, 7) == 10022
    chain = base.tcp
    made = []
    for _ in range(6):
        chain = spi.WSCInstallProvider("tests.spi.parties:Plain", chain)
        made.append(chain)
    assert code_of(spi.WSCInstallProvider, "tests.spi.parties:Plain", chain) == 10022, "seven are a chain's most"
    for info in reversed(made):
        spi.WSCDeinstallProvider(info.dwCatalogEntryId)
