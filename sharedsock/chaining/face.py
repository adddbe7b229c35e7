"""The Python face over a chain: a SharedSocket whose calls go down from the top of it.

Through the chain go opening, accept, connect, bind, listen, shutdown, every send and receive, names, options and
every kind of close. Timeouts, sharing and what introspection tells are the descriptor's, no call of a provider's.
What a chain cannot carry is refused with 10045: ancillary data, overlapped calls, detach(), AF_ALG; TLS as well.

Two promises end at the bottom of the chain: an interrupt between the layers loses what the call below had taken, and
`sendall` counts its timeout anew for each send that it takes. sendfile() sends by reading.

A socket without a chain has nothing of this: the class of one with a chain is changed when it is opened.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, cast

from sharedsock.chaining.bottom import Below, beside
from sharedsock.descriptors import transfer
from sharedsock.kernel.system import NOSIGNAL
from sharedsock.model.errors import NotASocket, OperationAborted, from_errno
from sharedsock.model.winsock import MSG_WAITALL, WSAEINTR, WSAENOTSOCK
from sharedsock.sharedsocket import SharedSocket
from sharedsock.spi import WSAError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sharedsock.chaining.stacks import Route, Stacks
    from sharedsock.descriptors.descriptor import Descriptor

__all__ = ["ChainedSocket", "chained", "plain_error"]

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

    def _pass(self, call: str, *arguments: Any, flags: int = 0, size: int | None = None) -> Any:
        """Make a WSP* call at the top of the chain. `flags`: the kernel's, of which the last argument has the rest."""
        route = self._route()
        beside.flags, beside.size = flags, size
        try:
            return getattr(route.top, call)(route.handle, *arguments)
        except WSAError as error:
            raise plain_error(self._descriptor, call, error) from None
        finally:
            beside.flags, beside.size = 0, None

    def _transfer(self, call: str, buffers: list[Any], flags: int, *more: Any) -> Any:
        winsocks = flags & _SAME | (MSG_WAITALL if flags & socket.MSG_WAITALL else 0)
        rest = flags & ~(_SAME | socket.MSG_WAITALL | NOSIGNAL)
        return self._pass(call, buffers, winsocks, *more, flags=rest)

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
        self._pass("WSPSetSockOpt", level, optname, value, size=optlen)

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        return self._pass("WSPGetSockOpt", level, optname, size=buflen)

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
        if ancbufsize:
            raise _refused("ancillary data")
        buffer = _room(bufsize, "recvmsg")
        count, found, address = self._transfer("WSPRecvFrom", [buffer], flags)
        return bytes(buffer[:count]), [], found, address

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        if ancbufsize:
            raise _refused("ancillary data")
        count, found, address = self._transfer("WSPRecvFrom", list(buffers), flags)
        return count, [], found, address

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, data: Any, flags: int = 0, /) -> int:
        return int(self._transfer("WSPSend", [_view(data)], flags))

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send every byte; the timeout counts anew for each send."""
        view, sent = _view(data), 0
        while True:
            try:
                sent += self._transfer("WSPSend", [view[sent:]], flags)
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

    def sendto(self, data: Any, *arguments: Any) -> int:
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(arguments) + 1} given)")
        flags, address = (0, arguments[0]) if len(arguments) == 1 else arguments
        return int(self._transfer("WSPSendTo", [_view(data)], flags, address))

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None, /
    ) -> int:
        if list(ancdata):
            raise _refused("ancillary data")
        views = [_view(buffer) for buffer in buffers] or [memoryview(b"")]
        if address is None:
            return int(self._transfer("WSPSend", views, flags))
        return int(self._transfer("WSPSendTo", views, flags, address))

    def sendmsg_afalg(self, *arguments: Any, **options_: Any) -> int:
        raise _refused("sendmsg_afalg()")

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]  # the stdlib's own
        # The stdlib then sends by reading, through the chain.
        raise socket._GiveupOnSendfile()  # type: ignore[attr-defined]  # as above

    # -- what only begins ------------------------------------------------------------------------------------

    def begin_recv(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_recv()")

    def begin_recvfrom(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_recvfrom()")

    def begin_send(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_send()")

    def begin_sendall(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_sendall()")

    def begin_accept(self) -> NoReturn:
        raise _refused("begin_accept()")

    def begin_connect(self, *arguments: Any, **options_: Any) -> NoReturn:
        raise _refused("begin_connect()")


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
