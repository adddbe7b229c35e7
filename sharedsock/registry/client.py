"""THE CALLS of this process to one registry, typed; how they get there is the link's business.

A call returns the registry's answer, or raises what it refused with, or `RegistryGone` (at once when the registry
dies, after T_rpc when it hangs). What arrives with a claim is judged here: whether it is a socket, which one it is and
of what family and type, are read from the kernel and never believed (rule 16, F-34, F-37). A claim that does not reach
its caller leaves nothing behind: the descriptor is closed and the ticket handed back, wherever an interrupt lands.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sharedsock.model import trace
from sharedsock.model.errors import (
    NotASocket,
    RegistryGone,
    SharedSocketError,
    TicketError,
    TicketInvalid,
    from_errno,
)
from sharedsock.model.identity import (
    DescriptorFacts,
    DescriptorId,
    Holder,
    ProcessId,
    RegistryStatistics,
    SocketFacts,
    SocketId,
)
from sharedsock.registry.facts import socket_facts
from sharedsock.registry.link import SLOTS, T_RPC_S, Link
from sharedsock.registry.messages import COMMON_FIELDS, HOLDER_KINDS, SECRET_SIZE, SHAPES, Code, Shape
from sharedsock.registry.numbers import forget_number
from sharedsock.registry.parcels import Waiter

if TYPE_CHECKING:
    from sharedsock.registry.exchange import Exchange
    from sharedsock.registry.page import CommonState

__all__ = ["T_RPC_S", "Claim", "Client"]

_SETTLE_S: Final = 0.1
_BLANK: Final[dict[str, Any]] = dict.fromkeys(COMMON_FIELDS, 0) | {"linger_s": None, "linger_kept_s": None}
_ANNOUNCE: Final = SHAPES[Code.ANNOUNCE]
_RECOVER: Final = SHAPES[Code.RECOVER]
_ISSUE: Final = SHAPES[Code.ISSUE]
_BIND: Final = SHAPES[Code.BIND]
_CLAIM: Final = SHAPES[Code.CLAIM]
_ACK: Final = SHAPES[Code.ACK]
_REFUSE: Final = SHAPES[Code.REFUSE]
_REVOKE: Final = SHAPES[Code.REVOKE]
_BEGIN_CLOSE: Final = SHAPES[Code.BEGIN_CLOSE]
_END_CLOSE: Final = SHAPES[Code.END_CLOSE]
_CANCEL_CLOSE: Final = SHAPES[Code.CANCEL_CLOSE]
_LEND: Final = SHAPES[Code.LEND]
_REFERENCES: Final = SHAPES[Code.REFERENCES]
_SET_COMMON: Final = SHAPES[Code.SET_COMMON]
_STATISTICS: Final = SHAPES[Code.STATISTICS]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed ticket that is not acknowledged yet.

    Attributes:
        number: the registry's number for it.
        fd: the descriptor, close-on-exec; a number of this process, the caller's to close.
        socket: what the kernel says it is.
        slot: the socket's place in the common state.
        target_bound: whether the ticket was for this process alone.
        incarnation: the registry that granted it.
        channel: what it came over.
        chain: the providers under the Python face; a peer's text, to be checked before it is believed.
    """

    number: int
    fd: int
    socket: SocketFacts
    slot: int
    target_bound: bool
    incarnation: bytes = b""
    chain: str = ""
    channel: Exchange | None = field(default=None, repr=False, compare=False)


