"""KeyboardInterrupt at every place of a call at which one can come: nothing lost, nothing left, nothing stuck.

Source: spec/fault-catalogue.md, rule 3, F-50; OVERLAP-3: what was not started is never told of.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from selectors import EVENT_READ
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import overlapped, service
from sharedsock.kernel import sockets
from tests.descriptors import kinds, requests
from tests.descriptors.requests import PATIENCE_S
from tests.sweeps.interrupting import Interrupter

MOST_PLACES = 2000
_imported_at_first_use = overlapped, ss.select, ss.Selector  # which is no part of the sweeps


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the service thread end as soon as it is idle: each place begins with its start."""
    monkeypatch.setattr(service, "_IDLE_S", 0.0)


def sweep(prepare: Callable[[], Any], call: Callable[[Any], Any], check: Callable[[Any, Any, str], None]) -> int:
    """Interrupt a call at its 1st, 2nd, 3rd … place, on something fresh each time, until it comes through untouched."""
    for place in range(MOST_PLACES):
        given = prepare()
        interrupter = Interrupter(place)
        value, was_interrupted = interrupter.run(call, given)
        try:
            check(given, value, interrupter.where)
        except Exception as error:
            error.add_note(f"interrupted at place {place}: {interrupter.where}")
            raise
        if not was_interrupted:
            return place
    raise AssertionError("the call never comes through")


def pair_with_data() -> tuple[ss.SharedSocket, socket.socket]:
    shared, peer = ss.socketpair()
    plain = socket.socket(fileno=peer.detach())
    plain.settimeout(PATIENCE_S)
    plain.send(b"precious")
    return shared, plain


@pytest.mark.fault("F-50", "F-33")
@pytest.mark.rule("OVERLAP-3")
def test_a_receive_that_has_data_loses_none() -> None:
    def check(given: tuple[ss.SharedSocket, socket.socket], operation: Any, where: str) -> None:
        shared, peer = given
        with shared, peer:
            assert shared.pending_operations() == (), where
            shared.settimeout(0)
            data = shared.recv(64) if operation is None else operation.result(0)
            assert data == b"precious", where

    assert sweep(pair_with_data, lambda given: given[0].begin_recv(64), check) > 2


@pytest.mark.fault("F-50")
@pytest.mark.rule("OVERLAP-3")
def test_a_receive_that_has_to_wait_is_not_started() -> None:
    """Or it is, and its caller has it; the data goes to whoever asks next, and the service thread ends."""

    def prepare() -> tuple[ss.SharedSocket, socket.socket]:
        shared, peer = pair_with_data()
        shared.recv(64)
        return shared, peer

    def check(given: tuple[ss.SharedSocket, socket.socket], operation: Any, where: str) -> None:
        shared, peer = given
        with shared, peer:
            assert len(shared.pending_operations()) == (operation is not None), where
            peer.send(b"later")
            data = shared.recv(64) if operation is None else operation.result(PATIENCE_S)
            assert data == b"later", where
        requests.wait_service_idle()

    assert sweep(prepare, lambda given: given[0].begin_recv(64), check) > 2


@pytest.mark.fault("F-50")
@pytest.mark.rule("OVERLAP-9")
def test_whoever_tries_for_another_s_request_loses_nothing_of_it() -> None:
    """A request that is begun behind one that waits tries that one first, in the thread that may be interrupted."""
    held = ExitStack()

    def prepare() -> tuple[ss.SharedSocket, socket.socket, Any]:
        shared, peer = pair_with_data()
        shared.recv(64)
        operation = shared.begin_recv(4)
        held.enter_context(requests.service_held())
        peer.send(b"his mine")
        return shared, peer, operation

    def check(given: tuple[ss.SharedSocket, socket.socket, Any], mine: Any, where: str) -> None:
        shared, peer, his = given
        with shared, peer:
            held.close()
            assert his.result(PATIENCE_S) == b"his ", where
            shared.settimeout(0)
            assert (shared.recv(64) if mine is None else mine.result(PATIENCE_S)) == b"mine", where
        requests.wait_service_idle()

    assert sweep(prepare, lambda given: given[0].begin_recv(4), check) > 2


@pytest.mark.fault("F-50")
def test_a_send_lets_go_of_its_buffer() -> None:
    def prepare() -> tuple[ss.SharedSocket, socket.socket, bytearray]:
        shared, peer = pair_with_data()
        kinds.fill(shared)
        return shared, peer, bytearray(b"x" * 100)

    def check(given: tuple[ss.SharedSocket, socket.socket, bytearray], operation: Any, where: str) -> None:
        shared, peer, data = given
        with shared, peer:
            if operation is not None:
                assert operation.cancel(), where
            assert shared.pending_operations() == (), where
        data.clear()
        requests.wait_service_idle()

    assert sweep(prepare, lambda given: given[0].begin_sendall(given[2]), check) > 2


@pytest.mark.fault("F-50", "F-73")
@pytest.mark.rule("CLOSE-22")
def test_a_close_that_is_cut_short_still_ends_what_is_pending() -> None:
    """The step of a close that is this room's; a close that was interrupted takes it once more."""

    def prepare() -> tuple[ss.SharedSocket, socket.socket, Any]:
        shared, peer = pair_with_data()
        shared.recv(64)
        operation = shared.begin_recv(64)
        sockets.abort(shared._descriptor.kernel, "the sweep")
        return shared, peer, operation

    def check(given: tuple[ss.SharedSocket, socket.socket, Any], _: Any, where: str) -> None:
        shared, peer, operation = given
        with shared, peer:
            service.abort(shared._descriptor.kernel)
            assert requests.error_of(operation).winerror == 995, where
            shared.close()
        requests.wait_service_idle()

    assert sweep(prepare, lambda given: service.abort(given[0]._descriptor.kernel), check) > 2


@pytest.mark.fault("F-50")
def test_a_select_leaves_nothing_behind() -> None:
    def check(given: tuple[ss.SharedSocket, socket.socket], ready: Any, where: str) -> None:
        shared, peer = given
        with shared, peer:
            assert shared.pending_operations() == (), where
            assert ready is None or ready[0] == [shared]

    assert sweep(pair_with_data, lambda given: ss.select([given[0]], [], [], 5), check) > 2


@pytest.mark.fault("F-50", "F-57")
def test_a_selector_is_never_left_half_registered() -> None:
    """Registered or not; a close takes it out either way, and no ghost is left where a sharer keeps the socket."""

    def prepare() -> tuple[ss.SharedSocket, socket.socket, ss.Selector]:
        return *pair_with_data(), ss.Selector()

    def check(given: tuple[ss.SharedSocket, socket.socket, ss.Selector], key: Any, where: str) -> None:
        shared, peer, selector = given
        with peer, selector, socket.socket(fileno=os.dup(shared.fileno())):
            assert shared.pending_operations() == (), where
            is_known = shared in selector.get_map()
            assert is_known or key is None, where
            assert bool(selector.select(0)) == is_known, where
            shared.close()
            assert selector.select(0) == [], where
            assert selector._polls.wait(0) == [], where

    assert sweep(prepare, lambda given: given[2].register(given[0], EVENT_READ), check) > 2
