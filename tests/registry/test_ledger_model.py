"""The ledger against a model that is nothing but sets: random orders of every call, by honest holders and liars alike.

Invariants under the catalogue's numbers: I2 (the count is the number of reasons, never another), rule 7 (LAST only when
nothing is open), I8 (a ticket yields one descriptor at most), S-14 (a call changes only the caller's own).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.records import Answer, Limits, ReleaseCustody

PROCESSES = [ProcessId(pid, pid) for pid in (11, 12, 13)]
HOLDERS = [HolderId(process, bytes([process.pid]) * 16) for process in PROCESSES]
SOCKETS = [SocketFacts(SocketId(number), 2, 1, 6) for number in (1, 2)]

holders = st.sampled_from(HOLDERS)
processes = st.sampled_from(PROCESSES)
sockets = st.sampled_from(SOCKETS)
descriptors = st.integers(0, 3).map(DescriptorId)
tickets = st.integers(0, 7)
honest = st.integers(0, 60)  # which of what there is; a multiple of 7: the arguments as drawn, mostly a liar's


@dataclass
class Held:
    socket: SocketId
    closing: bool = False
    told: bool | None = None


@dataclass
class Out:
    socket: SocketId
    target: ProcessId | None
    due: float
    issuer: HolderId
    number: int
    claimer: HolderId | None = None  # who claims it now
    before: HolderId | None = None  # who claimed it through a channel that broke
    ends_with: ProcessId | None = None


class LedgerModel(RuleBasedStateMachine):
    """One step: a call on the ledger and on the model; then the two must say the same."""

    @initialize()
    def start(self) -> None:
        self.ledger = Ledger(b"p", Limits(tickets=6, tickets_per_holder=4, descriptors_per_holder=5))
        self.now = 0.0
        self.held: dict[tuple[HolderId, DescriptorId], Held] = {}
        self.out: dict[int, Out] = {}
        self.gone: set[int] = set()  # tickets that are no more
        self.given_up: dict[int, SocketId] = {}  # custody numbers that wait for closers
        self.lent: set[tuple[HolderId, DescriptorId, ProcessId, SocketId]] = set()
        self.ended: set[tuple[HolderId, DescriptorId]] = set()
        self.yielded: dict[int, int] = {}
        self.custody: set[int] = set()

    def refused(self, call: object, *arguments: object, **named: object) -> bool:
        """Call; report whether it was refused. A refusal must change nothing: the invariants look."""
        try:
            self.result = call(*arguments, **named)  # type: ignore[operator]
        except OSError:
            return True
        return False

    def own(self, pick: int, holder: HolderId, descriptor: DescriptorId) -> tuple[HolderId, DescriptorId]:
        """Choose a descriptor that is held, unless a liar is wanted."""
        keys = list(self.held)
        return keys[pick % len(keys)] if pick % 7 and keys else (holder, descriptor)

    def any_ticket(self, pick: int, ticket: int) -> int:
        keys = list(self.out)
        return keys[pick % len(keys)] if pick % 7 and keys else ticket

    def full(self, holder: HolderId) -> bool:
        own = sum(1 for h, _ in self.held if h == holder) + sum(1 for lent in self.lent if lent[0] == holder)
        return own >= 5

    @rule(holder=holders, socket=sockets, descriptor=descriptors)
    def announce(self, holder: HolderId, socket: SocketFacts, descriptor: DescriptorId) -> None:
        known = self.held.get((holder, descriptor))
        refused = self.refused(self.ledger.announce, holder, socket, DescriptorFacts(descriptor, "", 0.0))
        wrong = known is not None and known.socket != socket.socket
        assert refused == (wrong or (known is None and self.full(holder)))
        if not refused and known is None:
            self.held[holder, descriptor] = Held(socket.socket)
            self.ended.discard((holder, descriptor))

    @rule(
        pick=honest,
        holder=holders,
        descriptor=descriptors,
        socket=sockets,
        ticket=tickets,
        aim=st.none() | processes,
        life=st.none() | st.sampled_from([1.0, 5.0]),
        launching=st.booleans(),
    )
    def issue(
        self,
        pick: int,
        holder: HolderId,
        descriptor: DescriptorId,
        socket: SocketFacts,
        ticket: int,
        aim: ProcessId | None,
        life: float | None,
        launching: bool,
    ) -> None:
        holder, descriptor = self.own(pick, holder, descriptor)
        if pick % 7 and (holder, descriptor) in self.held:
            socket = next(facts for facts in SOCKETS if facts.socket == self.held[holder, descriptor].socket)
        if ticket in self.out or ticket in self.gone:
            ticket = 8 + len(self.out) + len(self.gone)
        secret = b"%032d" % ticket
        arguments = (holder, socket.socket, descriptor, secret, aim, life, self.now, 0.0)
        refused = self.refused(self.ledger.issue, *arguments, launching=launching)
        own = self.held.get((holder, descriptor))
        mine = own is not None and own.socket == socket.socket and not own.closing
        room = len(self.out) < 6 and sum(out.issuer == holder for out in self.out.values()) < 4
        assert refused == (not (mine and room))
        if not refused:
            has_clock = aim is None and not launching
            due = self.now + (life if life is not None else 60.0 if has_clock else float("inf"))
            assert isinstance(self.result, int)
            ends_with = holder.process if launching and aim is None else aim
            self.out[ticket] = Out(socket.socket, aim, due, holder, self.result, ends_with=ends_with)
            self.custody.add(self.result)

    @rule(pick=honest, holder=holders, ticket=tickets)
    def claim(self, pick: int, holder: HolderId, ticket: int) -> None:
        ticket = self.any_ticket(pick, ticket)
        if pick % 3 and ticket in self.out and self.out[ticket].target is not None:
            holder = next(h for h in HOLDERS if h.process == self.out[ticket].target)
        out = self.out.get(ticket)
        refused = self.refused(self.ledger.claim, holder, b"%032d" % ticket, self.now)
        if out is not None and out.claimer is None and out.due <= self.now:
            self.drop(ticket)
            assert refused
            return
        rightful = out is not None and out.target in (None, holder.process)
        assert refused == (not rightful or (out is not None and out.claimer is not None) or self.full(holder))
        if not refused and out is not None:
            out.claimer = out.before = holder

    @rule(pick=honest, holder=holders, ticket=tickets, descriptor=descriptors)
    def acknowledge(self, pick: int, holder: HolderId, ticket: int, descriptor: DescriptorId) -> None:
        ticket = self.any_ticket(pick, ticket)
        if pick % 3 and ticket in self.out:
            holder = self.out[ticket].before or holder
        out = self.out.get(ticket)
        if out is None:
            return
        known = self.held.get((holder, descriptor))
        refused = self.refused(self.ledger.acknowledge, holder, out.number, DescriptorFacts(descriptor, "", 0.0))
        wrong = known is not None and known.socket != out.socket
        assert refused == (out.before != holder or wrong or (known is None and self.full(holder)))
        if not refused:
            self.yielded[ticket] = self.yielded.get(ticket, 0) + 1
            self.held.setdefault((holder, descriptor), Held(out.socket))
            self.ended.discard((holder, descriptor))
            del self.out[ticket]
            self.gone.add(ticket)

    @rule(pick=honest, holder=holders, ticket=tickets)
    def refuse(self, pick: int, holder: HolderId, ticket: int) -> None:
        ticket = self.any_ticket(pick, ticket)
        if pick % 3 and ticket in self.out:
            holder = self.out[ticket].before or holder
        out = self.out.get(ticket)
        if out is None:
            return
        refused = self.refused(self.ledger.refuse, holder, out.number)
        assert refused == (out.before != holder)
        if not refused:
            out.claimer = out.before = None

    @rule(pick=honest, holder=holders, ticket=tickets, aim=st.none() | processes)
    def bind(self, pick: int, holder: HolderId, ticket: int, aim: ProcessId | None) -> None:
        ticket = self.any_ticket(pick, ticket)
        if pick % 3 and ticket in self.out:
            holder = self.out[ticket].issuer
        out = self.out.get(ticket)
        refused = self.refused(self.ledger.bind, holder, b"%032d" % ticket, aim)
        if out is None:
            assert refused or not self.result
        elif out.issuer != holder or (out.claimer is None and out.target not in (None, aim)):
            assert refused
        elif out.claimer is not None:
            assert not refused
            assert not self.result
            if out.target is None:
                out.target = out.ends_with = aim or out.claimer.process
                out.due = float("inf")
        else:
            assert not refused
            assert self.result
            if aim is None:
                self.drop(ticket)
            elif out.target is None:
                out.target = out.ends_with = aim
                out.due = float("inf")

    @rule(pick=honest, holder=holders, ticket=tickets)
    def revoke(self, pick: int, holder: HolderId, ticket: int) -> None:
        ticket = self.any_ticket(pick, ticket)
        if pick % 3 and ticket in self.out:
            holder = self.out[ticket].issuer
        out = self.out.get(ticket)
        assert not self.refused(self.ledger.revoke, holder, b"%032d" % ticket)
        mine = out is not None and out.issuer == holder and out.claimer is None
        assert self.result == mine
        if mine:
            self.drop(ticket)

    @rule(pick=honest, holder=holders, descriptor=descriptors, socket=sockets, aim=processes)
    def lend(self, pick: int, holder: HolderId, descriptor: DescriptorId, socket: SocketFacts, aim: ProcessId) -> None:
        holder, descriptor = self.own(pick, holder, descriptor)
        if pick % 7 and (holder, descriptor) in self.held:
            socket = next(facts for facts in SOCKETS if facts.socket == self.held[holder, descriptor].socket)
        own = self.held.get((holder, descriptor))
        mine = own is not None and own.socket == socket.socket and not own.closing
        row = (holder, descriptor, aim, socket.socket)
        doubled = any(lent[:3] == row[:3] for lent in self.lent)
        refused = self.refused(self.ledger.lend, holder, socket.socket, descriptor, aim, 0.0)
        assert refused == (not mine or (not doubled and self.full(holder)))
        if not refused and not doubled:
            self.lent.add(row)

    @rule(pick=honest, holder=holders, descriptor=descriptors)
    def begin_close(self, pick: int, holder: HolderId, descriptor: DescriptorId) -> None:
        holder, descriptor = self.own(pick, holder, descriptor)
        own = self.held.get((holder, descriptor))
        token = (holder, descriptor)
        refused = self.refused(self.ledger.begin_close, holder, descriptor, token, self.now)
        assert refused == (own is None)
        if own is None:
            return
        if own.closing:
            assert self.result == own.told
            return
        own.closing = True
        others = self.others(own)
        if self.is_open(own.socket):
            expected: bool | None = False
        else:
            expected = True if not others else None
        assert self.result == expected
        own.told = expected

    @rule(pick=honest, holder=holders, descriptor=descriptors)
    def end_close(self, pick: int, holder: HolderId, descriptor: DescriptorId) -> None:
        holder, descriptor = self.own(pick, holder, descriptor)
        own = self.held.get((holder, descriptor))
        refused = self.refused(self.ledger.end_close, holder, descriptor)
        if own is None:
            assert not refused or (holder, descriptor) not in self.ended
            return
        assert refused == (not own.closing)
        if not refused:
            del self.held[holder, descriptor]
            self.ended.add((holder, descriptor))

    @rule(pick=honest, holder=holders, descriptor=descriptors)
    def cancel_close(self, pick: int, holder: HolderId, descriptor: DescriptorId) -> None:
        holder, descriptor = self.own(pick, holder, descriptor)
        own = self.held.get((holder, descriptor))
        assert self.refused(self.ledger.cancel_close, holder, descriptor) == (own is None)
        if own is not None:
            own.closing, own.told = False, None

    @rule(process=processes, pick=honest)
    def death(self, process: ProcessId, pick: int) -> None:
        if pick % 3:
            return
        self.ledger.reap(process)
        for key in [key for key in self.held if key[0].process == process]:
            del self.held[key]
        self.ended = {key for key in self.ended if key[0].process != process}
        self.break_claims(process)
        self.lent = {lent for lent in self.lent if lent[2] != process}
        for ticket, out in [(ticket, out) for ticket, out in self.out.items() if out.ends_with == process]:
            if out.claimer is None:
                self.drop(ticket)
            else:
                out.target = out.ends_with = out.claimer.process
                out.due = float("inf")

    @rule(holder=holders)
    def channel_breaks(self, holder: HolderId) -> None:
        self.ledger.disconnected(holder)
        self.break_claims(holder.process)
        if not any(key[0] == holder for key in self.held):
            self.ended = {key for key in self.ended if key[0] != holder}

    @rule(seconds=st.sampled_from([0.5, 1.5, 6.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.expire(self.now)
        for ticket in [t for t, out in self.out.items() if out.claimer is None and out.due <= self.now]:
            self.drop(ticket)

    # -- the model's own reckoning ----------------------------------------------------------------------------

    def break_claims(self, process: ProcessId) -> None:
        for out in self.out.values():
            if out.claimer is not None and out.claimer.process == process:
                out.claimer = None

    def drop(self, ticket: int) -> None:
        out = self.out.pop(ticket)
        self.gone.add(ticket)
        self.given_up[out.number] = out.socket

    def is_open(self, socket: SocketId) -> bool:
        return (
            any(held.socket == socket and not held.closing for held in self.held.values())
            or any(out.socket == socket for out in self.out.values())
            or any(lent[3] == socket for lent in self.lent)
        )

    def others(self, own: Held) -> bool:
        return any(held.socket == own.socket and held is not own for held in self.held.values()) or any(
            socket == own.socket for socket in self.given_up.values()
        )

    @invariant()
    def the_two_agree(self) -> None:
        self.effects_are_due()
        self.the_count_is_the_number_of_reasons()
        self.custody_keeps_what_is_a_ticket()
        assert all(count == 1 for count in self.yielded.values()), "I8"

    def effects_are_due(self) -> None:
        """Late answers are true when they are given, and custody lets go exactly what is no ticket any more."""
        for effect in self.ledger.take_effects():
            if isinstance(effect, ReleaseCustody):
                self.custody.remove(effect.number)
                socket = self.given_up.pop(effect.number, None)
                if effect.last:
                    assert socket is not None
                    assert not self.is_open(socket), "custody is last only when nothing is open"
            elif isinstance(effect, Answer):
                own = self.held.get(effect.token)  # type: ignore[call-overload]
                if own is not None and own.closing and own.told is None:
                    own.told = effect.last
                    if effect.last:
                        assert not self.is_open(own.socket), "rule 7: LAST while somebody is open"
        waiting = [held for held in self.held.values() if held.closing and held.told is None]
        for held in waiting:
            assert not self.is_open(held.socket), "who waits while somebody is open has been forgotten"
            assert self.others(held), "who waits for nobody has been forgotten"

    def the_count_is_the_number_of_reasons(self) -> None:
        for facts in SOCKETS:
            socket = facts.socket
            reasons = (
                sum(held.socket == socket for held in self.held.values())
                + sum(out.socket == socket for out in self.out.values())
                + sum(lent[3] == socket for lent in self.lent)
                + sum(other == socket for other in self.given_up.values())
            )
            assert self.ledger.references(socket) == reasons, "I2"
            assert len(self.ledger.holders(socket)) == reasons
        assert self.ledger.is_empty() == (not any(self.ledger.references(f.socket) for f in SOCKETS))

    def custody_keeps_what_is_a_ticket(self) -> None:
        assert self.custody == {out.number for out in self.out.values()} | set(self.given_up), "I3"


# The same every time, and no clock in it: what is new each time belongs to the campaigns.
SUITE = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = SUITE


@pytest.mark.campaign
def test_random_orders_that_are_new_each_time() -> None:
    run_state_machine_as_test(LedgerModel, settings=settings(SUITE, max_examples=600, derandomize=False))


@pytest.mark.fault("F-63", "F-110", "S-14")
@pytest.mark.parametrize("seed", range(60))
def test_random_orders(seed: int) -> None:
    """The same rules and the same model under a plain seeded generator, which goes further; hypothesis shrinks."""
    dice = random.Random(seed)
    model = LedgerModel()
    model.start()
    draw = {
        "holder": lambda: dice.choice(HOLDERS),
        "socket": lambda: dice.choice(SOCKETS),
        "descriptor": lambda: DescriptorId(dice.randrange(4)),
        "ticket": lambda: dice.randrange(8),
        "pick": lambda: dice.randrange(61),
        "aim": lambda: dice.choice([None, *PROCESSES]),
        "life": lambda: dice.choice([None, 1.0, 5.0]),
        "launching": lambda: dice.random() < 0.3,
        "process": lambda: dice.choice(PROCESSES),
        "seconds": lambda: dice.choice([0.2, 0.5, 1.5, 6.0]),
    }
    steps = [
        *[(model.announce, ("holder", "socket", "descriptor"))] * 3,
        *[(model.issue, ("pick", "holder", "descriptor", "socket", "ticket", "aim", "life", "launching"))] * 3,
        *[(model.claim, ("pick", "holder", "ticket"))] * 4,
        *[(model.acknowledge, ("pick", "holder", "ticket", "descriptor"))] * 3,
        (model.refuse, ("pick", "holder", "ticket")),
        (model.revoke, ("pick", "holder", "ticket")),
        *[(model.bind, ("pick", "holder", "ticket", "aim"))] * 2,
        (model.lend, ("pick", "holder", "descriptor", "socket", "aim")),
        *[(model.begin_close, ("pick", "holder", "descriptor"))] * 4,
        *[(model.end_close, ("pick", "holder", "descriptor"))] * 3,
        (model.cancel_close, ("pick", "holder", "descriptor")),
        (model.death, ("process", "pick")),
        (model.channel_breaks, ("holder",)),
        (model.time_passes, ("seconds",)),
    ]
    for _ in range(400):
        rule_, names = dice.choice(steps)
        arguments = {name: draw[name]() for name in names}
        if rule_ == model.lend:
            arguments["aim"] = dice.choice(PROCESSES)
        rule_(**arguments)
        model.the_two_agree()
