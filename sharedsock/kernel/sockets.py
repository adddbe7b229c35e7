"""A kernel socket of this process, and the guard that keeps its number until the last call inside has left.

The guard is the interpreter's own reference count. A method takes a strong reference to the `KernelSocket` and calls
it; close swaps the object for a `ClosedKernel`, whose every method raises. No lock on the way in. At close a dead
file goes over the number, so this process's reference to the shared socket is gone when close returns, whatever still
holds the object; the number itself is freed when the object is (rule 4, I5). O_NONBLOCK is set once, when the socket
is opened or adopted, and never toggled where others may hold it: it lives on the file all sharers share (rule 5).

Leaves to others: waiting (waiting.py), the order of a close (descriptors/closing.py), who else holds the socket.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
import sys
from _queue import SimpleQueue
from contextlib import suppress
from itertools import starmap
from socket import AF_UNIX
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sharedsock.kernel import numbers, system, waiting
from sharedsock.kernel.exclusive import expose
from sharedsock.kernel.operations import THREAD
from sharedsock.kernel.teardown import silent_once_emptied
from sharedsock.model import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedsock.kernel.conversation import Conversation
    from sharedsock.kernel.operations import Waiter
    from sharedsock.kernel.waiting import WaitSet
    from sharedsock.kernel.waker import Waker

__all__ = [
    "ALONE",
    "ClosedKernel",
    "KernelSocket",
    "abort",
    "adopt",
    "close_alone",
    "close_stray",
    "forget_retiring",
    "is_dead",
    "keep_and_bury",
    "let_go",
    "open_socket",
    "retiring",
    "take_back",
    "wait_drained",
]

_NONBLOCK: Final = int(getattr(socket, "SOCK_NONBLOCK", 0))
_initialise: Final = _socket.socket.__init__
_fileno: Final = _socket.socket.fileno

# Numbers of closed descriptors that wait for their last frame: id of the object -> number.
_retiring: dict[int, int] = {}
# The dead files: kind -> number, and what tells that the number is still that file.
_dead: dict[int, tuple[int, tuple[int, ...]]] = {}
# The kind of object a socket of this process is given; see `_begin`.
_kind: type[KernelSocket]


def retiring() -> int:
    """Return how many numbers of closed descriptors wait for the last call inside; they are no leak."""
    return len(_retiring)


def forget_retiring() -> None:
    """In a forked child: the frames that held the parent's retiring numbers do not exist here."""
    _retiring.clear()


