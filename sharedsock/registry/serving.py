"""THE LOOP around one ledger: connections, deaths, requests and time, in one thread (S-12).

It never blocks for a peer. In each pass deaths come first, so that a request meets the truth, then requests, one of
each peer's (it mostly has one: looking for a second costs as much as the next pass), then time. What the ledger
decides beyond a reply (late answers, custody, the page) is carried out before the reply goes. An unexpected exception
fails the request that met it, not the registry (F-84).
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sharedsock.model import trace
from sharedsock.model.errors import InternalError
from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry.connection import Channel, Overflow, Received
from sharedsock.registry.custody import Custody, Drain
from sharedsock.registry.handshake import HandshakeRefused, Welcome
from sharedsock.registry.holders import HolderPipes
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness
from sharedsock.registry.messages import Code, ProtocolError, decode, encode, error_fields
from sharedsock.registry.page import PageWriter
from sharedsock.registry.reception import Caps, Reception, Refusals
from sharedsock.registry.records import Answer, Limits, ReleaseCustody, ShowCommon
from sharedsock.registry.requests import Asked, Asker, Reply, answer

__all__ = ["RegistryServer"]

_SUSPECT_S: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(slots=True)
class _Suspect:
    """A holder whose channel broke while its process lives: another program by now, or about to die?"""

    due: float
    tries: int
    image: tuple[int, int]


class RegistryServer:
    """The loop around one ledger. `run()` serves until `request_stop()`, or until `may_end` agrees to an idle end.

    Args:
        listener: bound and listening; the server's from here on.
        key: 32 bytes.
        pipes: the holders' pipes in its directory; those that are held when it begins are awaited (F-76).
        may_end: asked when nothing has been referenced and nobody connected for `grace_s`; True ends the loop.
    """

    def __init__(
        self,
        listener: socket.socket,
        key: bytes,
        *,
        limits: Limits | None = None,
        caps: Caps | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        liveness: Liveness | None = None,
        pipes: HolderPipes | None = None,
        may_end: Callable[[], bool] = lambda: False,
    ) -> None:
        self.caps = caps or Caps()
        self.now, self.wall_s, self.random = clock, wall, random
        self.incarnation = random(16)
        self.ledger = Ledger(self.incarnation, limits)
        self.custody = Custody()
        self.page = PageWriter()
        self.liveness = liveness or Liveness()
        self.liveness.on_watch = lambda process, pidfd: self.register(pidfd, process)
        self.liveness.on_forget = self.unregister
        self.refused = Refusals()
        self._may_end = may_end
        self._selector = selectors.DefaultSelector()
        self._clients: dict[HolderId, Channel] = {}
        self._images: dict[HolderId, tuple[int, int] | None] = {}
        self._suspects: dict[HolderId, _Suspect] = {}
        self._drains: set[Drain] = set()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._stopping = self._closed = False
        self._polled = self._swept = clock()
        self._idle_since: float | None = self._polled
        self._idle_for = self.caps.first_s
        self.register(self._wake_out.fileno(), None)
        self._reception = Reception(self, listener, key)
        self._pipes = pipes
        self._await_holders()

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the end, then close everything."""
        try:
            while not self._stopping:
                self.step(None)
            for channel in list(self._clients.values()):
                with contextlib.suppress(OSError):
                    channel.flush()
        finally:
            self.close()

    def request_stop(self) -> None:
        """End `run()` soon; from any thread, or from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # full: awake already; closed: over already
            self._wake_in.send(b"\0")

    @property
    def wake_fd(self) -> int:
        """A number for `signal.set_wakeup_fd`."""
        return self._wake_in.fileno()

    def step(self, timeout_s: float | None) -> None:
        """Wait for something to do, at most `timeout_s` (None: until something is due), and do it."""
        events = self._selector.select(self._wait_s(timeout_s))
        for key, _ in events:
            if isinstance(key.data, ProcessId):
                self.liveness.notice(key.data)
        now = self.now()
        if now >= self._polled + self.caps.poll_s and self.liveness.needs_polling():
            self._polled = now
            self.liveness.notice_all(polled_only=True)
        self.reap_dead()
        for key, mask in events:
            subject = key.data
            if isinstance(subject, Channel):
                self._serve(subject, mask)
            elif isinstance(subject, Drain):
                self._carry_on(subject, self.now())
            elif isinstance(subject, Reception):
                subject.accept()
            elif subject is None:
                with contextlib.suppress(BlockingIOError):
                    while self._wake_out.recv(4096):
                        pass
        self._pass_time(self.now())

    def has_visitors(self) -> bool:
        """Say whether a connection waits to be accepted."""
        return self._reception.has_visitors()

    def close(self) -> None:
        """Close every connection, descriptor and pidfd; custody ends as the kernel says. Doubled: no effect."""
        if self._closed:
            return
        self._closed = True
        for channel in self._clients.values():
            channel.close()
        for drain in self._drains:
            drain.close()
        self._reception.close()
        self._clients.clear()
        self._drains.clear()
        self.custody.close()
        self.liveness.on_forget = lambda pidfd: None
        self.liveness.close()
        self._selector.close()
        self.page.close()
        for end in (self._wake_in, self._wake_out):
            end.close()

    def _wait_s(self, timeout_s: float | None) -> float | None:
        now = self.now()
        dues = [due for due in (self.ledger.next_deadline(), self._reception.next_due()) if due is not None]
        dues.extend(suspect.due for suspect in self._suspects.values())
        if self.ledger.missing():
            dues.append(self._looked + self.caps.poll_s)
        dues.extend(drain.until for drain in self._drains)
        if self.liveness.needs_polling():
            dues.append(self._polled + self.caps.poll_s)
        if self._idle_since is not None:
            dues.append(self._idle_since + self._idle_for)
        if dues:
            wait_s = max(0.0, min(dues) - now)
            timeout_s = wait_s if timeout_s is None else min(timeout_s, wait_s)
        return timeout_s

    def register(self, fd: int, subject: object) -> None:
        """Select on a number; `step` knows what to do with the subject."""
        self._selector.register(fd, selectors.EVENT_READ, subject)

    def unregister(self, fd: int) -> None:
        """Select on a number no more; it is still open. Unknown: no effect."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    # -- time -------------------------------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        for channel in self._reception.overdue(now):
            self._drop(channel, "no authentication in time")
        for holder, suspect in list(self._suspects.items()):
            if suspect.due <= now:
                self._look_at(holder, suspect, now)
        for drain in [drain for drain in self._drains if drain.until <= now]:
            self._carry_on(drain, now)
        if now >= self._looked + self.caps.poll_s:
            self._look_for_missing(now)
        self.ledger.expire(now)
        self._carry_out()
        if now >= self._swept + 1.0:
            self._swept = now
            self._sweep()
        self._consider_the_end(now)

    def _is_idle(self) -> bool:
        return not self._clients and not self._drains and self.ledger.is_empty()

    def _consider_the_end(self, now: float) -> None:
        if not self._is_idle():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._idle_for = now, self.caps.grace_s
        elif now >= self._idle_since + self._idle_for:
            self._idle_since = now  # refused: asked again after as long
            if self._may_end():
                self._stopping = True

    def _sweep(self) -> None:
        connected = {channel.process for channel in (*self._reception.strangers, *self._clients.values())}
        for process in self.liveness.watched():
            if process not in connected and not self.ledger.needs(process):
                self.liveness.forget(process)
                self.ledger.name(process, "")
        for holder in [h for h in self._images if h not in self._clients and not self.ledger.needs(h.process)]:
            del self._images[holder]

    # -- a dead registry's holders ----------------------------------------------------------------------------

    def _await_holders(self) -> None:
        self._looked = self.now()
        if self._pipes is not None:
            found = self._pipes.find()
            self.ledger.await_holders(found, self._looked + self.caps.recovery_s)
            for nonce in found:
                self._pipes.call(nonce)

    def _look_for_missing(self, now: float) -> None:
        """A holder that will not come has lost its lock (dead, or another program); there is no event for it."""
        self._looked = now
        for nonce in self.ledger.missing():
            self._look_at_pipe(nonce)

    def _look_at_pipe(self, nonce: bytes) -> None:
        if self._pipes is None or not self._pipes.look(nonce):
            self.ledger.has_announced(nonce)

    # -- death ------------------------------------------------------------------------------------------------

    def reap_dead(self) -> None:
        """Drop what the processes had whose deaths liveness has found."""
        for process in self.liveness.take_dead():
            for channel in [c for c in (*self._reception.strangers, *self._clients.values()) if c.process == process]:
                self._drop(channel)
            for holder in [holder for holder in self._images if holder.process == process]:
                del self._images[holder]
                self._look_at_pipe(holder.nonce)
                self._suspects.pop(holder, None)
            self.ledger.reap(process)
        self._carry_out()

    def _look_at(self, holder: HolderId, suspect: _Suspect, now: float) -> None:
        """A channel broke and its process lives: exec closed everything it held, which only its image shows (F-91)."""
        del self._suspects[holder]
        if holder in self._clients:
            return
        stat = self.liveness.describe(holder.process.pid)
        image = None if stat is None or stat.start_ticks != holder.process.start_ticks else stat.image
        if image is not None and image != suspect.image:
            self.ledger.reap_holder(holder)
            self._carry_out()
        elif suspect.tries < len(_SUSPECT_S) and image is None:
            self._suspects[holder] = _Suspect(now + _SUSPECT_S[suspect.tries], suspect.tries + 1, suspect.image)

    # -- connections ------------------------------------------------------------------------------------------

    def _drop(self, channel: Channel, cause: str | None = None) -> None:
        """Close a connection; with a cause, count the refusal."""
        if channel.closed:
            return
        if cause is not None:
            self.refuse(cause)
        self.unregister(channel.fileno())
        channel.close()
        self._reception.strangers.pop(channel, None)
        holder = channel.holder
        if holder is not None and self._clients.get(holder) is channel:
            del self._clients[holder]
            self.ledger.disconnected(holder)
            if channel.image is not None and self.ledger.needs(holder.process):
                self._suspects[holder] = _Suspect(self.now(), 0, channel.image)

    def refuse(self, cause: str) -> None:
        """Count a refusal."""
        self.refused.add(cause, self.now())

    def client_count(self) -> int:
        """Return how many authenticated connections there are."""
        return len(self._clients)

    def _serve(self, channel: Channel, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE and not channel.closed and not channel.flush():
                self._writable(channel, wanted=False)
            if mask & selectors.EVENT_READ and not channel.closed and not channel.closing:
                received = channel.receive()
                if received is None:
                    self._drop(channel)
                else:
                    try:
                        self._take(channel, received)
                    finally:
                        received.close()
            if channel.closing and not channel.queued:
                self._drop(channel)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(channel)
        except Exception:  # F-84: whatever it is, it met one peer; the others have nothing to do with it
            self._drop(channel, "internal error")

    def _take(self, channel: Channel, received: Received) -> None:
        if received.sender is not None and received.sender != channel.pid:
            # A child that inherited the connection. No word to it: its request ids are its parent's.
            self.refuse("sent by another process")
            if channel.holder is None:
                self._drop(channel)
        elif received.oversized:
            self._drop(channel, "too long")
        elif channel.holder is None:
            self._authenticate(channel, received)
        else:
            try:
                message = decode(received.data)
            except ProtocolError as error:
                self._drop(channel, error.cause)
                return
            self._request(Asked(self, channel, channel.holder, message, received))

    def _authenticate(self, channel: Channel, received: Received) -> None:
        try:
            holder = HolderId(channel.process, self._reception.authenticate(channel, received))
            assert channel.handshake is not None, "I9: a stranger has a handshake"
            page = self.page.fd
            data = channel.handshake.welcome(Welcome(self.incarnation, os.getpid(), page is not None))
        except HandshakeRefused as error:
            self._drop(channel, error.cause)
            return
        before = self._clients.get(holder)
        if before is not None:
            self._drop(before)
        if len(self._clients) >= self.caps.clients:
            self._drop(channel, "too many clients")
            return
        del self._reception.strangers[channel]
        self._idle_since = None  # here, since a client that leaves in the same pass was here all the same
        channel.handshake = None
        channel.holder = holder
        self._clients[holder] = channel
        stat = self.liveness.describe(channel.pid)
        if stat is not None:
            self.ledger.name(channel.process, stat.name)
            channel.image = self._images[holder] = stat.image
            for other in [h for h in self._images if h.process == holder.process and h not in self._clients]:
                if self._images[other] not in (None, stat.image):
                    self.ledger.reap_holder(other)
        self._carry_out()
        trace.hit("reg.authed", pid=channel.pid)
        self._send(channel, Reply(data, page))

    # -- requests ---------------------------------------------------------------------------------------------

    def _request(self, asked: Asked) -> None:
        message = asked.message
        reply: Reply | None
        try:
            trace.hit("reg.request", code=message.code, pid=asked.channel.pid)
            reply = answer(asked)
            trace.hit("reg.commit", code=message.code, pid=asked.channel.pid)
        except OSError as error:
            self.refuse(f"{message.code.name}: {type(error).__name__}")
            reply = Reply(encode(Code.ERROR, message.request, **error_fields(error)))
        except Exception as error:
            self.refuse("internal error")
            trouble = InternalError(f"the registry failed at {message.code.name}: {type(error).__name__}")
            reply = Reply(encode(Code.ERROR, message.request, **error_fields(trouble)))
        asked.received.close()
        self._carry_out()
        if reply is not None:
            self._send(asked.channel, reply, message.request)

    def _send(self, channel: Channel, reply: Reply, request: int = 0) -> None:
        if channel.closed:
            return
        try:
            trace.hit("reg.reply", pid=channel.pid)
            if channel.send(reply.data, reply.descriptor, most_queued=self.caps.queued_bytes):
                self._writable(channel, wanted=True)
            if reply.claim is not None:
                trace.hit("take.fd_queued", number=reply.claim)
        except Overflow:
            self._drop(channel, "replies not read")
        except OSError as error:
            if reply.claim is None or channel.holder is None or error.errno not in (errno.ETOOMANYREFS, errno.EPERM):
                self._drop(channel)
                return
            # Too many descriptors of ours are on their way: the ticket is as before, and the claimer hears why (F-14).
            self.ledger.refuse(channel.holder, reply.claim)
            self._send(channel, Reply(encode(Code.ERROR, request, **error_fields(error))))

    def _writable(self, channel: Channel, *, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(channel.fileno(), events, channel)

    def _carry_out(self) -> None:
        """Do what the ledger's decisions cause."""
        for effect in self.ledger.take_effects():
            if isinstance(effect, Answer):
                asker = effect.token
                assert isinstance(asker, Asker), "requests.py made it"
                self._send(asker.channel, Reply(encode(Code.FLAG, asker.request, value=effect.last)))
            elif isinstance(effect, ShowCommon):
                self.page.write(effect.slot, effect.state)
            elif isinstance(effect, ReleaseCustody):
                now = self.now()
                drain = self.custody.release(effect.number, last=effect.last, linger_s=effect.linger_s, now=now)
                if drain is not None:
                    self._drains.add(drain)
                    self.register(drain.fileno(), drain)

    def _carry_on(self, drain: Drain, now: float) -> None:
        if drain in self._drains and drain.step(now):
            self._drains.discard(drain)
            self.unregister(drain.fileno())
            drain.close()

    # -- introspection ----------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, int]:
        """Return the fields of STATISTICS_ARE."""
        sockets, descriptors, tickets = self.ledger.counts()
        return {
            "pid": os.getpid(),
            "clients": len(self._clients),
            "sockets": sockets,
            "descriptors": descriptors,
            "tickets": tickets,
            "custody": len(self.custody),
            "refusals": self.refused.by_cause.total(),
        }

    def refusals(self) -> list[tuple[str, int]]:
        """Return the most frequent causes of refusals and their counts."""
        return self.refused.by_cause.most_common(64)
