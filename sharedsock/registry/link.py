"""THE LINK of this process to one registry: made, shaken hands on, renewed and given up here.

The channel is made at the first call that needs it and is the process's own: a forked child makes another, with a
holder nonce of its own, before it says anything (rule 11, F-87, F-90). A registry that dies ends every waiting call at
once with `RegistryGone`; one that hangs does so after T_rpc. The next call that needs a registry, and is not about
something only the dead one knew, starts the default registry again; then `on_reconnect` runs, in the calling thread and
before any other call, so that this process's descriptors can be announced once more with recovered=True.

Both sides prove that they have the key, and each looks at the other's uid (S-04, S-05). The key is read from its 0600
file for each handshake and is in no attribute of ours, unless the user gave it (S-06).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final

from sharedsock.model.errors import RegistryGone, from_errno, with_winerror
from sharedsock.model.identity import DescriptorId
from sharedsock.registry import launch, runtime
from sharedsock.registry.exchange import ChannelLost, Exchange, Late
from sharedsock.registry.holders import HolderPipe
from sharedsock.registry.messages import SHAPES, Code, Shape, refusal_of
from sharedsock.registry.numbers import close_if_same, forget_number, notice_fork
from sharedsock.registry.parcels import Answer, Parcel, Waiter, receive, wait_ready
from sharedsock.registry.turns import Token, Turn

if TYPE_CHECKING:
    from sharedsock.registry.page import PageReader

__all__ = ["SLOTS", "T_RPC_S", "Link"]

T_RPC_S: Final = 2.0
SLOTS: Final = 65_536  # of a page; page.py is loaded when there is one
_ABSENT: Final = (errno.ENOENT, errno.ECONNREFUSED)
_CREDENTIALS: Final = struct.Struct("3i")
_RECOVERED: Final = SHAPES[Code.RECOVERED]
_MOST_STARTED: Final = 2  # registries, by one call
# The requests that can do with a registry which has just been started: they are about nothing only a dead one knew.
_STARTING: Final = frozenset(
    {
        Code.ANNOUNCE,
        Code.RECOVER,
        Code.ISSUE,
        Code.LEND,
        Code.REFERENCES,
        Code.HOLDERS,
        Code.FORMER_HOLDERS,
        Code.SOCKETS,
        Code.SET_COMMON,
        Code.COMMON,
        Code.STATISTICS,
        Code.REFUSALS,
    }
)


class _Absent(Exception):
    """Nobody answers at the registry's address, or whoever did has just ended."""


class _Session:
    """What a client has in one process instance. A forked child has a new one."""

    def __init__(self, pid: int, path: str, tell: Callable[[int, bool], None]) -> None:
        self.pid = pid
        self.nonce = os.urandom(16)
        self.turn = Turn()
        self.channel: Exchange | None = None
        self.fresh: Exchange | None = None  # while `on_reconnect` runs: its thread's
        self.known_to = b""  # the incarnation that has been told what we hold
        self.incarnation = b""
        self.registry_pid = 0
        # The registry's page, and that of the one before it, which shows what the sharers agreed on when it died: by
        # generation, which a place has in its upper part, so that no place is ever looked up in another one's page.
        self.pages: dict[int, PageReader] = {}
        self.generation = -1
        self.pipe = HolderPipe(path, self.nonce, tell)
        self.held: set[DescriptorId] = set()
        self.lent: set[tuple[DescriptorId, int]] = set()  # through which descriptor, to which pid
        self.retired = False
        self.heirs: dict[int, _Session] = {}

    def forget_old_pages(self) -> None:
        """Keep the registry's page and that of the one before it."""
        # Not in the midst of connecting: the cleanup of a comprehension that is compiled in place (3.12 on) is, like
        # the beginning of a `try`, in no exception table.
        for generation in [known for known in self.pages if known < self.generation - 1]:
            self.pages.pop(generation, None)


