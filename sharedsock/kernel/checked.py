"""The debug mode of the data plane: before each system call, is the number still this socket?

A number that somebody else in this process closes behind our back may be a stranger's a moment later, and no call can
tell: a receive would take the stranger's data, a close would close his file (F-55). Where SHAREDSOCK_DEBUG=1 is set,
sockets are `CheckedKernel`s. Each of their calls asks for SO_COOKIE first, each try of a call that waits does so again,
and what is not the socket any more is touched by none, the close included.

Keeps I5 as far as two system calls can: a number that changes hands between the question and the call is not noticed.
Nothing of this is imported, and nothing asked, where the mode is off.
"""

from __future__ import annotations

import _socket
import errno
import itertools
import os
import socket
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from itertools import starmap
from typing import Any, Final

from sharedsock.kernel import numbers, sockets, system
from sharedsock.model.errors import LostDescriptor

__all__ = ["CALLS", "CheckedKernel"]

# The methods of the C class that make a system call on the number; the rest read attributes, or give the number back.
CALLS: Final = tuple(
    name
    for name in (
        "_accept bind connect connect_ex getpeername getsockname getsockopt listen"
        " recv recv_into recvfrom recvfrom_into recvmsg recvmsg_into send sendall sendmsg sendmsg_afalg sendto"
        " setblocking setsockopt settimeout shutdown"
    ).split()
    if hasattr(_socket.socket, name)
)

_serials: Final = itertools.count(1)
# Which of ours has a number, by its serial: two descriptors of one socket have one cookie.
_bearer: Final[dict[int, int]] = {}


def _checked(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(self: CheckedKernel, *arguments: Any, **keywords: Any) -> Any:
        self.require()
        # A loop of one step: the interpreter looks for no signal between what C has taken and our return (rule 3).
        for result in starmap(partial(call, self, *arguments, **keywords), ((),)):
            return result

    return checked


def _name(kind: type[IntEnum], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return str(value)


class CheckedKernel(sockets.KernelSocket):
    """A kernel socket that asks before each call whether its number still is it.

    Attributes:
        cookie: what tells the socket from every other.
        lost: what has become of the number, once that has been noticed.
    """

    __slots__ = ("_serial", "cookie", "lost")

    # Never in a hurry: no receive waits before it has tried, so none becomes a conversation, which would not ask.
    streak = property(lambda _: 0, lambda _, streak: None)

    def __init__(
        self,
        family: int,
        type: int,  # as in _socket
        proto: int,
        fileno: int | None = None,
    ) -> None:
        self._serial = 0
        self.lost = ""
        self.number = -1
        self.cookie = -1 if fileno is None else system.socket_cookie(fileno)
        try:
            super().__init__(family, type, proto, fileno)
            if fileno is None:
                self.cookie = system.socket_cookie(self.number)
            self._serial = _bearer[self.number] = next(_serials)
        except BaseException:
            if fileno is not None and self.number >= 0:  # the caller's still
                sockets.let_go(self)
            raise

    def is_lost(self) -> bool:
        """Whether the number is not this socket any more; a forked child's is no matter of this process."""
        if self._serial and self.era == numbers.current_era():
            found = self._found()
            if found:
                family, kind = _name(socket.AddressFamily, self.family), _name(socket.SocketKind, self.type)
                self.lost = (
                    f"its file number {self.number} in process {os.getpid()} is no longer its socket ({family} {kind}, "
                    f"cookie {self.cookie}) but {found}: somebody else in this process had closed it, and what is "
                    "there now was left alone"
                )
                return True
        return False

    def _found(self) -> str:
        """Say what the number is instead; "" for the socket itself."""
        try:
            cookie = system.socket_cookie(self.number)
        except OSError as error:
            return "no open file" if error.errno == errno.EBADF else "a file that is no socket"
        if cookie != self.cookie:
            return f"another socket (cookie {cookie})"
        return "" if _bearer.get(self.number) == self._serial else "that of a later descriptor on the same socket"

    def require(self) -> None:
        """Ask.

        Raises:
            LostDescriptor: the number is a stranger's, or nobody's.
            OSError: EBADF, closed in good order; what the dead file over the number would have answered.
        """
        if self._serial and self.is_buried:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.is_lost():
            raise LostDescriptor(self.lost)

    def fileno(self) -> int:
        """Return the number, to whoever is about to make a system call on it."""
        self.require()
        return self.number

    def sendfile(self, *arguments: Any) -> int:
        """As os.sendfile, with the number as its first argument."""
        self.require()
        for sent in starmap(os.sendfile, (arguments,)):
            return sent
        raise AssertionError("one step")

    def _free(self) -> None:
        # The last frame inside has left, perhaps long after the close: is it the socket, or the dead file, still?
        with numbers.gate:
            number: int = getattr(self, "number", -1)  # none: interrupted before there was one
            if number >= 0 and self.is_lost() and not (self.is_buried and sockets.is_dead(self)):
                sockets.let_go(self)
            else:
                super()._free()


for _call in CALLS:
    setattr(CheckedKernel, _call, _checked(getattr(_socket.socket, _call)))
