"""Tickets in the ledger: a ticket is a reference from its issue until it is claimed, revoked, or void."""

from __future__ import annotations

import itertools
import math

import pytest

from sharedsock.model.errors import (
    NotASocket,
    TicketAlreadyClaimed,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
)
from sharedsock.model.identity import DescriptorId, HolderId, ProcessId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.records import Limits, ReleaseCustody
from tests.registry.ledger_cast import OTHER, SECRET, A, B, C, P, Q, R, S, T, facts, issue, one


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-12")
def test_a_ticket_is_a_reference_from_the_moment_it_is_issued(ledger: Ledger) -> None:
    number = issue(ledger)
    assert ledger.references(S.socket) == 2
    granted = ledger.claim(B, SECRET, 1.0)
    assert (granted.number, granted.socket, granted.target_bound) == (number, S, True)
    assert ledger.references(S.socket) == 2
    ledger.acknowledge(B, number, facts(4))
    assert ledger.references(S.socket) == 2
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    assert [holder.descriptor for holder in ledger.holders(S.socket)] == [1, 4]


@pytest.mark.rule("DUP-7")
def test_only_an_open_descriptor_of_ones_own_can_be_shared(ledger: Ledger) -> None:
    for holder, socket, descriptor in ((B, S, 1), (A, T, 1), (A, S, 2)):
        with pytest.raises(NotASocket):
            ledger.issue(holder, socket.socket, DescriptorId(descriptor), SECRET, Q, None, 0.0, 0.0)
    ledger.begin_close(A, one(), None, 0.0)
    with pytest.raises(NotASocket):
        issue(ledger)
    with pytest.raises(NotASocket):
        ledger.lend(A, S.socket, one(), Q, 0.0)
    assert ledger.references(S.socket) == 1


@pytest.mark.rule("DUP-3")
@pytest.mark.fault("F-22")
def test_a_ticket_yields_one_descriptor(ledger: Ledger) -> None:
    number = issue(ledger)
    ledger.claim(B, SECRET, 0.0)
    with pytest.raises(TicketAlreadyClaimed):
        ledger.claim(B, SECRET, 0.0)
    ledger.acknowledge(B, number, facts(1))
    with pytest.raises(TicketAlreadyClaimed):
        ledger.claim(B, SECRET, 0.0)
    assert ledger.references(S.socket) == 2


@pytest.mark.rule("DUP-5")
@pytest.mark.fault("F-24", "F-25", "S-10")
def test_a_stranger_learns_nothing_and_uses_nothing_up(ledger: Ledger) -> None:
    """Absent, foreign, used and expired look alike to it, to the letter."""
    said = []

    def attempt(secret: bytes, now: float = 0.0) -> None:
        with pytest.raises(TicketInvalid) as caught:
            ledger.claim(C, secret, now)
        said.append(str(caught.value))

    attempt(OTHER)
    number = issue(ledger)
    attempt(SECRET)
    ledger.claim(B, SECRET, 0.0)
    attempt(SECRET)
    ledger.acknowledge(B, number, facts(1))
    attempt(SECRET)
    issue(ledger, OTHER, expires_s=5.0)
    attempt(OTHER, now=6.0)
    assert len(set(said)) == 1
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-19", "F-100")
def test_the_same_pid_of_a_later_process_is_a_stranger(ledger: Ledger) -> None:
    issue(ledger)
    later = HolderId(ProcessId(Q.pid, Q.start_ticks + 1), B.nonce)
    with pytest.raises(TicketInvalid):
        ledger.claim(later, SECRET, 0.0)
    assert ledger.claim(B, SECRET, 0.0)


@pytest.mark.rule("DUP-4")
@pytest.mark.fault("F-23", "S-09")
def test_no_flipped_bit_is_a_ticket(ledger: Ledger) -> None:
    issue(ledger)
    for bit in range(len(SECRET) * 8):
        forged = bytearray(SECRET)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TicketInvalid):
            ledger.claim(B, bytes(forged), 0.0)
    for forged_size in range(32):
        with pytest.raises(TicketInvalid):
            ledger.claim(B, SECRET[:forged_size], 0.0)
    assert ledger.claim(B, SECRET, 0.0)


@pytest.mark.fault("F-26")
def test_a_ticket_of_another_incarnation_is_unknown(ledger: Ledger) -> None:
    issue(ledger)
    later = Ledger(b"another")
    later.announce(A, S, facts(1))
    with pytest.raises(TicketInvalid):
        later.claim(B, SECRET, 0.0)


