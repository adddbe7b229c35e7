"""THE DOOR: who may connect, how many may wait unauthenticated and for how long, and what happens out of descriptors.

A connection is accepted, and its peer's uid compared with the registry's before the first byte is read; root is not
exempt (S-04). Its process is watched from that moment (rule 9). Then it has T_auth to prove that it has the key. At
most 64 do so at once, and the surplus is hung up on (S-11, F-105). Out of descriptors, a connection is taken with a
reserve and closed at once, so that the listener is never left readable: a loop around it would burn a core (F-81).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Protocol

from sharedsock.model import trace
from sharedsock.registry.connection import Channel
from sharedsock.registry.handshake import HandshakeRefused, ServerHandshake
from sharedsock.registry.liveness import Liveness, peer_credentials

__all__ = ["Caps", "Reception", "Refusals"]

_BATCH: Final = 16  # connections in one go


@dataclass(frozen=True, slots=True)
class Caps:
    """The caps of S-11 that the server keeps, and its times in seconds."""

    unauthenticated: int = 64
    clients: int = 1024
    queued_bytes: int = 65_536
    auth_s: float = 1.0  # T_auth
    grace_s: float = 0.3  # idle after use, before the end
    first_s: float = 5.0  # idle from the start, if no client ever comes
    poll_s: float = 0.1  # between two looks at processes without a pidfd, or at missing holders
    recovery_s: float = 2.0  # T_rpc: closers wait so long for holders that were left by a dead registry


class Refusals:
    """Counts refusals by cause, and logs at most one a second; the words are ours, never a peer's (S-17)."""

    def __init__(self) -> None:
        self.by_cause: Counter[str] = Counter()
        self.log: deque[tuple[float, str]] = deque(maxlen=256)

    def add(self, cause: str, now: float) -> None:
        """Count one."""
        self.by_cause[cause] += 1
        if not self.log or now >= self.log[-1][0] + 1.0:
            self.log.append((now, cause))


class Server(Protocol):
    """What the door needs of the house."""

    caps: Caps
    liveness: Liveness

    def now(self) -> float: ...
    def random(self, size: int) -> bytes: ...
    def refuse(self, cause: str) -> None: ...
    def register(self, fd: int, subject: object) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def reap_dead(self) -> bool: ...
    def client_count(self) -> int: ...


class Reception:
    """The listener and the unauthenticated connections, `strangers`, oldest first."""

    def __init__(self, server: Server, listener: socket.socket, key: bytes) -> None:
        self.strangers: OrderedDict[Channel, None] = OrderedDict()
        self._server = server
        self._key = key
        self._listener = listener
        self._listener.setblocking(False)
        self._listening_again: float | None = None
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        server.register(listener.fileno(), self)

    def accept(self) -> None:
        """Accept what waits, at most a batch of it."""
        for _ in range(_BATCH):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._hang_up()
                return
            try:
                self._admit(connection)
            except OSError as error:
                connection.close()
                full = error.errno in (errno.EMFILE, errno.ENFILE)
                self._server.refuse("out of descriptors" if full else "gone before it was served")
            except Exception:
                connection.close()
                self._server.refuse("internal error")

    def _hang_up(self) -> None:
        """Out of descriptors: take the connection with the reserve and close it, so that the listener falls silent."""
        self._server.refuse("out of descriptors")
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self._reserve is None:  # somebody else took the number: not a second time at once
            self._server.unregister(self._listener.fileno())
            self._listening_again = self._server.now() + self._server.caps.poll_s

    def _admit(self, connection: socket.socket) -> None:
        trace.hit("reg.accept")
        who = peer_credentials(connection)
        cause = None
        if who.uid != self._server.liveness.system.euid():  # root is not exempt (S-04)
            cause = "foreign uid"
        elif who.pid <= 0:
            cause = "process of another PID namespace"
        elif len(self.strangers) >= self._server.caps.unauthenticated:
            cause = "too many unauthenticated peers"
        elif self._server.client_count() >= self._server.caps.clients:
            cause = "too many clients"
        if cause is not None:
            connection.close()
            self._server.refuse(cause)
            return
        connection.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        process = self._server.liveness.watch_peer(connection, who.pid)
        self._server.reap_dead()
        handshake = ServerHandshake(self._key, self._server.random)
        channel = Channel(connection, who.pid, process, handshake)
        channel.auth_deadline = self._server.now() + self._server.caps.auth_s
        channel.send(handshake.challenge())
        self.strangers[channel] = None
        self._server.register(connection.fileno(), channel)

    def authenticate(self, channel: Channel, data: bytes) -> bytes:
        """Check a stranger's answer; return its holder nonce.

        Raises:
            HandshakeRefused: it does not have the key, or sent something else.
        """
        if channel.came or channel.lost:
            raise HandshakeRefused("surplus descriptors")
        assert channel.handshake is not None, "I9: a stranger has a handshake"
        return channel.handshake.accept(data)

    def overdue(self, now: float) -> list[Channel]:
        """Return the strangers whose time to authenticate is over; do what else is due."""
        if self._listening_again is not None and self._listening_again <= now:
            self._listening_again = None
            self._server.register(self._listener.fileno(), self)
        late = []
        for channel in self.strangers:
            if channel.auth_deadline > now:
                break
            late.append(channel)
        return late

    def next_due(self) -> float:
        """Return when `overdue` is to be asked next, inf: no need."""
        first = next(iter(self.strangers)).auth_deadline if self.strangers else math.inf
        return first if self._listening_again is None else min(first, self._listening_again)

    def has_visitors(self) -> bool:
        """Say whether a connection waits to be accepted."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close the listener, the strangers and the reserve."""
        for channel in self.strangers:
            channel.close()
        self.strangers.clear()
        self._listener.close()
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            os.close(reserve)
