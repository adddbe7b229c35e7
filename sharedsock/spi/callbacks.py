"""Calls that a provider makes back into its client, and what the client may not do meanwhile.

While an accept condition function runs, every WSP call of that thread is refused with 10036 and changes nothing
(CLOSE-7, CANCEL-7). A blocking hook, which Windows Sockets 1.1 programs install per thread, is called again and again
while one of their calls blocks; only from there, or from a signal handler, can a thread cancel its own blocking call.

Source: LPCONDITIONPROC (WSPAccept); LPBLOCKINGCALLBACK (WPUQueryBlockingCallback), LPWSPCANCELBLOCKINGCALL.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from sharedsock.model.winsock import WSAEINPROGRESS, WSAEINVAL
from sharedsock.spi.errors import WSAError

__all__ = [
    "Outstanding",
    "active",
    "blocking_hook",
    "cancel",
    "hooks",
    "in_callback",
    "outstanding",
    "refuse_nested",
    "run_hook",
    "set_blocking_hook",
]


active: set[int] = set()
"""Threads that are inside a condition function: the entry points ask `if active`."""

hooks: dict[int, tuple[Callable[[Any], bool], Any]] = {}
"""The blocking hooks of threads: the hot paths ask `if hooks`."""

_mine = threading.local()


@contextmanager
def in_callback() -> Iterator[None]:
    """Refuse this thread's calls while a callback of its client runs."""
    ident = get_ident()
    active.add(ident)
    try:
        yield
    finally:
        active.discard(ident)


def refuse_nested() -> None:
    """Refuse a call that a callback makes.

    Raises:
        WSAError: 10036, this thread is inside a callback.
    """
    if get_ident() in active:
        raise WSAError(WSAEINPROGRESS, "a callback of this thread is running: return from it first")


def set_blocking_hook(hook: Callable[[Any], bool] | None, context: Any = None) -> None:
    """Install this thread's blocking hook, or take it out.

    Args:
        hook: called while a call blocks; True: it has done something, and is called again at once.
    """
    if hook is None:
        hooks.pop(get_ident(), None)
    else:
        hooks[get_ident()] = hook, context


def blocking_hook() -> tuple[Callable[[Any], bool], Any] | None:
    """Return this thread's blocking hook and its context."""
    return hooks.get(get_ident()) if hooks else None


class Outstanding:
    """One blocking call of a thread that has a hook."""

    __slots__ = ("is_cancelled",)

    def __init__(self) -> None:
        self.is_cancelled = False


@contextmanager
def outstanding() -> Iterator[Outstanding]:
    """Have this thread's blocking call be the one that `cancel` means."""
    before = getattr(_mine, "call", None)
    call = _mine.call = Outstanding()
    try:
        yield call
    finally:
        _mine.call = before


def cancel() -> None:
    """Cancel this thread's blocking call.

    Raises:
        WSAError: 10022, there is none (CANCEL-2).
    """
    call: Outstanding | None = getattr(_mine, "call", None)
    if call is None:
        raise WSAError(WSAEINVAL, "no blocking call of this thread is outstanding")
    call.is_cancelled = True


def run_hook(call: Outstanding) -> None:
    """Call this thread's hook until it has nothing left to do, or has cancelled the call."""
    hook = blocking_hook()
    while hook is not None and not call.is_cancelled and hook[0](hook[1]):
        pass


def _forget_in_child() -> None:
    global _mine
    _mine = threading.local()
    active.clear()
    hooks.clear()


os.register_at_fork(after_in_child=_forget_in_child)
