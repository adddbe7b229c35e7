"""The ledger: what is a reference, who may change it, and when it goes. Pure; time is an argument."""

from __future__ import annotations

import errno

import pytest

from sharedsock.model.errors import NotASocket
from sharedsock.model.identity import DescriptorId, HolderId, SocketFacts
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import Limits, ShowCommon
from tests.registry.ledger_cast import OTHER, SECRET, A, B, C, P, Q, R, S, T, close, facts, issue, one


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
