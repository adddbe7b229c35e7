"""The close of one descriptor, one numbered step per function.

    1 begin      once per descriptor; a second close finds it begun and does nothing
    2 ask        only where the close may be refused: begin-close first, and its answer binds
    3 abort      mark, wake, unregister: this process's operations end. Local, never waits for the registry
    4 drain      every registered waiter has left
    5 bury       keep the real file, dead file over the number: our reference to the socket is the kept file now
    6 begin-close   the registry tells whether this is the last reference
    7 linger     if last: graceful, hard, or wait
    8 drop       close the kept file
    9 end-close  the registry counts one less

`shutdown()` is felt by every sharer: only step 7 of the last closer may call it. Lifetime is the kernel's: where the
registry cannot be asked, the kept file is closed without a word and the kernel's rule ends the socket (F-60). An
exception from outside, Ctrl-C in a linger wait say, cuts a close short but does not undo it: nothing stays (F-73).

Source: "Closing Sockets" and LPWSPCLOSESOCKET (Winsock SPI).
"""

from __future__ import annotations

import _socket
import errno
import itertools
import os
import socket
import struct
import threading
from contextlib import suppress
from itertools import starmap
from sys import getrefcount
from typing import TYPE_CHECKING, Final

from sharedsock.descriptors import lingering, naming, options, service, table
from sharedsock.descriptors.descriptor import Closer, calling_place, lost
from sharedsock.kernel import numbers, sockets
from sharedsock.kernel.system import has_unread
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket, RegistryGone, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.registry.client import Client

__all__ = ["close", "collect", "forget", "not_alone"]


def close(
    descriptor: Descriptor,
    *,
    may_refuse: bool = False,
    may_wait: bool = True,
    is_hard: bool = False,
    on_wait: Callable[[], object] | None = None,
) -> bool:
    """Close one descriptor: abort this process's operations on it, give its reference back; linger if it was the last.

    Other processes: unaffected, unless this was the last reference.

    Args:
        may_refuse: the caller may be told to come back: nonblocking, linger > 0, and bytes unsent at the last close.
        may_wait: False: a linger > 0 acts as DONTLINGER.
        is_hard: if it is the last, reset, whatever the linger option says.
        on_wait: called again and again while a linger > 0 waits; what it raises cuts the close short.

    Returns:
        False: another close of the descriptor has come first, and this one did nothing.

    Raises:
        BlockingIOError: 10035, the close was refused and has changed nothing (LINGER-4).
        LostDescriptor: the number was closed behind our back. Everything of the descriptor has been given back.

    Source: LPWSPCLOSESOCKET, Remarks.
    """
    closing = _Closing(descriptor)
    try:
        if not closing.begin():
            return False
        if may_refuse:
            closing.ask_first()
        closing.abort()
        if not is_hard and closing.close_alone():
            return True
        closing.drain()
        closing.bury()
        closing.ask()
        # Whoever may be refused never waits: what is unsent by now goes in the background.
        closing.linger(may_wait and not may_refuse, is_hard, on_wait)
        closing.drop()
        closing.end()
    except BaseException:
        closing.cut_short()
        raise
    if closing.is_lost():
        assert closing.kernel is not None, "begin() has said yes"
        raise lost(descriptor, closing.kernel.lost)
    return True


def collect(descriptor: Descriptor) -> None:
    """Close a descriptor the garbage collector has found open: no registry call, no wait, no refusal.

    The kernel's rule ends the socket if nobody else has it; the service gives the reference back soon, or the next call
    that talks to a registry does.
    """
    descriptor.claims.append(0)
    if descriptor.claims != [0]:
        return
    client = descriptor.client
    kernel = descriptor.swap_for_closed(Closer(descriptor, "the garbage collector"))
    if kernel.number >= 0:  # in a cycle the collector may have finalised the kernel socket first, and freed its number
        sockets.abort(kernel, "the garbage collector")
        service.abort(kernel)
        sockets.keep_and_bury(kernel, keep=False)
    table.leave(descriptor)
    if client is not None:
        table.abandon(client, descriptor.id)
        service.flush_soon()


def forget(descriptor: Descriptor) -> int:
    """Let the file number of a never-shared socket go to the caller (`detach`); this process's operations end.

    It blocks again if the timeout was None.

    Raises:
        OSError: 10022, the socket was shared: its number alone is not the socket.
        LostDescriptor: in the debug mode, if the number is a stranger's. The descriptor is closed all the same.
    """
    closing = _Closing(descriptor)
    kernel: KernelSocket | None = None
    number = descriptor.kernel.number
    try:
        if not closing.begin():
            return -1
        if descriptor.client is not None:
            descriptor.claims.clear()
            raise not_alone(descriptor)
        if descriptor.kernel.is_lost():
            raise lost(descriptor, descriptor.kernel.lost)
        kernel = closing.abort()
        closing.drain()
        if descriptor.local.linger_s:  # emulated up to now; whoever has the number has only the kernel's
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, descriptor.local.linger_s))
        sockets.let_go(kernel)
        with suppress(OSError):  # EBADF: closed behind our back; the number is all there is to give
            os.set_blocking(number, descriptor.timeout_s is None)
        return number
    except BaseException:
        closing.cut_short()
        if kernel is not None and kernel.number < 0:  # let go, and not in anybody's hands
            sockets.take_back(kernel, number)
        raise