@pytest.mark.fault("S-09")
def test_the_secret_itself_is_not_kept(ledger: Ledger) -> None:
    import gc

    secret = bytes(bytearray(b"unique secret of thirty-two bytes"[:32]))
    issue(ledger, secret)
    referrers = [r for r in gc.get_referrers(secret) if isinstance(r, (dict, list, set)) and r is not globals()]
    assert all("secret" in r for r in referrers if isinstance(r, dict))


@pytest.mark.rule("DUP-10")
def test_one_ticket_per_target(ledger: Ledger) -> None:
    issue(ledger, SECRET, Q)
    issue(ledger, OTHER, R)
    with pytest.raises(TicketInvalid):
        ledger.claim(B, OTHER, 0.0)
    ledger.claim(B, SECRET, 0.0)
    ledger.claim(C, OTHER, 0.0)
    assert ledger.references(S.socket) == 3


@pytest.mark.rule("DUP-11")
def test_the_sharer_itself_may_be_the_target(ledger: Ledger) -> None:
    number = issue(ledger, target=P)
    ledger.claim(A, SECRET, 0.0)
    ledger.acknowledge(A, number, facts(2))
    assert ledger.references(S.socket) == 2


def test_claim_once_is_won_by_the_first(ledger: Ledger) -> None:
    number = issue(ledger, target=None)
    assert not ledger.claim(C, SECRET, 0.0).target_bound
    with pytest.raises(TicketAlreadyClaimed):
        ledger.claim(B, SECRET, 0.0)
    ledger.acknowledge(C, number, facts(1))
    with pytest.raises(TicketAlreadyClaimed):
        ledger.claim(B, SECRET, 0.0)


@pytest.mark.fault("F-20")
def test_expiry_is_named_to_the_rightful_and_gives_the_reference_back(ledger: Ledger) -> None:
    number = issue(ledger, expires_s=5.0)
    ledger.expire(4.9)
    assert ledger.references(S.socket) == 2
    assert ledger.next_deadline() == 5.0
    ledger.expire(5.0)
    assert ledger.references(S.socket) == 1
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    with pytest.raises(TicketExpired):
        ledger.claim(B, SECRET, 5.1)


@pytest.mark.fault("F-20")
def test_a_claim_after_the_hour_finds_it_expired_though_nobody_looked(ledger: Ledger) -> None:
    issue(ledger, target=None)
    with pytest.raises(TicketExpired):
        ledger.claim(B, SECRET, 60.0)
    assert ledger.references(S.socket) == 1


@pytest.mark.fault("F-20")
def test_without_expiry_a_ticket_lives_as_long_as_its_target(ledger: Ledger) -> None:
    issue(ledger)
    issue(ledger, OTHER, None, expires_s=math.inf)
    ledger.expire(1e12)
    assert ledger.references(S.socket) == 3
    assert ledger.next_deadline() == math.inf
    ledger.reap(Q)
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-20", "F-32")
def test_a_claim_in_flight_does_not_expire_but_its_return_does(ledger: Ledger) -> None:
    number = issue(ledger, expires_s=5.0)
    ledger.claim(B, SECRET, 4.0)
    ledger.expire(100.0)
    assert ledger.references(S.socket) == 2
    ledger.refuse(B, number)
    ledger.expire(100.0)
    assert ledger.references(S.socket) == 1


@pytest.mark.fault("F-29")
def test_refuse_hands_the_ticket_back(ledger: Ledger) -> None:
    number = issue(ledger)
    ledger.claim(B, SECRET, 0.0)
    ledger.refuse(B, number)
    assert ledger.take_effects() == []
    with pytest.raises(TicketInvalid):
        ledger.acknowledge(B, number, facts(1))
    assert ledger.claim(B, SECRET, 0.0).number == number


