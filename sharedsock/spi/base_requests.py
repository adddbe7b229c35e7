"""The base provider's overlapped requests: begun here, served by `descriptors.overlapped`, completed exactly once.

A request that can finish at once has finished, and its indication has been given, before the call returns (OVERLAP-1).
One that fails at once was never started: the error is the call's, and no indication follows (OVERLAP-3).

Source: LPWSPSEND, LPWSPSENDTO, LPWSPRECV, LPWSPRECVFROM, LPWSPIOCTL, LPWSPGETOVERLAPPEDRESULT, SIO_FLUSH; "Overlapped
I/O".
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sharedsock.descriptors import options, overlapped, transfer
from sharedsock.model.winsock import (
    MSG_PARTIAL,
    MSG_WAITALL,
    WSA_FLAG_OVERLAPPED,
    WSA_IO_PENDING,
    WSA_OPERATION_ABORTED,
    WSAEINVAL,
    WSAEMSGSIZE,
)
from sharedsock.spi.base_sockets import BaseSockets, Opened
from sharedsock.spi.buffers import SEND_FLAGS, checked_buffers, fill, kernel_flags, receive_flags, with_address
from sharedsock.spi.errors import WSAError, outcome_of, speaks_winsock, translated
from sharedsock.spi.overlapped import WSAOVERLAPPED, abandon, begin, complete, result

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.overlapped import Operation
    from sharedsock.spi.overlapped import CompletionRoutine
    from sharedsock.spi.provider import Buffers
    from sharedsock.spi.waits import WSATHREADID

__all__ = ["Requests"]

_ULONG: Final = 4  # bytes: what the control codes that return something return


class _Request:
    """One request on its way: what its completion needs to know."""

    __slots__ = ("limit", "lpOverlapped", "opened", "operation", "routine", "thread", "views")

    def __init__(
        self,
        opened: Opened,
        lpOverlapped: WSAOVERLAPPED,
        routine: CompletionRoutine | None,
        thread: WSATHREADID | None,
        views: list[memoryview] | None,
    ) -> None:
        self.opened = opened
        self.lpOverlapped = lpOverlapped
        self.routine = routine
        self.thread = thread
        self.views = views  # of a receive
        self.operation: Operation[Any] | None = None

    def outcome(self, operation: Operation[Any]) -> tuple[int, int, Any]:
        """Return (error, bytes, sender's address) of an operation that has ended."""
        error, value = outcome_of(operation)
        if error:
            return error, 0, None
        if self.views is None:
            return 0, operation.bytes_transferred, None
        data, address = value if isinstance(value, tuple) else (value, None)
        count = fill(self.views, data)
        return (WSAEMSGSIZE if count < len(data) else 0), count, address

    def end(self, operation: Operation[Any]) -> None:
        """Complete: the operation has ended, now or in the service thread."""
        if self in self.opened.requests:
            self.opened.requests.remove(self)
        self.complete(*self.outcome(operation))

    def complete(self, error: int, count: int, address: Any = None) -> None:
        """Store the outcome and give the indication."""
        self.lpOverlapped.lpFrom = address
        is_silent = self.opened.is_silent
        complete(self.lpOverlapped, error, count, 0, self.routine, self.thread, is_silent=is_silent)


class Requests(BaseSockets):
    """Overlapped I/O."""

    def begin_send(
        self,
        opened: Opened,
        lpBuffers: Buffers,
        dwFlags: int,
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: CompletionRoutine | None,
        lpThreadId: WSATHREADID | None,
        lpTo: Any = None,
    ) -> int:
        """Begin to send everything; the buffers are the request's until it has ended (CLOSE-27).

        Args:
            lpTo: whom a message is for; None: the peer.
        """
        views = checked_buffers(lpBuffers, are_written=False)
        flags = kernel_flags(dwFlags, SEND_FLAGS, MSG_PARTIAL)
        descriptor = opened.descriptor
        data = views[0] if len(views) == 1 else b"".join(views)
        if lpTo is not None:
            start = partial(with_address, overlapped.begin_sendto, descriptor, data, flags, lpTo)
        elif descriptor.type == socket.SOCK_STREAM:
            start = partial(overlapped.begin_sendall, descriptor, data, flags)
        else:
            start = partial(overlapped.begin_send, descriptor, data, flags)
        request = self._request(opened, lpOverlapped, lpCompletionRoutine, lpThreadId, None)
        _, count, _ = self._begin(request, start)
        return count

    def begin_receive(
        self,
        opened: Opened,
        lpBuffers: Buffers,
        dwFlags: int,
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: CompletionRoutine | None,
        lpThreadId: WSATHREADID | None,
    ) -> tuple[int, int, Any]:
        """Begin to receive one message, or what a stream has; return what a call that waits returns."""
        views = checked_buffers(lpBuffers, are_written=True)
        descriptor = opened.descriptor
        flags = receive_flags(dwFlags, is_stream=descriptor.type == socket.SOCK_STREAM)
        if options.common(descriptor).shut_receive:
            raise translated(options.shut_receive_error(descriptor))
        limit = sum(len(view) for view in views)
        start: Callable[..., Operation[Any]]
        if descriptor.type != socket.SOCK_STREAM:
            limit += 1  # one more than there is room for tells a message that was cut
            start = overlapped.begin_recvfrom
        else:
            start = overlapped.begin_recvall if dwFlags & MSG_WAITALL else overlapped.begin_recv
        request = self._request(opened, lpOverlapped, lpCompletionRoutine, lpThreadId, views)
        error, count, address = self._begin(request, partial(start, descriptor, limit, flags))
        if error:
            raise WSAError(error)
        return count, 0, address

    def _request(
        self,
        opened: Opened,
        lpOverlapped: WSAOVERLAPPED,
        routine: CompletionRoutine | None,
        thread: WSATHREADID | None,
        views: list[memoryview] | None,
    ) -> _Request:
        if not opened.flags & WSA_FLAG_OVERLAPPED:
            raise WSAError(WSAEINVAL, "this socket was made without WSA_FLAG_OVERLAPPED (OVERLAP-18)")
        transfer.require_kernel(opened.descriptor)
        return _Request(opened, begin(opened.handle, lpOverlapped, routine), routine, thread, views)

    def _begin(self, request: _Request, start: Callable[[], Operation[Any]]) -> tuple[int, int, Any]:
        """Start a request; return its outcome if it has one at once, else raise 997."""
        try:
            operation = start()
        except OSError as error:
            failure = translated(error)
            abandon(request.lpOverlapped, failure.winerror)
            raise failure from error
        except BaseException:
            abandon(request.lpOverlapped, WSA_OPERATION_ABORTED)
            raise
        if operation.done():
            outcome = request.outcome(operation)
            if outcome[0] and outcome[0] != WSAEMSGSIZE:
                abandon(request.lpOverlapped, outcome[0])
                raise WSAError(outcome[0]) from operation.exception()
            request.complete(*outcome)
            return outcome
        request.operation = operation
        request.opened.requests.append(request)
        operation.add_done_callback(request.end)  # type: ignore[arg-type]  # typeshed: of a Future, which it is
        raise WSAError(WSA_IO_PENDING)

    def carry_out(
        self,
        opened: Opened,
        control: Callable[[], Any],
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: CompletionRoutine | None,
        lpThreadId: WSATHREADID | None,
    ) -> Any:
        """Carry out a control code as a request: none of them waits, so it has ended when this returns."""
        request = self._request(opened, lpOverlapped, lpCompletionRoutine, lpThreadId, None)
        try:
            value = control()
        except BaseException as error:
            abandon(lpOverlapped, translated(error).winerror if isinstance(error, OSError) else WSA_OPERATION_ABORTED)
            raise
        request.complete(0, 0 if value is None else _ULONG)
        return value

    @speaks_winsock
    def WSPGetOverlappedResult(self, s: int, lpOverlapped: WSAOVERLAPPED, fWait: bool = False) -> tuple[int, int]:
        self.opened(s)
        return result(s, lpOverlapped, fWait)

    def flush_sends(self, opened: Opened) -> None:
        """End the sends that have not begun to be queued: 995 (OVERLAP-16). What the kernel has stays queued."""
        for request in tuple(opened.requests):
            if request.views is None and request.operation is not None:
                request.operation.cancel()

    def associate(self, s: int) -> None:
        """Note, for every sharer, that the socket reports to a completion port.

        Raises:
            WSAError: 10022, it does already, here or in another process (DUP-26).
        """
        descriptor = self.opened(s).descriptor
        if options.common(descriptor).has_port:
            raise WSAError(WSAEINVAL, "this socket is associated with a completion port already")
        options.change_common(descriptor, has_port=True)
