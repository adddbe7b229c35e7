"""LINGER(t) and several closers: one of them is the last, and only that one waits, resets or is refused.

Every order is held at probe points. Source: LPWSPCLOSESOCKET, Remarks; "Multiple Handles to a Single Socket".
"""

from __future__ import annotations

import errno
import itertools
import signal
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

import pytest

from sharedsock.registry.client import Client
from sharedsock.registry.connect import RegistryHandle
from sharedsock.registry.custody import DRAIN_S
from sharedsock.registry.records import Limits
from sharedsock.testing import Actor, Actors, Raised, Returned
from sharedsock.testing.observation import tcp_sockets
from tests.descriptors import kinds
from tests.descriptors.sharers import Clocks, give, skewed_registry, wait_until

QUEUED: Final = 1 << 18
REFUSED: Final = Raised("BlockingIOError", 10035, errno.EAGAIN)
LONG_S: Final = 30  # no test waits for it
CLOSE_WAIT_S: Final = Limits().close_wait_s


def reached(actor: Actor, kind: str) -> bool:
    actor.pump(0)
    return any(event.kind == kind for event in actor.events)


def ports_of(pair: kinds.Pair) -> tuple[int, int]:
    return pair.local.getsockname()[1], pair.peer.getsockname()[1]


def is_known_to_the_kernel(ports: tuple[int, int]) -> bool:
    return any((found.local_port, found.remote_port) == ports for found in tcp_sockets())


# -- who waits --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-59", "F-65", "F-68")
@pytest.mark.rule("LINGER-7", "LINGER-12", "LINGER-13", "REF-5")
@pytest.mark.parametrize("order", [*itertools.permutations("AB"), *itertools.permutations("ABC")], ids="".join)
def test_of_closers_at_once_only_the_last_waits_and_resets(order: str, actors: Actors, bounds: Any) -> None:
    """The one who has set the option closes first, the one who has queued the data in the middle, or any other way."""
    company = actors.start(*sorted(order))
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        ports = ports_of(pair)
        give(pair.local, *company)
        company[0].do("set_linger", True, 1)
        company[-1].do("call_with", kinds.queue_in, QUEUED)
        by_name = {actor.name: actor for actor in company}
        held = {actor.name: actor.hold_at("close.fd_closed") for actor in company}
        closings = {actor.name: actor.thread("closer").close() for actor in company}
        for barrier in held.values():
            barrier.wait_reached()
        for name in order[:-1]:
            released_s = monotonic()
            held[name].release()
            assert closings[name].outcome() == Returned()
            assert closings[name].ended_s - released_s < 1.0, "not the last: no wait"
            assert kinds.is_quiet(pair.peer)
        released_s = monotonic()
        held[order[-1]].release()
        assert closings[order[-1]].outcome() == Returned()
        assert closings[order[-1]].ended_s - released_s >= 1.0
        bounds.check("T_abort", closings[order[-1]].ended_s - released_s - 1.0)
        assert kinds.is_reset(pair.peer), "reset when close returned"
        assert [name for name in order if reached(by_name[name], "close.last")] == [order[-1]]
        assert not is_known_to_the_kernel(ports), "no TIME_WAIT"


@pytest.mark.fault("F-59", "F-65")
@pytest.mark.rule("LINGER-6", "LINGER-13")
@pytest.mark.parametrize("order", ["ABC", "CAB", "BCA"])
def test_a_last_closer_that_waits_returns_when_the_peer_has_everything(order: str, actors: Actors) -> None:
    """The others have long returned; every byte arrives, then FIN."""
    company = actors.start(*sorted(order))
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        give(pair.local, *company)
        company[0].do("set_linger", True, LONG_S)
        queued = company[1].do("call_with", kinds.queue_in, 1 << 20)
        by_name = {actor.name: actor for actor in company}
        for name in order[:-1]:
            by_name[name].close()
        closing = by_name[order[-1]].thread("closer").close()
        wait_until(lambda: reached(by_name[order[-1]], "close.last"), "the last closer to know it")
        assert not closing.is_done()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)
        assert closing.outcome() == Returned()


# -- who is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-59")
@pytest.mark.rule("LINGER-4", "LINGER-13", "REF-6")
@pytest.mark.parametrize("order", [*itertools.permutations("AB"), *itertools.permutations("ABC")], ids="".join)
def test_of_nonblocking_closers_at_once_only_the_last_is_refused(order: str, actors: Actors) -> None:
    """Each asks before it touches anything; the others are told NOT LAST, and are gone. Nothing has changed."""
    company = actors.start(*sorted(order))
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        give(pair.local, *company)
        company[0].do("set_linger", True, LONG_S)
        for actor in company:
            actor.do("set_timeout", 0.0)
        queued = company[-1].do("call_with", kinds.queue_in, QUEUED)
        by_name = {actor.name: actor for actor in company}
        held = {name: by_name[name].hold_at("close.begin") for name in order}
        closings = {name: by_name[name].thread("closer").close() for name in order}
        for barrier in held.values():
            barrier.wait_reached()
        for name in order[:-1]:
            held[name].release()
            assert closings[name].outcome() == Returned()
        held[order[-1]].release()
        last = by_name[order[-1]]
        assert closings[order[-1]].outcome() == REFUSED
        assert last.do("references") == 1
        assert kinds.is_quiet(pair.peer)
        last.do("set_linger", False, 0)
        last.close()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


