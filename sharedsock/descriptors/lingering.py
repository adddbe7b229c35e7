"""How the last close ends a connection: graceful, hard, or waiting first. Acts on the kept file, never before the last.

The choice is the close table's (`model/linger.py`); this file knows how Linux carries it out:
- DONTLINGER: close() alone sends what is queued and then FIN, unless input is unread: then it resets, and the peer may
  lose what was queued. So: shut down for sending, drain what has come, within a bound (rule 13). Only then: somebody
  outside our count may still use the socket.
- LINGER(0): a reset, made by connect(AF_UNSPEC) where others may hold the file still (a closer that hangs).
- LINGER(t): wait until the peer has acknowledged everything, then as DONTLINGER; at t, reset. The kernel's own linger
  would go on sending after t, so it is never used.
A Unix stream is its peer's queue from the moment it is sent, so there only the unread input matters.
"""

from __future__ import annotations

import _socket
import select
import socket
import struct
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from sharedsock.kernel import system
from sharedsock.model.linger import CloseAction, close_action

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DRAIN_BOUND_S", "end", "has_unsent", "reset"]

DRAIN_BOUND_S: Final = 0.2
_LINGER: Final = struct.Struct("ii")
_CHUNK: Final = 1 << 16
# Nothing in the kernel tells "all acknowledged" but asking: short intervals at first, then longer ones.
_FIRST_ASK_S: Final = 0.0005
_LAST_ASK_S: Final = 0.02
_TCP_CLOSE: Final = 7
_STREAMS: Final = (socket.SOCK_STREAM, getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM))


class _Socket(Protocol):
    """What tells a TCP socket, and asks it: the kernel socket of an open descriptor, or the closer's view."""

    @property
    def family(self) -> int: ...
    @property
    def type(self) -> int: ...
    def fileno(self) -> int: ...


def _is_tcp(view: _Socket) -> bool:
    """Whether SIOCOUTQ counts unacknowledged bytes and SO_LINGER means anything: AF_UNIX ignores both."""
    return view.type == socket.SOCK_STREAM and view.family in (socket.AF_INET, socket.AF_INET6)


def has_unsent(view: _Socket) -> bool:
    """Whether bytes are queued that the peer's transport has not acknowledged."""
    try:
        return _is_tcp(view) and system.unsent_bytes(view.fileno()) > 0
    except OSError:  # EINVAL: a listener queues nothing
        return False


def end(
    view: _socket.socket,
    linger_s: int | None,
    *,
    others_may_hold: bool,
    on_wait: Callable[[], object] | None = None,
) -> None:
    """Carry out the last close on the kept file, up to its close(), which the caller makes.

    Args:
        view: the kept file.
        linger_s: seconds, 0 for a reset, None for DONTLINGER.
        others_may_hold: a file outside our sight may still refer to the socket.
        on_wait: called at each look while a linger > 0 waits.
    """
    unsent = has_unsent(view)
    action = close_action(linger_s, is_blocking=True, has_unsent=unsent)
    if action is CloseAction.RESET and _is_tcp(view):
        reset(view, others_may_hold)
        return
    if action is CloseAction.WAIT:
        assert linger_s is not None, "the close table: only LINGER(t) waits"
        if not _wait_acknowledged(view, monotonic() + linger_s, on_wait):
            reset(view, others_may_hold)
            return
        unsent = False
    if view.type in _STREAMS:
        _drain_unread(view, unsent)


def reset(view: _socket.socket, others_may_hold: bool) -> None:
    """Have the connection end with a reset: when the file is closed, or now where others may hold it."""
    view.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    if others_may_hold:
        system.reset_connection(view.fileno())


def _wait_acknowledged(view: _socket.socket, deadline: float, on_wait: Callable[[], object] | None) -> bool:
    """Wait until the peer's transport has every byte (LINGER-8: not its application); False when time is over first."""
    with suppress(OSError):  # ENOTCONN: reset meanwhile; nothing is left to send
        view.shutdown(socket.SHUT_WR)
    interval_s = _FIRST_ASK_S
    # An interval, not an event: once both sides have sent FIN the socket is hung up for good, and poll would not wait.
    clock = select.poll()
    while system.unsent_bytes(view.fileno()) > 1:  # SIOCOUTQ counts our queued FIN as one
        if system.tcp_state(view) == _TCP_CLOSE:  # reset: nobody will acknowledge the rest
            return True
        left_s = deadline - monotonic()
        if left_s <= 0:
            return False
        if on_wait is not None:
            on_wait()
        clock.poll(min(interval_s, left_s) * 1000)
        interval_s = min(interval_s * 2, _LAST_ASK_S)
    return True


def _drain_unread(view: _socket.socket, unsent: bool) -> None:
    """Take in what the peer has sent and nobody has read, so that close() does not reset the connection."""
    try:
        if not system.has_unread(view.fileno()):
            return
        view.shutdown(socket.SHUT_WR)
        deadline = monotonic() + DRAIN_BOUND_S
        poll = select.poll()
        poll.register(view.fileno(), select.POLLIN)
        interval_s = _FIRST_ASK_S
        while (left_s := deadline - monotonic()) > 0:
            try:
                if not view.recv(_CHUNK, system.DONTWAIT):
                    return
            except BlockingIOError:
                # Quiet, and our bytes are with the peer: close() will not reset. Else a late byte could still cut them.
                if not unsent or system.unsent_bytes(view.fileno()) <= 1:
                    return
                poll.poll(min(interval_s, left_s) * 1000)
                interval_s = min(interval_s * 2, _LAST_ASK_S)
    except OSError:  # not connected, a listener, or reset already: nothing to save
        return
