"""Providers that break one promise each, as real ones have: what the conformance kit must find."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from sharedsock import spi
from sharedsock.descriptors import sharing
from sharedsock.model.winsock import (
    FIONBIO,
    SD_BOTH,
    SO_DONTLINGER,
    SO_LINGER,
    SOL_SOCKET,
    WSA_IO_PENDING,
    WSAEINTR,
    WSAENOTSOCK,
    WSAEWOULDBLOCK,
)
from sharedsock.spi import LINGER, Layer, LayeredProvider, Relay, WSAError, handles
from sharedsock.spi.protocol_info import unseal


class ForgetsToGiveBack(LayeredProvider):
    """Never calls WPUCloseSocketHandle."""

    def give_back(self, layer: Layer) -> None:
        self._layers.pop(layer.handle, None)


class GivesBackTwice(LayeredProvider):
    """Calls WPUCloseSocketHandle twice."""

    def give_back(self, layer: Layer) -> None:
        super().give_back(layer)
        with suppress(WSAError):
            self.upcalls.WPUCloseSocketHandle(layer.handle)


class GivesBackTheLastOnly(LayeredProvider):
    """Takes WPUCloseSocketHandle for a matter of the socket, not of the descriptor."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._duplicated: set[int] = set()

    def WSPDuplicateSocket(self, s: int, dwProcessId: int) -> spi.WSAPROTOCOL_INFO:
        self._duplicated.add(s)
        return super().WSPDuplicateSocket(s, dwProcessId)

    def give_back(self, layer: Layer) -> None:
        if layer.handle in self._duplicated:
            self._layers.pop(layer.handle, None)
        else:
            super().give_back(layer)


class GivesBackOnARefusal(LayeredProvider):
    """Calls WPUCloseSocketHandle before it knows that it must refuse."""

    def WSPCloseSocket(self, s: int) -> None:
        layer = self.layer(s)
        self.give_back(layer)
        self.lower.WSPCloseSocket(layer.lower)


class NeverRefuses(LayeredProvider):
    """Turns lingering off where it would have to refuse."""

    def WSPCloseSocket(self, s: int) -> None:
        try:
            super().WSPCloseSocket(s)
        except WSAError as error:
            if error.winerror != WSAEWOULDBLOCK:
                raise
            self.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, True)
            super().WSPCloseSocket(s)


class DecrementsBeforeItRefuses(LayeredProvider):
    """Gives its reference back, and refuses then."""

    def WSPCloseSocket(self, s: int) -> None:
        layer = self.layer(s)
        try:
            self.lower.WSPCloseSocket(layer.lower)
        except WSAError:
            self.lower.WSPSetSockOpt(layer.lower, SOL_SOCKET, SO_DONTLINGER, True)
            self.lower.WSPCloseSocket(layer.lower)
            raise
        self.give_back(layer)