def not_alone(descriptor: Descriptor) -> OSError:
    """Build the error of a descriptor that was shared, where somebody wants its number for himself."""
    return from_errno(
        errno.EINVAL,
        f"descriptor {descriptor.id} was shared, so its file number alone is not the socket: give a program of yours "
        "share(pid), and one without sharedsock lend(pid); for TLS there is wrap_tls()",
    )


_tokens: Final = itertools.count(1)


class _Closing:
    """One close on its way; each method is a step. What a step has taken is here before the next instruction runs."""

    # What most closes need no other value of; no slots, so that they need not store it.
    kernel: KernelSocket | None = None
    client: Client | None = None
    is_last: bool | None = None
    _kept: Sequence[int] = ()
    _view: Sequence[_socket.socket] = ()
    _is_late = False
    _owes = True  # a reference, where there is a registry that counts it

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._era = numbers.current_era()
        self._token = next(_tokens)

    def begin(self) -> bool:
        """Step 1: of any number of closers, in threads, handlers and destructors, exactly one goes on."""
        descriptor = self._descriptor
        descriptor.claims.append(self._token)  # one C call: whoever comes second finds it there
        if descriptor.claims[:1] != [self._token]:
            return False
        if descriptor.kernel.aborted is not None:  # a forked child's descriptor, or one being collected
            return False
        self.kernel = descriptor.kernel
        if trace.hook is not None:
            trace.hit("close.begin", descriptor=descriptor.id)
        return True

    def _has_won(self) -> bool:
        return self._descriptor.claims[:1] == [self._token]

    def ask_first(self) -> None:
        """Step 2: where the close may be refused, begin-close before anything is touched; its answer binds.

        Raises:
            BlockingIOError: this would be the last close, with bytes left and no leave to wait for them.
        """
        descriptor = self._descriptor
        if not self._linger_s() or not lingering.has_unsent(descriptor.kernel):
            return
        if self._is_disconnecting():
            return
        self.ask()
        if not self.is_last or not lingering.has_unsent(descriptor.kernel):
            return
        if self.client is not None:
            with suppress(RegistryGone):  # it has nothing left to count
                self.client.cancel_close(descriptor.id)
        descriptor.claims.clear()
        raise from_errno(
            errno.EAGAIN,
            f"close of descriptor {descriptor.id} would have to wait for unsent data (SO_LINGER on a nonblocking "
            "socket): nothing was closed; call again, or set SO_LINGER off or to 0",
        )

    def abort(self) -> KernelSocket:
        """Step 3: make later use fail, and end what waits."""
        kernel, descriptor = self.kernel, self._descriptor
        assert kernel is not None, "begin() has said yes"
        closer = Closer(descriptor, threading.current_thread().name, calling_place(3))
        if descriptor.client is not None and self.is_last is None:
            table.begin_leaving(descriptor)
        descriptor.swap_for_closed(closer)
        if trace.hook is not None:
            trace.hit("close.marked", descriptor=descriptor.id)
        sockets.abort(kernel, closer)
        service.abort(kernel)
        return kernel

    def close_alone(self) -> bool:
        """Steps 4 to 9 at once, where they come to a plain close(): report whether that was so.

        A socket that was never shared, on which no call of this process is inside, has nobody to wait for, and no
        number to keep for anybody; with nothing to linger for, nothing but the file is left of it.
        """
        descriptor = self._descriptor
        # Race: a call between its look-up and its system call holds the kernel socket, and takes us the long way. None
        # can come after we have looked: step 3 has left the kernel socket in no hands but ours. What such a call has
        # changed is looked at afterwards. Test: tests/races/test_plain_close_meets_calls.py
        if (
            trace.hook is not None
            or getrefcount(self.kernel) != sockets.ALONE
            or self.kernel.__class__ is not sockets.KernelSocket
            or descriptor.client is not None
            or descriptor.local.linger_s is not None
        ):
            return False
        kernel = self.kernel
        assert kernel is not None, "begin() has said yes"
        try:
            if has_unread(kernel.number):
                return False
        except OSError as error:
            if error.errno != errno.EINVAL:  # a listener has none; EBADF: somebody has closed the number
                return False
        table.leave(descriptor)
        sockets.close_alone(kernel)
        return True

    def drain(self) -> None:
        """Step 4: wait until every waiter has left; a call that is not a waiter meets the dead file."""
        assert self.kernel is not None, "begin() has said yes"
        sockets.wait_drained(self.kernel)
        table.leave(self._descriptor)  # not before: whatever stands between the wake and this wait is felt by waiters
        if trace.hook is not None:
            trace.hit("close.drained", descriptor=self._descriptor.id)

    def bury(self) -> None:
        """Step 5: the real file moves to a number of our own, the dead file over the old one."""
        kernel = self.kernel
        assert kernel is not None, "begin() has said yes"
        kept: list[int] = []
        view: list[_socket.socket] = []
        self._kept, self._view = kept, view
        sockets.keep_and_bury(kernel, True, kept)
        if kept:
            # The C object closes its number once, however often it is told to: drop() may be cut short and done again.
            view.extend(starmap(_socket.socket, ((kernel.family, kernel.type, kernel.proto, kept[0]),)))
            if socket.getdefaulttimeout() is not None:
                # Else its calls would wait so long. Not without need: a program without sharedsock that has cleared
                # O_NONBLOCK for itself would find it set again, by a close of ours (I4).
                view[0].settimeout(0.0)
        if trace.hook is not None:
            trace.hit("close.fd_closed", descriptor=self._descriptor.id)

    def ask(self) -> None:
        """Step 6: whether ours is the last reference. A socket that was never shared is nobody else's.

        A registry that cannot be asked has not said LAST: nothing but the kernel may then end the socket. Nor has one
        that does not know us: it took the place of the one that counted us while we were closing.
        """
        if self.is_last is not None:  # the answer of step 2 binds
            return
        self.client = client = self._descriptor.client
        if client is None:
            self.is_last = True
            return
        try:
            table.flush_abandoned()
            self.is_last = client.begin_close(self._descriptor.id)
        except RegistryGone:
            self.is_last = False
            self._is_late = client.is_connected()  # it hangs: from now on it is told, and not asked (T_rpc once)
        except NotASocket:
            self.is_last = False
        finally:
            table.end_leaving(self._descriptor)

    def linger(self, may_wait: bool, is_hard: bool, on_wait: Callable[[], object] | None) -> None:
        """Step 7: end the connection as the linger option says, on the kept file; no effect on a close not last."""
        if not self.is_last:
            return
        if trace.hook is not None:
            trace.hit("close.last", descriptor=self._descriptor.id)
        was_shared = self.client is not None
        linger_s = 0 if is_hard else self._linger_s()
        if not may_wait:
            linger_s = 0 if linger_s == 0 else None
        for view in self._view:
            lingering.end(view, linger_s, others_may_hold=was_shared, on_wait=on_wait)
            if was_shared:
                naming.remove_path(view)
        if trace.hook is not None:
            trace.hit("close.linger", descriptor=self._descriptor.id)

    def drop(self) -> None:
        """Step 8: close the kept file."""
        for view in self._view:
            if not numbers.release(view.fileno(), self._era, view.close):
                view.detach()  # a forked child, which has closed its number and may have given it to a stranger
        for kept in self._kept:
            if not self._view:
                numbers.release(kept, self._era)
        self._kept = ()

    def end(self) -> None:
        """Step 9: the registry counts one less; a dead registry has nothing to count."""
        if self.client is not None and self._owes:
            self._give_back(self.client)
            self._owes = False
        if trace.hook is not None:
            trace.hit("close.ended", descriptor=self._descriptor.id, is_last=self.is_last)

    def _give_back(self, client: Client) -> None:
        try:
            if not self._is_late:
                client.end_close(self._descriptor.id)
                return
        except NotASocket:
            return
        except OSError:  # it hangs, or is another one, which has counted this one as open
            if not client.is_connected():
                return
        if not client.post_close(self._descriptor.id):
            table.abandon(client, self._descriptor.id)

    def is_lost(self) -> bool:
        """Whether there was nothing to bury: somebody had closed the number already (F-55)."""
        return self.kernel is not None and self.kernel.number < 0

    def cut_short(self) -> None:
        """An exception from outside ends the close: nothing waits or lingers any more, and nothing stays."""
        descriptor, kernel = self._descriptor, self.kernel
        if not self._has_won():
            return
        if kernel is None:
            if not descriptor.is_closed:
                descriptor.claims.clear()
            return
        if descriptor.kernel is kernel:
            descriptor.swap_for_closed(Closer(descriptor, "an interrupted close"))
        table.leave(descriptor)
        table.end_leaving(descriptor)
        sockets.abort(kernel, "an interrupted close")
        service.abort(kernel)
        sockets.keep_and_bury(kernel, keep=False)
        self.drop()
        if descriptor.client is not None and self._owes:
            table.abandon(descriptor.client, descriptor.id)
            table.flush_abandoned()

    def _is_disconnecting(self) -> bool:
        """Whether a sharer has shut the socket down for sending: then a close need not begin to wait (LINGER-5)."""
        with suppress(RegistryGone):  # no page here, and nobody to ask
            return options.common(self._descriptor).shut_send
        return self._descriptor.local.shut_send

    def _linger_s(self) -> int | None:
        """Return the linger option as it stands now, for all sharers."""
        with suppress(RegistryGone):  # no page here, and nobody to ask
            return options.common(self._descriptor).linger_s
        return self._descriptor.local.linger_s
