"""THE BOTTOM of a chain under the Python face: a provider whose calls are those of a plain SharedSocket.

So waits, timeouts, aborts, kept data and verdicts are the face's own, however many layers lie between. What the face
raises goes up as a `WSAError` that still knows it, and comes out at the top as what it was.

Addresses, option numbers and their values are the socket module's. What Winsock's signatures have no room for, the
kernel's own flags and the size of an option's answer, travels beside them, in the thread.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from sharedsock.descriptors import lingering, options, transfer
from sharedsock.descriptors.descriptor import draw_id
from sharedsock.model.winsock import MSG_WAITALL, SIO_RESET_CONNECTION, WSAENOTSOCK, WSAEOPNOTSUPP
from sharedsock.sharedsocket import SharedSocket
from sharedsock.spi import Provider, WSAError
from sharedsock.spi.errors import translated
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
from sharedsock.spi.provider import Buffers

__all__ = ["Below", "Bottom", "beside"]

P = ParamSpec("P")
R = TypeVar("R")

_SAME: Final = int(socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTROUTE)  # Winsock's numbers are the kernel's


class Below(WSAError):
    """What a plain SharedSocket has raised, on its way up; `original` is it."""

    def __init__(self, original: OSError) -> None:
        known = translated(original)
        super().__init__(known.winerror, known.strerror)
        self.original = original


class Beside(threading.local):
    """What goes beside a call in its thread.

    Attributes:
        opening: the face that a WSPSocket is for. accepted: the faces that WSPAccept has made.
        flags: the kernel's flags that Winsock has not. size: that of an option's answer, None for a number.
        closing: a face, and how it is to be closed.
    """

    opening: SharedSocket | None = None
    flags: int = 0
    size: int | None = None
    closing: tuple[SharedSocket, Callable[[], Any]] | None = None

    def __init__(self) -> None:
        self.accepted: list[SharedSocket] = []


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
    return dwFlags & _SAME | (socket.MSG_WAITALL if dwFlags & MSG_WAITALL else 0) | beside.flags


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
        return SharedSocket.getsockopt(self._face(s), level, optname, beside.size)

    @_from_below
    def WSPSetSockOpt(self, s: int, level: int, optname: int, optval: Any) -> None:
        SharedSocket.setsockopt(self._face(s), level, optname, optval, beside.size)

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
        _refuse_requests(lpOverlapped)
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
        lpOverlapped: Any = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> int:
        return self.WSPSendTo(s, lpBuffers, dwFlags, None, lpOverlapped)

    @_from_below
    def WSPSendTo(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpTo: Any = None,
        lpOverlapped: Any = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> int:
        _refuse_requests(lpOverlapped)
        face, flags = self._face(s), _kernel_flags(dwFlags)
        if len(lpBuffers) != 1:
            return SharedSocket.sendmsg(face, lpBuffers, (), flags, lpTo)
        if lpTo is None:
            return SharedSocket.send(face, lpBuffers[0], flags)
        return SharedSocket.sendto(face, lpBuffers[0], flags, lpTo)

    @_from_below
    def WSPRecv(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: Any = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> tuple[int, int]:
        _refuse_requests(lpOverlapped)
        face, flags = self._face(s), _kernel_flags(dwFlags)
        if len(lpBuffers) == 1:
            return SharedSocket.recv_into(face, lpBuffers[0], 0, flags), 0
        count, _, found, _ = SharedSocket.recvmsg_into(face, lpBuffers, 0, flags)
        return count, found

    @_from_below
    def WSPRecvFrom(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: Any = None,
        lpCompletionRoutine: Any = None,
        lpThreadId: Any = None,
    ) -> tuple[int, int, Any]:
        _refuse_requests(lpOverlapped)
        face = self._face(s)
        count, _, found, address = SharedSocket.recvmsg_into(face, lpBuffers, 0, _kernel_flags(dwFlags))
        return count, found, address


def _refuse_requests(lpOverlapped: Any) -> None:
    if lpOverlapped is not None:
        raise WSAError(WSAEOPNOTSUPP, "under the Python face there are no overlapped requests")


def _plain_class(face: SharedSocket) -> type[SharedSocket]:
    """Return the class a face had before a chain was put under it."""
    return getattr(type(face), "_plain", type(face))
