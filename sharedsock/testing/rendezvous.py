"""Sockets shared by name between the processes of a run: the first user makes one, all others share it.

Each user of a name keeps a door open: a Unix socket in the run's directory. A newcomer knocks at any of them, is known
to the kernel by its pid (SO_PEERCRED), and gets a ticket for that process alone. So there is no process that must live:
any user may be killed, its door is then closed by the kernel, and the socket lives as long as somebody has it. Whoever
finds no open door makes the socket anew. The users of a name come under its lock, one after the other; the kernel
gives the lock back, however its owner ends.
"""

from __future__ import annotations

import _socket
import hashlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import sharedsock as ss
from sharedsock.registry import runtime
from sharedsock.registry.numbers import close_number
from sharedsock.testing.census import Kept
from sharedsock.testing.frames import plain_socket
from sharedsock.testing.runs import Run

__all__ = ["SharedSockets"]

_CREDENTIALS: Final = struct.Struct("3i")
_ANSWER_S: Final = 2.0
_LOCK_S: Final = 30.0
_MOST: Final = 8192


def _default() -> ss.SharedSocket:
    return ss.create_server(("127.0.0.1", 0))


def _unix_socket() -> socket.socket:
    """Return a plain Unix socket, also where somebody has put another class in the place of socket.socket."""
    return plain_socket(_socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach())


class SharedSockets:
    """This process's part of the sockets a run shares by name. One for each process; ends with `close`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: dict[str, tuple[ss.SharedSocket, _Door]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, create: Callable[[], ss.SharedSocket] = _default) -> ss.SharedSocket:
        """Return this process's descriptor on the run's socket of that name; the same one until it is closed here.

        Other processes: one of them gives us a ticket; if none has the socket, we make it for all.

        Args:
            create: makes the socket; a TCP listener on loopback by default.

        Raises:
            TimeoutError: another process has been making or joining it for half a minute.
        """
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                if held[0].fileno() >= 0:
                    return held[0]
                self._held.pop(name)[1].close()
            self._run.make_directory()
            doors = os.path.join(self._run.directory, "d-" + hashlib.sha256(name.encode()).hexdigest()[:8])
            directory, lock = runtime.acquire_start_lock(doors, _LOCK_S)
            try:
                shared = _join(doors) or create()
                try:
                    self._held[name] = shared, _Door(os.path.join(doors, str(os.getpid())), shared)
                except BaseException:
                    shared.close()
                    raise
            finally:
                runtime.release_lock(lock)
                close_number(directory)
            return shared

    def kept(self) -> Kept:
        """Return what of ours lives as long as we do, for leak checks: descriptors, doors, and who answers at them."""
        held = tuple(self._held.values())
        return Kept(
            {number for shared, door in held for number in (shared.fileno(), *door.numbers())},
            {door.thread for _, door in held},
            {shared.descriptor for shared, _ in held},
        )

    def close(self) -> None:
        """Close every door and every descriptor of ours; a socket that nobody else has ends."""
        with self._lock:
            while self._held:
                _, (shared, door) = self._held.popitem()
                door.close()
                shared.close()


def _join(doors: str) -> ss.SharedSocket | None:
    """Return a descriptor from whoever opens, None if nobody does. The caller has the lock: nobody else joins."""
    for name in sorted(os.listdir(doors)):
        path = os.path.join(doors, name)
        if not name.isdigit():
            continue
        with _unix_socket() as knocking:
            try:
                knocking.connect(path)
            except OSError:  # its process has died
                with suppress(OSError):
                    os.unlink(path)
                continue
            knocking.settimeout(_ANSWER_S)
            with suppress(OSError, ss.TicketError):  # it closes at this moment, or is stopped: the next one
                ticket = knocking.recv(_MOST)
                if ticket:
                    return ss.fromshare(ticket)
    return None


class _Door:
    """Gives a ticket to whoever knocks, as long as our descriptor is open."""

    def __init__(self, path: str, shared: ss.SharedSocket) -> None:
        self._path = path
        self._shared = shared
        self._listener = _unix_socket()
        self._bell, self._stop = _socket.socketpair()
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._listener.bind(path)
            self._listener.listen(64)
            self._listener.setblocking(False)
            self.thread = threading.Thread(target=self._answer, name="sharedsock-door", daemon=True)
            self.thread.start()
        except BaseException:
            self._close_files()
            raise

    def numbers(self) -> tuple[int, ...]:
        return self._listener.fileno(), self._bell.fileno(), self._stop.fileno()

    def close(self) -> None:
        with suppress(OSError):
            os.unlink(self._path)
        self._stop.close()  # end-of-file at the other end of the pair
        self.thread.join()
        self._close_files()

    def _close_files(self) -> None:
        for end in (self._listener, self._bell, self._stop):
            end.close()

    def _answer(self) -> None:
        poll = select.poll()
        poll.register(self._bell.fileno(), select.POLLIN)
        poll.register(self._listener.fileno(), select.POLLIN)
        while True:
            if any(number == self._bell.fileno() for number, _ in poll.poll()):
                return
            with suppress(OSError):  # who knocked has gone, or our descriptor is closed: there is nothing to give
                client, _ = self._listener.accept()
                with client:
                    size = _CREDENTIALS.size
                    pid, uid, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
                    if uid == os.geteuid():
                        client.send(self._shared.share(pid))
