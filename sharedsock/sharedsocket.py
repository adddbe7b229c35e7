"""FACE: SharedSocket, a socket-like object that real processes can share and close as Winsock closes.

It is a `socket.socket` for every isinstance check, but its C part never has a number: all work goes through a
`Descriptor`. While data is ready a receive or send is one Python frame and one system call; what has to wait goes to
`descriptors.transfer`. Timeouts are per descriptor and computed here, because O_NONBLOCK belongs to all sharers.
"""

from __future__ import annotations

import _socket
import errno
import operator
import os
import socket
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, cast

from sharedsock.descriptors import closing, launching, options, service, sharing, table, transfer
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.descriptors.transfer import OWN_TIMEOUT, Kept
from sharedsock.kernel import operations, sockets
from sharedsock.kernel.numbers import here
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.kernel.waker import Waker
from sharedsock.model import trace
from sharedsock.model.errors import from_errno, with_winerror

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sharedsock.descriptors.overlapped import Operation
    from sharedsock.kernel.conversation import Conversation
    from sharedsock.kernel.numbers import Flag
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import DescriptorId, Holder, PendingOperation, Statistics

__all__ = [
    "SharedSocket",
    "Ticket",
    "adopt",
    "create_connection",
    "create_server",
    "fromshare",
    "revoke",
    "socketpair",
    "statistics",
]


class _Unflagged(int):
    """The flags of a caller who gave none; MSG_DONTWAIT from a caller is an equal number, and another object."""


_UNFLAGGED: Final = _Unflagged(DONTWAIT)
_SEND_FLAGS: Final = DONTWAIT | NOSIGNAL
_LONGEST_S: Final = (2**31 - 1) // 1000  # poll(2) counts milliseconds in an int
_NEVER_S: Final = (2**63 - 1) // 10**9  # the stdlib counts nanoseconds in 64 bits
_Plain: Final = socket.socket  # who tests or blocks sockets may put another class into the module, even ours
_NONBLOCK: Final = int(getattr(socket, "SOCK_NONBLOCK", 0))


def _timeout_of(flags: int) -> float:
    """Return the timeout that a caller's flags ask for: MSG_DONTWAIT is 0 for this one call."""
    return 0.0 if flags & DONTWAIT else OWN_TIMEOUT


def _enum(kind: Any, value: int) -> Any:
    try:
        return kind(value)
    except ValueError:
        return value


def _data_of(kept: Kept) -> bytes:
    return kept.data


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


