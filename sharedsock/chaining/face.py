"""The Python face over a chain: a SharedSocket whose calls go down from the top of it.

Through the chain go opening, accept, connect, bind, listen, shutdown, every send and receive, overlapped or not, names,
options and every kind of close; `wrap_tls` has its wire there. Timeouts, sharing and what introspection tells are the
descriptor's, no call of a provider's. Ancillary data goes beside the calls, which no layer sees. What would go around
the chain is refused with 10045: detach(), ssl's own wrap_socket(), AF_ALG; begin_connect() and begin_accept() have no
overlapped form in the SPI.

One promise ends at the bottom of the chain: an interrupt between the layers loses what the call below had taken.
sendfile() sends by reading.

A socket without a chain has nothing of this: the class of one with a chain is changed when it is opened.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar, cast

from sharedsock.chaining.bottom import Below, Carried, beside
from sharedsock.chaining.requests import ChainedOperation, aborted
from sharedsock.descriptors import transfer
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import NotASocket, OperationAborted, from_errno
from sharedsock.model.winsock import (
    MSG_WAITALL,
    WSA_IO_PENDING,
    WSA_OPERATION_ABORTED,
    WSAEINTR,
    WSAENOTSOCK,
    WSAETIMEDOUT,
)
from sharedsock.registry.numbers import close_all
from sharedsock.registry.parcels import numbers_in
from sharedsock.sharedsocket import SharedSocket
from sharedsock.spi import WSAError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sharedsock.chaining.stacks import Route, Stacks
    from sharedsock.descriptors.descriptor import Descriptor

__all__ = ["ChainedSocket", "chained", "plain_error"]

T = TypeVar("T")

_SAME: Final = int(socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTROUTE)
_DEFAULT_BACKLOG: Final = min(socket.SOMAXCONN, 128)  # the stdlib's


def plain_error(descriptor: Descriptor, call: str, error: WSAError) -> OSError:
    """Return what the user of a face gets for what has come up through the chain: errors he knows."""
    if isinstance(error, Below):
        return error.original
    closed_by = descriptor.kernel.aborted
    if closed_by is not None:
        if error.winerror == WSAEINTR:
            text = f"{call} ended: this process closed the descriptor in {closed_by}; nothing was taken"
            return OperationAborted(text, operation=call, closed_by=str(closed_by))
        if error.winerror == WSAENOTSOCK:
            text = f"descriptor {descriptor.id} was closed by {closed_by} while the call began"
            return NotASocket(text, descriptor=descriptor.id, closed_by=str(closed_by))
    return from_errno(error.errno or errno.EIO, error.strerror or str(error), winerror=error.winerror)


def _refused(what: str) -> OSError:
    return from_errno(errno.EOPNOTSUPP, f"{what} would go around the providers under this socket")


def _view(data: Any) -> memoryview:
    with memoryview(data) as whole:
        return whole.cast("B") if whole.nbytes else memoryview(b"")


class ChainedSocket(SharedSocket):
    """A SharedSocket over a chain of providers; `sharedsock.use_provider` makes them."""

    __slots__ = ()
    _plain: ClassVar[type[SharedSocket]] = SharedSocket

    # -- the way down ----------------------------------------------------------------------------------------

    def _route(self) -> Route:
        transfer.require_kernel(self._descriptor)
        chain = cast("Stacks", self._descriptor.chain)
        route = chain.routes.get(self._descriptor.id)
        if route is None:
            raise NotASocket(f"descriptor {self._descriptor.id} has no way down: its providers were not reached")
        return route

    def _pass(self, call: str, *arguments: Any, carried: Carried | None = None) -> Any:
        """Make a WSP* call at the top of the chain; `carried` goes beside its arguments."""
        route = self._route()
        before, beside.call = beside.call, Carried() if carried is None else carried
        try:
            return getattr(route.top, call)(route.handle, *arguments)
        except WSAError as error:
            if error.winerror == WSA_IO_PENDING:
                return None
            raise plain_error(self._descriptor, call, error) from None
        finally:
            beside.call = before

    def _transfer(self, call: str, buffers: list[Any], flags: int, *more: Any, carried: Carried | None = None) -> Any:
        winsocks = flags & _SAME | (MSG_WAITALL if flags & socket.MSG_WAITALL else 0)
        carried = Carried() if carried is None else carried
        carried.flags = flags & ~(_SAME | socket.MSG_WAITALL | NOSIGNAL)
        return self._pass(call, buffers, winsocks, *more, carried=carried)

    # -- opening and closing ---------------------------------------------------------------------------------

    def accept(self) -> tuple[SharedSocket, Any]:
        route = self._route()
        before, beside.accepted = beside.accepted, []
        try:
            handle, address = route.top.WSPAccept(route.handle)
            client = next(face for face in beside.accepted if not face._descriptor.is_closed)
            cast("Stacks", self._descriptor.chain).enter(client, route.top, handle)
        except BaseException as error:
            for face in beside.accepted:  # a layer has failed with a client in its hands
                face.abort()
            if isinstance(error, WSAError):
                raise plain_error(self._descriptor, "accept", error) from None
            raise
        finally:
            beside.accepted = before
        return client, address

    def _close(self, plain: Callable[[], Any]) -> None:
        """Close through the chain; `plain` is how the face at its bottom does it."""
        descriptor = self._descriptor
        chain = cast("Stacks", descriptor.chain)
        route = chain.routes.get(descriptor.id)
        if route is None:
            plain()
            return
        before, beside.closing = beside.closing, (self, plain)
        try:
            route.top.WSPCloseSocket(route.handle)
        except WSAError as error:
            if isinstance(error, Below) or error.winerror != WSAENOTSOCK:
                raise plain_error(descriptor, "close", error) from None
            plain()  # of two closers the first has the handle: the second does what it does to a plain one
        finally:
            beside.closing = before
            if descriptor.is_closed:
                chain.routes.pop(descriptor.id, None)

    def _real_close(self, _ss: Any = None) -> None:
        try:
            self._close(lambda: SharedSocket._real_close(self))
        finally:
            self._closed = self._descriptor.is_closed

    def abort(self) -> None:
        try:
            self._close(lambda: SharedSocket.abort(self))
        finally:  # never refused, by a layer neither
            SharedSocket.abort(self)

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        if self._io_refs > 0:
            return
        with suppress(OSError):  # a layer's refusal: an error on its way must not be hidden by another
            self._close(lambda: SharedSocket.__exit__(self, *exc_info))
        SharedSocket.__exit__(self, *exc_info)

    def detach(self) -> int:
        raise _refused("detach()")

    def fileno(self) -> int:
        if sys._getframe(1).f_globals.get("__name__") == "ssl":
            raise _refused("TLS")
        return super().fileno()

    def __del__(self) -> None:
        super().__del__()
        try:
            descriptor = self._descriptor
        except AttributeError:
            return
        route = cast("Stacks", descriptor.chain).routes.pop(descriptor.id, None)
        if route is not None:
            with suppress(WSAError):
                route.top.WSPCloseSocket(route.handle)

    # -- connections and names -------------------------------------------------------------------------------

    def connect(self, address: Any, /) -> None:
        self._pass("WSPConnect", address)

    def bind(self, address: Any, /) -> None:
        self._pass("WSPBind", address)

    def listen(self, backlog: int | None = None, /) -> None:
        self._pass("WSPListen", _DEFAULT_BACKLOG if backlog is None else backlog)

    def shutdown(self, how: int, /) -> None:
        self._pass("WSPShutdown", how)

    def getsockname(self) -> Any:
        return self._pass("WSPGetSockName")

    def getpeername(self) -> Any:
        return self._pass("WSPGetPeerName")

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None, /) -> None:
        self._pass("WSPSetSockOpt", level, optname, value, carried=Carried(size=optlen))

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        return self._pass("WSPGetSockOpt", level, optname, carried=Carried(size=buflen))

    # -- receiving -------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        buffer = _room(bufsize, "recv")
        return bytes(buffer[: self.recv_into(buffer, 0, flags)])

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        with memoryview(buffer) as whole:
            view = _front(whole, nbytes, "recv_into", "buffer too small for requested bytes")
        with view:
            return int(self._transfer("WSPRecv", [view], flags)[0])

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        buffer = _room(bufsize, "recvfrom")
        count, _, address = self._transfer("WSPRecvFrom", [buffer], flags)
        return bytes(buffer[:count]), address

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        with memoryview(buffer) as whole:
            view = _front(whole, nbytes, "recvfrom_into", "nbytes is greater than the length of the buffer")
        with view:
            count, _, address = self._transfer("WSPRecvFrom", [view], flags)
        return count, address

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        buffer = _room(bufsize, "recvmsg")
        count, *rest = self._receive_message([buffer], ancbufsize, flags)
        return bytes(buffer[:count]), *rest

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        return self._receive_message(list(buffers), ancbufsize, flags)

    def _receive_message(self, buffers: list[Any], ancbufsize: int, flags: int) -> tuple[int, list[Any], int, Any]:
        carried = Carried(room=ancbufsize)
        try:
            count, found, address = self._transfer("WSPRecvFrom", buffers, flags, carried=carried)
        except BaseException:  # a layer has failed with it in its hands
            close_all(numbers_in(carried.received))
            raise
        return count, carried.received, found, address

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, data: Any, flags: int = 0, /) -> int:
        return int(self._transfer("WSPSend", [_view(data)], flags))

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        view, sent = _view(data), 0
        timeout_s = 0.0 if flags & DONTWAIT else self._descriptor.timeout_s
        until_s = monotonic() + timeout_s if timeout_s else None
        while True:
            try:
                sent += self.send_within("sendall", view[sent:], timeout_s, flags)
            except OperationAborted as error:
                error.bytes_transferred += sent
                raise
            except NotASocket as error:
                if not sent:
                    raise
                text = f"sendall ended: this process closed the descriptor; {sent} bytes were queued"
                closed_by = self._descriptor.kernel.aborted
                raise OperationAborted(
                    text, operation="sendall", bytes_transferred=sent, closed_by=str(closed_by)
                ) from error
            if sent >= len(view):
                return
            if until_s is not None:
                timeout_s = until_s - monotonic()
                if timeout_s <= 0:
                    raise from_errno(errno.ETIMEDOUT, f"timed out; {sent} bytes were queued", winerror=WSAETIMEDOUT)

    def sendto(self, data: Any, *arguments: Any) -> int:
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(arguments) + 1} given)")
        flags, address = (0, arguments[0]) if len(arguments) == 1 else arguments
        return int(self._transfer("WSPSendTo", [_view(data)], flags, address))

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None, /
    ) -> int:
        views = [_view(buffer) for buffer in buffers] or [memoryview(b"")]
        carried = Carried(ancillary=list(ancdata))
        if address is None:
            return int(self._transfer("WSPSend", views, flags, carried=carried))
        return int(self._transfer("WSPSendTo", views, flags, address, carried=carried))

    def sendmsg_afalg(self, *arguments: Any, **options_: Any) -> int:
        raise _refused("sendmsg_afalg()")

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]  # the stdlib's own
        # The stdlib then sends by reading, through the chain.
        raise socket._GiveupOnSendfile()  # type: ignore[attr-defined]  # as above

    # -- the wire of TLS -------------------------------------------------------------------------------------

    def receive_within(self, kind: str, bufsize: int, timeout_s: float | None) -> bytes:
        """Receive as a part of a call of that kind, waiting so long and not as long as the descriptor would."""
        buffer = _room(bufsize, kind)
        count, _ = self._transfer("WSPRecv", [buffer], 0, carried=Carried(kind=kind, timeout_s=timeout_s))
        return bytes(buffer[:count])

    def send_within(self, kind: str, view: memoryview, timeout_s: float | None, flags: int = 0) -> int:
        """Send as a part of a call of that kind, waiting so long and not as long as the descriptor would."""
        return int(self._transfer("WSPSend", [view], flags, carried=Carried(kind=kind, timeout_s=timeout_s)))

    # -- what only begins ------------------------------------------------------------------------------------

    def begin_recv(self, bufsize: int, flags: int = 0) -> ChainedOperation[bytes]:
        buffer = _room(bufsize, "begin_recv")
        return self._begin("recv", "WSPRecv", [buffer], flags, lambda count, _: bytes(buffer[:count]))

    def begin_recvfrom(self, bufsize: int, flags: int = 0) -> ChainedOperation[tuple[bytes, Any]]:
        buffer = _room(bufsize, "begin_recvfrom")
        return self._begin(
            "recvfrom", "WSPRecvFrom", [buffer], flags, lambda count, address: (bytes(buffer[:count]), address)
        )

    def begin_send(self, data: Any, flags: int = 0) -> ChainedOperation[int]:
        return self._begin("send", "WSPSend", [_view(data)], flags, lambda count, _: count)

    def begin_sendall(self, data: Any, flags: int = 0) -> ChainedOperation[None]:
        return self._begin("sendall", "WSPSend", [_view(data)], flags, lambda *_: None, is_whole=True)

    def begin_accept(self) -> NoReturn:
        raise _refused("begin_accept(), which has no overlapped form in the SPI,")

    def begin_connect(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_connect(), which has no overlapped form in the SPI,")

    def _begin(
        self,
        kind: str,
        call: str,
        buffers: list[Any],
        flags: int,
        give: Callable[[int, Any], T],
        *,
        is_whole: bool = False,
    ) -> ChainedOperation[T]:
        """Post a request at the top of the chain; raise only if it was not started."""
        descriptor = self._descriptor

        def explain(error: int, count: int) -> OSError:
            closed_by = descriptor.kernel.aborted
            if closed_by is not None and error in (WSA_OPERATION_ABORTED, WSAEINTR, WSAENOTSOCK):
                return aborted(kind, count, str(closed_by))
            return plain_error(descriptor, kind, WSAError(error))

        operation = ChainedOperation(descriptor, kind, give, explain)
        carried = Carried(is_whole=is_whole, begun=operation.begun)
        try:
            self._transfer(call, buffers, flags, operation.relay, carried=carried)
        except (NotASocket, BlockingIOError):  # closed, or too many are pending: nothing was started
            raise
        except OSError as error:
            operation.refuse(error)
        except BaseException:
            for below in operation.begun:  # nobody will see what they come to
                below.cancel()
            raise
        return operation


def _room(bufsize: int, call: str) -> memoryview:
    if bufsize < 0:
        raise ValueError(f"negative buffersize in {call}")
    return memoryview(bytearray(bufsize))


def _front(whole: memoryview, nbytes: int, call: str, too_small: str) -> memoryview:
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {call}")
    if nbytes > whole.nbytes:
        raise ValueError(too_small)
    view = whole.cast("B") if whole.nbytes else memoryview(bytearray())
    return view[:nbytes] if nbytes else view


_classes: Final[dict[type[SharedSocket], type[ChainedSocket]]] = {SharedSocket: ChainedSocket}


def chained(plain: type[SharedSocket]) -> type[ChainedSocket]:
    """Return the class of a face over a chain: for a subclass of SharedSocket, that subclass over `ChainedSocket`."""
    found = _classes.get(plain)
    if found is None:
        names = {"__slots__": (), "__module__": plain.__module__, "_plain": plain}
        found = _classes.setdefault(
            plain, cast("type[ChainedSocket]", type(plain.__name__, (plain, ChainedSocket), names))
        )
    return found
