"""The one service thread of a process: it looks after every overlapped request that has to wait, and after registries.

It waits on all stations in one poll set, and on the pipes by which a restarted registry asks who is left. It starts
with the first request that has to wait or the first socket that is shared, ends when no request is left and no channel
to a registry through which anything was shared, is stopped before a fork and started again behind it, and never keeps
an interpreter from ending. Requests that had to wait are settled here, and their callbacks run here. A registry is
answered in a thread of that moment: it may keep one waiting. What the garbage collector has left for registries to hear
is posted here, which waits for nobody.

A closer takes no lock and runs no callback: it has marked the socket; here it takes the number out of the set and
rings. Whoever serves next finds the mark and aborts what is left. So a close may come from any thread, a callback, a
signal handler or the garbage collector.

Keeps I6: without requests and registries there is no thread and no number.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from _queue import Empty, SimpleQueue
from _thread import start_new_thread
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

# The table's fork hooks are registered first, so its locks are taken after ours: the thread is not halted under them.
from sharedsock.descriptors import table
from sharedsock.descriptors.stations import Station
from sharedsock.kernel import numbers, polling

if TYPE_CHECKING:
    from sharedsock.descriptors.stations import Request
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import PendingOperation
    from sharedsock.registry.client import Client

__all__ = [
    "NAME",
    "Service",
    "abort",
    "discard",
    "enlist",
    "flush_soon",
    "kept_thread",
    "look_after",
    "pending",
    "recheck",
    "station_of",
    "withdraw",
]

NAME: Final = "sharedsock-service"

# A thread that has nothing to do waits this long for the next request before it ends.
_IDLE_S: Final = 0.05
_HALT_BOUND_S: Final = 1.0
_START_BOUND_S: Final = 10.0
_NO_THREAD: Final = "can't start new thread"  # as CPython says it
_RETRY_S: Final = 0.02


class Service:
    """The thread, its poll set and the stations it looks after.

    Attributes:
        armed: by file number, the stations with requests that wait; guards each number, as a station holds its socket.
        pipes: by file number, the registry clients that must hear of a new registry (F-76).
        paused: those of them that are looked at by the clock for a while.
        called: stations to look at, whatever the set says; closers and interrupted callers append.
        is_resting: the last it has heard is that a channel was given up: if nothing is left it ends at once.
        is_calling: it settles requests now, so user code runs in it.
    """

    def __init__(self) -> None:
        self.polls = polling.PollSet()
        self.era = numbers.current_era()
        self.armed: dict[int, Station] = {}
        self.pipes: dict[int, Client] = {}
        self.paused: dict[int, Station] = {}
        self.called: deque[Station] = deque()
        self.thread: threading.Thread | None = None
        self.is_resting = False
        self.is_calling = False
        self.is_halting = False
        self._due: list[Station] = []
        self._is_idle = False
        self._launching = threading.Lock()
        self._told: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError, MemoryError: the system has none to give.
        """
        self.is_halting = False
        self._told = SimpleQueue()
        # Thread.start() is Python code that an interrupt may tear: a helper thread, which none can reach, starts ours.
        outcome: SimpleQueue[Exception | None] = SimpleQueue()
        start_new_thread(self._launch, (outcome,))
        try:
            error = outcome.get(timeout=_START_BOUND_S)
        except Empty:  # for want of memory it died before its first line: nobody will tell us
            error = None if self.thread is not None and self.thread.ident is not None else RuntimeError(_NO_THREAD)
        if error is not None:
            raise error

    def _launch(self, outcome: SimpleQueue[Exception | None]) -> None:
        with self._launching:  # the last start may have been interrupted, and be under way
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)
                try:
                    self.thread.start()
                except (RuntimeError, MemoryError) as error:
                    self.thread = None
                    outcome.put(error)
                    return
        outcome.put(None)

    def dismiss(self, station: Station) -> None:
        """Look after a station no longer."""
        polling.leave(station.kernel, self.polls)
        for known in (self.armed, self.paused):  # a detached number may be another station's by now
            if known.get(station.number) is station:
                del known[station.number]

    def _answer(self, number: int) -> None:
        client = self.pipes.get(number)
        if client is None:  # given up this moment
            return
        client.silence()
        with suppress(RuntimeError):  # no thread to be had: the next call announces as well
            threading.Thread(target=_announce_again, args=(client,), name=f"{NAME}-call", daemon=True).start()

    def halt(self) -> None:
        """Have the thread end, and wait for that; a thread inside a callback ends when it is out of it.

        That one is not waited for: the callback may itself wait for whoever halts.
        """
        thread = self.thread
        if thread is None or thread is threading.current_thread():
            return
        self.is_halting = True
        self.polls.bell.signal()
        # Race: we mark, then look whether user code runs; the thread says that user code runs, then looks for the mark.
        if self.is_calling:
            return
        with suppress(Empty):
            self._told.get(timeout=_HALT_BOUND_S)
            if not self.is_calling:
                thread.join(_HALT_BOUND_S)

    def _run(self) -> None:
        while True:
            try:
                if self._is_over():
                    return
                self._gather()
            except MemoryError:  # whoever was due is so still: said again by the set, or in a list
                _report()
                select.poll().poll(_RETRY_S * 1000)
                continue
            while self._due:  # by no name in this frame, which waits next: it would keep the last one's number
                self._look_after(self._due.pop(0))
                if numbers.current_era() != self.era:  # a callback has forked: this is the child, which owns nothing
                    return

    def _look_after(self, station: Station) -> None:
        try:
            station.serve(is_event=True)
        except Exception:  # MemoryError: what could not be done now is tried again, by the clock
            station.retry_at_s = monotonic() + _RETRY_S
            self.paused[station.number] = station
            _report()
        if station.ended:
            self._settle(station)

    def _settle(self, station: Station) -> None:
        self.is_calling = True
        if self.is_halting:
            self._told.put(None)
        while station.ended:
            try:
                station.settle()
            except SystemExit:  # in a callback it would end this thread, silently; the others need it
                pass
            except BaseException:
                _report()
        self.is_calling = False

    def _gather(self) -> None:
        """Wait for something to do; the stations concerned are due. Cut short, it has lost none of them."""
        table.post_abandoned()
        began_s = monotonic()
        is_wanted = bool(self.armed or self.pipes)
        timeout_s = None if is_wanted else 0.0 if self.is_resting else _IDLE_S
        if self.paused:
            timeout_s = max(min(station.retry_at_s or began_s for station in self.paused.values()) - began_s, 0.0)
        if self.called:
            timeout_s = 0.0
        due = self._due
        for number, _ in self.polls.wait(timeout_s):
            if number in self.armed:
                due.append(self.armed[number])
            else:
                self._answer(number)
        now_s = monotonic()
        for number, station in tuple(self.paused.items()):
            if station.retry_at_s is None or station.retry_at_s <= now_s:
                if station not in due:
                    due.append(station)
                del self.paused[number]
        while self.called:
            due.append(self.called[0])
            self.called.popleft()
        self._is_idle = not due and not is_wanted and (self.is_resting or now_s - began_s >= _IDLE_S)

    def _is_over(self) -> bool:
        global _current
        if not self.is_halting and not self._is_idle:
            return False
        with _starting:
            if self.is_halting:
                self.thread = None
                self._told.put(None)
                return True
            if self.armed or self.called or self.pipes:
                return False
            self.thread = None
            if _current is self:
                _current = None
            return True


