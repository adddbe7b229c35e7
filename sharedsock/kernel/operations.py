"""Operations that may have to wait: try, wait, try again.

An abort can land only while an operation waits, so an aborted receive took no bytes and an aborted accept no client;
a call that succeeded returns its result even if a close came meanwhile (rules 1 and 2). What a call has taken is kept
reachable from the socket until it is returned: an interrupt in between leaves it to the next call (rule 3).

Keeps I1 and I4. The fast paths, where nothing waits, are the faces' own: one frame, one system call.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from contextlib import suppress
from itertools import starmap
from socket import SO_ERROR, SOL_SOCKET
from threading import get_ident
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import numbers, system
from sharedsock.kernel.system import tcp_state
from sharedsock.kernel.waiting import READ, WRITE, wait
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket, OperationAborted, from_errno
from sharedsock.model.identity import PendingOperation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["READ", "WRITE", "Waiter", "aborted", "connect", "connect_outcome", "pending", "perform", "send_all"]

# While the last receive had to wait, the next one waits first, which saves the failing try; every 16th tries.
_PROBE_EVERY: Final = 16
_BACKLOG_RETRY_S: Final = 0.02
_TCP_CLOSE: Final = 7


class Waiter:
    """One operation that waits, as `pending_operations()` shows it and as a close finds it."""

    __slots__ = ("kind", "since_s", "taken", "thread_ident")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.since_s = time()
        self.thread_ident = get_ident()
        self.taken: list[Any] = []


def pending(kernel: KernelSocket) -> tuple[PendingOperation, ...]:
    """Return the operations of this process that wait on the socket now."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    rows = []
    for waiter in tuple(kernel.waiters):
        thread = threads.get(waiter.thread_ident)
        name, native_id = ("", 0) if thread is None else (thread.name, thread.native_id or 0)
        rows.append(PendingOperation(name, native_id, waiter.kind, waiter.since_s))
    return tuple(rows)


def aborted(kernel: KernelSocket, kind: str, bytes_transferred: int = 0) -> OperationAborted:
    """Build the error of an operation that a close of this process has ended."""
    if trace.hook is not None:
        trace.hit("op.aborted", number=kernel.number, kind=kind)
    return OperationAborted(
        f"{kind} ended: this process closed the descriptor in {kernel.aborted}; nothing was taken",
        operation=kind,
        bytes_transferred=bytes_transferred,
        closed_by=kernel.aborted,
    )


def perform(
    kernel: KernelSocket,
    kind: str,
    direction: int,
    timeout_s: float | None,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    keep: Callable[[Any], Any] | None = None,
    has_tried: bool = False,
) -> Any:
    """Try a call, wait while it would block, try again; return what it returned.

    Args:
        call: a nonblocking C method of `kernel`; a call that takes data has DONTWAIT in its flags.
        timeout_s: seconds; None waits for ever, 0 never waits.
        keep: makes of a result what the next call can use, if an interrupt comes before this one has returned it.
        has_tried: the caller's own try has just failed with BlockingIOError.

    Raises:
        OperationAborted: this process closed the descriptor while the call waited; it took nothing.
        NotASocket: it was closed before the call began to wait.
        TimeoutError: the time is over; the call took nothing.
        OSError: as the call.
    """
    deadline = None if timeout_s is None else monotonic() + timeout_s
    is_read = direction == READ
    wait_first = timeout_s != 0 and (has_tried or (is_read and 0 < kernel.streak < _PROBE_EVERY))
    waiter = Waiter(kind)
    taken = waiter.taken
    kernel.waiters[waiter] = None
    try:
        if trace.hook is not None:
            trace.hit("op.enter", number=kernel.number, kind=kind)
        if kernel.aborted is not None:
            raise NotASocket(f"{kind}: this process closed the descriptor in {kernel.aborted}")
        while True:
            if wait_first:
                if trace.hook is not None:
                    trace.hit("op.waiting", number=kernel.number, kind=kind)
                is_ready = wait(kernel, direction, deadline)
                if trace.hook is not None:
                    trace.hit("op.ready", number=kernel.number, kind=kind)
                # A waiter that sees both, the abort and data, leaves without taking.
                if kernel.aborted is not None:
                    raise aborted(kernel, kind)
                if not is_ready:
                    raise TimeoutError("timed out")
            # One C call takes and stores: no bytecode boundary, so no interrupt, can fall between.
            try:
                taken.extend(starmap(call, (arguments,)))
            except BlockingIOError:
                if timeout_s == 0:
                    raise
                wait_first = True
                continue
            except OSError as error:
                if error.errno == errno.EBADF and kernel.aborted is not None:
                    raise aborted(kernel, kind) from None
                raise
            if is_read:
                _note_streak(kernel, wait_first)
            if trace.hook is not None:
                trace.hit("op.done", number=kernel.number, kind=kind)
            return taken.pop()
    except BaseException:
        if taken and keep is not None:
            kernel.kept.append(keep(taken.pop()))
            numbers.calm[kernel.slot] = 0
        raise
    finally:
        # Race: a closer sets `drained` before it looks at the waiters; we leave before we look at `drained`.
        kernel.waiters.pop(waiter, None)
        if kernel.drained is not None:
            kernel.drained.set()