class SharedSocket(socket.socket):
    """A socket that processes share and close independently; a drop-in for `socket.socket`.

    Closing it ends the pending operations of this process on it and makes later use fail. The underlying socket lives
    until the last process has closed it; then SO_LINGER decides: off, queued data is still sent; 0, a reset; t, wait.

    Args:
        family, type, proto, fileno: as `socket.socket`. With `fileno`, takes that number over.

    Raises:
        OSError: as socket(2), with `.winerror`.

    Source: "Closing Sockets" and "Shared Sockets in the SPI" (Winsock SPI).
    """

    __slots__ = ("_calm", "_descriptor", "_kernel", "_talk")

    _descriptor: Descriptor
    _calm: Flag
    _kernel: KernelSocket
    _talk: Conversation | None

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._io_refs = 0
        self._closed = False
        if fileno is None:
            family = socket.AF_INET if family == -1 else family
            type = socket.SOCK_STREAM if type == -1 else type  # as in socket.socket
            kernel = _opened(family, type, 0 if proto == -1 else proto)
        else:
            kernel = sockets.adopt(fileno, family, type, proto)
        descriptor = Descriptor(kernel)
        if type & _NONBLOCK and type != -1:
            descriptor.timeout_s = 0.0
        if fileno is not None:
            options.take_over_linger(descriptor)
        self._settle(descriptor)

    @classmethod
    def _over(cls, descriptor: Descriptor) -> Self:
        shared = cls.__new__(cls)
        shared._io_refs = 0
        shared._closed = False
        shared._settle(descriptor)
        return shared

    def _settle(self, descriptor: Descriptor) -> None:
        self._stand_on(table.enter(descriptor))
        launching.install(SharedSocket)
        if trace.hook is not None:
            trace.hit("open.registered", descriptor=descriptor.id)
        if "SHAREDSOCK_AUDIT" in os.environ and os.environ["SHAREDSOCK_AUDIT"] == "1":
            sharing.register(descriptor)

    def _stand_on(self, descriptor: Descriptor) -> None:
        """Take a descriptor as one's own; in a forked child, the one that replaces the parent's."""
        self._descriptor = descriptor
        descriptor.attach(self)

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
        return self._descriptor.kernel.number

    def __repr__(self) -> str:
        descriptor = self._descriptor
        text = f"<{type(self).__module__}.{type(self).__qualname__} descriptor={descriptor.id}"
        if descriptor.is_closed:
            return f"{text} [closed]>"
        text += f" fd={self.fileno()}, family={self.family}, type={self.type}, proto={self.proto}"
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
        return sharing.share(self._descriptor, process_id, expires_s)

    def ticket(self) -> Ticket:
        """Mint a picklable ticket now; unpickling it anywhere gives a SharedSocket, once."""
        return Ticket(sharing.share(self._descriptor, None, None))

    def lend(self, process_id: int) -> None:
        """Count a reference for a program without sharedsock that has inherited the number; it ends with that process.

        Raises:
            TicketError: no such process.
        """
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
        return sharing.duplicate(self._descriptor, type(self)._over)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
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
        super().close()

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
        timeout_s = self._descriptor.timeout_s
        number = closing.forget(self._descriptor)
        self._closed = True
        if number >= 0:
            with suppress(OSError):  # EBADF: closed behind our back; the number is all there is to give
                os.set_blocking(number, timeout_s is None)
        return number

    def __del__(self) -> None:
        try:
            descriptor = self._descriptor
        except AttributeError:  # the constructor has failed
            return
        if descriptor.is_closed:
            return
        if trace.hook is not None:
            trace.hit("del", descriptor=descriptor.id)
        try:
            text = f"unclosed {self!r}, opened at {descriptor.opened_at}"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
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
        transfer.require_kernel(self._descriptor)
        self._descriptor.timeout_s = value
        self._talk = None  # a conversation has no timeout

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

    # -- receiving -------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = _UNFLAGGED, /) -> bytes:
        """Receive at most `bufsize` bytes; b"" on a stream only ever means the peer's FIN.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; no byte was taken (10004).
            NotASocket: closed before (10038). TimeoutError (10060). ConnectionResetError (10054).
            BrokenPipeError: the socket was shut down for receiving (10058).

        Source: LPWSPRECV; "Closing Sockets".
        """
        # The two hot paths, each line measured: data is ready (a frame and a system call), and a conversation, where
        # each receive waits (two frames). All that is rare goes on in _receive.
        if flags is _UNFLAGGED:
            try:
                if self._calm:
                    data = self._kernel.recv(bufsize, flags)
                    if data:
                        return data
                    return self._empty(data, bufsize)
                talk = self._talk
                if talk is not None and talk.bufsize == bufsize:
                    said = talk.receive()
                    if said is not None:
                        return said or self._empty(said, bufsize)
            except BlockingIOError:
                return self._receive(bufsize, flags, has_tried=True)
            except OSError as error:
                raise transfer.settle(self._descriptor, self._kernel, error) from None
        return self._receive(bufsize, flags)

    def _receive(self, bufsize: int, flags: int, has_tried: bool = False) -> bytes:
        """Receive off the hot paths; where this had to wait, the next ones on the same terms are a conversation."""
        descriptor = self._descriptor
        timeout_s = OWN_TIMEOUT if flags is _UNFLAGGED else _timeout_of(flags)
        arguments = (bufsize, flags | DONTWAIT)
        data: bytes = transfer.receive(
            descriptor, "recv", "recv", arguments, Kept, _data_of, bufsize, has_tried, timeout_s
        )
        talk = self._talk
        if flags is _UNFLAGGED and (talk is None or talk.bufsize != bufsize):
            self._talk = transfer.converse(descriptor, bufsize, flags)
        return data or self._empty(data, bufsize)

    def _empty(self, data: bytes, bufsize: int) -> bytes:
        """Return an empty receive if it means what it should; b"" from recv(0) means nothing."""
        if bufsize:
            options.verdict_on_empty(self._descriptor)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; return how many bytes, 0 only for the peer's FIN. Errors as `recv`."""
        with memoryview(buffer) as whole:
            view = whole.cast("B") if whole.nbytes else whole
            limit = nbytes or whole.nbytes
            if nbytes < 0:
                raise ValueError("negative buffersize in recv_into")
            if limit > whole.nbytes:
                raise ValueError("buffer too small for requested bytes")

            def give(kept: Kept) -> int:
                view[: len(kept.data)] = kept.data
                return len(kept.data)

            count = transfer.receive(
                self._descriptor,
                "recv_into",
                "recv_into",
                (buffer, nbytes, flags | DONTWAIT),
                lambda count: Kept(bytes(view[:count])),
                give,
                limit,
                timeout_s=_timeout_of(flags),
            )
        if not count and limit:
            options.verdict_on_empty(self._descriptor)
        return cast("int", count)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive at most `bufsize` bytes, and from where. Errors as `recv`."""
        data, address = transfer.receive(
            self._descriptor,
            "recvfrom",
            "recvfrom",
            (bufsize, flags | DONTWAIT),
            lambda result: Kept(*result),
            lambda kept: (kept.data, kept.address),
            bufsize,
            timeout_s=_timeout_of(flags),
        )
        if not data and bufsize:
            options.verdict_on_empty(self._descriptor)
        return data, address

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive into a buffer; return how many bytes, and from where. Errors as `recv`."""
        with memoryview(buffer) as whole:
            view = whole.cast("B") if whole.nbytes else whole
            limit = nbytes or whole.nbytes
            if nbytes < 0:
                raise ValueError("negative buffersize in recvfrom_into")
            if limit > whole.nbytes:
                raise ValueError("nbytes is greater than the length of the buffer")

            def give(kept: Kept) -> tuple[int, Any]:
                view[: len(kept.data)] = kept.data
                return len(kept.data), kept.address

            count, address = transfer.receive(
                self._descriptor,
                "recvfrom_into",
                "recvfrom_into",
                (buffer, nbytes, flags | DONTWAIT),
                lambda result: Kept(bytes(view[: result[0]]), result[1]),
                give,
                limit,
                timeout_s=_timeout_of(flags),
            )
        if not count and limit:
            options.verdict_on_empty(self._descriptor)
        return count, address

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """Receive data and ancillary data: (bytes, [(level, type, bytes)], flags, address). Errors as `recv`."""
        data, ancillary, msg_flags, address = transfer.receive(
            self._descriptor,
            "recvmsg",
            "recvmsg",
            (bufsize, ancbufsize, flags | DONTWAIT),
            lambda result: Kept(result[0], result[3], tuple(result[1]), result[2]),
            lambda kept: (kept.data, list(kept.ancillary), kept.flags, kept.address),
            bufsize,
            timeout_s=_timeout_of(flags),
        )
        if not data and bufsize and not ancillary:
            options.verdict_on_empty(self._descriptor)
        return data, ancillary, msg_flags, address

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """Receive into several buffers, with ancillary data: (bytes, ancillary, flags, address). Errors as `recv`."""
        buffers = list(buffers)
        limit = sum(memoryview(buffer).nbytes for buffer in buffers)

        def keep(result: tuple[int, list[Any], int, Any]) -> Kept:
            flat = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
            return Kept(flat[: result[0]], result[3], tuple(result[1]), result[2])

        def give(kept: Kept) -> tuple[int, list[Any], int, Any]:
            left = memoryview(kept.data)
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                size = min(len(view), len(left))
                view[:size] = left[:size]
                left = left[size:]
            return len(kept.data), list(kept.ancillary), kept.flags, kept.address

        count, ancillary, msg_flags, address = transfer.receive(
            self._descriptor,
            "recvmsg_into",
            "recvmsg_into",
            (buffers, ancbufsize, flags | DONTWAIT),
            keep,
            give,
            limit,
            timeout_s=_timeout_of(flags),
        )
        if not count and limit and not ancillary:
            options.verdict_on_empty(self._descriptor)
        return count, ancillary, msg_flags, address

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send what there is room for; return how many bytes.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; nothing of it was queued.
            BrokenPipeError: a sharer has shut the socket down for sending (10058).

        Source: LPWSPSEND.
        """
        kernel = self._descriptor.kernel
        if here:
            try:
                return kernel.send(data, flags | _SEND_FLAGS)
            except BlockingIOError as error:
                if flags & DONTWAIT:
                    raise with_winerror(error) from None
            except OSError as error:
                raise transfer.settle(self._descriptor, kernel, error) from None
        has_tried = bool(here)
        return cast(
            "int", transfer.send(self._descriptor, "send", "send", (data, flags | _SEND_FLAGS), has_tried=has_tried)
        )

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send every byte.

        Raises:
            OperationAborted: as `send`; `.bytes_transferred` were queued before, and follow the linger rules.
        """
        kernel = self._descriptor.kernel
        sent = 0
        if here:
            try:
                sent = kernel.send(data, flags | _SEND_FLAGS)
            except BlockingIOError as error:
                if self._descriptor.timeout_s == 0 or flags & DONTWAIT:
                    raise with_winerror(error) from None
            except OSError as error:
                raise transfer.settle(self._descriptor, kernel, error) from None
            if data.__class__ is bytes and sent == len(data):
                return
        with memoryview(data) as whole, whole.cast("B") as view:
            if sent < len(view):
                timeout_s = 0.0 if flags & DONTWAIT else self._descriptor.timeout_s
                transfer.send_all(self._descriptor, view, sent, flags | _SEND_FLAGS, timeout_s)

    def sendto(self, data: Any, *arguments: Any) -> int:
        """sendto(data[, flags], address): send one message to an address. Errors as `send`."""
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(arguments) + 1} given)")
        flags, address = (0, arguments[0]) if len(arguments) == 1 else arguments
        sent = (data, flags | _SEND_FLAGS, address)
        return cast("int", transfer.send(self._descriptor, "sendto", "sendto", sent, timeout_s=_timeout_of(flags)))

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """Send buffers and ancillary data; return how many bytes. Errors as `send`."""
        arguments = (list(buffers), list(ancdata), flags | _SEND_FLAGS, address)
        return cast(
            "int", transfer.send(self._descriptor, "sendmsg", "sendmsg", arguments, timeout_s=_timeout_of(flags))
        )

    def sendmsg_afalg(self, *arguments: Any, **options_: Any) -> int:
        """Send to an AF_ALG socket, as the stdlib does; it never waits."""
        kernel = transfer.require_kernel(self._descriptor)
        try:
            return kernel.sendmsg_afalg(*arguments, **options_)
        except OSError as error:
            raise transfer.settle(self._descriptor, kernel, error) from None

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a regular file, with sendfile(2) where the kernel can; return how many bytes. Errors as `send`."""
        return super().sendfile(file, offset, count)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """The stdlib's `sendfile` tries this first; its give-up sends by reading."""
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]  # the stdlib's own
        return transfer.send_file(self._descriptor, file, offset, count)

    # -- connections -----------------------------------------------------------------------------------------

    def accept(self) -> tuple[SharedSocket, Any]:
        """Accept one client: (its SharedSocket, its address). The listener stays open.

        Raises:
            OperationAborted: this process closed the listener; no client was taken (10004).
            OSError: EMFILE, no number is free; the client stays in the backlog.

        Source: LPWSPACCEPT.
        """
        kernel, address = transfer.accept(self._descriptor)
        client = Descriptor(kernel)
        options.take_over_linger(client, self._descriptor)
        return type(self)._over(client), address

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

    # -- overlapped: the outcome comes later, in an Operation --------------------------------------------------

    def begin_recv(self, bufsize: int, flags: int = 0) -> Operation[bytes]:
        """Begin to receive at most `bufsize` bytes. The timeout of the descriptor does not matter (OVERLAP-15).

        Every begin_* returns an `Operation`, a `concurrent.futures.Future`, which a close of the descriptor completes
        with `OperationAborted` (995). Those of one direction are served in order; one that need not wait has ended.

        Raises:
            NotASocket: closed (10038). BlockingIOError: too many are pending (10035). Nothing was started.

        Source: "Overlapped I/O" (Winsock SPI).
        """
        from sharedsock.descriptors import overlapped  # 10 ms to import: only who uses it pays it

        return overlapped.begin_recv(self._descriptor, bufsize, flags)

    def begin_recvfrom(self, bufsize: int, flags: int = 0) -> Operation[tuple[bytes, Any]]:
        """Begin to receive at most `bufsize` bytes, and from where. As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_recvfrom(self._descriptor, bufsize, flags)

    def begin_send(self, data: Any, flags: int = 0) -> Operation[int]:
        """Begin to send what there is room for. The buffer is the operation's until it has ended. As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_send(self._descriptor, data, flags)

    def begin_sendall(self, data: Any, flags: int = 0) -> Operation[None]:
        """Begin to send every byte. The buffer is the operation's until it has ended. As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_sendall(self._descriptor, data, flags)

    def begin_accept(self) -> Operation[tuple[SharedSocket, Any]]:
        """Begin to accept one client: (its SharedSocket, its address). As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_accept(self._descriptor, lambda kernel: type(self)._over(Descriptor(kernel)))

    def begin_connect(self, address: Any) -> Operation[None]:
        """Begin to connect; a host name is resolved before this returns. As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_connect(self._descriptor, address)

    # -- calls that never wait -----------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        """Make a call that never waits."""
        kernel = transfer.require_kernel(self._descriptor)
        try:
            return getattr(kernel, method)(*arguments)
        except OSError as error:
            raise transfer.settle(self._descriptor, kernel, error) from None

    def bind(self, address: Any, /) -> None:
        """Bind to an address, for every sharer."""
        self._call("bind", address)

    def listen(self, backlog: int | None = None, /) -> None:
        """Listen for clients, for every sharer."""
        self._call("listen", *(() if backlog is None else (backlog,)))

    def shutdown(self, how: int, /) -> None:
        """Shut directions down: SHUT_RD, SHUT_WR or SHUT_RDWR.

        Other processes: felt by every sharer; their receives or sends fail with 10058 (DUP-18).

        Raises:
            OSError: not connected (10057), no such direction (10022).

        Source: LPWSPSHUTDOWN.
        """
        transfer.require_kernel(self._descriptor)
        self._talk = None
        options.shut_down(self._descriptor, how, lambda how: self._call("shutdown", how))

    def getsockname(self) -> Any:
        """Return the own address."""
        return self._call("getsockname")

    def getpeername(self) -> Any:
        """Return the peer's address."""
        return self._call("getpeername")

    # -- options ---------------------------------------------------------------------------------------------

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None, /) -> None:
        """Set an option, for every sharer (DUP-16). SO_LINGER acts at the last close, whoever makes it."""
        if level == socket.SOL_SOCKET and optname == socket.SO_LINGER and not isinstance(value, int | None):
            transfer.require_kernel(self._descriptor)
            options.set_linger(self._descriptor, bytes(value))
            return
        self._call("setsockopt", level, optname, value, *(() if optlen is None else (optlen,)))

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        """Return an option: an int, or with `buflen` at most so many bytes."""
        if level == socket.SOL_SOCKET and optname == socket.SO_LINGER:
            transfer.require_kernel(self._descriptor)
            value = options.get_linger(self._descriptor)
            return value[:buflen] if buflen else value[0]
        return self._call("getsockopt", level, optname, *(() if buflen is None else (buflen,)))

    def get_inheritable(self) -> bool:
        """Return whether a program this process executes inherits the number."""
        return os.get_inheritable(self._here())

    def set_inheritable(self, inheritable: bool) -> None:
        """Let a program this process executes inherit the number; count it with lend()."""
        os.set_inheritable(self._here(), inheritable)

    def _here(self) -> int:
        return transfer.require_kernel(self._descriptor).number


