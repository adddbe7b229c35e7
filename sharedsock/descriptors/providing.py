"""THE PROVIDER SEAM: a chain of providers may lie under the Python face; neither face knows the other.

A descriptor that has one keeps it in `chain`, and its face goes through it; every other descriptor pays for one look
at an attribute when it is opened, and for nothing later. Between processes a chain is its text, import names and
parameters, in the registry's record of the socket. Who makes a chain of a text is the room above both faces: it is
imported by name, when the first chain is met.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Chain", "Wire", "chain_of", "current", "spelled"]

_MAKER: Final = "sharedsock.chaining"


class Wire(NamedTuple):
    """Plain sends and receives of a stream through a chain, as parts of a call of some kind.

    Attributes:
        receive: (kind, most bytes, seconds to wait or None) -> at least a byte, or b"" at the end.
        send: (kind, bytes, seconds to wait or None) -> how many there was room for.
    """

    receive: Callable[[str, int, float | None], bytes]
    send: Callable[[str, memoryview, float | None], int]


class Chain(Protocol):
    """Providers under the Python face.

    Attributes:
        text: its spelling, the same in every process.
        routes: by the number of an open descriptor, the way its face's calls go.
    """

    text: str
    routes: dict[Any, Any]

    def put_under(self, face: Any) -> None:
        """Have a face that has just got its descriptor go through the chain; where that fails, it is closed."""

    def wire_of(self, face: Any) -> Wire:
        """Return what carries TLS on a face that goes through the chain."""


current: Chain | None = None
"""What lies under the sockets that this process opens from now on."""


def chain_of(text: str) -> Chain:
    """Make a chain of its spelling.

    Raises:
        InvalidProvider: this process has not what it names.
    """
    return cast("Chain", importlib.import_module(_MAKER).chain_of(text))


def spelled(chain: Chain | None) -> str:
    """Return how a chain travels."""
    return "" if chain is None else chain.text
