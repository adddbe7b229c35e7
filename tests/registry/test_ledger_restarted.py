"""The ledger of a registry that took a dead one's place: what was announced again, and who is missing."""

from __future__ import annotations

import pytest

from sharedsock.registry.ledger import Ledger
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import Answer, ReleaseCustody, ShowCommon
from tests.registry.ledger_cast import SECRET, A, B, C, S, T, facts, issue, one

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
