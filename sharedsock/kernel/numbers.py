"""Which file numbers this process owns, and what a fork does to them.

Every number the data plane opens (sockets, wakers, epoll sets, kept files) is entered and closed here under `gate`,
which a fork takes as well: so a forked child knows exactly which numbers it has inherited, and closes them at once. It
never calls epoll_ctl on them, they are the parent's. `calm` is a page the kernel wipes in a child (MADV_WIPEONFORK):
one look at a byte of it tells a fork, even one that ran no hook. Through the page a look costs 22 ns, through a flag
of `flag_of` 12, and getpid() would cost 190.

Keeps I5 (a number is closed once, by its owner, in the era it was opened in).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from sharedsock.kernel import system

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "NEVER_CALM",
    "Flag",
    "calm",
    "current_era",
    "disown",
    "drop_inherited",
    "flag_of",
    "gate",
    "here",
    "is_forked",
    "open_reserve",
    "own",
    "owned",
    "release",
    "release_stray",
    "slot_of",
    "spend_reserve",
]

# calm[0] is 1 while this process is the one that imported us (or has since noted its fork), 0 where no page could tell;
# calm[number + 1] is 1 while a receive on that number may try before it waits; the last byte is always 0.
_SLOTS: Final = 1 << 16
NEVER_CALM: Final = _SLOTS - 1
_WIPE_ON_FORK: Final = 18


def _make_page() -> tuple[mmap.mmap, bool]:
    page = mmap.mmap(-1, _SLOTS, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        if not sys.platform.startswith("linux"):  # 18 means something else there, or nothing
            raise OSError
        page.madvise(_WIPE_ON_FORK)
    except (OSError, ValueError, AttributeError):
        is_wiped = False
    else:
        is_wiped = True
    page[0] = is_wiped
    return page, is_wiped


calm, _page_is_wiped = _make_page()

# The innermost lock: nobody takes another one while he holds it, and a fork takes it last. A destructor takes it too,
# on top of whatever this thread holds, so any other order could wait in a circle.
gate = threading.RLock()

_owned: Final[set[int]] = set()
_era = 0
_pid = os.getpid()
_reserve = -1
_reserve_identity: tuple[int, ...] = ()
_wants_reserve = False


def slot_of(number: int) -> int:
    """Return the byte of `calm` that belongs to a number.

    One beyond the page never takes the fast path; none does where a fork does not wipe the page.
    """
    return number + 1 if _page_is_wiped and 0 <= number < NEVER_CALM - 1 else NEVER_CALM


class Flag(Protocol):
    """A byte of `calm` as an object that is true or false with it."""

    def __bool__(self) -> bool: ...


class _Flags(dict[int, Flag]):
    def __missing__(self, slot: int) -> Flag:
        flag = self[slot] = cast("Flag", ctypes.c_bool.from_buffer(calm, slot))
        return flag


flag_of: Final[Callable[[int], Flag]] = _Flags().__getitem__
"""Return a byte of `calm` as a flag; there is one for each."""


here: Final[Flag] = flag_of(0)


def current_era() -> int:
    """Return how many forks lie between this process and the one that imported us."""
    return _era


def is_forked() -> bool:
    """Tell whether this is a forked child that has not yet dropped what it inherited."""
    if _page_is_wiped:
        return not calm[0]
    return os.getpid() != _pid


own: Final = _owned.add
"""Enter a number just opened; call it under `gate`, in the same breath as the opening."""


def owned() -> frozenset[int]:
    """Return the numbers owned now, for checks."""
    return frozenset(_owned)


def release(number: int, era: int, close: Callable[[], object] | None = None) -> bool:
    """Close a number, unless it belongs to an earlier era: then the fork has closed it, and it is a stranger's now.

    Args:
        close: closes it instead, where an object of the stdlib holds the number.

    Returns:
        Whether it was of this era, and is closed now.
    """
    # Off the list and closed in one piece: a child forked in between would inherit a number it does not know of, and
    # keep a socket open that everybody else has closed. At exit no fork can come, but a thread may have ended inside.
    gate_or_none: Any = nullcontext() if sys.is_finalizing() else gate
    with gate_or_none:
        if era != _era:
            return False
        _owned.discard(number)
        try:  # no object is made between the list and the close: a destructor that has no memory comes again (F-97)
            if close is None:
                system.close(number)
            else:
                close()
        except OSError:  # EBADF: closed behind our back; there is nothing left to give back
            pass
        if _wants_reserve and _reserve < 0:
            try:
                open_reserve()
            except MemoryError:  # the next number that is closed becomes the reserve
                pass
        return True


def disown(number: int, era: int) -> bool:
    """Take a number off the list for somebody who closes it himself; False: it belongs to an earlier era."""
    if era != _era:
        return False
    _owned.discard(number)
    return True


def open_reserve() -> None:
    """Keep one number in reserve, so that a close can keep the real file although the table is full (EMFILE)."""
    global _reserve, _reserve_identity, _wants_reserve
    _wants_reserve = True
    if _reserve < 0:
        with suppress(OSError):  # full now: the next number that is closed becomes the reserve
            _reserve = system.open_dead_file(0)
            _reserve_identity = system.file_identity(_reserve)


def spend_reserve() -> bool:
    """Give the reserve number back to the table for the next open; tell whether there was one."""
    global _reserve
    number, _reserve = _reserve, -1
    try:
        if number < 0 or system.file_identity(number) != _reserve_identity:
            return False  # somebody has closed it behind our back: the number may be a stranger's now
    except OSError:
        return False
    system.close(number)
    return True


def release_stray(number: int) -> None:
    """Close a number that came from elsewhere and was never entered; one that was entered has its owner."""
    if number not in _owned:
        with suppress(OSError):
            system.close(number)


def drop_inherited() -> None:
    """In a forked child: close every number of the parent's, and begin an era of our own. No other traffic."""
    global _era, _pid, gate
    gate = threading.RLock()
    inherited = tuple(_owned)
    _owned.clear()
    _era += 1
    _pid = os.getpid()
    for number in inherited:
        with suppress(OSError):
            system.close(number)
    calm[0] = _page_is_wiped
