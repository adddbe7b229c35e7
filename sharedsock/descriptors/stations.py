"""The stations at which overlapped requests queue, one per descriptor, and how they are served.

A station has a queue per direction, served from its head only, so requests are served in the order in which they were
posted (OVERLAP-9). Whoever posts tries at once; what would block is left to the service thread (`service`). Under the
station's lock there are only tries that do not wait; requests are settled, and callbacks run, without it. Nobody who
has it takes another lock than `numbers.gate` and the registry channel's. A closer never takes it: it calls.

Keeps I1 (a request ends once; one that was aborted took nothing, one that succeeded is not lost) and I7 (nothing
spins).
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import starmap
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from sharedsock.kernel import polling
from sharedsock.kernel.operations import READ, WRITE

if TYPE_CHECKING:
    from sharedsock.descriptors.service import Service
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import PendingOperation

__all__ = ["Request", "Station"]

# So many events in a row that came to nothing, faster than this each: a condition poll reports and the call does not
# see (a queued error message, a hang-up before a connect). Then the station is looked at by the clock for a while.
_LOSSES: Final = 16
_SPIN_S: Final = 0.001
_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02


class Request(Protocol):
    """What a station serves.

    Attributes:
        direction: READ or WRITE.
        needs_clock: it waits for something the kernel has no event for.
        has_ended: it has its outcome.
    """

    direction: int
    needs_clock: bool
    has_ended: bool

    def attempt(self, rounds: int | None) -> bool:
        """Try without waiting; report whether it has its outcome. Called under the station's lock."""

    def abort(self) -> None:
        """Take the outcome of a request that a close has ended. Called under the station's lock."""

    def settle(self) -> None:
        """Tell whoever waits for the outcome; runs callbacks, holds no lock."""

    def facts(self) -> PendingOperation:
        """Say who waits for what."""


