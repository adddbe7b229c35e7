"""The memory sweep of some public calls, in a process of its own: python -m tests.sweeps.memory STRIDE FIRST NAME ...

Each call with its nth allocation failing, n = FIRST, FIRST + STRIDE … until it comes through untouched three times;
the names after the first begin at 0. Writes a line of JSON for what happens:

    ["try", name, n]            before each, so that whoever started us knows where the interpreter has died, if it does
    ["wrong", name, n, what]    something was lost or left, or an error is none that is documented
    ["theirs", name, n, what]   CPython's own books were torn; see `is_the_interpreters`
    ["end", name, n]            the first place beyond the call
"""

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own, for its tests
import gc
import json
import linecache
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import sharedsock as ss
from sharedsock.descriptors import service
from tests.sweeps.scenes import Outcome, Stage, belongings, plainly, play
from tests.sweeps.table import CALLS

MOST_ALLOCATIONS: Final = 6000
TORN: Final = 3
"""The status of a process that has lost something for good at its last place: another one goes on behind it."""
TAKING: Final = ("starmap(call, (arguments,))", "map(channel.recvmsg,", "starmap(kernel._accept,")
"""The lines of ours by which C takes something from the kernel and makes an object of it."""
_unraisable: list[str] = []


def note_unraisable(found: Any) -> None:
    """Keep what `Exception ignored in` would have said, but not CPython's word for a thread that never began."""
    if found.err_msg is not None and "thread started by" in found.err_msg:
        return
    _unraisable.append(f"{found.exc_type.__name__} in {found.object!r}")


class NotOurs(Exception):
    """CPython itself has lost something at this place: what is left of the scene says nothing about us."""


class Failing:
    """Makes a call with its nth allocation failing, and no other; notes where an error came from."""

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self.raised_in = ""
        self.is_theirs = False

    def __call__(self, call: Callable[[], Any]) -> Outcome:
        outcome = Outcome()
        gc.disable()
        try:
            _testcapi.set_nomemory(self._nth, self._nth + 1)
            try:
                value = call()
            finally:
                _testcapi.remove_mem_hooks()
            outcome.value = value
        except BaseException as error:
            self._look(error, error.__traceback__)
            outcome = Outcome(error=error)
        finally:
            gc.enable()
        if self.is_theirs:
            raise NotOurs(repr(outcome.error))
        return outcome

    def _look(self, error: BaseException, traceback: TracebackType | None) -> None:
        file, line, function = "", 0, ""
        while traceback is not None:
            code = traceback.tb_frame.f_code
            file, line, function = code.co_filename, traceback.tb_lineno, code.co_name
            traceback = traceback.tb_next
        self.raised_in = f"{file.rpartition('/')[2]}:{line} {function}"
        self.is_theirs = is_the_interpreters(error, file, line, function)


def is_the_interpreters(error: BaseException, file: str, line: int, function: str) -> bool:
    """Whether what is left behind an error is CPython's own doing, which we can neither see nor mend.

    - SystemError is its word for a C function that lost an exception, or forgot to set one.
    - A `with` of the stdlib may keep its lock, as under an interrupt.
    - A C call has taken a datagram, a client, a registry's answer from the kernel when it finds no room for the result.
    """
    return (
        isinstance(error, SystemError)
        or (file == threading.__file__ and function in ("__enter__", "__exit__", "wait"))
        or any(call in linecache.getline(file, line) for call in TAKING)
    )


def is_documented(error: BaseException | None) -> bool:
    """MemoryError, CPython's other words for it, or an OSError with its number."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("can't allocate ")  # a lock
    if isinstance(error, OSError):
        return error.errno is not None
    return error is None or isinstance(error, MemoryError | pickle.PicklingError)


def say(*words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def is_untouched(stage: Stage, name: str, nth: int) -> bool:
    """Play a call with one allocation failing, and say what was wrong; report whether it came through."""
    _unraisable.clear()
    say("try", name, nth)
    failing = Failing(nth)
    before = belongings(stage)
    error: BaseException | None
    try:
        error = play(stage, name, failing).error
        assert is_documented(error), f"undocumented: {error!r}"
        assert not _unraisable, _unraisable
    except Exception as failure:
        words = f"{type(failure).__name__}: {failure}"[:600]
        say("theirs" if isinstance(failure, NotOurs) else "wrong", name, nth, f"{words}; raised in {failing.raised_in}")
        if not isinstance(failure, NotOurs) or belongings(stage) != before:
            os._exit(TORN)
        return False
    return error is None and not failing.raised_in


def sweep(stage: Stage, name: str, first: int, stride: int) -> None:
    """Sweep one call."""
    play(stage, name, plainly)
    in_a_row = 0
    for nth in range(first, MOST_ALLOCATIONS, stride):
        # A call may bear a failing allocation (a cache that is not filled): twice in a row it has none left to fail.
        in_a_row = in_a_row + 1 if is_untouched(stage, name, nth) else 0
        if in_a_row == 3:
            say("end", name, nth)
            return
    say("wrong", name, MOST_ALLOCATIONS, "it never ends")


def main(stride: int, first: int, names: list[str]) -> None:
    """Sweep each of some calls."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = note_unraisable
    sys.setswitchinterval(10.0)  # allocations are counted in all threads: another one has its turn where this one waits
    vars(service)["_IDLE_S"] = 0.0
    ss.SharedSocket().close()
    with ss.Registry() as registry:
        registry.manager.refusals()
        stage = Stage(registry)
        for name in names:
            sweep(stage, name, first, stride)
            first = 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or CALLS)
