"""A process that shares, redeems, reads and closes for as long as it lives, or until it is told to stop.

Its first descriptors it keeps; what it opens beyond them it closes again. Whatever it meets that no death of another
holder, or of the registry, explains goes to `trouble`.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

import sharedsock as ss

__all__ = ["Company", "hold", "outlive"]

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


def outlive(
    company: Company, index: int, seed: int, control: Connection, shared: ss.SharedSocket, echo: ss.SharedSocket
) -> None:
    """Do what holders do while registries die: send back what comes, meet named errors only; told so, report, go on.

    Told to "stop" it does nothing more. To "settle" it redeems the tickets that still lie in its mailbox and closes
    what it has opened, makes one call that needs a registry, and tells which errors it has met, how often, and how long
    its longest call took. To "close" it closes the rest.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    holder = _Holder(company, index, seed, [shared], (ss.RegistryGone, ss.TicketError))
    company.enter(index)
    threading.Thread(target=_send_back, args=(company, echo), daemon=True).start()
    try:
        holder.live(lambda: not control.poll())
        control.recv()
        control.send(None)
        control.recv()
        holder.settle()
        control.send((holder.met, holder.longest_s, shared.references(), echo.references()))
        control.recv()
        for one in (shared, echo):
            one.close()
        control.send(None)
    except BaseException as error:
        company.complain(f"{error!r}")
        raise


def _send_back(company: Company, echo: ss.SharedSocket) -> None:
    try:
        while True:
            echo.sendall(echo.recv(64))
    except (ss.OperationAborted, ss.NotASocket):  # closed in the call, or between two
        pass
    except BaseException as error:
        company.complain(f"the transfer: {error!r}")


class _Holder:
    def __init__(
        self,
        company: Company,
        index: int,
        seed: int,
        first: list[ss.SharedSocket],
        named: tuple[type[OSError], ...] = (),
    ) -> None:
        self.met: Counter[str] = Counter()
        self.longest_s = 0.0
        self._named = named
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

    def live(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Act, as long as it is to go on."""
        threading.Thread(target=self._wait, daemon=True).start()
        while goes_on():
            began_s = time.monotonic()
            try:
                self._dice.choice(self._actions)()
            except self._named as error:
                self.met[type(error).__name__] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def settle(self) -> None:
        """Redeem what lies in the mailbox, and close what was opened beyond the first descriptors."""
        while True:
            while self._held:
                self._held.pop().close()
            try:
                info = self._mailbox.recv(4096)
            except BlockingIOError:
                return
            try:
                self._held.append(ss.fromshare(info))
            except self._named:
                pass

    def _any(self) -> ss.SharedSocket:
        return self._dice.choice([*self._first, *self._held])

    def _wait(self) -> None:
        try:
            while True:
                self._first[0].recv(1)
        except ss.OperationAborted:
            pass

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
