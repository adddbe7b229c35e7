"""Overlapped calls: the outcome comes later, in an Operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sharedsock.sharedsocket.base import SocketBase

if TYPE_CHECKING:
    from sharedsock.descriptors.overlapped import Operation

__all__ = ["Overlapping"]


class Overlapping(SocketBase):
    """The calls that only begin."""

    __slots__ = ()

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

    def begin_accept(self) -> Operation[tuple[Self, Any]]:
        """Begin to accept one client: (its SharedSocket, its address). As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_accept(self._descriptor, type(self)._over)

    def begin_connect(self, address: Any) -> Operation[None]:
        """Begin to connect; a host name is resolved before this returns. As `begin_recv`."""
        from sharedsock.descriptors import overlapped

        return overlapped.begin_connect(self._descriptor, address)
