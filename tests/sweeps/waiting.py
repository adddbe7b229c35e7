"""Scenes of overlapped operations, select and selectors."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import sharedsock as ss
from tests.descriptors.sharers import wait_until
from tests.sweeps.scenes import PATIENCE_S, TAGGED, Outcome, Stage, scene

Acts = Generator[Callable[[], Any], Outcome, None]


def _begun(outcome: Outcome, begin: Callable[[], Any]) -> Any:
    """Return an operation that succeeds: the one of the call, or another where that had an error to tell."""
    operation = outcome.value_or(begin)
    return operation if not operation.done() or operation.exception() is None else begin()


def _has_failed(outcome: Outcome) -> bool:
    return outcome.error is not None or outcome.value.exception(PATIENCE_S) is not None


@scene("SharedSocket.begin_recv")
def begin_recv(stage: Stage) -> Acts:
    """A request its caller never saw has taken nothing, or left it to the next call."""
    ours, peer = stage.connected()
    peer.sendall(TAGGED)
    outcome = yield lambda: ours.begin_recv(64)
    operation = _begun(outcome, lambda: ours.begin_recv(64))
    assert operation.result(PATIENCE_S) + stage.rest_of(ours) == TAGGED


@scene("SharedSocket.begin_recv/that must wait")
def begin_recv_that_must_wait(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    outcome = yield lambda: ours.begin_recv(64)
    operation = _begun(outcome, lambda: ours.begin_recv(64))
    wait_until(lambda: len(ours.pending_operations()) == 1, "the request alone; the service thread may be trying it")
    peer.sendall(TAGGED)
    assert operation.result(PATIENCE_S) + stage.rest_of(ours) == TAGGED


@scene("SharedSocket.begin_recvfrom")
def begin_recvfrom(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    peer.sendall(TAGGED)
    outcome = yield lambda: ours.begin_recvfrom(64)
    operation = _begun(outcome, lambda: ours.begin_recvfrom(64))
    assert operation.result(PATIENCE_S)[0] + stage.rest_of(ours) == TAGGED


@scene("SharedSocket.begin_send")
def begin_send(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    outcome = yield lambda: ours.begin_send(TAGGED)
    has_failed = _has_failed(outcome)
    ours.sendall(b"!")
    received = peer.recv(1 << 16)
    assert received == TAGGED + b"!" or (has_failed and received == b"!")


@scene("SharedSocket.begin_sendall")
def begin_sendall(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    outcome = yield lambda: ours.begin_sendall(TAGGED)
    has_failed = _has_failed(outcome)
    ours.sendall(b"!")
    received = peer.recv(1 << 16)
    assert received == TAGGED + b"!" or (has_failed and received == b"!")


@scene("SharedSocket.begin_accept")
def begin_accept(stage: Stage) -> Acts:
    listener = stage.listener()
    client = stage.client_of(listener)
    outcome = yield listener.begin_accept
    operation = _begun(outcome, listener.begin_accept)
    served, address = operation.result(PATIENCE_S)
    assert address == client.getsockname()
    stage.has(served).sendall(TAGGED)
    assert client.recv(1 << 16) == TAGGED


@scene("SharedSocket.begin_connect")
def begin_connect(stage: Stage) -> Acts:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        ours = stage.has(ss.SharedSocket())
        ours.settimeout(PATIENCE_S)
        outcome = yield lambda: ours.begin_connect(address)
        if _has_failed(outcome):
            assert ours.connect_ex(address) in _IS_CONNECTED
        ours.sendall(TAGGED)
        listener.settimeout(PATIENCE_S)
        with listener.accept()[0] as served:
            served.settimeout(PATIENCE_S)
            assert served.recv(1 << 16) == TAGGED


_IS_CONNECTED = (0, 106, 114)  # EISCONN, EALREADY: the attempt that was cut short goes on


@scene("Operation.cancel")
def cancel(stage: Stage) -> Acts:
    """Cancelled, or still pending and to be cancelled again; the bytes stay for the next call."""
    ours, peer = stage.connected()
    operation = ours.begin_recv(64)
    outcome = yield operation.cancel
    assert outcome.value_or(operation.cancel)
    assert operation.cancelled()
    peer.sendall(TAGGED)
    assert ours.recv(len(TAGGED)) == TAGGED


@scene("Operation.result")
def result(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    peer.sendall(TAGGED)
    operation = ours.begin_recv(len(TAGGED))
    outcome = yield operation.result
    assert outcome.value_or(operation.result) == TAGGED


@scene("Operation.exception")
def exception(stage: Stage) -> Acts:
    ours, _ = stage.connected()
    operation = ours.begin_recv(64)
    ours.close()
    outcome = yield lambda: operation.exception(PATIENCE_S)
    assert outcome.value_or(lambda: operation.exception(PATIENCE_S)).winerror == 995


@scene("select")
def select(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    peer.sendall(TAGGED)
    outcome = yield lambda: ss.select([ours], [ours], [], PATIENCE_S)
    assert outcome.value_or(lambda: ss.select([ours], [ours], [], PATIENCE_S)) == ([ours], [ours], [])
    assert ours.pending_operations() == ()


@scene("Selector.__init__")
def selector(stage: Stage) -> Acts:
    outcome = yield ss.Selector
    assert len(stage.has(outcome.value_or(ss.Selector)).get_map()) == 0


def _registered(stage: Stage) -> tuple[Any, Any]:
    selector = stage.has(ss.Selector())
    ours, peer = stage.connected()
    peer.sendall(TAGGED)
    return selector, ours


@scene("Selector.register")
def register(stage: Stage) -> Acts:
    """Registered or not, nothing in between; a close takes it out of a set it is half in."""
    selector, ours = _registered(stage)
    outcome = yield lambda: selector.register(ours, EVENT_READ)
    if outcome.error is not None and ours not in {key.fileobj for key in selector.get_map().values()}:
        selector.register(ours, EVENT_READ)
    assert [key.fileobj for key, _ in selector.select(PATIENCE_S)] == [ours]
    assert ours.pending_operations() == ()
    ours.close()
    assert len(selector.get_map()) == 0


@scene("Selector.unregister")
def unregister(stage: Stage) -> Acts:
    selector, ours = _registered(stage)
    selector.register(ours, EVENT_READ)
    outcome = yield lambda: selector.unregister(ours)
    if outcome.error is not None and len(selector.get_map()):
        selector.unregister(ours)
    assert selector.select(0) == []
    selector.register(ours, EVENT_READ)
    assert [key.fileobj for key, _ in selector.select(PATIENCE_S)] == [ours]


@scene("Selector.modify")
def modify(stage: Stage) -> Acts:
    """Changed, unchanged, or taken out as the stdlib's is where a change fails."""
    selector, ours = _registered(stage)
    selector.register(ours, EVENT_WRITE)
    outcome = yield lambda: selector.modify(ours, EVENT_READ)
    if outcome.error is not None:
        if len(selector.get_map()) == 0:
            selector.register(ours, EVENT_WRITE)
        selector.modify(ours, EVENT_READ)
    assert [(key.fileobj, events) for key, events in selector.select(PATIENCE_S)] == [(ours, EVENT_READ)]


