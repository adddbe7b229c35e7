"""The interrupt machine: KeyboardInterrupt at a chosen place of a call, by tracing its bytecodes.

Where a place is, is one of three rules:

- `at_signals`: where CPython looks for signals, in whatever code runs: at the end of each call, each jump backwards and
  each start of a function. Just what Ctrl-C can do.
- `EveryBytecode(directory)`: each bytecode of the files in a directory. Stricter than any signal; for code written to
  withstand it.
- `InstructionsOf(functions)`: each instruction of some functions that an exception can come before and be handled.
"""

from __future__ import annotations

import dis
import functools
import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["EveryBytecode", "InstructionsOf", "Interrupter", "Rule", "at_signals"]

# Whether an interrupt may fall before the bytecode at an offset: the offset before it (-1 at the start of a function),
# its own, and whether a function in Python has run in between.
Places = Callable[[int, int, bool], bool]
# What may be interrupted in a function; None: nothing.
Rule = Callable[[CodeType], Places | None]

_SIGNALS_ARE_SEEN_BEHIND: Final = ("RESUME", "CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")
_CALLED_BY_C: Final = ("__init__", "__new__")  # for an object's type is in C


@functools.cache
def at_signals(code: CodeType) -> Places:
    """Where the interpreter looks for signals.

    The next bytecode shows that it has come there, if the same handlers are in force for both. An interrupt before any
    other bytecode is none that can happen, and CPython's own books are not made for it. A call of a function in Python
    is no call of C's: there it looks at the start, and not when that returns.
    """
    names = {-1: "RESUME"} | {one.offset: one.opname for one in dis.get_instructions(code)}
    handlers = dict.fromkeys(names, -1)
    for region in dis._parse_exception_table(code):  # type: ignore[attr-defined]  # dis has no public name for it
        handlers.update(dict.fromkeys(range(region.start, region.end, 2), region.target))

    def is_seen(before: int, now: int, was_python: bool) -> bool:
        return (
            not was_python
            and names[before].startswith(_SIGNALS_ARE_SEEN_BEHIND)
            and handlers[before] == handlers[now]
            and not names[now].startswith("PUSH_EXC_INFO")  # the call has raised
        )

    return is_seen


class EveryBytecode:
    """Each bytecode of the functions of one directory's files."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __call__(self, code: CodeType) -> Places | None:
        return (lambda *_: True) if code.co_filename.startswith(self._directory) else None


class InstructionsOf:
    """Each instruction of some functions, but those that follow no place where signals are seen and that no handler
    covers: RETURN_VALUE, NOP (which marks a `try`), and those between entering or leaving a `with` block and its lock.
    """

    def __init__(self, *functions: Any) -> None:
        self._spared = {function.__code__: self._not_covered(function.__code__) for function in functions}

    def __call__(self, code: CodeType) -> Places | None:
        spared = self._spared.get(code)
        return None if spared is None else (lambda before, now, was_python: now not in spared)

    @staticmethod
    def _not_covered(code: CodeType) -> frozenset[int]:
        spared = set()
        has_entered = leaves = False
        for instruction in dis.get_instructions(code):
            name = instruction.opname
            is_none = name == "LOAD_CONST" and instruction.argval is None  # what __exit__ is called with
            leaves = is_none or (leaves and name in ("PRECALL", "CALL"))
            if has_entered or leaves or name.startswith(("RETURN", "NOP")):
                spared.add(instruction.offset)
            has_entered = name == "BEFORE_WITH"
        return frozenset(spared)


class Interrupter:
    """Raises KeyboardInterrupt at the nth place (from 0) of a call, in the calling thread, once.

    What runs inside a destructor does not count: an exception there is printed and goes nowhere, a signal's as well.

    Attributes:
        passed: how many places have gone by.
        where: "file:line function" of the interrupt; empty while there was none.
    """

    def __init__(self, nth: int, rule: Rule = at_signals) -> None:
        self._nth = nth
        self._rule = rule
        self.passed = 0
        self.where = ""
        # By frame, the offset of its last call of a function in C, and of the last one that made a frame in Python.
        self._called_c: dict[int, int] = {}
        self._called_python: dict[int, int] = {}

    @property
    def has_struck(self) -> bool:
        return bool(self.where)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        caller = frame.f_back
        if caller is not None and frame.f_code.co_name not in _CALLED_BY_C:
            self._called_python[id(caller)] = caller.f_lasti
        self._called_c.pop(id(frame), None)  # another frame's, which was at the same address
        self._called_python.pop(id(frame), None)
        places = None if self.where else self._rule(frame.f_code)
        if places is None or _is_in_destructor(frame):
            return None
        is_place = places
        last = -1  # the start of the function: RESUME, which has no event of its own everywhere

        def look(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            nonlocal last
            if event == "opcode":
                before, last = last, frame.f_lasti
                # Inside a call the offset is anywhere in its instruction, caches included.
                since = range(before, last)
                was_python = self._called_python.get(id(frame)) in since and self._called_c.get(id(frame)) not in since
                if not self.where and is_place(before, last, was_python):
                    if self.passed == self._nth:
                        self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                        raise KeyboardInterrupt(self.where)
                    self.passed += 1
            return look

        frame.f_trace = look  # 3.13 turns opcodes on when the trace function is set, not when it is returned
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return look

    def _note_c(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            self._called_c[id(frame)] = frame.f_lasti

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, bool]:
        """Call; return (value, False), or (None, True) when the interrupt came out."""
        gc.disable()  # when the collector runs is no part of the sweep
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # 3.12: some frame must have it when tracing begins
        try:
            sys.setprofile(self._note_c)
            sys.settrace(self)
            try:
                value = function(*arguments)
            finally:
                sys.settrace(before)
                sys.setprofile(None)
            return value, False
        except KeyboardInterrupt as error:
            error.__traceback__ = error.__context__ = None
            return None, True
        finally:
            gc.enable()


def _is_in_destructor(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
