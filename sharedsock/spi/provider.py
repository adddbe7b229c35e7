"""THE PROVIDER INTERFACE: a class with the calls of ws2spi.h. What a subclass leaves out is refused with 10045.

Out parameters are return values, and errors are `WSAError`. Addresses are the socket module's: ("127.0.0.1", 80).
Handles are what the upcalls have given: the provider of a handle is the only one that is called with it.

Source: WSPPROC_TABLE (ws2spi.h); the LPWSP* page of each call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from sharedsock.model.winsock import (
    WSAEFAULT,
    WSAEOPNOTSUPP,
    WSANOTINITIALISED,
    WSAVERNOTSUPPORTED,
)
from sharedsock.spi.errors import WSAError
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO, WSPDATA

if TYPE_CHECKING:
    from sharedsock.spi.overlapped import WSAOVERLAPPED, CompletionRoutine
    from sharedsock.spi.upcalls import UpcallTable
    from sharedsock.spi.waits import WSATHREADID

__all__ = [
    "CALLS_ON_A_SOCKET",
    "HIGHEST_VERSION",
    "LOWEST_VERSION",
    "WSANETWORKEVENTS",
    "Buffers",
    "Provider",
    "negotiated",
]

LOWEST_VERSION: Final = 0x0002
HIGHEST_VERSION: Final = 0x0202

CALLS_ON_A_SOCKET: Final = (
    "WSPAccept WSPAsyncSelect WSPBind WSPCloseSocket WSPConnect WSPDuplicateSocket WSPEnumNetworkEvents "
    "WSPEventSelect WSPGetOverlappedResult WSPGetPeerName WSPGetSockName WSPGetSockOpt WSPIoctl WSPJoinLeaf WSPListen "
    "WSPRecv WSPRecvDisconnect WSPRecvFrom WSPSend WSPSendDisconnect WSPSendTo WSPSetSockOpt WSPShutdown"
).split()
"""The calls whose first argument is a handle."""

Buffers = Sequence[Any]
"""An array of WSABUF: bytes-like objects, writable where something is received."""


class WSANETWORKEVENTS(NamedTuple):
    """What happened on a socket since the last look: FD_* bits, and the error of each."""

    lNetworkEvents: int
    iErrorCode: dict[int, int]


def _swapped(version: int) -> int:
    """Return MAKEWORD(major, minor) with the major version where it counts most."""
    return (version & 0xFF) << 8 | version >> 8 & 0xFF


def negotiated(wVersionRequested: int) -> int:
    """Return the version to be used: the one asked for, or the highest there is (STARTUP-5).

    Raises:
        WSAError: 10092, the version asked for is below the lowest there is.
    """
    if _swapped(wVersionRequested) < _swapped(LOWEST_VERSION):
        raise WSAError(WSAVERNOTSUPPORTED, f"version {wVersionRequested & 0xFF}.{wVersionRequested >> 8} is too old")
    return min(wVersionRequested, HIGHEST_VERSION, key=_swapped)


class Provider:
    """A transport service provider.

    Attributes:
        is_ifs: its handles are the operating system's; else it has them from WPUCreateSocketHandle.
        is_layered: it stands on another one, and is made with it and with its entry: `kind(lower, lower_info)`.
        upcalls: the table of the latest WSPStartup (STARTUP-6).
    """

    is_ifs: ClassVar[bool] = False
    is_layered: ClassVar[bool] = False

    upcalls: UpcallTable

    def __init__(self) -> None:
        self._startups = 0
        self._startup_lock = threading.Lock()

    # -- start and end ---------------------------------------------------------------------------------------

    def WSPStartup(
        self, wVersionRequested: int, lpProtocolInfo: WSAPROTOCOL_INFO, UpcallTable: UpcallTable | None
    ) -> WSPDATA:
        """Begin to use the provider; counted, so that as many WSPCleanup calls end it.

        Raises:
            WSAError: 10092, no such version; 10014, no upcalls; 10091, the provider cannot work. Nothing is counted.
        """
        version = negotiated(wVersionRequested)
        if UpcallTable is None:
            raise WSAError(WSAEFAULT, "no upcall table")
        with self._startup_lock:
            self.upcalls = UpcallTable
            if not self._startups:
                self.start(lpProtocolInfo)
            self._startups += 1
        return WSPDATA(version, HIGHEST_VERSION, f"sharedsock {type(self).__name__}")

    def WSPCleanup(self) -> None:
        """End one WSPStartup; the last one ends every socket of this process that is still open (CLEANUP-3).

        Raises:
            WSAError: 10093, there is none to end.
        """
        with self._startup_lock:
            if not self._startups:
                raise WSAError(WSANOTINITIALISED, "no WSPStartup is left to be ended")
            self._startups -= 1
            if not self._startups:
                self.stop()

    def start(self, lpProtocolInfo: WSAPROTOCOL_INFO) -> None:
        """Get ready; called by the first WSPStartup."""

    def stop(self) -> None:
        """End what is open; called by the last WSPCleanup."""

    def forget(self) -> None:
        """In a forked child, which owns nothing: as if never started."""
        self._startups = 0
        self._startup_lock = threading.Lock()

    def associate(self, s: int) -> None:
        """The handle is being associated with a completion port; 10022 where its socket is already (DUP-26)."""
        raise _refused("CreateIoCompletionPort")

    # -- opening and closing ---------------------------------------------------------------------------------

    def WSPSocket(
        self, af: int, type: int, protocol: int, lpProtocolInfo: WSAPROTOCOL_INFO, g: int = 0, dwFlags: int = 0
    ) -> int:
        """Create a socket, or with the info of a duplicate a new descriptor; return its handle."""
        raise _refused("WSPSocket")

    def WSPAccept(
        self, s: int, lpfnCondition: Callable[..., int] | None = None, dwCallbackData: Any = None
    ) -> tuple[int, Any]:
        """Accept one client; return its handle and its address."""
        raise _refused("WSPAccept")

    def WSPCloseSocket(self, s: int) -> None:
        """Close a descriptor."""
        raise _refused("WSPCloseSocket")

    def WSPDuplicateSocket(self, s: int, dwProcessId: int) -> WSAPROTOCOL_INFO:
        """Return the info from which a process, once, makes a descriptor of its own on this socket."""
        raise _refused("WSPDuplicateSocket")

    # -- connections -----------------------------------------------------------------------------------------

    def WSPBind(self, s: int, name: Any) -> None:
        """Bind to a local address."""
        raise _refused("WSPBind")

    def WSPListen(self, s: int, backlog: int) -> None:
        """Listen for clients."""
        raise _refused("WSPListen")

    def WSPConnect(self, s: int, name: Any, lpCallerData: Any = None) -> None:
        """Connect to an address."""
        raise _refused("WSPConnect")

    def WSPJoinLeaf(self, s: int, name: Any) -> int:
        """Join a multipoint session: refused, as by any provider without multipoint."""
        raise _refused("WSPJoinLeaf")

    def WSPShutdown(self, s: int, how: int) -> None:
        """Shut directions down, for every sharer."""
        raise _refused("WSPShutdown")

    def WSPSendDisconnect(self, s: int, lpOutboundDisconnectData: Any = None) -> None:
        """Begin to end the connection: no more is sent."""
        raise _refused("WSPSendDisconnect")

    def WSPRecvDisconnect(self, s: int, lpInboundDisconnectData: Any = None) -> None:
        """End receiving."""
        raise _refused("WSPRecvDisconnect")

    def WSPGetSockName(self, s: int) -> Any:
        """Return the local address."""
        raise _refused("WSPGetSockName")

    def WSPGetPeerName(self, s: int) -> Any:
        """Return the peer's address."""
        raise _refused("WSPGetPeerName")

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
        """Receive into buffers; return how many bytes, and flags."""
        raise _refused("WSPRecv")

    def WSPRecvFrom(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int, Any]:
        """Receive into buffers; return how many bytes, flags, and from where."""
        raise _refused("WSPRecvFrom")

    def WSPSend(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> int:
        """Send buffers; return how many bytes."""
        raise _refused("WSPSend")

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
        """Send one message to an address; return how many bytes."""
        raise _refused("WSPSendTo")

    def WSPGetOverlappedResult(self, s: int, lpOverlapped: WSAOVERLAPPED, fWait: bool = False) -> tuple[int, int]:
        """Return (bytes, flags) of a request that has ended."""
        raise _refused("WSPGetOverlappedResult")

    def WSPCancelBlockingCall(self) -> None:
        """Cancel this thread's blocking call."""
        raise _refused("WSPCancelBlockingCall")

    # -- waiting and events ----------------------------------------------------------------------------------

    def WSPSelect(
        self,
        readfds: Collection[int] | None,
        writefds: Collection[int] | None,
        exceptfds: Collection[int] | None,
        timeout: float | None = None,
    ) -> tuple[list[int], list[int], list[int]]:
        """Wait until something in one of three sets is ready; return the ready ones of each."""
        raise _refused("WSPSelect")

    def WSPEventSelect(self, s: int, hEventObject: int | None, lNetworkEvents: int) -> None:
        """Have an event object set when one of these events happens."""
        raise _refused("WSPEventSelect")

    def WSPEnumNetworkEvents(self, s: int, hEventObject: int | None = None) -> WSANETWORKEVENTS:
        """Return and clear the record of events, and reset the event object."""
        raise _refused("WSPEnumNetworkEvents")

    def WSPAsyncSelect(self, s: int, hWnd: int, wMsg: int, lEvent: int) -> None:
        """Have window messages posted: refused, there are no windows."""
        raise _refused("WSPAsyncSelect")

    # -- options and addresses -------------------------------------------------------------------------------

    def WSPGetSockOpt(self, s: int, level: int, optname: int) -> Any:
        """Return an option."""
        raise _refused("WSPGetSockOpt")

    def WSPSetSockOpt(self, s: int, level: int, optname: int, optval: Any) -> None:
        """Set an option, for every sharer."""
        raise _refused("WSPSetSockOpt")

    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: Any = None,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> Any:
        """Carry out a control code; return what it reports."""
        raise _refused("WSPIoctl")

    def WSPStringToAddress(
        self, AddressString: str, AddressFamily: int, lpProtocolInfo: WSAPROTOCOL_INFO | None = None
    ) -> Any:
        """Return the address a numeric text stands for."""
        raise _refused("WSPStringToAddress")

    def WSPAddressToString(self, lpsaAddress: Any, lpProtocolInfo: WSAPROTOCOL_INFO | None = None) -> str:
        """Return an address as numeric text."""
        raise _refused("WSPAddressToString")

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__}>"


def _refused(call: str) -> WSAError:
    return WSAError(WSAEOPNOTSUPP, f"{call}: this provider does not have it")
