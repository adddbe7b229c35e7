"""What the garbage collector found open is counted out soon, though its process makes no other call.

The destructor itself calls nobody, takes no lock and waits for nothing: it leaves a word with the service thread.

Source: spec/fault-catalogue.md, I2, F-13, F-114, F-115.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import warnings

import pytest

import sharedsock as ss
from sharedsock.descriptors import service, table
from sharedsock.testing import Actor, Actors
from sharedsock.testing.commands import Belongings
from tests.descriptors.sharers import BOUND_S, Running, wait_end_of, wait_until


def _lose(has: Belongings) -> None:
    """In an actor: the last name of its socket goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del has.sockets["socket"]
        gc.collect()


def _left_behind() -> int:
    return len(table._abandoned)


def _idle_with(actor: Actor, ours: ss.SharedSocket) -> None:
    actor.do("take", ours.share(actor.pid))
    assert ours.references() == 2


@pytest.mark.fault("F-13", "F-114")
def test_a_collected_socket_of_an_idle_process_is_counted_out(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """Its process asks no registry for anything afterwards; another one sees the count become true."""
    ours, peer = pair
    (idle,) = actors.start("idle")
    _idle_with(idle, ours)
    idle.do("call_with", _lose)
    wait_until(lambda: ours.references() == 1, "the reference of what was collected")
    assert [holder.pid for holder in ours.holders()] == [os.getpid()]
    wait_until(lambda: idle.call(_left_behind) == 0, "nothing to be left for a next call")
    ours.close()
    wait_end_of(peer)


@pytest.mark.fault("F-60", "F-114")
def test_a_registry_that_hangs_hears_of_it_when_it_goes_on(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """The word is in the channel: nobody waits, neither the collector nor the service."""
    ours, _ = pair
    (idle,) = actors.start("idle")
    _idle_with(idle, ours)
    pid = registry.client.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        idle.do("call_with", _lose)
        wait_until(lambda: idle.call(_left_behind) == 0, "the word to be sent")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ours.references() == 1, "posted before we asked, done before we are answered"


@pytest.mark.fault("F-115", "I7")
def test_the_destructor_waits_for_no_lock_of_the_service(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Collected in a thread while another one holds the lock under which the service starts and ends."""
    ours, _ = pair
    twins = [ours.dup()]
    with service._starting, pytest.warns(ResourceWarning, match="unclosed"):
        Running(twins.clear).outcome()
    wait_until(lambda: ours.references() == 1, "the reference of what was collected", BOUND_S)


@pytest.mark.fault("F-114", "I2")
def test_two_who_give_the_same_reference_back_give_it_back_once(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has sent it and not yet struck it off the list; a call of this process finds it there."""
    ours, _ = pair
    other = ours.dup()
    identity = other.descriptor
    monkeypatch.setattr(service, "flush_soon", lambda: None)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del other
    client = ours._descriptor.client
    assert client is not None
    assert client.post_close(identity, renews=False)
    assert _left_behind() == 1
    assert ours.references() == 1
    assert _left_behind() == 0
    assert not client.is_idle()
    assert ours.holders()[0].descriptor == ours.descriptor


@pytest.mark.fault("F-114")
def test_what_may_be_announced_yet_is_left_to_the_next_call(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """A descriptor that is open here can be shared again in another thread: the service is not to end that."""
    ours, _ = pair
    info = ours.share(os.getpid())
    client = ours._descriptor.client
    assert client is not None
    table.abandon(client, ours._descriptor.id)
    table.post_abandoned()
    assert _left_behind() == 1
    with ss.fromshare(info) as twin:
        assert twin.references() == 2
    assert _left_behind() == 0
