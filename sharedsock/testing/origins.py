"""Where things come from: which test, thread and line opened a socket or file, started a thread or a process.

The interpreter announces these by audit events (PEP 578), which no program has to be changed for. The hook looks at
the kinds it wants and at nothing else; outside a `Recording` it returns at once. It cannot be taken out again, so it
is put in once, by the first recording of a process.

The place is the innermost line that is neither the standard library's, nor an installed package's, nor ours: the line
somebody can change. What comes without an event (os.pipe, os.dup, multiprocessing) is told by `unannounced`; a number
that C code has opened, or that was there when the process began, has no origin.
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

from sharedsock.testing.collected import add_places, stop_adding
from sharedsock.testing.unannounced import listen, stop_listening

__all__ = ["NOWHERE", "Origin", "Recording", "recordings"]

_MOST: Final = 4096
_AT_ONCE_S: Final = 0.5  # between what was noted of a process and its start as the kernel has it, in ticks of 10 ms
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
        # By number, with what the number was then: it may be something else by now.
        self._numbers: dict[int, tuple[tuple[int, int], Origin]] = {}
        self._pids: dict[int, Origin] = {}
        self._trim_above = _MOST
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
        _listen()

    def stop(self) -> None:
        """Note no more; what was noted stays."""
        if self in _recordings:
            _recordings.remove(self)
        if not _recordings:
            stop_listening()
            stop_adding()

    def begin(self, test: str) -> None:
        """Note for another test from now on."""
        self.test = test
        _listen()

    def of_number(self, number: int) -> Origin | None:
        """Return the origin of what has a file number now: of its socket object, its path, or the number itself."""
        for reference, origin in reversed(self._sockets.copy().values()):
            found = None if reference is None else reference()
            if found is not None and _number_of(found) == number:
                return origin
        path = _path_of(number)
        noted = self._numbers.get(number)
        if path and (opened := self.of_file(path)) is not None:
            return opened
        return noted[1] if noted is not None and noted[0] == _identity(number) else None

    def of_object(self, made: object) -> Origin | None:
        """Return the origin of a socket, or of an open file."""
        row = self._sockets.get(id(made))
        if row is not None and row[0] is not None:
            found = row[0]()
            if found is None or found is made:  # None: it is being collected, with a cycle it is in
                return row[1]
        name = getattr(made, "name", None)
        return self.of_number(name) if isinstance(name, int) else self.of_file(str(name)) if name else None

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

    def of_process(self, pid: int, command: tuple[str, ...], since_s: float) -> Origin | None:
        """Return where a child was started: by its number, its command line and its time.

        Args:
            command: () of one that has ended. One that was forked may have our own, or may have become a program since.
        """
        told = self._pids.get(pid)
        if told is not None and abs(told.at_s - since_s) < _AT_ONCE_S:
            return told
        rows = self._processes.copy()
        likely = [origin for words, origin in rows if words and command and words[1:] == command[1:]]
        likely = likely or [
            origin for words, origin in rows if not (words and command) and abs(origin.at_s - since_s) < _AT_ONCE_S
        ]
        return min(likely, key=lambda origin: abs(origin.at_s - since_s), default=None)

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
                if len(self._sockets) > self._trim_above:
                    self._trim()
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

    def _note_number(self, number: int, frame: FrameType) -> None:
        identity = _identity(number)
        if identity is not None:
            self._numbers[number] = identity, self._origin(frame)

    def _note_process(self, pid: int, frame: FrameType) -> None:
        self._pids[pid] = self._origin(frame)
        if len(self._pids) > _MOST:
            del self._pids[next(iter(self._pids))]

    def _trim(self) -> None:
        self._sockets = {key: row for key, row in self._sockets.items() if row[0] is not None and row[0]() is not None}
        self._trim_above = max(_MOST, 2 * len(self._sockets))

    def _origin(self, frame: FrameType, role: str = "") -> Origin:
        return Origin(self.test, os.getpid(), _thread_name(), _place_of(frame), time(), role)


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
        frame = sys._getframe().f_back
        if frame is not None:  # the interpreter itself opens a program's file
            for recording in tuple(_recordings):
                recording._note(event, arguments, frame)


def _listen() -> None:
    listen(_note_number, _note_process)
    add_places(_opened_at)


def _note_number(number: int, frame: FrameType) -> None:
    for recording in tuple(_recordings):
        recording._note_number(number, frame)


def _note_process(pid: int, frame: FrameType) -> None:
    for recording in tuple(_recordings):
        recording._note_process(pid, frame)


def _opened_at(made: object) -> str:
    """Return where a socket or file was opened, and by which test; "" where no recording knows it."""
    for recording in tuple(_recordings):
        origin = recording.of_object(made)
        if origin is not None:
            return origin.place + (f" by {origin.test}" if origin.test else "")
    return ""


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


def _path_of(number: int) -> str:
    """Return the path of an open file; of one that never had a name (O_TMPFILE) its directory, which was opened."""
    try:
        path = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""
    if not path.startswith("/"):
        return ""
    path = path.removesuffix(" (deleted)")
    return os.path.dirname(path) if os.path.basename(path).startswith("#") else path


def _identity(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except (OSError, OverflowError):
        return None
    return status.st_dev, status.st_ino


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
