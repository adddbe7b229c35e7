"""Processes that die in the middle: of opening, of closing, of the last close. The kernel ends what it ends, the count
follows within T_reap, and nobody else notices.

Source: "Closing Sockets"; LPWSPCLEANUP, Remarks ("abrupt exit"); spec/fault-catalogue.md, F-01, F-58, F-71.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.registry.client import Client
from sharedsock.testing import Actor, Actors, Returned
from sharedsock.testing.observation import socket_inodes
from tests.descriptors import kinds
from tests.descriptors.sharers import give

LONG_S = 30  # no test waits for it


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> float:
    """Wait for a condition another process makes true; return how long it took. It has no event of its own."""
    began_s = monotonic()
    while not condition():
        assert monotonic() - began_s < timeout_s
    return monotonic() - began_s


@pytest.mark.fault("F-58")
@pytest.mark.rule("EXIT-1", "REF-2")
@pytest.mark.parametrize("point", ["close.begin", "close.marked", "close.drained", "close.fd_closed", "close.ended"])
def test_a_holder_killed_in_its_close_is_counted_out_and_the_others_go_on(
    point: str, actors: Actors, bounds: Any
) -> None:
    with kinds.pair_of("tcp4") as pair:
        a, b = actors.start("A", "B")
        give(pair.local, a, b)
        reading = b.thread("caller").recv(16)
        asleep = b.wait_until_blocked("caller")
        a.kill_at(point)
        a.thread("closer").close()
        a.wait_dead()
        bounds.check("T_reap", wait_until(lambda: b.do("references") == 1))
        assert b.wait_until_blocked("caller") == asleep
        assert kinds.is_silent(pair.peer)
        pair.peer.sendall(b"still here")
        assert reading.value() == b"still here"
        b.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-71", "F-58")
@pytest.mark.rule("EXIT-1")
@pytest.mark.parametrize("linger_s", [None, 0])
@pytest.mark.parametrize("point", ["close.marked", "close.fd_closed", "close.last", "close.linger"])
def test_the_last_holder_killed_in_its_close_leaves_nothing_of_the_socket(
    point: str, linger_s: int | None, actors: Actors, bounds: Any
) -> None:
    with kinds.pair_of("tcp4") as pair:
        (a,) = actors.start("A")
        kinds.set_linger(pair.local, linger_s)
        client = connected(pair.local)
        give(pair.local, a)
        a.kill_at(point)
        a.thread("closer").close()
        a.wait_dead()
        bounds.check("T_eof", kinds.wait_event(pair.peer))
        assert kinds.was_reset(pair.peer) == (linger_s == 0), "the kernel's rule: LINGER(0) stands on the socket itself"
        bounds.check("T_reap", wait_until(lambda: not client.sockets()))


def connected(shared: ss.SharedSocket) -> Any:
    """Return this process's channel to the registry that counts a socket."""
    ss.revoke(shared.share(None))
    return shared._descriptor.client


@pytest.mark.fault("F-58", "F-59")
@pytest.mark.rule("EXIT-1", "REF-6")
def test_a_closer_that_waits_for_another_is_the_last_as_soon_as_that_one_dies(actors: Actors, bounds: Any) -> None:
    """All others are closing, so the newest waits for them to end or die (DESIGN.md 4)."""
    with kinds.pair_of("tcp4") as pair:
        a, b, c = actors.start("A", "B", "C")
        kinds.set_linger(pair.local, 0)
        give(pair.local, a, b, c)
        a.call(hold_end_close)
        a.thread("closer").close()
        a.call(wait_end_close)
        c.close()
        closing = b.thread("closer").close()
        b.wait_for(lambda: any(event.kind == "close.fd_closed" for event in b.events), "B in its close")
        assert not closing.is_done()
        killed_s = a.kill()
        assert closing.outcome() == Returned()
        bounds.check("T_reap", closing.ended_s - killed_s)
        assert kinds.is_reset(pair.peer)


@pytest.mark.fault("F-01")
@pytest.mark.rule("EXIT-1")
@pytest.mark.parametrize("point", ["open.created", "open.registered"])
def test_a_process_killed_while_it_opens_leaves_no_socket(point: str, actors: Actors) -> None:
    (a,) = actors.start("A")
    with socket.create_server(("127.0.0.1", 0)) as door:
        a.kill_at(point)
        a.thread("opener").do("connect", "made", door.getsockname())
        a.wait_dead()
        door.settimeout(0)
        with pytest.raises(BlockingIOError):
            door.accept()


