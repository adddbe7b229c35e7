"""WHAT ALL SHARERS AGREE ON: the common state of each socket, and the memory page that shows it without a call.

One memfd per registry, 16 bytes per slot, 65,536 slots, sparse. The registry maps it writable and alone; then it is
sealed against growing, shrinking and any further writable mapping, and its descriptor goes to every client in the
handshake: a client can read what all agree on, and change it only by a request the registry has checked (S-14).

A slot is one 64-bit word, written by one aligned store, and a reader takes it by one aligned load: a reader sees the
state before or after a change, never a mixture. The second word counts changes.
Which slot belongs to which socket is the ledger's business.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = ["PAGE_SIZE", "SLOTS", "SLOT_SIZE", "CommonState", "PageReader", "PageWriter"]

SLOTS: Final = 65_536
SLOT_SIZE: Final = 16
PAGE_SIZE: Final = SLOTS * SLOT_SIZE
_WORDS: Final = SLOT_SIZE // 8

# Linux 5.1: F_SEAL_FUTURE_WRITE leaves the mappings that exist writable and allows no new one. The fcntl module of
# CPython 3.11 and 3.12 has no name for it. The other seals stop truncation, which would be SIGBUS at every reader.
_F_SEAL_FUTURE_WRITE: Final = 0x0010


@dataclass(frozen=True, slots=True)
class CommonState:
    """What the kernel does not keep and every sharer must see alike.

    Attributes:
        shut_receive, shut_send: a holder has shut that direction down (felt by all, DUP-18).
        reset_seen: some holder's thread has read the reset; it is one still for all others.
        nonblocking: the blocking mode as the SPI sees it (FIONBIO, DUP-17).
        linger_s: seconds of LINGER(t), at most 65,535; 0 resets, None is DONTLINGER.
        linger_kept_s: while that is None, the seconds set last, which DONTLINGER(FALSE) reinstates (LINGER-10).
        has_port: somebody has associated the socket with a completion port (DUP-26).
        events: the one event registration: pid of its owner << 6 | mask of FD_* (EVENT-1); 0 is none.
    """

    shut_receive: bool = False
    shut_send: bool = False
    reset_seen: bool = False
    nonblocking: bool = False
    linger_s: int | None = None
    linger_kept_s: int | None = None
    has_port: bool = False
    events: int = 0

    @property
    def events_pid(self) -> int:
        """The process whose event registration it is; 0: there is none."""
        return self.events >> 6


# The word, from its low end: 8 flags, 16 bits of linger seconds, 8 unused, 32 of the event registration.
_FLAGS: Final = ("shut_receive", "shut_send", "reset_seen", "nonblocking", "has_port")
_LINGERS: Final = 1 << 5
_KEEPS_LINGER: Final = 1 << 6
_LINGER_AT: Final = 8
_EVENTS_AT: Final = 32
_LONGEST_LINGER_S: Final = 0xFFFF


def to_word(state: CommonState) -> int:
    """Return the state as one unsigned 64-bit word."""
    word = sum(1 << bit for bit, name in enumerate(_FLAGS) if getattr(state, name))
    for bit, seconds in ((_LINGERS, state.linger_s), (_KEEPS_LINGER, state.linger_kept_s)):
        if seconds is not None:  # one place for both: only what is off has something kept
            word |= bit | min(seconds, _LONGEST_LINGER_S) << _LINGER_AT
            break
    return word | (state.events & 0xFFFFFFFF) << _EVENTS_AT


@lru_cache(maxsize=256)
def from_word(word: int) -> CommonState:
    """Return the state a word stands for."""
    flags = {name: bool(word & (1 << bit)) for bit, name in enumerate(_FLAGS)}
    seconds = word >> _LINGER_AT & _LONGEST_LINGER_S
    return CommonState(
        **flags,
        linger_s=seconds if word & _LINGERS else None,
        linger_kept_s=seconds if word & _KEEPS_LINGER else None,
        events=word >> _EVENTS_AT,
    )


class PageWriter:
    """The registry's end. `fd` is what clients get, sealed; None where memfd or the seals are missing."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self._memory = mmap.mmap(-1, PAGE_SIZE)  # the fallback: the same words, seen by nobody else
        fd: int | None = None
        try:
            fd = os.memfd_create("sharedsock-common", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, PAGE_SIZE)
            memory = mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            seals = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except (OSError, AttributeError):  # no memfd, no seals: clients ask by a call instead
            if fd is not None:
                os.close(fd)
        else:
            self._memory.close()
            self._memory, self.fd = memory, fd
        # memoryview stores a native word of 8 bytes by one memcpy of 8 aligned bytes: one store on every 64-bit CPU.
        self._words = (ctypes.c_uint64 * (SLOTS * _WORDS)).from_buffer(self._memory)

    def write(self, slot: int, state: CommonState) -> None:
        """Show a state in a slot. Every process that maps the page sees it at once."""
        self._words[slot * _WORDS + 1] += 1
        self._words[slot * _WORDS] = to_word(state)

    def read(self, slot: int) -> CommonState:
        """Return what a slot shows."""
        return from_word(self._words[slot * _WORDS])

    def close(self) -> None:
        """Unmap the page and close its descriptor; clients keep what they have mapped, unchanged from now on."""
        del self._words
        with contextlib.suppress(BufferError):  # a frame of a traceback may still hold the array; the end of it unmaps
            self._memory.close()
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


class PageReader:
    """A client's end: the page mapped read-only. The descriptor is closed at once, the mapping stays.

    Raises:
        OSError: the descriptor is not such a page (wrong size: a read beyond its end would be SIGBUS; or not sealed).
    """

    def __init__(self, fd: int) -> None:
        try:
            if os.fstat(fd).st_size != PAGE_SIZE or not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise OSError("not a registry's page")
            self._memory = mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self._words = memoryview(self._memory).cast("Q")

    def read(self, slot: int) -> CommonState:
        """Return the state in a slot, without a system call.

        Raises:
            IndexError: no such slot.
        """
        if not 0 <= slot < SLOTS:
            raise IndexError(slot)
        return from_word(self._words[slot * _WORDS])

    def changes(self, slot: int) -> int:
        """Return how often the slot has been written."""
        return self._words[slot * _WORDS + 1]

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._memory.close()
