"""The base provider's data: WSPSend, WSPRecv and their kin, as calls that wait or do not; requests are elsewhere.

A blocking send sends everything; a nonblocking one what there is room for. What a thread's hook cancels in the middle
of a stream has torn it: the connection is reset, and only a close is left (CANCEL-4).

Source: LPWSPSEND, LPWSPSENDTO, LPWSPRECV, LPWSPRECVFROM.
"""

from __future__ import annotations

import errno
import socket
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final

from sharedsock.descriptors import events, lingering, options, transfer
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel.conversation import BUSY, SILENT, faces
from sharedsock.kernel.numbers import here
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model import trace
from sharedsock.model.winsock import (
    FD_OOB,
    FD_READ,
    FD_WRITE,
    MSG_PARTIAL,
    MSG_WAITALL,
    WSAECONNRESET,
    WSAEINTR,
    WSAEMSGSIZE,
    WSAENOTCONN,
    WSAEOPNOTSUPP,
)
from sharedsock.spi.base_requests import Requests
from sharedsock.spi.base_sockets import Opened, is_nonblocking, wait_once_or_with_hook
from sharedsock.spi.buffers import (
    SEND_FLAGS,
    checked_buffers,
    fill,
    kernel_flags,
    receive_flags,
    rest_of,
    with_address,
)
from sharedsock.spi.callbacks import hooks
from sharedsock.spi.errors import WSAError, translated

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.registry.page import CommonState
    from sharedsock.spi.overlapped import WSAOVERLAPPED, CompletionRoutine
    from sharedsock.spi.provider import Buffers
    from sharedsock.spi.waits import WSATHREADID

__all__ = ["Transfers"]

_SEND_FLAGS: Final = DONTWAIT | NOSIGNAL


