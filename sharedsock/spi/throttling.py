"""A layer that is a slow network: bandwidth, latency, jitter, short reads and writes, all from one seed.

    spi.WSCInstallProvider(Throttling, tcp, bytes_per_s=64_000, latency_s=0.02, jitter_s=0.01, most_bytes=512, seed=7)

Each transfer waits for its latency and for the bandwidth of what went before; a close of the handle in this process
ends the wait with 10004. Calls on a nonblocking socket are slowed as well: this is a slow stack, not a full queue.
"""

from __future__ import annotations

from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sharedsock.model.winsock import SOCK_STREAM
from sharedsock.spi.layered import Layer, LayeredProvider
from sharedsock.spi.overlapped import WSAOVERLAPPED
from sharedsock.spi.seeded import SeededLayer, SeededProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Buffers, Provider

__all__ = ["Throttling"]

_RECEIVING: Final = 0
_SENDING: Final = 1
_TRANSFERS: Final = {"WSPRecv": _RECEIVING, "WSPRecvFrom": _RECEIVING, "WSPSend": _SENDING, "WSPSendTo": _SENDING}


class _Line(SeededLayer):
    """One socket's line: when it is free again."""

    def __init__(self, provider: LayeredProvider, lower: int, info: WSAPROTOCOL_INFO) -> None:
        super().__init__(provider, lower, info)
        self.free_s = [0.0, 0.0]  # receiving, sending


class Throttling(SeededProvider[_Line]):
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
        super().__init__(lower, lower_info, seed)
        self._bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._most_bytes = most_bytes

    def _take_turn(self, s: int, direction: int) -> _Line:
        """Wait until the line is free and the latency is over."""
        line = self.layer(s)
        wait_s = max(0.0, line.free_s[direction] - monotonic())
        line.pause(wait_s + self._latency_s + line.random.uniform(0.0, self._jitter_s))
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


def _slowed(name: str, direction: int) -> Callable[..., Any]:
    call = getattr(LayeredProvider, name)

    @wraps(call)
    def slowed(self: Throttling, s: int, lpBuffers: Buffers, *arguments: Any, **keywords: Any) -> Any:
        if any(isinstance(argument, WSAOVERLAPPED) for argument in (*arguments, *keywords.values())):
            return call(self, s, lpBuffers, *arguments, **keywords)
        line = self._take_turn(s, direction)
        moved = call(self, s, self._short(line, lpBuffers), *arguments, **keywords)
        self._note(line, direction, moved if isinstance(moved, int) else moved[0])
        return moved

    return slowed


for _name, _direction in _TRANSFERS.items():
    setattr(Throttling, _name, _slowed(_name, _direction))
