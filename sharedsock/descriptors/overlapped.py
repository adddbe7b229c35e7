"""Overlapped operations: a request is posted and returns at once; its outcome comes later, exactly once.

An `Operation` is a `concurrent.futures.Future`: PENDING until it is COMPLETED (a result, or the socket's own error) or
ABORTED by a close of its descriptor in this process: `OperationAborted`, 995, and nothing was taken. What can finish at
once has finished before `begin_*` returns (OVERLAP-1). The rest is served by the one service thread (`service`), in the
order in which it was posted (OVERLAP-9), whatever the timeout of the descriptor is (OVERLAP-15).

`begin_*` itself raises only where nothing was started: closed (10038), wrong arguments, too many requests (10035).
What the socket has to say, now or later, is in the operation. An operation belongs to the process, not to the thread
that began it: it outlives that thread, as a request on a completion port does (EXIT-2 concerns the others).

Source: "Overlapped I/O" and LPWSPCLOSESOCKET (Winsock SPI).
"""

from __future__ import annotations

import errno
import operator
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import starmap
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from sharedsock.descriptors import options, service, table, transfer
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import numbers, operations
from sharedsock.kernel.operations import READ, WRITE
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import ForkedDescriptor, from_errno
from sharedsock.model.identity import PendingOperation
from sharedsock.model.winsock import WSA_OPERATION_ABORTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.descriptors.stations import Station
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import DescriptorId

__all__ = [
    "Operation",
    "begin_accept",
    "begin_connect",
    "begin_recv",
    "begin_recvfrom",
    "begin_send",
    "begin_sendall",
]

T = TypeVar("T")
C = TypeVar("C")

# Of one descriptor; one more is refused with 10035 (OVERLAP-15).
MOST_PENDING: Final = 1 << 16


class Operation(Future[T]):
    """One overlapped request.

    Its callbacks run in the service thread, in the thread that cancels it, or, if it has ended, in the one that adds
    them. No lock is held; they may begin, cancel and close, but must not wait for another operation, and while one
    runs in the service thread no other request is served.

    A forked child has no part in it: `result()` and `exception()` of one that was pending raise `ForkedDescriptor`.

    Attributes:
        kind: "recv", "accept" …
        descriptor: the descriptor it was begun on.
        bytes_transferred: bytes a send has queued so far; they stay queued, whatever becomes of it.
    """

    def __init__(self, work: _Work, station: Station, descriptor: DescriptorId) -> None:
        super().__init__()
        self.kind = work.kind
        self.direction = work.direction
        self.descriptor = descriptor
        self.needs_clock = False
        self._era = numbers.current_era()
        self._work: _Work | None = work
        self._station: Station | None = station
        self._value: Any = None
        self._error: BaseException | None = None
        self.has_ended = False
        self._sent = 0
        issuer = threading.current_thread()
        self._facts = PendingOperation(issuer.name, issuer.native_id or 0, work.kind, time())

    @property
    def bytes_transferred(self) -> int:
        """The bytes a send has queued so far."""
        work = self._work
        return self._sent if work is None else work.sent

    def cancel(self) -> bool:
        """End the request alone, as CancelIoEx does; report whether it will have no other outcome.

        It has then taken and queued nothing: `cancelled()` is true, `result()` raises `CancelledError`, the descriptor
        stays usable. One that has an outcome, or of which bytes are queued already, is not cancelled: that would tear
        the stream, which only a close may do (OVERLAP-17). A connection attempt goes on without its request.
        """
        station = self._station
        if station is None or self._is_inherited() or self.bytes_transferred:
            return self.cancelled()
        try:
            if not service.withdraw(station, self):
                return self.cancelled()
        except BaseException:
            if station.is_out(self):  # cut short, it is cancelled all the same
                self._end_cancelled()
            raise
        self._end_cancelled()
        return True

    def _end_cancelled(self) -> None:
        super().cancel()
        self._let_go()
        self.set_running_or_notify_cancel()  # tells concurrent.futures.wait() and as_completed()

    def running(self) -> bool:
        """Report whether part of it is done: then it can not be cancelled any more."""
        return self.bytes_transferred > 0 and not self.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome, at most `timeout` seconds, and return or raise it.

        Raises:
            OperationAborted: 995, this process has closed the descriptor. CancelledError. TimeoutError: none yet.
        """
        self._refuse_in_child()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome, at most `timeout` seconds; return what `result` would raise."""
        self._refuse_in_child()
        return super().exception(timeout)

    def __repr__(self) -> str:
        state = "done" if self.done() else "pending"
        return f"<{type(self).__name__} {self.kind} descriptor={self.descriptor} {state}>"

    def _is_inherited(self) -> bool:
        table.note_fork()
        return self._era != numbers.current_era()

    def _refuse_in_child(self) -> None:
        if self._is_inherited() and self._station is not None:
            raise ForkedDescriptor(
                f"{self.kind} on descriptor {self.descriptor} was begun by the parent process, and pending at the fork",
                descriptor=self.descriptor,
            )

    # -- for its station; the first two under the station's lock -------------------------------------------------

    def attempt(self, rounds: int | None) -> bool:
        """Try without waiting; report whether there is an outcome."""
        work = self._work
        assert work is not None, "I1: a request that has ended is not tried again"
        try:
            self._value = work(rounds)
        except BlockingIOError as error:
            self.needs_clock = work.kind == "connect" and error.errno == errno.EAGAIN
            return False
        except Exception as error:
            if work.station.kernel.aborted is not None and isinstance(error, OSError):
                self.abort()
                return True
            self._error = error.with_traceback(None)  # the frames hold the number of a socket that may be closed
        self.has_ended = True
        return True

    def abort(self) -> None:
        """End because the descriptor was closed."""
        work = self._work
        assert work is not None, "I1: a request ends once"
        error = operations.aborted(work.station.kernel, self.kind, work.sent)
        error.winerror = WSA_OPERATION_ABORTED
        self._error = error
        self.has_ended = True

    def settle(self) -> None:
        """Give the outcome to whoever waits for it, and to the callbacks."""
        if self._era != numbers.current_era():
            return
        work, value, error = self._work, self._value, self._error
        if error is None and work is not None:
            try:
                value = work.finish(value)
            except Exception as failure:
                error = failure.with_traceback(None)
        self._let_go()
        with suppress(InvalidStateError):  # its owner has set an outcome himself
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)

    def facts(self) -> PendingOperation:
        """Say who waits for what, since when."""
        return self._facts

    def _let_go(self) -> None:
        work = self._work
        if work is not None:
            self._sent = work.sent
            work.release()
        self._work = self._station = self._value = self._error = None


