"""A kernel socket of this process, and the guard that keeps its number until the last call inside has left.

The guard is the interpreter's own reference count. A method takes a strong reference to the `KernelSocket` and calls
it; close swaps the object for a `ClosedKernel`, whose every method raises. No lock on the way in. At close a dead
file goes over the number, so this process's reference to the shared socket is gone when close returns, whatever still
holds the object; the number itself is freed when the object is (rule 4, I5). O_NONBLOCK is set once, when the socket
is opened or adopted, and never toggled: it lives on the file all sharers have in common (rule 5).

Leaves to others: waiting (waiting.py), the order of a close (descriptors/closing.py), who else holds the socket.
"""

from __future__ import annotations

import _socket
import errno
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sharedsock.kernel import numbers, system, waiting
from sharedsock.kernel.waker import Waker
from sharedsock.model import trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.operations import Waiter
    from sharedsock.kernel.waiting import WaitSet

__all__ = [
    "ClosedKernel",
    "KernelSocket",
    "abort",
    "adopt",
    "forget_retiring",
    "keep_and_bury",
    "let_go",
    "open_socket",
    "retiring",
    "wait_drained",
]

# Numbers of closed descriptors that wait for their last frame: id of the object -> number.
_retiring: dict[int, int] = {}
_dead_number = -1
_dead_inode = -1


def retiring() -> int:
    """Return how many numbers of closed descriptors wait for the last call inside; they are no leak."""
    return len(_retiring)


def forget_retiring() -> None:
    """In a forked child: the frames that held the parent's retiring numbers do not exist here."""
    _retiring.clear()


class KernelSocket(_socket.socket):
    """The inner object: a nonblocking kernel socket with its waker, its wait sets and its waiters.

    Attributes:
        number: its file number, fixed.
        slot: its byte in `numbers.calm`.
        aborted: None, or who closed the descriptor ("thread (place)"); set once.
        waiters: the operations that wait now.
        kept: what an interrupted call had already taken; the next call of that direction returns it (rule 3).
    """

    __slots__ = ("_era", "aborted", "drained", "kept", "number", "sets", "slot", "streak", "waiters", "waker")

    number: int

    def __init__(self, family: int, type: int, proto: int, fileno: int | None = None, waker: Waker | None = None) -> None:  # noqa: A002  # as in _socket
        self.number = -1
        with numbers.gate:
            super().__init__(family, type, proto, fileno)
            self.number = numbers.own(_socket.socket.fileno(self))
            self._era = numbers.current_era()
        self.settimeout(0.0)  # O_NONBLOCK, and the C methods never wait by themselves
        self.slot = numbers.slot_of(self.number)
        self.aborted: str | None = None
        self.drained: threading.Event | None = None
        self.waiters: dict[Waiter, None] = {}
        self.sets: list[WaitSet | None] = [None, None]
        self.kept: list[Any] = []
        self.streak = 0
        self.waker = Waker() if waker is None else waker
        if self.slot != numbers.NEVER_CALM:
            numbers.calm[self.slot] = 1

    def __del__(self) -> None:
        number = self.number
        if number < 0:
            return
        self.detach()
        _retiring.pop(id(self), None)
        numbers.release(number, self._era)


class ClosedKernel:
    """What stands where a kernel socket stood: every method raises what `refuse` builds."""

    __slots__ = ("_refuse", "aborted", "number", "slot", "waiters")

    def __init__(self, refuse: Callable[[], OSError], closed_by: str) -> None:
        self._refuse = refuse
        self.number = -1
        self.slot = numbers.NEVER_CALM
        self.aborted = closed_by
        self.waiters: dict[Any, None] = {}

    def raise_refusal(self) -> NoReturn:
        """Raise the error every use of this descriptor gets."""
        raise self._refuse()

    def __getattr__(self, name: str) -> Any:
        raise self._refuse()


