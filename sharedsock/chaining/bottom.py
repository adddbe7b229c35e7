"""THE BOTTOM of a chain under the Python face: a provider whose calls are those of a plain SharedSocket.

So waits, timeouts, aborts, kept data and verdicts are the face's own, however many layers lie between. What the face
raises goes up as a `WSAError` that still knows it, and comes out at the top as what it was.

Addresses, option numbers and their values are the socket module's. What Winsock's signatures have no room for, the
kernel's own flags, ancillary data, a call's own timeout and the size of an option's answer, travels beside them, in
the thread.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from sharedsock.descriptors import lingering, options, overlapped, transfer
from sharedsock.descriptors.descriptor import draw_id
from sharedsock.descriptors.transfer import OWN_TIMEOUT, Kept, data_of
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.winsock import (
    MSG_WAITALL,
    SIO_RESET_CONNECTION,
    WSA_IO_PENDING,
    WSA_OPERATION_ABORTED,
    WSAEINVAL,
    WSAENOTSOCK,
    WSAEOPNOTSUPP,
)
from sharedsock.sharedsocket import SharedSocket
from sharedsock.spi import Provider, WSAError
from sharedsock.spi.buffers import checked_buffers, fill
from sharedsock.spi.errors import outcome_of, translated
from sharedsock.spi.overlapped import abandon, begin, complete, result

if TYPE_CHECKING:
    from sharedsock.descriptors.overlapped import Operation
    from sharedsock.spi.overlapped import WSAOVERLAPPED
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Buffers

__all__ = ["Below", "Bottom", "Carried", "beside"]

P = ParamSpec("P")
R = TypeVar("R")

_SAME: Final = int(socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTROUTE)  # Winsock's numbers are the kernel's


class Below(WSAError):
    """What a plain SharedSocket has raised, on its way up; `original` is it."""

    def __init__(self, original: OSError) -> None:
        known = translated(original)
        super().__init__(known.winerror, known.strerror)
        self.original = original


@dataclass(slots=True)
class Carried:
    """What goes beside the arguments of one call.

    Attributes:
        flags: the kernel's flags that Winsock has not.
        size: that of an option's answer, None for a number.
        kind: what the call is a part of, "sendall" or "handshake"; "" of none.
        timeout_s: how long the call may wait; OWN_TIMEOUT is as long as the face's own.
        ancillary: what a send takes along; the first one at the bottom does.
        room: how many bytes of ancillary data a receive has room for; `received` is what it has brought.
        is_whole: a request to send is for every byte.
        begun: the operations that requests have become at the bottom.
    """

    flags: int = 0
    size: int | None = None
    kind: str = ""
    timeout_s: float | None = OWN_TIMEOUT
    ancillary: list[Any] = field(default_factory=list)
    room: int = 0
    received: list[Any] = field(default_factory=list)
    is_whole: bool = False
    begun: list[Operation[Any]] = field(default_factory=list)


class Beside(threading.local):
    """What goes beside a call in its thread.

    Attributes:
        opening: the face that a WSPSocket is for. accepted: the faces that WSPAccept has made.
        closing: a face, and how it is to be closed.
        call: what goes beside the arguments of the face's call that is under way; None: a layer calls by itself.
    """

    opening: SharedSocket | None = None
    closing: tuple[SharedSocket, Callable[[], Any]] | None = None
    call: Carried | None = None

    def __init__(self) -> None:
        self.accepted: list[SharedSocket] = []

    @property
    def carried(self) -> Carried:
        """What goes beside the call, whoever makes it."""
        return Carried() if self.call is None else self.call


beside: Final = Beside()


def _from_below(call: Callable[P, R]) -> Callable[P, R]:
    @wraps(call)
    def calling(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return call(*arguments, **keywords)
        except WSAError:
            raise
        except OSError as error:
            raise Below(error) from error

    return calling


def _kernel_flags(dwFlags: int) -> int:
    """Return Winsock's flags as the kernel's, with those beside the call."""
    return dwFlags & _SAME | (socket.MSG_WAITALL if dwFlags & MSG_WAITALL else 0) | beside.carried.flags


class Bottom(Provider):
    """The face, as a provider; a handle of its is a number for one SharedSocket."""

    is_ifs = True

    def __init__(self) -> None:
        super().__init__()
        self._faces: dict[int, weakref.ref[SharedSocket]] = {}

    def _face(self, s: int) -> SharedSocket:
        found = self._faces.get(s)
        face = None if found is None else found()
        if face is None:
            raise WSAError(WSAENOTSOCK, f"{s!r} is no open socket of the face")
        return face

    def _enter(self, face: SharedSocket) -> int:
        number = draw_id()
        self._faces[number] = weakref.ref(face)
        return number

    def WSPSocket(
        self, af: int, type: int, protocol: int, lpProtocolInfo: WSAPROTOCOL_INFO, g: int = 0, dwFlags: int = 0
    ) -> int:
        if beside.opening is None:
            raise WSAError(WSAEOPNOTSUPP, "under the Python face a layer opens no socket but the one it was asked for")
        face, beside.opening = beside.opening, None
        return self._enter(face)

    @_from_below
    def WSPAccept(self, s: int, lpfnCondition: Any = None, dwCallbackData: Any = None) -> tuple[int, Any]:
        if lpfnCondition is not None:
            raise WSAError(WSAEOPNOTSUPP, "the Python face has no condition function")
        listener = self._face(s)
        client, address = transfer.accept_into(listener._descriptor, _plain_class(listener)._over)
        beside.accepted.append(client)
        return self._enter(client), address

    @_from_below
    def WSPCloseSocket(self, s: int) -> None:
        try:
            face = self._face(s)
        except WSAError:  # it is being collected, and its descriptor is closed
            self._faces.pop(s, None)
            raise
        whose, close = beside.closing or (None, None)
        if whose is face and close is not None:
            close()
        else:  # a layer gives up what it has accepted
            SharedSocket.abort(face)
        self._faces.pop(s, None)

    @_from_below
    def WSPBind(self, s: int, name: Any) -> None:
        SharedSocket.bind(self._face(s), name)

    @_from_below
    def WSPListen(self, s: int, backlog: int) -> None:
        SharedSocket.listen(self._face(s), backlog)

    @_from_below
    def WSPConnect(self, s: int, name: Any, lpCallerData: Any = None) -> None:
        SharedSocket.connect(self._face(s), name)

    @_from_below
    def WSPShutdown(self, s: int, how: int) -> None:
        SharedSocket.shutdown(self._face(s), how)

    @_from_below
    def WSPGetSockName(self, s: int) -> Any:
        return SharedSocket.getsockname(self._face(s))

    @_from_below
    def WSPGetPeerName(self, s: int) -> Any:
        return SharedSocket.getpeername(self._face(s))

    @_from_below
    def WSPGetSockOpt(self, s: int, level: int, optname: int) -> Any:
        return SharedSocket.getsockopt(self._face(s), level, optname, beside.carried.size)

    @_from_below
    def WSPSetSockOpt(self, s: int, level: int, optname: int, optval: Any) -> None:
        SharedSocket.setsockopt(self._face(s), level, optname, optval, beside.carried.size)

    @_from_below
    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: Any = None,
        lpOverlapped: Any = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> Any:
        """SIO_RESET_CONNECTION, which layers need to end a connection hard; 10045 for every other code."""
        if lpOverlapped is not None:
            raise WSAError(WSAEOPNOTSUPP, "under the Python face no control code is a request")
        descriptor = self._face(s)._descriptor
        if dwIoControlCode != SIO_RESET_CONNECTION or descriptor.type not in options.STREAMS:
            raise WSAError(WSAEOPNOTSUPP, f"control code {dwIoControlCode!r}")
        kernel = transfer.require_kernel(descriptor)
        options.change_common(descriptor, reset_seen=True)
        lingering.reset(kernel, others_may_hold=True)

    @_from_below
    def WSPSend(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> int:
        return self.WSPSendTo(s, lpBuffers, dwFlags, None, lpOverlapped, lpCompletionRoutine, lpThreadId)

    @_from_below
    def WSPSendTo(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpTo: Any = None,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> int:
        face, flags, call = self._face(s), _kernel_flags(dwFlags), beside.carried
        if lpOverlapped is not None:
            _refuse_routine(lpCompletionRoutine)
            data = lpBuffers[0] if len(lpBuffers) == 1 else b"".join(lpBuffers)
            if lpTo is not None:
                return self._request(s, lpOverlapped, None, overlapped.begin_sendto, face, data, flags, lpTo)[0]
            start = overlapped.begin_sendall if call.is_whole else overlapped.begin_send
            return self._request(s, lpOverlapped, None, start, face, data, flags)[0]
        ancillary, call.ancillary = call.ancillary, []
        if ancillary or len(lpBuffers) != 1:
            return SharedSocket.sendmsg(face, lpBuffers, ancillary, flags, lpTo)
        if lpTo is not None:
            return SharedSocket.sendto(face, lpBuffers[0], flags, lpTo)
        if call.timeout_s == OWN_TIMEOUT:
            return SharedSocket.send(face, lpBuffers[0], flags)
        arguments = (lpBuffers[0], flags | DONTWAIT | NOSIGNAL)
        return int(transfer.send(face._descriptor, call.kind or "send", "send", arguments, timeout_s=call.timeout_s))

    @_from_below
    def WSPRecv(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> tuple[int, int]:
        face, flags, call = self._face(s), _kernel_flags(dwFlags), beside.carried
        if lpOverlapped is not None:
            _refuse_routine(lpCompletionRoutine)
            views, limit = _views(lpBuffers)
            return self._request(s, lpOverlapped, views, overlapped.begin_recv, face, limit, flags)[:2]
        if call.timeout_s != OWN_TIMEOUT:
            return _receive_within(face, lpBuffers, flags, call), 0
        if len(lpBuffers) == 1 and not call.room:
            return SharedSocket.recv_into(face, lpBuffers[0], 0, flags), 0
        return _receive_message(face, lpBuffers, flags, call)[:2]

    @_from_below
    def WSPRecvFrom(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> tuple[int, int, Any]:
        face, flags = self._face(s), _kernel_flags(dwFlags)
        if lpOverlapped is not None:
            _refuse_routine(lpCompletionRoutine)
            views, limit = _views(lpBuffers)
            return self._request(s, lpOverlapped, views, overlapped.begin_recvfrom, face, limit, flags)
        return _receive_message(face, lpBuffers, flags, beside.carried)

    def WSPGetOverlappedResult(self, s: int, lpOverlapped: WSAOVERLAPPED, fWait: bool = False) -> tuple[int, int]:
        self._face(s)
        return result(s, lpOverlapped, fWait)

    def _request(
        self,
        s: int,
        lpOverlapped: WSAOVERLAPPED,
        views: list[memoryview] | None,
        start: Callable[..., Operation[Any]],
        face: SharedSocket,
        *arguments: Any,
    ) -> tuple[int, int, Any]:
        """Begin a request, which completes as the face's own operation does; return its outcome if it has one at once.

        Args:
            views: where what is received goes; None: it sends.
        """
        begin(s, lpOverlapped)
        try:
            operation = start(face._descriptor, *arguments)
        except BaseException as error:
            abandon(lpOverlapped, translated(error).winerror if isinstance(error, OSError) else WSA_OPERATION_ABORTED)
            raise
        beside.carried.begun.append(operation)
        if not operation.done():

            def end(ended: Any) -> None:
                error, count, address = _outcome(ended, views)
                lpOverlapped.lpFrom = address
                complete(lpOverlapped, error, count)

            operation.add_done_callback(end)
            raise WSAError(WSA_IO_PENDING)
        failure = operation.exception()
        if failure is not None:
            abandon(lpOverlapped, translated(failure).winerror if isinstance(failure, OSError) else WSAEINVAL)
            raise failure
        _, count, address = _outcome(operation, views)
        lpOverlapped.lpFrom = address
        complete(lpOverlapped, 0, count)
        return count, 0, address


def _outcome(operation: Operation[Any], views: list[memoryview] | None) -> tuple[int, int, Any]:
    """Return (error, bytes, sender's address) of an operation that has ended."""
    error, value = outcome_of(operation)
    if error:
        return error, operation.bytes_transferred, None
    if views is None:
        return 0, operation.bytes_transferred, None
    data, address = value if isinstance(value, tuple) else (value, None)
    return 0, fill(views, data), address


def _views(lpBuffers: Buffers) -> tuple[list[memoryview], int]:
    """Return views of buffers that are to be filled, and how many bytes they hold."""
    views = checked_buffers(lpBuffers, are_written=True)
    return views, sum(map(len, views))


def _receive_within(face: SharedSocket, lpBuffers: Buffers, flags: int, call: Carried) -> int:
    """Receive as `recv`, waiting so long and not as long as the face would."""
    views, limit = _views(lpBuffers)
    descriptor, arguments = face._descriptor, (limit, flags | DONTWAIT)
    data = transfer.receive(
        descriptor, call.kind or "recv", "recv", arguments, Kept, data_of, limit, timeout_s=call.timeout_s
    )
    if not data and limit:
        options.verdict_on_empty(descriptor)
    return fill(views, data)


def _receive_message(face: SharedSocket, lpBuffers: Buffers, flags: int, call: Carried) -> tuple[int, int, Any]:
    count, ancillary, found, address = SharedSocket.recvmsg_into(face, lpBuffers, call.room, flags)
    call.received.extend(ancillary)
    return count, found, address


def _refuse_routine(lpCompletionRoutine: Any) -> None:
    if lpCompletionRoutine is not None:
        raise WSAError(WSAEOPNOTSUPP, "under the Python face no thread waits alertably, so no routine would run")


def _plain_class(face: SharedSocket) -> type[SharedSocket]:
    """Return the class a face had before a chain was put under it."""
    return getattr(type(face), "_plain", type(face))
