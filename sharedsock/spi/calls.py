"""THE ENTRY POINTS: WSP* as a client calls them. A handle is routed to its provider; nothing else happens here.

A call inside an accept condition function is refused (10036), one on what is no handle as well (10038), and one
without a successful WSPStartup (10093). The rest is the provider's.

Source: "Function Interface Model in the SPI"; the LPWSP* page of each call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedsock.model.winsock import (
    FROM_PROTOCOL_INFO,
    WSA_FLAG_OVERLAPPED,
    WSAEFAULT,
    WSAEINVAL,
)
from sharedsock.spi import callbacks, catalog, handles, overlapped, waits
from sharedsock.spi.errors import WSAError
from sharedsock.spi.overlapped import WSAOVERLAPPED
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
from sharedsock.spi.startup import require_provider

if TYPE_CHECKING:
    from sharedsock.spi.overlapped import CompletionRoutine
    from sharedsock.spi.provider import WSANETWORKEVENTS, Buffers, Provider
    from sharedsock.spi.waits import WSATHREADID

__all__ = [
    "WSPAccept",
    "WSPAddressToString",
    "WSPAsyncSelect",
    "WSPBind",
    "WSPCancelBlockingCall",
    "WSPCloseSocket",
    "WSPConnect",
    "WSPDuplicateSocket",
    "WSPEnumNetworkEvents",
    "WSPEventSelect",
    "WSPGetOverlappedResult",
    "WSPGetPeerName",
    "WSPGetSockName",
    "WSPGetSockOpt",
    "WSPIoctl",
    "WSPJoinLeaf",
    "WSPListen",
    "WSPRecv",
    "WSPRecvDisconnect",
    "WSPRecvFrom",
    "WSPSelect",
    "WSPSend",
    "WSPSendDisconnect",
    "WSPSendTo",
    "WSPSetSockOpt",
    "WSPShutdown",
    "WSPSocket",
    "WSPStringToAddress",
]

_routes = handles.routes


def _route(s: int) -> Provider:
    """Return the provider of a handle."""
    if callbacks.active:
        callbacks.refuse_nested()
    try:
        return _routes[s].provider
    except handles.NO_HANDLE:
        raise handles.refusal(s) from None


def _checked_info(lpProtocolInfo: object) -> WSAPROTOCOL_INFO:
    if not isinstance(lpProtocolInfo, WSAPROTOCOL_INFO):
        raise WSAError(WSAEFAULT, f"{lpProtocolInfo!r} is no WSAPROTOCOL_INFO")
    return lpProtocolInfo


# -- opening and closing ------------------------------------------------------------------------------------------


def WSPSocket(
    af: int,
    type: int,
    protocol: int,
    lpProtocolInfo: WSAPROTOCOL_INFO | None = None,
    g: int = 0,
    dwFlags: int = WSA_FLAG_OVERLAPPED,
) -> int:
    """Create a socket, or a descriptor of this process on a socket that another has duplicated; return its handle.

    Args:
        af, type, protocol: Winsock's numbers; 0 is any, FROM_PROTOCOL_INFO (-1) takes the info's.
        lpProtocolInfo: a catalogue entry, or what WSPDuplicateSocket returned; None: the first entry that fits.
        g: socket groups, which there are none of: 0.
        dwFlags: WSA_FLAG_OVERLAPPED or 0; for a duplicate the same as its source's (DUP-20).

    Raises:
        WSAError: 10047, 10044, 10043, no provider; 10022, an info that is used up, damaged or another process's, and
            nothing is used up by that; 10024, no number is free; 10055.

    Source: LPWSPSOCKET.
    """
    if callbacks.active:
        callbacks.refuse_nested()
    if g or not hasattr(dwFlags, "__index__") or dwFlags & ~WSA_FLAG_OVERLAPPED:
        raise WSAError(WSAEINVAL, "no socket groups, and no flag but WSA_FLAG_OVERLAPPED")
    if lpProtocolInfo is None:
        if FROM_PROTOCOL_INFO in (af, type, protocol):
            raise WSAError(WSAEINVAL, "FROM_PROTOCOL_INFO without a protocol info")
        info = catalog.find_entry(af, type, protocol)
    else:
        known = catalog.entry_for_info(_checked_info(lpProtocolInfo))
        for given, own in ((af, known.iAddressFamily), (type, known.iSocketType), (protocol, known.iProtocol)):
            if given not in (0, FROM_PROTOCOL_INFO, own):
                raise WSAError(WSAEINVAL, "the protocol info is of another family, type or protocol")
        info = replace(known, dwProviderReserved=lpProtocolInfo.dwProviderReserved)
    provider = require_provider(info)
    return provider.WSPSocket(info.iAddressFamily, info.iSocketType, info.iProtocol, info, g, dwFlags)


def WSPAccept(s: int, lpfnCondition: Callable[..., int] | None = None, dwCallbackData: Any = None) -> tuple[int, Any]:
    """Accept one client; return (its handle, its address). The listener stays open.

    Args:
        lpfnCondition: asked for each client, condition(lpCallerId, lpCalleeId, dwCallbackData): CF_ACCEPT, CF_REJECT
            or CF_DEFER. While it runs, calls of this thread are refused (10036).

    Raises:
        WSAError: 10061, it was rejected; 11002, deferred, the client waits for the next accept of this process; 10035;
            10004, this process closed the listener, and no client was taken; 10022, not listening.

    Source: LPWSPACCEPT.
    """
    return _route(s).WSPAccept(s, lpfnCondition, dwCallbackData)


def WSPCloseSocket(s: int) -> None:
    """Close a descriptor: this process's calls on it end, later ones fail; the last one of all ends the socket.

    Raises:
        WSAError: 10035, refused: nonblocking, LINGER(t > 0), and bytes unsent at the last close; nothing has changed.
            10038, no socket; 10036, inside a callback; 10004, cancelled while it lingered.

    Source: LPWSPCLOSESOCKET; "Closing Sockets".
    """
    provider = _route(s)
    handle = handles.require(s)
    provider.WSPCloseSocket(s)
    handles.note_closed(handle)


def WSPDuplicateSocket(s: int, dwProcessId: int) -> WSAPROTOCOL_INFO:
    """Return the info from which process `dwProcessId`, once, makes a descriptor on this socket with WSPSocket.

    It is a reference from now on: this descriptor may be closed before the other is made (DUP-12).

    Raises:
        WSAError: 10022, no such process; 10038; 10050, no registry.

    Source: LPWSPDUPLICATESOCKET.
    """
    return _route(s).WSPDuplicateSocket(s, dwProcessId)


# -- connections --------------------------------------------------------------------------------------------------


def WSPBind(s: int, name: Any) -> None:
    """Bind to a local address. Source: LPWSPBIND."""
    _route(s).WSPBind(s, name)


def WSPListen(s: int, backlog: int) -> None:
    """Listen for clients. Source: LPWSPLISTEN."""
    _route(s).WSPListen(s, backlog)


def WSPConnect(s: int, name: Any, lpCallerData: Any = None) -> None:
    """Connect to an address, waiting for the outcome unless nonblocking (10035 then). Source: LPWSPCONNECT."""
    _route(s).WSPConnect(s, name, lpCallerData)


def WSPJoinLeaf(s: int, name: Any) -> int:
    """Join a multipoint session: refused with 10045, as by any provider without multipoint. Source: LPWSPJOINLEAF."""
    return _route(s).WSPJoinLeaf(s, name)


def WSPShutdown(s: int, how: int) -> None:
    """Shut directions down, SD_RECEIVE, SD_SEND or SD_BOTH; felt by every sharer. Source: LPWSPSHUTDOWN."""
    _route(s).WSPShutdown(s, how)


def WSPSendDisconnect(s: int, lpOutboundDisconnectData: Any = None) -> None:
    """Begin to end the connection: nothing more is sent, for every sharer. Source: LPWSPSENDDISCONNECT."""
    _route(s).WSPSendDisconnect(s, lpOutboundDisconnectData)


def WSPRecvDisconnect(s: int, lpInboundDisconnectData: Any = None) -> None:
    """End receiving, for every sharer, without a reset. Source: LPWSPRECVDISCONNECT."""
    _route(s).WSPRecvDisconnect(s, lpInboundDisconnectData)


def WSPGetSockName(s: int) -> Any:
    """Return the local address; 10022 where it has none yet. Source: LPWSPGETSOCKNAME."""
    return _route(s).WSPGetSockName(s)


def WSPGetPeerName(s: int) -> Any:
    """Return the peer's address. Source: LPWSPGETPEERNAME."""
    return _route(s).WSPGetPeerName(s)


