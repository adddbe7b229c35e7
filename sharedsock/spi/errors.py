"""The one error of this face: `WSAError`, raised where a provider would return SOCKET_ERROR and set *lpErrno.

What the rooms below raise is translated here, once: their WSA number is the code, their facts stay attributes, and
they are the cause. So 10004 by a close, which has `closed_by`, can be told from 10004 by a cancelled call (11-A).
"""

from __future__ import annotations

import errno
import socket
from concurrent.futures import CancelledError
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from sharedsock.model.errors import SharedSocketError, with_winerror, wsa_errno, wsa_meaning
from sharedsock.model.winsock import WSA_OPERATION_ABORTED, WSAEFAULT, WSAEINVAL, WSAETIMEDOUT, WSAEWOULDBLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.overlapped import Operation

__all__ = ["WSAError", "outcome_of", "speaks_winsock", "translated"]

P = ParamSpec("P")
R = TypeVar("R")

_FACTS: Final = ("operation", "bytes_transferred", "closed_by")


class WSAError(SharedSocketError):
    """A call has failed.

    Attributes:
        winerror: the code, as in winsock2.h (`sharedsock.model.winsock` has the names).
        closed_by: who closed the descriptor, where that ended the call; None otherwise.
        bytes_transferred: what an ended send had queued.
    """

    closed_by: str | None = None
    bytes_transferred: int = 0

    def __init__(self, code: int, message: str | None = None, **facts: Any) -> None:
        super().__init__(wsa_meaning(code) if message is None else message, winerror=code, **facts)
        self.errno = wsa_errno(code)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.winerror, self.strerror or "", dict(self.__dict__))


def _restore(code: int, message: str, facts: dict[str, Any]) -> WSAError:
    error = WSAError(code, message)
    error.__dict__.update(facts)
    return error


def translated(error: OSError) -> WSAError:
    """Return the error an SPI client gets for what the rooms below have raised."""
    if isinstance(error, WSAError):
        return error
    if isinstance(error, socket.gaierror):
        return WSAError(WSAEFAULT, f"no address: {error.strerror}")
    if isinstance(error, TimeoutError) and error.errno is None:
        return WSAError(WSAETIMEDOUT)
    if error.errno == errno.EINPROGRESS:  # what POSIX calls a connect that is under way
        return WSAError(WSAEWOULDBLOCK, "the connection attempt is under way")
    facts = {name: getattr(error, name) for name in _FACTS if hasattr(error, name)}
    code = vars(with_winerror(error)).get("winerror", WSAEINVAL)
    return WSAError(code, error.strerror or str(error), **facts)


def outcome_of(operation: Operation[R]) -> tuple[int, R | None]:
    """Return (error, value) of an operation below that has ended.

    It asks for the exception and has it not raised: with a traceback, whose frames have the operation, it would be a
    cycle, and keep what a closed descriptor leaves until the collector comes.
    """
    try:
        failure = operation.exception()
    except CancelledError:
        return WSA_OPERATION_ABORTED, None
    if isinstance(failure, OSError):
        return translated(failure).winerror, None
    return 0, operation.result()


def speaks_winsock(call: Callable[P, R]) -> Callable[P, R]:
    """Have a provider's call raise `WSAError` and nothing else for what the rooms below raise."""

    @wraps(call)
    def translating(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return call(*arguments, **keywords)
        except WSAError:
            raise
        except OSError as error:
            raise translated(error) from error

    return translating
