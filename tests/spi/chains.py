"""Layers and sockets for tests of chains under the Python face."""

from __future__ import annotations

import socket
from typing import Any

import sharedsock as ss
from sharedsock import spi
from sharedsock.spi.provider import Buffers

__all__ = ["Shouting", "pair"]


class Shouting(spi.LayeredProvider):
    """Sends in capitals: who receives them can tell that the chain was there."""

    def WSPSend(self, s: int, lpBuffers: Buffers, *more: Any) -> int:
        return super().WSPSend(s, [bytes(buffer).upper() for buffer in lpBuffers], *more)


def pair(listener_address: Any = ("127.0.0.1", 0)) -> tuple[ss.SharedSocket, socket.socket]:
    """A connected face, under which lies what is in use, and a plain peer."""
    with socket.create_server(listener_address) as door:
        face = ss.create_connection(door.getsockname())
        peer, _ = door.accept()
    peer.settimeout(60)
    return face, peer