class Station:
    """The queues of one descriptor.

    Attributes:
        queues: the requests of each direction, oldest first; the head is the one to try.
        ended: requests that have an outcome and are not settled.
        trying: the request whose system call runs now.
    """

    __slots__ = (
        "_is_called",
        "_is_serving",
        "_losses",
        "_lost_at_s",
        "_mask",
        "_pause_s",
        "_service",
        "ended",
        "kernel",
        "lock",
        "number",
        "queues",
        "retry_at_s",
        "trying",
    )

    def __init__(self, kernel: KernelSocket) -> None:
        self.kernel = kernel
        self.number = kernel.number
        self.lock = threading.RLock()
        self.queues: tuple[deque[Request], deque[Request]] = (deque(), deque())
        self.ended: deque[Request] = deque()
        self.trying: Request | None = None
        self.retry_at_s: float | None = None
        self._service: Service | None = None
        self._mask = 0
        self._is_serving = False
        self._is_called = False
        self._losses = 0
        self._lost_at_s = 0.0
        self._pause_s = 0.0

    def __len__(self) -> int:
        return len(self.queues[READ]) + len(self.queues[WRITE])

    def serve(self, service: Service | None = None, *, is_event: bool = False) -> bool:
        """Try the heads until they would block; report whether requests wait and no service looks after them.

        Args:
            service: the one to look after what has to wait, from `enlist`.
            is_event: the service's own round: it gives no station more than its share.
        """
        with self.lock:
            self._is_called = True
            # On top of this thread's own serving (a signal handler): the frame below sees that it was called.
            while self._is_called and not self._is_serving:
                self._is_serving = True
                try:
                    self._is_called = False
                    has_progress = False
                    for queue in self.queues:
                        has_progress = self._serve_queue(queue, 16 if is_event else None) or has_progress
                    if is_event:
                        self._note_losses(has_progress)
                    self._arm(service)
                except BaseException:
                    if not is_event:
                        self.call()
                    raise
                finally:
                    self._is_serving = False
            return bool(len(self)) and self._service is None

    def _serve_queue(self, queue: deque[Request], rounds: int | None) -> bool:
        has_progress = False
        while queue:
            request = queue[0]
            if self._is_aborted():
                request.abort()
            else:
                self.trying = request
                try:
                    has_ended = request.attempt(rounds)
                finally:
                    self.trying = None
                if not has_ended:
                    if self._is_aborted():
                        continue
                    break
            # Moved in one C call: an interrupt finds it in the one or in the other.
            self.ended.extend(starmap(queue.popleft, ((),)))
            has_progress = True
        return has_progress

    def _is_aborted(self) -> bool:
        return self.kernel.aborted is not None

    def _note_losses(self, has_progress: bool) -> None:
        self.retry_at_s = None
        if has_progress:
            self._losses, self._pause_s = 0, 0.0
            return
        self._losses += 1
        if self._losses % _LOSSES == 1:
            now_s = monotonic()
            has_spun = self._losses > 1 and now_s - self._lost_at_s < _LOSSES * _SPIN_S
            self._lost_at_s = self._pause() if has_spun else now_s

    def _pause(self) -> float:
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self.retry_at_s = monotonic() + self._pause_s
        return self.retry_at_s

    def _arm(self, service: Service | None) -> None:
        """Have the set watch what the heads wait for."""
        if service is not None:
            self._service = service
        service = self._service
        if service is None:
            return
        is_its_own = threading.current_thread() is service.thread
        if not len(self):
            self.retry_at_s = None
            self._watch(service, 0)
            if is_its_own:
                self._service = None
                service.dismiss(self)
            else:  # it settles what others have posted, and dismisses us
                self.call()
            return
        if any(queue and queue[0].needs_clock for queue in self.queues) and self.retry_at_s is None:
            self._pause()
        mask = 0
        if self.retry_at_s is None:
            mask = (polling.READABLE if self.queues[READ] else 0) | (polling.WRITABLE if self.queues[WRITE] else 0)
        self._watch(service, mask)
        if self.retry_at_s is not None:
            service.paused[self.number] = self
            if not is_its_own:
                service.polls.bell.signal()

    def _watch(self, service: Service, mask: int) -> None:
        # Race: a close marks, then takes the number out of every set it finds entered; we enter the set, then look
        # for the mark. Being present, we keep it from putting the dead file over the number in between. Once it is
        # marked when we come, the number may be another socket's: then the set is none of our business.
        here = polling.Presence((self.kernel,), None)
        try:
            here.enter()
            if not self._is_aborted() and (mask != self._mask or not mask):
                self._tell_set(service, mask)
                if self._is_aborted():
                    service.polls.remove(self.number)
                    polling.forget(self.kernel)
            if self._is_aborted():
                self._mask = 0
                self._is_called = bool(len(self))
        finally:
            here.leave()
            here.tell()

    def _tell_set(self, service: Service, mask: int) -> None:
        polling.enter(self.kernel, service.polls)
        try:
            if not mask:
                service.polls.remove(self.number)
            elif self._mask:
                service.polls.change(self.number, mask)
            else:
                service.polls.add(self.number, mask)
            self._mask = mask
        except OSError:  # ENOSPC, ENOMEM: there is no event to be had, so the clock serves
            service.polls.remove(self.number)
            self._mask = 0
            self._pause()

    def call(self, enlisted_by: Service | None = None) -> None:
        """Have the service look at this station; takes no lock, so it may come from anywhere.

        Args:
            enlisted_by: the service that looks after it, where an interrupt has kept that from us.
        """
        if self._service is None and enlisted_by is not None:
            self._service = enlisted_by
        service = self._service
        if service is not None:
            service.called.append(self)
            service.polls.bell.signal()

    def withdraw(self, request: Request, service: Service | None) -> bool:
        """Take out a request that has not begun to end; report whether it was there."""
        with self.lock:
            if self.trying is request:
                return False
            try:
                self.queues[request.direction].remove(request)
            except ValueError:
                if not self.is_out(request):  # it has its outcome
                    return False
        self.serve(service)
        if self.ended:
            self.call()
        return True

    def is_out(self, request: Request) -> bool:
        """Report whether a request was withdrawn: it waits no more, and has no outcome."""
        with self.lock:
            return not request.has_ended and request not in self.queues[request.direction]

    def settle(self) -> None:
        """Settle all that has ended; for the service thread."""
        taken: list[Request] = []
        while self.ended:
            try:
                taken.extend(starmap(self.ended.popleft, ((),)))
            except IndexError:  # its poster was faster
                return
            try:
                taken[0].settle()
            except MemoryError:  # it would be nobody's then
                self.ended.extendleft(taken)
                raise
            taken.clear()

    def settle_own(self, request: Request) -> None:
        """Settle the request just posted, if it has ended; what others posted is left to the service thread."""
        try:
            self.ended.remove(request)
        except ValueError:  # it waits, or the service thread has it
            pass
        else:
            request.settle()
        if self.ended:
            self.call()