class CountsAtTheClaim(LayeredProvider):
    """Counts a duplicate when it is claimed: until then its source's close ends it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._unclaimed: dict[int, list[bytes]] = {}

    def WSPDuplicateSocket(self, s: int, dwProcessId: int) -> spi.WSAPROTOCOL_INFO:
        info = super().WSPDuplicateSocket(s, dwProcessId)
        self._unclaimed.setdefault(s, []).append(unseal(info).ticket)
        return info

    def WSPCloseSocket(self, s: int) -> None:
        for ticket in self._unclaimed.pop(s, []):
            sharing.revoke(ticket)
        super().WSPCloseSocket(s)


class AbortsTheOtherProcess(LayeredProvider):
    """Wakes its own waiters by a shutdown, which every sharer feels."""

    def WSPCloseSocket(self, s: int) -> None:
        with suppress(WSAError):
            self.WSPShutdown(s, SD_BOTH)
        super().WSPCloseSocket(s)


class DropsQueuedData(LayeredProvider):
    """Closes hard."""

    def WSPCloseSocket(self, s: int) -> None:
        with suppress(WSAError):
            if self.WSPGetSockOpt(s, SOL_SOCKET, SO_DONTLINGER):
                self.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, LINGER(1, 0))
        super().WSPCloseSocket(s)


class ChangesTheLinger(LayeredProvider):
    """Closes with another linger time than the one that was set."""

    instead: LINGER

    def WSPCloseSocket(self, s: int) -> None:
        if tuple(self.WSPGetSockOpt(s, SOL_SOCKET, SO_LINGER)) > (1, 0):
            self.WSPSetSockOpt(s, SOL_SOCKET, SO_LINGER, self.instead)
        super().WSPCloseSocket(s)


class LingersForEver(ChangesTheLinger):
    """Waits until everything is acknowledged, however long that takes: it ignores the expiry."""

    instead = LINGER(1, 600)


class ClosesInTheBackground(ChangesTheLinger):
    """Does not wait at all."""

    instead = LINGER(0, 0)


class DeliversAfterTheExpiry(LayeredProvider):
    """Waits as long as it should, and then leaves the rest to the kernel, as POSIX does: no hard close."""

    def WSPCloseSocket(self, s: int) -> None:
        is_on, seconds = self.WSPGetSockOpt(s, SOL_SOCKET, SO_LINGER)
        if is_on and seconds:
            self.WSPSetSockOpt(s, SOL_SOCKET, SO_DONTLINGER, True)
            threading.Event().wait(min(seconds, 1))
        super().WSPCloseSocket(s)


class KeepsAReference(LayeredProvider):
    """Closes its handle, and not the socket below."""

    def WSPCloseSocket(self, s: int) -> None:
        self.give_back(self.layer(s))


class LeavesAWaiterBlocked(LayeredProvider):
    """Tries again when its own close has ended a receive."""

    def WSPRecv(self, s: int, lpBuffers: Any, *more: Any) -> tuple[int, int]:
        try:
            return super().WSPRecv(s, lpBuffers, *more)
        except WSAError as error:
            if error.winerror == WSAEINTR:
                threading.Event().wait()
            raise


class EndsWaitersWithAnotherCode(LayeredProvider):
    """Says "no socket" where it should say "interrupted"."""

    def WSPRecv(self, s: int, lpBuffers: Any, *more: Any) -> tuple[int, int]:
        try:
            return super().WSPRecv(s, lpBuffers, *more)
        except WSAError as error:
            raise WSAError(WSAENOTSOCK if error.winerror == WSAEINTR else error.winerror) from error


class AnswersAfterTheClose(ForgetsToGiveBack):
    """Goes on sending into nothing."""

    def WSPSend(self, s: int, lpBuffers: Any, *more: Any) -> int:
        try:
            return super().WSPSend(s, lpBuffers, *more)
        except WSAError as error:
            if error.winerror == WSAENOTSOCK:
                return sum(len(buffer) for buffer in lpBuffers)
            raise


class ReusesNumbers(LayeredProvider):
    """Gives the lowest free number out, as an operating system does."""

    def add_layer(self, lower: int, info: spi.WSAPROTOCOL_INFO) -> Layer:
        layer = super().add_layer(lower, info)
        self._layers.pop(layer.handle)
        entry = handles.discard(layer.handle)
        number = next(number for number in range(1_000_000, 2_000_000) if number not in handles.routes)
        layer.handle = handles.add(number, entry.provider, entry.entry, layer, is_ifs=False)
        self._layers[number] = layer
        return layer


class ReadsAhead(LayeredProvider):
    """Takes all there is, and keeps for its own process what was not asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ahead: dict[int, bytes] = {}

    def WSPRecv(self, s: int, lpBuffers: Any, *more: Any) -> tuple[int, int]:
        if any(more) or not self.layer(s):
            return super().WSPRecv(s, lpBuffers, *more)
        data = self._ahead.pop(s, b"")
        if not data:
            whole = bytearray(4096)
            count, _ = super().WSPRecv(s, [whole])
            data = bytes(whole[:count])
        size = min(len(data), len(lpBuffers[0]))
        lpBuffers[0][:size] = data[:size]
        self._ahead[s] = data[size:]
        return size, 0