def _announce_again(client: Client) -> None:
    with suppress(OSError):  # gone again: the next one will call as well
        client.answer_call()
    flush_soon()  # what the dead one could not be told is nothing to the new one


def _report() -> None:
    """Show the exception at hand as one of this thread's, which goes on."""
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


# Held to start and to end the thread, and for nothing else.
_starting = threading.RLock()
_current: Service | None = None
_era = numbers.current_era()
# By id of the kernel socket, which its station keeps alive; a close takes it out.
_stations: dict[int, Station] = {}


def station_of(kernel: KernelSocket) -> Station:
    """Return the station of an open descriptor, made at its first request."""
    _renew_in_child()
    station = _stations.get(id(kernel))
    if station is None:
        station = _stations.setdefault(id(kernel), Station(kernel))
    return station


def discard(kernel: KernelSocket) -> None:
    """Forget the station of a closed descriptor; requests that still end there hold it themselves."""
    _stations.pop(id(kernel), None)


def enlist(station: Station) -> Service:
    """Have the service look after a station, starting it if need be; pass the result to `Station.serve`.

    Raises:
        RuntimeError: no thread can be started. OSError: EMFILE, no number for its set. Nothing has changed.
    """
    global _current
    with _starting:
        service = _current
        if service is None:
            service = _current = Service()
        service.is_resting = False
        service.armed[station.number] = station
        try:
            if service.thread is None:
                service.start()
        except BaseException:
            service.armed.pop(station.number, None)
            if not service.armed and service.thread is None:
                _current = None
            raise
        return service


