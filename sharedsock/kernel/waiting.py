"""Waiting on {socket, waker}: one plain, level-triggered epoll set per process, descriptor and direction.

All threads of this process that wait for one direction of one descriptor share the set. Each event wakes one of
them; level triggering hands the wake on when that one leaves without taking. EPOLLEXCLUSIVE would be wrong: between
processes, a woken waiter that leaves takes the wake-up with it (F-122, spec/performance.md). Where no set can be had
(EMFILE, no epoll), poll() serves: right, but every event wakes every thread.

Keeps I7: a blocked thread makes no system call until something happens, and there is no lost wake-up:
the waker is in the set from its first moment, and nobody drains it.

The waker is made for the first wait: a socket on which nobody ever waits needs none. Where no number is left for it
(EMFILE), a wait is cut into slices, short enough for an abort to be seen in time, until there is one.
"""

from __future__ import annotations

import select
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import numbers, system
from sharedsock.kernel.teardown import silent_once_emptied
from sharedsock.kernel.waker import Waker

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["READ", "WRITE", "WaitSet", "pause", "set_of", "unregister", "wait", "waker_of"]

READ: Final = 0
WRITE: Final = 1

_POLL_EVENTS: Final = (select.POLLIN, select.POLLOUT)
# How long somebody without a waker may not see an abort.
_SLICE_S: Final = 0.02


class WaitSet:
    """An epoll set with a socket and its waker; its number is freed when the last waiter has left.

    Attributes:
        poll: epoll_wait: poll(timeout in seconds or None, most events).
    """

    __slots__ = ("_epoll", "_era", "number", "poll")

    def __init__(self, kernel: KernelSocket, waker: Waker, direction: int) -> None:
        self.number = -1
        self._era = numbers.current_era()
        with numbers.gate:
            epoll: Any = system.make_epoll()
            self._epoll = epoll
            self.number = epoll.fileno()
            numbers.own(self.number)
        self.poll = epoll.poll
        epoll.register(waker.number, select.EPOLLIN)
        epoll.register(kernel.number, (select.EPOLLIN, select.EPOLLOUT)[direction])

    def forget(self, number: int) -> None:
        """Take a socket out while the number still is that socket: a set that knows a closed one keeps reporting it."""
        with suppress(OSError):  # ENOENT, EBADF: somebody closed the number behind our back
            self._epoll.unregister(number)

    @silent_once_emptied
    def __del__(self) -> None:
        if getattr(self, "number", -1) < 0:  # no set could be had, or an interrupt came before it
            return
        if not numbers.release(self.number, self._era, self._epoll.close):
            _keep_for_ever.append(self._epoll)
        self.number = -1


# select.epoll closes its number when it is collected. In a forked child that number is closed already, and may be
# a stranger's by now: an inherited epoll object must never be collected.
_keep_for_ever: list[Any] = []


def waker_of(kernel: KernelSocket) -> Waker | None:
    """Return the waker of a socket, made for the first who is about to wait; None: no number is left for one."""
    waker = kernel.waker
    if waker is None:
        try:
            waker = Waker()
        except OSError:
            return None
        # Two threads may make one each, the first to store wins: threads change at calls, not between these lines.
        if kernel.waker is None:
            kernel.waker = waker
        else:
            waker = kernel.waker
        # Race: a close marks, and then looks whether there is a waker; we store it, and then look for the mark.
        # Test: tests/races/test_first_wait_meets_abort.py
        if kernel.aborted is not None:
            waker.signal()
    return waker


def set_of(kernel: KernelSocket, direction: int) -> WaitSet | None:
    """Return the set of a direction, made at its first use; None where none can be had, or the socket was aborted."""
    wait_set = kernel.sets[direction]
    if wait_set is None and kernel.aborted is None:
        waker = waker_of(kernel)
        if waker is None:
            return None
        try:
            wait_set = WaitSet(kernel, waker, direction)
        except OSError:
            return None
        # The first to store wins, as for the waker.
        if kernel.sets[direction] is None:
            kernel.sets[direction] = wait_set
        else:
            wait_set = kernel.sets[direction]
    if kernel.aborted is not None:
        # A close between the making and the storing (a signal handler's, on top of us) has not seen this set: drop
        # it, before it reports a socket that is no longer ours.
        if wait_set is not None:
            wait_set.forget(kernel.number)
        kernel.sets[direction] = None
        return None
    return wait_set


def unregister(kernel: KernelSocket) -> None:
    """Take the socket's number out of both sets, before the number stops being that socket (rule 6)."""
    for wait_set in tuple(kernel.sets):
        if wait_set is not None:
            wait_set.forget(kernel.number)


def wait(kernel: KernelSocket, direction: int, deadline: float | None) -> bool:
    """Wait until the socket may be ready or its descriptor is aborted; report False when the deadline has passed.

    The caller looks at `kernel.aborted` first, then tries: a true answer is a hint, another process may be faster.
    """
    timeout_s: float | None = None
    if deadline is not None:
        timeout_s = deadline - monotonic()
        if timeout_s <= 0:
            return False
    wait_set = set_of(kernel, direction)
    if wait_set is not None:
        return bool(wait_set.poll(timeout_s, 1))
    poll = system.make_poll()
    waker = waker_of(kernel)
    if waker is not None:
        poll.register(waker.number, select.POLLIN)
    if kernel.aborted is None:
        poll.register(kernel.number, _POLL_EVENTS[direction])
    if waker is None and (timeout_s is None or timeout_s > _SLICE_S):
        poll.poll(_SLICE_S * 1000.0)
        return True
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000.0))


def pause(kernel: KernelSocket, interval_s: float, deadline: float | None) -> bool:
    """Wait for the waker alone, at most `interval_s`, which is short; report False when the deadline has passed.

    For the few conditions the kernel has no event for, or reports an event that is none.
    """
    left_s = interval_s if deadline is None else min(interval_s, deadline - monotonic())
    if left_s <= 0:
        return False
    poll = system.make_poll()
    waker = waker_of(kernel)
    if waker is not None:
        poll.register(waker.number, select.POLLIN)
    poll.poll(left_s * 1000.0)
    return True
