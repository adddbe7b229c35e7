"""Overlapped requests, as tests and their actors make them.

Functions that actors call are plain and picklable by name; an actor keeps its operations here, by name.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import sharedsock as ss
from sharedsock.descriptors import service
from sharedsock.registry import connect
from sharedsock.testing.commands import Belongings

PATIENCE_S: Final = 60.0
_begun: Final[dict[str, Any]] = {}


def begin(has: Belongings, name: str, call: str, *arguments: Any, on: str = "socket") -> bool:
    """In an actor: begin an operation; return whether it has ended."""
    _begun[name] = getattr(has.shared(on), f"begin_{call}")(*arguments)
    return bool(_begun[name].done())


def is_done(has: Belongings, name: str) -> bool:
    """In an actor: whether an operation has ended."""
    return bool(_begun[name].done())


def result_of(has: Belongings, name: str) -> Any:
    """In an actor: wait for an operation; return its result, or for an accept keep the client under that name."""
    value = _begun.pop(name).result(PATIENCE_S)
    if isinstance(value, tuple) and isinstance(value[0], socket.socket):
        has.sockets[name], value = value
    return value


def sent_by(has: Belongings, name: str) -> int:
    """In an actor: the bytes an aborted send says it has queued."""
    error = _begun.pop(name).exception(PATIENCE_S)
    assert isinstance(error, ss.OperationAborted), error
    return error.bytes_transferred


def close_and_wait(has: Belongings, name: str, on: str = "socket") -> float:
    """In an actor: close; return the seconds until an operation begun there has ended."""
    began_s = monotonic()
    has[on].close()
    _begun[name].exception(PATIENCE_S)
    return monotonic() - began_s


def error_of(operation: Future[Any]) -> Any:
    """Wait for the error of an operation and return it, without the frames that raised it."""
    error = operation.exception(PATIENCE_S)
    assert error is not None, operation
    return error


@contextmanager
def service_held() -> Iterator[None]:
    """Keep the service thread inside a callback, so that only those who begin requests serve them."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(_: Future[bytes]) -> None:
        inside.set()
        go_on.wait(PATIENCE_S)

    near, far = ss.socketpair()
    with near, far:
        near.begin_recv(1).add_done_callback(hold)
        far.send(b"x")
        assert inside.wait(PATIENCE_S)
        try:
            yield
        finally:
            go_on.set()


def service_threads() -> list[threading.Thread]:
    """Return the service threads of this process: at most one, by promise."""
    return [thread for thread in threading.enumerate() if thread.name == service.NAME and thread.is_alive()]


def wait_service_idle() -> None:
    """Wait until the service thread has ended for want of requests, and of channels."""
    connect.close_idle_clients()
    for thread in service_threads():
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the service thread does not end"