# -- what the requests do -----------------------------------------------------------------------------------------


class _AtOnce:
    """A descriptor seen as one that never waits, on the kernel socket it had when the request was posted."""

    __slots__ = ("_descriptor", "kernel")

    timeout_s: Final = 0.0

    def __init__(self, descriptor: Descriptor, kernel: KernelSocket) -> None:
        object.__setattr__(self, "_descriptor", descriptor)
        object.__setattr__(self, "kernel", kernel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._descriptor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._descriptor, name, value)


class _Work:
    """One request's call: made again until it does not raise BlockingIOError.

    Attributes:
        taken: what a system call has returned, stored by the same C call: an interrupt of whoever tries, for this
            request or another's, neither loses it nor has it made twice (rule 3).
    """

    kind: str
    direction = READ

    @property
    def sent(self) -> int:
        """The bytes queued so far."""
        return 0

    def __init__(self, descriptor: Descriptor) -> None:
        kernel = transfer.require_kernel(descriptor)
        self.station = service.station_of(kernel)
        self.descriptor = cast("Descriptor", _AtOnce(descriptor, kernel))
        self.taken: list[Any] = []

    def __call__(self, rounds: int | None) -> Any:
        raise NotImplementedError

    def finish(self, value: Any) -> Any:
        """Turn what the call returned into the result; runs once, without a lock."""
        return value

    def keep(self, value: Any) -> Any:
        """Turn what was taken into what the next call can use; None where there is nothing to keep."""
        return None

    def release(self) -> None:
        """Let go of the caller's buffer."""


class _Receive(_Work):
    kind = "recv"

    def __init__(self, descriptor: Descriptor, bufsize: int, flags: int) -> None:
        self._bufsize = operator.index(bufsize)
        if self._bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self._flags = operator.index(flags) | DONTWAIT
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            arguments = (self._bufsize, self._flags)
            call = self.descriptor, self.kind, self.kind, arguments, self.keep, self._give, self._bufsize
            self.taken.extend(starmap(transfer.receive, (call,)))
        if self._bufsize and not self.keep(self.taken[0]).data:
            options.verdict_on_empty(self.descriptor)
        return self.taken[0]

    def keep(self, value: Any) -> Kept:
        return Kept(value)

    def _give(self, kept: Kept) -> Any:
        return kept.data


class _ReceiveFrom(_Receive):
    kind = "recvfrom"

    def keep(self, value: Any) -> Kept:
        return Kept(*value)

    def _give(self, kept: Kept) -> Any:
        return kept.data, kept.address


class _Send(_Work):
    kind = "send"
    direction = WRITE
    _sent_before = 0

    def __init__(self, descriptor: Descriptor, data: Any, flags: int) -> None:
        self._flags = operator.index(flags) | DONTWAIT | NOSIGNAL
        whole = memoryview(data)
        try:
            self._view = whole.cast("B") if whole.nbytes else memoryview(b"")
        finally:
            whole.release()
        try:
            super().__init__(descriptor)
        except BaseException:
            self._view.release()
            raise

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            self._send(self._view)
        return self.sent

    def _send(self, data: memoryview) -> None:
        self.taken.extend(starmap(transfer.send, ((self.descriptor, self.kind, "send", (data, self._flags)),)))

    @property
    def sent(self) -> int:
        return self._sent_before + int(sum(self.taken))

    def release(self) -> None:
        self._view.release()