@pytest.mark.fault("F-59")
@pytest.mark.rule("LINGER-4", "REF-6", "CLOSE-9")
def test_a_refusal_that_had_to_wait_for_another_closer_changed_nothing_either(actors: Actors) -> None:
    """B's answer waits while A is between begin-close and end-close. Refused, B can share again and close again."""
    a, b, c = actors.start("A", "B", "C")
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        give(pair.local, a, b)
        b.do("set_linger", True, LONG_S)
        for actor in (a, b):
            actor.do("set_timeout", 0.0)
        queued = b.do("call_with", kinds.queue_in, QUEUED)
        with a.hold_at("close.marked") as held:
            first = a.thread("closer").close()
            held.wait_reached()
            second = b.thread("closer").close()
            wait_until(lambda: reached(b, "close.begin"), "B in its close")
            assert not second.is_done(), "A has said that it closes, and has not ended"
        assert (first.outcome(), second.outcome()) == (Returned(), REFUSED)
        b.give_to(c)
        assert c.do("references") == 2
        b.close()
        c.do("set_linger", False, 0)
        c.close()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


@pytest.mark.rule("LINGER-5")
@pytest.mark.parametrize("by", ["the closer", "another holder"])
def test_after_a_shutdown_a_close_is_not_refused_nor_does_it_wait(by: str, actors: Actors) -> None:
    """A disconnect has been begun; the rest goes in the background, every byte of it."""
    a, b = actors.start("A", "B")
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        give(pair.local, a, b)
        a.do("set_linger", True, LONG_S)
        a.do("set_timeout", 0.0)
        queued = a.do("call_with", kinds.queue_in, 1 << 20)
        if by == "another holder":
            b.do("shutdown", socket.SHUT_WR)
        b.close()
        if by == "the closer":
            assert a.thread("closer").close().outcome() == REFUSED
            a.do("shutdown", socket.SHUT_WR)
        closing = a.thread("closer").close()
        assert closing.outcome() == Returned()
        assert closing.ended_s - closing.began_s < LONG_S / 2
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


@pytest.mark.rule("LINGER-4", "LINGER-12")
def test_a_nonblocking_close_never_waits_though_the_option_comes_late(actors: Actors) -> None:
    """When it asked there was no linger, so nothing to refuse. What another holder sets meanwhile comes too late."""
    a, b = actors.start("A", "B")
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        give(pair.local, a, b)
        a.do("set_timeout", 0.0)
        queued = a.do("call_with", kinds.queue_in, 1 << 20)
        with a.hold_at("close.marked") as held:
            closing = a.thread("closer").close()
            held.wait_reached()
            b.do("set_linger", True, LONG_S)
            b.do("set_timeout", 0.0)
            b.close()
            released_s = monotonic()
        assert closing.outcome() == Returned()
        assert closing.ended_s - released_s < LONG_S / 2
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


# -- a closer that has stopped ----------------------------------------------------------------------------------------


@pytest.mark.fault("F-59", "F-56")
@pytest.mark.rule("REF-5", "LINGER-3", "LINGER-13")
@pytest.mark.parametrize("point", ["close.marked", "close.fd_closed"])
def test_a_holder_stopped_in_its_close_is_still_open_and_delays_nobody(point: str, actors: Actors) -> None:
    """Before its begin-close it counts as open: the others return at once. Continued, it is the last."""
    a, b, c = actors.start("A", "B", "C")
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        give(pair.local, a, b, c)
        with a.hold_at(point) as held:
            stopped = a.thread("closer").close()
            held.wait_reached()
            a.stop()
            try:
                for actor in (b, c):
                    closing = actor.thread("closer").close()
                    assert closing.outcome() == Returned()
                    assert closing.ended_s - closing.began_s < CLOSE_WAIT_S
                assert kinds.is_silent(pair.peer)
            finally:
                a.cont()
        assert stopped.outcome() == Returned()
        assert kinds.is_reset(pair.peer)


def stop_before_end_close() -> None:
    """In an actor: stop this process between its begin-close and its end-close."""
    real = Client.end_close

    def stop(client: Any, descriptor: Any) -> None:
        Client.end_close = real  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGSTOP)
        real(client, descriptor)

    Client.end_close = stop  # type: ignore[method-assign, assignment]  # in this process alone


