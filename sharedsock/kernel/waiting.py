"""Waiting on {socket, waker}: one plain, level-triggered epoll set per process, descriptor and direction.

All threads of this process that wait for one direction of one descriptor share the set. Each event wakes one of
them; level triggering hands the wake on when that one leaves without taking. EPOLLEXCLUSIVE would be wrong: between
processes, a woken waiter that leaves takes the wake-up with it (F-122, spec/performance.md). Where no set can be had
(EMFILE, no epoll), poll() serves: right, but every event wakes every thread.

Keeps I7: a blocked thread makes no system call until something happens, and there is no lost wake-up:
the waker is in the set from its first moment, and nobody drains it.
"""

from __future__ import annotations

import select
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import numbers, system

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["READ", "WRITE", "WaitSet", "set_of", "unregister", "wait"]

READ: Final = 0
WRITE: Final = 1

_POLL_EVENTS: Final = (select.POLLIN, select.POLLOUT)


class WaitSet:
    """An epoll set with a socket and its waker; its number is freed when the last waiter has left."""

    __slots__ = ("_epoll", "_era", "number", "poll")

    def __init__(self, kernel: KernelSocket, direction: int) -> None:
        with numbers.gate:
            epoll = system.make_epoll()
            self._epoll: Any = epoll
            self._era = numbers.current_era()
            self.number: int = numbers.own(epoll.fileno())
            self.poll = epoll.poll
        epoll.register(kernel.waker.number, select.EPOLLIN)
        epoll.register(kernel.number, (select.EPOLLIN, select.EPOLLOUT)[direction])

    def forget(self, number: int) -> None:
        """Take a socket out, while the number still is that socket: a set that knows a closed one keeps reporting it."""
        with suppress(OSError):  # ENOENT, EBADF: somebody closed the number behind our back
            self._epoll.unregister(number)

    def __del__(self) -> None:
        if numbers.disown(self.number, self._era):
            self._epoll.close()
        else:
            _keep_for_ever.append(self._epoll)


# select.epoll closes its number when it is collected. In a forked child that number is closed already, and may be
# a stranger's by now: an inherited epoll object must never be collected.
_keep_for_ever: list[Any] = []
_making = threading.RLock()


def renew_lock() -> None:
    """In a forked child: the lock may have been held by a thread that does not exist here."""
    global _making
    _making = threading.RLock()


def set_of(kernel: KernelSocket, direction: int) -> WaitSet | None:
    """Return the set of a direction, made at its first use; None where none can be had, or the socket was aborted."""
    wait_set = kernel.sets[direction]
    if wait_set is not None:
        return wait_set
    with _making:
        wait_set = kernel.sets[direction]
        if wait_set is None and kernel.aborted is None:
            try:
                wait_set = WaitSet(kernel, direction)
            except OSError:
                return None
            kernel.sets[direction] = wait_set
    if kernel.aborted is not None and wait_set is not None:
        # A close in a signal handler, between the making and the storing, has not seen this set.
        wait_set.forget(kernel.number)
    return wait_set


def unregister(kernel: KernelSocket) -> None:
    """Take the socket's number out of both sets, before the number stops being that socket (rule 6)."""
    with _making:
        for wait_set in kernel.sets:
            if wait_set is not None:
                wait_set.forget(kernel.number)


def wait(kernel: KernelSocket, direction: int, deadline: float | None) -> bool:
    """Wait until the socket may be ready or its descriptor is aborted; report False when the deadline has passed.

    The caller looks at `kernel.aborted` first, then tries: a true answer is a hint, another process may be faster.
    """
    if deadline is None:
        timeout_s = -1.0
    else:
        timeout_s = deadline - monotonic()
        if timeout_s <= 0:
            return False
    wait_set = set_of(kernel, direction)
    if wait_set is not None:
        return bool(wait_set.poll(timeout_s, 1))
    poll = system.make_poll()
    poll.register(kernel.waker.number, select.POLLIN)
    if kernel.aborted is None:
        poll.register(kernel.number, _POLL_EVENTS[direction])
    return bool(poll.poll(None if deadline is None else timeout_s * 1000.0))
