"""A layer that is a slow network: bandwidth, latency, jitter, short reads and writes, all from one seed.

    spi.WSCInstallProvider(Throttling, tcp, bytes_per_s=64_000, latency_s=0.02, jitter_s=0.01, most_bytes=512, seed=7)

Each transfer waits for its latency and for the bandwidth of what went before; a close of the handle in this process
ends the wait with 10004. Calls on a nonblocking socket are slowed as well: this is a slow stack, not a full queue.
The nth socket of a process draws the same numbers in every run: they come from the seed and the count of sockets.
"""

from __future__ import annotations

import random
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sharedsock.model.winsock import SOCK_STREAM, WSAEINTR
from sharedsock.spi.errors import WSAError
from sharedsock.spi.layered import Layer, LayeredProvider

if TYPE_CHECKING:
    from sharedsock.spi.overlapped import WSAOVERLAPPED, CompletionRoutine
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Buffers, Provider
    from sharedsock.spi.waits import WSATHREADID

__all__ = ["Throttling"]

_RECEIVING: Final = 0
_SENDING: Final = 1


class _Line(Layer):
    """One socket's line: when it is free again, and its numbers."""

    def __init__(self, provider: LayeredProvider, lower: int, info: WSAPROTOCOL_INFO) -> None:
        super().__init__(provider, lower, info)
        assert isinstance(provider, Throttling)
        self.random = provider.next_random()
        self.free_s = [0.0, 0.0]  # receiving, sending
        self.closed = threading.Event()


class Throttling(LayeredProvider):
    """Slows transfers that wait; requests are passed on as they are.

    Args:
        bytes_per_s: bandwidth of each direction; None, unlimited.
        latency_s, jitter_s: each transfer waits latency, and up to jitter more.
        most_bytes: a transfer moves at most so many bytes, from 1 on, drawn anew each time; None, unlimited.
        seed: of all that is drawn.
    """

    context_class: ClassVar[type[Layer]] = _Line

    def __init__(
        self,
        lower: Provider,
        lower_info: WSAPROTOCOL_INFO,
        bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        most_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(lower, lower_info)
        self._bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._most_bytes = most_bytes
        self._seed = seed
        self._drawn = 0

    def next_random(self) -> random.Random:
        """Return the numbers of the next socket."""
        self._drawn += 1
        return random.Random(f"{self._seed}/{self._drawn}")

    def give_back(self, layer: Layer) -> None:
        assert isinstance(layer, _Line)
        layer.closed.set()
        super().give_back(layer)

    def _take_turn(self, s: int, direction: int) -> _Line:
        """Wait until the line is free and the latency is over."""
        line = self.layer(s)
        assert isinstance(line, _Line)
        wait_s = max(0.0, line.free_s[direction] - monotonic())
        wait_s += self._latency_s + line.random.uniform(0.0, self._jitter_s)
        if wait_s and line.closed.wait(wait_s):
            raise WSAError(WSAEINTR, "this process has closed the handle while its line was taken")
        return line

    def _note(self, line: _Line, direction: int, count: int) -> None:
        if self._bytes_per_s:
            line.free_s[direction] = max(monotonic(), line.free_s[direction]) + count / self._bytes_per_s

    def _short(self, line: _Line, lpBuffers: Any) -> Any:
        """Return the beginning of the buffers that one transfer may move."""
        is_stream = line.info.iSocketType == SOCK_STREAM  # a message is not cut
        if self._most_bytes is None or not is_stream or not isinstance(lpBuffers, list | tuple):
            return lpBuffers
        left = line.random.randint(1, self._most_bytes)
        some = []
        for buffer in lpBuffers:
            try:
                whole = memoryview(buffer)
                view = whole.cast("B")[:left] if whole.nbytes else whole
            except (TypeError, BufferError):  # the provider below says what is wrong with it
                return lpBuffers
            left -= view.nbytes
            some.append(view)
            if not left:
                break
        return some

    # -- the transfers ---------------------------------------------------------------------------------------

    def WSPRecv(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> tuple[int, int]:
        if lpOverlapped is not None:
            return super().WSPRecv(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId)
        line = self._take_turn(s, _RECEIVING)
        count, flags = super().WSPRecv(s, self._short(line, lpBuffers), dwFlags)
        self._note(line, _RECEIVING, count)
        return count, flags

    def WSPSend(
        self,
        s: int,
        lpBuffers: Buffers,
        dwFlags: int = 0,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> int:
        if lpOverlapped is not None:
            return super().WSPSend(s, lpBuffers, dwFlags, lpOverlapped, lpCompletionRoutine, lpThreadId)
        line = self._take_turn(s, _SENDING)
        count = super().WSPSend(s, self._short(line, lpBuffers), dwFlags)
        self._note(line, _SENDING, count)
        return count
