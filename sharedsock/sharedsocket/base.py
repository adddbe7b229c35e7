"""What all calls of a SharedSocket stand on: its descriptor, and what of it is kept at hand for the fast paths."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final, Self

from sharedsock.descriptors import starting, table
from sharedsock.descriptors.transfer import OWN_TIMEOUT
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model import trace

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.kernel.conversation import Conversation
    from sharedsock.kernel.numbers import Flag
    from sharedsock.kernel.sockets import KernelSocket

__all__ = ["PlainSocket", "SocketBase", "timeout_of"]

_AUDITS: Final = os.environ.get("SHAREDSOCK_AUDIT") == "1"
_NEVER_WAITS: Final = DONTWAIT | socket.MSG_OOB

if TYPE_CHECKING:
    PlainSocket = socket.socket
else:
    # The stdlib's own class: who tests or blocks sockets puts another one into the module, even ours, and may have done
    # so before we are imported. Whatever stands there is a subclass of it.
    PlainSocket: Final = next(kind for kind in socket.socket.__mro__ if kind.__module__ == "socket")


class SocketBase(PlainSocket):
    """A `socket.socket` whose C part never has a number: all work goes through the descriptor.

    Attributes:
        _descriptor: this process's handle; another one in a forked child that was handed the socket.
        _calm, _kernel: of the descriptor, one look-up nearer; it keeps them true.
        _talk: the conversation that receives have become; `SILENT` if they have not.
    """

    __slots__ = ("_calm", "_descriptor", "_kernel", "_talk")

    _calm: Flag
    _descriptor: Descriptor
    _kernel: KernelSocket
    _talk: Conversation
    _io_refs: int  # these two are slots of the stdlib's
    _closed: bool

    @classmethod
    def _over(cls, descriptor: Descriptor) -> Self:
        shared = cls.__new__(cls)
        shared._io_refs = 0
        shared._closed = False
        shared._settle(descriptor)
        return shared

    def _settle(self, descriptor: Descriptor) -> None:
        table.enter(descriptor)
        self._stand_on(descriptor)
        if not starting.is_installed:
            starting.install(SocketBase)
        if trace.hook is not None:
            trace.hit("open.registered", descriptor=descriptor.id)
        if _AUDITS:
            from sharedsock.descriptors import sharing

            sharing.register(descriptor)

    def _stand_on(self, descriptor: Descriptor) -> None:
        """Take a descriptor as one's own; in a forked child, the one that replaces the parent's."""
        self._descriptor = descriptor
        descriptor.attach(self)
        if descriptor.chain is not None:
            descriptor.chain.put_under(self)


def timeout_of(flags: int) -> float:
    """Return the timeout that a caller's flags ask for: MSG_DONTWAIT is 0 for this one call.

    MSG_OOB as well: urgent data is there or it is not, as for a blocking plain socket. Readable says nothing of it.
    """
    return 0.0 if flags & _NEVER_WAITS else OWN_TIMEOUT
