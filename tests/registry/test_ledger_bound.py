"""Tickets that are bound to a process later: those of a child that is being launched."""

from __future__ import annotations

import pytest

from sharedsock.model.errors import (
    TicketError,
    TicketInvalid,
)
from sharedsock.model.identity import ProcessId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.records import ReleaseCustody
from tests.registry.ledger_cast import OTHER, SECRET, A, B, C, P, Q, R, S, facts, issue, one


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
