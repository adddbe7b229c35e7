"""For whom a ticket is: one living process instance, once. Everybody else is refused, and the ticket is not used up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import sharedsock as ss
from sharedsock.registry import connect, launch
from sharedsock.testing import Actors, Raised, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors.sharers import Running, cookie_in, cookie_of, kill, paused, wait_until

INVALID = Raised("TicketInvalid", 10022, 22)
CLAIMED = Raised("TicketAlreadyClaimed", 10022, 22)


@pytest.fixture
def pair(registry: ss.Registry) -> Iterator[tuple[ss.SharedSocket, ss.SharedSocket]]:
    ours, peer = ss.socketpair()
    with ours, peer:
        yield ours, peer


def make_child(status: int = 0) -> int:
    """Fork a child that ends at once; the caller reaps it."""
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    return pid


# -- share(): who can be a target (F-10, DUP-6) -----------------------------------------------------------------------


@pytest.mark.fault("F-10")
@pytest.mark.rule("DUP-6")
@pytest.mark.parametrize("target", ["reaped", "zombie", "registry", "nobody"])
def test_a_process_that_cannot_redeem_is_no_target(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, ss.SharedSocket], target: str
) -> None:
    """LPWSPDUPLICATESOCKET: WSAEINVAL for a process id that is not valid; there is no ticket then."""
    child = 0
    if target == "registry":
        pid = registry.client.pid
    elif target == "nobody":
        pid = 0x7FFFFFFF
    else:
        pid = child = make_child()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if target == "reaped":
            os.waitpid(pid, 0)
            child = 0
    try:
        kept = pair[0].share(os.getpid())  # registered from here on
        before = registry.client.statistics()
        with pytest.raises(ss.TicketError) as caught:
            pair[0].share(pid)
        assert caught.value.winerror == 10022
        assert isinstance(caught.value, ValueError)
        after = registry.client.statistics()
        assert (after.tickets, after.custody) == (before.tickets, before.custody)
        assert pair[0].references() == 2
        assert ss.revoke(kept)
    finally:
        if child:
            os.waitpid(child, 0)


@pytest.mark.fault("F-10")
@pytest.mark.rule("DUP-6")
@pytest.mark.parametrize("pid", [0, -1, -(1 << 15), 1 << 31, 1 << 64])
def test_a_number_no_process_can_have_is_refused_here(pair: tuple[ss.SharedSocket, ss.SharedSocket], pid: int) -> None:
    """0 and negative numbers mean something else to the kernel: they never reach it."""
    with pytest.raises(ss.TicketError):
        pair[0].share(pid)
    assert pair[0].references() == 1


# -- fromshare(): who may redeem --------------------------------------------------------------------------------------


@pytest.mark.fault("F-24", "S-10")
@pytest.mark.rule("DUP-5")
def test_a_sibling_is_refused_and_the_target_still_can(
    actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]
) -> None:
    """LPWSPDUPLICATESOCKET: the info is for the named process; a failed attempt of another uses nothing up."""
    target, sibling = actors.start("target", "sibling")
    info = pair[0].share(target.pid)
    assert sibling.thread("main").do("take", info).outcome() == INVALID
    with pytest.raises(ss.TicketInvalid):
        ss.fromshare(info)
    assert pair[0].references() == 2
    target.do("take", info)
    assert target.do("call_with", cookie_in) == cookie_of(pair[0])


@pytest.mark.fault("F-24", "S-10")
def test_a_stranger_learns_nothing_of_a_ticket(actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """Absent, foreign, used, revoked: the same answer to a stranger, to the letter."""
    target, stranger = actors.start("target", "stranger")
    foreign, used, revoked = (pair[0].share(target.pid) for _ in range(3))
    target.do("take", used)
    ss.revoke(revoked)
    texts = set()
    for info in (foreign, used, revoked):
        outcome = stranger.thread("main").do("take", info).outcome()
        assert outcome == INVALID
        texts.add(outcome.text)
    assert len(texts) == 1
    target.do("take", foreign, on="second")


def _redeem_in_a_child(has: Belongings, info: bytes) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            ss.fromshare(info)
        except ss.TicketInvalid:
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.fault("F-25", "S-10")
@pytest.mark.rule("DUP-5")
def test_a_child_of_the_target_is_another_process(
    actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]
) -> None:
    """A fork between receipt and use: the child is refused, the target still can."""
    (target,) = actors.start("target")
    info = pair[0].share(target.pid)
    assert target.do("call_with", _redeem_in_a_child, info) == 0
    target.do("take", info)
    assert target.do("call_with", cookie_in) == cookie_of(pair[0])


@pytest.mark.fault("F-22")
@pytest.mark.rule("DUP-3")
def test_a_ticket_is_good_once(actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """LPWSPDUPLICATESOCKET: the info can be used once; the rightful target is told why not twice."""
    (target,) = actors.start("target")
    info = pair[0].share(target.pid)
    target.do("take", info)
    assert target.thread("main").do("take", info, on="again").outcome() == CLAIMED
    assert pair[0].references() == 2
    target.close()
    assert target.thread("main").do("take", info, on="again").outcome() == CLAIMED
    assert pair[0].references() == 1


@pytest.mark.fault("F-22")
@pytest.mark.rule("DUP-3")
def test_two_threads_at_once_get_one_descriptor(actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """Both requests are sent before either answer is read: exactly one handle."""
    (target,) = actors.start("target")
    info = pair[0].share(target.pid)
    with target.hold_at("take.sent", count=2) as barrier:
        tries = [target.thread(name).do("take", info, on=name) for name in ("one", "two")]
        barrier.wait_reached(2)
    outcomes = [one.outcome() for one in tries]
    assert sorted(map(str, outcomes)) == sorted(map(str, [Returned(None), CLAIMED]))
    assert pair[0].references() == 2


@pytest.mark.fault("F-22")
def test_the_first_claimer_of_an_unbound_ticket_wins(
    actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]
) -> None:
    """share(None): two processes ask at once; one gets the descriptor, the other is told that it came too late."""
    one, two = actors.start("one", "two")
    info = pair[0].share(None)
    with one.hold_at("take.sent") as first, two.hold_at("take.sent") as second:
        tries = [one.thread("main").do("take", info), two.thread("main").do("take", info)]
        first.wait_reached()
        second.wait_reached()
    outcomes = [each.outcome() for each in tries]
    assert sorted(map(str, outcomes)) == sorted(map(str, [Returned(None), CLAIMED]))
    assert pair[0].references() == 2


@pytest.mark.rule("DUP-10", "DUP-2")
def test_each_target_needs_a_ticket_of_its_own(actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """LPWSPDUPLICATESOCKET: one call for each process that is to use the socket."""
    targets = actors.start("a", "b", "c")
    infos = [pair[0].share(target.pid) for target in targets]
    assert pair[0].references() == 4
    assert len(set(infos)) == 3
    for target, info in zip(targets, infos[1:] + infos[:1], strict=True):
        assert target.thread("main").do("take", info).outcome() == INVALID
    for target, info in zip(targets, infos, strict=True):
        target.do("take", info)
        assert target.do("call_with", cookie_in) == cookie_of(pair[0])
    assert pair[0].references() == 4


@pytest.mark.rule("DUP-11", "DUP-19")
def test_a_ticket_to_oneself_gives_an_independent_descriptor(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """LPWSPDUPLICATESOCKET to the own process: two descriptors, one socket, each closed by itself."""
    ours, peer = pair
    second = ss.fromshare(ours.share(os.getpid()))
    third = second.dup()
    assert len({ours.descriptor, second.descriptor, third.descriptor}) == 3
    assert cookie_of(ours) == cookie_of(second) == cookie_of(third)
    assert ours.references() == 3
    second.close()
    third.sendall(b"third")
    assert peer.recv(8) == b"third"
    third.close()
    ours.sendall(b"first")
    assert peer.recv(8) == b"first"


# -- the target's death, and who comes after it -----------------------------------------------------------------------


@contextmanager
def the_next_pid(pid: int) -> Iterator[None]:
    """Have the kernel give out a chosen pid next, where we may choose (CAP_CHECKPOINT_RESTORE)."""
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
    except OSError:
        pytest.skip("choosing pids needs CAP_CHECKPOINT_RESTORE and CONFIG_CHECKPOINT_RESTORE")
    yield


@pytest.mark.fault("F-19", "F-18")
def test_a_pid_used_again_is_another_process(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """The target dies and another process gets its pid: it is refused, whatever it knows."""
    ours, _ = pair
    for _ in range(100):
        parent_ready, child_go = os.pipe()
        target = os.fork()
        if target == 0:
            os.close(child_go)
            os.read(parent_ready, 1)
            os._exit(0)
        os.close(parent_ready)
        info = ours.share(target)
        os.kill(target, signal.SIGKILL)
        os.waitpid(target, 0)
        with the_next_pid(target):
            heir = os.fork()
        if heir == 0:
            try:
                ss.fromshare(info)
            except ss.TicketInvalid:
                os._exit(0)
            os._exit(1)
        os.close(child_go)
        status = os.waitstatus_to_exitcode(os.waitpid(heir, 0)[1])
        assert status == 0, "the ticket of a dead process was redeemed"
        if heir == target:
            break
    else:
        pytest.skip("other processes took the pid each time")
    wait_until(lambda: ours.references() == 1, "the ticket to go with its target")


@pytest.mark.fault("F-18")
@pytest.mark.rule("DUP-13")
def test_a_ticket_goes_with_its_target(
    actors: Actors, pair: tuple[ss.SharedSocket, ss.SharedSocket], bounds: object
) -> None:
    """LPWSPCLEANUP: a process may end abruptly; what was meant for it is void within T_reap."""
    ours, _ = pair
    (target,) = actors.start("target")
    infos = [ours.share(target.pid) for _ in range(3)]
    assert ours.references() == 4
    target.kill()
    took_s = wait_until(lambda: ours.references() == 1, "the tickets to go with their target")
    bounds.check("T_reap", took_s)  # type: ignore[attr-defined]  # conftest.Bounds
    for info in infos:
        with pytest.raises(ss.TicketInvalid):
            ss.fromshare(info)


# -- the registry's own life ------------------------------------------------------------------------------------------


@pytest.mark.fault("F-26")
def test_a_ticket_of_an_earlier_registry_is_invalid() -> None:
    """A registry that takes the place of a dead one knows none of its tickets, though it has the same address."""
    with ss.Registry() as registry:
        ours, peer = ss.socketpair()
        info = ours.share(os.getpid())
        kill(registry.client.pid)
        assert launch.start(registry.runtime)
        with pytest.raises(ss.TicketInvalid, match="registry that has ended"):
            ss.fromshare(info)
        assert not ss.revoke(info)
        fresh = ours.share(os.getpid())
        with pytest.raises(ss.TicketInvalid):
            ss.fromshare(info)
        with ss.fromshare(fresh) as redeemed:
            redeemed.sendall(b"!")
            assert peer.recv(1) == b"!"
        ours.close()
        peer.close()


@pytest.mark.fault("F-26")
def test_a_ticket_of_a_registry_that_has_ended_is_invalid() -> None:
    """Nobody is asked, nothing is started: there is nobody who could know it."""
    with ss.Registry() as registry:
        ours, peer = ss.socketpair()
        info = ours.share(os.getpid())
        registry.client.shutdown()
        wait_until(lambda: not os.path.exists(registry.runtime), "the registry to end")
        with pytest.raises(ss.TicketInvalid):
            ss.fromshare(info)
        assert not ss.revoke(info)
        assert not os.path.exists(registry.runtime)
        ours.close()
        peer.close()
    connect._clients.pop(registry.runtime, None)


@pytest.mark.fault("F-22", "F-33")
def test_a_ticket_being_claimed_is_not_revoked(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """Between claim and acknowledgement the ticket is its claimer's: a revoke comes too late, and says so."""
    ours, _ = pair
    info = ours.share(os.getpid())
    with paused("take.wrapped") as pause:
        taking = Running(ss.fromshare, info)
        pause.wait_reached()
        assert not ss.revoke(info)
        assert ours.references() == 2
    redeemed = taking.outcome()
    assert isinstance(redeemed, ss.SharedSocket)
    redeemed.close()
