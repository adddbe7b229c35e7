"""THE LAYERED PROVIDER: a non-IFS provider on top of another one, on which a real one is a page long.

Each socket is a handle of the DLL's own with a `Layer` as its context: the lower provider's handle, and whatever the
subclass keeps there. Every call is handed down; a subclass overrides what it is interested in, and calls `super()`.

    class Shouting(LayeredProvider):
        def WSPSend(self, s, lpBuffers, *more):
            return super().WSPSend(s, [bytes(buffer).upper() for buffer in lpBuffers], *more)

The order of a close is the lower provider's first: it refuses, or marks and aborts; then the handle is given back,
exactly once, last or not (NONIFS-9 … -11).

Source: "Layered Service Providers and Protocol Chains", "Descriptor Allocation"; LPWSPDUPLICATESOCKET, Remarks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sharedsock.model.winsock import INVALID_SOCKET, WSA_IO_PENDING, WSAEINVAL, WSAENOTSOCK, WSAEWOULDBLOCK
from sharedsock.spi.errors import WSAError
from sharedsock.spi.overlapped import Relay, abandon, begin, complete, result
from sharedsock.spi.provider import Provider

if TYPE_CHECKING:
    from sharedsock.spi.overlapped import WSAOVERLAPPED, CompletionRoutine
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import WSANETWORKEVENTS, Buffers
    from sharedsock.spi.waits import WSATHREADID

__all__ = ["Layer", "LayeredProvider"]

T = TypeVar("T")


class Layer:
    """The context of one handle.

    Attributes:
        handle: what the client has.
        lower: the handle of the provider below.
        info: the entry it was made with.
    """

    def __init__(self, provider: LayeredProvider, lower: int, info: WSAPROTOCOL_INFO) -> None:
        self.provider = provider
        self.handle = INVALID_SOCKET
        self.lower = lower
        self.info = info


class LayeredProvider(Provider):
    """A provider that stands on another one.

    Args:
        lower: the provider below; `lower_info` is its entry. A subclass adds parameters of its own, plain values.

    Attributes:
        context_class: the class of the contexts; a subclass that keeps more per socket names one of its own.
    """

    is_layered: ClassVar[bool] = True
    context_class: ClassVar[type[Layer]] = Layer

    def __init__(self, lower: Provider, lower_info: WSAPROTOCOL_INFO) -> None:
        super().__init__()
        self.lower = lower
        self.lower_info = lower_info
        self._layers: dict[int, Layer] = {}

    def layer(self, s: int) -> Layer:
        """Return the context of one of this provider's handles.

        Raises:
            WSAError: 10038, closed, another provider's, or none.
        """
        found = self.upcalls.WPUQuerySocketHandleContext(s)
        # A handle that was not given back goes on routing calls to us: the table of what is open decides (NONIFS-8).
        if not isinstance(found, Layer) or found.provider is not self or found.handle not in self._layers:
            raise WSAError(WSAENOTSOCK, f"{s!r} is no open handle of {type(self).__name__}")
        return found

    def lower_of(self, s: int) -> int:
        """Return the lower provider's handle for one of ours."""
        return self.layer(s).lower

    # -- start and end ---------------------------------------------------------------------------------------

    def start(self, lpProtocolInfo: WSAPROTOCOL_INFO) -> None:
        self.lower.WSPStartup(0x0202, self.lower_info, self.upcalls)

    def stop(self) -> None:
        """End: the handles are given back; the lower provider ends the sockets below them."""
        for layer in tuple(self._layers.values()):
            with suppress(WSAError):  # somebody has given it back for us
                self.give_back(layer)
        self.lower.WSPCleanup()

    def forget(self) -> None:
        super().forget()
        self._layers.clear()

    def associate(self, s: int) -> None:
        self.lower.associate(self.lower_of(s))

    # -- opening and closing ---------------------------------------------------------------------------------

    def add_layer(self, lower: int, info: WSAPROTOCOL_INFO) -> Layer:
        """Make a handle on a socket of the lower provider; where none is to be had, that one is closed."""
        layer = self.context_class(self, lower, info)
        try:
            layer.handle = self.upcalls.WPUCreateSocketHandle(info.dwCatalogEntryId, layer)
        except BaseException:
            with suppress(WSAError):
                self.lower.WSPCloseSocket(lower)
            raise
        self._layers[layer.handle] = layer
        return layer

    def give_back(self, layer: Layer) -> None:
        """Give the handle of a closed socket back to the DLL, once; of two closers the first does it."""
        if self._layers.pop(layer.handle, None) is not None:
            self.upcalls.WPUCloseSocketHandle(layer.handle)

    def WSPSocket(
        self, af: int, type: int, protocol: int, lpProtocolInfo: WSAPROTOCOL_INFO, g: int = 0, dwFlags: int = 0
    ) -> int:
        # Another layer below gets the chain's info as it is, the base provider its own (DUP-22).
        if self.lower.is_layered:
            below = lpProtocolInfo
        else:
            below = replace(self.lower_info, dwProviderReserved=lpProtocolInfo.dwProviderReserved)
        lower = self.lower.WSPSocket(af, type, protocol, below, g, dwFlags)
        return self.add_layer(lower, replace(lpProtocolInfo, dwProviderReserved=b"")).handle

    def WSPAccept(
        self, s: int, lpfnCondition: Callable[..., int] | None = None, dwCallbackData: Any = None
    ) -> tuple[int, Any]:
        layer = self.layer(s)
        lower, address = self.lower.WSPAccept(layer.lower, lpfnCondition, dwCallbackData)
        return self.add_layer(lower, layer.info).handle, address

    def WSPCloseSocket(self, s: int) -> None:
        layer = self.layer(s)
        try:
            self.lower.WSPCloseSocket(layer.lower)
        except WSAError as error:
            if error.winerror != WSAEWOULDBLOCK:  # a refusal has changed nothing (NONIFS-11)
                self.give_back(layer)
            raise
        self.give_back(layer)

    def WSPDuplicateSocket(self, s: int, dwProcessId: int) -> WSAPROTOCOL_INFO:
        layer = self.layer(s)
        below = self.lower.WSPDuplicateSocket(layer.lower, dwProcessId)
        return replace(layer.info, dwProviderReserved=below.dwProviderReserved)

    # -- connections -----------------------------------------------------------------------------------------

    def WSPBind(self, s: int, name: Any) -> None:
        self.lower.WSPBind(self.lower_of(s), name)

    def WSPListen(self, s: int, backlog: int) -> None:
        self.lower.WSPListen(self.lower_of(s), backlog)

    def WSPConnect(self, s: int, name: Any, lpCallerData: Any = None) -> None:
        self.lower.WSPConnect(self.lower_of(s), name, lpCallerData)

    def WSPJoinLeaf(self, s: int, name: Any) -> int:
        layer = self.layer(s)
        return self.add_layer(self.lower.WSPJoinLeaf(layer.lower, name), layer.info).handle

    def WSPShutdown(self, s: int, how: int) -> None:
        self.lower.WSPShutdown(self.lower_of(s), how)

    def WSPSendDisconnect(self, s: int, lpOutboundDisconnectData: Any = None) -> None:
        self.lower.WSPSendDisconnect(self.lower_of(s), lpOutboundDisconnectData)

    def WSPRecvDisconnect(self, s: int, lpInboundDisconnectData: Any = None) -> None:
        self.lower.WSPRecvDisconnect(self.lower_of(s), lpInboundDisconnectData)

    def WSPGetSockName(self, s: int) -> Any:
        return self.lower.WSPGetSockName(self.lower_of(s))

    def WSPGetPeerName(self, s: int) -> Any:
        return self.lower.WSPGetPeerName(self.lower_of(s))

    # -- data ------------------------------------------------------------------------------------------------

    def WSPRecv(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int]:
        lower = self.lower_of(s)
        if lpOverlapped is None:
            return self.lower.WSPRecv(lower, lpBuffers, dwFlags)
        call = partial(self.lower.WSPRecv, lower, lpBuffers, dwFlags)
        return self.pass_down(s, call, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def WSPRecvFrom(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int, Any]:
        lower = self.lower_of(s)
        if lpOverlapped is None:
            return self.lower.WSPRecvFrom(lower, lpBuffers, dwFlags)
        call = partial(self.lower.WSPRecvFrom, lower, lpBuffers, dwFlags)
        return self.pass_down(s, call, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def WSPSend(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> int:
        lower = self.lower_of(s)
        if lpOverlapped is None:
            return self.lower.WSPSend(lower, lpBuffers, dwFlags)
        call = partial(self.lower.WSPSend, lower, lpBuffers, dwFlags)
        return self.pass_down(s, call, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def WSPSendTo(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpTo: Any = None,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> int:
        lower = self.lower_of(s)
        if lpOverlapped is None:
            return self.lower.WSPSendTo(lower, lpBuffers, dwFlags, lpTo)
        call = partial(self.lower.WSPSendTo, lower, lpBuffers, dwFlags, lpTo)
        return self.pass_down(s, call, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def pass_down(
        self,
        s: int,
        call: Callable[[WSAOVERLAPPED], T],
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: CompletionRoutine | None,
        lpThreadId: WSATHREADID | None,
    ) -> T:
        """Pass a request down, and complete the client's when the one below completes.

        The request below has a structure of this layer's: its completion is heard here, and the client gets the
        indication it chose on the handle it knows (NONIFS-12).
        """
        begin(s, lpOverlapped, lpCompletionRoutine)

        def on_completion(error: int, count: int, flags: int, is_silent: bool) -> None:
            lpOverlapped.lpFrom = below.lpFrom
            if lpCompletionRoutine is not None or is_silent:
                complete(lpOverlapped, error, count, flags, lpCompletionRoutine, lpThreadId, is_silent=is_silent)
            else:
                self.upcalls.WPUCompleteOverlappedRequest(s, lpOverlapped, error, count, flags)

        below = Relay(on_completion)
        try:
            return call(below)
        except WSAError as error:
            if error.winerror != WSA_IO_PENDING:
                abandon(lpOverlapped, error.winerror)
            raise
        except BaseException:
            abandon(lpOverlapped, WSAEINVAL)
            raise

    def WSPGetOverlappedResult(self, s: int, lpOverlapped: WSAOVERLAPPED, fWait: bool = False) -> tuple[int, int]:
        self.layer(s)
        return result(s, lpOverlapped, fWait)

    def WSPCancelBlockingCall(self) -> None:
        self.lower.WSPCancelBlockingCall()

    # -- waiting and events ----------------------------------------------------------------------------------

    def WSPSelect(
        self,
        readfds: Collection[int] | None,
        writefds: Collection[int] | None,
        exceptfds: Collection[int] | None,
        timeout: float | None = None,
    ) -> tuple[list[int], list[int], list[int]]:
        ours = {s: self.lower_of(s) for fds in (readfds, writefds, exceptfds) for s in fds or ()}
        read, write, exceptional = ([ours[s] for s in fds or ()] for fds in (readfds, writefds, exceptfds))
        ready = self.lower.WSPSelect(read, write, exceptional, timeout)
        back = {lower: s for s, lower in ours.items()}
        read, write, exceptional = ([back[lower] for lower in found] for found in ready)
        return read, write, exceptional

    def WSPEventSelect(self, s: int, hEventObject: int | None, lNetworkEvents: int) -> None:
        self.lower.WSPEventSelect(self.lower_of(s), hEventObject, lNetworkEvents)

    def WSPEnumNetworkEvents(self, s: int, hEventObject: int | None = None) -> WSANETWORKEVENTS:
        return self.lower.WSPEnumNetworkEvents(self.lower_of(s), hEventObject)

    def WSPAsyncSelect(self, s: int, hWnd: int, wMsg: int, lEvent: int) -> None:
        self.lower.WSPAsyncSelect(self.lower_of(s), hWnd, wMsg, lEvent)

    # -- options and addresses -------------------------------------------------------------------------------

    def WSPGetSockOpt(self, s: int, level: int, optname: int) -> Any:
        return self.lower.WSPGetSockOpt(self.lower_of(s), level, optname)

    def WSPSetSockOpt(self, s: int, level: int, optname: int, optval: Any) -> None:
        self.lower.WSPSetSockOpt(self.lower_of(s), level, optname, optval)

    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: Any = None,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> Any:
        lower = self.lower_of(s)
        if lpOverlapped is None:
            return self.lower.WSPIoctl(lower, dwIoControlCode, lpvInBuffer)
        call = partial(self.lower.WSPIoctl, lower, dwIoControlCode, lpvInBuffer)
        return self.pass_down(s, call, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def WSPStringToAddress(
        self, AddressString: str, AddressFamily: int, lpProtocolInfo: WSAPROTOCOL_INFO | None = None
    ) -> Any:
        return self.lower.WSPStringToAddress(AddressString, AddressFamily, self.lower_info)

    def WSPAddressToString(self, lpsaAddress: Any, lpProtocolInfo: WSAPROTOCOL_INFO | None = None) -> str:
        return self.lower.WSPAddressToString(lpsaAddress, self.lower_info)
