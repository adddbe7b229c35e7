"""Where things come from: which test, thread and line opened a socket or file, started a thread or a process.

The interpreter announces these by audit events (PEP 578), which no program has to be changed for. The hook looks at
the kinds it wants and at nothing else; outside a `Recording` it returns at once. It cannot be taken out again, so it
is put in once, by the first recording of a process.

The place is the innermost line that is neither the standard library's, nor an installed package's, nor ours: the line
somebody can change. A number that came without an event (os.pipe, os.dup, an extension) has no origin.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from time import time
from types import FrameType
from typing import Any, Final

__all__ = ["NOWHERE", "Origin", "Recording", "recordings"]

_MOST: Final = 4096
_STDLIB: Final = os.path.dirname(os.__file__) + os.sep
_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_is_foreign: Final[dict[str, bool]] = {}


@dataclass(frozen=True, slots=True)
class Origin:
    """One beginning.

    Attributes:
        test: what ran then; thread: the name of the thread that did it.
        place: "file:line in function".
        role: for a socket "accepted" or "connected" where the stdlib's own functions made it, else "".
    """

    test: str
    pid: int
    thread: str
    place: str
    at_s: float = 0.0
    role: str = ""


NOWHERE: Final = Origin("", 0, "", "")


class Recording:
    """Notes origins while it is on; `test` says what runs. Several may be on: each notes for itself."""

    def __init__(self, test: str = "") -> None:
        self.test = test
        # By id, newest first in place: an object's id is its own while it lives, and its successor overwrites it.
        self._sockets: dict[int, tuple[weakref.ref[Any] | None, Origin]] = {}
        self._threads: weakref.WeakKeyDictionary[threading.Thread, Origin] = weakref.WeakKeyDictionary()
        self._files: deque[tuple[str, Origin]] = deque(maxlen=_MOST)
        self._processes: deque[tuple[tuple[str, ...], Origin]] = deque(maxlen=_MOST)

    def start(self) -> None:
        """Note from now on."""
        if not _installed:
            _installed.append(True)
            sys.addaudithook(_hook)
            if sys.version_info < (3, 12):  # no audit event for threads yet
                _announce_threads()
        if self not in _recordings:
            _recordings.append(self)

    def stop(self) -> None:
        """Note no more; what was noted stays."""
        if self in _recordings:
            _recordings.remove(self)

    def begin(self, test: str) -> None:
        """Forget what has ended, and note for another test."""
        self.test = test
        self._files.clear()
        self._processes.clear()
        if len(self._sockets) > _MOST:
            self._sockets = {key: row for key, row in self._sockets.items() if row[0] is not None and row[0]()}

    def of_number(self, number: int) -> Origin | None:
        """Return the origin of the socket object that has a file number now."""
        for reference, origin in reversed(self._sockets.copy().values()):
            found = None if reference is None else reference()
            if found is not None and _number_of(found) == number:
                return origin
        return None

    def of_socket(self, made: object) -> Origin | None:
        """Return the origin of a socket object."""
        row = self._sockets.get(id(made))
        return None if row is None else row[1]

    def of_place(self, place: str) -> Origin | None:
        """Return the origin of the newest socket that was opened at a place."""
        for _, origin in reversed(self._sockets.copy().values()):
            if origin.place == place:
                return origin
        return None

    def of_file(self, path: str) -> Origin | None:
        """Return the origin of the newest opening of a path."""
        for opened, origin in reversed(self._files.copy()):
            if opened == path or os.path.abspath(opened) == path or os.path.realpath(opened) == path:
                return origin
        return None

    def of_thread(self, thread: threading.Thread) -> Origin | None:
        """Return where a thread was started."""
        return self._threads.get(thread)

    def of_process(self, command: tuple[str, ...], since_s: float) -> Origin | None:
        """Return where a child was started, by its command line and time; a fork of ours has our own command line."""
        is_fork = command == _own_command()
        rows = [
            origin
            for arguments, origin in self._processes.copy()
            if (is_fork if not arguments else arguments[1:] == command[1:])
        ]
        return min(rows, key=lambda origin: abs(origin.at_s - since_s), default=None)

    # -- what the hook calls ------------------------------------------------------------------------------------

    def _note(self, event: str, arguments: tuple[Any, ...], frame: FrameType) -> None:
        match event:
            case "socket.__new__":
                made = arguments[0]
                try:
                    reference: weakref.ref[Any] | None = weakref.ref(made)
                except TypeError:  # the C class: nobody but its maker has it
                    reference = None
                self._sockets.pop(id(made), None)
                self._sockets[id(made)] = reference, self._origin(frame, _role_of(frame))
            case "open":
                if isinstance(arguments[0], str | bytes):
                    self._files.append((os.fsdecode(arguments[0]), self._origin(frame)))
            case "subprocess.Popen" | "os.posix_spawn":
                words = arguments[1] if isinstance(arguments[1], list | tuple) else (arguments[1],)
                self._processes.append((tuple(os.fsdecode(word) for word in words), self._origin(frame)))
            case "os.fork" | "os.forkpty":
                self._processes.append(((), self._origin(frame)))
            case _:
                thread = getattr(arguments[0], "__self__", None)
                if isinstance(thread, threading.Thread):
                    self._threads[thread] = self._origin(frame)

    def _origin(self, frame: FrameType, role: str = "") -> Origin:
        return Origin(self.test, os.getpid(), _thread_name(), _place_of(frame), time(), role)


def _own_command() -> tuple[str, ...]:
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return tuple(os.fsdecode(word) for word in file.read().split(b"\0")[:-1])
    except OSError:
        return ()


_installed: Final[list[bool]] = []
_recordings: Final[list[Recording]] = []
_WANTED: Final = frozenset(
    {
        "socket.__new__",
        "open",
        "subprocess.Popen",
        "os.posix_spawn",
        "os.fork",
        "os.forkpty",
        "_thread.start_new_thread",
        "_thread.start_joinable_thread",
    }
)


def _hook(event: str, arguments: tuple[Any, ...], wanted: frozenset[str] = _WANTED) -> None:
    # An argument and no global: at its exit the interpreter goes on announcing when globals have gone.
    if event in wanted and _recordings:
        frame = sys._getframe(1)
        for recording in tuple(_recordings):
            recording._note(event, arguments, frame)


def _announce_threads() -> None:
    """Raise the event of 3.12 in 3.11: every `Thread.start` goes through this one name of its module."""
    start: Any = threading._start_new_thread  # type: ignore[attr-defined]

    def start_new_thread(function: Any, arguments: tuple[Any, ...], *keywords: Any) -> Any:
        sys.audit("_thread.start_new_thread", function, arguments, *(keywords or (None,)))
        return start(function, arguments, *keywords)

    threading._start_new_thread = start_new_thread  # type: ignore[attr-defined]


def _thread_name() -> str:
    # current_thread() would make a dummy object for a thread that threading does not know.
    thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]  # no public look-up
    return thread.name if thread is not None else f"thread {threading.get_native_id()}"


def _number_of(made: Any) -> int:
    try:
        return int(made.fileno())
    except (OSError, AttributeError, ValueError):
        return -1


def _place_of(frame: FrameType) -> str:
    innermost = frame
    found: FrameType | None = frame
    while found is not None:
        name = found.f_code.co_filename
        foreign = _is_foreign.get(name)
        if foreign is None:
            foreign = name.startswith((_STDLIB, _OURS, "<")) or "-packages" + os.sep in name
            _is_foreign[name] = foreign
        if not foreign:
            return f"{name}:{found.f_lineno} in {found.f_code.co_name}"
        found = found.f_back
    return f"{innermost.f_code.co_filename}:{innermost.f_lineno} in {innermost.f_code.co_name}"


def _role_of(frame: FrameType) -> str:
    found: FrameType | None = frame
    for _ in range(4):
        if found is None:
            break
        if found.f_code.co_name in _ROLES and found.f_code.co_filename.startswith((_STDLIB, _OURS)):
            return _ROLES[found.f_code.co_name]
        found = found.f_back
    return ""


_ROLES: Final = {"accept": "accepted", "create_connection": "connected", "socketpair": "half of a pair"}


def recordings() -> tuple[Recording, ...]:
    """Return the recordings that are on."""
    return tuple(_recordings)
