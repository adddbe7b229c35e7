"""One descriptor: this process's handle on a socket, with its kernel socket and its reference in a registry.

A descriptor that was never shared has no registry: `client` is None, and what all sharers would have in common is
kept here. From its first `share()` on, the common state lives with the registry's record of the socket. The kernel
socket is swapped for a `ClosedKernel` once, at close or at a fork; that swap is what makes later use fail.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from _thread import RLock
from time import time
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast
from weakref import ref

from sharedsock.kernel import numbers, sockets, system
from sharedsock.kernel.conversation import SILENT
from sharedsock.model.errors import ForkedDescriptor, LostDescriptor, NotASocket
from sharedsock.model.identity import DescriptorFacts, DescriptorId, SocketFacts, SocketId
from sharedsock.registry.page import CommonState

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from sharedsock.descriptors.providing import Chain
    from sharedsock.kernel.conversation import Conversation
    from sharedsock.kernel.numbers import Flag
    from sharedsock.kernel.sockets import ClosedKernel, KernelSocket
    from sharedsock.registry.client import Client

__all__ = ["Closer", "Descriptor", "Face", "Place", "calling_place", "draw_id", "in_words", "lost"]

# Frames of these are not where a user opened or closed something: this package, and the stdlib's own socket module.
_OURS: Final = (os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep, str(socket.__file__))
# What has been looked up: by the file's name, whether it is one of those.
_is_ours: Final[dict[str, bool]] = {}

draw_id: Final = cast("Callable[[], DescriptorId]", itertools.count(1).__next__)
"""Draw a number that no descriptor of this process has, had or will have."""

Place: TypeAlias = "tuple[CodeType, int] | None"
"""A place in somebody's code, and the instruction there: noted often, put into words when somebody asks."""


def in_words(place: Place) -> str:
    """Return "file:line in function"."""
    if place is None:
        return ":0 in "
    code, instruction = place
    found = code.co_firstlineno
    for first, end, line in code.co_lines():  # no generator: an interrupt as it is dropped would be printed and lost
        if first <= instruction < end and line is not None:
            found = line
            break
    return f"{code.co_filename}:{found} in {code.co_name}"


class Closer:
    """Who has closed a descriptor, "thread (place)"; calling it builds the error that every later use gets.

    Args:
        descriptor: the one that is closed.
        who: a thread's name, or what has closed it instead.
        place: where, if that is known.
    """

    __slots__ = ("_identity", "_opened", "_place", "_who")

    def __init__(self, descriptor: Descriptor, who: str, place: Place = None) -> None:
        self._identity = descriptor.id
        self._opened = descriptor._place
        self._who = who
        self._place = place

    def __str__(self) -> str:
        return self._who if self._place is None else f"{self._who} ({in_words(self._place)})"

    def __call__(self) -> OSError:
        opened_at = in_words(self._opened)
        return NotASocket(
            f"descriptor {self._identity} of process {os.getpid()}, opened at {opened_at}, was closed by {self}; "
            "open or redeem another one",
            descriptor=self._identity,
            closed_by=str(self),
        )


