"""The ledger: what is a reference, who may change it, and when it goes. Pure; time is an argument."""

from __future__ import annotations

import errno
import itertools
import math

import pytest

from sharedsock.model.errors import (
    NotASocket,
    TicketAlreadyClaimed,
    TicketError,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
)
from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import Answer, Limits, ReleaseCustody, ShowCommon

P, Q, R = ProcessId(100, 1), ProcessId(200, 2), ProcessId(300, 3)
A, B, C = HolderId(P, b"a" * 16), HolderId(Q, b"b" * 16), HolderId(R, b"c" * 16)
S = SocketFacts(SocketId(7), 2, 1, 6)
T = SocketFacts(SocketId(8), 2, 2, 17)
SECRET, OTHER = b"s" * 32, b"o" * 32


def facts(number: int, place: str = "x.py:1 in f") -> DescriptorFacts:
    return DescriptorFacts(DescriptorId(number), place, 1.0)


def one() -> DescriptorId:
    return DescriptorId(1)


@pytest.fixture
def ledger() -> Ledger:
    """A ledger in which A has descriptor 1 on S."""
    made = Ledger(b"pepper")
    made.announce(A, S, facts(1))
    made.take_effects()
    return made


def issue(ledger: Ledger, secret: bytes = SECRET, target: ProcessId | None = Q, **more: float) -> int:
    return ledger.issue(A, S.socket, one(), secret, target, more.get("expires_s"), more.get("now", 0.0), 5.0)


# -- descriptors --------------------------------------------------------------------------------------------------


@pytest.mark.rule("REF-1")
def test_each_announced_descriptor_is_a_reference(ledger: Ledger) -> None:
    slot = ledger.announce(B, S, facts(1))
    assert ledger.references(S.socket) == 2
    assert ledger.announce(A, S, facts(2)) == slot
    assert ledger.references(S.socket) == 3
    assert ledger.sockets() == ((S, 3),)
    assert ledger.references(T.socket) == 0


@pytest.mark.fault("F-04")
def test_announcing_again_counts_once(ledger: Ledger) -> None:
    slot = ledger.announce(A, S, facts(1))
    assert ledger.announce(A, S, facts(1)) == slot
    assert ledger.references(S.socket) == 1


@pytest.mark.fault("F-110")
def test_a_descriptor_is_on_one_socket(ledger: Ledger) -> None:
    with pytest.raises(NotASocket):
        ledger.announce(A, T, facts(1))
    assert ledger.references(T.socket) == 0
    assert ledger.counts() == (1, 1, 0)


def test_sockets_get_slots_of_their_own_and_give_them_back(ledger: Ledger) -> None:
    first, second = ledger.announce(A, S, facts(1)), ledger.announce(A, T, facts(2))
    assert first != second
    ledger.set_common(A, T.socket, {"nonblocking": True})
    ledger.begin_close(A, DescriptorId(2), None, 0.0)
    ledger.end_close(A, DescriptorId(2))
    ledger.take_effects()
    assert ledger.announce(B, T, facts(9)) == second
    assert ledger.take_effects() == [ShowCommon(second, CommonState())], "a new socket starts with a clean state"


@pytest.mark.fault("S-11")
def test_descriptors_of_one_holder_are_capped() -> None:
    ledger = Ledger(limits=Limits(descriptors_per_holder=3))
    for number in range(3):
        ledger.announce(A, S, facts(number))
    with pytest.raises(OSError) as caught:
        ledger.announce(A, S, facts(3))
    assert caught.value.errno == errno.ENOBUFS
    ledger.announce(A, S, facts(2))
    ledger.announce(B, S, facts(3))
    ledger.issue(B, S.socket, DescriptorId(3), SECRET, P, None, 0.0, 0.0)
    with pytest.raises(OSError):
        ledger.claim(A, SECRET, 0.0)
    with pytest.raises(OSError):
        ledger.lend(A, S.socket, one(), Q, 0.0)
    assert ledger.references(S.socket) == 5


