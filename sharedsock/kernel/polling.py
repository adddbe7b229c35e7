"""Waiting on many sockets at once: the set of the service thread and of selectors, and a row for who is inside.

A `PollSet` is one plain, level-triggered epoll set. Each socket it watches is entered here, and a close has `forget`
take the number out of every set after the mark, before the number stops being that socket (rule 6, I5).
Where no epoll set can be had (EMFILE, no epoll), poll() over the same numbers serves, and a change rings the bell so
that whoever waits looks at the new numbers. Who may watch what, and what an event means, is the callers' business.
"""

from __future__ import annotations

import math
import os
import select
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import repeat
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import numbers, system
from sharedsock.kernel.waiting import WaitSet
from sharedsock.kernel.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["READABLE", "WRITABLE", "Bell", "PollSet", "Presence", "enter", "forget", "is_ready", "leave", "renew"]

# Linux gives EPOLLIN and POLLIN, EPOLLOUT and POLLOUT the same value; elsewhere there is no epoll.
READABLE: Final = select.POLLIN
WRITABLE: Final = select.POLLOUT

# By id of the kernel socket, the sets that watch it; a close takes the entry out.
_entered: dict[int, dict[int, PollSet]] = {}


class Bell(Waker):
    """A waker that is rung many times: whoever it has woken silences it, and then looks at what there is to do."""

    __slots__ = ()

    def silence(self) -> None:
        """Make the number unreadable until the next `signal`; a forked child's copy is left alone."""
        if self._era != numbers.current_era():
            return
        with suppress(BlockingIOError):  # another thread was faster
            if len(self._numbers) == 1:
                os.eventfd_read(self.number)
            else:
                while len(os.read(self.number, 4096)) == 4096:
                    pass


class PollSet(WaitSet):
    """Numbers to wait on, each with a mask of READABLE and WRITABLE; changed by one thread while another waits.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM: no number for the bell; nothing is left open.
    """

    __slots__ = ("__weakref__", "_masks", "bell")

    def __init__(self) -> None:
        self.number = -1
        self._epoll: Any = None
        self._era = numbers.current_era()
        self._masks: dict[int, int] = {}
        self.bell = Bell()
        try:
            with numbers.gate:
                self._epoll = system.make_epoll()
                self.number = self._epoll.fileno()
                numbers.own(self.number)
            self._epoll.register(self.bell.number, READABLE)
        except OSError:
            if self.number >= 0:
                numbers.release(self.number, self._era, self._epoll.close)
                self.number = -1
            self._epoll = None

    def add(self, number: int, mask: int) -> None:
        """Begin to watch a number.

        Raises:
            OSError: EPERM, the file cannot be watched; ENOSPC, ENOMEM; EBADF; FileExistsError: it is watched already.
        """
        if self._epoll is not None:
            self._epoll.register(number, mask)
        self._masks[number] = mask
        self._tell()

    def change(self, number: int, mask: int) -> None:
        """Watch a number for something else.

        Raises:
            OSError: FileNotFoundError, it is not watched (any more).
        """
        if self._epoll is not None:
            self._epoll.modify(number, mask)
        if number in self._masks:
            self._masks[number] = mask
        self._tell()

    def remove(self, number: int) -> None:
        """Stop watching a number; one that is not watched is none of ours."""
        self._masks.pop(number, None)
        if self._epoll is None:
            self.bell.signal()
        elif number >= 0 and self._era == numbers.current_era():
            super().forget(number)

    def forget(self, number: int) -> None:
        """Stop watching a socket that has been marked; called by its closer, who then changes what the number is."""
        self.remove(number)

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Wait for a number, the bell or the end of the time; return (number, events), without the bell."""
        ready = []
        for number, events in self._poll(timeout_s) if self._epoll is None else self._epoll.poll(timeout_s):
            if number == self.bell.number:
                self.bell.silence()
            else:
                ready.append((number, events))
        return ready

    def _tell(self) -> None:
        if self._epoll is None:
            self.bell.signal()

    def _poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        poll = system.make_poll()
        poll.register(self.bell.number, READABLE)
        for number, mask in tuple(self._masks.items()):
            poll.register(number, mask)
        ready = poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000.0))
        for number, events in ready:
            if events & select.POLLNVAL:  # closed behind our back: an epoll set would not know it any more either
                self._masks.pop(number, None)
        return [(number, events) for number, events in ready if not events & select.POLLNVAL]


def enter(kernel: KernelSocket, polls: PollSet) -> None:
    """Have a close of the socket tell a set; before the set begins to watch it, and by somebody `present`."""
    _entered.setdefault(id(kernel), {})[id(polls)] = polls


def leave(kernel: KernelSocket, polls: PollSet) -> None:
    """Have it do so no more."""
    sets = _entered.get(id(kernel))
    if sets is not None:
        sets.pop(id(polls), None)


def forget(kernel: KernelSocket) -> None:
    """Take a socket out of every set that watches it; by its closer, after the mark."""
    if _entered:
        for polls in tuple(_entered.get(id(kernel), {}).values()):
            polls.forget(kernel.number)
        _entered.pop(id(kernel), None)


def renew() -> None:
    """In a forked child: the sets are the parent's."""
    _entered.clear()


def is_ready(number: int, mask: int) -> int:
    """Return the events a number has now, without waiting."""
    poll = system.make_poll()
    poll.register(number, mask)
    return sum(events for _, events in poll.poll(0))


class Presence:
    """A row on sockets that somebody is inside: a close waits for it before the number stops being the socket.

    Who enters looks at `aborted` afterwards: a close that has not seen the row has set that before. To be used as

        here = Presence(kernels, kind)
        try:
            here.enter()
            ...
        finally:
            here.leave()
            here.tell()

    and not as a context manager: an interrupt at the door of an __exit__ would leave the row there for ever.

    Args:
        kernels: the sockets somebody is inside.
        kind: the operation as `pending_operations()` lists it; none for housekeeping, which it does not list.

    Attributes:
        leave: takes the row out, in one C call.
    """

    __slots__ = ("_kernels", "_tables", "_waiter", "leave")

    def __init__(self, kernels: Iterable[KernelSocket], kind: str | None) -> None:
        self._kernels = tuple(kernels)
        self._tables = [kernel.waiters for kernel in self._kernels]
        self._waiter = [kind, monotonic(), get_ident()]
        leaving = map(dict.pop, self._tables, repeat(id(self._waiter)), repeat(None))
        # Nothing is made when it runs: a row is taken out where an allocation fails as well (F-97).
        nowhere: deque[object] = deque(maxlen=0)
        self.leave: Callable[[], object] = partial(nowhere.extend, leaving)

    def enter(self) -> None:
        """Put the row in."""
        for table in self._tables:
            table[id(self._waiter)] = self._waiter

    def tell(self) -> None:
        """Having left, tell each closer for whom we were the last to wait for."""
        for kernel in self._kernels:
            for told, own_count in tuple(kernel.closers):
                if len(kernel.waiters) <= own_count:
                    told.put(None)