def _opened(family: int, type: int, proto: int) -> KernelSocket:  # as in socket.socket
    try:
        return sockets.open_socket(family, type, proto)
    except OSError as error:
        raise with_winerror(error) from None


def adopt(plain: socket.socket) -> SharedSocket:
    """Take over a plain socket, which is then detached, with its timeout.

    Raises:
        TypeError: not a socket, or one that is ours already. OSError: closed (10038), or no number for the waker:
            then the plain socket is untouched.
    """
    given: object = plain
    if not isinstance(given, _Plain) or isinstance(given, SharedSocket):
        raise TypeError(f"adopt() takes a plain socket.socket, not {type(given).__name__}")
    if plain.fileno() < 0:
        raise from_errno(errno.EBADF, "adopt() of a closed socket")
    timeout_s = plain.gettimeout()
    waker = Waker()
    kernel = sockets.adopt(plain.detach(), plain.family, plain.type, plain.proto, waker)
    shared = SharedSocket._over(Descriptor(kernel))
    shared.settimeout(timeout_s)
    options.take_over_linger(shared._descriptor)
    return shared


def fromshare(info: bytes) -> SharedSocket:
    """Redeem a ticket: a new descriptor of this process on the socket it stands for.

    Args:
        info: what `SharedSocket.share` returned, made for this process or for nobody in particular.

    Raises:
        TicketInvalid, TicketAlreadyClaimed, TicketExpired: 10022, and nothing is used up.
        OSError: EMFILE; the ticket can be redeemed again. RegistryGone: 10050.

    Source: LPWSPSOCKET with FROM_PROTOCOL_INFO.
    """
    return sharing.redeem(info, SharedSocket._over)


