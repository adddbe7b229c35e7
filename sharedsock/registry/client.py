"""THE CALLS of this process to one registry, typed; how they get there is the link's business.

A call returns the registry's answer, or raises what it refused with, or `RegistryGone` (at once when the registry
dies, after T_rpc when it hangs). What arrives with a claim is judged here: whether it is a socket, which one it is and
of what family and type, are read from the kernel and never believed (rule 16, F-34, F-37). A claim that does not reach
its caller leaves nothing behind: the descriptor is closed and the ticket handed back, wherever an interrupt lands.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
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
    RegistryStatistics,
    SocketFacts,
    SocketId,
)
from sharedsock.registry.exchange import Waiter
from sharedsock.registry.facts import socket_facts
from sharedsock.registry.link import SLOTS, T_RPC_S, Link
from sharedsock.registry.messages import COMMON_FIELDS, HOLDER_KINDS, SECRET_SIZE, Code
from sharedsock.registry.numbers import forget_number

if TYPE_CHECKING:
    from sharedsock.registry.page import CommonState

__all__ = ["T_RPC_S", "Claim", "Client"]

_SETTLE_S: Final = 0.1
_BLANK: Final[dict[str, Any]] = dict.fromkeys(COMMON_FIELDS, 0) | {"linger_s": None, "linger_kept_s": None}


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
        chain: the providers under the Python face; a peer's text, to be checked before it is believed.
    """

    number: int
    fd: int
    socket: SocketFacts
    slot: int
    target_bound: bool
    incarnation: bytes = b""
    chain: str = ""