def _require_dead_file() -> int:
    """Return the number of the dead file, opened with the first socket; reopened if somebody closed it on us."""
    global _dead_number, _dead_inode
    with numbers.gate:
        try:
            if _dead_number >= 0 and os.fstat(_dead_number).st_ino == _dead_inode:
                return _dead_number
        except OSError:
            pass
        _dead_number = system.open_dead_file()
        _dead_inode = os.fstat(_dead_number).st_ino
        numbers.open_reserve()
        return _dead_number


def open_socket(family: int, type: int, proto: int) -> KernelSocket:  # noqa: A002  # as in socket.socket
    """Open a new kernel socket, nonblocking and close-on-exec.

    Raises:
        OSError: as socket(2); EMFILE, ENFILE or ENOMEM also for the waker. Nothing is left open.
    """
    if _dead_number < 0:
        _require_dead_file()
    kernel = KernelSocket(family, type, proto)
    if trace.hook is not None:
        trace.hit("open.created", number=kernel.number)
    return kernel


def adopt(number: int, family: int, type: int, proto: int, waker: Waker | None = None) -> KernelSocket:  # noqa: A002
    """Take over a file number that is a socket; from now on it is ours to close.

    Args:
        number: a socket of this process, which nobody else in it will use or close.
        family, type, proto: as in the socket module; -1 asks the kernel.
        waker: one made beforehand, so that an accepted client cannot be lost for want of a number.

    Raises:
        OSError: EBADF, ENOTSOCK; or no number for the waker: then the number is closed, nothing is left open.
    """
    if _dead_number < 0:
        _require_dead_file()
    return KernelSocket(family, type, proto, number, waker)


def abort(kernel: KernelSocket, closed_by: str) -> None:
    """End this process's operations on the socket: mark, take the number out of the sets, wake. Never waits.

    Other processes: unaffected; there is no shutdown(), no signal, no byte.
    """
    # Race: abort against a thread about to wait.
    #   abort first: the waker is already readable, the wait returns at once.
    #   wait first:  the waker becomes readable and ends it.
    # Nobody drains the waker after abort, so neither order loses it. Test: tests/races/test_abort_meets_wait.py
    numbers.calm[kernel.slot] = 0
    kernel.drained = threading.Event()
    kernel.aborted = closed_by
    waiting.unregister(kernel)
    kernel.waker.signal()


def wait_drained(kernel: KernelSocket) -> None:
    """Wait until every registered waiter but this thread's own has left; an aborted waiter leaves at once.

    A close from a signal handler or a destructor may run on top of this thread's own wait: that one leaves when the
    handler returns, and meets the mark before it tries again.
    """
    me = threading.get_ident()
    drained = kernel.drained
    assert drained is not None, "abort() comes first"
    while any(waiter.thread_ident != me for waiter in tuple(kernel.waiters)):
        drained.wait()
        drained.clear()


def keep_and_bury(kernel: KernelSocket, keep: bool) -> int | None:
    """Put the dead file over the number; with `keep`, hand out a new number on the real file first.

    After this no call through `kernel` can reach the socket: it meets the dead file and gets EBADF. The kept number
    is entered as owned, for `numbers.release`; None where it was not asked for, or could not be had.
    """
    dead = _require_dead_file()
    kept: int | None = None
    with numbers.gate:
        if keep:
            try:
                kept = numbers.own(system.duplicate(kernel.number))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and numbers.spend_reserve():
                    with suppress(OSError):  # another thread took the number: the kernel's rule ends the socket
                        kept = numbers.own(system.duplicate(kernel.number))
        _retiring[id(kernel)] = kernel.number
        system.dup2(dead, kernel.number)
    return kept


def let_go(kernel: KernelSocket) -> int:
    """Hand the number of an aborted and drained socket to the caller, who closes it; a call still inside meets EBADF."""
    with numbers.gate:
        numbers.disown(kernel.number, numbers.current_era())
        number = kernel.detach()
        kernel.number = -1
    return number