@pytest.mark.fault("F-32")
def test_a_doubled_acknowledgement_counts_once(ledger: Ledger) -> None:
    number = issue(ledger)
    ledger.claim(B, SECRET, 0.0)
    for _ in range(3):
        ledger.acknowledge(B, number, facts(1))
    assert ledger.references(S.socket) == 2
    with pytest.raises(TicketInvalid):
        ledger.acknowledge(B, number, facts(2))
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-32")
def test_an_acknowledgement_after_a_broken_channel_is_good_once(ledger: Ledger) -> None:
    """The descriptor had arrived: the claimer may say so through its next channel, unless somebody was faster."""
    number = issue(ledger, target=None)
    ledger.claim(B, SECRET, 0.0)
    ledger.disconnected(B)
    ledger.acknowledge(B, number, facts(1))
    assert ledger.references(S.socket) == 2
    number = issue(ledger, OTHER, None)
    ledger.claim(B, OTHER, 0.0)
    ledger.disconnected(B)
    ledger.claim(C, OTHER, 0.0)
    with pytest.raises(TicketInvalid):
        ledger.acknowledge(B, number, facts(2))
    assert ledger.references(S.socket) == 3


@pytest.mark.fault("F-32")
def test_an_acknowledged_ticket_does_not_expire_afterwards(ledger: Ledger) -> None:
    """Found by random orders: it had gone back to issued when its channel broke, and its clock ran on."""
    number = issue(ledger, target=None)
    ledger.claim(B, SECRET, 0.0)
    ledger.disconnected(B)
    ledger.acknowledge(B, number, facts(1))
    ledger.expire(100.0)
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-110")
def test_only_the_claimer_acknowledges_or_refuses(ledger: Ledger) -> None:
    number = issue(ledger)
    for call in (lambda: ledger.acknowledge(C, number, facts(1)), lambda: ledger.refuse(C, number)):
        with pytest.raises(TicketInvalid):
            call()
    ledger.claim(B, SECRET, 0.0)
    for call in (
        lambda: ledger.acknowledge(C, number, facts(1)),
        lambda: ledger.refuse(C, number),
        lambda: ledger.acknowledge(B, number + 1, facts(1)),
        lambda: ledger.refuse(A, number),
    ):
        with pytest.raises(TicketInvalid):
            call()
    ledger.announce(B, T, facts(6))
    with pytest.raises(NotASocket):
        ledger.acknowledge(B, number, facts(6))
    ledger.acknowledge(B, number, facts(1))
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-18")
@pytest.mark.rule("DUP-13")
@pytest.mark.parametrize("claimed", [False, True])
def test_a_ticket_is_void_at_its_targets_death(ledger: Ledger, claimed: bool) -> None:
    number = issue(ledger)
    if claimed:
        ledger.claim(B, SECRET, 0.0)
    assert ledger.reap(Q)
    assert ledger.references(S.socket) == 1
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    with pytest.raises(TicketInvalid):
        ledger.claim(B, SECRET, 0.0)


def test_a_claimers_death_gives_a_claim_once_ticket_back(ledger: Ledger) -> None:
    number = issue(ledger, target=None)
    ledger.announce(B, S, facts(1))
    ledger.claim(B, SECRET, 0.0)
    ledger.reap(Q)
    assert ledger.references(S.socket) == 2
    assert ledger.claim(C, SECRET, 0.0).number == number


@pytest.mark.fault("F-11", "F-12")
@pytest.mark.rule("DUP-12")
def test_a_ticket_outlives_its_issuer(ledger: Ledger) -> None:
    number = issue(ledger)
    ledger.reap(P)
    assert ledger.references(S.socket) == 1
    assert not ledger.is_empty()
    ledger.claim(B, SECRET, 0.0)
    ledger.acknowledge(B, number, facts(1))
    assert ledger.references(S.socket) == 1
    assert [holder.pid for holder in ledger.holders(S.socket)] == [Q.pid]


@pytest.mark.parametrize("linger_s", [None, 0, 7])
@pytest.mark.fault("F-18", "F-70")
def test_custody_is_the_last_closer_of_a_ticket_that_was_the_last_reference(
    ledger: Ledger, linger_s: int | None
) -> None:
    ledger.set_common(A, S.socket, {"linger_s": linger_s})
    number = issue(ledger)
    assert ledger.begin_close(A, one(), None, 0.0) is False, "F-70: a ticket is out"
    ledger.end_close(A, one())
    ledger.take_effects()
    ledger.reap(Q)
    assert ledger.take_effects() == [ReleaseCustody(number, last=True, linger_s=linger_s)]
    assert ledger.is_empty()