class _SendAll(_Send):
    kind = "sendall"

    def __call__(self, rounds: int | None) -> None:
        while True:
            with self._view[self.sent :] as rest:
                self._send(rest)
            self._sent_before, self.taken = self.sent, []  # no interrupt between two stores
            if self.sent >= len(self._view):
                return
            if rounds is not None:
                rounds -= 1
                if rounds <= 0:  # others are served as well
                    raise BlockingIOError(errno.EWOULDBLOCK, "more to send")


class _Accept(_Work):
    kind = "accept"

    def __init__(self, descriptor: Descriptor, into: Callable[[Descriptor], Any]) -> None:
        self._into = into
        self._made: list[Descriptor] = []
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            self.taken.extend(starmap(transfer.accept, ((self.descriptor,),)))
        return self.taken[0]

    def finish(self, value: Any) -> Any:
        kernel, address = value
        return transfer.hand_over(self.descriptor, kernel, address, self._into, self._made)

    def keep(self, value: Any) -> Any:
        transfer.withdraw_face(self._made)
        return value


class _Connect(_Work):
    kind = "connect"
    direction = WRITE

    def __init__(self, descriptor: Descriptor, address: Any) -> None:
        self._address = address
        self._is_under_way = False
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> None:
        kernel = self.descriptor.kernel
        if not self._is_under_way:
            try:
                transfer.connect(self.descriptor, self._address)
            except BlockingIOError as error:
                self._is_under_way = error.errno != errno.EAGAIN  # a full AF_UNIX backlog remembers nothing
                raise
            return
        try:
            operations.connect_outcome(kernel)
        except BlockingIOError:
            raise
        except OSError as error:
            raise transfer.settle(self.descriptor, kernel, error) from None


def _begin(work: _Work, descriptor: Descriptor) -> Operation[Any]:
    """Post a request; raise only if it was not started."""
    station = work.station
    if len(station) >= MOST_PENDING:
        work.release()
        raise from_errno(errno.EAGAIN, f"descriptor {descriptor.id} has {len(station)} requests pending; wait for some")
    operation: Operation[Any] = Operation(work, station, descriptor.id)
    try:
        station.queues[work.direction].append(operation)
        if station.serve():
            try:
                looked_after = service.enlist(station)
            except (OSError, RuntimeError) as error:
                if service.withdraw(station, operation):
                    code = getattr(error, "errno", None) or errno.EAGAIN
                    raise from_errno(code, f"{work.kind} cannot wait: {error}") from error
            else:
                station.serve(looked_after)
        station.settle_own(operation)
        if operation.has_ended and not operation.done():  # the service thread has it in hand this moment
            Future.exception(operation)
        failure = Future.exception(operation) if operation.done() else None
        if isinstance(failure, TypeError | ValueError | OverflowError):  # wrong arguments: nothing was started
            raise failure
    except BaseException:
        service.withdraw(station, operation)
        service.recheck(station)
        _take_back(work)
        raise
    finally:
        if station.kernel.aborted is not None:
            # Race: a close that has marked, and has not looked for the station yet, will not find it any more.
            station.call()
            service.discard(station.kernel)
    return operation


def _take_back(work: _Work) -> None:
    """A caller was interrupted and will never see its operation: leave what it took to the next call (rule 3)."""
    kernel = work.station.kernel
    if kernel.aborted is None:
        for taken in work.taken:
            kept = work.keep(taken)
            if kept is not None:
                kernel.kept.append(kept)
                numbers.calm[kernel.slot] = 0
    work.release()


def begin_recv(descriptor: Descriptor, bufsize: int, flags: int) -> Operation[bytes]:
    """Begin to receive at most `bufsize` bytes."""
    return _begin(_Receive(descriptor, bufsize, flags), descriptor)


def begin_recvfrom(descriptor: Descriptor, bufsize: int, flags: int) -> Operation[tuple[bytes, Any]]:
    """Begin to receive at most `bufsize` bytes, and from where."""
    return _begin(_ReceiveFrom(descriptor, bufsize, flags), descriptor)


def begin_send(descriptor: Descriptor, data: Any, flags: int) -> Operation[int]:
    """Begin to send what there is room for; the buffer belongs to the operation until it has ended (CLOSE-27)."""
    return _begin(_Send(descriptor, data, flags), descriptor)


def begin_sendall(descriptor: Descriptor, data: Any, flags: int) -> Operation[None]:
    """Begin to send every byte; the buffer belongs to the operation until it has ended (CLOSE-27)."""
    return _begin(_SendAll(descriptor, data, flags), descriptor)


def begin_accept(descriptor: Descriptor, into: Callable[[Descriptor], C]) -> Operation[tuple[C, Any]]:
    """Begin to accept one client; `into` makes of it what the caller gets."""
    return _begin(_Accept(descriptor, into), descriptor)


def begin_connect(descriptor: Descriptor, address: Any) -> Operation[None]:
    """Begin to connect; a host name is resolved before this returns."""
    return _begin(_Connect(descriptor, address), descriptor)
