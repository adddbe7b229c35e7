"""The class SharedSocket: what it is, sharing, closing, timeouts, connections.

It is a `socket.socket` for every isinstance check, but its C part never has a number: all work goes through a
`Descriptor`. While data is ready a receive or send is one Python frame and one system call; what has to wait goes to
`descriptors.transfer`. Timeouts are per descriptor and computed here, because O_NONBLOCK belongs to all sharers.
"""

from __future__ import annotations

import errno
import operator
import socket
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, Self, cast

from sharedsock.descriptors import closing, options, providing, service, table, transfer
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.kernel import conversation, exclusive, operations, sockets
from sharedsock.kernel.numbers import here
from sharedsock.kernel.teardown import silent_once_emptied
from sharedsock.model import trace
from sharedsock.model.errors import with_winerror
from sharedsock.sharedsocket.asking import Asking
from sharedsock.sharedsocket.base import SocketBase
from sharedsock.sharedsocket.overlapping import Overlapping
from sharedsock.sharedsocket.receiving import Receiving
from sharedsock.sharedsocket.sending import Sending

if TYPE_CHECKING:
    from sharedsock.model.identity import DescriptorId, Holder, PendingOperation

__all__ = ["SharedSocket", "Ticket", "fromshare", "revoke"]

_LONGEST_S: Final = (2**31 - 1) // 1000  # poll(2) counts milliseconds in an int
_NEVER_S: Final = (2**63 - 1) // 10**9  # the stdlib counts nanoseconds in 64 bits
_NONBLOCK: Final = int(getattr(socket, "SOCK_NONBLOCK", 0))


def _enum(kind: Any, value: int) -> Any:
    try:
        return kind(value)
    except ValueError:
        return value


class Ticket:
    """A right to one descriptor, minted now and redeemed where it is unpickled: for Queue, Pool and executors.

    Unpickling gives a `SharedSocket`, not a Ticket; the first process that unpickles it wins.
    """

    __slots__ = ("_info",)

    def __init__(self, info: bytes) -> None:
        self._info = info

    def redeem(self) -> SharedSocket:
        """Redeem it here and now; return a new descriptor."""
        return fromshare(self._info)

    def revoke(self) -> bool:
        """Take it back; report whether it was still unclaimed."""
        return revoke(self._info)

    def __reduce__(self) -> tuple[Any, ...]:
        return fromshare, (self._info,)

    def __repr__(self) -> str:
        return "<sharedsock.Ticket>"  # a ticket is a right: its bytes belong in no log (S-09)