def test_custody_waits_for_the_closers_before_it(ledger: Ledger) -> None:
    """A closer told NOT LAST because of the ticket is still closing when the ticket ends: one is last, custody."""
    number = issue(ledger)
    assert ledger.begin_close(A, one(), None, 0.0) is False
    ledger.reap(Q)
    assert ledger.take_effects() == []
    ledger.end_close(A, one())
    assert ledger.take_effects() == [ReleaseCustody(number, last=True)]
    assert ledger.is_empty()


def test_custody_does_not_wait_for_a_close_that_is_cancelled(ledger: Ledger) -> None:
    number = issue(ledger)
    ledger.begin_close(A, one(), None, 0.0)
    assert ledger.revoke(A, SECRET)
    ledger.cancel_close(A, one())
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    assert ledger.references(S.socket) == 1


def test_revoke_takes_back_what_is_unclaimed_and_ones_own(ledger: Ledger) -> None:
    number = issue(ledger)
    assert not ledger.revoke(B, SECRET), "somebody else's"
    assert not ledger.revoke(A, OTHER), "unknown"
    assert ledger.references(S.socket) == 2
    assert ledger.revoke(A, SECRET)
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    assert not ledger.revoke(A, SECRET)
    with pytest.raises(TicketInvalid):
        ledger.claim(B, SECRET, 0.0)
    issue(ledger, OTHER)
    ledger.claim(B, OTHER, 0.0)
    assert not ledger.revoke(A, OTHER), "in flight"
    assert ledger.references(S.socket) == 2


@pytest.mark.fault("F-16", "S-11")
def test_tickets_are_capped_and_all_are_freed_at_expiry() -> None:
    ledger = Ledger(limits=Limits(tickets=5, tickets_per_holder=3))
    ledger.announce(A, S, facts(1))
    ledger.announce(B, S, facts(1))
    numbers = itertools.count()

    def more(holder: HolderId) -> None:
        ledger.issue(holder, S.socket, one(), b"%032d" % next(numbers), None, None, 0.0, 0.0)

    for _ in range(3):
        more(A)
    with pytest.raises(TicketLimit):
        more(A)
    more(B)
    more(B)
    with pytest.raises(TicketLimit):
        more(B)
    assert ledger.references(S.socket) == 7
    ledger.expire(60.0)
    assert ledger.references(S.socket) == 2
    assert ledger.counts() == (1, 2, 0)
    more(A)


@pytest.mark.fault("F-16", "S-11")
def test_of_ten_thousand_tickets_nobody_redeems_so_many_are_kept_and_all_go_at_expiry(ledger: Ledger) -> None:
    """With the caps of a real registry, forty holders and a ticket each millisecond."""
    holders = [HolderId(ProcessId(1000 + number, 1), b"%016d" % number) for number in range(40)]
    for holder in holders:
        ledger.announce(holder, S, facts(1))
    refused = 0
    for number in range(10_000):
        try:
            ledger.issue(holders[number % 40], S.socket, one(), b"%032d" % number, None, None, number / 1000, 0.0)
        except TicketLimit:
            refused += 1
    assert refused == 10_000 - ledger.limits.tickets
    assert ledger.references(S.socket) == 1 + 40 + ledger.limits.tickets
    ledger.expire(ledger.limits.claim_once_s + ledger.limits.tickets / 1000)
    assert ledger.references(S.socket) == 1 + 40
    assert {type(effect) for effect in ledger.take_effects()} == {ReleaseCustody}
    ledger.issue(holders[0], S.socket, one(), SECRET, None, None, 1000.0, 0.0)


@pytest.mark.fault("F-16")
def test_ten_thousand_tickets_leave_nothing_behind() -> None:
    ledger = Ledger()
    ledger.announce(A, S, facts(1))
    for number in range(10_000):
        ledger.issue(A, S.socket, one(), b"%032d" % number, None, None, float(number), 0.0)
        ledger.expire(float(number))
        ledger.claim(B, b"%032d" % number, float(number))
        ledger.acknowledge(B, only_ticket(ledger), facts(number))
        ledger.begin_close(B, DescriptorId(number), None, 0.0)
        ledger.end_close(B, DescriptorId(number))
    assert ledger.references(S.socket) == 1
    assert len(ledger.timers) < 3000
    assert len(ledger._tickets._tombstones) == ledger.limits.remembered
    ledger.disconnected(B)
    assert B not in ledger._holdings


def only_ticket(ledger: Ledger) -> int:
    (ticket,) = ledger._tickets
    return ticket.number
