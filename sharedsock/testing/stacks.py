"""Stacks on demand: a process of a run writes what its threads do into a file when a signal asks for it.

faulthandler writes the stacks from inside the signal, which works whatever Python code does or holds: a process that is
deadlocked, or busy in C, answers as well. Behind them the interpreter adds, where the main thread still runs handlers
(it does in every wait of Python's own), what only it knows: the threads' names, the operations that wait on shared
sockets, the test. The signal is a real-time one that nobody has a meaning for; it is sent to those only that catch it.

No thread does this: a thread of ours in every process would be one more for each leak check, and for each fork.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sharedsock.testing.loaded import loaded

__all__ = ["Look", "enroll", "look_at", "note_doing", "number_in", "withdraw"]

SIGNAL: Final = signal.SIGRTMAX - 3
_END: Final = "-- end of "
_ANSWER_S: Final = 3.0
_ENROLLED: Final[dict[str, int]] = {}
_called: Final[list[str]] = [""]
_doing: Final[list[str]] = [""]


def enroll(directory: str, name: str) -> None:
    """Let this process write its stacks into a run's directory when it is asked. Once per process and directory.

    Args:
        name: what the process is in the run: "controller", "gw0", "actor a".
    """
    _called[0] = name
    if directory in _ENROLLED:  # a forked child: the file is its parent's, the name its own
        return
    path = os.path.join(directory, f"stacks-{os.getpid()}")
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _ENROLLED[directory] = number
    _answer_into(number)


def number_in(directory: str) -> int:
    """Return the number of this process's file in a run's directory, -1 if there is none."""
    return _ENROLLED.get(directory, -1)


def withdraw(directory: str) -> None:
    """Answer no more, and close the file; a session within a session gives the signal back to the outer one."""
    number = _ENROLLED.pop(directory, -1)
    if number < 0:
        return
    faulthandler.unregister(SIGNAL)
    if _ENROLLED:
        _answer_into(next(reversed(_ENROLLED.values())))
    else:
        with suppress(ValueError):
            signal.signal(SIGNAL, signal.SIG_DFL)
    os.close(number)


def _answer_into(number: int) -> None:
    def add_what_python_knows(signum: int, frame: object) -> None:
        line = json.dumps(_knowledge())
        os.write(number, f"{line}\n{_END}{os.getpid()}\n".encode())

    faulthandler.unregister(SIGNAL)
    with suppress(ValueError):  # not the main thread: the stacks alone
        signal.signal(SIGNAL, add_what_python_knows)
    # chain: the handler above runs after the stacks are written.
    faulthandler.register(SIGNAL, file=number, all_threads=True, chain=True)


def note_doing(what: str) -> None:
    """Say what this process does now, for whoever asks for its stacks."""
    _doing[0] = what


def _knowledge() -> dict[str, Any]:
    threads = {str(thread.ident): thread.name for thread in threading.enumerate()}
    return {
        "pid": os.getpid(),
        "name": _called[0],
        "doing": _doing[0],
        "threads": threads,
        "natives": {str(thread.native_id): thread.name for thread in threading.enumerate()},
        "pending": _pending(),
    }


def _pending() -> list[dict[str, Any]]:
    """Return what waits on shared sockets; this process may hold any lock, so nothing here takes one."""
    table = loaded("sharedsock.descriptors.table")
    if table is None:
        return []
    from sharedsock.kernel.operations import pending

    rows = []
    for descriptor in table.open_descriptors():
        for operation in pending(descriptor.kernel):
            addresses: list[Any] = [None, None]
            for place, question in enumerate(("getsockname", "getpeername")):
                with suppress(OSError):
                    addresses[place] = _plain(getattr(descriptor.kernel, question)())
            rows.append(
                {
                    "thread": operation.thread,
                    "thread_id": operation.thread_id,
                    "kind": operation.kind,
                    "since_s": time.time() - operation.since_s,
                    "descriptor": descriptor.id,
                    "inode": os.fstat(descriptor.kernel.number).st_ino,
                    "opened_at": descriptor.opened_at,
                    "local": addresses[0],
                    "peer": addresses[1],
                }
            )
    return rows


def _plain(address: Any) -> Any:
    return list(address) if isinstance(address, tuple) else os.fsdecode(address)


@dataclass(slots=True)
class Look:
    """What one process answered.

    Attributes:
        stacks: faulthandler's text, threads by name where the process could tell them; "" if it did not answer.
        known: what the interpreter added; empty if it could not.
    """

    pid: int
    stacks: str = ""
    known: dict[str, Any] = field(default_factory=dict)


def look_at(pids: tuple[int, ...], directory: str) -> dict[int, Look]:
    """Ask processes for their stacks, all at once; those that do not answer in time have an empty look.

    A forked child writes into its parent's file, so of those that share a file one is asked after the other.
    """
    looks = {pid: Look(pid) for pid in pids}
    waiting = [(pid, path) for pid in pids if _catches(pid) and (path := _file_of(pid, directory))]
    while waiting:
        asked: dict[str, tuple[int, int]] = {}
        for pid, path in waiting:
            if path not in asked and (size := _ask(pid, path)) is not None:
                asked[path] = pid, size
        answered_or_not = {pid for pid, _ in asked.values()} | {pid for pid, path in waiting if path not in asked}
        waiting = [(pid, path) for pid, path in waiting if pid not in answered_or_not]
        deadline_s = time.monotonic() + _ANSWER_S
        while asked:
            for path, (pid, start) in tuple(asked.items()):
                text = _read_from(path, start)
                if f"{_END}{pid}\n" in text or time.monotonic() > deadline_s:
                    del asked[path]
                    looks[pid] = _parsed(pid, text)
            if asked:
                select.poll().poll(5)
    return looks


def _catches(pid: int) -> bool:
    """Whether a process has a handler for the signal; without one it would end by it."""
    with suppress(OSError, StopIteration):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            mask = next(line for line in file if line.startswith("SigCgt:"))
        return bool(int(mask.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False


def _file_of(pid: int, directory: str) -> str | None:
    prefix = os.path.join(directory, "stacks-")
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith(prefix):
                    return target
    return None


def _ask(pid: int, path: str) -> int | None:
    """Send the signal; return where in the file the answer begins, None if the process has gone.

    A stranger that has its number by now would end by the signal: who it goes to is looked at once the pidfd is open.
    """
    with suppress(OSError):
        size = os.path.getsize(path)
        if pid == os.getpid():
            signal.raise_signal(SIGNAL)
            return size
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError) as error:
            if isinstance(error, ProcessLookupError):
                return None
            pidfd = -1  # Linux before 5.3
        try:
            if not (_catches(pid) and _file_of(pid, os.path.dirname(path)) == path):
                return None
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, SIGNAL)
            else:
                os.kill(pid, SIGNAL)
            return size
        finally:
            if pidfd >= 0:
                os.close(pidfd)
    return None


def _read_from(path: str, start: int) -> str:
    with suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            return file.read()
    return ""


def _parsed(pid: int, text: str) -> Look:
    text = text.partition(f"{_END}{pid}\n")[0]
    stacks, known = text, {}
    head, newline, last = text.rstrip("\n").rpartition("\n")
    if last.startswith("{"):
        with suppress(ValueError):
            known = json.loads(last)
            stacks = head + newline
    return Look(pid, _trimmed(stacks, known.get("threads", {})), known)


def _trimmed(stacks: str, names: dict[str, str]) -> str:
    """Name the threads, and leave out what lies below a test or an actor: how pytest and multiprocessing got there."""
    lines = []
    is_below = False
    for line in stacks.splitlines():
        head = re.match(r"(?:Current thread|Thread) 0x([0-9a-f]+)", line)
        if head:
            is_below = False
            line = f"thread {names.get(str(int(head[1], 16)), '0x' + head[1])} (most recent call first):"
        elif not is_below and _PLUMBING.search(line):
            is_below = True
            lines.append("  ...")
        if line and not is_below:
            lines.append(line)
    return "\n".join(lines)


_PLUMBING: Final = re.compile(
    r"/_pytest/python\.py|/pluggy/|/execnet/|/testing/acting\.py|/multiprocessing/(?:process|spawn|forkserver)\.py"
)