class KernelSocket(_socket.socket):
    """The inner object: a nonblocking kernel socket, and what waiting on it needs once somebody does.

    Attributes:
        number: its file number, fixed.
        slot: its byte in `numbers.calm`.
        era: the era of `numbers` it was opened in.
        aborted: None, or who closed the descriptor: its str() is "thread (place)"; set once.
        is_buried: the number is no longer the socket: the dead file lies over it, or it was given away.
        waiters: the operations inside `perform` now, by the id of their row (operations.py).
        closers: who waits for the waiters to leave: a queue to be told on, and how many waiters are his own.
        kept: what an interrupted call had already taken; the next call of that direction returns it (rule 3).
        sets: the wait set of each direction, READ and WRITE; None until somebody waits.
        streak: receives in a row that had to wait, from one probe to the next; the first of them ended at `streak_s`.
        is_exclusive: this process opened it, and nobody else can hold it (exclusive.py).
        patience: the SO_RCVTIMEO it had, while its receives may wait in the kernel; else empty.
        talk: the conversation that receives have become; None if they never have, or once buried.
        waker: what ends the waits; None until somebody waits.
        lost: what has become of a number that is not the socket any more.
    """

    __slots__ = (
        "aborted",
        "closers",
        "era",
        "is_buried",
        "is_exclusive",
        "kept",
        "number",
        "patience",
        "sets",
        "slot",
        "streak",
        "streak_s",
        "talk",
        "waiters",
        "waker",
    )

    number: int
    lost: str = "somebody else in this process had closed its file number"

    if hasattr(os, "sendfile"):
        sendfile = staticmethod(os.sendfile)

    if TYPE_CHECKING:  # typeshed leaves it out

        def _accept(self) -> tuple[int, Any]: ...

    def __init__(
        self,
        family: int,
        type: int,  # as in _socket
        proto: int,
        fileno: int | None = None,
    ) -> None:
        self.number = -1
        self.era = numbers.current_era()
        try:
            with numbers.gate:
                if fileno is None:
                    _initialise(self, family, type | _NONBLOCK, proto)
                else:
                    _initialise(self, family, type, proto, fileno)
                self.number = _fileno(self)
                numbers.own(self.number)
            if fileno is not None or not _NONBLOCK:
                self.settimeout(0.0)  # O_NONBLOCK, and the C methods never wait by themselves
            self.slot = numbers.slot_of(self.number)
            self.aborted: object = None
            self.waker: Waker | None = None
            self.is_buried = False
            self.is_exclusive = fileno is None
            self.patience = b""
            self.waiters: dict[int, Waiter] = {}
            self.closers: list[tuple[SimpleQueue[None], int]] = []
            self.sets: list[WaitSet | None] = [None, None]
            self.kept: list[Any] = []
            self.streak = 0
            self.streak_s = 0.0
            self.talk: Conversation | None = None
        except BaseException:
            if fileno is None:
                self._free()
            else:  # the caller's still
                self.detach()
                numbers.disown(fileno, self.era)
                self.number = -1
            raise
        if self.slot != numbers.NEVER_CALM:
            numbers.calm[self.slot] = 1

    def require(self) -> None:
        """Ask whether the number is this socket still: a question that only the debug mode has (checked.py)."""

    def is_lost(self) -> bool:
        """Whether the number is known not to be this socket any more."""
        return False

    def _free(self) -> None:
        number = getattr(self, "number", -1)
        if number < 0:  # interrupted before it was entered: the C object alone knows it
            self.close()
            return
        self.detach()
        numbers.release(number, self.era)
        self.number = -1

    @silent_once_emptied
    def __del__(self) -> None:
        if getattr(self, "number", -1) >= 0:  # else it was closed alone, as most are, and a frame is saved
            self._free()
        else:
            self.close()
        if _retiring:
            _retiring.pop(id(self), None)


class ClosedKernel:
    """What stands where a kernel socket stood: every method raises what `refuse` builds."""

    __slots__ = ("_refuse", "aborted")

    number: Final = -1
    is_exclusive: Final = False
    patience: Final = b""
    slot: Final = numbers.NEVER_CALM
    talk: Final = None
    waiters: Final[Mapping[int, Waiter]] = {}

    def __init__(self, refuse: Callable[[], OSError], closed_by: object) -> None:
        self._refuse = refuse
        self.aborted = closed_by

    def require(self) -> NoReturn:
        """Raise the error every use of this descriptor gets."""
        raise self._refuse()

    def __getattr__(self, name: str) -> Any:
        raise self._refuse()


def _require_dead_file(family: int) -> int:
    """Return the number of the dead file, opened with the first socket; reopened if somebody closed it on us."""
    kind = 1 if family == AF_UNIX and not hasattr(os, "O_PATH") else 0
    with numbers.gate:
        number, identity = _dead.get(kind, (-1, ()))
        if number >= 0 and system.is_still_dead(number, identity):
            return number
        try:
            number = system.open_dead_file(family)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not numbers.spend_reserve():
                raise
            number = system.open_dead_file(family)
        _dead[kind] = number, system.file_identity(number)
        numbers.open_reserve()
        return number


_kind = KernelSocket


def _begin(family: int) -> None:
    """Before the first socket: whether this is the debug mode, and a dead file for what will be closed."""
    global _kind
    if os.environ.get("SHAREDSOCK_DEBUG") == "1":
        from sharedsock.kernel.checked import CheckedKernel

        _kind = CheckedKernel
    _require_dead_file(family)


