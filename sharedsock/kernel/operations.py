"""Operations that may have to wait: try, wait, try again.

An abort can land only while an operation waits, so an aborted receive took no bytes and an aborted accept no client;
a call that succeeded returns its result even if a close came meanwhile (rules 1 and 2). What a call has taken is kept
reachable from the socket until it is returned: an interrupt in between leaves it to the next call (rule 3).

Keeps I1 and I4. The fast paths, where nothing waits, are the faces' own: one frame, one system call.
"""

from __future__ import annotations

import errno
import os
import threading
from itertools import starmap
from socket import SO_ERROR, SOL_SOCKET
from threading import get_ident
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sharedsock.kernel import numbers
from sharedsock.kernel.system import stay_nonblocking, tcp_state
from sharedsock.kernel.waiting import READ, WRITE, pause, wait
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket, OperationAborted, from_errno
from sharedsock.model.identity import PendingOperation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.sockets import KernelSocket

__all__ = [
    "PROBE_EVERY",
    "READ",
    "THREAD",
    "WRITE",
    "Waiter",
    "aborted",
    "connect",
    "connect_outcome",
    "keep_for_next",
    "note_streak",
    "pending",
    "perform",
    "send_all",
    "tell_closers",
]

Waiter: TypeAlias = list[Any]
"""One operation inside `perform`: [kind, since when (monotonic), thread ident], and then what its call has taken.

A plain list, because every blocking call makes one: an object with an __init__ costs 250 ns more.
"""
THREAD: Final = 2
_TAKEN: Final = 3

# While the last receive had to wait, the next one waits first, which saves the failing try; every 16th tries.
PROBE_EVERY: Final = 16
_BACKLOG_RETRY_S: Final = 0.02
_FIRST_PAUSE_S: Final = 0.001
_TCP_CLOSE: Final = 7
# So many "ready" in a row that were not, faster than this each, are no competition but a condition that poll reports
# and the call does not see: a full peer of an unconnected AF_UNIX datagram socket, a queued error message.
_LOSSES: Final = 16
_SPIN_S: Final = 0.0002


def pending(kernel: KernelSocket) -> tuple[PendingOperation, ...]:
    """Return the operations of this process that wait on the socket now.

    The first look at a conversation says since when it may have waited at most: at most 256 receives ago, which were
    quick when it began. Later looks are exact.
    """
    threads = {thread.ident: thread for thread in threading.enumerate()}
    epoch_s = time() - monotonic()
    rows = []
    waiters = [tuple(waiter[:_TAKEN]) for waiter in tuple(kernel.waiters.values())]
    if kernel.talk is not None:
        inside, since_s = kernel.talk.look_inside()
        if inside:
            waiters.append(("recv", since_s, inside))
    for kind, since_s, ident in waiters:
        if kind is None:  # housekeeping, over in a moment
            continue
        thread = threads.get(ident)
        name, native_id = ("", 0) if thread is None else (thread.name, thread.native_id or 0)
        rows.append(PendingOperation(name, native_id, kind, epoch_s + since_s))
    return tuple(rows)