@pytest.mark.fault("F-59", "F-56")
@pytest.mark.rule("REF-5", "LINGER-3")
def test_a_closer_stopped_between_its_two_words_delays_the_last_one_by_t_rpc_at_most(
    actors: Actors, bounds: Any
) -> None:
    """A has drained and never uses the socket again, so after T_rpc the newest closer is LAST without it; once."""
    a, b, c = actors.start("A", "B", "C")
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        give(pair.local, a, b, c)
        a.call(stop_before_end_close)
        first = a.thread("closer").close()
        wait_until(lambda: _state_of(a) == "T", "A to have stopped")
        try:
            early = b.thread("closer").close()
            assert early.outcome() == Returned()
            assert early.ended_s - early.began_s < CLOSE_WAIT_S, "C is open: NOT LAST at once"
            last = c.thread("closer").close()
            assert last.outcome() == Returned()
            bounds.check("T_rpc", last.ended_s - last.began_s)
            assert kinds.is_reset(pair.peer)
        finally:
            a.cont()
        assert first.outcome() == Returned()
        assert [actor.name for actor in (a, b, c) if reached(actor, "close.last")] == ["C"]


def _state_of(actor: Actor) -> str:
    with open(f"/proc/{actor.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


# -- a last closer that dies in its wait ------------------------------------------------------------------------------


@pytest.mark.fault("F-71", "F-69")
@pytest.mark.rule("EXIT-1", "LINGER-7")
@pytest.mark.parametrize("was_shared", [True, False])
def test_a_closer_killed_in_its_linger_wait_leaves_the_rest_to_the_kernel(was_shared: bool, actors: Actors) -> None:
    """The kernel's rule: what is queued is sent and FIN follows, though t would have reset later. The count is true."""
    a, b = actors.start("A", "B")
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        give(pair.local, a)
        if was_shared:
            a.give_to(b)
            b.close()
        a.do("set_linger", True, LONG_S)
        queued = a.do("call_with", kinds.queue_in, 1 << 20)
        a.thread("closer").close()
        wait_until(lambda: reached(a, "close.last"), "A in its wait")
        a.kill()
        assert kinds.receive_all(pair.peer) == kinds.payload(queued)


# -- custody's own last close -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skewed() -> Iterator[tuple[RegistryHandle, Clocks]]:
    with skewed_registry() as both:
        yield both


def _expire(handle: RegistryHandle, clocks: Clocks, target: Actor) -> None:
    clocks.monotonic_s += 5.1
    handle.client.statistics()  # any word wakes the registry, whose clock has been moved under it


def _kill(handle: RegistryHandle, clocks: Clocks, target: Actor) -> None:
    target.kill()


ENDS: Final[dict[str, Callable[[RegistryHandle, Clocks, Actor], None]]] = {
    "the ticket expires": _expire,
    "the target dies": _kill,
}


@pytest.mark.fault("F-65", "F-67", "F-18", "F-20")
@pytest.mark.rule("REF-4", "REF-7", "LINGER-2", "DUP-13")
@pytest.mark.parametrize("unread", [0, 1, 1 << 18])
@pytest.mark.parametrize("linger_s", [None, 30])
@pytest.mark.parametrize("end", ENDS)
def test_when_a_ticket_was_the_last_reference_the_registry_closes_gracefully_and_waits_for_nobody(
    skewed: tuple[RegistryHandle, Clocks], end: str, linger_s: int | None, unread: int
) -> None:
    """LINGER(t) counts as DONTLINGER. A slow peer and unread input are drained in the loop: others are served."""
    handle, clocks = skewed
    with Actors("fork") as actors, kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        (target,) = actors.start("target")
        kinds.set_linger(pair.local, linger_s)
        queued = kinds.queue(pair.local, 1 << 20)
        sent = kinds.queue(pair.peer, unread) if unread > 1 else pair.peer.send(b"x" * unread)
        assert bool(sent) == bool(unread)
        pair.local.share(target.pid, expires_s=5.0)
        pair.local.close()
        assert kinds.is_quiet(pair.peer), "the ticket is a reference"
        ENDS[end](handle, clocks, target)
        began_s = monotonic()
        wait_until(lambda: handle.client.sockets() == (), "the ticket to go")
        assert monotonic() - began_s < DRAIN_S, "nobody waits for the peer, who has read nothing"
        assert kinds.receive_all(pair.peer) == kinds.payload(queued), "every byte, then FIN"


@pytest.mark.fault("F-66", "F-18", "F-20")
@pytest.mark.rule("LINGER-3", "DUP-13")
@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_when_a_ticket_was_the_last_reference_linger_zero_resets(
    skewed: tuple[RegistryHandle, Clocks], end: str, unread: bool
) -> None:
    """Exactly then, and without TIME_WAIT; set by a holder that is long gone. Unread input is not drained for it."""
    handle, clocks = skewed
    with Actors("fork") as actors, kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        (target,) = actors.start("target")
        ports = ports_of(pair)
        kinds.queue(pair.local, QUEUED)
        if unread:
            pair.peer.sendall(b"never read")
            kinds.wait_event(pair.local)
        pair.local.share(target.pid, expires_s=5.0)
        kinds.set_linger(pair.local, 0)
        pair.local.close()
        assert kinds.is_quiet(pair.peer)
        ENDS[end](handle, clocks, target)
        assert wait_until(lambda: kinds.is_reset(pair.peer), "the reset") < DRAIN_S
        assert not is_known_to_the_kernel(ports)
