"""Tickets and sockets that reach another process by pipes, queues and pools, and by hand."""

from __future__ import annotations

import os
import pickle
import socket
from typing import Any, Final

import pytest

import sharedsock as ss
from tests.descriptors.launched import (
    context_of,
    finish,
    in_pool,
    share_from_worker,
    take_from_pipe,
    take_from_queue,
)
from tests.descriptors.sharers import wait_end_of

pytestmark = pytest.mark.usefixtures("light_children")

METHODS: Final = ("fork", "forkserver", "spawn")


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.parametrize("what", ["socket", "ticket"])
@pytest.mark.parametrize("method", METHODS)
def test_through_a_pipe(pair: tuple[ss.SharedSocket, socket.socket], method: str, what: str) -> None:
    """conn.send(s) pickles at once: the sharer may close right after it."""
    ours, peer = pair
    context = context_of(method)
    near, far = context.Pipe()
    process = context.Process(target=take_from_pipe, args=(far,))
    process.start()
    with near, far:
        near.send(ours if what == "socket" else ours.ticket())
        ours.close()
        assert peer.recv(64) == b"1 1\n"
        assert finish(process) == 0
    wait_end_of(peer)


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.parametrize("method", METHODS)
def test_a_ticket_through_a_queue_survives_the_close(pair: tuple[ss.SharedSocket, socket.socket], method: str) -> None:
    """A queue pickles later, in a thread of its own; the ticket was minted before the close."""
    ours, peer = pair
    context = context_of(method)
    queue: Any = context.Queue()
    process = context.Process(target=take_from_queue, args=(queue,))
    process.start()
    queue.put(ours.ticket())
    ours.close()
    assert peer.recv(64) == b"1 1\n"
    assert finish(process) == 0
    queue.close()
    queue.join_thread()


@pytest.mark.rule("DUP-2")
@pytest.mark.fault("F-93")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_through_a_pool_of_daemonic_workers(pair: tuple[ss.SharedSocket, socket.socket], method: str) -> None:
    """Arguments of a task: pickled by the pool's own thread, so a ticket."""
    ours, peer = pair
    with context_of(method).Pool(1) as pool:
        assert pool.apply(in_pool, (ours.ticket(),)) == 1
        assert peer.recv(64) == b"2 1\n"
        assert pool.apply(in_pool, (ours,)) == 1, "without a close in between the socket itself will do"
        assert peer.recv(64) == b"2 1\n"
        assert ours.references() == 1
        pool.close()
        pool.join()


@pytest.mark.rule("DUP-12")
@pytest.mark.fault("F-93")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_daemonic_worker_shares_with_its_parent(registry: ss.Registry, method: str) -> None:
    """Both of its ends are closed when the parent redeems: the ticket was all that was left."""
    with context_of(method).Pool(1) as pool:
        info, worker = pool.apply(share_from_worker)
        assert worker != os.getpid()
        with ss.fromshare(info) as redeemed:
            assert redeemed.recv(32) == b"from the worker"
            assert redeemed.recv(1) == b""
        pool.close()
        pool.join()


def test_a_ticket_is_redeemed_by_hand_too(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Ticket.redeem(), Ticket.revoke(): once, as its bytes; pickling it twice makes no second right."""
    ours, _ = pair
    ticket = ours.ticket()
    data = pickle.dumps(ticket)
    assert pickle.dumps(ticket) == data
    with pickle.loads(data) as redeemed:
        assert isinstance(redeemed, ss.SharedSocket)
        for again in (ticket.redeem, lambda: pickle.loads(data)):
            with pytest.raises(ss.TicketAlreadyClaimed):
                again()
        assert not ticket.revoke()
    other = ours.ticket()
    assert other.revoke()
    with pytest.raises(ss.TicketInvalid):
        other.redeem()