def revoke(info: bytes) -> bool:
    """Take an unclaimed ticket back; report whether there was one. If it was the last reference, the socket ends."""
    return sharing.revoke(info)


def statistics() -> Statistics:
    """Count what this process has: open descriptors, shared ones, pending operations, retiring numbers."""
    return table.statistics()


def socketpair(
    family: int | None = None,
    type: int = socket.SOCK_STREAM,
    proto: int = 0,  # as in the stdlib
) -> tuple[SharedSocket, SharedSocket]:
    """Open a connected pair, as `socket.socketpair`."""
    family = socket.AF_UNIX if family is None else family
    made = _socket.socketpair(family, type, proto)
    pair: list[SharedSocket] = []
    try:
        for end in made:
            with _Plain(family, type, proto, end.detach()) as plain:
                pair.append(adopt(plain))
    except BaseException:
        for opened in (*made, *pair):
            opened.close()
        raise
    return pair[0], pair[1]


def create_server(address: Any, **keywords: Any) -> SharedSocket:
    """Open a listener, as `socket.create_server`: family, backlog, reuse_port, dualstack_ipv6."""
    return _taken_over(socket.create_server(address, **keywords))


def create_connection(address: Any, *arguments: Any, **keywords: Any) -> SharedSocket:
    """Connect to an address, as `socket.create_connection`: timeout, source_address, all_errors."""
    return _taken_over(socket.create_connection(address, *arguments, **keywords))


def _taken_over(made: socket.socket) -> SharedSocket:
    """Adopt what a function of the socket module made; where SharedSocket stands in for socket.socket, it is one."""
    if isinstance(made, SharedSocket):
        return made
    with made:
        return adopt(made)
