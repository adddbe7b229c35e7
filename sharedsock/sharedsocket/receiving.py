"""Receiving: two hot paths, each line measured, and what is rare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sharedsock.descriptors import options, transfer
from sharedsock.descriptors.transfer import OWN_TIMEOUT, Kept, data_of
from sharedsock.kernel import operations
from sharedsock.kernel.conversation import BUSY, faces
from sharedsock.kernel.numbers import here
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket
from sharedsock.sharedsocket.base import SocketBase, timeout_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sharedsock.kernel.conversation import Conversation

__all__ = ["Receiving"]


class _Unflagged(int):
    """The flags of a caller who gave none; MSG_DONTWAIT from a caller is an equal number, and another object."""


_UNFLAGGED: Final = _Unflagged(DONTWAIT)


def _room(buffer: Any, nbytes: int, call: str, too_small: str) -> tuple[memoryview, int]:
    """Return a view of a buffer's bytes, and how many of them a receive may fill.

    The view ends with the last reference to it. Behind a receive there must be no call before its result is returned,
    not even __exit__: an interrupt at its end would lose what was received (rule 3).
    """
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {call}")
    with memoryview(buffer) as whole:
        limit = nbytes or whole.nbytes
        if limit > whole.nbytes:
            raise ValueError(too_small)
        return whole.cast("B") if whole.nbytes else memoryview(b""), limit


class Receiving(SocketBase):
    """The calls that receive."""

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = _UNFLAGGED, /) -> bytes:
        """Receive at most `bufsize` bytes; b"" on a stream only ever means the peer's FIN.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; no byte was taken (10004).
            NotASocket: closed before (10038). TimeoutError (10060). ConnectionResetError (10054).
            ConnectionRefusedError: an earlier datagram was refused (10061); of all sharers the first to ask is told.
            BrokenPipeError: the socket was shut down for receiving (10058).

        Source: LPWSPRECV; "Closing Sockets".
        """
        # The hot paths, each line measured: data is ready; and conversations, where each receive waits, in the kernel
        # itself or by polling first. All are one frame; what is rare goes on in _receive.
        if flags is _UNFLAGGED:
            try:
                if self._calm:
                    data = self._kernel.recv(bufsize, flags)
                    if data:
                        return data
                    return self._empty(data, bufsize)
                talk = self._talk
                if talk.size == bufsize and here and trace.hook is None:
                    arrivals = talk.arrivals
                    try:
                        talk.size = BUSY
                        for data in arrivals:
                            talk.size = size = talk.next
                            if size == bufsize and data:
                                return data
                            break
                        else:
                            data = talk.renew()
                            talk.size = talk.next
                    except BlockingIOError:  # a moment has passed
                        talk.leave()
                        arrivals = None  # type: ignore[assignment]  # says that we wait elsewhere
                        return self._go_on(talk, bufsize, flags)
                    except BaseException as error:
                        talk.leave()
                        if talk.kernel.is_buried and isinstance(error, OSError):  # the call met the dead file
                            raise talk.aborted() from None
                        raise
                    if talk.kernel.closers:
                        operations.tell_closers(talk.kernel)
                    return data or self._empty(data, bufsize)
                if talk.polled == bufsize and here and trace.hook is None:
                    arrivals = talk.arrivals
                    try:
                        talk.polled = BUSY
                        talk.wait()
                        talk.polled = size = talk.next
                        if size != bufsize and talk.kernel.aborted is not None:
                            raise talk.aborted()
                    except BaseException:
                        talk.leave()
                        raise
                    try:
                        for data in arrivals:
                            if data:
                                return data
                            return self._empty(data, bufsize)
                        data = talk.renew()
                    except BlockingIOError:  # another thread or process was faster
                        arrivals = None  # type: ignore[assignment]  # as above
                        return self._go_on(talk, bufsize, flags)
                    return data or self._empty(data, bufsize)
            except BlockingIOError:
                return self._receive(bufsize, flags, has_tried=True)
            except OSError as error:
                raise transfer.settle(self._descriptor, self._kernel, error) from None
        return self._receive(bufsize, flags)

    def _receive(
        self, bufsize: int, flags: int, has_tried: bool = False, timeout_s: float | None = OWN_TIMEOUT
    ) -> bytes:
        """Receive off the hot paths; where the last ones had to wait, the next ones like it are a conversation."""
        descriptor = self._descriptor
        if flags is not _UNFLAGGED:
            timeout_s = timeout_of(flags)
        arguments = (bufsize, flags | DONTWAIT)
        if flags is _UNFLAGGED and not self._calm and not descriptor.kernel.waiters:
            talk = self._talk
            if bufsize not in (talk.size, talk.polled):
                # Before this one: behind it, an interrupt would lose what it took.
                self._talk = transfer.converse(descriptor, bufsize, flags)
        data: bytes = transfer.receive(
            descriptor, "recv", "recv", arguments, Kept, data_of, bufsize, has_tried, timeout_s
        )
        return data or self._empty(data, bufsize)

    def _go_on(self, talk: Conversation, bufsize: int, flags: int) -> bytes:
        """Go on with a receive that has waited in a conversation, in vain so far: a close ends it, and refuses none."""
        try:
            return self._receive(bufsize, flags, True, talk.left_s())
        except NotASocket:
            if talk.kernel.aborted is None:
                raise
            raise talk.aborted() from None

    def _empty(self, data: bytes, bufsize: int) -> bytes:
        """Return an empty receive if it means what it should; b"" from recv(0) means nothing."""
        if bufsize:
            options.verdict_on_empty(self._descriptor)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; return how many bytes, 0 only for the peer's FIN. Errors as `recv`."""
        view, limit = _room(buffer, nbytes, "recv_into", "buffer too small for requested bytes")

        def give(kept: Kept) -> int:
            view[: len(kept.data)] = kept.data
            return len(kept.data)

        count: int
        try:
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
        except BaseException:  # or the traceback would keep the buffer from being resized
            view.release()
            raise
        if not count and limit:
            options.verdict_on_empty(self._descriptor)
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive at most `bufsize` bytes, and from where. Errors as `recv`."""
        result: tuple[bytes, Any] = transfer.receive(
            self._descriptor,
            "recvfrom",
            "recvfrom",
            (bufsize, flags | DONTWAIT),
            lambda result: Kept(*result),
            lambda kept: (kept.data, kept.address),
            bufsize,
            timeout_s=timeout_of(flags),
        )
        if bufsize and not result[0]:
            options.verdict_on_empty(self._descriptor)
        return result  # no new tuple: where there is no memory for one, what was received would be lost

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive into a buffer; return how many bytes, and from where. Errors as `recv`."""
        view, limit = _room(buffer, nbytes, "recvfrom_into", "nbytes is greater than the length of the buffer")

        def give(kept: Kept) -> tuple[int, Any]:
            view[: len(kept.data)] = kept.data
            return len(kept.data), kept.address

        try:
            result: tuple[int, Any] = transfer.receive(
                self._descriptor,
                "recvfrom_into",
                "recvfrom_into",
                (buffer, nbytes, flags | DONTWAIT),
                lambda result: Kept(bytes(view[: result[0]]), result[1]),
                give,
                limit,
                timeout_s=timeout_of(flags),
            )
        except BaseException:  # or the traceback would keep the buffer from being resized
            view.release()
            raise
        if limit and not result[0]:
            options.verdict_on_empty(self._descriptor)
        return result

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """Receive data and ancillary data: (bytes, [(level, type, bytes)], flags, address). Errors as `recv`."""
        result: tuple[bytes, list[Any], int, Any] = transfer.receive(
            self._descriptor,
            "recvmsg",
            "recvmsg",
            (bufsize, ancbufsize, flags | DONTWAIT),
            lambda result: Kept(result[0], result[3], tuple(result[1]), result[2]),
            lambda kept: (kept.data, list(kept.ancillary), kept.flags, kept.address),
            bufsize,
            timeout_s=timeout_of(flags),
        )
        if bufsize and not result[0] and not result[1]:
            options.verdict_on_empty(self._descriptor)
        return result

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

        result: tuple[int, list[Any], int, Any] = transfer.receive(
            self._descriptor,
            "recvmsg_into",
            "recvmsg_into",
            (buffers, ancbufsize, flags | DONTWAIT),
            keep,
            give,
            limit,
            timeout_s=timeout_of(flags),
        )
        if limit and not result[0] and not result[1]:
            options.verdict_on_empty(self._descriptor)
        return result


faces.add(Receiving.recv.__code__)
