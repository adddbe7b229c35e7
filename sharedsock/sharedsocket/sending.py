"""Sending: at once where there is room, which is a frame and a system call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from sharedsock.descriptors import transfer
from sharedsock.kernel.numbers import here
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import with_winerror
from sharedsock.sharedsocket.base import SocketBase, timeout_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Sending"]

_SEND_FLAGS: Final = DONTWAIT | NOSIGNAL


class _Unflagged(int):
    """The flags of a caller who gave none; see receiving.py."""


_UNFLAGGED: Final = _Unflagged(_SEND_FLAGS)


class Sending(SocketBase):
    """The calls that send."""

    __slots__ = ()

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send what there is room for; return how many bytes.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; nothing of it was queued.
            BrokenPipeError: a sharer has shut the socket down for sending (10058).

        Source: LPWSPSEND.
        """
        kernel = self._descriptor.kernel
        if here:
            try:
                return kernel.send(data, flags | _SEND_FLAGS)
            except BlockingIOError as error:
                if flags & DONTWAIT:
                    raise with_winerror(error) from None
            except OSError as error:
                raise transfer.settle(self._descriptor, kernel, error) from None
        has_tried = bool(here)
        return cast(
            "int", transfer.send(self._descriptor, "send", "send", (data, flags | _SEND_FLAGS), has_tried=has_tried)
        )

    def sendall(self, data: Any, flags: int = _UNFLAGGED, /) -> None:
        """Send every byte.

        Raises:
            OperationAborted: as `send`; `.bytes_transferred` were queued before, and follow the linger rules.
        """
        sent = 0
        try:
            # Half of every ping-pong: one frame, each line measured.
            if here:
                sent = self._kernel.send(data, flags if flags is _UNFLAGGED else flags | _SEND_FLAGS)
                if sent == len(data) and data.__class__ is bytes:
                    return
        except BlockingIOError as error:
            if self._descriptor.timeout_s == 0 or (flags is not _UNFLAGGED and flags & DONTWAIT):
                raise with_winerror(error) from None
        except OSError as error:
            raise transfer.settle(self._descriptor, self._kernel, error) from None
        with memoryview(data) as whole, whole.cast("B") as view:
            if sent < len(view):
                is_not_to_wait = flags is not _UNFLAGGED and flags & DONTWAIT
                timeout_s = 0.0 if is_not_to_wait else self._descriptor.timeout_s
                transfer.send_all(self._descriptor, view, sent, flags | _SEND_FLAGS, timeout_s)

    def sendto(self, data: Any, *arguments: Any) -> int:
        """sendto(data[, flags], address): send one message to an address. Errors as `send`."""
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(arguments) + 1} given)")
        flags, address = (0, arguments[0]) if len(arguments) == 1 else arguments
        sent = (data, flags | _SEND_FLAGS, address)
        return cast("int", transfer.send(self._descriptor, "sendto", "sendto", sent, timeout_s=timeout_of(flags)))

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """Send buffers and ancillary data; return how many bytes. Errors as `send`."""
        arguments = (list(buffers), list(ancdata), flags | _SEND_FLAGS, address)
        return cast(
            "int", transfer.send(self._descriptor, "sendmsg", "sendmsg", arguments, timeout_s=timeout_of(flags))
        )

    def sendmsg_afalg(self, *arguments: Any, **options_: Any) -> int:
        """Send to an AF_ALG socket, as the stdlib does; it never waits."""
        kernel = transfer.require_kernel(self._descriptor)
        try:
            return kernel.sendmsg_afalg(*arguments, **options_)
        except OSError as error:
            raise transfer.settle(self._descriptor, kernel, error) from None

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a regular file, with sendfile(2) where the kernel can; return how many bytes. Errors as `send`."""
        return super().sendfile(file, offset, count)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """The stdlib's `sendfile` tries this first; its give-up sends by reading."""
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]  # the stdlib's own
        return transfer.send_file(self._descriptor, file, offset, count)