class SharedSocket(Receiving, Sending, Asking, Overlapping, SocketBase):
    """A socket that processes share and close independently; a drop-in for `socket.socket`.

    Closing it ends the pending operations of this process on it and makes later use fail. The underlying socket lives
    until the last process has closed it; then SO_LINGER decides: off, queued data is still sent; 0, a reset; t, wait.

    Args:
        family, type, proto, fileno: as `socket.socket`. With `fileno`, takes that number over.

    Raises:
        OSError: as socket(2), with `.winerror`.

    Source: "Closing Sockets" and "Shared Sockets in the SPI" (Winsock SPI).
    """

    __slots__ = ()
    __module__ = "sharedsock.sharedsocket"  # the room, as repr() shows it

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._io_refs = 0
        self._closed = False
        if not here:
            table.note_fork()  # what is opened in a child of a fork without hooks is the child's
        if fileno is None:
            if family == -1:
                family = socket.AF_INET
            if type == -1:  # as in socket.socket
                type = socket.SOCK_STREAM
            try:
                kernel = sockets.open_socket(family, type, 0 if proto == -1 else proto)
            except OSError as error:
                raise with_winerror(error) from None
        else:
            kernel = sockets.adopt(fileno, family, type, proto)
        descriptor = Descriptor(kernel)
        descriptor.chain = providing.current
        if type & _NONBLOCK and type != -1:
            descriptor.timeout_s = 0.0
        if fileno is not None:
            options.take_over_linger(descriptor)
        self._settle(descriptor)

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def descriptor(self) -> DescriptorId:
        """This process's number for it, never given out twice; not a file number."""
        return self._descriptor.id

    @property
    def family(self) -> socket.AddressFamily:
        """The address family."""
        return cast("socket.AddressFamily", _enum(socket.AddressFamily, self._descriptor.family))

    @property
    def type(self) -> socket.SocketKind:
        """The socket type."""
        return cast("socket.SocketKind", _enum(socket.SocketKind, self._descriptor.type))

    @property
    def proto(self) -> int:
        """The protocol number."""
        return self._descriptor.protocol

    def fileno(self) -> int:
        """Return the file number, -1 once closed. Using it elsewhere is your own affair: nothing guards it there."""
        if self._descriptor.client is not None and sys._getframe(1).f_globals.get("__name__") == "ssl":
            # An SSLSocket takes the number, calls detach() then, and if that refuses closes the number it has.
            raise closing.not_alone(self._descriptor)
        kernel = self._descriptor.kernel
        exclusive.expose(kernel)
        return kernel.number

    def __repr__(self) -> str:
        descriptor = self._descriptor
        text = f"<{type(self).__module__}.{type(self).__qualname__} descriptor={descriptor.id}"
        if descriptor.is_closed:
            return f"{text} [closed]>"
        text += f" fd={descriptor.kernel.number}, family={self.family}, type={self.type}, proto={self.proto}"
        for word, ask in (("laddr", self.getsockname), ("raddr", self.getpeername)):
            try:
                address = ask()
            except OSError:
                continue
            if address:
                text += f", {word}={address}"
        return text + (" shared>" if descriptor.client is not None else ">")

    # -- sharing ---------------------------------------------------------------------------------------------

    def share(self, process_id: int | None, expires_s: float | None = None) -> bytes:
        """Issue a ticket for another process; return its bytes, to travel by any means.

        Other processes: the one named may redeem it, once, with `fromshare`. The ticket is a reference: this process
        may close or die before.

        Args:
            process_id: the target; None, the first process of this registry that redeems it.
            expires_s: seconds; None, as long as the target lives, or 60 for a ticket without a target.

        Raises:
            NotASocket: closed (10038). TicketError: no such process (10022). TicketLimit. RegistryGone (10050).

        Source: LPWSPDUPLICATESOCKET.
        """
        from sharedsock.descriptors import sharing  # a good part of a first socket's time: only who shares pays it

        info: bytes = sharing.share(self._descriptor, process_id, expires_s)
        return info

    def ticket(self) -> Ticket:
        """Mint a picklable ticket now; unpickling it anywhere gives a SharedSocket, once."""
        from sharedsock.descriptors import sharing

        ticket: Ticket = sharing.share(self._descriptor, None, None, Ticket)
        return ticket

    def lend(self, process_id: int) -> None:
        """Count a reference for a program without sharedsock that has inherited the number; it ends with that process.

        Raises:
            TicketError: no such process.
        """
        from sharedsock.descriptors import sharing

        sharing.lend(self._descriptor, process_id)

    def references(self) -> int:
        """Return how many references the socket has: open and closing descriptors, lent ones, unclaimed tickets."""
        transfer.require_kernel(self._descriptor)
        client = self._descriptor.client
        if client is None:
            return 1
        table.flush_abandoned()
        assert self._descriptor.socket_id is not None
        return client.references(self._descriptor.socket_id)

    def holders(self) -> tuple[Holder, ...]:
        """Return who holds the socket: process, descriptor, opened where and since when."""
        transfer.require_kernel(self._descriptor)
        descriptor = self._descriptor
        if descriptor.client is None:
            return (table.own_holder(descriptor),)
        table.flush_abandoned()
        assert descriptor.socket_id is not None
        return descriptor.client.holders(descriptor.socket_id)

    def pending_operations(self) -> tuple[PendingOperation, ...]:
        """Return the operations of this process that wait on this descriptor: thread, kind, since when.

        An overlapped one is listed under the thread that began it.
        """
        kernel = self._descriptor.kernel
        return operations.pending(kernel) + service.pending(kernel)

    def dup(self) -> Self:
        """Open a second, independent descriptor of this process on the same socket."""
        from sharedsock.descriptors import sharing

        return sharing.duplicate(self._descriptor, type(self)._over)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        from sharedsock.descriptors import sharing

        return fromshare, (sharing.mint(self._descriptor),)

    def __getstate__(self) -> None:
        raise TypeError("a SharedSocket has no state to copy; pickling one mints a ticket")

    # -- closing ---------------------------------------------------------------------------------------------

    def _real_close(self, _ss: Any = None) -> None:
        """Close once no makefile() object is left; the stdlib's close() calls this."""
        timeout_is_zero = self._descriptor.timeout_s == 0
        try:
            closing.close(self._descriptor, may_refuse=timeout_is_zero)
        except BlockingIOError:
            self._closed = False
            raise

    def close(self) -> None:
        """Abort this process's operations on the descriptor and give its reference back; a second close does nothing.

        Other processes: unaffected; their descriptors stay open. If it was the last reference, SO_LINGER decides how
        the connection ends. While makefile() objects are open the close is deferred, as in the stdlib.

        Raises:
            BlockingIOError: 10035; timeout 0, linger > 0 and unsent data at the last close. Nothing was closed.

        Source: LPWSPCLOSESOCKET.
        """
        # As the stdlib's, which is a frame more.
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def abort(self) -> None:
        """Close at once, even while a makefile() would defer it. Never refused: with timeout 0 it does not wait."""
        self._closed = True
        closing.close(self._descriptor, may_wait=self._descriptor.timeout_s != 0)

    def __exit__(self, *exc_info: object) -> None:
        # Neither refused nor kept waiting: where an error is on its way it must not be delayed, or hidden by another.
        self._closed = True
        if self._io_refs <= 0:
            closing.close(self._descriptor, may_wait=False)

    def detach(self) -> int:
        """Give the file number of a never-shared socket away; it blocks again if the timeout was None.

        Raises:
            OSError: 10022, the socket was shared: use share() or lend().
        """
        number = closing.forget(self._descriptor)
        self._closed = True
        return number

    @silent_once_emptied
    def __del__(self) -> None:
        try:
            descriptor = self._descriptor
        except AttributeError:  # the constructor has failed
            return
        if descriptor.kernel.aborted is not None:
            return
        if trace.hook is not None:
            trace.hit("del", descriptor=descriptor.id)
        if sys.is_finalizing():  # whether it comes before our modules are emptied is chance, and the exit closes it
            closing.collect(descriptor)
            return
        try:
            text = f"unclosed {self!r}, opened at {descriptor.opened_at}"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=3)
        finally:  # a filter may have made the warning an error
            closing.collect(descriptor)

    # -- timeouts --------------------------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        """Set the timeout of this descriptor in seconds; None blocks, 0 never waits. Other descriptors keep theirs."""
        if value is not None:
            given: Any = value
            value = given if isinstance(given, float) else float(operator.index(given))  # as the stdlib: no text
            if not value >= 0:  # NaN as well
                raise ValueError("Timeout value out of range")
            if value > _NEVER_S:
                raise OverflowError("timeout too long: None waits for ever")
            value = min(value, _LONGEST_S)
        kernel = transfer.require_kernel(self._descriptor)
        self._descriptor.timeout_s = value
        conversation.end(kernel)

    def gettimeout(self) -> float | None:
        """Return the timeout of this descriptor in seconds."""
        return self._descriptor.timeout_s

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        """Set this descriptor blocking or not; other descriptors keep their mode."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Return whether calls on this descriptor may wait."""
        return self._descriptor.timeout_s != 0

    # -- connections -----------------------------------------------------------------------------------------

    def accept(self) -> tuple[SharedSocket, Any]:
        """Accept one client: (its SharedSocket, its address). The listener stays open.

        Raises:
            OperationAborted: this process closed the listener; no client was taken (10004).
            OSError: EMFILE, no number is free; the client stays in the backlog.

        Source: LPWSPACCEPT.
        """
        return transfer.accept_into(self._descriptor, type(self)._over)

    def _accept(self) -> tuple[int, Any]:
        """Accept one client as a plain number; the stdlib's accept() would call this."""
        client, address = self.accept()
        return client.detach(), address

    def connect(self, address: Any, /) -> None:
        """Connect, waiting for the outcome as the timeout says.

        Raises:
            OperationAborted: this process closed the descriptor (10004); the attempt goes on if others hold the socket.
            BlockingIOError: timeout 0, the attempt is under way. OSError: as connect(2).

        Source: LPWSPCONNECT; CLOSE-30.
        """
        transfer.connect(self._descriptor, address)

    def connect_ex(self, address: Any, /) -> int:
        """Connect; return 0 or the errno instead of raising it."""
        try:
            self.connect(address)
        except socket.gaierror:
            raise
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            return cast("int", error.errno)
        return 0


def fromshare(info: bytes) -> SharedSocket:
    """Redeem a ticket: a new descriptor of this process on the socket it stands for.

    Args:
        info: what `SharedSocket.share` returned, made for this process or for nobody in particular.

    Raises:
        TicketInvalid, TicketAlreadyClaimed, TicketExpired: 10022, and nothing is used up.
        InvalidProvider: a provider under the socket cannot be had here (10105); the ticket can be redeemed again.
        OSError: EMFILE; the ticket can be redeemed again. RegistryGone: 10050.

    Source: LPWSPSOCKET with FROM_PROTOCOL_INFO.
    """
    from sharedsock.descriptors import sharing

    return sharing.redeem(info, SharedSocket._over)


def revoke(info: bytes) -> bool:
    """Take an unclaimed ticket back; report whether there was one. If it was the last reference, the socket ends."""
    from sharedsock.descriptors import sharing

    return sharing.revoke(info)
