"""Receiving: two hot paths, each line measured, and what is rare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from sharedsock.descriptors import options, transfer
from sharedsock.descriptors.transfer import OWN_TIMEOUT, Kept
from sharedsock.kernel.system import DONTWAIT
from sharedsock.sharedsocket.base import SocketBase, timeout_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Receiving"]


class _Unflagged(int):
    """The flags of a caller who gave none; MSG_DONTWAIT from a caller is an equal number, and another object."""


_UNFLAGGED: Final = _Unflagged(DONTWAIT)


def _data_of(kept: Kept) -> bytes:
    return kept.data


class Receiving(SocketBase):
    """The calls that receive."""

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = _UNFLAGGED, /) -> bytes:
        """Receive at most `bufsize` bytes; b"" on a stream only ever means the peer's FIN.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; no byte was taken (10004).
            NotASocket: closed before (10038). TimeoutError (10060). ConnectionResetError (10054).
            BrokenPipeError: the socket was shut down for receiving (10058).

        Source: LPWSPRECV; "Closing Sockets".
        """
        # The two hot paths, each line measured: data is ready (a frame and a system call), and a conversation, where
        # each receive waits (two frames). All that is rare goes on in _receive.
        if flags is _UNFLAGGED:
            try:
                if self._calm:
                    data = self._kernel.recv(bufsize, flags)
                    if data:
                        return data
                    return self._empty(data, bufsize)
                talk = self._talk
                if talk is not None and talk.bufsize == bufsize:
                    said = talk.receive()
                    if said is not None:
                        return said or self._empty(said, bufsize)
            except BlockingIOError:
                return self._receive(bufsize, flags, has_tried=True)
            except OSError as error:
                raise transfer.settle(self._descriptor, self._kernel, error) from None
        return self._receive(bufsize, flags)

    def _receive(self, bufsize: int, flags: int, has_tried: bool = False) -> bytes:
        """Receive off the hot paths; where this had to wait, the next ones on the same terms are a conversation."""
        descriptor = self._descriptor
        timeout_s = OWN_TIMEOUT if flags is _UNFLAGGED else timeout_of(flags)
        arguments = (bufsize, flags | DONTWAIT)
        data: bytes = transfer.receive(
            descriptor, "recv", "recv", arguments, Kept, _data_of, bufsize, has_tried, timeout_s
        )
        talk = self._talk
        if flags is _UNFLAGGED and (talk is None or talk.bufsize != bufsize):
            self._talk = transfer.converse(descriptor, bufsize, flags)
        return data or self._empty(data, bufsize)

    def _empty(self, data: bytes, bufsize: int) -> bytes:
        """Return an empty receive if it means what it should; b"" from recv(0) means nothing."""
        if bufsize:
            options.verdict_on_empty(self._descriptor)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; return how many bytes, 0 only for the peer's FIN. Errors as `recv`."""
        with memoryview(buffer) as whole:
            view = whole.cast("B") if whole.nbytes else whole
            limit = nbytes or whole.nbytes
            if nbytes < 0:
                raise ValueError("negative buffersize in recv_into")
            if limit > whole.nbytes:
                raise ValueError("buffer too small for requested bytes")

            def give(kept: Kept) -> int:
                view[: len(kept.data)] = kept.data
                return len(kept.data)

            count = transfer.receive(
                self._descriptor,
                "recv_into",
                "recv_into",
                (buffer, nbytes, flags | DONTWAIT),
                lambda count: Kept(bytes(view[:count])),
                give,
                limit,
                timeout_s=timeout_of(flags),
            )
        if not count and limit:
            options.verdict_on_empty(self._descriptor)
        return cast("int", count)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive at most `bufsize` bytes, and from where. Errors as `recv`."""
        data, address = transfer.receive(
            self._descriptor,
            "recvfrom",
            "recvfrom",
            (bufsize, flags | DONTWAIT),
            lambda result: Kept(*result),
            lambda kept: (kept.data, kept.address),
            bufsize,
            timeout_s=timeout_of(flags),
        )
        if not data and bufsize:
            options.verdict_on_empty(self._descriptor)
        return data, address

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive into a buffer; return how many bytes, and from where. Errors as `recv`."""
        with memoryview(buffer) as whole:
            view = whole.cast("B") if whole.nbytes else whole
            limit = nbytes or whole.nbytes
            if nbytes < 0:
                raise ValueError("negative buffersize in recvfrom_into")
            if limit > whole.nbytes:
                raise ValueError("nbytes is greater than the length of the buffer")

            def give(kept: Kept) -> tuple[int, Any]:
                view[: len(kept.data)] = kept.data
                return len(kept.data), kept.address

            count, address = transfer.receive(
                self._descriptor,
                "recvfrom_into",
                "recvfrom_into",
                (buffer, nbytes, flags | DONTWAIT),
                lambda result: Kept(bytes(view[: result[0]]), result[1]),
                give,
                limit,
                timeout_s=timeout_of(flags),
            )
        if not count and limit:
            options.verdict_on_empty(self._descriptor)
        return count, address

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """Receive data and ancillary data: (bytes, [(level, type, bytes)], flags, address). Errors as `recv`."""
        data, ancillary, msg_flags, address = transfer.receive(
            self._descriptor,
            "recvmsg",
            "recvmsg",
            (bufsize, ancbufsize, flags | DONTWAIT),
            lambda result: Kept(result[0], result[3], tuple(result[1]), result[2]),
            lambda kept: (kept.data, list(kept.ancillary), kept.flags, kept.address),
            bufsize,
            timeout_s=timeout_of(flags),
        )
        if not data and bufsize and not ancillary:
            options.verdict_on_empty(self._descriptor)
        return data, ancillary, msg_flags, address

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """Receive into several buffers, with ancillary data: (bytes, ancillary, flags, address). Errors as `recv`."""
        buffers = list(buffers)
        limit = sum(memoryview(buffer).nbytes for buffer in buffers)

        def keep(result: tuple[int, list[Any], int, Any]) -> Kept:
            flat = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
            return Kept(flat[: result[0]], result[3], tuple(result[1]), result[2])

        def give(kept: Kept) -> tuple[int, list[Any], int, Any]:
            left = memoryview(kept.data)
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                size = min(len(view), len(left))
                view[:size] = left[:size]
                left = left[size:]
            return len(kept.data), list(kept.ancillary), kept.flags, kept.address

        count, ancillary, msg_flags, address = transfer.receive(
            self._descriptor,
            "recvmsg_into",
            "recvmsg_into",
            (buffers, ancbufsize, flags | DONTWAIT),
            keep,
            give,
            limit,
            timeout_s=timeout_of(flags),
        )
        if not count and limit and not ancillary:
            options.verdict_on_empty(self._descriptor)
        return count, ancillary, msg_flags, address