@pytest.mark.fault("F-01")
@pytest.mark.rule("EXIT-1", "REF-1")
def test_a_process_killed_with_a_client_just_accepted_ends_it(actors: Actors, bounds: Any) -> None:
    a, b = actors.start("A", "B")
    with kinds.listener_of("tcp4") as listener, kinds.client_of(listener) as client:
        give(listener, a, b)
        a.kill_at("open.registered")
        a.thread("caller").accept()
        a.wait_dead()
        bounds.check("T_eof", kinds.wait_event(client))
        bounds.check("T_reap", wait_until(lambda: b.do("references") == 1))
        b.close()


@pytest.mark.fault("F-01")
def test_a_process_killed_while_it_redeems_is_counted_out(actors: Actors, bounds: Any) -> None:
    a, b = actors.start("A", "B")
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, b)
        info = b.do("share", a.pid)
        a.kill_at("open.registered")
        a.thread("taker").do("take", info)
        a.wait_dead()
        bounds.check("T_reap", wait_until(lambda: b.do("references") == 1))
        b.close()
        assert pair.peer.recv(1) == b""


ENDS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "os._exit": lambda: os._exit(3),
    "exec": lambda: os.execv("/bin/true", ["true"]),
}


def end_by(how: str) -> None:
    """In an actor: end this process without a close."""
    ENDS[how]()


@pytest.mark.fault("F-69")
@pytest.mark.rule("EXIT-1")
@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("linger_s", [None, LONG_S])
@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_the_last_holder_s_process_is_the_kernel_s_rule(
    how: str, linger_s: int | None, unread: bool, actors: Actors
) -> None:
    """No wait, whatever SO_LINGER says; what is queued is still sent, unless input was left unread: then a reset."""
    (a,) = actors.start("A")
    with kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        kinds.set_linger(pair.local, linger_s)
        if unread:
            pair.peer.sendall(b"never read")
            kinds.wait_event(pair.local)
        give(pair.local, a)
        queued = a.do("call_with", kinds.queue_in, 1 << 20)
        began_s = monotonic()
        a.thread("main").call(end_by, how)
        a.wait_dead()
        assert monotonic() - began_s < LONG_S / 2
        if unread:
            assert kinds.was_reset(pair.peer)
        else:
            assert kinds.receive_all(pair.peer) == kinds.payload(queued)


# -- all at once --------------------------------------------------------------------------------------------------


def lasts(actors: Actors) -> list[str]:
    """Return the names of those whose close was the last."""
    for actor in actors:
        actor.pump(0)
    return [actor.name for actor in actors for event in actor.events if event.kind == "close.last"]


@pytest.mark.fault("F-59")
@pytest.mark.rule("REF-5", "LINGER-13")
@pytest.mark.parametrize(
    "order",
    [*itertools.permutations("AB"), *itertools.permutations("ABC"), "ABCDEFGH", "HGFEDCBA"],
    ids="".join,
)
def test_of_holders_that_close_at_once_exactly_one_is_last_and_all_others_have_let_go(
    order: str, actors: Actors
) -> None:
    with kinds.pair_of("tcp4") as pair:
        company = actors.start(*sorted(order))
        give(pair.local, *company)
        (_, inode) = company[0].do("facts")
        held = {actor.name: actor.hold_at("close.fd_closed") for actor in company}
        last = {actor.name: actor.hold_at("close.last") for actor in company}
        closings = [actor.thread("closer").close() for actor in company]
        for barrier in held.values():
            barrier.wait_reached()
        assert kinds.is_silent(pair.peer)
        for name in order:
            held[name].release()
        actors.wait_for(lambda: any(barrier.reached for barrier in last.values()), "the last one")
        (told,) = [name for name, barrier in last.items() if barrier.reached]
        holding = [actor.name for actor in company if inode in socket_inodes(actor.pid)]
        assert holding == [told], "everybody else's descriptor is closed by now"
        assert kinds.is_silent(pair.peer)
        last[told].release()
        assert [closing.outcome() for closing in closings] == [Returned()] * len(company)
        assert lasts(actors) == [told]
        assert pair.peer.recv(1) == b""
        for barrier in last.values():
            barrier.release()


