"""Sockets among the arguments of a new process: the seam is the launch step of multiprocessing's start methods.

spawn and forkserver pickle the arguments while they launch: each SharedSocket among them becomes a ticket. fork
pickles nothing: here one ticket per SharedSocket reachable from the process object is issued before the fork and
redeemed, into the same objects, before the child runs a line of the user's. A raw os.fork passes nothing on.

Such a ticket has no clock. It ends with the process that launches, until the child's pid is known; then it is tied to
the child and ends with it. If the launch fails, it is taken back. So whoever dies when, no reference outlives its use.

Keeps I2: exactly one new reference per socket and child, or none.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

from sharedsock.descriptors import sharing
from sharedsock.descriptors.descriptor import Descriptor

__all__ = ["install", "keep_out"]

# A process object that reaches more than this is searched no further: sockets sit near its arguments.
_SEARCH_LIMIT: Final = 100_000
_CONTAINERS: Final = (list, tuple, set, frozenset, deque)
_OPAQUE: Final = (str, bytes, bytearray, int, float, complex, bool, type, types.ModuleType, threading.Thread)

_kept_out: tuple[type, ...] = ()

_seams: Final[dict[type, Callable[[Any, Any], None]]] = {}
_install_lock = threading.Lock()
_installed = False


def _renew_lock() -> None:
    global _install_lock
    _install_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class _Face(Protocol):
    _descriptor: Descriptor

    def _stand_on(self, descriptor: Descriptor) -> None: ...


def install(face: type) -> None:
    """Put the seam into multiprocessing, once per process.

    Args:
        face: the class whose instances are handed over; they keep a `Descriptor` in `_descriptor`.
    """
    global _installed
    if _is_installed():
        return
    with _install_lock:
        if _is_installed():  # another thread was faster
            return
        for name in ("popen_fork", "popen_spawn_posix", "popen_forkserver"):
            with suppress(ImportError):  # a platform without that start method
                launcher = importlib.import_module(f"multiprocessing.{name}").Popen
                if launcher in _seams:  # this is the child of a fork in the middle of an install
                    continue
                wrap = functools.partial(_wrap_fork, face=face) if name == "popen_fork" else _wrap_pickled
                _seams[launcher] = launcher._launch = wrap(launcher._launch)
        _installed = True


def keep_out(kind: type) -> None:
    """Hand nothing over that is only reachable through objects of a kind: it is no use in another process."""
    global _kept_out
    _kept_out += (kind,)


def _is_installed() -> bool:
    return _installed


def _wrap_pickled(launch: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    @functools.wraps(launch)
    def launch_and_bind(popen: Any, process: Any) -> None:
        tickets: list[bytes] = []
        child: int | None = None
        try:
            try:
                with sharing.minting(tickets):
                    launch(popen, process)
                child = popen.pid
            finally:
                sharing.settle(tickets, child)
        finally:  # an interrupt has cut the first one short
            sharing.settle(tickets, child)

    return launch_and_bind


def _wrap_fork(launch: Callable[[Any, Any], None], face: type) -> Callable[[Any, Any], None]:
    @functools.wraps(launch)
    def launch_with_tickets(popen: Any, process: Any) -> None:
        tickets: list[bytes] = []
        child: int | None = None
        try:
            try:
                with sharing.minting(tickets):
                    handed = [
                        (shared, sharing.mint(shared._descriptor))
                        for shared in _reachable(process, face)
                        if not shared._descriptor.is_closed
                    ]
                if handed:
                    process._bootstrap = functools.partial(_redeem_and_run, process, handed)
                launch(popen, process)
                child = popen.pid
            finally:
                process.__dict__.pop("_bootstrap", None)
                sharing.settle(tickets, child)
        finally:  # an interrupt has cut the first one short
            process.__dict__.pop("_bootstrap", None)
            sharing.settle(tickets, child)

    return launch_with_tickets


def _redeem_and_run(process: Any, tickets: list[tuple[_Face, bytes]], *arguments: Any, **options: Any) -> int:
    """In the forked child: put descriptors of its own into the sockets it was given, then run it."""
    process.__dict__.pop("_bootstrap", None)
    try:
        for shared, info in tickets:
            sharing.redeem(info, shared._stand_on)
    except OSError:
        # multiprocessing ends the child without a word when its bootstrap raises.
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return int(process._bootstrap(*arguments, **options))


def _reachable(process: Any, face: type) -> Iterator[Any]:
    """Yield each shared socket reachable from a process object: arguments, attributes, closures; each once."""
    seen: set[int] = set()
    todo: deque[Any] = deque(vars(process).values())
    while todo and len(seen) < _SEARCH_LIMIT:
        value = todo.popleft()
        if value is None or isinstance(value, _OPAQUE + _kept_out) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, face):
            yield value
            continue
        if isinstance(value, _CONTAINERS):
            todo.extend(value)
        elif isinstance(value, dict):
            todo.extend(value.keys())
            todo.extend(value.values())
        elif isinstance(value, functools.partial):
            todo.extend((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            todo.extend((value.__self__, value.__func__))
        elif isinstance(value, types.FunctionType):
            todo.extend((value.__defaults__, value.__kwdefaults__))
            todo.extend(_cell_contents(value))
        todo.extend(_attributes(value))


def _cell_contents(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # the cell is empty yet
            yield cell.cell_contents


def _attributes(value: Any) -> Iterator[Any]:
    """Yield what an instance keeps in its dictionary and its slots, without running any code of its class."""
    with suppress(AttributeError):
        yield object.__getattribute__(value, "__dict__")
    for kind in type(value).__mro__:
        for slot in kind.__dict__.values():
            if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins":
                with suppress(AttributeError):  # empty
                    yield slot.__get__(value, type(value))