# -- data ---------------------------------------------------------------------------------------------------------


def WSPRecv(
    s: int,
    lpBuffers: Buffers,
    dwFlags: int = 0,
    lpOverlapped: WSAOVERLAPPED | None = None,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
) -> tuple[int, int]:
    """Receive into buffers; return (bytes, flags). 0 bytes on a stream are the peer's graceful end.

    Args:
        lpBuffers: writable buffers, filled in order.
        dwFlags: MSG_PEEK, MSG_OOB; MSG_WAITALL alone, on a stream, which a nonblocking call may not (10045).
        lpOverlapped: begin, and report by its event, the routine or the port; None: wait as the socket's mode says.

    Raises:
        WSAError: 997, begun and not done yet; 10035; 10004, this process closed the descriptor; 10058; 10054; 10014.

    Source: LPWSPRECV.
    """
    if callbacks.active:
        callbacks.refuse_nested()
    try:
        provider = _routes[s].provider
    except handles.NO_HANDLE:
        raise handles.refusal(s) from None
    if lpOverlapped is None:
        return provider.WSPRecv(s, lpBuffers, dwFlags)
    thread = lpThreadId or _thread_for(lpCompletionRoutine)
    return provider.WSPRecv(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, thread)


def WSPRecvFrom(
    s: int,
    lpBuffers: Buffers,
    dwFlags: int = 0,
    lpOverlapped: WSAOVERLAPPED | None = None,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
) -> tuple[int, int, Any]:
    """Receive one message; return (bytes, flags, sender's address). As WSPRecv.

    Of a request that is pending, the address is in `lpOverlapped.lpFrom` once it has ended.

    Source: LPWSPRECVFROM.
    """
    thread = lpThreadId or _thread_for(lpCompletionRoutine)
    return _route(s).WSPRecvFrom(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, thread)