def is_dead(kernel: KernelSocket) -> bool:
    """Whether what lies over a buried number is what was put there."""
    with suppress(OSError):
        files = [identity for _, identity in _dead.values()]
        if kernel.waker is not None:
            files.append(system.file_identity(kernel.waker.number))
        return system.file_identity(kernel.number) in files
    return False


def open_socket(family: int, type: int, proto: int) -> KernelSocket:  # as in socket.socket
    """Open a new kernel socket, nonblocking and close-on-exec.

    Raises:
        OSError: as socket(2). Nothing is left open.
    """
    if not _dead:
        _begin(family)
    kernel = _kind(family, type, proto)
    if trace.hook is not None:
        trace.hit("open.created", number=kernel.number)
    return kernel


def adopt(
    number: int,
    family: int,  # as above
    type: int,
    proto: int,
    into: list[KernelSocket] | None = None,
) -> KernelSocket:
    """Take over a file number that is a socket; from when this returns it is ours to close.

    Args:
        number: a socket of this process, which nobody else in it will use or close.
        family, type, proto: as in the socket module; -1 asks the kernel.
        into: gets it as well, before this returns: a caller interrupted on the way finds it there.

    Raises:
        OSError: EBADF, ENOTSOCK. As after an interrupt, the number is the caller's.
    """
    if not _dead:
        _begin(family)
    made: list[KernelSocket] = [] if into is None else into
    made.extend(starmap(_kind, ((family, type, proto, number),)))
    return made[-1]


def close_stray(number: int, cookie: int) -> None:
    """Close a number on which nothing stands, if it still is the socket it was: it may be a stranger's by now (I5)."""
    with numbers.gate, suppress(OSError):
        if system.socket_cookie(number) == cookie:
            numbers.release_stray(number)


def abort(kernel: KernelSocket, closed_by: object) -> None:
    """End this process's operations on the socket: mark, wake, take the number out of the sets. Never waits.

    Aborting twice, from two threads or on top of oneself, is aborting once; each caller may then wait and bury.
    Other processes: unaffected; there is no shutdown(), no signal, no byte.
    """
    # Race: abort against a thread about to wait.
    #   abort first: the waker is already readable, the wait returns at once.
    #   wait first:  the waker becomes readable and ends it.
    # Nobody drains the waker after abort, so neither order loses it. Test: tests/races/test_abort_meets_wait.py
    if kernel.aborted is None:
        kernel.aborted = closed_by
    numbers.calm[kernel.slot] = 0
    if kernel.talk is not None:
        kernel.talk.silence()
    if kernel.waker is None:  # nobody has ever waited
        return
    if numbers.is_forked() or kernel.era != numbers.current_era():
        return  # a forked child: sets and waker are the parent's, and its threads wait on them
    # Woken first: they need the interpreter, which we keep until we wait for them to leave. Out of the sets before the
    # number stops being the socket is early enough (rule 6): who leaves takes nothing, whatever his set reports.
    kernel.waker.signal()
    if kernel.patience:
        expose(kernel)
    waiting.unregister(kernel)


def _own_waiters(kernel: KernelSocket) -> int:
    """Count this thread's own; by a function, as CPython 3.11 leaks what a frame with a cell gets if that one fails."""
    me = get_ident()
    return sum(waiter[THREAD] == me for waiter in tuple(kernel.waiters.values()))


def wait_drained(kernel: KernelSocket) -> None:
    """Wait until every registered waiter but this thread's own has left; an aborted waiter leaves at once.

    A close from a signal handler or a destructor may run on top of this thread's own wait: that one leaves when the
    handler returns, and meets the mark before it tries again.
    """
    assert kernel.aborted is not None, "abort() comes first"
    talk = kernel.talk
    talk = talk if talk is not None and talk.has_another_inside() else None
    if not kernel.waiters and talk is None:
        return
    own_count = _own_waiters(kernel)
    # Race: we announce ourselves before we look at the waiters; a waiter leaves before it looks at us.
    # Each closer has a queue of his own: a shared event, cleared by one, would let the other sleep (F-48).
    told: SimpleQueue[None] = SimpleQueue()
    closer = told, own_count
    kernel.closers.append(closer)
    try:
        while len(kernel.waiters) > own_count or (talk is not None and talk.is_busy):
            told.get()
    finally:
        kernel.closers.remove(closer)