class Client(Link):
    """This process's calls to one registry; made by `connect.default_client` and `connect.client_of`."""

    def announce(self, socket: SocketFacts, descriptor: DescriptorFacts, *, chain: str = "") -> int:
        """Have one descriptor counted; return the socket's place in the common state. Idempotent.

        Args:
            chain: the providers under the Python face, as `descriptors.providing` spells them.
        """
        fields = _socket_fields(socket) | _descriptor_fields(descriptor) | {"chain": chain}
        return self._announced(Code.ANNOUNCE, descriptor, fields)

    def recover(
        self, socket: SocketFacts, descriptor: DescriptorFacts, state: CommonState | None = None, chain: str = ""
    ) -> int:
        """Have a descriptor counted by a registry that took the place of the one it was shared through.

        Args:
            state: what all sharers agreed on there; None: nothing special.
            chain: as in `announce`.
        """
        fields = _socket_fields(socket) | _descriptor_fields(descriptor) | {"chain": chain}
        common = {name: getattr(state, name, default) for name, default in _BLANK.items()}
        return self._announced(Code.RECOVER, descriptor, fields | common)

    def _announced(self, code: Code, descriptor: DescriptorFacts, fields: dict[str, Any]) -> int:
        try:
            self._hold(descriptor.descriptor)
            reply = self._call(code, may_start=True, **fields)
        except BaseException:
            self._let_go(descriptor.descriptor)
            raise
        self._hold(descriptor.descriptor)  # where the call has started a registry, there was no directory before
        return self._place(reply.slot)

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
            keep: gets the secret as well, before this returns: a caller interrupted on the way finds it there.
            launching: for a child of ours that has no pid yet: no clock; it ends with this process until `bind`.

        Raises:
            TicketError: the target is no living process of this user (DUP-6); TicketLimit: the cap is reached.
            NotASocket: not an open descriptor of ours on that socket.
        """
        if target is not None:
            _check_pid(target)
        secrets: list[bytes] = [] if keep is None else keep
        before = len(secrets)
        waiter = Waiter()
        try:
            reply = self._call(
                Code.ISSUE,
                may_start=True,
                waiter=waiter,
                passing=fd,
                socket=socket,
                descriptor=descriptor,
                target=target,
                expires_s=expires_s,
                launching=launching,
            )
            secrets.append(bytes(reply.secret))
            return secrets[before]
        except BaseException as error:
            if keep is None or len(keep) == before:
                self._hand_back(waiter, interrupted=not isinstance(error, SharedSocketError))
            raise

    def bind(self, secret: bytes, target: int) -> bool:
        """Bind an unclaimed ticket of ours to a process, with which it ends. False: it has been claimed."""
        _check_pid(target)
        return bool(self._call(Code.BIND, secret=_checked_secret(secret), target=target).value)

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
            reply = self._call(Code.CLAIM, waiter=waiter, secret=_checked_secret(secret))
            trace.hit("take.received", number=reply.number)
            parcel = waiter.inbox[0]
            numbers = parcel.unpack()
            if parcel.is_truncated and len(numbers) <= 1:
                raise from_errno(errno.EMFILE, "no room for the socket: close some files; the ticket is unharmed")
            if len(numbers) != 1:
                raise TicketInvalid("the registry sent no descriptor, or more than one")
            facts = socket_facts(numbers[0])
            if facts is None or facts.socket != reply.socket:
                raise TicketInvalid("the registry sent something else than the ticket's socket")
            claims.append(
                Claim(
                    reply.number,
                    numbers[0],
                    facts,
                    self._place(reply.slot),
                    reply.target_bound,
                    self._session.incarnation,
                    reply.chain,
                )
            )
            return claims[before]
        except BaseException as error:
            if keep is None or len(keep) == before:
                self._hand_back(waiter, interrupted=not isinstance(error, SharedSocketError))
            raise

    def _hand_back(self, waiter: Waiter, *, interrupted: bool) -> None:
        """After a claim or an issue that failed here: close what came and take it back, now or when the reply comes."""
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
                self._call(Code.STATISTICS, timeout_s=_SETTLE_S)

    def acknowledge(self, claim: Claim, descriptor: DescriptorFacts) -> None:
        """The claim's descriptor is usable: the ticket's reference becomes the descriptor's.

        Idempotent, and tried once more when the reply is lost.
        """
        forget_number(claim.fd)
        fields = _descriptor_fields(descriptor)
        try:
            self._hold(descriptor.descriptor)
            try:
                self._acknowledge(claim, fields)
            except RegistryGone:
                self._acknowledge(claim, fields)
        except BaseException:
            self._let_go(descriptor.descriptor)
            raise
        trace.hit("take.acked", number=claim.number)

    def _acknowledge(self, claim: Claim, fields: dict[str, Any]) -> None:
        timeout_s = self.rpc_timeout_s / 2
        self._call(Code.ACK, timeout_s=timeout_s, incarnation=claim.incarnation, number=claim.number, **fields)

    def refuse(self, claim: Claim) -> None:
        """Hand the ticket back unclaimed. The number stays the caller's to close."""
        forget_number(claim.fd)
        self._call(Code.REFUSE, incarnation=claim.incarnation, number=claim.number)

    def revoke(self, secret: bytes) -> bool:
        """Take a ticket of ours back; False: it has been claimed, or is none any more."""
        return bool(self._call(Code.REVOKE, secret=_checked_secret(secret)).value)

    def begin_close(self, descriptor: DescriptorId) -> bool:
        """Say that a drained descriptor closes; True: it is the last.

        The answer binds until `end_close` or `cancel_close`. While all others are closing it waits for them, for T_rpc
        at most.
        """
        try:
            return bool(self._call(Code.BEGIN_CLOSE, descriptor=descriptor).value)
        except NotASocket:
            self._let_go(descriptor)
            raise

    def end_close(self, descriptor: DescriptorId) -> None:
        """The descriptor's kernel file is closed: give the reference back. Idempotent."""
        try:
            self._call(Code.END_CLOSE, descriptor=descriptor)
        finally:
            self._let_go(descriptor)

    def post_close(self, descriptor: DescriptorId) -> bool:
        """After a begin-close that was not answered in time: say that the descriptor is closed, and wait for nothing.

        A registry that hangs reads it when it goes on. False: it could not be sent, and the reference is still owed.
        """
        with contextlib.suppress(RegistryGone):
            channel = self._channel(start=False)
            if channel.post(Code.BEGIN_CLOSE, descriptor=descriptor) and channel.post(
                Code.END_CLOSE, descriptor=descriptor
            ):
                self._let_go(descriptor)
                return True
        return False

    def cancel_close(self, descriptor: DescriptorId) -> None:
        """The close was refused: the descriptor is open again."""
        self._call(Code.CANCEL_CLOSE, descriptor=descriptor)

    def lend(self, socket: SocketId, descriptor: DescriptorId, target: int) -> None:
        """Count a reference that ends with the process `target`, which needs not know us."""
        _check_pid(target)
        self._call(Code.LEND, may_start=True, socket=socket, descriptor=descriptor, target=target)

    def references(self, socket: SocketId) -> int:
        """Return how many descriptors (open, closing, lent) and unclaimed tickets the socket has."""
        return int(self._call(Code.REFERENCES, may_start=True, socket=socket).value)

    def holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return every reference of a socket."""
        return self._holders(Code.HOLDERS, socket)

    def former_holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return who had a socket that still lives and has it no more, in the order they went; the newest of them."""
        return self._holders(Code.FORMER_HOLDERS, socket)

    def _holders(self, code: Code, socket: SocketId) -> tuple[Holder, ...]:
        return tuple(
            Holder(pid, name, DescriptorId(descriptor), _holder_kind(kind), opened_at, since_s)
            for pid, name, descriptor, kind, opened_at, since_s in self._pages(code, socket=socket)
        )

    def sockets(self) -> tuple[tuple[SocketFacts, int], ...]:
        """Return every socket the registry knows, and its count."""
        return tuple(
            (SocketFacts(SocketId(socket), family, type_, protocol), count)
            for socket, family, type_, protocol, count in self._pages(Code.SOCKETS)
        )

    def _pages(self, code: Code, **values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        start = 0
        while True:
            page = self._call(code, may_start=not start, start=start, **values)
            rows.extend(page.items)
            if page.following <= start:  # 0 at the end; anything else that is not further on would go round for ever
                return rows
            start = page.following

    def set_common(self, socket: SocketId, **changes: bool | int | None) -> None:
        """Change what all sharers of a socket agree on (fields of `CommonState`), for all of them at once."""
        unknown = changes.keys() - set(COMMON_FIELDS)
        if unknown:
            raise TypeError(f"no common state is called {', '.join(sorted(unknown))}")
        changed = sum(1 << bit for bit, name in enumerate(COMMON_FIELDS) if name in changes)
        self._call(Code.SET_COMMON, may_start=True, socket=socket, changed=changed, **(_BLANK | changes))

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

        reply = self._call(Code.COMMON, may_start=True, slot=slot % SLOTS)
        if slot // SLOTS != session.generation:
            raise self._gone("is another one than it was")
        return CommonState(**{name: getattr(reply, name) for name in COMMON_FIELDS})

    def statistics(self) -> RegistryStatistics:
        """Return what the registry counts."""
        return RegistryStatistics(**self._call(Code.STATISTICS, may_start=True).values)

    def refusals(self) -> dict[str, int]:
        """Return what the registry has refused, by cause."""
        return {cause: int(count) for cause, count in self._call(Code.REFUSALS, may_start=True).items}

    def shutdown(self) -> None:
        """End the registry in order, whatever it still counts; sockets that are open go on working."""
        self._call(Code.SHUTDOWN)


def _checked_secret(secret: bytes) -> bytes:
    if len(secret) != SECRET_SIZE:
        raise TicketInvalid("no such ticket")
    return bytes(secret)


def _check_pid(pid: int) -> None:
    if not 0 < pid <= 0x7FFFFFFF:
        raise TicketError(f"no process has the number {pid}")


def _socket_fields(facts: SocketFacts) -> dict[str, Any]:
    return {"socket": facts.socket, "family": facts.family, "type": facts.type, "protocol": facts.protocol}


def _descriptor_fields(facts: DescriptorFacts) -> dict[str, Any]:
    return {"descriptor": facts.descriptor, "opened_at": facts.opened_at, "opened_s": facts.opened_s}


def _holder_kind(number: int) -> str:
    return HOLDER_KINDS[number] if number < len(HOLDER_KINDS) else "descriptor"