def WSPSend(
    s: int,
    lpBuffers: Buffers,
    dwFlags: int = 0,
    lpOverlapped: WSAOVERLAPPED | None = None,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
) -> int:
    """Send buffers; return how many bytes: all of them, unless the socket is nonblocking.

    Raises:
        WSAError: as WSPRecv; of what an aborted call had queued, `bytes_transferred`.

    Source: LPWSPSEND.
    """
    if callbacks.active:
        callbacks.refuse_nested()
    try:
        provider = _routes[s].provider
    except handles.NO_HANDLE:
        raise handles.refusal(s) from None
    if lpOverlapped is None:
        return provider.WSPSend(s, lpBuffers, dwFlags)
    thread = lpThreadId or _thread_for(lpCompletionRoutine)
    return provider.WSPSend(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, thread)


def WSPSendTo(
    s: int,
    lpBuffers: Buffers,
    dwFlags: int = 0,
    lpTo: Any = None,
    lpOverlapped: WSAOVERLAPPED | None = None,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
) -> int:
    """Send one message to an address; return how many bytes. As WSPSend. Source: LPWSPSENDTO."""
    thread = lpThreadId or _thread_for(lpCompletionRoutine)
    return _route(s).WSPSendTo(s, lpBuffers, dwFlags, lpTo, lpOverlapped, lpCompletionRoutine, thread)


def _thread_for(routine: object) -> WSATHREADID | None:
    """Return where a completion routine is to run: the thread that issues the request."""
    return None if routine is None else waits.current_thread()


def WSPGetOverlappedResult(s: int, lpOverlapped: Any, fWait: bool = False) -> tuple[int, int]:
    """Return (bytes, flags) of a request that has ended.

    Raises:
        WSAError: 996, it is pending; what it came to, 995 after a close; 10022, a wait for a request without an event.

    Source: LPWSPGETOVERLAPPEDRESULT.
    """
    if isinstance(lpOverlapped, WSAOVERLAPPED) and lpOverlapped.belongs_to(s) and handles.find(s) is None:
        return overlapped.result(s, lpOverlapped, fWait)  # its socket is closed; the request is still known (CLOSE-33)
    return _route(s).WSPGetOverlappedResult(s, lpOverlapped, fWait)


def WSPCancelBlockingCall() -> None:
    """Cancel this thread's blocking call, from its blocking hook or a signal handler; it ends with 10004.

    Raises:
        WSAError: 10022, there is none.

    Source: LPWSPCANCELBLOCKINGCALL.
    """
    callbacks.cancel()


# -- waiting and events -------------------------------------------------------------------------------------------


