"""What layers that misbehave by chance stand on: numbers from one seed, and pauses that a close ends.

The nth socket of a process draws the same numbers in every run: they come from the seed and the count of sockets.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, cast

from sharedsock.model.winsock import WSAEINTR
from sharedsock.spi.errors import WSAError
from sharedsock.spi.layered import Layer, LayeredProvider

if TYPE_CHECKING:
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Provider

__all__ = ["SeededLayer", "SeededProvider"]


class SeededLayer(Layer):
    """The context of one handle.

    Attributes:
        random: this socket's numbers.
        closed: set once this process has closed the handle.
    """

    def __init__(self, provider: LayeredProvider, lower: int, info: WSAPROTOCOL_INFO) -> None:
        super().__init__(provider, lower, info)
        assert isinstance(provider, SeededProvider)
        self.random = provider.next_random()
        self.closed = threading.Event()

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            WSAError: 10004, this process has closed the handle meanwhile.
        """
        if seconds > 0 and self.closed.wait(seconds):
            raise WSAError(WSAEINTR, f"this process has closed the handle while {type(self.provider).__name__} held it")


L = TypeVar("L", bound=SeededLayer)


class SeededProvider(LayeredProvider, Generic[L]):
    """A layer whose sockets draw numbers.

    Args:
        seed: of all that is drawn.
    """

    context_class: ClassVar[type[Layer]] = SeededLayer

    def __init__(self, lower: Provider, lower_info: WSAPROTOCOL_INFO, seed: int) -> None:
        super().__init__(lower, lower_info)
        self._seed = seed
        self._drawn = 0

    def next_random(self) -> random.Random:
        """Return the numbers of the next socket."""
        self._drawn += 1
        return random.Random(f"{self._seed}/{self._drawn}")

    def layer(self, s: int) -> L:
        return cast("L", super().layer(s))

    def give_back(self, layer: Layer) -> None:
        assert isinstance(layer, SeededLayer)
        layer.closed.set()
        super().give_back(layer)