class Link:
    """One registry, as this process reaches it. Safe from any thread and against an interrupt anywhere.

    Args:
        runtime: the registry's runtime directory.
        key: its 32-byte key; None: read from the 0600 file in the directory at each connection.
        starts: whether a missing registry is started by calls that can do with a new one.

    Attributes:
        rpc_timeout_s: T_rpc, the bound of every call.
        on_reconnect: called when another registry has taken the place of one that had been told what we hold; its calls
            come before all others.
    """

    def __init__(self, runtime: str, key: bytes | None = None, *, starts: bool = False) -> None:
        self.runtime = runtime
        self.starts = starts
        self.rpc_timeout_s = T_RPC_S
        self.on_reconnect: Callable[[Any], None] | None = None
        self.on_hold: Callable[[Any, int, bool], None] | None = None
        self._key = key
        self._session = _Session(notice_fork(), runtime, self._tell)

    def __repr__(self) -> str:
        return f"<registry client of {self.runtime}{'' if self.is_connected() else ', no channel'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a registry client belongs to its process; other processes find the registry by themselves")

    # -- the channel ----------------------------------------------------------------------------------------------

    def is_connected(self) -> bool:
        """Report whether this process has a channel that is not known to be broken."""
        session = self._session
        return session.pid == os.getpid() and session.channel is not None and not session.channel.ended

    def is_idle(self) -> bool:
        """Report whether this process has announced no descriptor here that it has not ended."""
        return not self._mine().held

    @property
    def is_alive(self) -> bool:
        """Whether the channel is open at this moment, as far as the kernel knows; asks nobody."""
        session = self._session
        channel = session.channel
        return session.pid == os.getpid() and channel is not None and channel.is_open()

    def connect(self, *, start: bool = True) -> None:
        """Make the channel now unless there is one, starting the registry where this client may."""
        self._channel(start=start)

    def use_key(self, key: bytes | None) -> None:
        """Use this key for handshakes from now on; None: the one in the key file."""
        self._key = key

    @property
    def incarnation(self) -> bytes:
        """16 bytes the registry drew at its start."""
        session = self._session
        channel = session.channel
        if channel is None or channel.ended or session.pid != os.getpid():
            self._channel(start=False)
            session = self._session
        return session.incarnation

    @property
    def pid(self) -> int:
        """The registry's pid."""
        self._channel(start=False)
        return self._mine().registry_pid

    def close(self) -> None:
        """Give the channel up in order; the next call makes a new one.

        What this process has announced stays counted until it is ended, or the process is.
        """
        session = self._mine()
        channel = session.channel
        if channel is not None:
            channel.part()
        if not session.held:
            session.pages.clear()  # a mapping holds a descriptor of ours; nobody here has a socket that needs it
        self.rest()

    def rest(self) -> None:
        """Close the pipe, if this process holds nothing here; otherwise it stays as long as the channel.

        So a socket that is taken and closed again and again costs no pipe, no lock and no thread each time.
        """
        session = self._mine()
        session.pipe.close(session.held.__len__)

    # -- what is held ------------------------------------------------------------------------------------------------

    def _hold(self, descriptor: DescriptorId) -> None:
        """Before a descriptor is counted: have a registry that comes after this one wait for us (F-76).

        Raises:
            OSError: EMFILE, ENOSPC. After this, or an interrupt, `_let_go` has to follow.
        """
        session = self._mine()
        session.held.add(descriptor)
        if not session.pipe.is_held:
            session.pipe.hold()

    def _tell(self, number: int, is_held: bool) -> None:
        if self.on_hold is not None:
            self.on_hold(self, number, is_held)

    def _let_go(self, descriptor: DescriptorId) -> None:
        """A descriptor is counted no more."""
        session = self._mine()
        session.held.discard(descriptor)
        if session.held:
            return
        channel = session.channel
        if session.retired:
            self.close()
        elif channel is not None and channel.ended:
            self.leave()

    def leave(self) -> None:
        """This process has no more use for a dead registry: take its pipe out of the directory, and the directory away
        if nobody else holds anything there."""
        channel = self._mine().channel
        if channel is not None and not channel.is_open():
            self._session.pipe.close()
            launch.remove_if_abandoned(self.runtime)

    def answer_call(self) -> None:
        """Another registry has taken a dead one's place and asks who is left: announce what we hold, if need be."""
        if self.is_alive:
            return
        session = self._mine()
        if session.held or session.lent:
            self._channel(start=False)
        else:
            self.rest()

    def silence(self) -> None:
        """Empty the pipe, so that it is readable when the next registry calls."""
        self._session.pipe.silence()

    def retire(self) -> None:
        """Close the channel when this process holds nothing here: now, or at the last `end_close`."""
        session = self._mine()
        session.retired = True
        if not session.held:
            self.close()

    def after_fork_in_child(self) -> None:
        """Own nothing of the parent's: the channel's number is closed already, the next call begins anew."""
        self._mine()

    def _mine(self) -> _Session:
        session = self._session
        if session.pid == os.getpid():
            return session
        pid = notice_fork()
        # A forked child. setdefault, so that two first threads agree on one new session.
        heir = session.heirs.setdefault(pid, _Session(pid, self.runtime, self._tell))
        session.pipe.abandon()
        for channel in (session.channel, session.fresh):
            if channel is not None:
                channel.abandon()
        self._session = heir
        return heir

    def _channel(self, *, start: bool) -> Exchange:
        session = self._mine()
        channel = session.channel
        if channel is not None and not channel.ended:
            return channel
        if session.turn.is_mine():  # a call of `on_reconnect`, or of a signal handler in the middle of connecting
            if session.fresh is None or session.fresh.ended:
                raise self._gone("is gone")
            return session.fresh
        start = start and self.starts
        deadline = time.monotonic() + self.rpc_timeout_s + (launch.START_TIMEOUT_S if start else 0.0)
        token = Token()
        try:
            try:
                if not session.turn.take(token, deadline):
                    raise self._gone("could not be reached in time")
                channel = session.channel
                if channel is None or channel.ended:
                    channel = self._connect_clearly(session, start, deadline)
                return channel
            finally:
                session.turn.leave(token)
        finally:
            session.turn.leave(token)

    def _connect_clearly(self, session: _Session, start: bool, deadline: float) -> Exchange:
        try:
            return self._connect(session, start, deadline)
        except ImportError as error:  # the package is complete: no file could be opened
            raise from_errno(errno.EMFILE, "no room to load what a registry needs") from error
        except OSError as error:
            with_winerror(error)
            raise

    def _connect(self, session: _Session, start: bool, deadline: float) -> Exchange:
        before = session.channel
        made: list[Exchange] = []
        try:
            made.extend(starmap(self._reach, ((session, start, deadline),)))  # no step between that could lose it
            channel = session.fresh = made[0]
            if before is not None and session.known_to == session.incarnation:
                for shape, values in before.undone():
                    channel.post_surely(shape, *values)
            # The same registry has kept what we announced (a channel is not a life); another one knows nothing.
            if session.known_to not in (b"", session.incarnation) and self.on_reconnect is not None:
                self.on_reconnect(self)
            if session.known_to != session.incarnation and (session.held or session.pipe.is_held):
                session.pipe.renew()
                self._call(_RECOVERED)  # that was all: it need not wait for us any more
            session.known_to = session.incarnation
            session.forget_old_pages()
            session.channel = channel
            return channel
        except BaseException:
            for channel in made:
                channel.end()
            raise
        finally:
            session.fresh = None

    def _reach(self, session: _Session, start: bool, deadline: float) -> Exchange:
        # Registries may die one after the other as fast as they are started: then nobody is to wait for the next one
        # until the time for a slow start is over, but T_rpc, and what two starts take (F-74).
        interval_ms, started = 1, 0
        patience = time.monotonic() + self.rpc_timeout_s
        while True:
            try:
                return self._open(session, deadline)
            except _Absent as absent:
                began = time.monotonic()
                if not start or began >= min(patience, deadline):
                    raise self._gone("is not there: it ended, or was never started") from absent.__cause__
                if started == _MOST_STARTED:
                    raise self._gone("died as soon as it was started, and so did the next") from absent.__cause__
            if launch.start(self.runtime, max(0.001, deadline - began)):
                started += 1
                patience += time.monotonic() - began
            else:
                # Alive and not at its address: on its way there (its starter died, F-06), or on its way out.
                select.poll().poll(interval_ms)
                interval_ms = min(50, interval_ms * 2)

    def _open(self, session: _Session, deadline: float) -> Exchange:
        """Connect and shake hands.

        Raises:
            _Absent: nobody there.
            RegistryGone: somebody is, and is not the registry, or does not answer.
            OSError: EMFILE and the like, PermissionError for a directory we do not use (S-02).
        """
        from sharedsock.registry.handshake import ClientHandshake, HandshakeRefused

        deadline = min(deadline, time.monotonic() + self.rpc_timeout_s)
        try:
            connected = runtime.connect_to(self.runtime, max(0.001, deadline - time.monotonic()), noted=True)
        except TimeoutError as error:
            raise self._gone("accepts no connection") from error
        except OSError as error:
            if error.errno in _ABSENT:
                raise _Absent from error
            raise
        channel = Exchange(connected)
        parcels: list[Parcel] = []
        try:
            found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(found)
            if uid != os.geteuid():
                raise self._gone("is another user's process")
            try:
                handshake = ClientHandshake(self._read_key(), session.nonce)
                answer = handshake.answer(self._hear(connected, parcels, deadline))
                connected.send(answer, socket.MSG_NOSIGNAL)
                welcome = handshake.check(self._hear(connected, parcels, deadline))
            except HandshakeRefused as error:
                raise self._gone(f"did not prove that it is the registry ({error.cause})") from None
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _Absent from error
            page = self._map_page(parcels[-1]) if welcome.page else None
            if welcome.incarnation != session.incarnation:
                session.generation += 1
            if page is not None:
                session.pages[session.generation] = page
            session.incarnation, session.registry_pid = welcome.incarnation, pid or welcome.pid
            return channel
        except BaseException:
            channel.end()
            raise
        finally:
            for parcel in parcels:
                parcel.close()

    def _read_key(self) -> bytes:
        if self._key is not None:
            return self._key
        try:
            return runtime.in_directory(self.runtime, runtime.read_key)
        except FileNotFoundError as error:
            raise _Absent from error

    def _hear(self, connected: socket.socket, parcels: list[Parcel], deadline: float) -> bytes:
        parcel = Parcel()
        parcels.append(parcel)
        while not parcel.raw:
            if not wait_ready(connected.fileno(), select.POLLIN, deadline):
                raise self._gone(f"did not answer within {self.rpc_timeout_s} s")
            receive(connected, parcel)
        if not parcel.data:
            raise _Absent
        return parcel.data

    def _map_page(self, parcel: Parcel) -> PageReader:
        from sharedsock.registry.page import PageReader

        numbers = parcel.unpack()
        if parcel.is_truncated:
            raise from_errno(errno.EMFILE, "no room for the registry's page: this process has too many open files")
        if len(numbers) != 1:
            raise self._gone("sent no page")
        number = numbers[0]
        try:
            numbers.clear()
            page = PageReader(number)  # which closes it
        except BaseException as error:
            close_if_same(number)
            if isinstance(error, OSError) and error.errno is None:
                raise self._gone("sent something that is no page") from error
            raise
        forget_number(number)
        return page

    def _place(self, slot: int) -> int:
        """Return a slot of this registry's page as a number that no other registry's slot has."""
        return self._session.generation * SLOTS + slot

    def _gone(self, what: str) -> RegistryGone:
        return RegistryGone(f"the registry at {self.runtime} {what}; sockets that are open go on working")

    def _call(self, shape: Shape, *values: Any) -> Sequence[Any]:
        """Send a request and return the values of its reply; most calls, most of the time. Else as `_request` says."""
        session = self._session
        channel = session.channel
        answer: Answer | None = None
        if channel is not None and session.pid == os.getpid():
            try:
                answer = channel.ask_alone(shape, values, self.rpc_timeout_s)
            except ChannelLost:
                raise self._gone("is gone") from None
            except Late:
                raise self._gone(f"did not answer within {self.rpc_timeout_s} s") from None
        if answer is not None and answer[0].code is shape.reply:
            return answer[1]
        return self._request(shape, values, answer=answer)

    def _request(
        self,
        shape: Shape,
        values: tuple[Any, ...],
        *,
        answer: Answer | None = None,
        waiter: Waiter | None = None,
        passing: int | None = None,
        timeout_s: float | None = None,
        incarnation: bytes = b"",
    ) -> Sequence[Any]:
        """Send a request and return the values of its reply.

        A request that a dead channel cannot have carried goes over a new one.

        Args:
            answer: it is here already, and is another one than it should be.
            waiter: gets the reply's parcel as well, for a call that takes a descriptor.
            passing: a descriptor that travels with the request.
            timeout_s: None: T_rpc.
            incarnation: the only one the call makes sense for; empty: any.

        Raises:
            RegistryGone: not there, gone meanwhile, or silent for `timeout_s`.
            OSError: what the registry's ERROR stands for.
        """
        if timeout_s is None:
            timeout_s = self.rpc_timeout_s
        channel = self._session.channel
        tries = 3
        try:
            while answer is None:
                channel = self._channel(start=shape.code in _STARTING)
                if incarnation and self._session.incarnation != incarnation:
                    raise self._gone("is another one than it was")
                if waiter is None:
                    answer = channel.ask_alone(shape, values, timeout_s, passing)
                if answer is None:
                    try:
                        deadline = time.monotonic() + timeout_s
                        answer = channel.ask(waiter or Waiter(), shape, values, deadline, passing)
                    except ChannelLost as lost:
                        tries -= 1
                        if lost.sent or not tries:
                            raise
        except ChannelLost:
            raise self._gone("is gone") from None
        except Late:
            raise self._gone(f"did not answer within {self.rpc_timeout_s} s") from None
        reply, found = answer
        if reply.code is shape.reply:
            return found
        if reply.code is Code.ERROR:
            raise refusal_of(*found)
        assert channel is not None, "somebody has answered"
        channel.end()
        raise self._gone("does not keep to the protocol")