def WSPSelect(
    readfds: Collection[int] | None,
    writefds: Collection[int] | None,
    exceptfds: Collection[int] | None,
    timeout: float | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """Wait until something in one of three sets is ready; return the ready ones of each; the sets stay as they are.

    Args:
        timeout: seconds; None waits for ever, 0 only looks.

    Raises:
        WSAError: 10004, this process closed one of them meanwhile; 10038, one is no socket; 10022, no set has a
            member, a bad timeout, or sockets of several providers.

    Source: LPWSPSELECT.
    """
    try:
        members = [s for fds in (readfds, writefds, exceptfds) if fds is not None for s in fds]
    except TypeError as error:
        raise WSAError(WSAEFAULT, f"a set of handles is wanted: {error}") from error
    if callbacks.active:
        callbacks.refuse_nested()
    if not members:
        raise WSAError(WSAEINVAL, "three empty sets have nothing to wait for")
    providers = {id(provider): provider for provider in map(_route, members)}
    if len(providers) > 1:
        raise WSAError(WSAEINVAL, "all sockets of one select must be of one provider")
    (provider,) = providers.values()
    return provider.WSPSelect(readfds, writefds, exceptfds, timeout)


def WSPEventSelect(s: int, hEventObject: int | None, lNetworkEvents: int) -> None:
    """Have an event object set when one of these FD_* events happens; 0 ends that. The socket is nonblocking then.

    There is one registration per socket: this one ends every other's, in any process (EVENT-1).

    Source: LPWSPEVENTSELECT.
    """
    _route(s).WSPEventSelect(s, hEventObject, lNetworkEvents)


def WSPEnumNetworkEvents(s: int, hEventObject: int | None = None) -> WSANETWORKEVENTS:
    """Return and clear what has been recorded, and reset the event object. Source: LPWSPENUMNETWORKEVENTS."""
    return _route(s).WSPEnumNetworkEvents(s, hEventObject)


def WSPAsyncSelect(s: int, hWnd: int, wMsg: int, lEvent: int) -> None:
    """Have window messages posted: refused with 10045, there are no windows. Source: LPWSPASYNCSELECT."""
    _route(s).WSPAsyncSelect(s, hWnd, wMsg, lEvent)


# -- options and addresses ----------------------------------------------------------------------------------------


def WSPGetSockOpt(s: int, level: int, optname: int) -> Any:
    """Return an option, by Winsock's numbers. Source: LPWSPGETSOCKOPT."""
    return _route(s).WSPGetSockOpt(s, level, optname)


def WSPSetSockOpt(s: int, level: int, optname: int, optval: Any) -> None:
    """Set an option, for every sharer. Source: LPWSPSETSOCKOPT."""
    _route(s).WSPSetSockOpt(s, level, optname, optval)


def WSPIoctl(
    s: int,
    dwIoControlCode: int,
    lpvInBuffer: Any = None,
    lpOverlapped: WSAOVERLAPPED | None = None,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
) -> Any:
    """Carry out a control code: FIONBIO, FIONREAD, SIOCATMARK, SIO_FLUSH; return what it has to say.

    Args:
        lpOverlapped: report by its event, the routine or the port too. None of these codes waits: it has ended.

    Source: LPWSPIOCTL.
    """
    thread = lpThreadId or _thread_for(lpCompletionRoutine)
    return _route(s).WSPIoctl(s, dwIoControlCode, lpvInBuffer, lpOverlapped, lpCompletionRoutine, thread)


def WSPStringToAddress(AddressString: str, AddressFamily: int, lpProtocolInfo: WSAPROTOCOL_INFO | None = None) -> Any:
    """Return the address a numeric text stands for. Source: LPWSPSTRINGTOADDRESS."""
    info = catalog.find_entry(AddressFamily, 0, 0) if lpProtocolInfo is None else _checked_info(lpProtocolInfo)
    return require_provider(info).WSPStringToAddress(AddressString, AddressFamily, info)


def WSPAddressToString(lpsaAddress: Any, lpProtocolInfo: WSAPROTOCOL_INFO | None = None) -> str:
    """Return an address as numeric text. Source: LPWSPADDRESSTOSTRING."""
    info = catalog.WSCEnumProtocols()[0] if lpProtocolInfo is None else _checked_info(lpProtocolInfo)
    return require_provider(info).WSPAddressToString(lpsaAddress, info)
