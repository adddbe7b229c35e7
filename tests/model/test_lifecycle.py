"""The four lifecycles: every (state, event) cell, what ends, what counts as a reference, and the couplings."""

from __future__ import annotations

from enum import Enum
from itertools import product

import pytest

from sharedsock.model import trace
from sharedsock.model.errors import InternalError
from sharedsock.model.lifecycle import (
    COUPLINGS,
    DESCRIPTOR,
    DESCRIPTOR_POINTS,
    LIFECYCLES,
    OPERATION,
    OPERATION_POINTS,
    SOCKET,
    TICKET,
    DescriptorEvent,
    DescriptorState,
    Lifecycle,
    OperationEvent,
    OperationState,
    SocketEvent,
    SocketState,
    TicketEvent,
    TicketState,
    advance,
)

CELLS = [
    pytest.param(table, state, event, id=f"{table.name}-{state.name}-{event.name}")
    for table in LIFECYCLES
    for state, event in product(table.states, table.events)
]


@pytest.mark.parametrize(("table", "state", "event"), CELLS)
def test_every_cell_moves_as_its_row_says_or_is_refused(table: Lifecycle[Enum, Enum], state: Enum, event: Enum) -> None:
    """A miss raises InternalError naming the lifecycle, the state and the event; a state is a value, so it stays."""
    if (state, event) in table.rows:
        assert advance(state, event) is table.rows[state, event]
        return
    with pytest.raises(InternalError) as caught:
        advance(state, event)
    assert caught.value.invariant == f"{table.name} lifecycle"
    assert state.name in str(caught.value)
    assert event.name in str(caught.value)


def test_an_event_of_another_lifecycle_is_refused() -> None:
    """Equal words in two tables are different events."""
    with pytest.raises(InternalError):
        advance(DescriptorState.OPEN, SocketEvent.END)


@pytest.mark.parametrize("table", LIFECYCLES, ids=lambda table: table.name)
def test_every_state_is_reached_and_every_event_is_used(table: Lifecycle[Enum, Enum]) -> None:
    """No dead rows: what the table names can happen."""
    reached = {table.first}
    while True:
        more = {after for (state, _), after in table.rows.items() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(table.states)
    assert {event for _, event in table.rows} == set(table.events)


@pytest.mark.parametrize("table", LIFECYCLES, ids=lambda table: table.name)
def test_every_state_can_still_end(table: Lifecycle[Enum, Enum]) -> None:
    """I7, on paper: from everywhere a way leads to an end."""
    ending = set(table.ends())
    assert ending
    while True:
        more = {state for (state, _), after in table.rows.items() if after in ending} - ending
        if not more:
            break
        ending |= more
    assert ending == set(table.states)


def test_an_end_is_no_reference() -> None:
    """I2: what has ended keeps no socket open."""
    for table in (DESCRIPTOR, TICKET):
        assert table.references
        assert not table.references & table.ends()


def test_an_operation_ends_once_and_only_completed_has_taken() -> None:
    """I1: an end is left by nothing; WAITING leads to COMPLETED only through another try."""
    assert OPERATION.ends() == {OperationState.COMPLETED, OperationState.FAILED, OperationState.ABORTED}
    assert {event for (_, event), after in OPERATION.rows.items() if after is OperationState.COMPLETED} == {
        OperationEvent.TAKE
    }
    assert (OperationState.WAITING, OperationEvent.TAKE) not in OPERATION.rows


def test_a_ticket_yields_one_descriptor_and_is_a_reference_until_it_ends() -> None:
    """I8: CLAIMED is an end, and every other end has given the reference back without a descriptor."""
    assert TICKET.ends() == {TicketState.CLAIMED, TicketState.REVOKED, TicketState.EXPIRED, TicketState.VOID}
    assert TICKET.references == {TicketState.ISSUED, TicketState.CLAIMING}
    assert advance(TicketState.CLAIMING, TicketEvent.HAND_BACK) is TicketState.ISSUED


def test_a_refused_close_leaves_the_descriptor_open_and_unaborted() -> None:
    """LPWSPCLOSESOCKET: after 10035 the handle is still valid; ABORTED can no longer be refused."""
    assert advance(DescriptorState.CLOSING, DescriptorEvent.REFUSE) is DescriptorState.OPEN
    assert [state for state, event in DESCRIPTOR.rows if event is DescriptorEvent.REFUSE] == [DescriptorState.CLOSING]


def test_a_closed_descriptor_does_not_close_again() -> None:
    """A second close finds nothing to begin."""
    for state in DescriptorState:
        if state is not DescriptorState.OPEN:
            with pytest.raises(InternalError):
                advance(state, DescriptorEvent.BEGIN)


def test_a_fork_leaves_the_child_nothing_it_could_close() -> None:
    """Whatever the parent was doing, the child's copy is no reference."""
    for state in DescriptorState:
        assert advance(state, DescriptorEvent.FORK) not in DESCRIPTOR.references


def test_a_socket_ends_only_with_its_last_reference() -> None:
    """I3: LEAVE ends nothing; only the last closer's end, or the last holder's death, does."""
    ending = {event for (state, event), after in SOCKET.rows.items() if after is SocketState.ENDED is not state}
    assert ending == {SocketEvent.END, SocketEvent.DIE}


def test_couplings_tie_events_that_their_tables_have() -> None:
    """No coupling stays inside one lifecycle, and no two are the same."""
    of_event = {table.events: table for table in LIFECYCLES}
    for coupling in COUPLINGS:
        assert of_event[type(coupling.cause)] is not of_event[type(coupling.effect)]
    assert len({(c.cause, c.effect, c.whom) for c in COUPLINGS}) == len(COUPLINGS)


def test_points_are_points() -> None:
    """Each named point exists, and names one event."""
    for points in (DESCRIPTOR_POINTS, OPERATION_POINTS):
        assert set(points) <= trace.POINTS
        assert len(set(points.values())) == len(points)