def keep_and_bury(kernel: KernelSocket, keep: bool, into: list[int] | None = None) -> int | None:
    """Put the dead file over the number; with `keep`, hand out a new number on the real file first.

    After this no call through `kernel` can reach the socket: it meets the dead file and gets EBADF. The kept number
    is entered as owned, for `numbers.release`; None where it was not asked for, or could not be had, or the socket is
    buried already. A number that somebody else has closed is left alone, and `kernel.number` is -1 then (F-55).

    Args:
        into: gets the new number as well, before this returns: a caller interrupted on the way finds it there.
    """
    kept: list[int] = [] if into is None else into
    with numbers.gate:
        if kernel.is_buried:
            return None
        if _fileno(kernel) < 0:  # closed at once, and cut short then
            kernel.number = -1
            return None
        if kernel.__class__ is not KernelSocket and kernel.is_lost():
            let_go(kernel)
            return None
        if keep:
            try:
                system.duplicate(kernel.number, kept)
            except OSError as error:
                if error.errno == errno.EBADF:  # closed behind our back: nobody's number, and soon a stranger's
                    let_go(kernel)
                    return None
                if error.errno in (errno.EMFILE, errno.ENFILE) and numbers.spend_reserve():
                    with suppress(OSError):  # another thread took the number: the kernel's rule ends the socket
                        system.duplicate(kernel.number, kept)
            for number in kept:
                numbers.own(number)
        # Last, so that no number of ours can move under it.
        try:
            dead = _require_dead_file(kernel.family)
        except OSError:  # closed behind our back, and the table is full: the waker answers ENOTSOCK, which does as well
            dead = -1 if kernel.waker is None else kernel.waker.number
        _retiring[id(kernel)] = kernel.number
        kernel.is_buried = True  # first: whoever meets the dead file looks here
        try:
            if dead >= 0:  # else whoever is inside, and never waits there, is the last to use the number
                system.dup2(dead, kernel.number)
        except BaseException:  # cut short: who buries again puts a dead file over a dead file at worst
            kernel.is_buried = False
            raise
        kernel.sets[:] = None, None  # whoever still waits in one holds it
        kernel.talk = None
        return kept[0] if kept else None


class _Probe:
    __slots__ = ("kernel",)
    kernel: object


def _count_alone() -> int:
    probe = _Probe()
    probe.kernel = object()
    return sys.getrefcount(probe.kernel)


ALONE: Final = _count_alone()
"""What `getrefcount(holder.kernel)` is when nothing but that attribute refers to a kernel socket.

Once its descriptor has let go of it, then no call is inside it, and none ever will be: each has a reference on its
thread's stack, and there is nowhere to get one (I5). Counted here, because interpreters differ in what they count.
"""


def close_alone(kernel: KernelSocket) -> None:
    """Close the number of an aborted socket at once: no call is inside, so none needs a dead file.

    Where an interrupt cuts it short, what is left can still be buried.
    """
    if not numbers.release(kernel.number, kernel.era, kernel.close):
        kernel.detach()  # a forked child's, which has closed its number
    kernel.number = -1


def let_go(kernel: KernelSocket) -> int:
    """Hand the number of an aborted, drained socket to the caller, who closes it; a call still inside meets EBADF."""
    with numbers.gate:
        numbers.disown(kernel.number, kernel.era)
        kernel.is_buried = True
        kernel.sets[:] = None, None
        kernel.talk = None
        kernel.number = -1
        return kernel.detach()


def take_back(kernel: KernelSocket, number: int) -> None:
    """Close a number that was let go but did not reach its new owner."""
    if _socket.socket.fileno(kernel) >= 0:
        kernel.close()
    else:
        numbers.release_stray(number)