def look_after(client: Client, number: int, is_held: bool) -> None:
    """Wait for a registry's call on a client's pipe, or do so no more; without a thread, its next call has to do.

    Called when this process begins to hold something there, and before the number is closed.
    """
    global _current
    with _starting:
        service = _current
        if not is_held:
            if service is not None and service.pipes.pop(number, None) is not None:
                service.polls.remove(number)
                service.is_resting = True
                service.polls.bell.signal()
            return
        if service is None:
            service = _current = Service()
        service.is_resting = False
        try:
            service.pipes[number] = client
            with suppress(FileExistsError):  # an interrupt came between here and the end of the last try
                service.polls.add(number, polling.READABLE)
            if service.thread is None:
                service.start()
        except (OSError, RuntimeError):
            if service.pipes.pop(number, None) is not None:
                service.polls.remove(number)
            if service.thread is None and not service.armed:
                _current = None


def kept_thread() -> threading.Thread | None:
    """Return the thread if it is there for the registries' sake, and stays until their channels are given up.

    For leak checks: it is nobody's leak then, as the channels are none.
    """
    service = _current
    return service.thread if service is not None and service.pipes else None


def withdraw(station: Station, request: Request) -> bool:
    """Take out a request that has not begun to end; report whether it was there."""
    return station.withdraw(request, _current)


def recheck(station: Station) -> None:
    """After an interrupt: have the service look at a station it was given, and dismiss it if nothing waits there."""
    service = _current
    if service is not None and service.armed.get(station.number) is station:
        station.call(service)


def abort(kernel: KernelSocket) -> None:
    """Take a socket that has just been marked out of the service's set and the selectors', and end its requests.

    Takes no lock, runs no callback, never waits: requests complete slightly later, in the service thread (CLOSE-27).
    """
    polling.forget(kernel)
    if _stations:
        station = _stations.get(id(kernel))
        if station is not None:
            station.call()
            discard(kernel)


def flush_soon() -> None:
    """Have references that were left behind given back soon; for the collector: takes no lock, waits for nothing.

    Whoever holds something at a registry has the thread, unless there was none to be had; then the next call does it.
    """
    service = _current
    if service is not None:
        service.polls.bell.signal()


def pending(kernel: KernelSocket) -> tuple[PendingOperation, ...]:
    """Return the requests that wait on a socket: who posted them, kind, since when."""
    station = _stations.get(id(kernel))
    if station is None:
        return ()
    return tuple(request.facts() for queue in station.queues for request in tuple(queue))


# -- forks and the end --------------------------------------------------------------------------------------------


def _before_fork() -> None:
    service = _current
    if service is not None:
        service.halt()


def _after_fork_in_parent() -> None:
    """Start the thread again if anything waits for it."""
    global _current
    with _starting:
        service = _current
        if service is None:
            return
        service.is_halting = False
        if service.thread is not None:  # it is inside a callback, and goes on
            return
        if not service.armed and not service.called and not service.pipes:
            _current = None
            return
        with suppress(RuntimeError):  # no thread to be had now: the next request that has to wait starts it
            service.start()


def _after_fork_in_child() -> None:
    global _current, _starting, _era
    _era = numbers.current_era()
    _starting = threading.RLock()
    _current = None
    _stations.clear()
    polling.renew()


def _renew_in_child() -> None:
    """A fork that ran no hooks has been noted by the table; everything here is the parent's as well."""
    if _era != numbers.current_era():
        _after_fork_in_child()


def _at_exit() -> None:
    service = _current
    if service is not None:
        service.halt()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
