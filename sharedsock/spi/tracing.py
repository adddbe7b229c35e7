"""A layer that tells who called what, with what result, and for how long.

    spi.WSCInstallProvider(Tracing, tcp)                       # a line per call, at this module's logger
    spi.WSCInstallProvider(Tracing, tcp, logger="my.tests")

Each line has the process, the thread, the handle, the call, what came of it and the milliseconds it took; a request is
told of when it is begun, with 997 if it is pending.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sharedsock.model.errors import wsa_name
from sharedsock.spi.errors import WSAError
from sharedsock.spi.layered import LayeredProvider
from sharedsock.spi.provider import CALLS_ON_A_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.provider import Provider

__all__ = ["Tracing"]


class Tracing(LayeredProvider):
    """Logs each call on a socket.

    Args:
        logger: the name of the logger; lines are of level INFO.
    """

    def __init__(self, lower: Provider, lower_info: WSAPROTOCOL_INFO, logger: str = __name__) -> None:
        super().__init__(lower, lower_info)
        self._logger = logging.getLogger(logger)

    def tell(self, call: str, s: Any, outcome: str, seconds: float) -> None:
        """Write one line."""
        thread = threading.current_thread().name
        self._logger.info("%d %s %s(%s) %s %.3f ms", os.getpid(), thread, call, s, outcome, seconds * 1000.0)


def _traced(name: str) -> Callable[..., Any]:
    call = getattr(LayeredProvider, name)

    @wraps(call)
    def traced(self: Tracing, s: Any, *arguments: Any, **keywords: Any) -> Any:
        began_s = perf_counter()
        outcome = "raised"
        try:
            value = call(self, s, *arguments, **keywords)
            outcome = "done" if value is None else f"= {value!r}"
            return value
        except WSAError as error:
            outcome = wsa_name(error.winerror)
            raise
        finally:
            self.tell(name, s, outcome, perf_counter() - began_s)

    return traced


for _name in (*CALLS_ON_A_SOCKET, "WSPSocket", "WSPSelect"):
    setattr(Tracing, _name, _traced(_name))