@scene("Selector.select")
def selector_select(stage: Stage) -> Acts:
    selector, ours = _registered(stage)
    selector.register(ours, EVENT_READ)
    outcome = yield lambda: selector.select(PATIENCE_S)
    assert [key.fileobj for key, _ in outcome.value_or(lambda: selector.select(PATIENCE_S))] == [ours]


@scene("Selector.get_key")
def get_key(stage: Stage) -> Acts:
    selector, ours = _registered(stage)
    key = selector.register(ours, EVENT_READ)
    outcome = yield lambda: selector.get_key(ours)
    assert outcome.value_or(lambda: selector.get_key(ours)) == key


@scene("Selector.get_map")
def get_map(stage: Stage) -> Acts:
    selector, ours = _registered(stage)
    selector.register(ours, EVENT_READ)
    outcome = yield lambda: len(selector.get_map())
    assert outcome.value_or(lambda: len(selector.get_map())) == 1


@scene("Selector.fileno")
def selector_fileno(stage: Stage) -> Acts:
    selector, _ = _registered(stage)
    outcome = yield selector.fileno
    assert outcome.value_or(selector.fileno) >= 0


@scene("Selector.close")
def selector_close(stage: Stage) -> Acts:
    """What is closed half way can be closed again, and knows no socket any more."""
    selector, ours = _registered(stage)
    selector.register(ours, EVENT_READ)
    outcome = yield selector.close
    outcome.value_or(selector.close)
    assert ours.recv(len(TAGGED)) == TAGGED