@pytest.mark.fault("F-59")
@pytest.mark.rule("REF-5")
@pytest.mark.parametrize("order", [*itertools.permutations("ABC")], ids="".join)
def test_the_order_of_closes_does_not_matter(order: str, company: tuple[Actor, ...]) -> None:
    """Windows 95 leaked when the original was closed first (KB 229658, KB 198663)."""
    with kinds.pair_of("tcp4") as pair:
        by_name = {actor.name: actor for actor in company}
        give(pair.local, *company)
        for name in order[:-1]:
            by_name[name].close()
            assert kinds.is_silent(pair.peer)
        by_name[order[-1]].close()
        assert pair.peer.recv(1) == b""


@pytest.fixture(scope="module")
def company() -> Iterator[tuple[Actor, ...]]:
    with Actors("fork") as actors:
        yield actors.start("A", "B", "C")


@pytest.mark.fault("F-59")
@pytest.mark.rule("REF-1")
def test_two_closers_that_have_both_begun_wait_for_each_other_one_way_only(actors: Actors) -> None:
    """A is held between its begin-close and its end-close; B, the newest, is told LAST when A has ended."""
    with kinds.pair_of("tcp4") as pair:
        a, b, c = actors.start("A", "B", "C")
        kinds.set_linger(pair.local, 0)
        give(pair.local, a, b, c)
        (_, inode) = a.do("facts")
        a.call(hold_end_close)
        first = a.thread("closer").close()
        a.call(wait_end_close)
        assert inode not in socket_inodes(a.pid), "what is counted out is closed already"
        c.close()
        second = b.thread("closer").close()
        b.wait_for(lambda: any(event.kind == "close.fd_closed" for event in b.events), "B in its close")
        assert not second.is_done()
        assert kinds.is_silent(pair.peer), "A has been told NOT LAST, B nothing yet"
        a.call(release_end_close)
        assert (first.outcome(), second.outcome()) == (Returned(), Returned())
        assert lasts(actors) == ["B"]
        assert kinds.is_reset(pair.peer)


_gates: list[Any] = []


def hold_end_close() -> None:
    """In an actor: hold the next end-close, which has no probe point of its own."""
    reached, go_on, end_close = threading.Event(), threading.Event(), Client.end_close

    def held(client: Any, descriptor: Any) -> None:
        reached.set()
        go_on.wait()
        end_close(client, descriptor)

    Client.end_close = held  # type: ignore[method-assign, assignment]  # in this process alone, which ends with the test
    _gates[:] = [reached, go_on]


def wait_end_close() -> None:
    """In an actor: wait until its close has come to the end-close."""
    assert _gates[0].wait(60)


def release_end_close() -> None:
    """In an actor: let the end-close go on."""
    _gates[1].set()


# -- another process's transfer -----------------------------------------------------------------------------------

TRANSFER = 100 << 20


def _send_much(has: Any) -> int:
    """Send 100 MiB of numbered blocks; return a checksum."""
    block, checksum = bytearray(kinds.payload(1 << 20)), 0
    for place in range(TRANSFER >> 20):
        block[:8] = place.to_bytes(8, "big")
        has["socket"].sendall(block)
        checksum = zlib.crc32(block, checksum)
    return checksum


@pytest.mark.fault("F-61")
@pytest.mark.rule("CLOSE-28", "REF-2")
def test_a_close_in_the_middle_of_another_holder_s_transfer_changes_no_bit_of_it(
    company: tuple[Actor, ...],
) -> None:
    a, b, _ = company
    with kinds.pair_of("tcp4") as pair:
        give(pair.local, a, b)
        reading = a.thread("reader").recv(1)
        a.wait_until_blocked("reader")
        sending = b.thread("sender").do("call_with", _send_much)
        buffer, received, checksum = bytearray(1 << 20), 0, 0
        while received < TRANSFER:
            size = pair.peer.recv_into(buffer)
            assert size, "no end before the last close"
            checksum = zlib.crc32(memoryview(buffer)[:size], checksum)
            if received < TRANSFER // 2 <= received + size:
                a.close()
                assert kinds.is_quiet(pair.peer)
            received += size
        assert sending.value() == checksum
        assert reading.outcome().winerror == 10004  # type: ignore[union-attr]  # Aborted, or the test fails here
        b.close()
        assert pair.peer.recv(1) == b""
