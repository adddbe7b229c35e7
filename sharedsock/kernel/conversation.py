"""A conversation: quick receives that each have to wait, one after the other, on the same terms.

`operations.perform` made lean for what a ping-pong is made of. A face has this path in its own frame:

    talk.size = BUSY                        a waiter now; the wait set is ours alone
    wait()                                  poll {waker, socket}
    talk.size = talk.next                   no waiter any more; another than before: look at `kernel.aborted`, leave
    for data in talk.arrivals: return data  one C call takes; the interpreter looks for no signal before the return

Between the wait's return and the call that takes, the interpreter lets no other thread and no signal in: who has seen
no abort has left before any closer can look, and what was taken is the caller's (rules 1 to 3; I1, I4). What it saves
is Python: a row per receive and its clock cost 8 % of a ping-pong's speed (CPython 3.11, both ends on one core). So
who is inside is read off the threads' stacks by whoever wants to know, and the clock is read at every 256th receive:
conversations are for turns faster than SLOW_TURN_S, and end when somebody looks at what is pending.

poll() costs a lone waiter less than a set of its own would: 0.85 against 0.83 of a blocking recv. Whoever comes
second, finding it BUSY, takes the long way and waits in the descriptor's wait set, as do all once there are several.

On an exclusive socket (exclusive.py) no poll is needed: the receive itself waits in the kernel, for a moment at most,
and what has not come by then is waited for the long way. A close waits until the receive has left; what that took by
then, it returns (rule 2).
"""

from __future__ import annotations

import sys
from itertools import repeat, starmap
from select import POLLIN
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import operations, system
from sharedsock.kernel.exclusive import MOMENT_S, hold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FrameType

    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.kernel.waker import Waker

__all__ = ["BUSY", "SILENT", "Conversation", "begin", "end", "faces"]

# In the place of a size, and none that a caller can mean; small, so that comparing stays one quick instruction.
BUSY: Final = -(2**29)
_NEVER: Final = BUSY - 1

# A receive has to wait so often in a row, and so quickly, before it is a conversation.
_WAITS_BEFORE: Final = 2
SLOW_TURN_S: Final = 0.001
# A renewal and the probes behind it: at every 64th receive they took 3 % of a ping-pong's speed.
_PROBE_EVERY: Final = 256
_FINDS: Final = 32
# Longer ones are dominated by the copying, and a face keeps none of them.
_LONGEST_SAYING: Final = 1 << 16

# A shorter timeout would end late.
_SHORTEST_PATIENCE_S: Final = 0.1

# The code of the functions that have the path in their frame, with the locals `talk` and `arrivals` (None: not inside).
faces: Final[set[CodeType]] = set()


