"""Which file numbers this process owns, and what a fork does to them.

Every number the data plane opens (sockets, wakers, epoll sets, kept files) is entered here under `gate`, which a
fork takes as well: so a forked child knows exactly which numbers it has inherited, and closes them at once. It
never calls epoll_ctl on them, they are the parent's. `calm` is a page the kernel wipes in a child (MADV_WIPEONFORK):
one look at a byte of it tells a fork, even one that ran no hook, and costs 22 ns where getpid() costs 190.

Keeps I5 (a number is closed once, by its owner, in the era it was opened in).
"""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from typing import Final

from sharedsock.kernel import system

__all__ = [
    "NEVER_CALM",
    "calm",
    "current_era",
    "disown",
    "drop_inherited",
    "gate",
    "is_forked",
    "open_reserve",
    "own",
    "owned",
    "release",
    "release_stray",
    "slot_of",
    "spend_reserve",
]

# calm[0] is 1 while this process is the one that imported us (or has since taken note of its fork);
# calm[number + 1] is 1 while a receive on that number may try before it waits; the last byte is always 0.
_SLOTS: Final = 1 << 16
NEVER_CALM: Final = _SLOTS - 1
_WIPE_ON_FORK: Final = 18


def _make_page() -> tuple[mmap.mmap, bool]:
    page = mmap.mmap(-1, _SLOTS, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_WIPE_ON_FORK)
    except (OSError, ValueError, AttributeError):
        wiped = False
    else:
        wiped = True
    page[0] = 1
    return page, wiped


calm, _page_is_wiped = _make_page()
gate = threading.RLock()

_owned: set[int] = set()
_era = 0
_pid = os.getpid()
_reserve = -1


def slot_of(number: int) -> int:
    """Return the byte of `calm` that belongs to a number; a number beyond the page never takes the fast path."""
    return number + 1 if 0 <= number < NEVER_CALM - 1 else NEVER_CALM


def current_era() -> int:
    """Return how many forks lie between this process and the one that imported us."""
    return _era


def is_forked() -> bool:
    """Tell whether this is a forked child that has not yet dropped what it inherited."""
    if _page_is_wiped:
        return not calm[0]
    return os.getpid() != _pid


def own(number: int) -> int:
    """Enter a number just opened; call it under `gate`, in the same breath as the opening."""
    _owned.add(number)
    return number


def owned() -> frozenset[int]:
    """Return the numbers owned now, for checks."""
    return frozenset(_owned)


def release(number: int, era: int) -> None:
    """Close a number, unless it belongs to an earlier era: then the fork has closed it, and it is a stranger's now."""
    if disown(number, era):
        with suppress(OSError):  # EBADF: closed behind our back; there is nothing left to give back
            system.close(number)


def disown(number: int, era: int) -> bool:
    """Take a number off the list for somebody who closes it himself; False: it belongs to an earlier era."""
    if era != _era or number not in _owned:
        return False
    _owned.discard(number)
    return True


def open_reserve() -> None:
    """Keep one number in reserve, so that a close can keep the real file although the table is full (EMFILE)."""
    global _reserve
    if _reserve < 0:
        with suppress(OSError):
            _reserve = system.open_dead_file()


def spend_reserve() -> bool:
    """Give the reserve number back to the table for the next open; tell whether there was one."""
    global _reserve
    number, _reserve = _reserve, -1
    if number < 0:
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
    global _owned, _era, _pid, gate
    gate = threading.RLock()
    inherited, _owned = _owned, set()
    _era += 1
    _pid = os.getpid()
    for number in inherited:
        with suppress(OSError):
            system.close(number)
    calm[0] = 1
