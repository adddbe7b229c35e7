"""The close of one descriptor, one numbered step per function.

    1 begin      once per descriptor; a second close finds it begun and does nothing
    2 ask        only where the close may be refused: begin-close first, and its answer binds
    3 abort      mark, unregister, wake: this process's operations end. Local, never waits for the registry
    4 drain      every registered waiter has left
    5 bury       keep the real file, dead file over the number: our reference to the socket is the kept file now
    6 begin-close   the registry tells whether this is the last reference
    7 linger     if last: graceful, hard, or wait
    8 drop       close the kept file
    9 end-close  the registry counts one less

`shutdown()` is felt by every sharer: only step 7 of the last closer may call it. Lifetime is the kernel's: where the
registry cannot be asked, the kept file is closed without a word and the kernel's rule ends the socket (F-60).

Source: "Closing Sockets" and LPWSPCLOSESOCKET (Winsock SPI).
"""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from sharedsock.descriptors import lingering, options, table
from sharedsock.descriptors.descriptor import calling_place
from sharedsock.kernel import numbers, sockets
from sharedsock.model import trace
from sharedsock.model.errors import RegistryGone, from_errno

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["close", "collect", "forget"]


def close(descriptor: Descriptor, *, may_refuse: bool = False) -> None:
    """Close one descriptor: abort this process's operations on it, give its reference back; linger if it was the last.

    Other processes: unaffected, unless this was the last reference.

    Args:
        may_refuse: the caller may be told to come back: nonblocking, linger > 0, and bytes unsent at the last close.

    Raises:
        BlockingIOError: 10035, the close was refused and has changed nothing (LINGER-4).

    Source: LPWSPCLOSESOCKET, Remarks.
    """
    if not _begin(descriptor):
        return
    is_last: bool | None = None
    if may_refuse and _might_be_refused(descriptor):
        is_last = _ask_first(descriptor)
    linger_s = options.common(descriptor).linger_s
    was_shared = descriptor.client is not None
    kernel = _abort(descriptor)
    _drain(descriptor, kernel)
    kept = sockets.keep_and_bury(kernel, keep=True)
    if trace.hook is not None:
        trace.hit("close.fd_closed", descriptor=descriptor.id)
    if is_last is None:
        is_last = _begin_close(descriptor)
    era = numbers.current_era()
    try:
        if kept is not None:
            _linger(descriptor, kept, is_last, linger_s, was_shared)
    finally:
        if kept is not None:
            numbers.release(kept, era)
        _end_close(descriptor)
        if trace.hook is not None:
            trace.hit("close.ended", descriptor=descriptor.id, is_last=is_last)


def collect(descriptor: Descriptor) -> None:
    """Close a descriptor the garbage collector has found open: no registry call, no wait, no refusal.

    The kernel's rule ends the socket if nobody else has it; the reference goes with the next registry call.
    """
    if not descriptor.close_once.acquire(blocking=False):
        return
    client = descriptor.client
    kernel = descriptor.swap_for_closed("the garbage collector")
    sockets.abort(kernel, "the garbage collector")
    sockets.keep_and_bury(kernel, keep=False)
    table.leave(descriptor)
    if client is not None:
        table.abandon(client, descriptor.id)


def forget(descriptor: Descriptor) -> int:
    """Let the file number of a never-shared socket go to the caller (`detach`); this process's operations end.

    Raises:
        OSError: 10022, the socket was shared: its number alone is not the socket.
    """
    if not _begin(descriptor):
        return -1
    if descriptor.client is not None:
        descriptor.close_once.release()
        raise from_errno(
            errno.EINVAL,
            f"descriptor {descriptor.id} was shared, so its file number alone is not the socket: give a program of "
            "yours share(pid), and one without sharedsock lend(pid)",
        )
    kernel = _abort(descriptor)
    _drain(descriptor, kernel)
    return sockets.let_go(kernel)


def _begin(descriptor: Descriptor) -> bool:
    """Step 1: of any number of closers, in threads, handlers and destructors, exactly one goes on."""
    if not descriptor.close_once.acquire(blocking=False):
        return False
    if descriptor.is_closed:  # a forked child's descriptor, or one being collected
        return False
    if trace.hook is not None:
        trace.hit("close.begin", descriptor=descriptor.id)
    return True


def _might_be_refused(descriptor: Descriptor) -> bool:
    """Whether step 2 is needed: nonblocking, linger > 0, and bytes that are not sent and acknowledged."""
    linger_s = options.common(descriptor).linger_s
    return bool(linger_s) and lingering.has_unsent(descriptor.kernel.number, descriptor.family, descriptor.type)


def _ask_first(descriptor: Descriptor) -> bool:
    """Step 2: begin-close before anything is touched; refuse if this would be the last close with bytes left."""
    is_last = _begin_close(descriptor)
    if is_last and lingering.has_unsent(descriptor.kernel.number, descriptor.family, descriptor.type):
        if descriptor.client is not None:
            descriptor.client.cancel_close(descriptor.id)
        descriptor.close_once.release()
        raise from_errno(
            errno.EAGAIN,
            f"close of descriptor {descriptor.id} would have to wait for unsent data (SO_LINGER on a nonblocking "
            "socket): nothing was closed; call again, or set SO_LINGER off or to 0",
        )
    return is_last


def _abort(descriptor: Descriptor) -> KernelSocket:
    """Step 3: make later use fail, and end what waits."""
    closed_by = f"{threading.current_thread().name} ({calling_place()})"
    kernel = descriptor.swap_for_closed(closed_by)
    table.leave(descriptor)
    if trace.hook is not None:
        trace.hit("close.marked", descriptor=descriptor.id)
    sockets.abort(kernel, closed_by)
    return kernel


def _drain(descriptor: Descriptor, kernel: KernelSocket) -> None:
    """Step 4: wait until every waiter has left; a call that is not a waiter meets the dead file."""
    sockets.wait_drained(kernel)
    if trace.hook is not None:
        trace.hit("close.drained", descriptor=descriptor.id)


def _begin_close(descriptor: Descriptor) -> bool:
    """Step 6: whether ours is the last reference. A socket that was never shared is nobody else's.

    A registry that cannot be asked has not said LAST: nothing but the kernel may then end the socket.
    """
    client = descriptor.client
    if client is None:
        return True
    with suppress(RegistryGone):
        table.flush_abandoned()
        return client.begin_close(descriptor.id)
    return False


def _linger(descriptor: Descriptor, kept: int, is_last: bool, linger_s: int | None, was_shared: bool) -> None:
    """Step 7: end the connection as the linger option says, on the kept file; no effect on a close that is not last."""
    if not is_last:
        return
    if trace.hook is not None:
        trace.hit("close.last", descriptor=descriptor.id)
    lingering.end(kept, descriptor.family, descriptor.type, linger_s, others_may_hold=was_shared)
    if trace.hook is not None:
        trace.hit("close.linger", descriptor=descriptor.id)


def _end_close(descriptor: Descriptor) -> None:
    """Step 9: the registry counts one less; a dead registry has nothing to count."""
    client = descriptor.client
    if client is not None:
        with suppress(RegistryGone):
            client.end_close(descriptor.id)
