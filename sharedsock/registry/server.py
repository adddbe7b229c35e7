"""THE REGISTRY PROCESS: one thread, one selector loop; connections, deaths, time, and its own end.

`main(runtime_dir, ready_fd)` is the process's body. Both arguments may be seen by anybody: the key is drawn here and
written to its 0600 file (S-06). It takes `alive.lock`, binds the socket `s`, writes b"R" to `ready_fd` and closes it.
It ends by itself within a second of the last reference, ticket and client: it takes `start.lock` without waiting (busy:
somebody is about to use us, stay), looks once more for connections, then removes the directory. SIGTERM and SHUTDOWN
end it in order.

The loop never blocks for a peer: deaths first, so that a request meets the truth, then requests, then time. One thread
whatever the number of peers (S-12); caps of S-11; out of descriptors it accepts with its reserve and hangs up at once,
so the listener is never left readable (F-81). An unexpected exception fails the request that met it, not the registry
(F-84).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import signal
import socket
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sharedsock.model import trace
from sharedsock.model.errors import InternalError, RegistryGone
from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry import runtime
from sharedsock.registry.connection import Channel, Overflow, Received
from sharedsock.registry.custody import Custody, Drain
from sharedsock.registry.handshake import HandshakeRefused, ServerHandshake, Welcome
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness, peer_credentials
from sharedsock.registry.messages import Code, ProtocolError, decode, encode, error_fields
from sharedsock.registry.page import PageWriter
from sharedsock.registry.records import Answer, Limits, ReleaseCustody, ShowCommon
from sharedsock.registry.requests import Asked, Asker, Reply, answer

__all__ = ["Caps", "Lifetime", "RegistryServer", "give_key", "main"]

READY: Final = b"R"
_OFFER: Final = "key.offered"
_BATCH: Final = 16  # requests of one peer before the next one's turn
_SUSPECT_S: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, slots=True)
class Caps:
    """The caps of S-11 that the server keeps, and its times in seconds."""

    unauthenticated: int = 64
    clients: int = 1024
    queued_bytes: int = 65_536
    auth_s: float = 1.0  # T_auth
    grace_s: float = 0.3  # idle after use, before the end
    first_s: float = 5.0  # idle from the start, if no client ever comes
    poll_s: float = 0.1  # between two looks at processes without a pidfd


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
        may_end: Callable[[], bool] = lambda: False,
    ) -> None:
        self.caps = caps or Caps()
        self.now, self.wall_s, self.random = clock, wall, random
        self.incarnation = random(16)
        self.ledger = Ledger(self.incarnation, limits)
        self.custody = Custody()
        self.page = PageWriter()
        self.liveness = liveness or Liveness()
        self.liveness.on_watch = lambda process, pidfd: self._register(pidfd, process)
        self.liveness.on_forget = self._unregister
        self.refused: Counter[str] = Counter()
        self.refusal_log: deque[tuple[float, str]] = deque(maxlen=256)  # at most one a second (S-17)
        self._key = key
        self._may_end = may_end
        self._listener = listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._strangers: OrderedDict[Channel, None] = OrderedDict()  # unauthenticated, oldest first
        self._clients: dict[HolderId, Channel] = {}
        self._images: dict[HolderId, tuple[int, int] | None] = {}
        self._suspects: dict[HolderId, _Suspect] = {}
        self._drains: set[Drain] = set()
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._stopping = self._closed = False
        self._listening_again: float | None = None
        self._polled = self._swept = clock()
        self._idle_since: float | None = self._polled
        self._idle_for = self.caps.first_s
        self._register(self._wake_out.fileno(), None)
        self._register(self._listener.fileno(), self._listener)

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
            elif subject is self._listener:
                self._accept()
            elif subject is None:
                with contextlib.suppress(BlockingIOError):
                    while self._wake_out.recv(4096):
                        pass
        self._pass_time(self.now())

    def has_visitors(self) -> bool:
        """Say whether a connection waits to be accepted."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close every connection, descriptor and pidfd; custody ends as the kernel says. Doubled: no effect."""
        if self._closed:
            return
        self._closed = True
        for channel in [*self._strangers, *self._clients.values()]:
            channel.close()
        for drain in self._drains:
            drain.close()
        self._strangers.clear()
        self._clients.clear()
        self._drains.clear()
        self.custody.close()
        self.liveness.on_forget = lambda pidfd: None
        self.liveness.close()
        self._selector.close()
        self.page.close()
        for end in (self._listener, self._wake_in, self._wake_out):
            end.close()
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            os.close(reserve)

    def _wait_s(self, timeout_s: float | None) -> float | None:
        now = self.now()
        dues = [due for due in (self.ledger.next_deadline(), self._listening_again) if due is not None]
        if self._strangers:
            dues.append(next(iter(self._strangers)).auth_deadline)
        dues.extend(suspect.due for suspect in self._suspects.values())
        dues.extend(drain.until for drain in self._drains)
        if self.liveness.needs_polling():
            dues.append(self._polled + self.caps.poll_s)
        if self._idle_since is not None:
            dues.append(self._idle_since + self._idle_for)
        if dues:
            wait_s = max(0.0, min(dues) - now)
            timeout_s = wait_s if timeout_s is None else min(timeout_s, wait_s)
        return timeout_s

    def _register(self, fd: int, subject: object) -> None:
        self._selector.register(fd, selectors.EVENT_READ, subject)

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    # -- time -------------------------------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        while self._strangers and next(iter(self._strangers)).auth_deadline <= now:
            self._drop(next(iter(self._strangers)), "no authentication in time")
        for holder, suspect in list(self._suspects.items()):
            if suspect.due <= now:
                self._look_at(holder, suspect, now)
        for drain in [drain for drain in self._drains if drain.until <= now]:
            self._carry_on(drain, now)
        self.ledger.expire(now)
        self._carry_out()
        if self._listening_again is not None and self._listening_again <= now:
            self._listening_again = None
            self._register(self._listener.fileno(), self._listener)
        if now >= self._swept + 1.0:
            self._swept = now
            self._sweep()
        self._consider_the_end(now)

    def _is_idle(self) -> bool:
        return not self._clients and not self._drains and self.ledger.is_empty()

    def _consider_the_end(self, now: float) -> None:
        if not self._is_idle():
            self._idle_since, self._idle_for = None, self.caps.grace_s
        elif self._idle_since is None:
            self._idle_since = now
        elif now >= self._idle_since + self._idle_for:
            self._idle_since = now  # refused: asked again after as long
            if self._may_end():
                self._stopping = True

    def _sweep(self) -> None:
        connected = {channel.process for channel in (*self._strangers, *self._clients.values())}
        for process in self.liveness.watched():
            if process not in connected and not self.ledger.needs(process):
                self.liveness.forget(process)
                self.ledger.name(process, "")
        for holder in [h for h in self._images if h not in self._clients and not self.ledger.needs(h.process)]:
            del self._images[holder]

    # -- death ------------------------------------------------------------------------------------------------

    def reap_dead(self) -> None:
        """Drop what the processes had whose deaths liveness has found."""
        for process in self.liveness.take_dead():
            for channel in [c for c in (*self._strangers, *self._clients.values()) if c.process == process]:
                self._drop(channel)
            for holder in [holder for holder in self._images if holder.process == process]:
                del self._images[holder]
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

    def _accept(self) -> None:
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
                self._refuse("out of descriptors" if full else "gone before it was served")
            except Exception:
                connection.close()
                self._refuse("internal error")

    def _hang_up(self) -> None:
        """Out of descriptors: take the connection with the reserve and close it, so that the listener falls silent."""
        self._refuse("out of descriptors")
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self._reserve is None:  # somebody else took the number: not a second time at once
            self._unregister(self._listener.fileno())
            self._listening_again = self.now() + self.caps.poll_s

    def _admit(self, connection: socket.socket) -> None:
        trace.hit("reg.accept")
        who = peer_credentials(connection)
        cause = None
        if who.uid != self.liveness.system.euid():  # root is not exempt (S-04)
            cause = "foreign uid"
        elif who.pid <= 0:
            cause = "process of another PID namespace"
        elif len(self._strangers) >= self.caps.unauthenticated:
            cause = "too many unauthenticated peers"
        elif len(self._clients) >= self.caps.clients:
            cause = "too many clients"
        if cause is not None:
            connection.close()
            self._refuse(cause)
            return
        connection.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        process = self.liveness.watch_peer(connection, who.pid)
        self.reap_dead()
        handshake = ServerHandshake(self._key, self.random)
        channel = Channel(connection, who.pid, process, handshake)
        channel.auth_deadline = self.now() + self.caps.auth_s
        channel.send(handshake.challenge())
        self._strangers[channel] = None
        self._register(connection.fileno(), channel)

    def _drop(self, channel: Channel, cause: str | None = None) -> None:
        """Close a connection; with a cause, count the refusal."""
        if channel.closed:
            return
        if cause is not None:
            self._refuse(cause)
        self._unregister(channel.fileno())
        channel.close()
        self._strangers.pop(channel, None)
        holder = channel.holder
        if holder is not None and self._clients.get(holder) is channel:
            del self._clients[holder]
            self.ledger.disconnected(holder)
            if channel.image is not None and self.ledger.needs(holder.process):
                self._suspects[holder] = _Suspect(self.now(), 0, channel.image)

    def _refuse(self, cause: str) -> None:
        self.refused[cause] += 1
        now = self.now()
        if not self.refusal_log or now >= self.refusal_log[-1][0] + 1.0:
            self.refusal_log.append((now, cause))

    def _serve(self, channel: Channel, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE and not channel.closed and not channel.flush():
                self._writable(channel, wanted=False)
            for _ in range(_BATCH if mask & selectors.EVENT_READ else 0):
                if channel.closed or channel.closing:
                    break
                received = channel.receive()
                if received is None:
                    self._drop(channel)
                    break
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

    def _take(self, channel: Channel, received: Received) -> None:
        if received.sender is not None and received.sender != channel.pid:
            # A child that inherited the connection. No word to it: its request ids are its parent's.
            self._refuse("sent by another process")
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
            if received.descriptors or received.lost:
                raise HandshakeRefused("surplus descriptors")
            assert channel.handshake is not None, "I9: a stranger has a handshake"
            nonce = channel.handshake.accept(received.data)
            holder = HolderId(channel.process, nonce)
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
        del self._strangers[channel]
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
            self._refuse(f"{message.code.name}: {type(error).__name__}")
            reply = Reply(encode(Code.ERROR, message.request, **error_fields(error)))
        except Exception as error:
            self._refuse("internal error")
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
                    self._register(drain.fileno(), drain)

    def _carry_on(self, drain: Drain, now: float) -> None:
        if drain in self._drains and drain.step(now):
            self._drains.discard(drain)
            self._unregister(drain.fileno())
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
            "refusals": self.refused.total(),
        }

    def refusals(self) -> list[tuple[str, int]]:
        """Return the most frequent causes of refusals and their counts; the words are ours, never a peer's."""
        return self.refused.most_common(64)