def aborted(kernel: KernelSocket, kind: str, bytes_transferred: int = 0) -> OperationAborted:
    """Build the error of an operation that a close of this process has ended."""
    if trace.hook is not None:
        trace.hit("op.aborted", number=kernel.number, kind=kind)
    taken = f"{bytes_transferred} bytes were queued" if bytes_transferred else "nothing was taken"
    return OperationAborted(
        f"{kind} ended: this process closed the descriptor in {kernel.aborted}; {taken}",
        operation=kind,
        bytes_transferred=bytes_transferred,
        closed_by=str(kernel.aborted),
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
    at_loss: Callable[[], object] | None = None,
) -> Any:
    """Try a call, wait while it would block, try again; return what it returned.

    Args:
        call: a nonblocking C method of `kernel`; a call that takes data has DONTWAIT in its flags.
        timeout_s: seconds; None waits for ever, 0 never waits.
        keep: makes of a result what the next call can use, if an interrupt comes before this one has returned it.
        has_tried: the caller's own try has just failed with BlockingIOError.
        at_loss: called when "ready" was not; may raise, where the kernel reports an end that the call does not see.

    Raises:
        OperationAborted: this process closed the descriptor while the call waited; it took nothing.
        NotASocket: it was closed before the call began to wait.
        TimeoutError: the time is over; the call took nothing.
        OSError: as the call.
    """
    # The hot path of a conversation: a blocking receive is one pass through here, so each line was measured.
    now_s = monotonic()
    deadline = None if timeout_s is None else now_s + timeout_s
    left_s = timeout_s
    waiter: Waiter = [kind, now_s, get_ident()]
    key = id(waiter)
    waiters = kernel.waiters
    try:
        waiters[key] = waiter
        if trace.hook is not None:
            trace.hit("op.enter", number=kernel.number, kind=kind)
        if kernel.aborted is not None:
            raise NotASocket(f"{kind}: this process closed the descriptor in {kernel.aborted}")
        must_wait = timeout_s != 0 and (has_tried or (direction == READ and 0 < kernel.streak < PROBE_EVERY))
        losses = 0
        lost_at_s = 0.0
        while True:
            if must_wait:
                if trace.hook is not None:
                    trace.hit("op.waiting", number=kernel.number, kind=kind)
                wait_set = kernel.sets[direction]
                if wait_set is None or (left_s is not None and left_s <= 0):
                    is_ready = wait(kernel, direction, deadline)
                else:
                    is_ready = wait_set.poll(left_s, 1)
                if trace.hook is not None:
                    trace.hit("op.ready", number=kernel.number, kind=kind)
                # A waiter that sees both, the abort and data, leaves without taking.
                if kernel.aborted is not None:
                    raise aborted(kernel, kind)
                if not is_ready:
                    raise TimeoutError("timed out")
            try:
                # One C instruction takes and stores: no interrupt can fall between.
                waiter += starmap(call, (arguments,))
            except OSError as error:
                if kernel.is_buried:  # the call met the dead file
                    raise aborted(kernel, kind) from None
                if timeout_s == 0 or not isinstance(error, BlockingIOError):
                    raise
                if must_wait:
                    losses += 1
                    if at_loss is not None:
                        at_loss()
                    if losses == 1:
                        lost_at_s = monotonic()
                    elif losses % _LOSSES == 0:
                        lost_at_s = _pause_if_spinning(kernel, losses, lost_at_s, deadline)
                if deadline is not None:
                    left_s = deadline - monotonic()
                must_wait = True
                continue
            if direction == READ:
                if must_wait and 0 < kernel.streak < PROBE_EVERY - 1:
                    kernel.streak += 1
                else:
                    note_streak(kernel, must_wait)
            if trace.hook is not None:
                trace.hit("op.done", number=kernel.number, kind=kind)
            # Rule 3: the interpreter looks for signals after a call, so not between these lines and our caller's next.
            result = waiter[_TAKEN]
            del waiters[key]
            if kernel.closers:
                tell_closers(kernel)
            return result
    except BaseException:
        if key in waiters:
            del waiters[key]
        if kernel.closers:
            tell_closers(kernel)
        if keep is not None and len(waiter) > _TAKEN:
            keep_for_next(kernel, keep(waiter[_TAKEN]))
        raise


def keep_for_next(kernel: KernelSocket, taken: Any) -> None:
    """Keep what an interrupted call had taken, and send the next call the way that looks for it."""
    kernel.kept.append(taken)
    numbers.calm[kernel.slot] = 0
    if kernel.talk is not None:
        kernel.talk.silence()


def tell_closers(kernel: KernelSocket) -> None:
    """Having left, tell each closer for whom we were the last to wait for (sockets.wait_drained)."""
    for told, own_count in tuple(kernel.closers):
        if len(kernel.waiters) <= own_count:
            told.put(None)