class Conversation:
    """Receives of at most `size` bytes with `flags` on one kernel socket.

    Attributes:
        size: what a receive must ask for to take this way and wait in the kernel; BUSY while one waits.
        polled: the same where it has to poll first. One of the two is never equal to anything.
        next: what that one is once who waits has left; never equal to anything after `silence`.
        wait: polls; raises TimeoutError when the time is over.
        arrivals: each step of it is one receive: its bytes or, after `fill`, how many.
        since_s: since when the one that waits may have been waiting, at most.
        deadline_s: when that one's time is over; None: never.
    """

    __slots__ = (
        "_arguments",
        "_call",
        "_found",
        "_poll",
        "_timeout_s",
        "arrivals",
        "deadline_s",
        "kernel",
        "next",
        "polled",
        "since_s",
        "size",
        "wait",
    )

    wait: Callable[[], object]
    arrivals: Iterator[bytes]

    def __init__(
        self,
        kernel: KernelSocket,
        waker: Waker,
        size: int,
        flags: int,
        timeout_s: float | None,
        is_exclusive: bool = False,
    ) -> None:
        self.kernel = kernel
        self.next = size
        self.size, self.polled = (size, _NEVER) if is_exclusive else (_NEVER, size)
        self.deadline_s: float | None = None
        self._call: Callable[..., Any] = kernel.recv
        # A prepared call with one argument is quicker than one with two.
        self._arguments: Iterable[Any] = (size,) if is_exclusive else (size, flags)
        self._timeout_s = timeout_s
        self._poll: Any = None
        if not is_exclusive:
            self._poll = system.make_poll()
            self._poll.register(waker.number, POLLIN)
            self._poll.register(kernel.number, POLLIN)
        self.since_s = monotonic()
        self._start()

    def _start(self) -> None:
        self.arrivals = starmap(self._call, repeat(self._arguments, _PROBE_EVERY))
        if self._poll is not None:
            self.wait = self._poll.poll if self._timeout_s is None else self._wait_timed

    def retune(self, size: int) -> bool:
        """Have the receives that wait in the kernel ask for another size; tell whether that may be."""
        if self._poll is not None or self.next == _NEVER or self.size == BUSY:
            return False
        self._arguments = (size,)
        self.size = self.next = size
        self._start()
        return True

    def fill(self, flags: int) -> list[Any]:
        """Have `arrivals` fill buffers; return the arguments of recv_into.

        Whoever is inside puts its buffer in their first place, and takes it out again: of one size, but any of them.
        """
        arguments: list[Any] = [None, 0, flags]
        self._call, self._arguments = self.kernel.recv_into, arguments
        self._start()
        return arguments

    def _wait_timed(self) -> None:
        assert self._timeout_s is not None
        self.deadline_s = monotonic() + self._timeout_s
        if not self._poll.poll(self._timeout_s * 1000.0):
            raise TimeoutError("timed out")

    def _wait_probing(self) -> None:
        # A failing try, and beginning again, cost as much as twenty waits that were not needed. So data has to be there
        # before the wait many times in a row: with wake-up preemption on one core it is in half of a ping-pong's turns.
        if self._poll.poll(0):
            self._found += 1
            if self._found == _FINDS:
                self.silence()
                operations.note_streak(self.kernel, False)
        else:
            self.wait = self._poll.poll if self._timeout_s is None else self._wait_timed
            self.wait()

    def renew(self) -> bytes:
        """Receive when `arrivals` is at its end, and go on; the next one finds out whether it has to wait at all."""
        self._start()
        if self._poll is not None:
            now_s = monotonic()
            if now_s - self.since_s > _PROBE_EVERY * SLOW_TURN_S:
                self.silence()
            self.since_s = now_s
            self.wait = self._wait_probing
            self._found = 0
        for data in self.arrivals:
            return data
        raise AssertionError("repeat() is not at its end")

    def left_s(self) -> float | None:
        """Return what is left of the time of a receive that has waited in vain; None: for ever.

        A moment in the kernel is not deducted: its ticks make it shorter, at times, than it says.

        Raises:
            TimeoutError: nothing is left.
        """
        if self.deadline_s is None:
            return self._timeout_s
        left_s = self.deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def leave(self) -> None:
        """Be inside no more, after an error or an abort; tell who waits for that."""
        if self.size == BUSY:
            self.size = self.next
        elif self.polled == BUSY:
            self.polled = self.next
        if self.kernel.closers:
            operations.tell_closers(self.kernel)

    def silence(self) -> None:
        """Let no further receive take this way; one that is inside goes on."""
        self.next = _NEVER
        if self.size != BUSY:
            self.size = _NEVER
        if self.polled != BUSY:
            self.polled = _NEVER

    @property
    def is_busy(self) -> bool:
        """Whether a receive is inside."""
        return self.size == BUSY or self.polled == BUSY

    def has_another_inside(self) -> bool:
        """Whether a receive waits here that is not this thread's own, below us: we may be a signal handler."""
        return self.is_busy and not _is_inside(sys._getframe(), self)

    def thread_inside(self) -> int:
        """Return the ident of the thread whose receive waits here; 0 if there is none."""
        if self.is_busy:
            me = get_ident()
            for ident, frame in sys._current_frames().items():
                if _is_inside(sys._getframe() if ident == me else frame, self):
                    return ident
        return 0

    def look_inside(self) -> tuple[int, float]:
        """Return the ident of the thread whose receive waits here, 0 for none, and since when it may, at most.

        A socket that is looked at has receives that poll timed one by one from now on.
        """
        thread = self.thread_inside()
        if self._poll is None:
            return thread, monotonic() - MOMENT_S
        if thread:
            self.silence()
        return thread, self.since_s

    def aborted(self) -> OSError:
        """Build the error of the receive that has found the descriptor aborted."""
        return operations.aborted(self.kernel, "recv")


SILENT: Final = Conversation.__new__(Conversation)
SILENT.size = SILENT.polled = SILENT.next = _NEVER


def begin(kernel: KernelSocket, size: int, flags: int, timeout_s: float | None, may_hold: bool = True) -> Conversation:
    """Return a conversation of receives like the last one, if they wait and are quick and alone; else `SILENT`.

    Whoever then changes the terms calls `end`; who begins looks for that afterwards.
    """
    if timeout_s == 0 or size > _LONGEST_SAYING or kernel.waiters:
        return SILENT
    if kernel.talk is not None:
        if kernel.talk.is_busy:
            return SILENT
        if may_hold and size > 0 and kernel.talk.retune(size):
            return kernel.talk
    if kernel.waker is None or not kernel.streak:  # None: there was no number for one
        return SILENT
    is_patient = timeout_s is None or timeout_s >= _SHORTEST_PATIENCE_S
    is_exclusive = may_hold and size > 0 and is_patient and kernel.is_exclusive and hold(kernel)
    if not is_exclusive and (
        kernel.streak < _WAITS_BEFORE or monotonic() - kernel.streak_s > kernel.streak * SLOW_TURN_S
    ):
        return SILENT
    talk = kernel.talk = Conversation(kernel, kernel.waker, size, flags, timeout_s, is_exclusive)
    if kernel.kept or kernel.aborted is not None:
        end(kernel)
    return talk


def end(kernel: KernelSocket) -> None:
    """End the conversation on a socket; a receive that waits in it goes on, and is its last."""
    if kernel.talk is not None:
        kernel.talk.silence()


def _is_inside(frame: FrameType | None, talk: Conversation) -> bool:
    while frame is not None:
        if frame.f_code in faces:
            found = frame.f_locals
            if found.get("talk") is talk and found.get("arrivals") is not None:
                return True
        frame = frame.f_back
    return False
