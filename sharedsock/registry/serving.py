"""THE LOOP around one ledger: connections, deaths, requests and time, in one thread (S-12).

It never blocks for a peer. In each pass deaths come first, so that a request meets the truth, then requests, then time.
Of each ready peer the posted requests are done first: nobody waits for their replies, so whoever posted may long have
told another process, whose request must find them done. Then one request of each peer that waits for its reply (such a
thread has no second). What the ledger decides beyond a reply (late answers, custody, the page) is carried out before
the reply goes. An unexpected exception fails the request that met it, not the registry (F-84).

A pass with one plain request in it is the common case, and decides what a call costs: it looks at no clock but one, and
at nothing that is not due; what may have changed when something is due says so by `_is_restless`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from sharedsock.model import trace
from sharedsock.model.errors import InternalError, from_errno
from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry.connection import Channel, Overflow
from sharedsock.registry.custody import Custody, Drain
from sharedsock.registry.handshake import HandshakeRefused, Welcome
from sharedsock.registry.holders import HolderPipes
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness
from sharedsock.registry.messages import HEAD_SIZE, HEADER, SHAPES, Code, ProtocolError, error_fields, shape_of
from sharedsock.registry.page import PageWriter
from sharedsock.registry.programs import Programs
from sharedsock.registry.readiness import READ, WRITE, make_readiness
from sharedsock.registry.reception import Caps, Reception, Refusals
from sharedsock.registry.records import Answer, Limits, ReleaseCustody, ShowCommon
from sharedsock.registry.requests import REQUESTS, Asker, Granting, Handling, check_descriptors

__all__ = ["RegistryServer"]

_BATCH: Final = 64  # numbers in one pass, and posted requests of one peer
_NOBODY: Final = b"\0" * (HEADER.size - HEAD_SIZE)  # the request id of a posted request
_FLAG: Final = SHAPES[Code.FLAG].pack
_ERROR: Final = SHAPES[Code.ERROR].pack


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
        self._ready = make_readiness()
        self._subjects: dict[int, object] = {}  # by number: what is watched
        self._clients: dict[HolderId, Channel] = {}
        self._programs = Programs(self.ledger, self.liveness, self._clients)
        self._drains: set[Drain] = set()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._stopping = self._closed = False
        self._polled = self._swept = clock()
        self._idle_since: float | None = self._polled
        self._idle_for = self.caps.first_s
        self._is_restless = True
        self._due = math.inf  # when something but the ledger's is due, unless restless
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
        if self._is_restless or self.liveness.polled:
            self._is_restless = False
            self._due = self._next_due()
        due = min(self._due, self.ledger.timers.first)
        if due != math.inf:
            wait_s = max(0.0, due - self.now())
            timeout_s = wait_s if timeout_s is None else min(timeout_s, wait_s)
        events = self._ready.poll(timeout_s, _BATCH)
        if len(events) == 1 and type(subject := self._subjects.get(events[0][0])) is Channel:
            # One record: what is behind it makes the next pass, at the cost of the look that would find nothing here.
            data = self._hear(subject, events[0][1], 1)
            if data is not None:
                self._do(subject, data)
        elif events:
            self._attend(events)
        now = self.now()
        if self._is_restless or now >= due or now >= self._swept + 1.0:
            self._is_restless = True
            self._pass_time(now)

    def _attend(self, events: list[tuple[int, int]]) -> None:
        """Do what the ready numbers ask for."""
        subjects = [(self._subjects.get(fd), mask) for fd, mask in events]
        for subject, _ in subjects:
            if type(subject) is ProcessId:
                self.liveness.notice(subject)
                self._is_restless = True
        if self._is_restless:
            self.reap_dead()
        asked = []
        for subject, mask in subjects:
            if type(subject) is Channel:
                data = self._hear(subject, mask)
                if data is not None:
                    asked.append((subject, data))
            elif type(subject) is not ProcessId:
                self._is_restless = True
                self._attend_other(subject)
        for channel, data in asked:
            self._do(channel, data)

    def _attend_other(self, subject: object) -> None:
        if isinstance(subject, Drain):
            self._carry_on(subject, self.now())
        elif isinstance(subject, Reception):
            subject.accept()
        else:
            with contextlib.suppress(BlockingIOError):
                while self._wake_out.recv(4096):
                    pass

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
        self._ready.close()
        self.page.close()
        for end in (self._wake_in, self._wake_out):
            end.close()

    def _next_due(self) -> float:
        dues = [self._reception.next_due(), self._programs.next_due(), self.ledger.next_deadline()]
        if self.ledger.missing():
            dues.append(self._looked + self.caps.poll_s)
        dues.extend(drain.until for drain in self._drains)
        if self.liveness.needs_polling():
            dues.append(self._polled + self.caps.poll_s)
        if self._idle_since is not None:
            dues.append(self._idle_since + self._idle_for)
        return min(dues)

    def register(self, fd: int, subject: object) -> None:
        """Watch a number; `step` knows what to do with the subject."""
        self._ready.register(fd, READ)
        self._subjects[fd] = subject

    def unregister(self, fd: int) -> None:
        """Watch a number no more; it is still open. Unknown: no effect."""
        if fd in self._subjects:
            del self._subjects[fd]
            with contextlib.suppress(OSError):
                self._ready.unregister(fd)

    # -- time -------------------------------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        if now >= self._polled + self.caps.poll_s and self.liveness.needs_polling():
            self._polled = now
            self.liveness.notice_all(polled_only=True)
            self.reap_dead()
        for channel in self._reception.overdue(now):
            self._drop(channel, "no authentication in time")
        self._programs.look(now)
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
        self._programs.sweep()

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

    def reap_dead(self) -> bool:
        """Drop what the processes had whose deaths liveness has found; report whether there were any."""
        dead = self.liveness.take_dead()
        for process in dead:
            for channel in [c for c in (*self._reception.strangers, *self._clients.values()) if c.process == process]:
                if channel.holder is not None:  # what it had posted was done, as far as it knew
                    self._hear(channel, READ)
                    channel.settle()
                self._drop(channel)
            self._programs.forget(process, lambda holder: self._look_at_pipe(holder.nonce))
            self.ledger.reap(process)
        if dead:
            self._carry_out()
        return bool(dead)

    # -- connections ------------------------------------------------------------------------------------------

    def _drop(self, channel: Channel, cause: str | None = None) -> None:
        """Close a connection; with a cause, count the refusal."""
        if channel.closed:
            return
        self._is_restless = True
        if cause is not None:
            self.refuse(cause)
        self.unregister(channel.fileno())
        channel.close()
        self._reception.strangers.pop(channel, None)
        holder = channel.holder
        if holder is not None and self._clients.get(holder) is channel:
            del self._clients[holder]
            self.ledger.disconnected(holder)
            self._programs.suspect(holder, channel.image, self.now())

    def refuse(self, cause: str) -> None:
        """Count a refusal."""
        self.refused.add(cause, self.now())

    def client_count(self) -> int:
        """Return how many authenticated connections there are."""
        return len(self._clients)

    def _hear(self, channel: Channel, mask: int, most: int = _BATCH) -> bytes | None:
        """Take what a ready channel has to say, at most so many records; return a request somebody waits for, once the
        posted ones before it are done.
        """
        try:
            if channel.closed:
                return None
            if mask & WRITE and not channel.flush():
                self._writable(channel, wanted=False)
            if mask == WRITE or channel.closing:
                if channel.closing and not channel.queued:
                    self._drop(channel)
                return None
            for _ in range(most):
                data = channel.receive()
                if data is None:
                    self._drop(channel)
                elif channel.holder is None or channel.is_foreign or channel.oversized:
                    self._hear_stranger(channel, data)
                elif data[HEAD_SIZE : HEADER.size] != _NOBODY:
                    return data
                else:
                    self._do(channel, data)
                    if not channel.closed:
                        continue
                return None
        except BlockingIOError:
            pass
        except OSError:
            self._drop(channel)
        except Exception:  # F-84: whatever it is, it met one peer; the others have nothing to do with it
            self._drop(channel, "internal error")
        return None

    def _hear_stranger(self, channel: Channel, data: bytes) -> None:
        """Deal with a record of somebody who has not authenticated, or who cannot be whoever has."""
        try:
            if channel.is_foreign:
                # A child that inherited the connection. No word to it: its request ids are its parent's.
                self.refuse("sent by another process")
                if channel.holder is None:
                    self._drop(channel)
            elif channel.oversized:
                self._drop(channel, "too long")
            else:
                self._authenticate(channel, data)
        finally:
            channel.settle()

    def _authenticate(self, channel: Channel, data: bytes) -> None:
        try:
            holder = HolderId(channel.process, self._reception.authenticate(channel, data))
            assert channel.handshake is not None, "I9: a stranger has a handshake"
            page = self.page.fd
            welcome = channel.handshake.welcome(Welcome(self.incarnation, os.getpid(), page is not None))
        except HandshakeRefused as error:
            self._drop(channel, error.cause)
            return
        before = self._clients.get(holder)
        if before is not None:
            self._drop(before)
        if len(self._clients) >= self.caps.clients:
            self._drop(channel, "too many clients")
            return
        self._is_restless = True
        del self._reception.strangers[channel]
        self._idle_since = None  # here, since a client that leaves in the same pass was here all the same
        channel.handshake = None
        channel.holder = holder
        self._clients[holder] = channel
        channel.image = self._programs.note(holder)
        self._carry_out()
        trace.hit("reg.authed", pid=channel.pid)
        self._send(channel, welcome, page)

    # -- requests ---------------------------------------------------------------------------------------------

    def _do(self, channel: Channel, data: bytes) -> None:
        """Do what a client asks for, and answer."""
        if channel.closed:  # it died, or was dropped, after it had asked
            channel.settle()
            return
        try:
            handling = REQUESTS.get(data[:HEAD_SIZE]) or _no_request(data)
            try:
                fields = handling.unpack(data)
            except struct.error:
                fields = handling.shape.read(data)  # which says what is wrong
            self._answer(channel, handling, fields)
        except ProtocolError as error:
            self._drop(channel, error.cause)
        except OSError:
            self._drop(channel)
        except Exception:  # as in `_hear`
            self._drop(channel, "internal error")
        finally:
            if channel.is_odd:
                channel.settle()

    def _answer(self, channel: Channel, handling: Handling, fields: tuple[Any, ...]) -> None:
        request: int = fields[0]
        answer: bytes | Granting | None
        try:
            if trace.hook is not None:
                trace.hit("reg.request", code=handling.code, pid=channel.pid)
            if channel.is_odd or handling.descriptor:
                check_descriptors(channel, handling.shape)
            answer = handling.handler(self, channel, fields)
            if trace.hook is not None:
                trace.hit("reg.commit", code=handling.code, pid=channel.pid)
        except OSError as error:
            answer = self._refusal(request, f"{handling.code.name}: {type(error).__name__}", error)
        except Exception as error:
            trouble = InternalError(f"the registry failed at {handling.code.name}: {type(error).__name__}")
            answer = self._refusal(request, "internal error", trouble)
        if channel.is_odd:
            channel.settle()
        if self.ledger.has_effects():
            self._carry_out()
        if not request or answer is None:
            if channel.closing:
                self._drop(channel)
        elif type(answer) is bytes:
            self._send(channel, answer)
        else:
            assert isinstance(answer, Granting), "a reply is bytes, or they and a descriptor"
            self._send(channel, answer.data, answer.descriptor, answer.claim, request)

    def _refusal(self, request: int, cause: str, error: OSError) -> bytes:
        self.refuse(cause)
        return _ERROR(request, *error_fields(error).values())

    def _send(
        self,
        channel: Channel,
        data: bytes,
        descriptor: int | None = None,
        claim: int | None = None,
        request: int = 0,
    ) -> None:
        """Send a reply; with a claim, one that undoes the claim if it cannot be sent."""
        if channel.closed:
            return
        try:
            if trace.hook is not None:
                trace.hit("reg.reply", pid=channel.pid)
            if channel.send(data, descriptor, most_queued=self.caps.queued_bytes):
                self._writable(channel, wanted=True)
            elif channel.closing:
                self._drop(channel)
            if claim is not None and trace.hook is not None:
                trace.hit("take.fd_queued", number=claim)
        except Overflow:
            self._drop(channel, "replies not read")
        except OSError as error:
            if claim is None or channel.holder is None or error.errno not in (errno.ETOOMANYREFS, errno.EPERM):
                self._drop(channel)
                return
            # Too many descriptors of ours are on their way: the ticket is as before, and the claimer hears why (F-14).
            self.ledger.refuse(channel.holder, claim)
            self._send(channel, _ERROR(request, *error_fields(error).values()))

    def _writable(self, channel: Channel, *, wanted: bool) -> None:
        self._ready.modify(channel.fileno(), READ | WRITE if wanted else READ)

    def _carry_out(self) -> None:
        """Do what the ledger's decisions cause."""
        for effect in self.ledger.take_effects():
            if isinstance(effect, Answer):
                asker = effect.token
                assert isinstance(asker, Asker), "requests.py made it"
                if asker.request:
                    self._send(asker.channel, _FLAG(asker.request, effect.last))
            elif isinstance(effect, ShowCommon):
                self.page.write(effect.slot, effect.state)
            elif isinstance(effect, ReleaseCustody):
                now = self.now()
                drain = self.custody.release(effect.number, last=effect.last, linger_s=effect.linger_s, now=now)
                if drain is not None:
                    self._is_restless = True
                    self._drains.add(drain)
                    self.register(drain.fileno(), drain)

    def _carry_on(self, drain: Drain, now: float) -> None:
        if drain in self._drains and drain.step(now):
            self._is_restless = True
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


def _no_request(data: bytes) -> Handling:
    """Return what is done with a message that is none of a client's.

    Raises:
        ProtocolError: it is no message at all.
    """
    return Handling(shape_of(data), _refuse)


def _refuse(house: Any, channel: Channel, fields: tuple[Any, ...]) -> None:
    raise from_errno(errno.EINVAL, "that message is no request")