def _note_streak(kernel: KernelSocket, waited: bool) -> None:
    """Remember whether receiving had to wait; while it did not, or when a probe is due, the fast path is open."""
    if waited:
        kernel.streak = streak = kernel.streak % _PROBE_EVERY + 1
        is_calm = streak == _PROBE_EVERY
    else:
        kernel.streak = 0
        is_calm = True
    if kernel.kept or kernel.aborted is not None:
        is_calm = False
    numbers.calm[kernel.slot] = is_calm and kernel.slot != numbers.NEVER_CALM


def send_all(kernel: KernelSocket, data: memoryview, flags: int, timeout_s: float | None) -> None:
    """Send all bytes; on an abort the error carries how many were queued, and those follow the linger rules.

    Args:
        data: a contiguous view of bytes.

    Raises:
        OperationAborted: with `.bytes_transferred`.
    """
    deadline = None if timeout_s is None else monotonic() + timeout_s
    sent = 0
    while sent < len(data):
        left_s = None if deadline is None else max(deadline - monotonic(), 0.0)
        if left_s == 0 and timeout_s:
            raise TimeoutError("timed out")
        try:
            sent += perform(kernel, "sendall", WRITE, left_s, kernel.send, (data[sent:], flags))
        except OperationAborted as error:
            error.bytes_transferred = sent
            raise


def connect(kernel: KernelSocket, address: Any, timeout_s: float | None) -> None:
    """Connect, and wait for the outcome.

    Closing the descriptor ends the wait; the attempt belongs to the socket: dropped at its last close, else it goes on.

    Raises:
        BlockingIOError: timeout 0, and the attempt is under way.
        OperationAborted, TimeoutError: the attempt goes on without us.
    """
    try:
        kernel.connect(address)
        return
    except BlockingIOError as error:
        if timeout_s == 0:
            raise
        is_under_way = error.errno != errno.EAGAIN
    if is_under_way:
        perform(kernel, "connect", WRITE, timeout_s, connect_outcome, (kernel,), has_tried=True)
    else:
        _connect_to_full_backlog(kernel, address, timeout_s)


def connect_outcome(kernel: KernelSocket) -> None:
    """Report how an attempt ended; BlockingIOError while it goes on. SO_ERROR goes to whoever reads it first.

    Raises:
        OSError: ECONNREFUSED, ETIMEDOUT …; for a later reader ECONNREFUSED stands for whatever it was.
    """
    code = kernel.getsockopt(SOL_SOCKET, SO_ERROR)
    if code:
        raise from_errno(code, f"connect failed: {os.strerror(code)}")
    try:
        kernel.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        if tcp_state(kernel) == _TCP_CLOSE:
            raise from_errno(errno.ECONNREFUSED, "connect failed; another holder has read the reason") from None
        raise BlockingIOError(errno.EINPROGRESS, "connect in progress") from None


def _connect_to_full_backlog(kernel: KernelSocket, address: Any, timeout_s: float | None) -> None:
    """Connect an AF_UNIX socket to a listener whose backlog is full.

    The kernel answers EAGAIN, remembers nothing, and has no event for "there is room": only a blocking connect could
    wait, and nobody could abort it. So we try again at growing intervals, and wait for the waker in between.
    """
    deadline = None if timeout_s is None else monotonic() + timeout_s
    poll = system.make_poll()
    poll.register(kernel.waker.number, select.POLLIN)
    waiter = Waiter("connect")
    kernel.waiters[waiter] = None
    interval_s = 0.001
    try:
        while True:
            if kernel.aborted is not None:
                raise aborted(kernel, "connect")
            if trace.hook is not None:
                trace.hit("op.waiting", number=kernel.number, kind="connect")
            left_s = interval_s if deadline is None else min(interval_s, deadline - monotonic())
            if left_s <= 0:
                raise TimeoutError("timed out")
            if poll.poll(left_s * 1000):
                continue
            interval_s = min(interval_s * 2, _BACKLOG_RETRY_S)
            with suppress(BlockingIOError):
                kernel.connect(address)
                return
    finally:
        kernel.waiters.pop(waiter, None)
        if kernel.drained is not None:
            kernel.drained.set()
