"""A process that shares, redeems, reads and closes for as long as it lives, to be killed at any moment of that.

Its first descriptors it keeps; what it opens beyond them it closes again. Whatever it meets that no death of another
holder explains goes to `trouble`.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

import sharedsock as ss

__all__ = ["Company", "hold"]

_PID: Final = struct.Struct("i")
_MOST: Final = 12


class Company:
    """What the processes of one wave have in common, made before they are forked.

    Attributes:
        mailboxes: one pair each: tickets for it come out of the first end.
        trouble: the end that the test reads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.mailboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(size)]
        self.trouble, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._pids = mmap.mmap(-1, _PID.size * size)
        for one in (*(end for pair in self.mailboxes for end in pair), self.trouble, self._theirs):
            one.setblocking(False)

    def enter(self, index: int) -> None:
        """Say that a member has its descriptors, and its pid."""
        _PID.pack_into(self._pids, index * _PID.size, os.getpid())

    def pid_of(self, index: int) -> int:
        """Return a member's pid, 0 until it has entered."""
        found: int = _PID.unpack_from(self._pids, index * _PID.size)[0]
        return found

    def complain(self, what: str) -> None:
        """Tell the test."""
        self._theirs.send(what.encode()[:500])

    def complaint(self) -> str | None:
        """Return what a member has complained about."""
        try:
            return self.trouble.recv(600).decode()
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close what the test's process has of it."""
        for one in (*(end for pair in self.mailboxes for end in pair), self.trouble, self._theirs):
            one.close()
        self._pids.close()


def hold(company: Company, index: int, seed: int, first: list[ss.SharedSocket]) -> None:
    """Do what holders do until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    company.enter(index)
    try:
        _Holder(company, index, seed, first).live()
    except BaseException as error:
        company.complain(f"{error!r}")
        raise


class _Holder:
    def __init__(self, company: Company, index: int, seed: int, first: list[ss.SharedSocket]) -> None:
        self._company = company
        self._mailbox = company.mailboxes[index][0]
        self._dice = random.Random(seed)
        self._first = first
        self._held: list[ss.SharedSocket] = []
        self._actions: tuple[Callable[[], object], ...] = (
            self._share,
            self._share,
            self._take,
            self._take,
            self._duplicate,
            self._close,
            self._close,
            self._receive,
            self._begin,
            self._ask,
        )

    def live(self) -> None:
        """Act for ever."""
        threading.Thread(target=self._wait, daemon=True).start()
        while True:
            self._dice.choice(self._actions)()

    def _any(self) -> ss.SharedSocket:
        return self._dice.choice([*self._first, *self._held])

    def _wait(self) -> None:
        while True:
            self._first[0].recv(1)

    def _share(self) -> None:
        other = self._dice.randrange(self._company.size)
        pid = self._company.pid_of(other)
        if not pid:
            return
        try:
            info = self._any().share(pid)
        except ss.TicketError:  # it has been killed
            return
        try:
            self._company.mailboxes[other][1].send(info)
        except BlockingIOError:
            ss.revoke(info)

    def _take(self) -> None:
        if len(self._held) >= _MOST:
            return
        try:
            info = self._mailbox.recv(4096)
        except BlockingIOError:
            return
        self._held.append(ss.fromshare(info))

    def _duplicate(self) -> None:
        if len(self._held) < _MOST:
            self._held.append(self._any().dup())

    def _close(self) -> None:
        if self._held:
            self._held.pop(self._dice.randrange(len(self._held))).close()

    def _receive(self) -> None:
        try:
            self._any().recv(4, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass

    def _begin(self) -> None:
        if self._held:
            self._dice.choice(self._held).begin_recv(2)

    def _ask(self) -> None:
        assert self._any().references() >= 1
