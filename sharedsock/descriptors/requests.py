"""What each kind of overlapped request does: one call, made again until it does not raise BlockingIOError.

A `Work` knows its descriptor, its direction, and what a system call has returned for it; it tries and never waits. Who
tries when, and what an outcome becomes, is `overlapped`'s business.

Keeps I1: what a call has taken is stored by that same call (`taken`), so no interrupt loses it or has it made twice.
"""

from __future__ import annotations

import errno
import operator
import socket
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, cast

from sharedsock.descriptors import options, service, transfer
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import operations
from sharedsock.kernel.operations import READ, WRITE
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["Accept", "Connect", "Receive", "ReceiveAll", "ReceiveFrom", "Send", "SendAll", "SendTo", "Work"]


class _AtOnce:
    """A descriptor seen as one that never waits, on the kernel socket it had when the request was posted."""

    __slots__ = ("_descriptor", "kernel")

    timeout_s: Final = 0.0

    def __init__(self, descriptor: Descriptor, kernel: KernelSocket) -> None:
        object.__setattr__(self, "_descriptor", descriptor)
        object.__setattr__(self, "kernel", kernel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._descriptor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._descriptor, name, value)


class Work:
    """One request's call: made again until it does not raise BlockingIOError.

    Attributes:
        taken: what a system call has returned, stored by the same C call: an interrupt of whoever tries, for this
            request or another's, neither loses it nor has it made twice (rule 3).
    """

    kind: str
    direction = READ

    @property
    def sent(self) -> int:
        """The bytes queued, or taken for good, so far."""
        return 0

    def __init__(self, descriptor: Descriptor) -> None:
        kernel = transfer.require_kernel(descriptor)
        self.station = service.station_of(kernel)
        self.descriptor = cast("Descriptor", _AtOnce(descriptor, kernel))
        self.taken: list[Any] = []

    def __call__(self, rounds: int | None) -> Any:
        raise NotImplementedError

    def finish(self, value: Any) -> Any:
        """Turn what the call returned into the result; runs once, without a lock."""
        return value

    def keep(self, value: Any) -> Any:
        """Turn what was taken into what the next call can use; None where there is nothing to keep."""
        return None

    def release(self) -> None:
        """Let go of the caller's buffer."""


class Receive(Work):
    """What a stream has, or one message."""

    kind = "recv"

    def __init__(self, descriptor: Descriptor, bufsize: int, flags: int) -> None:
        self._bufsize = operator.index(bufsize)
        if self._bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self._flags = operator.index(flags) | DONTWAIT
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            arguments = (self._bufsize, self._flags)
            call = self.descriptor, self.kind, self.kind, arguments, self.keep, self._give, self._bufsize
            self.taken.extend(starmap(transfer.receive, (call,)))
        if self._bufsize and not self.keep(self.taken[0]).data:
            options.verdict_on_empty(self.descriptor)
        return self.taken[0]

    def keep(self, value: Any) -> Kept:
        return Kept(value)

    def _give(self, kept: Kept) -> Any:
        return kept.data


class ReceiveAll(Receive):
    """Of a stream: until there are `bufsize` bytes, or no more will come."""

    def __call__(self, rounds: int | None) -> bytes:
        while (left := self._bufsize - self.sent) > 0 and (not self.taken or self.taken[-1]):
            if rounds is not None:
                rounds -= 1
                if rounds < 0:  # others are served as well
                    raise BlockingIOError(errno.EWOULDBLOCK, "more to receive")
            call = self.descriptor, self.kind, self.kind, (left, self._flags), self.keep, self._give, left
            self.taken.extend(starmap(transfer.receive, (call,)))
        if self.sent < self._bufsize:
            options.verdict_on_empty(self.descriptor)
        return b"".join(self.taken)

    @property
    def sent(self) -> int:
        return sum(map(len, self.taken))