class KeepsTheModeToItself(LayeredProvider):
    """Knows of a nonblocking socket in its own process only."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._nonblocking: set[int] = set()

    def WSPIoctl(self, s: int, dwIoControlCode: int, lpvInBuffer: Any = None, *request: Any) -> Any:
        if dwIoControlCode != FIONBIO:
            return super().WSPIoctl(s, dwIoControlCode, lpvInBuffer, *request)
        self.layer(s)
        (self._nonblocking.add if lpvInBuffer else self._nonblocking.discard)(s)
        return None

    def _in_its_mode(self, s: int, call: Any, *arguments: Any) -> Any:
        if s not in self._nonblocking:
            return call(s, *arguments)
        super().WSPIoctl(s, FIONBIO, 1)
        try:
            return call(s, *arguments)
        finally:
            with suppress(WSAError):
                super().WSPIoctl(s, FIONBIO, 0)

    def WSPSend(self, s: int, lpBuffers: Any, *more: Any) -> int:
        sent: int = self._in_its_mode(s, super().WSPSend, lpBuffers, *more)
        return sent

    def WSPRecv(self, s: int, lpBuffers: Any, *more: Any) -> tuple[int, int]:
        received: tuple[int, int] = self._in_its_mode(s, super().WSPRecv, lpBuffers, *more)
        return received

    def WSPCloseSocket(self, s: int) -> None:
        self._in_its_mode(s, super().WSPCloseSocket)


class CompletesTwice(LayeredProvider):
    """Tells of each completion twice."""

    def pass_down(self, s: int, call: Any, lpOverlapped: Any, routine: Any, thread: Any) -> Any:
        def twice(error: int, count: int, request: Any, flags: int) -> None:
            for _ in range(2):
                routine(error, count, request, flags)

        return super().pass_down(s, call, lpOverlapped, routine and twice, thread)


class NeverTellsOfAnAbort(LayeredProvider):
    """Drops a request that its close has ended."""

    def pass_down(self, s: int, call: Any, lpOverlapped: Any, routine: Any, thread: Any) -> Any:
        def unless_aborted(relay: Any) -> Any:
            tell = relay.on_completion
            return call(Relay(lambda error, *facts: None if error == 995 else tell(error, *facts)))

        return super().pass_down(s, unless_aborted, lpOverlapped, routine, thread)


class CompletesAtOnce(LayeredProvider):
    """Says of a request that it is pending, and that it has completed with nothing."""

    def pass_down(self, s: int, call: Any, lpOverlapped: Any, routine: Any, thread: Any) -> Any:
        try:
            return super().pass_down(s, call, lpOverlapped, None, None)
        except WSAError as error:
            if error.winerror == WSA_IO_PENDING and routine is not None:
                self.upcalls.WPUQueueApc(thread, lambda request: routine(0, 0, request, 0), lpOverlapped)
            raise


class InfoForEver(LayeredProvider):
    """Keeps a descriptor for each info, and makes another one of it whenever it comes again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known: dict[bytes, int] = {}

    def WSPSocket(self, af: int, type: int, protocol: int, lpProtocolInfo: Any, g: int = 0, dwFlags: int = 0) -> int:
        import os

        reserved = lpProtocolInfo.dwProviderReserved
        if reserved in self._known:
            lpProtocolInfo = super().WSPDuplicateSocket(self._known[reserved], os.getpid())
        s = super().WSPSocket(af, type, protocol, lpProtocolInfo, g, dwFlags)
        if reserved:
            self._known.setdefault(reserved, s)
        return s


class ForgetsItsSocketsAtCleanup(LayeredProvider):
    """Leaves open at the last cleanup what is open."""

    def stop(self) -> None:
        for layer in tuple(self._layers.values()):
            self.give_back(layer)