class Client(Link):
    """This process's calls to one registry; made by `connect.default_client` and `connect.client_of`."""

    def __init__(self, runtime: str, key: bytes | None = None, *, starts: bool = False) -> None:
        super().__init__(runtime, key, starts=starts)
        self._closing: dict[DescriptorId, Exchange | None] = {}  # begun: over which channel

    def announce(self, socket: SocketFacts, descriptor: DescriptorFacts, *, chain: str = "") -> int:
        """Have one descriptor counted; return the socket's place in the common state. Idempotent.

        Args:
            chain: the providers under the Python face, as `descriptors.providing` spells them.
        """
        return self._announced(_ANNOUNCE, descriptor, (*_told_of(socket), *_said_of(descriptor), chain))

    def recover(
        self, socket: SocketFacts, descriptor: DescriptorFacts, state: CommonState | None = None, chain: str = ""
    ) -> int:
        """Have a descriptor counted by a registry that took the place of the one it was shared through.

        Args:
            state: what all sharers agreed on there; None: nothing special.
            chain: as in `announce`.
        """
        common = [getattr(state, name, default) for name, default in _BLANK.items()]
        return self._announced(_RECOVER, descriptor, (*common, *_told_of(socket), *_said_of(descriptor), chain))

    def _announced(self, shape: Shape, descriptor: DescriptorFacts, values: tuple[Any, ...]) -> int:
        try:
            self._hold(descriptor.descriptor)
            (slot,) = self._call(shape, *values)
        except BaseException:
            self._let_go(descriptor.descriptor)
            raise
        self._hold(descriptor.descriptor)  # where the call has started a registry, there was no directory before
        return self._place(slot)

    def issue(
        self,
        socket: SocketId,
        descriptor: DescriptorId,
        fd: int,
        target: int | None,
        expires_s: float | None,
        keep: list[bytes] | None = None,
        *,
        launching: bool = False,
    ) -> bytes:
        """Issue a ticket, a reference from now on; return its 32-byte secret. The registry keeps a duplicate of `fd`.

        Args:
            target: the only process that may claim it; None: the first claimer wins.
            expires_s: None: no clock for a pid-bound ticket, 60 s for the other.
            keep: gets the secret before anything is sent: a caller interrupted on the way finds it there. Where the
                ticket is not issued it is taken out again.
            launching: for a child of ours that has no pid yet: no clock; it ends with this process until `bind`.

        Raises:
            TicketError: the target is no living process of this user (DUP-6); TicketLimit: the cap is reached.
            NotASocket: not an open descriptor of ours on that socket.
        """
        if target is not None:
            _check_pid(target)
        secret = os.urandom(SECRET_SIZE)
        if keep is not None:
            keep.append(secret)
        try:
            self._request(_ISSUE, (secret, socket, descriptor, target, expires_s, launching), passing=fd)
            return secret
        except RegistryGone:
            # It may read the request after all, when it goes on; then it reads this next.
            channel = self._session.channel
            if channel is not None:
                channel.post(_REVOKE, secret)
            _take_out(keep, secret)
            raise
        except SharedSocketError:
            _take_out(keep, secret)
            raise
        except BaseException:
            if keep is None:
                with contextlib.suppress(OSError):
                    self._request(_REVOKE, (secret,), timeout_s=_SETTLE_S)
            raise

    def bind(self, secret: bytes, target: int) -> bool:
        """Bind an unclaimed ticket of ours to a process, with which it ends. False: it has been claimed."""
        _check_pid(target)
        (is_bound,) = self._call(_BIND, _checked_secret(secret), target)
        return bool(is_bound)

    def claim(self, secret: bytes, keep: list[Claim] | None = None) -> Claim:
        """Claim a ticket: its descriptor is ours, checked, close-on-exec; `acknowledge` or `refuse` has to follow.

        Any failure leaves the ticket as it was (I8), and no descriptor here.

        Args:
            keep: gets the claim as well, before this returns: a caller interrupted on the way finds it there.

        Raises:
            TicketInvalid, TicketAlreadyClaimed, TicketExpired: refused.
            OSError: EMFILE, no room for the descriptor (F-29).
        """
        claims: list[Claim] = [] if keep is None else keep
        before = len(claims)
        waiter = Waiter()
        try:
            number, socket, _, _, _, slot, target_bound, chain = self._request(
                _CLAIM, (_checked_secret(secret),), waiter=waiter
            )
            if trace.hook is not None:
                trace.hit("take.received", number=number)
            parcel = waiter.inbox[0]
            numbers = parcel.unpack()
            if parcel.is_truncated and len(numbers) <= 1:
                raise from_errno(errno.EMFILE, "no room for the socket: close some files; the ticket is unharmed")
            if len(numbers) != 1:
                raise TicketInvalid("the registry sent no descriptor, or more than one")
            facts = socket_facts(numbers[0])
            if facts is None or facts.socket != socket:
                raise TicketInvalid("the registry sent something else than the ticket's socket")
            claims.append(
                Claim(
                    number,
                    numbers[0],
                    facts,
                    self._place(slot),
                    target_bound,
                    self._session.incarnation,
                    chain,
                    waiter.exchange,
                )
            )
            return claims[before]
        except BaseException as error:
            if keep is None or len(keep) == before:
                self._hand_back(waiter, interrupted=not isinstance(error, SharedSocketError))
            raise

    def _hand_back(self, waiter: Waiter, *, interrupted: bool) -> None:
        """After a claim that failed here: close what came and refuse it, now or when the reply comes."""
        waiter.gave_up = True
        exchange = waiter.exchange
        if exchange is None:
            return
        for parcel in waiter.inbox.copy():
            exchange.discard(parcel)
        if interrupted and not waiter.inbox:
            # The registry answers in order: once it has answered this, it has answered the other, and whoever has read
            # that has taken it back.
            with contextlib.suppress(OSError):
                self._request(_STATISTICS, (), timeout_s=_SETTLE_S)

    def acknowledge(self, claim: Claim, descriptor: DescriptorFacts, *, posted: bool = False) -> None:
        """The claim's descriptor is usable: the ticket's reference becomes the descriptor's.

        Idempotent, and tried once more when the reply is lost.

        Args:
            posted: do not wait for it, where nothing can come between: over the channel the claim came over it is good.
        """
        forget_number(claim.fd)
        try:
            self._hold(descriptor.descriptor)
            try:
                if not posted or not self._post(claim.channel, _ACK, claim.number, *_said_of(descriptor)):
                    self._acknowledge(claim, descriptor)
            except RegistryGone:
                self._acknowledge(claim, descriptor)
        except BaseException:
            self._let_go(descriptor.descriptor)
            raise
        if trace.hook is not None:
            trace.hit("take.acked", number=claim.number)

    def is_from(self, claim: Claim) -> bool:
        """Say whether the registry that granted a claim is still the one this process has told what it holds."""
        return self._session.incarnation == claim.incarnation

    def _post(self, channel: Exchange | None, shape: Shape, *values: Any) -> bool:
        """Post what has to be done over a channel, if that is still this process's; report whether it was sent."""
        session = self._session
        if channel is None or session.channel is not channel or session.pid != os.getpid():
            return False
        return channel.post_surely(shape, *values)

    def _acknowledge(self, claim: Claim, descriptor: DescriptorFacts) -> None:
        values = claim.number, *_said_of(descriptor)
        self._request(_ACK, values, timeout_s=self.rpc_timeout_s / 2, incarnation=claim.incarnation)

    def refuse(self, claim: Claim) -> None:
        """Hand the ticket back unclaimed. The number stays the caller's to close."""
        forget_number(claim.fd)
        self._request(_REFUSE, (claim.number,), incarnation=claim.incarnation)

    def revoke(self, secret: bytes) -> bool:
        """Take a ticket of ours back; False: it has been claimed, or is none any more."""
        (was_there,) = self._call(_REVOKE, _checked_secret(secret))
        return bool(was_there)

    def begin_close(self, descriptor: DescriptorId) -> bool:
        """Say that a drained descriptor closes; True: it is the last.

        The answer binds until `end_close` or `cancel_close`. While all others are closing it waits for them, for T_rpc
        at most.
        """
        try:
            (is_last,) = self._call(_BEGIN_CLOSE, descriptor)
            self._closing[descriptor] = self._session.channel
            return bool(is_last)
        except NotASocket:
            self._let_go(descriptor)
            raise

    def end_close(self, descriptor: DescriptorId) -> None:
        """The descriptor's kernel file is closed: give the reference back. Idempotent.

        Not waited for where the same channel has just carried the begin-close: then it is good.
        """
        try:
            if not self._post(self._closing.pop(descriptor, None), _END_CLOSE, descriptor):
                self._call(_END_CLOSE, descriptor)
        finally:
            self._let_go(descriptor)

    def post_close(self, descriptor: DescriptorId, *, renews: bool = True) -> bool:
        """Say that a descriptor is closed, and wait for nothing: nobody cares whether it was the last.

        A registry that hangs reads it when it goes on. False: it could not be sent, and the reference is still owed.

        Args:
            renews: make the channel anew where it has ended, which may take T_rpc.
        """
        if not renews and not self.is_connected():
            return False
        with contextlib.suppress(RegistryGone):
            channel = self._channel(start=False)
            if channel.post(_BEGIN_CLOSE, descriptor) and channel.post(_END_CLOSE, descriptor):
                self._let_go(descriptor)
                return True
        return False

    def cancel_close(self, descriptor: DescriptorId) -> None:
        """The close was refused: the descriptor is open again."""
        self._closing.pop(descriptor, None)
        self._call(_CANCEL_CLOSE, descriptor)

    def lend(
        self, socket: SocketId, descriptor: DescriptorId, target: int, since_s: float = 0.0, started_ticks: int = 0
    ) -> ProcessId:
        """Count a reference that ends with the process `target`, which needs not know us; return which one it is.

        Args:
            since_s: since when, in seconds since the epoch.
            started_ticks: only if it is the process that began then; 0: whoever has the number.

        Raises:
            TicketError: no such process of this user.
        """
        _check_pid(target)
        (start_ticks,) = self._call(_LEND, socket, descriptor, target, started_ticks, since_s)
        self._mine().lent.add((descriptor, target))
        return ProcessId(target, start_ticks)

    def forget_lent(self, descriptor: DescriptorId, target: int) -> None:
        """A reference that was lent has ended: no other registry need hear of it."""
        self._mine().lent.discard((descriptor, target))

    def references(self, socket: SocketId) -> int:
        """Return how many descriptors (open, closing, lent) and unclaimed tickets the socket has."""
        (count,) = self._call(_REFERENCES, socket)
        return int(count)

    def holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return every reference of a socket."""
        return self._holders(Code.HOLDERS, socket)

    def former_holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return who had a socket that still lives and has it no more, in the order they went; the newest of them."""
        return self._holders(Code.FORMER_HOLDERS, socket)

    def _holders(self, code: Code, socket: SocketId) -> tuple[Holder, ...]:
        return tuple(
            Holder(pid, name, DescriptorId(descriptor), _holder_kind(kind), opened_at, since_s)
            for pid, name, descriptor, kind, opened_at, since_s in self._pages(code, socket)
        )

    def sockets(self) -> tuple[tuple[SocketFacts, int], ...]:
        """Return every socket the registry knows, and its count."""
        return tuple(
            (SocketFacts(SocketId(socket), family, type_, protocol), count)
            for socket, family, type_, protocol, count in self._pages(Code.SOCKETS)
        )

    def _pages(self, code: Code, *values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        start = 0
        while True:
            known = self._session.incarnation if start else b""  # all pages are one registry's
            following, items = self._request(SHAPES[code], (*values, start), incarnation=known)
            rows.extend(items)
            if following <= start:  # 0 at the end; anything else that is not further on would go round for ever
                return rows
            start = following

    def set_common(self, socket: SocketId, **changes: bool | int | None) -> None:
        """Change what all sharers of a socket agree on (fields of `CommonState`), for all of them at once."""
        unknown = changes.keys() - set(COMMON_FIELDS)
        if unknown:
            raise TypeError(f"no common state is called {', '.join(sorted(unknown))}")
        changed = sum(1 << bit for bit, name in enumerate(COMMON_FIELDS) if name in changes)
        self._call(_SET_COMMON, socket, changed, *(_BLANK | changes).values())

    def common(self, slot: int) -> CommonState:
        """Return what all sharers of the socket in a place agree on: from the page, without a system call.

        Raises:
            RegistryGone: there are no pages here, and the registry that could be asked is gone.
        """
        session = self._session
        page = session.pages.get(slot // SLOTS)
        if page is not None:
            return page.read(slot % SLOTS)
        from sharedsock.registry.page import CommonState

        values = self._call(SHAPES[Code.COMMON], slot % SLOTS)
        if slot // SLOTS != session.generation:
            raise self._gone("is another one than it was")
        return CommonState(**dict(zip(COMMON_FIELDS, values, strict=True)))

    def statistics(self) -> RegistryStatistics:
        """Return what the registry counts."""
        names = SHAPES[Code.STATISTICS_ARE].names
        return RegistryStatistics(**dict(zip(names, self._call(_STATISTICS), strict=True)))

    def refusals(self) -> dict[str, int]:
        """Return what the registry has refused, by cause."""
        (rows,) = self._call(SHAPES[Code.REFUSALS])
        return {cause: int(count) for cause, count in rows}

    def shutdown(self) -> None:
        """End the registry in order, whatever it still counts; sockets that are open go on working."""
        self._call(SHAPES[Code.SHUTDOWN])


def _checked_secret(secret: bytes) -> bytes:
    if len(secret) != SECRET_SIZE:
        raise TicketInvalid("no such ticket")
    return bytes(secret)


def _check_pid(pid: int) -> None:
    if not 0 < pid <= 0x7FFFFFFF:
        raise TicketError(f"no process has the number {pid}")


def _told_of(facts: SocketFacts) -> tuple[Any, ...]:
    return facts.socket, facts.family, facts.type, facts.protocol


def _said_of(facts: DescriptorFacts) -> tuple[Any, ...]:
    return facts.descriptor, facts.opened_s, facts.opened_at


def _take_out(keep: list[bytes] | None, secret: bytes) -> None:
    if keep is not None:
        with contextlib.suppress(ValueError):
            keep.remove(secret)


def _holder_kind(number: int) -> str:
    return HOLDER_KINDS[number] if number < len(HOLDER_KINDS) else "descriptor"
