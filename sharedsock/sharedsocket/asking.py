"""Calls that never wait: names, options, shutdown."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from sharedsock.descriptors import options, transfer
from sharedsock.kernel import exclusive
from sharedsock.sharedsocket.base import SocketBase

__all__ = ["Asking"]

# What a receive that waits in the kernel goes by (SO_RCVTIMEO has two numbers), and this package's use of it must hide.
_OF_WAITS: Final = socket.SO_RCVTIMEO, 66, socket.SO_RCVLOWAT


class Asking(SocketBase):
    """The calls that never wait."""

    __slots__ = ()

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
        options.shut_down(self._descriptor, how, lambda how: self._call("shutdown", how))

    def getsockname(self) -> Any:
        """Return the own address."""
        return self._call("getsockname")

    def getpeername(self) -> Any:
        """Return the peer's address."""
        return self._call("getpeername")

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None, /) -> None:
        """Set an option, for every sharer (DUP-16). SO_LINGER acts at the last close, whoever makes it."""
        if level == socket.SOL_SOCKET and optname == socket.SO_LINGER and not isinstance(value, int | None):
            transfer.require_kernel(self._descriptor)
            options.set_linger(self._descriptor, bytes(value))
            return
        if level == socket.SOL_SOCKET and optname in _OF_WAITS:
            exclusive.expose(self._descriptor.kernel)
        self._call("setsockopt", level, optname, value, *(() if optlen is None else (optlen,)))

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        """Return an option: an int, or with `buflen` at most so many bytes."""
        if level == socket.SOL_SOCKET and optname == socket.SO_LINGER:
            transfer.require_kernel(self._descriptor)
            value = options.get_linger(self._descriptor)
            return value[:buflen] if buflen else value[0]
        if level == socket.SOL_SOCKET and optname in _OF_WAITS:
            exclusive.expose(self._descriptor.kernel)
        return self._call("getsockopt", level, optname, *(() if buflen is None else (buflen,)))

    def get_inheritable(self) -> bool:
        """Return whether a program this process executes inherits the number."""
        return os.get_inheritable(self._here())

    def set_inheritable(self, inheritable: bool) -> None:
        """Let a program this process executes inherit the number; count it with lend()."""
        exclusive.expose(self._descriptor.kernel)
        os.set_inheritable(self._here(), inheritable)

    def _here(self) -> int:
        return transfer.require_kernel(self._descriptor).number