class ReceiveFrom(Receive):
    """One message, and from where."""

    kind = "recvfrom"

    def keep(self, value: Any) -> Kept:
        return Kept(*value)

    def _give(self, kept: Kept) -> Any:
        return kept.data, kept.address


class Send(Work):
    """What there is room for, or one message."""

    kind = "send"
    method = "send"
    direction = WRITE
    _sent_before = 0

    def __init__(self, descriptor: Descriptor, data: Any, flags: int) -> None:
        self._flags = operator.index(flags) | DONTWAIT | NOSIGNAL
        whole = memoryview(data)
        try:
            self._view = whole.cast("B") if whole.nbytes else memoryview(b"")
        finally:
            whole.release()
        try:
            super().__init__(descriptor)
        except BaseException:
            self._view.release()
            raise

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            self._send(self._view)
        return self.sent

    def _send(self, data: memoryview) -> None:
        self.taken.extend(starmap(transfer.send, ((self.descriptor, self.kind, self.method, self._arguments(data)),)))

    def _arguments(self, data: memoryview) -> tuple[Any, ...]:
        return data, self._flags

    @property
    def sent(self) -> int:
        return self._sent_before + int(sum(self.taken))

    def release(self) -> None:
        self._view.release()


class SendTo(Send):
    """One message to an address."""

    kind = method = "sendto"

    def __init__(self, descriptor: Descriptor, data: Any, flags: int, address: Any) -> None:
        self._address = _without_name(descriptor, address)
        super().__init__(descriptor, data, flags)

    def _arguments(self, data: memoryview) -> tuple[Any, ...]:
        return data, self._flags, self._address


class SendAll(Send):
    """Every byte."""

    kind = "sendall"

    def __call__(self, rounds: int | None) -> None:
        while True:
            with self._view[self.sent :] as rest:
                self._send(rest)
            self._sent_before, self.taken = self.sent, []  # no interrupt between two stores
            if self.sent >= len(self._view):
                return
            if rounds is not None:
                rounds -= 1
                if rounds <= 0:  # others are served as well
                    raise BlockingIOError(errno.EWOULDBLOCK, "more to send")


class Accept(Work):
    """One client."""

    kind = "accept"

    def __init__(self, descriptor: Descriptor, into: Callable[[Descriptor], Any]) -> None:
        self._into = into
        self._made: list[Descriptor] = []
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> Any:
        if not self.taken:
            self.taken.extend(starmap(transfer.accept, ((self.descriptor,),)))
        return self.taken[0]

    def finish(self, value: Any) -> Any:
        kernel, address = value
        return transfer.hand_over(self.descriptor, kernel, address, self._into, self._made)

    def keep(self, value: Any) -> Any:
        transfer.withdraw_face(self._made)
        return value


class Connect(Work):
    """A connection, or the reason why there is none."""

    kind = "connect"
    direction = WRITE

    def __init__(self, descriptor: Descriptor, address: Any) -> None:
        self._address = address
        self._is_under_way = False
        super().__init__(descriptor)

    def __call__(self, rounds: int | None) -> None:
        kernel = self.descriptor.kernel
        if not self._is_under_way:
            try:
                transfer.connect(self.descriptor, self._address)
            except BlockingIOError as error:
                self._is_under_way = error.errno != errno.EAGAIN  # a full AF_UNIX backlog remembers nothing
                raise
            return
        try:
            operations.connect_outcome(kernel)
        except BlockingIOError:
            raise
        except OSError as error:
            raise transfer.settle(self.descriptor, kernel, error) from None


def _without_name(descriptor: Descriptor, address: Any) -> Any:
    """Resolve a host name here, in the caller's thread: the service thread looks nothing up."""
    if descriptor.family == socket.AF_UNIX or not isinstance(address, tuple) or len(address) < 2:
        return address
    host, port, *rest = address
    if not isinstance(host, str) or host in ("", "<broadcast>"):
        return address
    (*_, found), *_ = socket.getaddrinfo(host, None, descriptor.family, descriptor.type)
    return (found[0], port, *(rest or found[2:]))
