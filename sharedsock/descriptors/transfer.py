"""Receiving and accepting through a descriptor when the fast path did not do: waits, kept results, verdicts.

Both faces call these; a face's own method is one frame and one system call while data is ready.
Keeps I1: what an interrupted call had taken comes out of the next call of its kind.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sharedsock.descriptors import options, table
from sharedsock.descriptors.descriptor import Closer, Descriptor, lost
from sharedsock.kernel import conversation, exclusive, numbers, operations, sockets
from sharedsock.kernel.conversation import SILENT, Conversation
from sharedsock.kernel.numbers import here
from sharedsock.kernel.operations import READ, WRITE
from sharedsock.kernel.system import stay_nonblocking
from sharedsock.model.errors import ForkedDescriptor, LostDescriptor, NotASocket, OperationAborted, SharedSocketError
from sharedsock.model.winsock import WSAETIMEDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.kernel.sockets import KernelSocket

__all__ = [
    "OWN_TIMEOUT",
    "Kept",
    "accept",
    "accept_into",
    "connect",
    "converse",
    "data_of",
    "hand_over",
    "receive",
    "require_kernel",
    "send",
    "send_all",
    "send_file",
    "settle",
    "withdraw_face",
]

C = TypeVar("C")

# The timeout of a call that has none of its own: the descriptor's, whatever it is by then.
OWN_TIMEOUT: Final = -1.0
_SENDFILE_BLOCK: Final = 1 << 30


class Kept(NamedTuple):
    """What an interrupted receive had taken: the bytes, and what came with them."""

    data: bytes
    address: Any = None
    ancillary: tuple[Any, ...] = ()
    flags: int = 0


def data_of(kept: Kept) -> bytes:
    """Return what a receive of bytes alone gives of what was kept."""
    return kept.data


def require_kernel(descriptor: Descriptor) -> KernelSocket:
    """Return the kernel socket of an open descriptor, after noticing a fork that ran no hooks.

    Raises:
        NotASocket: closed; ForkedDescriptor: the parent's; LostDescriptor: in the debug mode, if the number is.
    """
    if numbers.is_forked():
        table.note_fork()
    kernel = descriptor.kernel
    if kernel.__class__ is not sockets.KernelSocket:
        try:
            kernel.require()
        except OSError as error:
            raise settle(descriptor, kernel, error) from None
    return kernel


def settle(descriptor: Descriptor, kernel: KernelSocket, error: OSError) -> OSError:
    """Return the error a caller gets for what a kernel call raised."""
    if isinstance(error, SharedSocketError):
        return lost(descriptor, kernel.lost) if isinstance(error, LostDescriptor) else error
    if kernel.is_buried:  # a call between look-up and system call met the dead file
        return NotASocket(f"descriptor {descriptor.id} was closed by {kernel.aborted} while the call began")
    if error.errno == errno.EBADF and kernel.is_lost():
        return lost(descriptor, kernel.lost)
    if isinstance(error, TimeoutError) and error.errno is None:
        error.winerror = WSAETIMEDOUT  # type: ignore[attr-defined]  # typeshed: Windows only
        return error
    return options.translate(descriptor, error)


def receive(
    descriptor: Descriptor,
    kind: str,
    method: str,
    arguments: tuple[Any, ...],
    keep: Callable[[Any], Kept],
    give: Callable[[Kept], Any],
    limit: int,
    has_tried: bool = False,
    timeout_s: float | None = OWN_TIMEOUT,
) -> Any:
    """Receive, waiting as the descriptor's timeout says.

    Args:
        method: the C method of the kernel socket; its `arguments` have DONTWAIT in the flags.
        keep, give: turn a result into what is kept, and what was kept into a result.
        limit: the most bytes this call may return.
        has_tried: the fast path has just met EAGAIN.
        timeout_s: seconds, None waits for ever; OWN_TIMEOUT is the descriptor's own. MSG_DONTWAIT from a caller is 0.

    Raises:
        OperationAborted, NotASocket, TimeoutError, OSError: as the faces document.
    """
    # On the way of every receive that waits: no call that can be saved. A ClosedKernel refuses at `kept`.
    if not here:
        table.note_fork()
    kernel = descriptor.kernel
    if kernel.kept:
        kept = _take_kept(descriptor, kernel, limit, arguments[-1])
        if kept is not None:
            return give(kept)
    client = descriptor.client
    state = descriptor.local if client is None else client.common(descriptor.slot)
    if state.shut_receive:
        raise options.shut_receive_error(descriptor)
    try:
        call = getattr(kernel, method)
        # What a peek has seen is still there: nothing to keep.
        kept_by = None if arguments[-1] & socket.MSG_PEEK else keep
        if timeout_s == OWN_TIMEOUT:
            timeout_s = descriptor.timeout_s
        # Linux: after SD_RECEIVE a socket without connections is "readable", and a receive on it would block, for ever.
        at_loss = None if descriptor.type in options.STREAMS else partial(options.require_receiving, descriptor)
        return operations.perform(kernel, kind, READ, timeout_s, call, arguments, kept_by, has_tried, at_loss)
    except OSError as error:
        raise settle(descriptor, kernel, error) from None


def converse(descriptor: Descriptor, bufsize: int, flags: int, may_hold: bool = True) -> Conversation:
    """Return a conversation of receives like the last one, if that may be; else `SILENT`.

    Args:
        may_hold: whether the receives of an exclusive socket may wait in the kernel.
    """
    kernel, timeout_s = descriptor.kernel, descriptor.timeout_s
    if kernel.aborted is not None:
        return SILENT
    talk = conversation.begin(kernel, bufsize, flags, timeout_s, may_hold)
    if talk is not SILENT:
        client = descriptor.client
        state = descriptor.local if client is None else client.common(descriptor.slot)
        if state.shut_receive or descriptor.timeout_s != timeout_s:
            talk.silence()
    return talk


def _take_kept(descriptor: Descriptor, kernel: KernelSocket, limit: int, flags: int) -> Kept | None:
    """Return what an interrupted receive had taken, at most `limit` bytes of it; a stream or a peek keeps the rest."""
    try:
        kept: Kept = kernel.kept.pop(0)
    except IndexError:  # another thread was faster
        return None
    is_cut = len(kept.data) > limit
    if flags & socket.MSG_PEEK:
        kernel.kept.insert(0, kept)
    elif is_cut and descriptor.type == socket.SOCK_STREAM:
        kernel.kept.insert(0, kept._replace(data=kept.data[limit:], ancillary=()))
    cut = socket.MSG_TRUNC if is_cut and descriptor.type != socket.SOCK_STREAM else 0
    return kept._replace(data=kept.data[:limit], flags=kept.flags | cut)


def send(
    descriptor: Descriptor,
    kind: str,
    method: str,
    arguments: tuple[Any, ...],
    has_tried: bool = False,
    timeout_s: float | None = OWN_TIMEOUT,
) -> Any:
    """Send once, waiting for room as the descriptor's timeout says; return what the C method returns.

    Args:
        timeout_s: as in `receive`.

    Raises:
        OperationAborted: nothing of this call was queued.
    """
    kernel = require_kernel(descriptor)
    if timeout_s == OWN_TIMEOUT:
        timeout_s = descriptor.timeout_s
    try:
        return operations.perform(kernel, kind, WRITE, timeout_s, getattr(kernel, method), arguments, None, has_tried)
    except OSError as error:
        raise settle(descriptor, kernel, error) from None


def send_all(descriptor: Descriptor, data: memoryview, sent: int, flags: int, timeout_s: float | None) -> None:
    """Send every byte of a view, of which `sent` are queued already.

    Raises:
        OperationAborted: `.bytes_transferred` bytes were queued before; they follow the linger rules (CLOSE-32).
    """
    kernel = descriptor.kernel
    try:
        operations.send_all(require_kernel(descriptor), data, flags, timeout_s, sent)
    except NotASocket as error:
        if not sent or isinstance(error, ForkedDescriptor):
            raise
        raise operations.aborted(kernel, "sendall", sent) from None  # closed between two sends of one operation
    except OSError as error:
        raise settle(descriptor, kernel, error) from None


def send_file(descriptor: Descriptor, file: Any, offset: int, count: int | None) -> int:
    """Send a regular file with sendfile(2), waiting for room as the timeout says; return how many bytes.

    The file's position ends behind the last byte sent, also when the call fails.

    Raises:
        socket._GiveupOnSendfile: not a regular file; the stdlib then sends by reading.
        ValueError: a nonblocking descriptor, as in the stdlib.
    """
    kernel = require_kernel(descriptor)
    if descriptor.timeout_s == 0:
        raise ValueError("non-blocking sockets are not supported")
    exclusive.expose(kernel)  # sendfile(2) has no flag for one call
    try:
        source = file.fileno()
        size = os.fstat(source).st_size
    except (AttributeError, OSError) as error:
        raise socket._GiveupOnSendfile(error) from error  # type: ignore[attr-defined]  # the stdlib's own signal
    total = 0
    left = size - offset if count is None else min(count, size - offset)
    try:
        while left > 0:
            arguments = (kernel.number, source, offset + total, min(left, _SENDFILE_BLOCK))
            try:
                sent = operations.perform(kernel, "sendfile", WRITE, descriptor.timeout_s, kernel.sendfile, arguments)
            except OperationAborted as error:
                error.bytes_transferred = total
                raise
            except NotASocket:
                if not total:
                    raise
                raise operations.aborted(kernel, "sendfile", total) from None
            except OSError as error:
                if total == 0 and error.errno == errno.EINVAL:  # the file cannot be mapped
                    raise socket._GiveupOnSendfile(error) from error  # type: ignore[attr-defined]  # as above
                raise settle(descriptor, kernel, error) from None
            if sent == 0:
                break
            total += sent
            left -= sent
        return total
    finally:
        if total and hasattr(file, "seek"):
            file.seek(offset + total)


def connect(descriptor: Descriptor, address: Any, timeout_s: float | None = OWN_TIMEOUT) -> None:
    """Connect, waiting as the descriptor's timeout says, or as this call's.

    Raises:
        OperationAborted: this process closed the descriptor; the attempt belongs to the socket and goes on if shared.
    """
    kernel = require_kernel(descriptor)
    try:
        operations.connect(kernel, address, descriptor.timeout_s if timeout_s == OWN_TIMEOUT else timeout_s)
    except OSError as error:
        raise settle(descriptor, kernel, error) from None


def accept(descriptor: Descriptor, timeout_s: float | None = OWN_TIMEOUT) -> tuple[KernelSocket, Any]:
    """Accept one client: its kernel socket, adopted, and its address.

    Waits as the descriptor's timeout says, or as this call's.

    Other processes: the client is this one's; a close of the listener anywhere leaves it alone (CLOSE-40).

    Raises:
        OperationAborted: no client was taken. OSError(EMFILE): no number is free; the client stays in the backlog.
    """
    kernel = require_kernel(descriptor)
    if kernel.kept:
        with suppress(IndexError):  # another thread was faster
            return kernel.kept.pop(0)  # type: ignore[no-any-return]  # a listener keeps nothing else
    if timeout_s == OWN_TIMEOUT:
        timeout_s = descriptor.timeout_s
    taken: tuple[KernelSocket, Any]
    try:
        taken = operations.perform(kernel, "accept", READ, timeout_s, _accept_once, (kernel, descriptor), _same)
    except OSError as error:
        raise settle(descriptor, kernel, error) from None
    return taken


def accept_into(listener: Descriptor, into: Callable[[Descriptor], C]) -> tuple[C, Any]:
    """Accept one client: what `into` makes of its descriptor, and its address. Cut short, the next one gets it."""
    taken: list[tuple[KernelSocket, Any]] = []
    made: list[Descriptor] = []
    try:
        taken.extend(starmap(accept, ((listener,),)))
        return hand_over(listener, *taken[0], into, made)
    except BaseException:
        withdraw_face(made)
        if listener.kernel.aborted is None:
            listener.kernel.kept.extend(taken)
        raise


def hand_over(
    listener: Descriptor, kernel: KernelSocket, address: Any, into: Callable[[Descriptor], C], made: list[Descriptor]
) -> tuple[C, Any]:
    """Make of an accepted client what its caller gets: what `into` makes of its descriptor, and its address.

    Args:
        made: gets the descriptor before anything stands on it, for `withdraw_face`.
    """
    made.append(Descriptor(kernel))
    options.take_over_linger(made[0], listener)
    return into(made[0]), address


def withdraw_face(made: list[Descriptor]) -> None:
    """Take a client's socket from under a face that nobody will see, and whose destructor would close it."""
    for client in made:
        table.leave(client)
        client.swap_for_closed(Closer(client, "an interrupt"))


def _accept_once(kernel: KernelSocket, descriptor: Descriptor) -> tuple[KernelSocket, Any]:
    """Take one client without waiting.

    The gate: a fork in another thread must not inherit a number that nobody has entered yet.
    """
    stay_nonblocking(kernel)
    facts = descriptor.family, descriptor.type, descriptor.protocol
    taken: list[Any] = []
    clients: list[KernelSocket] = []
    try:
        with numbers.gate:
            # Taken and stored in one C call: no interrupt between.
            taken.extend(starmap(kernel._accept, ((),)))
            sockets.adopt(taken[0][0], *facts, clients)
        clients[0].is_exclusive = True
        return clients[0], taken[0][1]
    except BaseException:
        if taken:
            if not clients:
                sockets.adopt(taken[0][0], *facts, clients)
            kernel.kept.append((clients[0], taken[0][1]))
        raise


def _same(client: Any) -> Any:
    return client
