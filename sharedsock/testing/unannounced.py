"""What no audit event tells: numbers from os.pipe, os.dup and their kin, and what multiprocessing starts.

While somebody wants to know, these functions have a stand-in in the module they are called through, which does what
they do and says what came of it. A name that was imported before (`from os import pipe`) stays what it was. What is
nobody's function, a number from C code or from whoever started the process, has no place that anybody could tell.

os.open and open() are announced by events, and os.fork is not to have a frame of ours in it.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, Final

from sharedsock.testing.loaded import loaded

__all__ = ["listen", "stop_listening"]

_OF_NUMBERS: Final = "pipe pipe2 dup dup2 openpty posix_openpt eventfd memfd_create pidfd_open timerfd_create".split(
    " "
)
_OF_PROCESSES: Final = "multiprocessing.process"

# The stdlib's own class, also where a test has put another one in its place: a detached number has no object any more.
_PlainSocket: Final[Any] = next(kind for kind in socket.socket.__mro__ if kind.__module__ == "socket")
_Tell = Callable[[int, FrameType], None]

# What stands where, and what it stands for: (owner, name) -> (the original, ours).
_standing: Final[dict[tuple[Any, str], tuple[Any, Any]]] = {}


def listen(tell_number: _Tell, tell_process: _Tell) -> None:
    """Tell of each number and each process from now on, with the frame that asked for it; again: whatever is new."""
    for name in _OF_NUMBERS:
        _stand_in(os, name, lambda original: _telling_numbers(original, tell_number))
    _stand_in(_PlainSocket, "detach", lambda original: _telling_numbers(original, tell_number))
    processes: ModuleType | None = loaded(_OF_PROCESSES)
    if processes is not None:  # importing it takes longer than most tests, and who starts one has imported it
        _stand_in(processes.BaseProcess, "start", lambda original: _telling_start(original, tell_process))


def stop_listening() -> None:
    """Put everything back; what somebody else has replaced meanwhile is his, and stays."""
    for (owner, name), (original, ours) in _standing.items():
        if getattr(owner, name) is ours:
            setattr(owner, name, original)
    _standing.clear()


def _stand_in(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    if (owner, name) not in _standing and hasattr(owner, name):
        original = getattr(owner, name)
        ours = functools.wraps(original)(make(original))
        ours.__module__ = (
            owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        )  # for pickle: os, not posix
        _standing[owner, name] = original, ours
        setattr(owner, name, ours)


def _telling_numbers(original: Any, tell: _Tell) -> Any:
    def opened(*arguments: Any, **words: Any) -> Any:
        result = original(*arguments, **words)
        for number in result if isinstance(result, tuple) else (result,):
            tell(number, sys._getframe(1))
        return result

    return opened


def _telling_start(original: Any, tell: _Tell) -> Any:
    def start(process: Any) -> None:
        original(process)
        tell(process.pid, sys._getframe(1))

    return start
