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

from sharedsock.kernel import system
from sharedsock.model.errors import RegistryGone, from_errno, with_winerror
from sharedsock.registry.page import CommonState

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor

__all__ = [
    "STREAMS",
    "change_common",
    "common",
    "differences",
    "get_linger",
    "note_shutdown",
    "set_linger",
    "shut_receive_error",
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
        OSError: EINVAL (10022) for a value of another shape.
    """
    if len(value) < _LINGER.size:
        raise from_errno(errno.EINVAL, f"SO_LINGER takes struct linger, {_LINGER.size} bytes; got {len(value)}")
    is_on, seconds = _LINGER.unpack_from(value)
    linger_s = min(max(seconds, 0), 0xFFFF) if is_on else None
    change_common(descriptor, linger_s=linger_s)
    # LINGER(0) stands on the kernel socket from the start, so that a crash of the last holder resets as well.
    # LINGER(t > 0) is emulated: the kernel's own would go on sending after t, and would make a closer wait.
    kernel_value = _LINGER.pack(1, 0) if linger_s == 0 else _LINGER.pack(0, 0)
    descriptor.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, kernel_value)


def get_linger(descriptor: Descriptor) -> bytes:
    """Return SO_LINGER as struct linger, as the sharers set it."""
    linger_s = common(descriptor).linger_s
    return _LINGER.pack(0, 0) if linger_s is None else _LINGER.pack(1, linger_s)


def note_shutdown(descriptor: Descriptor, how: int) -> None:
    """Put the directions just shut down on record, for every sharer."""
    changes = {}
    if how in (socket.SHUT_RD, socket.SHUT_RDWR):
        changes["shut_receive"] = True
    if how in (socket.SHUT_WR, socket.SHUT_RDWR):
        changes["shut_send"] = True
    change_common(descriptor, **changes)


def verdict_on_empty(descriptor: Descriptor) -> None:
    """Decide what an empty receive means: return for the peer's FIN or an empty datagram, raise for anything else.

    Raises:
        BrokenPipeError: ESHUTDOWN (10058), a sharer has shut the socket down for receiving.
        ConnectionResetError: ECONNRESET (10054), the connection was reset; another thread or holder has read that.
    """
    if descriptor.type not in STREAMS:
        return
    state = common(descriptor)
    if state.shut_receive:
        raise shut_receive_error(descriptor)
    # The kernel reports a reset once. A connection that only got the peer's FIN is in CLOSE_WAIT; one in CLOSE whose
    # sending side we never shut down was reset. Measured on Linux 6.18.
    if state.reset_seen or (not state.shut_send and system.tcp_state(descriptor.kernel) == _TCP_CLOSE):
        raise from_errno(errno.ECONNRESET, f"descriptor {descriptor.id}: the peer has reset the connection")


def shut_receive_error(descriptor: Descriptor) -> OSError:
    """Build the error of a receive after SD_RECEIVE."""
    return from_errno(errno.ESHUTDOWN, f"descriptor {descriptor.id}: this socket was shut down for receiving")


def translate(descriptor: Descriptor, error: OSError) -> OSError:
    """Give an error of the kernel its WSA number, and put a reset on record for the other sharers."""
    if error.errno == errno.ECONNRESET:
        with suppress(RegistryGone):  # the record is for the others; this caller has its answer
            change_common(descriptor, reset_seen=True)
    elif error.errno == errno.EPIPE and not common(descriptor).shut_send:
        error.winerror = 10054  # type: ignore[attr-defined]  # nobody here shut it down: the peer reset it
    return with_winerror(error)
