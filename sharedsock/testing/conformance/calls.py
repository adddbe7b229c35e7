"""What the kit's actors do: each of these runs in one of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from time import monotonic
from typing import Any, NamedTuple

from sharedsock import spi
from sharedsock.model.errors import wsa_name
from sharedsock.model.winsock import AF_INET, FIONBIO, FROM_PROTOCOL_INFO, SOCK_STREAM, WSA_FLAG_OVERLAPPED

__all__ = [
    "Answer",
    "begin",
    "begin_receive",
    "call",
    "close_timed",
    "completed",
    "counts",
    "fill",
    "listen",
    "open_connection",
    "receive",
    "take",
]


class Answer(NamedTuple):
    """What a call came to: a code, 0 for success, and its value."""

    code: int
    value: Any = None

    def __str__(self) -> str:
        return f"success, {self.value!r}" if not self.code else wsa_name(self.code)


class CountingUpcalls(spi.UpcallTable):
    """The DLL's upcalls, counting what becomes of each handle."""

    def __init__(self) -> None:
        self.created: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()

    def WPUCreateSocketHandle(self, dwCatalogEntryId: int, lpContext: Any) -> int:
        s = super().WPUCreateSocketHandle(dwCatalogEntryId, lpContext)
        self.created[s] += 1
        return s

    def WPUCloseSocketHandle(self, s: int) -> None:
        self.closed[s] += 1
        super().WPUCloseSocketHandle(s)


_upcalls = CountingUpcalls()
_completions: list[tuple[int, int]] = []
_pending: list[spi.WSAOVERLAPPED] = []


def begin() -> None:
    global _upcalls
    _upcalls = CountingUpcalls()
    spi.WSPStartup(0x0202, _upcalls)


def open_connection(entry: spi.WSAPROTOCOL_INFO, address: Any) -> int:
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, entry)
    spi.WSPConnect(s, address)
    return s


def listen(entry: spi.WSAPROTOCOL_INFO) -> tuple[int, Any]:
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, entry)
    spi.WSPBind(s, ("127.0.0.1", 0))
    spi.WSPListen(s, 8)
    return s, spi.WSPGetSockName(s)


def call(name: str, *arguments: Any) -> Answer:
    try:
        return Answer(0, getattr(spi, name)(*arguments))
    except spi.WSAError as error:
        return Answer(error.winerror)


def take(info: spi.WSAPROTOCOL_INFO) -> Answer:
    wildcard = (FROM_PROTOCOL_INFO,) * 3
    return call("WSPSocket", *wildcard, info, 0, WSA_FLAG_OVERLAPPED)


def receive(s: int, size: int = 64) -> Answer:
    buffer = bytearray(size)
    answer = call("WSPRecv", s, [buffer])
    return answer if answer.code else Answer(0, bytes(buffer[: answer.value[0]]))


def fill(s: int) -> int:
    """Send until there is no room, nonblocking from now on; return how many bytes."""
    spi.WSPIoctl(s, FIONBIO, 1)
    sent = 0
    with contextlib.suppress(spi.WSAError):
        while True:
            sent += spi.WSPSend(s, [bytes(1 << 16)])
    return sent


def counts(s: int) -> tuple[int, int, bool]:
    """Return how often a handle was made and given back by upcall, and whether the DLL still has it."""
    return _upcalls.created[s], _upcalls.closed[s], any(one.handle == s for one in spi.unreturned_handles())


def begin_receive(s: int) -> int:
    request = spi.WSAOVERLAPPED()
    _pending.append(request)
    _completions.clear()
    return call(
        "WSPRecv", s, [bytearray(8)], 0, request, lambda error, count, *_: _completions.append((error, count))
    ).code


def completed(quick_s: float) -> list[tuple[int, int]]:
    """Wait alertably for what comes, and a little longer for what should not."""
    spi.SleepEx(int(quick_s * 1000), True)
    spi.SleepEx(20, True)
    return list(_completions)


def close_timed(s: int) -> tuple[Answer, float]:
    """Close; return what it came to, and after how many seconds."""
    began_s = monotonic()
    return call("WSPCloseSocket", s), monotonic() - began_s
