"""The base provider's own table: handle -> what it keeps of a socket; and how its calls wait.

Blocking mode is the socket's, common to all its descriptors in all processes (FIONBIO, DUP-17): each call reads it
from the page all sharers see, without a system call. A thread with a blocking hook (a Windows Sockets 1.1 program)
has its blocking calls made in short waits with the hook in between; every other thread waits once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from sharedsock.descriptors import options
from sharedsock.kernel.conversation import SILENT
from sharedsock.kernel.numbers import flag_of
from sharedsock.model.errors import RegistryGone
from sharedsock.model.winsock import WSAECONNABORTED, WSAEINTR, WSAENOTSOCK, XP1_GRACEFUL_CLOSE
from sharedsock.spi import callbacks
from sharedsock.spi.errors import WSAError
from sharedsock.spi.handles import NO_HANDLE
from sharedsock.spi.provider import Provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.conversation import Conversation
    from sharedsock.registry.page import CommonState
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO

__all__ = ["BaseSockets", "Opened", "is_nonblocking", "wait_once_or_with_hook"]

T = TypeVar("T")

_HOOK_EVERY_S: Final = 0.01


class Opened:
    """One open handle of the base provider.

    Attributes:
        flags: those of its creation, which each descriptor has for itself (DUP-19).
        is_silent: it ends by a cleanup: requests complete without an indication (CLEANUP-2).
        is_damaged: a cancelled call has torn its stream: only a close is left (CANCEL-4).
        plain: the common state with which its receives last went the short way; None if they have not.
        calm: whether to receive without waiting first (kernel.numbers); talk: the conversation its receives have
            become, `arguments` that one's.
    """

    __slots__ = (
        "arguments",
        "calm",
        "descriptor",
        "flags",
        "handle",
        "info",
        "is_damaged",
        "is_silent",
        "plain",
        "requests",
        "talk",
    )

    def __init__(self, handle: int, descriptor: Descriptor, info: WSAPROTOCOL_INFO, flags: int) -> None:
        self.handle = handle
        self.descriptor = descriptor
        self.info = info
        self.flags = flags
        self.is_silent = False
        self.is_damaged = False
        self.requests: list[Any] = []
        self.plain: CommonState | None = None
        self.calm = flag_of(descriptor.kernel.slot)
        self.talk: Conversation = SILENT
        self.arguments: list[Any] = []

    @property
    def is_abortive(self) -> bool:
        """Whether its provider has abortive closes only (LINGER-16)."""
        return not self.info.dwServiceFlags1 & XP1_GRACEFUL_CLOSE and self.descriptor.type in options.STREAMS


class BaseSockets(Provider):
    """What every part of the base provider stands on."""

    is_ifs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._sockets: dict[int, Opened] = {}

    def opened(self, s: int) -> Opened:
        """Return what is kept of an open handle.

        Raises:
            WSAError: 10038, none of this provider's; 10053, a cancelled call has torn its stream.
        """
        try:
            found = self._sockets[s]
        except NO_HANDLE:
            raise self.refusal(s) from None
        if found.is_damaged:
            raise WSAError(WSAECONNABORTED, "a call was cancelled in the middle of the stream: only a close is left")
        return found

    def refusal(self, s: object) -> WSAError:
        """Build the error of a call on what is no handle of this provider."""
        return WSAError(WSAENOTSOCK, f"{s!r} is no open handle of this provider")

    def forget(self) -> None:
        super().forget()
        self._sockets.clear()


def is_nonblocking(descriptor: Descriptor) -> bool:
    """Whether calls on the socket may not wait, as all its sharers see it."""
    try:
        return options.common(descriptor).nonblocking
    except RegistryGone:  # no page here, and nobody to ask
        return descriptor.local.nonblocking


def wait_once_or_with_hook(descriptor: Descriptor, attempt: Callable[[float | None], T]) -> T:
    """Make a call that may have to wait, as the socket's mode and the thread's hook say.

    Args:
        attempt: makes the call with a timeout in seconds; None waits for ever, 0 does not.

    Raises:
        WSAError: 10004, the hook has cancelled it; it has taken nothing.
    """
    if is_nonblocking(descriptor):
        return attempt(0.0)
    if callbacks.blocking_hook() is None:
        return attempt(None)
    with callbacks.outstanding() as call:
        timeout_s = 0.0
        while True:
            try:
                return attempt(0.0 if call.is_cancelled else timeout_s)
            except (BlockingIOError, TimeoutError) as error:
                if error.errno not in (None, errno.EAGAIN, errno.EINPROGRESS):
                    raise
            # Whatever was done before the cancellation was seen has counted: the last try came after it (CANCEL-5).
            if call.is_cancelled:
                raise WSAError(WSAEINTR, "this blocking call was cancelled by its own thread")
            callbacks.run_hook(call)
            timeout_s = _HOOK_EVERY_S