@pytest.mark.fault("S-11")
def test_sockets_are_capped_by_the_slots() -> None:
    ledger = Ledger(limits=Limits(sockets=1))
    ledger.announce(A, S, facts(1))
    with pytest.raises(OSError) as caught:
        ledger.announce(A, T, facts(2))
    assert caught.value.errno == errno.ENOBUFS
    assert ledger.counts() == (1, 1, 0)


# -- tickets ------------------------------------------------------------------------------------------------------


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


def test_bind_stops_the_clock_and_names_the_target(ledger: Ledger) -> None:
    issue(ledger, target=None)
    assert ledger.bind(A, SECRET, Q)
    assert ledger.bind(A, SECRET, Q)
    with pytest.raises(TicketError):
        ledger.bind(A, SECRET, R)
    ledger.expire(1e9)
    with pytest.raises(TicketInvalid):
        ledger.claim(C, SECRET, 1e9)
    assert ledger.claim(B, SECRET, 1e9).target_bound


def test_bind_after_the_claim_says_so(ledger: Ledger) -> None:
    number = issue(ledger, target=None)
    ledger.claim(B, SECRET, 0.0)
    assert not ledger.bind(A, SECRET, Q)
    ledger.acknowledge(B, number, facts(1))
    assert not ledger.bind(A, SECRET, Q)


@pytest.mark.parametrize("bound_to", [Q, None], ids=["the child", "a dead child"])
def test_a_claim_that_goes_back_after_the_bind_is_not_free_for_all(ledger: Ledger, bound_to: ProcessId | None) -> None:
    """The bind came while the child had it: handed back, it is the child's and ends with it."""
    number = issue(ledger, target=None)
    ledger.claim(B, SECRET, 0.0)
    assert not ledger.bind(A, SECRET, bound_to)
    ledger.refuse(B, number)
    ledger.expire(1e9)
    with pytest.raises(TicketInvalid):
        ledger.claim(C, SECRET, 1e9)
    ledger.reap(Q)
    assert ledger.references(S.socket) == 1


# -- tickets for a child that is being launched ---------------------------------------------------------------------


def launch(ledger: Ledger) -> int:
    return ledger.issue(A, S.socket, one(), SECRET, None, None, 0.0, 5.0, launching=True)


@pytest.mark.fault("F-89")
@pytest.mark.rule("DUP-13")
def test_a_launching_ticket_has_no_clock_and_ends_with_its_minter(ledger: Ledger) -> None:
    number = launch(ledger)
    ledger.expire(1e9)
    assert ledger.references(S.socket) == 2
    ledger.take_effects()
    ledger.reap(P)
    assert ledger.take_effects() == [ReleaseCustody(number, last=True)]
    assert ledger.is_empty()
    assert not list(ledger.processes())


@pytest.mark.fault("F-89")
def test_a_bound_launching_ticket_ends_with_the_child_only(ledger: Ledger) -> None:
    launch(ledger)
    assert ledger.bind(A, SECRET, Q)
    ledger.reap(P)
    assert ledger.references(S.socket) == 1
    ledger.reap(Q)
    assert ledger.is_empty()
    assert not list(ledger.processes())


@pytest.mark.fault("F-89")
def test_a_launching_ticket_can_be_claimed_before_the_child_is_known(ledger: Ledger) -> None:
    """The child is faster than its parent: first claimed, then bound."""
    number = launch(ledger)
    ledger.claim(B, SECRET, 0.0)
    assert not ledger.bind(A, SECRET, Q)
    ledger.acknowledge(B, number, facts(1))
    ledger.reap(P)
    assert ledger.references(S.socket) == 1


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("ends", ["acknowledged", "handed back", "dead"])
def test_a_launching_ticket_that_is_being_claimed_when_its_minter_dies_is_the_claimer_s(
    ledger: Ledger, ends: str
) -> None:
    number = launch(ledger)
    ledger.claim(B, SECRET, 0.0)
    ledger.reap(P)
    assert ledger.references(S.socket) == 1
    if ends == "acknowledged":
        ledger.acknowledge(B, number, facts(1))
        assert [holder.pid for holder in ledger.holders(S.socket)] == [Q.pid]
        return
    if ends == "handed back":
        ledger.refuse(B, number)
        with pytest.raises(TicketInvalid):
            ledger.claim(C, SECRET, 0.0)
        assert ledger.references(S.socket) == 1
    ledger.reap(Q)
    assert ledger.is_empty()
    assert not list(ledger.processes())


