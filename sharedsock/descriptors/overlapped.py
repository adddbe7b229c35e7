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
import threading
from concurrent.futures import Future, InvalidStateError
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sharedsock.descriptors import requests, service, table
from sharedsock.kernel import numbers, operations
from sharedsock.model.errors import ForkedDescriptor, from_errno
from sharedsock.model.identity import PendingOperation
from sharedsock.model.winsock import WSA_OPERATION_ABORTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.descriptors.requests import Work
    from sharedsock.descriptors.stations import Station
    from sharedsock.model.identity import DescriptorId

__all__ = [
    "Operation",
    "begin_accept",
    "begin_connect",
    "begin_recv",
    "begin_recvall",
    "begin_recvfrom",
    "begin_send",
    "begin_sendall",
    "begin_sendto",
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
        bytes_transferred: bytes a send has queued so far; they stay queued, whatever becomes of it. Of a receive that
            waits for all its bytes, those that have come.
    """

    def __init__(self, work: Work, station: Station, descriptor: DescriptorId) -> None:
        super().__init__()
        self.kind = work.kind
        self.direction = work.direction
        self.descriptor = descriptor
        self.needs_clock = False
        self._era = numbers.current_era()
        self._work: Work | None = work
        self._station: Station | None = station
        self._value: Any = None
        self._error: BaseException | None = None
        self.has_ended = False
        self._sent = 0
        issuer = threading.current_thread()
        self._facts = PendingOperation(issuer.name, issuer.native_id or 0, work.kind, time())

    @property
    def bytes_transferred(self) -> int:
        """The bytes a send has queued so far, or a receive of all has taken."""
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
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:  # its owner has set an outcome himself
            pass
        except MemoryError:
            self._value, self._error = value, error  # for the next try
            raise

    def facts(self) -> PendingOperation:
        """Say who waits for what, since when."""
        return self._facts

    def _let_go(self) -> None:
        work = self._work
        if work is not None:
            self._sent = work.sent
            work.release()
        self._work = self._station = self._value = self._error = None


def _begin(work: Work, descriptor: Descriptor) -> Operation[Any]:
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


def _take_back(work: Work) -> None:
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
    return _begin(requests.Receive(descriptor, bufsize, flags), descriptor)


def begin_recvall(descriptor: Descriptor, bufsize: int, flags: int) -> Operation[bytes]:
    """Begin to receive `bufsize` bytes of a stream; fewer come before the peer's FIN only.

    What had come before an error or a close is lost with the connection; `bytes_transferred` says how much.
    """
    return _begin(requests.ReceiveAll(descriptor, bufsize, flags), descriptor)


def begin_recvfrom(descriptor: Descriptor, bufsize: int, flags: int) -> Operation[tuple[bytes, Any]]:
    """Begin to receive at most `bufsize` bytes, and from where."""
    return _begin(requests.ReceiveFrom(descriptor, bufsize, flags), descriptor)


def begin_send(descriptor: Descriptor, data: Any, flags: int) -> Operation[int]:
    """Begin to send what there is room for; the buffer belongs to the operation until it has ended (CLOSE-27)."""
    return _begin(requests.Send(descriptor, data, flags), descriptor)


def begin_sendall(descriptor: Descriptor, data: Any, flags: int) -> Operation[None]:
    """Begin to send every byte; the buffer belongs to the operation until it has ended (CLOSE-27)."""
    return _begin(requests.SendAll(descriptor, data, flags), descriptor)


def begin_sendto(descriptor: Descriptor, data: Any, flags: int, address: Any) -> Operation[int]:
    """Begin to send one message to an address; a host name is resolved before this returns. As `begin_send`."""
    return _begin(requests.SendTo(descriptor, data, flags, address), descriptor)


def begin_accept(descriptor: Descriptor, into: Callable[[Descriptor], C]) -> Operation[tuple[C, Any]]:
    """Begin to accept one client; `into` makes of it what the caller gets."""
    return _begin(requests.Accept(descriptor, into), descriptor)


def begin_connect(descriptor: Descriptor, address: Any) -> Operation[None]:
    """Begin to connect; a host name is resolved before this returns."""
    return _begin(requests.Connect(descriptor, address), descriptor)
