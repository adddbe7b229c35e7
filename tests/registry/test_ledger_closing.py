"""Closing in the ledger: of all who close, exactly one is told that it is the last."""

from __future__ import annotations

import errno
import itertools

import pytest

from sharedsock.model.errors import NotASocket
from sharedsock.model.identity import DescriptorId, HolderId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import Answer
from tests.registry.ledger_cast import A, B, C, P, Q, S, facts, one


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