class Transfers(Requests):
    """Bytes and messages, there and back."""

    # -- sending ---------------------------------------------------------------------------------------------

    def WSPSend(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> int:
        opened = self.opened(s)
        if lpOverlapped is not None:
            return self.begin_send(opened, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId)
        # The hot path: one buffer of bytes, and room for it.
        if not dwFlags and here and lpBuffers.__class__ is list and len(lpBuffers) == 1:
            data = lpBuffers[0]
            if data.__class__ is bytes:
                descriptor = opened.descriptor
                kernel = descriptor.kernel
                try:
                    sent = kernel.send(data, _SEND_FLAGS)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    raise _sending_failed(descriptor, transfer.settle(descriptor, kernel, error)) from error
                if sent == len(data):
                    return sent
                return self._send_rest(opened, [memoryview(data)], sent, 0)
        views = checked_buffers(lpBuffers, are_written=False)
        return self._send_rest(opened, views, 0, kernel_flags(dwFlags, SEND_FLAGS, MSG_PARTIAL))

    def _send_rest(self, opened: Opened, views: list[memoryview], sent: int, flags: int) -> int:
        """Send on from where the hot path has come to: everything if blocking, else what there is room for."""
        descriptor = opened.descriptor
        whole = sum(len(view) for view in views)
        is_stream = descriptor.type == socket.SOCK_STREAM

        def attempt(timeout_s: float | None) -> int:
            nonlocal sent
            while True:
                arguments: tuple[Any, ...] = (rest_of(views, sent), [], flags | _SEND_FLAGS)
                sent += transfer.send(descriptor, "send", "sendmsg", arguments, timeout_s=timeout_s)
                if sent >= whole or not is_stream:
                    return sent

        try:
            return wait_once_or_with_hook(descriptor, attempt)
        except BlockingIOError as error:
            if events.is_registered(descriptor):
                events.reenable(descriptor, FD_WRITE)
            if sent:
                return sent
            raise translated(error) from error
        except OSError as error:
            if isinstance(error, WSAError) and error.winerror == WSAEINTR and sent:
                opened.is_damaged = True
                lingering.reset(descriptor.kernel, others_may_hold=True)
            failure = _sending_failed(descriptor, error)
            failure.bytes_transferred = sent
            raise failure from error

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
        opened = self.opened(s)
        descriptor = opened.descriptor
        if lpTo is None or descriptor.type == socket.SOCK_STREAM:  # a stream ignores the address
            return self.WSPSend(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId)
        if lpOverlapped is not None:
            return self.begin_send(opened, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId, lpTo)
        views = checked_buffers(lpBuffers, are_written=False)
        flags = kernel_flags(dwFlags, SEND_FLAGS, MSG_PARTIAL) | _SEND_FLAGS

        def attempt(timeout_s: float | None) -> int:
            arguments: tuple[Any, ...] = (views, [], flags, lpTo)
            return int(with_address(_send_message, descriptor, arguments, timeout_s))

        try:
            return wait_once_or_with_hook(descriptor, attempt)
        except BlockingIOError as error:
            if events.is_registered(descriptor):
                events.reenable(descriptor, FD_WRITE)
            raise translated(error) from error
        except OSError as error:
            raise translated(error) from error

    # -- receiving -------------------------------------------------------------------------------------------

    def WSPRecv(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int]:
        opened = self.opened(s)
        if lpOverlapped is not None:
            count, flags, _ = self.begin_receive(
                opened, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId
            )
            return count, flags
        # The hot paths: one bytearray, a blocking stream, and nobody who wants to hear of it; each line was measured.
        # As in SharedSocket.recv: data is ready, and a conversation, where each receive waits. One frame each, and
        # between the C call that takes and the return the interpreter looks for no signal.
        descriptor = opened.descriptor
        kernel = descriptor.kernel
        try:
            client = descriptor.client
            state = descriptor.local if client is None else client.common(descriptor.slot)
            if state is opened.plain and not dwFlags and lpBuffers.__class__ is list and len(lpBuffers) == 1:
                buffer = lpBuffers[0]
                talk = opened.talk
                if buffer.__class__ is bytearray and buffer and here and trace.hook is None and not hooks:
                    if opened.calm:
                        for count in starmap(kernel.recv_into, ((buffer, 0, DONTWAIT),)):
                            if count:
                                return count, 0
                            options.verdict_on_empty(descriptor)
                            return 0, 0
                    if talk.polled == len(buffer):
                        arrivals = talk.arrivals
                        try:
                            talk.polled = BUSY
                            opened.arguments[0] = buffer
                            talk.wait()
                            if talk.kernel.aborted is not None:
                                raise talk.aborted()
                            talk.polled = talk.next
                        except BaseException:
                            talk.leave()
                            raise
                        try:
                            for count in arrivals:  # type: ignore[assignment]  # after `fill` it counts
                                opened.arguments[0] = None
                                if count:
                                    return count, 0
                                options.verdict_on_empty(descriptor)
                                return 0, 0
                            count = talk.renew()  # type: ignore[assignment]
                        except BlockingIOError:  # another thread or process was faster
                            arrivals = None  # type: ignore[assignment]  # says that we wait elsewhere
                            return self._receive_into(opened, buffer, has_tried=True), 0
                        if not count:
                            options.verdict_on_empty(descriptor)
                        return count, 0
        except BlockingIOError:
            return self._receive_into(opened, lpBuffers[0], has_tried=True), 0
        except OSError as error:
            raise _receiving_failed(descriptor, transfer.settle(descriptor, kernel, error)) from error
        if self._may_be_short(opened, state, lpBuffers, dwFlags):
            return self._receive_into(opened, lpBuffers[0]), 0
        count, flags, _ = self._receive(opened, lpBuffers, dwFlags)
        return count, flags

    def _may_be_short(self, opened: Opened, state: CommonState, lpBuffers: Any, dwFlags: int) -> bool:
        """Whether a receive may go the short way; where it may, remember with which common state."""
        if dwFlags or opened.descriptor.type != socket.SOCK_STREAM or hooks:
            return False
        if state.nonblocking or state.events or not isinstance(lpBuffers, list) or len(lpBuffers) != 1:
            return False
        opened.plain = None if state.shut_receive else state
        return lpBuffers[0].__class__ is bytearray and bool(lpBuffers[0])

    def _receive_into(self, opened: Opened, buffer: bytearray, *, has_tried: bool = False) -> int:
        """Receive what a blocking stream has; where the last ones had to wait, the next ones are a conversation."""
        descriptor = opened.descriptor
        if not opened.calm and opened.talk.polled != len(buffer):
            # Before this one: behind it, an interrupt would lose what it took.
            opened.talk = SILENT
            talk = transfer.converse(descriptor, len(buffer), DONTWAIT, may_hold=False)
            if talk is not SILENT:
                opened.arguments = talk.fill(DONTWAIT)
                opened.talk = talk
        try:
            count: int = transfer.receive(
                descriptor,
                "recv",
                "recv_into",
                (buffer, 0, DONTWAIT),
                lambda count: Kept(bytes(buffer[:count])),
                lambda kept: fill([memoryview(buffer)], kept.data),
                len(buffer),
                has_tried,
                timeout_s=None,
            )
            if not count:
                options.verdict_on_empty(descriptor)
        except OSError as error:
            raise _receiving_failed(descriptor, error) from error
        return count

    def WSPRecvFrom(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int, Any]:
        opened = self.opened(s)
        if lpOverlapped is not None:
            return self.begin_receive(opened, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId)
        return self._receive(opened, lpBuffers, dwFlags)

    def _receive(self, opened: Opened, lpBuffers: Buffers, dwFlags: int) -> tuple[int, int, Any]:
        descriptor = opened.descriptor
        views = checked_buffers(lpBuffers, are_written=True)
        flags = receive_flags(dwFlags, is_stream=descriptor.type == socket.SOCK_STREAM)
        limit = len(views[0]) if len(views) == 1 else sum(len(view) for view in views)
        try:
            if dwFlags & MSG_WAITALL:
                if is_nonblocking(descriptor):
                    raise WSAError(WSAEOPNOTSUPP, "MSG_WAITALL waits, and the socket is nonblocking")
                count = 0
                while count < limit:
                    more, _, _ = self._receive_once(descriptor, rest_of(views, count), limit - count, flags)
                    if not more:
                        break
                    count += more
                return count, 0, None
            return self._receive_once(descriptor, views, limit, flags)
        except OSError as error:
            raise _receiving_failed(descriptor, error) from error
        finally:
            if not descriptor.is_closed and events.is_registered(descriptor):
                events.reenable(descriptor, FD_READ | FD_OOB)  # also where it has failed (EVENT-7)

    def _receive_once(self, descriptor: Any, views: list[memoryview], limit: int, flags: int) -> tuple[int, int, Any]:
        """Receive one message, or what a stream has."""
        if len(views) == 1 and descriptor.type == socket.SOCK_STREAM:
            view = views[0]
            count = wait_once_or_with_hook(
                descriptor,
                lambda timeout_s: transfer.receive(
                    descriptor,
                    "recv",
                    "recv_into",
                    (view, 0, flags | DONTWAIT),
                    lambda count: Kept(bytes(view[:count])),
                    lambda kept: fill(views, kept.data),
                    limit,
                    timeout_s=timeout_s,
                ),
            )
            if not count and limit and not flags & socket.MSG_OOB:
                options.verdict_on_empty(descriptor)
            return count, 0, None
        count, _, found, address = wait_once_or_with_hook(
            descriptor,
            lambda timeout_s: transfer.receive(
                descriptor,
                "recv",
                "recvmsg_into",
                (views, 0, flags | DONTWAIT),
                lambda result: Kept(b"".join(views)[: result[0]], result[3], (), result[2]),
                lambda kept: (fill(views, kept.data), [], kept.flags, kept.address),
                limit,
                timeout_s=timeout_s,
            ),
        )
        if not count and limit:
            options.verdict_on_empty(descriptor)
        if found & socket.MSG_TRUNC and descriptor.type != socket.SOCK_STREAM:
            raise WSAError(WSAEMSGSIZE, "the message is longer than the buffers; the rest of it is lost")
        return count, 0, address or None


def _receiving_failed(descriptor: Descriptor, error: OSError) -> WSAError:
    """Translate the error of a receive: after a reset that a sharer has made, Linux says ENOTCONN."""
    if error.errno == errno.ENOTCONN and options.common(descriptor).reset_seen:
        return WSAError(WSAECONNRESET)
    return translated(error)


def _sending_failed(descriptor: Descriptor, error: OSError) -> WSAError:
    """Translate the error of a send: Linux says EPIPE also where there never was a connection."""
    if error.errno == errno.EPIPE and descriptor.type == socket.SOCK_STREAM:
        try:
            descriptor.kernel.recv(1, socket.MSG_PEEK | DONTWAIT)
        except OSError as probe:
            if probe.errno == errno.ENOTCONN:
                return WSAError(WSAECONNRESET if options.common(descriptor).reset_seen else WSAENOTCONN)
    return translated(error)


def _send_message(descriptor: Any, arguments: tuple[Any, ...], timeout_s: float | None) -> int:
    sent: int = transfer.send(descriptor, "sendto", "sendmsg", arguments, timeout_s=timeout_s)
    return sent


faces.add(Transfers.WSPRecv.__code__)
