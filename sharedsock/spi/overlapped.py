"""Overlapped structures, and the completion each request comes to exactly once.

A provider begins a request (`begin`), and completes it (`complete`): the outcome is stored first, then the indication
the caller chose follows: a completion routine is queued to the issuing thread, an event object is set, or a packet is
posted to the handle's completion port (OVERLAP-10). A silent completion (CLEANUP-2) stores the outcome and gives no
indication; whoever waits in WSPGetOverlappedResult is released in either case.

A layer that wants to hear of a completion below passes a `Relay` down: the completion is its method's then.

Source: WSAOVERLAPPED; "Summary of Overlapped Completion Indication Mechanisms in the SPI".
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sharedsock.model.winsock import WSA_IO_INCOMPLETE, WSA_IO_PENDING, WSAEINVAL
from sharedsock.spi import handles, ports, waits
from sharedsock.spi.errors import WSAError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.spi.handles import Handle
    from sharedsock.spi.waits import WSATHREADID

__all__ = [
    "WSAOVERLAPPED",
    "CompletionRoutine",
    "Relay",
    "abandon",
    "begin",
    "belongs_to_the_dll",
    "complete",
    "result",
]

if TYPE_CHECKING:
    CompletionRoutine = Callable[[int, int, "WSAOVERLAPPED", int], Any]
    """routine(dwError, cbTransferred, lpOverlapped, dwFlags)."""
else:
    CompletionRoutine = Any


class WSAOVERLAPPED:
    """What identifies one request; the caller's, and the provider's from the call on until its completion is seen.

    Attributes:
        hEvent: an event object to be set, or 0.
        Internal: 0, the error it came to, or 997 while it is pending.
        InternalHigh: bytes transferred.
        dwFlags: what a receive has to say of its message.
        lpFrom: the sender's address of the message that a WSPRecvFrom has received; None before.
        handle: the handle the request was begun on, None before.
    """

    __slots__ = ("Internal", "InternalHigh", "_entry", "_settled", "dwFlags", "hEvent", "handle", "lpFrom")

    def __init__(self, hEvent: int = 0) -> None:
        self.hEvent = hEvent
        self.Internal = 0
        self.InternalHigh = 0
        self.dwFlags = 0
        self.lpFrom: Any = None
        self.handle: int | None = None
        self._entry: Handle | None = None
        self._settled = threading.Event()
        self._settled.set()

    @property
    def is_pending(self) -> bool:
        """Whether a request has this structure now."""
        return not self._settled.is_set()

    def belongs_to(self, s: object) -> bool:
        """Whether its last request was begun on this handle."""
        return self.handle is not None and self.handle == s

    def wait_settled(self) -> None:
        """Wait until the request has its outcome."""
        self._settled.wait()


class Relay(WSAOVERLAPPED):
    """A layer's own structure for a request it passes down.

    Attributes:
        on_completion: hears of its end: on_completion(error, bytes, flags, is_silent).
    """

    __slots__ = ("on_completion",)

    def __init__(self, on_completion: Callable[[int, int, int, bool], object]) -> None:
        super().__init__()
        self.on_completion = on_completion


def begin(s: int, lpOverlapped: object, lpCompletionRoutine: object = None) -> WSAOVERLAPPED:
    """Have a request take a structure; its event is reset first (OVERLAP-4).

    Raises:
        WSAError: 10022, it is none, or belongs to a request that is pending (OVERLAP-14); 6, no event object.
    """
    if not isinstance(lpOverlapped, WSAOVERLAPPED):
        raise WSAError(WSAEINVAL, f"{lpOverlapped!r} is no WSAOVERLAPPED")
    if lpCompletionRoutine is not None and not callable(lpCompletionRoutine):
        raise WSAError(WSAEINVAL, f"{lpCompletionRoutine!r} is no completion routine")
    if lpOverlapped.is_pending:
        raise WSAError(WSAEINVAL, "this WSAOVERLAPPED belongs to a request that is pending")
    if lpOverlapped.hEvent and lpCompletionRoutine is None:
        waits.reset_event(lpOverlapped.hEvent)
    lpOverlapped._settled.clear()
    lpOverlapped.handle = s
    lpOverlapped._entry = handles.find(s)  # a close takes it out of the table before the request completes
    lpOverlapped.Internal = WSA_IO_PENDING
    lpOverlapped.InternalHigh = lpOverlapped.dwFlags = 0
    lpOverlapped.lpFrom = None
    return lpOverlapped


def abandon(lpOverlapped: WSAOVERLAPPED, error: int) -> None:
    """The request was not started: no indication will come (OVERLAP-3)."""
    lpOverlapped.Internal = error
    lpOverlapped._settled.set()


def complete(
    lpOverlapped: WSAOVERLAPPED,
    dwError: int,
    cbTransferred: int,
    dwFlags: int = 0,
    lpCompletionRoutine: CompletionRoutine | None = None,
    lpThreadId: WSATHREADID | None = None,
    *,
    is_silent: bool = False,
) -> None:
    """Store the outcome of a request, and give the indication that was chosen for it."""
    lpOverlapped.InternalHigh = cbTransferred
    lpOverlapped.dwFlags = dwFlags
    lpOverlapped.Internal = dwError
    lpOverlapped._settled.set()
    if isinstance(lpOverlapped, Relay):
        lpOverlapped.on_completion(dwError, cbTransferred, dwFlags, is_silent)
    elif is_silent:
        return
    elif lpCompletionRoutine is not None:
        thread = waits.current_thread() if lpThreadId is None else lpThreadId
        waits.queue_call(thread, lpCompletionRoutine, dwError, cbTransferred, lpOverlapped, dwFlags)
    else:
        _indicate(lpOverlapped, dwError, cbTransferred)


def _indicate(lpOverlapped: WSAOVERLAPPED, error: int, transferred: int) -> None:
    """Give the indication of a request without a routine: the event, or else a packet at the handle's port."""
    if lpOverlapped.hEvent:
        with suppress(WSAError):  # its creator has closed it: nobody waits for it
            waits.set_event(lpOverlapped.hEvent)
        return
    entry = lpOverlapped._entry
    if entry is not None and entry.port is not None:
        port, key = entry.port
        ports.post(port, transferred, key, lpOverlapped, error)


def belongs_to_the_dll(s: int, lpOverlapped: WSAOVERLAPPED) -> bool:
    """Whether a request was begun on a handle that WPUCreateSocketHandle had made, open now or not."""
    entry = lpOverlapped._entry
    return entry is not None and entry.number == s and not entry.is_ifs


def result(s: int, lpOverlapped: object, fWait: bool) -> tuple[int, int]:
    """Return (bytes, flags) of a request that has ended.

    Raises:
        WSAError: 996, it is pending; what it came to; 10022, no request of this handle, or a wait without an event.
    """
    if not isinstance(lpOverlapped, WSAOVERLAPPED) or not lpOverlapped.belongs_to(s):
        raise WSAError(WSAEINVAL, "this WSAOVERLAPPED was not used with this handle")
    if lpOverlapped.is_pending:
        if not fWait:
            raise WSAError(WSA_IO_INCOMPLETE)
        if not lpOverlapped.hEvent:
            raise WSAError(WSAEINVAL, "only a request with an event object can be waited for")
        lpOverlapped.wait_settled()
    if lpOverlapped.Internal:
        raise WSAError(lpOverlapped.Internal, bytes_transferred=lpOverlapped.InternalHigh)
    return lpOverlapped.InternalHigh, lpOverlapped.dwFlags