def note_streak(kernel: KernelSocket, has_waited: bool) -> None:
    """Remember whether receiving had to wait; while it did not, or when a probe is due, the fast path is open."""
    kernel.streak = kernel.streak % PROBE_EVERY + 1 if has_waited else 0
    if kernel.streak == 1:
        kernel.streak_s = monotonic()
    if 0 < kernel.streak < PROBE_EVERY:
        numbers.calm[kernel.slot] = 0
        return
    numbers.calm[kernel.slot] = kernel.slot != numbers.NEVER_CALM
    # Race: a close or an interrupted call in another thread marks first and closes the fast path then; we open it
    # first and look for the mark then.
    if kernel.kept or kernel.aborted is not None:
        numbers.calm[kernel.slot] = 0


def _pause_if_spinning(kernel: KernelSocket, losses: int, since_s: float, deadline: float | None) -> float:
    """Pause where "ready" has been wrong too fast and too often; return the time from which to count on (I7)."""
    if monotonic() - since_s < _LOSSES * _SPIN_S:
        rounds = min(losses // _LOSSES, 8)
        pause(kernel, min(_FIRST_PAUSE_S * 2 ** (rounds - 1), _BACKLOG_RETRY_S), deadline)
    return monotonic()


def send_all(kernel: KernelSocket, data: memoryview, flags: int, timeout_s: float | None, sent: int = 0) -> None:
    """Send all bytes; on an abort the error carries how many were queued, and those follow the linger rules.

    Args:
        data: a contiguous view of bytes.
        sent: how many of them this operation has queued before.

    Raises:
        OperationAborted: with `.bytes_transferred`.
    """
    deadline = None if timeout_s is None else monotonic() + timeout_s
    while sent < len(data):
        left_s = None if deadline is None else max(deadline - monotonic(), 0.0)
        if left_s == 0 and timeout_s:
            raise TimeoutError("timed out")
        try:
            sent += perform(kernel, "sendall", WRITE, left_s, kernel.send, (data[sent:], flags))
        except OperationAborted as error:
            error.bytes_transferred = sent
            raise
        except NotASocket:
            if not sent:
                raise
            raise aborted(kernel, "sendall", sent) from None  # closed between two sends of one operation


def connect(kernel: KernelSocket, address: Any, timeout_s: float | None) -> None:
    """Connect, and wait for the outcome.

    Closing the descriptor ends the wait; the attempt belongs to the socket: dropped at its last close, else it goes on.

    Raises:
        BlockingIOError: timeout 0, and the attempt is under way.
        OperationAborted, TimeoutError: the attempt goes on without us.
    """
    try:
        stay_nonblocking(kernel)
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
    now_s = monotonic()
    deadline = None if timeout_s is None else now_s + timeout_s
    waiter: Waiter = ["connect", now_s, get_ident()]
    key = id(waiter)
    interval_s = _FIRST_PAUSE_S
    try:
        kernel.waiters[key] = waiter
        while True:
            if trace.hook is not None:
                trace.hit("op.waiting", number=kernel.number, kind="connect")
            if not pause(kernel, interval_s, deadline):
                raise TimeoutError("timed out")
            if trace.hook is not None:
                trace.hit("op.ready", number=kernel.number, kind="connect")
            if kernel.aborted is not None:
                raise aborted(kernel, "connect")
            interval_s = min(interval_s * 2, _BACKLOG_RETRY_S)
            try:
                stay_nonblocking(kernel)
                kernel.connect(address)
                return
            except BlockingIOError:
                continue
            except OSError:
                if kernel.is_buried:  # the call met the dead file
                    raise aborted(kernel, "connect") from None
                raise
    finally:
        if key in kernel.waiters:
            del kernel.waiters[key]
        if kernel.closers:
            tell_closers(kernel)
