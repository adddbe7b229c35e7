"""A conversation: receives that wait, one after the other, each on the same terms.

`operations.perform`, made lean for the one case a ping-pong is made of: no timeout, a wait set at hand, the last
receive had to wait. It keeps every guarantee of `perform` and leaves to it whatever is rare. What it saves is Python:
0.6 us per receive on top of the two system calls where `perform` takes 0.9 (CPython 3.11), which a conversation of two
processes on one core feels as 4 % of its speed.

Keeps I1 and I4, by rules 1 to 3, as operations.py does.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import operations
from sharedsock.kernel.numbers import here
from sharedsock.model import trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.operations import Waiter
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.kernel.waiting import WaitSet

__all__ = ["Conversation"]

_LAST_BEFORE_PROBE: Final = operations.PROBE_EVERY - 1


class Conversation:
    """Receives of at most `bufsize` bytes with `flags`, on one kernel socket that waits in `wait_set`.

    Args:
        flags: with DONTWAIT in them.
        keep: makes of received bytes what the next call can use, after an interrupt.
    """

    __slots__ = ("_arrivals", "_keep", "_kernel", "_poll", "_rows", "_wait_set", "bufsize", "flags")

    def __init__(
        self, kernel: KernelSocket, wait_set: WaitSet, bufsize: int, flags: int, keep: Callable[[bytes], Any]
    ) -> None:
        self.bufsize = bufsize
        self.flags = flags
        self._kernel = kernel
        self._keep = keep
        self._wait_set = wait_set  # its number must not be freed under a thread that waits
        self._poll = wait_set.poll
        self._rows: dict[int, Waiter] = {}
        # thread -> what it received last. Subscripting this calls recv and stores what it has taken, in one instruction
        # of the interpreter: no interrupt can fall between (rule 3).
        self._arrivals: defaultdict[int, bytes] = defaultdict(partial(kernel.recv, bufsize, flags))

    def receive(self) -> bytes | None:
        """Wait, and receive; None: nothing was taken, and `perform` has to go on.

        Raises:
            OperationAborted: this process closed the descriptor; nothing was taken.
        """
        kernel = self._kernel
        waiters = kernel.waiters
        arrivals = self._arrivals
        ident = get_ident()
        try:
            row = self._rows[ident]
        except KeyError:
            row = self._rows[ident] = ["recv", 0.0, ident]
        row[1] = monotonic()
        # From here to the row no call, so no signal: a handler that received in between would leave its own bytes as
        # an arrival, and we would hand them out again.
        if ident in waiters:  # we are that handler, on top of this thread's own receive
            return None
        if ident in arrivals:  # the last one's, returned long since
            del arrivals[ident]
        try:
            waiters[ident] = row
            if kernel.aborted is None and not kernel.kept and here and trace.hook is None:
                self._poll(-1, 1)
                # A waiter that sees both, the abort and data, leaves without taking.
                if kernel.aborted is None and trace.hook is None:  # type: ignore[redundant-expr]  # others ran meanwhile
                    data = arrivals[ident]
                    if kernel.streak < _LAST_BEFORE_PROBE:
                        kernel.streak += 1
                    else:
                        operations.note_streak(kernel, True)
                    del waiters[ident]
                    if kernel.closers:
                        operations.tell_closers(kernel)
                    return data
        except BlockingIOError:
            pass  # another thread or process was faster
        except OSError:
            self._leave(ident)
            if kernel.is_buried:  # the call met the dead file
                raise operations.aborted(kernel, "recv") from None
            raise
        except BaseException:
            self._leave(ident)
            raise
        self._leave(ident)
        if kernel.aborted is not None:
            raise operations.aborted(kernel, "recv")
        return None

    def _leave(self, ident: int) -> None:
        """Be no waiter any more; what was taken and not returned is kept for the next call."""
        kernel = self._kernel
        kernel.waiters.pop(ident, None)
        data = self._arrivals.pop(ident, None)
        if data is not None:
            operations.keep_for_next(kernel, self._keep(data))
        if kernel.closers:
            operations.tell_closers(kernel)