@pytest.mark.fault("F-89", "F-91")
def test_a_minter_that_runs_another_program_launches_nobody(ledger: Ledger) -> None:
    """exec: the process lives on, and knows nothing of a launch; its other tickets stay."""
    launch(ledger)
    issue(ledger, OTHER, target=None)
    ledger.reap_holder(A)
    assert ledger.references(S.socket) == 1
    with pytest.raises(TicketInvalid):
        ledger.claim(B, SECRET, 0.0)
    ledger.claim(B, OTHER, 0.0)


def test_bind_to_the_dead_drops_the_ticket(ledger: Ledger) -> None:
    number = issue(ledger, target=None)
    assert ledger.bind(A, SECRET, None)
    assert ledger.take_effects() == [ReleaseCustody(number, last=False)]
    with pytest.raises(TicketInvalid):
        ledger.bind(A, SECRET, Q)


@pytest.mark.fault("F-110")
def test_bind_is_the_issuers(ledger: Ledger) -> None:
    issue(ledger, target=None)
    for holder, secret in ((B, SECRET), (A, OTHER)):
        with pytest.raises(TicketInvalid):
            ledger.bind(holder, secret, Q)
    assert not ledger.claim(C, SECRET, 0.0).target_bound


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


# -- close --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("REF-2")
def test_a_close_is_not_last_while_another_is_open(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    assert ledger.begin_close(A, one(), "a", 0.0) is False
    ledger.end_close(A, one())
    assert ledger.references(S.socket) == 1
    assert ledger.begin_close(B, one(), "b", 0.0) is True
    ledger.end_close(B, one())
    assert ledger.is_empty()
    assert ledger.take_effects() == []


@pytest.mark.fault("F-70")
def test_a_lent_descriptor_and_a_ticket_are_open_references(ledger: Ledger) -> None:
    ledger.lend(A, S.socket, one(), Q, 0.0)
    ledger.lend(A, S.socket, one(), Q, 0.0)
    assert ledger.references(S.socket) == 2
    assert ledger.begin_close(A, one(), None, 0.0) is False
    ledger.end_close(A, one())
    assert [holder.kind for holder in ledger.holders(S.socket)] == ["lent"]
    ledger.reap(Q)
    assert ledger.is_empty()


@pytest.mark.fault("F-59")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("ends", list(itertools.permutations(range(3))))
def test_of_closers_at_once_exactly_one_is_last_and_after_all_others(
    order: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    """All begin before any ends. The last told waits for the others' ends, in whatever order they come."""
    ledger = Ledger()
    holders = [A, B, C]
    for holder in holders:
        ledger.announce(holder, S, facts(1))
    ledger.take_effects()
    told: dict[int, bool] = {}
    ended: list[int] = []
    for index in order:
        answer = ledger.begin_close(holders[index], one(), index, 0.0)
        if answer is not None:
            told[index] = answer
    assert len(told) == 2
    assert not any(told.values())
    pending = list(ends)
    while pending:
        for index in pending:
            if index in told:
                ledger.end_close(holders[index], one())
                ended.append(index)
                pending.remove(index)
                break
        else:
            pytest.fail("nobody can go on")
        for effect in ledger.take_effects():
            assert isinstance(effect, Answer)
            assert effect.last
            assert len(ended) == 2, "last only after all others' descriptors are closed"
            assert isinstance(effect.token, int)
            told[effect.token] = effect.last
    assert sorted(told.values()) == [False, False, True]
    assert ledger.is_empty()


@pytest.mark.fault("F-59")
def test_the_last_closer_hears_when_the_others_die(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    assert ledger.begin_close(A, one(), "a", 0.0) is False
    assert ledger.begin_close(B, one(), "b", 0.0) is None
    ledger.reap(P)
    assert ledger.take_effects() == [Answer("b", True)]


@pytest.mark.fault("F-59")
def test_the_last_closer_waits_no_longer_than_its_time(ledger: Ledger) -> None:
    """None hangs on a stopped one: a holder that has drained never uses the socket again."""
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    assert ledger.begin_close(B, one(), "b", 1.0) is None
    assert ledger.next_deadline() == 2.5
    ledger.expire(2.4)
    assert ledger.take_effects() == []
    ledger.expire(2.5)
    assert ledger.take_effects() == [Answer("b", True)]
    assert ledger.begin_close(B, one(), "again", 3.0) is True, "the answer binds"
    ledger.end_close(A, one())
    assert ledger.take_effects() == [], "the stopped one was told NOT LAST, and is not told otherwise"


def test_a_cancelled_close_is_open_again(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    assert ledger.begin_close(B, one(), "b", 0.0) is None
    ledger.cancel_close(A, one())
    assert ledger.take_effects() == [Answer("b", False)]
    ledger.cancel_close(A, one())
    assert ledger.begin_close(A, one(), "a", 0.0) is None, "B is closing"
    ledger.end_close(B, one())
    assert ledger.take_effects() == [Answer("a", True)]


def test_cancelling_the_close_that_waits_answers_it(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    ledger.begin_close(B, one(), "b", 0.0)
    ledger.cancel_close(B, one())
    assert ledger.take_effects() == [Answer("b", False)]
    ledger.expire(100.0)
    assert ledger.take_effects() == []
    assert ledger.references(S.socket) == 2


def test_a_deadline_of_a_cancelled_close_does_not_end_the_next(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    ledger.begin_close(B, one(), "b", 0.0)
    ledger.cancel_close(B, one())
    ledger.take_effects()
    assert ledger.begin_close(B, one(), "b2", 1.0) is None
    ledger.expire(1.6)
    assert ledger.take_effects() == []
    ledger.expire(2.5)
    assert ledger.take_effects() == [Answer("b2", True)]


@pytest.mark.parametrize("newcomer", ["announce", "recovered"])
def test_a_new_reference_makes_the_waiting_closer_not_last(ledger: Ledger, newcomer: str) -> None:
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    ledger.begin_close(B, one(), "b", 0.0)
    ledger.announce(C, S, facts(1), CommonState() if newcomer == "recovered" else None)
    assert ledger.take_effects() == [Answer("b", False)]


def test_asking_twice_answers_twice(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), "a", 0.0)
    ledger.begin_close(B, one(), "b1", 0.0)
    ledger.begin_close(B, one(), "b2", 0.5)
    ledger.end_close(A, one())
    assert ledger.take_effects() == [Answer("b1", True), Answer("b2", True)]
    assert ledger.begin_close(B, one(), "b3", 0.0) is True


@pytest.mark.fault("F-63", "F-110")
def test_end_close_is_never_counted_twice_and_never_without_begin(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    with pytest.raises(OSError) as caught:
        ledger.end_close(A, one())
    assert caught.value.errno == errno.EINVAL
    assert ledger.references(S.socket) == 2
    ledger.begin_close(A, one(), None, 0.0)
    for _ in range(3):
        ledger.end_close(A, one())
    assert ledger.references(S.socket) == 1
    for call in (ledger.end_close, ledger.cancel_close):
        with pytest.raises(NotASocket):
            call(A, DescriptorId(77))
        with pytest.raises(NotASocket):
            call(C, one())
    with pytest.raises(NotASocket):
        ledger.begin_close(C, one(), None, 0.0)
    assert ledger.references(S.socket) == 1


@pytest.mark.fault("F-76")
def test_a_socket_recovered_by_a_holder_nobody_awaited_has_no_last_closer() -> None:
    """There may be more like it: the kernel's rule then, and never a wrong LAST."""
    ledger = Ledger()
    ledger.announce(A, S, facts(1), CommonState())
    assert ledger.begin_close(A, one(), None, 0.0) is False
    ledger.cancel_close(A, one())
    ledger.announce(B, S, facts(1))
    ledger.begin_close(A, one(), None, 0.0)
    assert ledger.begin_close(B, one(), None, 0.0) is False
    ledger.end_close(A, one())
    ledger.end_close(B, one())
    assert ledger.is_empty()
    ledger.announce(A, S, facts(2))
    assert ledger.begin_close(A, DescriptorId(2), None, 0.0) is True, "a new record knows no recovery"


@pytest.mark.rule("REF-5")
@pytest.mark.parametrize("order", list(itertools.permutations([A, B, C])))
def test_any_order_of_closes_ends_in_full_release(order: tuple[HolderId, ...]) -> None:
    """The source first, the target first, or a grandchild: KB 229658, KB 198663."""
    ledger = Ledger()
    for holder in (A, B, C):
        ledger.announce(holder, S, facts(1))
    told = []
    for holder in order:
        told.append(ledger.begin_close(holder, one(), None, 0.0))
        ledger.end_close(holder, one())
    assert told == [False, False, True]
    assert ledger.is_empty()
    assert ledger.counts() == (0, 0, 0)


# -- after a restart ----------------------------------------------------------------------------------------------

NOBODY = CommonState()


@pytest.fixture
def restarted() -> Ledger:
    """A ledger in a dead one's place: A and B were left, and closers may wait for them until 2.0."""
    ledger = Ledger()
    ledger.await_holders([A.nonce, B.nonce], 2.0)
    return ledger


@pytest.mark.fault("F-76")
def test_while_a_holder_is_missing_a_closer_waits_and_is_last_when_it_has_died(restarted: Ledger) -> None:
    restarted.announce(A, S, facts(1), NOBODY)
    restarted.has_announced(A.nonce)
    assert restarted.begin_close(A, one(), "a", 0.0) is None
    assert restarted.missing() == {B.nonce}
    restarted.has_announced(B.nonce)
    assert restarted.take_effects()[-1] == Answer("a", True)


@pytest.mark.fault("F-76")
def test_a_closer_is_not_last_when_the_missing_one_turns_out_to_hold_it(restarted: Ledger) -> None:
    restarted.announce(A, S, facts(1), NOBODY)
    restarted.has_announced(A.nonce)
    restarted.begin_close(A, one(), "a", 0.0)
    restarted.announce(B, S, facts(1), NOBODY)
    assert restarted.take_effects()[-1] == Answer("a", False)
    restarted.has_announced(B.nonce)
    restarted.end_close(A, one())
    assert restarted.begin_close(B, one(), "b", 0.1) is True, "everything is known again"


@pytest.mark.fault("F-76")
def test_nobody_is_last_of_a_new_socket_either_while_closers_wait(restarted: Ledger) -> None:
    restarted.announce(C, T, facts(1))
    assert restarted.begin_close(C, one(), "c", 0.0) is None
    assert restarted.next_deadline() == 1.5
    restarted.expire(1.5)
    assert restarted.take_effects()[-1] == Answer("c", False), "its time is over before that of the missing"


@pytest.mark.fault("F-76")
def test_after_t_rpc_only_recovered_sockets_have_no_last_closer(restarted: Ledger) -> None:
    """B is stopped, and may share S; T was shared since, and is none of B's."""
    restarted.announce(A, S, facts(1), NOBODY)
    restarted.has_announced(A.nonce)
    restarted.announce(C, T, facts(1))
    restarted.begin_close(A, one(), "a", 1.0)
    assert restarted.next_deadline() == 2.0
    restarted.expire(2.0)
    assert restarted.take_effects()[-1] == Answer("a", False)
    assert restarted.begin_close(C, one(), "c", 2.0) is True
    restarted.cancel_close(A, one())
    assert restarted.begin_close(A, one(), "a", 2.1) is False
    restarted.cancel_close(A, one())
    restarted.has_announced(B.nonce)
    assert restarted.begin_close(A, one(), "a", 2.2) is True


@pytest.mark.fault("F-76")
def test_a_ticket_that_ends_while_a_holder_is_missing_keeps_custody_until_it_is_known(restarted: Ledger) -> None:
    restarted.announce(A, S, facts(1), NOBODY)
    restarted.has_announced(A.nonce)
    issue(restarted)
    restarted.begin_close(A, one(), "a", 0.0)
    restarted.end_close(A, one())
    restarted.take_effects()
    assert restarted.revoke(A, SECRET)
    assert restarted.take_effects() == []
    restarted.has_announced(B.nonce)
    assert restarted.take_effects() == [ReleaseCustody(2, last=True, linger_s=None)]
    assert restarted.is_empty()


@pytest.mark.fault("F-76")
def test_a_registry_that_awaits_somebody_is_not_idle(restarted: Ledger) -> None:
    assert not restarted.is_empty()
    for holder in (A, B):
        restarted.has_announced(holder.nonce)
    assert restarted.is_empty()


@pytest.mark.fault("F-76")
def test_what_the_sharers_agreed_on_is_taken_from_the_first_and_only_added_to_by_the_next(restarted: Ledger) -> None:
    """The first has changed linger since; the second has the dead registry's word, and a reset nobody else saw."""
    restarted.announce(A, S, facts(1), CommonState(linger_s=30, shut_send=True))
    restarted.set_common(A, S.socket, {"linger_s": 7})
    restarted.announce(B, S, facts(1), CommonState(linger_s=30, shut_send=True, reset_seen=True))
    assert restarted.common(S.socket) == CommonState(linger_s=7, shut_send=True, reset_seen=True)
    assert restarted.take_effects()[-1] == ShowCommon(0, restarted.common(S.socket))


@pytest.mark.fault("F-76")
def test_an_event_registration_comes_back_with_its_owner(restarted: Ledger) -> None:
    registered = CommonState(events=B.process.pid << 6 | 1)
    restarted.announce(A, S, facts(1), registered)
    assert restarted.common(S.socket).events == 0
    restarted.announce(B, S, facts(1), registered)
    assert restarted.common(S.socket) == registered
    restarted.begin_close(B, one(), "b", 0.0)
    restarted.end_close(B, one())
    assert restarted.common(S.socket).events == 0, "and ends with his last descriptor"


# -- death --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("CLEANUP-4")
def test_a_death_drops_exactly_what_the_dead_had(ledger: Ledger) -> None:
    ledger.announce(A, T, facts(2))
    ledger.announce(HolderId(P, b"z" * 16), S, facts(1))
    ledger.announce(B, S, facts(1))
    assert ledger.reap(P)
    assert ledger.sockets() == ((S, 1),)
    assert not ledger.reap(P)
    assert list(ledger.processes()) == [Q]


@pytest.mark.fault("F-91")
def test_another_program_in_the_same_process_holds_nothing(ledger: Ledger) -> None:
    ledger.announce(B, S, facts(1))
    ledger.reap_holder(B)
    assert ledger.references(S.socket) == 1
    assert not ledger.needs(Q)


def test_a_channel_that_ends_drops_no_descriptor(ledger: Ledger) -> None:
    ledger.disconnected(A)
    assert ledger.references(S.socket) == 1
    assert ledger.needs(P)


@pytest.mark.fault("S-14")
def test_common_state_belongs_to_those_who_hold_the_socket(ledger: Ledger) -> None:
    slot = ledger.announce(A, S, facts(1))
    ledger.set_common(A, S.socket, {"shut_send": True, "linger_s": 4})
    assert ledger.take_effects() == [ShowCommon(slot, CommonState(shut_send=True, linger_s=4))]
    ledger.set_common(A, S.socket, {"linger_s": None})
    assert ledger.common(S.socket) == CommonState(shut_send=True)
    for holder, socket in ((B, S), (A, T)):
        with pytest.raises(NotASocket):
            ledger.set_common(holder, socket.socket, {"shut_receive": True})
    assert ledger.common(S.socket) == CommonState(shut_send=True)


EVENTS = P.pid << 6 | 0x21


def close(ledger: Ledger, holder: HolderId, descriptor: DescriptorId) -> None:
    ledger.begin_close(holder, descriptor, None, 0.0)
    ledger.end_close(holder, descriptor)


@pytest.mark.parametrize("is_killed", [False, True], ids=["closes", "dies"])
def test_an_event_registration_ends_with_its_owners_last_descriptor(ledger: Ledger, is_killed: bool) -> None:
    """EVENT-11: it does not move to another holder, and what else all agree on stays."""
    slot = ledger.announce(A, S, facts(2))
    ledger.announce(B, S, facts(1))
    ledger.set_common(A, S.socket, {"events": EVENTS, "nonblocking": True})
    close(ledger, B, one())
    ledger.announce(B, S, facts(2))
    close(ledger, A, one())
    assert ledger.common(S.socket).events == EVENTS
    ledger.take_effects()
    if is_killed:
        ledger.reap(P)
    else:
        close(ledger, A, DescriptorId(2))
    assert ledger.take_effects() == [ShowCommon(slot, CommonState(nonblocking=True))]


def test_an_event_registration_that_was_taken_over_is_the_newer_ones(ledger: Ledger) -> None:
    """EVENT-1: the later registration replaces the earlier, whose owner may go without harm to it."""
    ledger.announce(B, S, facts(1))
    ledger.set_common(A, S.socket, {"events": EVENTS})
    ledger.set_common(B, S.socket, {"events": EVENTS + 1})
    close(ledger, A, one())
    assert ledger.common(S.socket).events == EVENTS + 1
    ledger.set_common(B, S.socket, {"events": 0})
    ledger.announce(A, S, facts(3))
    close(ledger, B, one())
    assert ledger.common(S.socket) == CommonState()


def test_holders_name_everyone(ledger: Ledger) -> None:
    ledger.name(P, "sharer")
    ledger.name(Q, "target")
    issue(ledger)
    issue(ledger, OTHER, None)
    ledger.claim(C, OTHER, 0.0)
    ledger.lend(A, S.socket, one(), Q, 9.0)
    ledger.begin_close(A, one(), None, 0.0)
    rows = [(h.pid, h.name, h.descriptor, h.kind, h.since_s) for h in ledger.holders(S.socket)]
    assert rows == [
        (P.pid, "sharer", 1, "closing", 1.0),
        (Q.pid, "target", 0, "ticket", 5.0),
        (R.pid, "", 0, "ticket", 5.0),
        (Q.pid, "target", 1, "lent", 9.0),
    ]
    assert {holder.opened_at for holder in ledger.holders(S.socket)} == {"x.py:1 in f"}


def test_former_holders_are_remembered_while_the_socket_lives(ledger: Ledger) -> None:
    """With their names and how it ended: a leak's report names whoever had the socket."""
    ledger.name(Q, "worker")
    ledger.announce(B, S, facts(1, "w.py:2 in g"))
    ledger.announce(C, S, facts(1))
    ledger.lend(A, S.socket, one(), Q, 9.0)
    assert ledger.former_holders(S.socket) == ()
    ledger.begin_close(C, one(), None, 0.0)
    assert ledger.former_holders(S.socket) == (), "closing, not gone"
    ledger.end_close(C, one())
    ledger.reap(Q)
    assert [(h.pid, h.name, h.kind, h.since_s, h.opened_at) for h in ledger.former_holders(S.socket)] == [
        (R.pid, "", "closed", 1.0, "x.py:1 in f"),
        (Q.pid, "worker", "died", 1.0, "w.py:2 in g"),
        (Q.pid, "worker", "died", 9.0, "x.py:1 in f"),
    ]
    ledger.begin_close(A, one(), None, 0.0)
    ledger.end_close(A, one())
    ledger.announce(A, S, facts(1))
    assert ledger.former_holders(S.socket) == (), "another socket's life"


def test_of_many_former_holders_the_newest_are_remembered() -> None:
    ledger = Ledger(limits=Limits(former_holders=2))
    ledger.announce(A, S, facts(1))
    for number in (2, 3, 4):
        ledger.announce(A, S, facts(number))
        ledger.begin_close(A, DescriptorId(number), None, 0.0)
        ledger.end_close(A, DescriptorId(number))
    assert [holder.descriptor for holder in ledger.former_holders(S.socket)] == [3, 4]


@pytest.mark.fault("F-37")
def test_what_the_kernel_says_replaces_what_was_announced(ledger: Ledger) -> None:
    told = SocketFacts(S.socket, 10, 1, 6)
    ledger.correct(told)
    ledger.correct(T)
    assert ledger.sockets() == ((told, 1),)
