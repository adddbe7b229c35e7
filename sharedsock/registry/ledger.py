"""THE COUNT: which sockets are shared, by whom, and which tickets are out. Pure: no I/O, no thread, no clock.

references = open + closing descriptors + lent ones + tickets issued or claimed and not yet acknowledged; how closers
find out who is last is in records.py. A call that is refused raises before it changes anything. A call that has
consequences for others, or for descriptors in custody, leaves them in `take_effects()`, which the server carries out
in order: late answers to begin-close, tickets whose descriptor custody gives up, changes to the common-state page.
Times are seconds of a monotonic clock, passed in; secrets are random bytes, passed in, and kept as hashes only (S-09).

Who asks is a `HolderId`, taken from the connection and never from a message: a holder reaches only its own descriptors,
the tickets it issued, and the claims it made (S-14). Whether a process lives is liveness.py's business.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from sharedsock.model.errors import (
    NotASocket,
    TicketAlreadyClaimed,
    TicketError,
    TicketInvalid,
    TicketLimit,
    from_errno,
)
from sharedsock.model.identity import DescriptorFacts, DescriptorId, Holder, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import (
    Answer,
    Effect,
    Holding,
    Limits,
    Record,
    Reference,
    ReleaseCustody,
    ShowCommon,
    State,
    remember,
)
from sharedsock.registry.recovery import Recovery
from sharedsock.registry.tickets import Fate, TicketBook
from sharedsock.registry.timers import Timers

__all__ = ["Granted", "Ledger"]


@dataclass(frozen=True, slots=True)
class Granted:
    """What a claim has granted: the ticket's number for ACK or REFUSE, the socket, its slot, whether it was bound, its
    chain.
    """

    number: int
    socket: SocketFacts
    slot: int
    target_bound: bool
    chain: str = ""


class Ledger:
    """The registry's whole knowledge, as one object of one thread.

    Args:
        pepper: hashed with each ticket secret; the incarnation of the registry, so that a ticket of an earlier one
            is unknown here (F-26).

    Attributes:
        timers: what is due when; see `next_deadline`.
    """

    def __init__(self, pepper: bytes = b"", limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.timers = Timers()
        self._tickets = TicketBook(pepper, self.limits.remembered)
        self._records: dict[SocketId, Record] = {}
        self._holdings: dict[HolderId, Holding] = {}
        self._of_process: dict[ProcessId, set[HolderId]] = {}
        self._targeted: dict[ProcessId, set[Reference]] = {}  # tickets and lends that end with a process
        self._names: dict[ProcessId, str] = {}
        self._recovery = Recovery()
        self._serial = 0
        self._free_slots: list[int] = []
        self._slots_used = 0
        self._effects: list[Effect] = []

    def name(self, process: ProcessId, name: str) -> None:
        """Note a process's name for `holders()`; empty forgets it, and so does `reap`."""
        if name:
            self._names[process] = name
        else:
            self._names.pop(process, None)

    def has_effects(self) -> bool:
        """Say whether `take_effects` would return anything."""
        return bool(self._effects)

    def take_effects(self) -> list[Effect]:
        """Return what the calls since the last time have caused, in order, and forget it."""
        effects, self._effects = self._effects, []
        return effects

    # -- descriptors ------------------------------------------------------------------------------------------

    def announce(
        self,
        holder: HolderId,
        socket: SocketFacts,
        descriptor: DescriptorFacts,
        recovered: CommonState | None = None,
        chain: str = "",
    ) -> int:
        """Count a holder's descriptor, making the socket's record if need be; return the socket's slot.

        Announcing the same again changes nothing (F-04).

        Args:
            recovered: the holder shared it through an earlier registry, so others may hold it that this one does
                not know yet (recovery.py). This is what its sharers agreed on there: all that is known where the
                record is new; later only the directions that were shut down meanwhile and a reset add to it.
            chain: what lies under the Python face; the record keeps that of the first announcement.

        Raises:
            NotASocket: this descriptor is known, and is one of another socket.
            OSError: ENOBUFS, a cap of S-11.
        """
        holding = self._holdings.get(holder)
        known = holding.descriptors.get(descriptor.descriptor) if holding is not None else None
        record = self._records.get(socket.socket)
        if known is not None and known.record is not record:
            raise NotASocket("that descriptor belongs to another socket")
        if known is None:
            self._check_room(holding)
        if record is None:
            record = self._new_record(socket, replace(recovered or CommonState(), events=0), chain)
        if recovered is not None:
            self._recover(record, holder, recovered)
        if known is None:
            self._add_descriptor(record, holder, descriptor)
        self._settle(record)
        return record.slot

    # -- after a restart ----------------------------------------------------------------------------------------

    def await_holders(self, nonces: Iterable[bytes], until: float) -> None:
        """Begin in a dead registry's place: tell nobody LAST before these holders have announced again, or died.

        Args:
            until: closers wait for that, but not longer.
        """
        self._recovery.begin(nonces, until)

    def missing(self) -> frozenset[bytes]:
        """Return the nonces of the holders that are still awaited."""
        return self._recovery.missing

    def has_announced(self, nonce: bytes) -> None:
        """An awaited holder has announced everything it holds, or is dead. Others: no effect."""
        if self._recovery.strike(nonce):
            for record in self._records.values():
                record.recovered = False
            self._settle_all()

    def _recover(self, record: Record, holder: HolderId, state: CommonState) -> None:
        record.recovered = not self._recovery.is_over()
        record.unsure |= holder.nonce not in self._recovery.missing
        before = record.common
        record.common = replace(
            before,
            shut_receive=before.shut_receive or state.shut_receive,
            shut_send=before.shut_send or state.shut_send,
            reset_seen=before.reset_seen or state.reset_seen,
            has_port=before.has_port or state.has_port,
        )
        # An event registration comes back with its owner.
        if not before.events and state.events and state.events_pid == holder.process.pid:
            record.common, record.registrant = replace(record.common, events=state.events), holder
        if record.common != before:
            self._effects.append(ShowCommon(record.slot, record.common))

    def _settle_all(self) -> None:
        for record in [record for record in self._records.values() if record.pending is not None]:
            self._settle(record)

    def begin_close(self, holder: HolderId, descriptor: DescriptorId, token: Hashable, now: float) -> bool | None:
        """Tell a closer whether it is the last; None: an `Answer` with `token` follows within `close_wait_s`.

        The answer binds until end-close or cancel-close; asking again repeats it.

        Raises:
            NotASocket: the holder has no such descriptor.
        """
        reference = self._own(holder, descriptor)
        if reference.state is not State.CLOSING:
            self._start_close(reference, State.CLOSING, now + self.limits.close_wait_s)
        if reference.answer is None:
            reference.waiting.append(token)
        return reference.answer

    def end_close(self, holder: HolderId, descriptor: DescriptorId) -> None:
        """Give the descriptor's reference back. Doubled: no effect (F-63).

        Raises:
            NotASocket: the holder has no such descriptor.
            OSError: EINVAL, the descriptor is open: end-close without begin-close (F-110).
        """
        holding = self._holdings.get(holder)
        if holding is not None and descriptor in holding.ended:
            return
        reference = self._own(holder, descriptor)
        if reference.state is not State.CLOSING:
            raise from_errno(errno.EINVAL, "end-close without begin-close")
        self._drop_descriptor(reference, "closed")

    def cancel_close(self, holder: HolderId, descriptor: DescriptorId) -> None:
        """A close was refused: the descriptor is open again, and who waited for it is NOT LAST. Doubled: no effect.

        Raises:
            NotASocket: the holder has no such descriptor.
        """
        reference = self._own(holder, descriptor)
        if reference.state is State.OPEN:
            return
        reference.record.reopen(reference)
        self._tell(reference, last=False)
        self._settle(reference.record)

    # -- tickets ----------------------------------------------------------------------------------------------

    def check_issue(self, holder: HolderId, socket: SocketId, descriptor: DescriptorId, secret: bytes) -> None:
        """Raise what `issue` with these arguments would raise; the server asks before it looks at the descriptor."""
        self._own_open(holder, socket, descriptor)
        if self._tickets.has_seen(secret):
            raise from_errno(errno.EEXIST, "a ticket with this secret is out, or has been; draw another one")
        if len(self._tickets) >= self.limits.tickets:
            raise TicketLimit(f"{self.limits.tickets} tickets are unclaimed; claim or revoke some")
        if self._holdings[holder].tickets >= self.limits.tickets_per_holder:
            raise TicketLimit(f"{self.limits.tickets_per_holder} tickets of this process are unclaimed; revoke some")

    def issue(
        self,
        holder: HolderId,
        socket: SocketId,
        descriptor: DescriptorId,
        secret: bytes,
        target: ProcessId | None,
        expires_s: float | None,
        now: float,
        since_s: float,
        *,
        launching: bool = False,
        is_checked: bool = False,
    ) -> int:
        """Issue a ticket: a reference from now on, whatever the issuer does (DUP-12, F-11, F-12); return its number.

        Args:
            target: the only process that may claim it and with whose death it is void; None: the first claimer wins.
            expires_s: None is the default: no clock when bound, `claim_once_s` when not. inf: no clock.
            launching: the target is a child of the issuer that has no pid yet. Until `bind` names it, whoever has the
                ticket may claim it, and it ends with the issuer: nobody else can hand it to the child (F-89).
            is_checked: `check_issue` has just found nothing, and nothing has changed since.

        Raises:
            NotASocket: not an open descriptor of this holder on this socket (DUP-7).
            TicketLimit: a cap of S-11.
            OSError: EEXIST, the secret is known: a ticket yields one descriptor at most, whatever its issuer does (I8).
        """
        if not is_checked:
            self.check_issue(holder, socket, descriptor, secret)
        record, holding = self._records[socket], self._holdings[holder]
        facts = holding.descriptors[descriptor].facts
        ticket = Reference(self._next(), record, State.ISSUED, holder, facts, since_s)
        if expires_s is None:
            expires_s = math.inf if launching or target is not None else self.limits.claim_once_s
        self._tickets.add(ticket, secret)
        holding.tickets += 1
        self._aim(ticket, target, holder.process if launching and target is None else target)
        self.timers.set(ticket, now + max(0.0, expires_s))
        record.enter(ticket)
        self._settle(record)
        return ticket.number

    def correct(self, facts: SocketFacts) -> None:
        """Take what the kernel says of a socket for what its first holder had announced (F-37)."""
        record = self._records.get(facts.socket)
        if record is not None:
            record.facts = facts

    def bind(self, holder: HolderId, secret: bytes, target: ProcessId | None) -> bool:
        """Bind a ticket of this holder to a process, with which it ends: no clock. False: it has been claimed already.

        A dead target (None) drops the ticket and its reference; True.

        Raises:
            TicketInvalid: unknown, expired, or issued by another holder.
            TicketError: already bound to another process.
        """
        ticket = self._tickets.find(secret)
        if ticket is None and self._tickets.is_used(secret):
            return False
        if ticket is None or ticket.holder != holder:
            raise TicketInvalid("no such ticket")
        if ticket.state is State.CLAIMED:
            if ticket.target is None and ticket.claimer is not None:  # should the claim go back
                self._bind(ticket, target or ticket.claimer.process)
            return False
        if ticket.target is not None and ticket.target != target:
            raise TicketError("this ticket is bound to another process")
        if target is None:
            self._void(ticket)
        elif ticket.target is None:
            self._bind(ticket, target)
        return True

    def claim(self, holder: HolderId, secret: bytes, now: float) -> Granted:
        """Grant a ticket to a holder, once. Its reference stays the ticket's until `acknowledge` (rule 8).

        Raises:
            TicketInvalid: unknown, revoked, or for another process, which learns nothing else (S-10, DUP-5).
            TicketAlreadyClaimed: claimed before, by the process that asks, or a claim-once ticket by whomever (DUP-3).
            TicketExpired: it was for this process, and its time is over.
        """
        ticket = self._tickets.find(secret)
        if ticket is not None and ticket.due <= now and ticket.state is State.ISSUED:
            self._void(ticket, Fate.EXPIRED)
            ticket = None
        if ticket is None:
            raise self._tickets.reason(secret, holder)
        if ticket.target is not None and ticket.target != holder.process:
            raise TicketInvalid("no such ticket")
        if ticket.state is State.CLAIMED:
            raise TicketAlreadyClaimed("this ticket is being claimed already; each yields one descriptor")
        self._check_room(self._holdings.get(holder))
        ticket.state, ticket.claimer = State.CLAIMED, holder
        record = ticket.record
        return Granted(ticket.number, record.facts, record.slot, ticket.target is not None, record.chain)

    def acknowledge(self, holder: HolderId, number: int, descriptor: DescriptorFacts) -> None:
        """The claimer has a usable descriptor: the ticket's reference becomes the descriptor's. Doubled: no effect.

        A claim that went back because the channel broke after the descriptor had arrived is still good, as long as
        nobody else has claimed meanwhile (F-32).

        Raises:
            TicketInvalid: no claim of this holder.
            NotASocket: this descriptor is known, and is one of another socket.
        """
        if self._tickets.is_acknowledged(number, holder, descriptor.descriptor):
            return
        ticket = self._tickets.claim_of(holder, number)
        record = ticket.record
        holding = self._holdings.get(holder)
        known = holding.descriptors.get(descriptor.descriptor) if holding is not None else None
        if known is not None and known.record is not record:
            raise NotASocket("that descriptor belongs to another socket")
        if known is None:
            self._check_room(holding)
            self._add_descriptor(record, holder, descriptor)
        self._bury(ticket, Fate.USED)
        self._tickets.note_acknowledged(number, holder, descriptor.descriptor)
        record.leave(ticket)
        self._effects.append(ReleaseCustody(number, last=False))
        self._settle(record)

    def refuse(self, holder: HolderId, number: int) -> None:
        """The claimer could not use what it got (F-29): the ticket is as before the claim.

        Raises:
            TicketInvalid: no claim of this holder.
        """
        ticket = self._tickets.claim_of(holder, number)
        ticket.claimer = None
        self._reissue(ticket)

    def revoke(self, holder: HolderId, secret: bytes) -> bool:
        """Take an unclaimed ticket of this holder back; its reference goes. False: there is none such any more."""
        ticket = self._tickets.find(secret)
        if ticket is None or ticket.holder != holder or ticket.state is State.CLAIMED:
            return False
        self._void(ticket)
        return True

    def lend(
        self, holder: HolderId, socket: SocketId, descriptor: DescriptorId, target: ProcessId, since_s: float
    ) -> None:
        """Count a reference that ends with a process which does not know us. Doubled: counted once.

        Raises:
            NotASocket: not an open descriptor of this holder on this socket.
            OSError: ENOBUFS, a cap of S-11.
        """
        own = self._own_open(holder, socket, descriptor)
        for other in self._targeted.get(target, ()):
            if other.state is State.LENT and other.holder == holder and other.facts.descriptor == descriptor:
                return
        holding = self._holdings[holder]
        self._check_room(holding)
        lent = Reference(self._next(), own.record, State.LENT, holder, own.facts, since_s)
        holding.lent += 1
        self._aim(lent, target, target)
        own.record.enter(lent)
        self._settle(own.record)

    def set_common(self, holder: HolderId, socket: SocketId, changes: dict[str, bool | int | None]) -> None:
        """Change what all sharers of a socket agree on; every process sees it in the page at once.

        Raises:
            NotASocket: the holder has no descriptor on this socket (S-14).
        """
        holding = self._holdings.get(holder)
        if holding is None or socket not in holding.sockets:
            raise NotASocket("this process holds no descriptor of that socket")
        record = self._records[socket]
        record.common = replace(record.common, **changes)  # type: ignore[arg-type]  # names and types: messages.py
        if "events" in changes:
            record.registrant = holder if changes["events"] else None
        self._effects.append(ShowCommon(record.slot, record.common))

    # -- time and death ---------------------------------------------------------------------------------------

    def disconnected(self, holder: HolderId) -> None:
        """A holder's channel ended. Its descriptors stay (its process may live); claims in flight go back."""
        for ticket in self._tickets.claimed_by(holder=holder):
            self._reissue(ticket)  # its claimer is remembered: it may still acknowledge through a new channel
        holding = self._holdings.get(holder)
        if holding is not None and not holding.descriptors:
            holding.ended.clear()
            self._forget_if_empty(holder)

    def reap(self, process: ProcessId) -> bool:
        """A process is dead: drop what its holders held, what was lent to it and the tickets for it (DUP-13, F-18).

        Tickets it issued stay valid (F-11). Descriptors go first, so that a ticket may be the last reference and
        custody closes as the last closer should.

        Returns:
            Whether anything was dropped.
        """
        holders = list(self._of_process.pop(process, ()))
        for holder in holders:
            self.reap_holder(holder)
        for ticket in self._tickets.claimed_by(process=process):
            self._reissue(ticket)
        targeted = sorted(self._targeted.pop(process, ()), key=lambda reference: reference.number)
        for reference in targeted:
            if reference.state is State.LENT:
                self._drop_lent(reference)
            elif reference.state is State.CLAIMED and reference.claimer is not None:
                # Minted for a child, which has claimed it by now: nobody is left to name it, so it is the claimer's.
                self._bind(reference, reference.claimer.process)
            else:
                self._void(reference)
        self._tickets.forget_target(process)
        self._names.pop(process, None)
        return bool(holders or targeted)

    def reap_holder(self, holder: HolderId) -> None:
        """A holder is gone while its process lives on under another program (exec): drop its descriptors (F-91)."""
        holding = self._holdings.get(holder)
        if holding is not None:
            for reference in list(holding.descriptors.values()):
                self._drop_descriptor(reference, "died")
        for ticket in [one for one in self._targeted.get(holder.process, ()) if one.holder == holder]:
            if ticket.state is State.ISSUED and ticket.target is None:
                self._void(ticket)  # minted for a child that this program can no longer launch
        self.disconnected(holder)

    def expire(self, now: float) -> None:
        """Do what is due: expired tickets go, closes that have waited long enough are LAST."""
        if self._recovery.stop_waiting(now):
            self._settle_all()
        for reference in self.timers.take_due(now):
            if reference.record.pending is reference:
                self._settle(reference.record, overdue=True)
            elif reference.state is State.ISSUED:
                self._void(reference, Fate.EXPIRED)

    def next_deadline(self) -> float:
        """Return when `expire` has something to do next (it may turn out to be nothing), inf: never."""
        return min(self.timers.first, self._recovery.next_due())

    # -- introspection ----------------------------------------------------------------------------------------

    def references(self, socket: SocketId) -> int:
        """Return how many references the socket has; 0: unknown here."""
        record = self._records.get(socket)
        return 0 if record is None else len(record.references)

    def holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return every reference of a socket, in the order they came."""
        record = self._records.get(socket)
        return () if record is None else tuple(r.shown(self._names) for r in record.references.values())

    def former_holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return who had a descriptor of a socket that still lives, in the order they went: the newest of them."""
        record = self._records.get(socket)
        return () if record is None else tuple(record.former or ())

    def sockets(self) -> tuple[tuple[SocketFacts, int], ...]:
        """Return every socket and its count."""
        return tuple((record.facts, len(record.references)) for record in self._records.values())

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of sockets, descriptors (open, closing) and tickets (issued, claimed)."""
        return len(self._records), sum(len(h.descriptors) for h in self._holdings.values()), len(self._tickets)

    def is_empty(self) -> bool:
        """Say whether nothing is referenced any more, as far as is known, and nobody is awaited who might know more."""
        return not self._records and self._recovery.is_over()

    def processes(self) -> Iterator[ProcessId]:
        """Yield every process whose death the ledger needs to hear of: holders' and targets'."""
        yield from self._of_process
        yield from (process for process in self._targeted if process not in self._of_process)

    def needs(self, process: ProcessId) -> bool:
        """Say whether `processes()` has this one."""
        return process in self._of_process or process in self._targeted

    def common(self, socket: SocketId) -> CommonState:
        """Return what the sharers of a socket agree on; the default for an unknown one."""
        record = self._records.get(socket)
        return CommonState() if record is None else record.common

    # -- inside -----------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _check_room(self, holding: Holding | None) -> None:
        if holding is not None and len(holding.descriptors) + holding.lent >= self.limits.descriptors_per_holder:
            raise from_errno(errno.ENOBUFS, "too many descriptors of one process at this registry; close some")

    def _new_record(self, socket: SocketFacts, common: CommonState, chain: str) -> Record:
        if len(self._records) >= self.limits.sockets:
            raise from_errno(errno.ENOBUFS, "too many shared sockets at this registry; close some")
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot, self._slots_used = self._slots_used, self._slots_used + 1
        record = self._records[socket.socket] = Record(socket, slot, chain=chain, common=common)
        self._effects.append(ShowCommon(slot, record.common))
        return record

    def _add_descriptor(self, record: Record, holder: HolderId, facts: DescriptorFacts) -> None:
        holding = self._holdings.setdefault(holder, Holding())
        self._of_process.setdefault(holder.process, set()).add(holder)
        reference = Reference(self._next(), record, State.OPEN, holder, facts, facts.opened_s)
        holding.descriptors[facts.descriptor] = reference
        holding.ended.pop(facts.descriptor, None)
        socket = record.facts.socket
        holding.sockets[socket] = holding.sockets.get(socket, 0) + 1
        record.enter(reference)

    def _drop_descriptor(self, reference: Reference, how: str) -> None:
        holding = self._holdings[reference.holder]
        descriptor, socket = reference.facts.descriptor, reference.record.facts.socket
        del holding.descriptors[descriptor]
        holding.sockets[socket] -= 1
        if not holding.sockets[socket]:
            del holding.sockets[socket]
            self._end_registration(reference.record, reference.holder)
        remember(holding.ended, descriptor, None, 64)
        reference.record.leave(reference)
        reference.record.recall(reference, how, self._names, self.limits.former_holders)
        self._tell(reference, last=False)
        self._settle(reference.record)

    def _end_registration(self, record: Record, holder: HolderId) -> None:
        """The event registration of a holder that has left ends; it does not move to another (EVENT-11)."""
        if record.registrant == holder:
            record.registrant = None
            record.common = replace(record.common, events=0)
            self._effects.append(ShowCommon(record.slot, record.common))

    def _drop_lent(self, reference: Reference) -> None:
        self._holdings[reference.holder].lent -= 1
        self._forget_if_empty(reference.holder)
        reference.record.leave(reference)
        reference.record.recall(reference, "died", self._names, self.limits.former_holders)
        self._settle(reference.record)

    def _forget_if_empty(self, holder: HolderId) -> None:
        holding = self._holdings[holder]
        if holding.descriptors or holding.lent or holding.tickets or holding.ended:
            return
        del self._holdings[holder]
        siblings = self._of_process.get(holder.process)
        if siblings is not None:
            siblings.discard(holder)
            if not siblings:
                del self._of_process[holder.process]

    def _own(self, holder: HolderId, descriptor: DescriptorId) -> Reference:
        holding = self._holdings.get(holder)
        reference = holding.descriptors.get(descriptor) if holding is not None else None
        if reference is None:
            raise NotASocket("this process has announced no such descriptor")
        return reference

    def _own_open(self, holder: HolderId, socket: SocketId, descriptor: DescriptorId) -> Reference:
        reference = self._own(holder, descriptor)
        if reference.state is not State.OPEN or reference.record.facts.socket != socket:
            raise NotASocket("that descriptor is closed, or belongs to another socket")
        return reference

    def _aim(self, reference: Reference, target: ProcessId | None, ends_with: ProcessId | None) -> None:
        self._part(reference)
        reference.target, reference.ends_with = target, ends_with
        if ends_with is not None:
            self._targeted.setdefault(ends_with, set()).add(reference)

    def _bind(self, ticket: Reference, target: ProcessId) -> None:
        self.timers.set(ticket, math.inf)
        self._aim(ticket, target, target)

    def _part(self, reference: Reference) -> None:
        """The reference does not end with that process any more."""
        aimed = self._targeted.get(reference.ends_with) if reference.ends_with is not None else None
        if aimed is not None and reference.ends_with is not None:
            aimed.discard(reference)
            if not aimed:
                del self._targeted[reference.ends_with]

    def _reissue(self, ticket: Reference) -> None:
        ticket.state = State.ISSUED
        self.timers.set(ticket, ticket.due)

    def _bury(self, ticket: Reference, fate: Fate | None) -> None:
        """The ticket is no more, and whoever asks for it may hear its fate; its reference is the caller's to drop."""
        self._tickets.remove(ticket, fate)
        self.timers.set(ticket, math.inf)
        self._part(ticket)
        self._holdings[ticket.holder].tickets -= 1
        self._forget_if_empty(ticket.holder)

    def _void(self, ticket: Reference, fate: Fate | None = None) -> None:
        """The ticket ends unclaimed. Custody closes like any closer: last or not, at once or after those before it.

        Without a deadline: those it waits for are closing, so they end, are cancelled or die.
        """
        self._bury(ticket, fate)
        self._start_close(ticket, State.GIVEN_UP, math.inf)
        if ticket.answer is not None:
            self._release(ticket)

    def _release(self, ticket: Reference) -> None:
        record, last = ticket.record, bool(ticket.answer)
        record.leave(ticket)
        self._effects.append(ReleaseCustody(ticket.number, last, record.common.linger_s if last else None))
        self._settle(record)

    def _start_close(self, reference: Reference, state: State, due: float) -> None:
        record = reference.record
        record.close(reference, state, self._recovery.may_be_last(record))
        if record.pending is reference:
            self.timers.set(reference, due)

    def _tell(self, reference: Reference, *, last: bool) -> None:
        self._effects.extend(Answer(token, last) for token in reference.waiting)
        reference.waiting.clear()

    def _settle(self, record: Record, *, overdue: bool = False) -> None:
        """After a change: answer who waits, if that can be decided now; forget a socket without references."""
        answered = record.settle(self._recovery.may_be_last(record), overdue=overdue)
        if answered is not None:
            self._tell(answered, last=bool(answered.answer))
            if answered.state is State.GIVEN_UP:
                self._release(answered)
        if not record.references and self._records.get(record.facts.socket) is record:
            del self._records[record.facts.socket]
            self._free_slots.append(record.slot)
