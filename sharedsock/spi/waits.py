"""Event objects, threads that wait alertably, and the procedure calls queued to them (APCs).

An event object is a manual-reset flag of this process; a waiting thread is told by each of its events, and by a
procedure call if it waits alertably. A procedure call runs in its thread only, only inside an alertable wait, and one
after the other (OVERLAP-11). Calls on sockets are no alertable waits: nothing interrupts them.

Source: WSAWaitForMultipleEvents, WPUQueueApc, SleepEx; "Overlapped I/O and Event Objects".
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sharedsock.model.winsock import (
    INFINITE,
    MAXIMUM_WAIT_OBJECTS,
    WAIT_IO_COMPLETION,
    WAIT_OBJECT_0,
    WAIT_TIMEOUT,
    WSA_INVALID_HANDLE,
    WSAEINVAL,
)
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "WSATHREADID",
    "SleepEx",
    "WSAWaitForMultipleEvents",
    "close_event",
    "current_thread",
    "event_is_set",
    "make_event",
    "queue_call",
    "reset_event",
    "set_event",
]


class _EventObject:
    """One event object."""

    __slots__ = ("is_set", "waiters")

    def __init__(self) -> None:
        self.is_set = False
        self.waiters: set[threading.Event] = set()


class WSATHREADID:
    """A thread to which procedure calls can be queued; what WPUOpenCurrentThread gives.

    Attributes:
        ident: the thread's.
        calls: those that wait to be run.
    """

    __slots__ = ("calls", "ident", "is_closed", "waiter")

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.waiter: threading.Event | None = None
        self.is_closed = False


_events: dict[int, _EventObject] = {}
_lock = threading.Lock()
_numbers: Final = itertools.count(1)
_mine = threading.local()


# -- event objects ------------------------------------------------------------------------------------------------


def make_event() -> int:
    """Make an event object that is not set; return its handle."""
    number = next(_numbers)
    _events[number] = _EventObject()
    return number


def _event(number: object) -> _EventObject:
    found = _events.get(number) if isinstance(number, int) else None
    if found is None:
        raise WSAError(WSA_INVALID_HANDLE, f"{number!r} is no event object of this process")
    return found


def close_event(number: int) -> None:
    """Close an event object; it is its creator's to close (CLOSE-45).

    Raises:
        WSAError: 6, no event object.
    """
    _event(number)
    _events.pop(number, None)


def event_is_set(number: int) -> bool:
    """Report whether an event object is set."""
    return _event(number).is_set


def set_event(number: int) -> None:
    """Set an event object; it stays set until it is reset."""
    event = _event(number)
    with _lock:
        event.is_set = True
        for waiter in event.waiters:
            waiter.set()


def reset_event(number: int) -> None:
    """Reset an event object."""
    _event(number).is_set = False


# -- threads ------------------------------------------------------------------------------------------------------


def current_thread() -> WSATHREADID:
    """Return the identity of this thread, the same at every call."""
    found: WSATHREADID | None = getattr(_mine, "thread", None)
    if found is None:
        found = _mine.thread = WSATHREADID()
    return found


def queue_call(thread: WSATHREADID, call: Callable[..., Any], *arguments: Any) -> None:
    """Queue a procedure call; the thread makes it when it next waits alertably."""
    with _lock:
        thread.calls.append((call, arguments))
        if thread.waiter is not None:
            thread.waiter.set()


def _run_calls(thread: WSATHREADID) -> bool:
    """Make the calls that are queued now; report whether there was one."""
    has_run = False
    for _ in range(len(thread.calls)):  # a routine may cause the next one: that is the next wait's
        try:
            call, arguments = thread.calls.popleft()
        except IndexError:  # a routine has waited alertably itself
            break
        has_run = True
        call(*arguments)
    return has_run


# -- waiting ------------------------------------------------------------------------------------------------------


def WSAWaitForMultipleEvents(
    lphEvents: Sequence[int], fWaitAll: bool = False, dwTimeout: int = INFINITE, fAlertable: bool = False
) -> int:
    """Wait for one event object, or for all of them.

    Args:
        lphEvents: event objects, 1 to 64.
        dwTimeout: milliseconds; 0 only looks, INFINITE waits for ever.
        fAlertable: procedure calls queued to this thread are made meanwhile, and end the wait.

    Returns:
        WAIT_OBJECT_0 + the lowest index that is set (0 with `fWaitAll`), WAIT_TIMEOUT or WAIT_IO_COMPLETION.

    Raises:
        WSAError: 6, one is no event object; 10022, none of them, or too many.
    """
    events = [_event(number) for number in lphEvents]
    if not 0 < len(events) <= MAXIMUM_WAIT_OBJECTS:
        raise WSAError(WSAEINVAL, f"1 to {MAXIMUM_WAIT_OBJECTS} event objects can be waited for, not {len(events)}")
    return _wait(events, fWaitAll, dwTimeout, fAlertable)


def SleepEx(dwMilliseconds: int, bAlertable: bool) -> int:
    """Wait for the time, or for a procedure call; return 0 or WAIT_IO_COMPLETION."""
    return WAIT_IO_COMPLETION if _wait([], True, dwMilliseconds, bAlertable) == WAIT_IO_COMPLETION else 0


def _wait(events: list[_EventObject], all_of_them: bool, timeout_ms: int, is_alertable: bool) -> int:
    deadline = None if timeout_ms == INFINITE else monotonic() + timeout_ms / 1000.0
    thread = current_thread()
    waiter = threading.Event()
    with _lock:
        for event in events:
            event.waiters.add(waiter)
        outer = thread.waiter
        if is_alertable:
            thread.waiter = waiter
    try:
        while True:
            if is_alertable and _run_calls(thread):
                return WAIT_IO_COMPLETION
            found = [index for index, event in enumerate(events) if event.is_set]
            if events and (len(found) == len(events) if all_of_them else found):
                return WAIT_OBJECT_0 + (0 if all_of_them else found[0])
            left_s = None if deadline is None else deadline - monotonic()
            if left_s is not None and left_s <= 0:
                return WAIT_TIMEOUT
            waiter.wait(left_s)
            waiter.clear()
    finally:
        with _lock:
            for event in events:
                event.waiters.discard(waiter)
            thread.waiter = outer


def _forget_in_child() -> None:
    """A forked child has no event object, and its one thread no call to make."""
    global _lock, _mine
    _lock = threading.Lock()
    _mine = threading.local()
    _events.clear()


os.register_at_fork(after_in_child=_forget_in_child)
