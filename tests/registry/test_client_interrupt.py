"""The interrupt sweep (F-33): a KeyboardInterrupt before the k-th bytecode of a call, for every k to its end.

After each: no descriptor is lost, the ticket can be redeemed, the channel serves this thread and others.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedsock.model.identity import DescriptorId
from sharedsock.registry import connect, turns
from sharedsock.registry.client import Claim, Client
from tests.registry.double import BOUND_S, end_registry, facts, facts_of, open_numbers, shared_socket, ticket, tree
from tests.sweeps.interrupting import EveryBytecode, Interrupter

EVERY = EveryBytecode(os.path.dirname(os.path.abspath(turns.__file__)))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with tree(monkeypatch):
        client = connect.default_client()
        yield client
        end_registry(client)


@pytest.fixture
def sock(client: Client) -> Iterator[socket.socket]:
    ours, peer, _ = shared_socket(client)
    with ours, peer:
        yield ours


def sweep(call: Callable[[], Any], after: Callable[[Any, str], None], step: int = 1) -> int:
    """Interrupt a call at every `step`-th point until one run is untouched; return how many points there were.

    `after` gets what the call returned, or None where it was interrupted, and where that was.
    """
    k = 0
    while True:
        interrupt = Interrupter(k, EVERY)
        result, was_interrupted = interrupt.run(call)
        assert was_interrupted == interrupt.has_struck, f"swallowed: {interrupt.where}"
        after(result, interrupt.where)
        if not was_interrupted:
            return k
        k += step


@pytest.mark.fault("F-33", "F-29")
def test_an_interrupted_claim_loses_neither_descriptor_nor_ticket(client: Client, sock: socket.socket) -> None:
    secret = ticket(client, sock)
    before = open_numbers()
    keep: list[Claim] = []

    def after(result: Claim | None, where: str) -> None:
        if result is None and keep:
            result = keep[0]  # interrupted on the way to its caller, which finds it here
        keep.clear()
        if result is not None:
            client.refuse(result)
            os.close(result.fd)
        assert open_numbers() == before, f"a descriptor is lost at {where}"
        claim = client.claim(secret)
        client.refuse(claim)
        os.close(claim.fd)

    points = sweep(lambda: client.claim(secret, keep), after)
    assert points > 200
    assert client.references(facts_of(sock).socket) == 2


@pytest.mark.fault("F-33")
def test_an_interrupted_call_wedges_no_thread(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)

    def after(result: int | None, where: str) -> None:
        assert result in (None, 1), where
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(client.references(found.socket)))
        thread.start()
        thread.join(BOUND_S)
        assert answers == [1], f"the channel is wedged by an interrupt at {where}"
        exchange = client._session.channel
        assert exchange is not None
        assert not exchange._pending, where
        assert not exchange.is_led, where

    assert sweep(lambda: client.references(found.socket), after) > 100


@pytest.mark.fault("F-33", "F-110")
@pytest.mark.parametrize(
    "step", [pytest.param(5, id="every 5th"), pytest.param(1, id="every", marks=pytest.mark.campaign)]
)
def test_an_interrupted_connection_leaves_no_number(client: Client, sock: socket.socket, step: int) -> None:
    client.close()
    before = {number: what for number, what in open_numbers().items() if not what.startswith("/memfd")}

    def call() -> int:
        return client.statistics().clients

    def after(result: int | None, where: str) -> None:
        client.close()
        left = {number: what for number, what in open_numbers().items() if not what.startswith("/memfd")}
        assert left == before, f"a number is lost at {where}"
        assert call() == 1, where
        client.close()

    assert sweep(call, after, step) > 500


@pytest.mark.fault("F-33")
def test_an_interrupted_acknowledgement_can_be_repeated(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)
    number = 100

    def call() -> None:
        client.acknowledge(claims[-1], facts(number))

    claims: list[Claim] = [client.claim(ticket(client, sock))]

    def after(result: None, where: str) -> None:
        nonlocal number
        call()
        assert client.references(found.socket) == 2, where
        os.close(claims[-1].fd)
        client.begin_close(DescriptorId(number))
        client.end_close(DescriptorId(number))
        number += 1
        claims.append(client.claim(ticket(client, sock)))

    sweep(call, after)
    os.close(claims[-1].fd)


def test_a_turn_is_left_whatever_interrupts_it() -> None:
    turn = turns.Turn()

    def after(result: int | None, where: str) -> None:
        assert result in (None, 3)
        assert turn.holder is None, where

    assert sweep(lambda: turns.holding(turn, lambda: 3), after) > 20


def test_a_turn_goes_from_holder_to_sleeper() -> None:
    turn = turns.Turn()
    order: list[int] = []
    tokens = [turns.Token() for _ in range(4)]
    assert turn.try_take(tokens[0])
    assert not turn.try_take(tokens[1])
    assert not turn.take(tokens[1], 0.0)
    assert turn.is_mine()

    def wait(n: int) -> None:
        assert turn.take(tokens[n])
        order.append(n)
        turn.leave(tokens[n])

    threads = [threading.Thread(target=wait, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    turn.leave(tokens[3])  # has it not: no effect
    assert turn.holder is tokens[0]
    turn.leave(tokens[0])
    for thread in threads:
        thread.join(BOUND_S)
    assert sorted(order) == [1, 2, 3]
    assert turn.holder is None