def calling_place(depth: int = 1) -> Place:
    """Return the place of the innermost caller outside this package.

    Args:
        depth: so many of the innermost frames are known to be in it.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        is_ours = _is_ours.get(code.co_filename)
        if is_ours is None:
            is_ours = _is_ours[code.co_filename] = code.co_filename.startswith(_OURS)
        if not is_ours:
            return code, frame.f_lasti
        frame = frame.f_back
    return None


class Face(Protocol):
    """What a face keeps of its descriptor, for its fast paths."""

    _calm: Flag
    _kernel: KernelSocket
    _talk: Conversation


class Descriptor:
    """One process's handle on a socket.

    Attributes:
        id: its number, never given out twice in this process.
        kernel: the kernel socket; a `ClosedKernel` once closed.
        calm: true while a receive may try before it waits, in this process and not in a child of a fork.
        timeout_s: seconds; None blocks, 0 never waits. Per descriptor, whatever other sharers chose.
        client: the channel to the registry that counts the socket, None while it was never shared.
        slot: the socket's place in that registry's common page.
        local: the common state of a socket that was never shared.
        chain: the providers under its Python face, None for none (`providing`).
        claims: who has begun to close it; the first one does.
    """

    __slots__ = (
        "__weakref__",
        "_face",
        "_place",
        "calm",
        "chain",
        "claims",
        "client",
        "family",
        "id",
        "kernel",
        "local",
        "opened_s",
        "protocol",
        "share_lock",
        "slot",
        "socket_id",
        "timeout_s",
        "type",
    )

    kernel: KernelSocket

    def __init__(self, kernel: KernelSocket) -> None:
        self.id = draw_id()
        self.kernel = kernel
        self.calm = numbers.flag_of(kernel.slot)
        self.family = kernel.family
        self.type = kernel.type
        self.protocol = kernel.proto
        self.timeout_s: float | None = socket.getdefaulttimeout()
        self.client: Client | None = None
        self.slot = -1
        self.chain: Chain | None = None
        self.socket_id: SocketId | None = None
        self.local = _PRISTINE
        self.claims: list[int] = []
        self.share_lock = RLock()
        self._face: ref[Face] | None = None
        self.opened_s = time()
        self._place = calling_place(2)

    def attach(self, face: Face) -> None:
        """Let a face keep the kernel socket at hand, one look-up nearer; it gets the `ClosedKernel` at once as well."""
        self._face = ref(face)
        face._calm = self.calm
        face._kernel = self.kernel
        face._talk = SILENT

    @property
    def opened_at(self) -> str:
        """The place of user code that opened it, "file:line in function"."""
        return in_words(self._place)

    @property
    def is_closed(self) -> bool:
        """Whether this process has closed it, or is closing it."""
        return self.kernel.aborted is not None

    def facts(self) -> DescriptorFacts:
        """Return what a registry is told about this descriptor."""
        return DescriptorFacts(self.id, self.opened_at, self.opened_s)

    def socket_facts(self) -> SocketFacts:
        """Return what a registry is told about the socket, read from the kernel."""
        if self.socket_id is None:
            self.socket_id = SocketId(system.socket_cookie(self.kernel.number))
        return SocketFacts(self.socket_id, self.family, self.type, self.protocol)

    def swap_for_closed(self, closer: Closer) -> KernelSocket:
        """Make every later use fail with `NotASocket`; return the kernel socket that was there."""
        kernel = self.kernel
        self._install(sockets.ClosedKernel(closer, closer))
        return kernel

    def swap_for_forked(self) -> None:
        """In a forked child: make every use fail with `ForkedDescriptor`."""
        identity, place, parent = self.id, self.opened_at, os.getppid()

        def refuse() -> OSError:
            return ForkedDescriptor(
                f"descriptor {identity}, opened at {place}, belongs to the parent process {parent}; "
                "a forked child owns nothing: pass it in Process(args=...), or share() it",
                descriptor=identity,
            )

        if self.kernel.aborted is None:
            self._install(sockets.ClosedKernel(refuse, f"fork of process {parent}"))
        self.client = None
        self.claims.clear()
        self.share_lock = RLock()

    def _install(self, closed: ClosedKernel) -> None:
        # A ClosedKernel answers every attribute a KernelSocket has by raising: the type checker need not know two.
        self.kernel = closed  # type: ignore[assignment]
        face = None if self._face is None else self._face()
        if face is not None:
            face._kernel = self.kernel
            face._talk = SILENT


def lost(descriptor: Descriptor, what: str) -> LostDescriptor:
    """Build the error of a descriptor whose number is not its socket any more."""
    return LostDescriptor(
        f"descriptor {descriptor.id}, opened at {descriptor.opened_at}: {what}; whoever takes a number over needs "
        "detach() or share()",
        descriptor=descriptor.id,
    )


_PRISTINE: Final = CommonState()
