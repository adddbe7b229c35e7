"""What all sharers of a socket have in common and the kernel does not keep: linger, shut-down directions, a reset.

For a socket that was never shared this is a value of the descriptor; from the first share on it is the registry's
record, read from a page without a call and changed by one. Options the kernel keeps are common to all sharers anyway.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sharedsock.kernel import conversation, numbers, system
from sharedsock.model.errors import RegistryGone, from_errno, with_winerror
from sharedsock.model.winsock import WSAECONNRESET
from sharedsock.registry.page import CommonState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor

__all__ = [
    "STREAMS",
    "change_common",
    "common",
    "differences",
    "get_linger",
    "last_known",
    "require_receiving",
    "set_linger",
    "shut_down",
    "shut_receive_error",
    "take_over_linger",
    "translate",
    "verdict_on_empty",
]

_LINGER: Final = struct.Struct("ii")
STREAMS: Final = (socket.SOCK_STREAM, getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM))
_TCP_CLOSE: Final = 7
_PRISTINE: Final = CommonState()


def common(descriptor: Descriptor) -> CommonState:
    """Return what all sharers agree on, without a registry call."""
    client = descriptor.client
    return descriptor.local if client is None else client.common(descriptor.slot)


def last_known(descriptor: Descriptor) -> CommonState:
    """Return what all sharers agreed on when their registry died, with what this process has noted since."""
    local = descriptor.local
    try:
        state = common(descriptor)
    except RegistryGone:  # no pages here: our own part is all there is
        return local
    return dataclasses.replace(
        state,
        shut_receive=state.shut_receive or local.shut_receive,
        shut_send=state.shut_send or local.shut_send,
        reset_seen=state.reset_seen or local.reset_seen,
        has_port=state.has_port or local.has_port,
    )


def change_common(descriptor: Descriptor, **changes: Any) -> None:
    """Change what all sharers agree on.

    Other processes: see it at their next call.

    Raises:
        RegistryGone: the socket is shared, and its registry cannot be reached.
    """
    descriptor.local = dataclasses.replace(descriptor.local, **changes)
    if descriptor.client is not None:
        assert descriptor.socket_id is not None
        descriptor.client.set_common(descriptor.socket_id, **changes)


def differences(state: CommonState) -> dict[str, Any]:
    """Return the fields in which a state differs from that of a new socket."""
    return {name: value for name, value in dataclasses.asdict(state).items() if value != getattr(_PRISTINE, name)}


def set_linger(descriptor: Descriptor, value: bytes) -> None:
    """Set SO_LINGER for all sharers; it acts at the last close, whoever makes it (LINGER-12, rule 14).

    Args:
        value: struct linger, two ints: on or off, and seconds.

    Raises:
        OSError: EINVAL (10022) for a value of another shape; ENOPROTOOPT (10042) where nothing can linger (LINGER-11).
        RegistryGone: the socket is shared, and its registry cannot be reached.
    """
    _require_connections(descriptor)
    if len(value) < _LINGER.size:
        raise from_errno(errno.EINVAL, f"SO_LINGER takes struct linger, {_LINGER.size} bytes; got {len(value)}")
    is_on, seconds = _LINGER.unpack_from(value)
    linger_s = min(max(seconds, 0), 0xFFFF) if is_on else None
    kernel = descriptor.kernel
    # LINGER(0) stands on the kernel socket from the start, so that a crash of the last holder resets as well.
    # LINGER(t > 0) is emulated: the kernel's own would go on sending after t, and would make a closer wait.
    try:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(linger_s == 0, 0))
    except OSError as error:
        raise with_winerror(error) from None
    change_common(descriptor, linger_s=linger_s)


def get_linger(descriptor: Descriptor) -> bytes:
    """Return SO_LINGER as struct linger, as the sharers set it.

    Raises:
        OSError: ENOPROTOOPT (10042) where nothing can linger (LINGER-11).
    """
    _require_connections(descriptor)
    linger_s = common(descriptor).linger_s
    return _LINGER.pack(0, 0) if linger_s is None else _LINGER.pack(1, linger_s)


def take_over_linger(descriptor: Descriptor, listener: Descriptor | None = None) -> None:
    """Let a descriptor just opened on an existing socket start with the linger option the socket has.

    Args:
        listener: whose client it is: the kernel hands down what it knows of, which LINGER(t > 0) is not (CLOSE-41).
    """
    if descriptor.type not in STREAMS:
        return
    if listener is None:
        try:
            value = descriptor.kernel.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
        except OSError as error:
            raise with_winerror(error) from None
        if any(value[:4]):
            set_linger(descriptor, value)
        return
    linger_s = common(listener).linger_s
    if linger_s is not None:
        descriptor.local = dataclasses.replace(descriptor.local, linger_s=linger_s)


def _require_connections(descriptor: Descriptor) -> None:
    if descriptor.type not in STREAMS:
        raise from_errno(errno.ENOPROTOOPT, "SO_LINGER: a socket without connections has nothing to linger for")


def shut_down(descriptor: Descriptor, how: int, shutdown: Callable[[int], object]) -> None:
    """Shut directions down for every sharer, and put that on record first: whoever it wakes already finds it there.

    Args:
        shutdown: the kernel's own.

    Raises:
        OSError: what `shutdown` raised.
    """
    if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        shutdown(how)  # its error is the kernel's
        return
    kernel, before = descriptor.kernel, common(descriptor)
    changes = {}
    if how != socket.SHUT_WR and not before.shut_receive:
        changes["shut_receive"] = True
    if how != socket.SHUT_RD and not before.shut_send:
        changes["shut_send"] = True
    with suppress(RegistryGone):  # our own part of the record is there; the kernel's goes on all the same
        change_common(descriptor, **changes)
    try:
        shutdown(how)
    except OSError as error:
        # With ENOTCONN Linux has done it all the same: later receives end at once. So it stays on record; and where
        # there never is a connection it is no error at all (SHUT-7).
        if error.errno != errno.ENOTCONN:
            with suppress(OSError):
                change_common(descriptor, **dict.fromkeys(changes, False))
            raise
        if descriptor.type != socket.SOCK_DGRAM:
            raise
    if how != socket.SHUT_WR:
        # The kernel goes on handing out what had arrived. Off the fast path each receive looks at the record.
        numbers.calm[kernel.slot] = 0
        conversation.end(kernel)


def verdict_on_empty(descriptor: Descriptor) -> None:
    """Decide what an empty receive means: return for the peer's FIN or an empty datagram, raise for anything else.

    Raises:
        BrokenPipeError: ESHUTDOWN (10058), a sharer has shut the socket down for receiving.
        ConnectionResetError: ECONNRESET (10054), the connection was reset; another thread or holder has read that.
    """
    if descriptor.type not in STREAMS:
        return
    state = common(descriptor)
    # Our own record as well: where the registry has died, the common one ended with it.
    if state.shut_receive or descriptor.local.shut_receive:
        raise shut_receive_error(descriptor)
    # The kernel reports a reset once. A connection that only got the peer's FIN is in CLOSE_WAIT; one in CLOSE whose
    # sending side we never shut down was reset. Measured on Linux 6.18.
    if (
        state.reset_seen
        or descriptor.local.reset_seen
        or (not state.shut_send and system.tcp_state(descriptor.kernel) == _TCP_CLOSE)
    ):
        raise from_errno(errno.ECONNRESET, f"descriptor {descriptor.id}: the peer has reset the connection")


def require_receiving(descriptor: Descriptor) -> None:
    """Raise if a sharer has shut the socket down for receiving, in this process or another.

    Raises:
        BrokenPipeError: ESHUTDOWN (10058).
    """
    if descriptor.local.shut_receive or common(descriptor).shut_receive:
        raise shut_receive_error(descriptor)


def shut_receive_error(descriptor: Descriptor) -> OSError:
    """Build the error of a receive after SD_RECEIVE."""
    return from_errno(errno.ESHUTDOWN, f"descriptor {descriptor.id}: this socket was shut down for receiving")


def translate(descriptor: Descriptor, error: OSError) -> OSError:
    """Give an error of the kernel its WSA number, and put a reset on record for the other sharers."""
    if error.errno == errno.ECONNRESET:
        with suppress(RegistryGone):  # the record is for the others; this caller has its answer
            change_common(descriptor, reset_seen=True)
    elif error.errno == errno.EPIPE and not common(descriptor).shut_send:
        error.winerror = WSAECONNRESET  # type: ignore[attr-defined]  # nobody here shut it down: the peer reset it
    return with_winerror(error)
