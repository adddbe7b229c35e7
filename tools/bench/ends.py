"""The ends of a connection that is measured: a plain socket's, or one of two kinds of ours."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import sharedsock as ss

__all__ = ["OURS", "make", "own"]

# A socket this process has opened, and one it has redeemed, which others may hold as well.
OURS: Final = ("opened", "redeemed")


def make(contender: str, family: int) -> Any:
    """Open a stream socket as the contender would."""
    return ss.SharedSocket(family) if contender in OURS else socket.socket(family)


def own(contender: str, connection: Any) -> Any:
    """Return a connected socket, or with "redeemed" another descriptor of it, after which the first is closed."""
    if contender != "redeemed":
        return connection
    with connection:
        return ss.fromshare(connection.share(os.getpid()))