class Lifetime:
    """The registry's hold on its directory: locks at the start, removal at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.directory = runtime.open_directory(path)
        self.server: RegistryServer | None = None
        self._start_lock: int | None = None
        self._ended = False
        self._alive_lock = runtime.hold_alive_lock(self.directory)
        if self._alive_lock is None:
            os.close(self.directory)
            raise RegistryGone("another registry serves this directory")

    def may_end(self) -> bool:
        """Take the start lock for the end; False: somebody is about to use us, or has come just now."""
        lock = runtime.try_start_lock(self.directory)
        if lock is None:
            return False
        if self.server is not None and self.server.has_visitors():
            runtime.release_lock(lock)
            return False
        self._start_lock = lock
        return True

    def end(self) -> None:
        """Remove the directory, unless a starter holds its lock: it will start anew in there. Doubled: no effect."""
        if self._ended:
            return
        self._ended = True
        for _ in range(50):
            if self._start_lock is None:
                self._start_lock = runtime.try_start_lock(self.directory)
                select.poll().poll(0 if self._start_lock is not None else 10)
        if self._start_lock is not None:
            runtime.remove_directory(self.path, self.directory)
            runtime.release_lock(self._start_lock)
        if self._alive_lock is not None:
            runtime.release_lock(self._alive_lock)
        os.close(self.directory)


def main(
    runtime_dir: str,
    ready_fd: int | None = None,
    *,
    key: bytes | None = None,
    limits: Limits | None = None,
    caps: Caps | None = None,
    hook: trace.Probe | None = None,
) -> None:
    """Be the registry of a runtime directory, until the end. For a process of its own: it takes the signals.

    Args:
        ready_fd: the end of a pipe; gets b"R" when connections are accepted, then is closed.
        key: only from code in this process (tests); None takes the one a manager has left for it, or draws one.
        hook: a Probe, only from code in this process; there is no switch from outside.

    Raises:
        RegistryGone: another registry serves the directory.
        OSError: the directory is not one we use.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hook is not None:
        trace.hook = hook
    _raise_descriptor_limit()
    lifetime = Lifetime(runtime_dir)
    try:
        if key is not None:
            give_key(lifetime.directory, key)
        elif (key := _offered_key(lifetime.directory)) is None:
            key = runtime.write_key(lifetime.directory)
        listener = runtime.bind_listener(lifetime.directory, runtime_dir)
        server = RegistryServer(listener, key, limits=limits, caps=caps, may_end=lifetime.may_end)
        lifetime.server = server
        signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: server.request_stop())
        if ready_fd is not None:
            os.write(ready_fd, READY)
            os.close(ready_fd)
        server.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        lifetime.end()


def give_key(directory: int, key: bytes, *, as_offer: bool = False) -> None:
    """Write a key to the key file of a runtime directory, or beside it for the registry that starts there next."""
    draft = f"draft.{os.urandom(8).hex()}"
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.write(number, key)
    finally:
        os.close(number)
    os.rename(draft, _OFFER if as_offer else runtime.KEY_FILE, src_dir_fd=directory, dst_dir_fd=directory)


def _offered_key(directory: int) -> bytes | None:
    """Take the key that whoever starts this registry has left for it (RegistryManager.start), None: none."""
    try:
        os.rename(_OFFER, runtime.KEY_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return None
    return runtime.read_key(directory)


def _raise_descriptor_limit() -> None:
    """Use all descriptors the system grants us: each ticket and each client takes some."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):  # then it is what it is: requests beyond it are refused
        pass
