"""How long a ticket lives, by a registry whose clocks the test moves: nothing here waits for time to pass."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

import sharedsock as ss
from sharedsock.registry.connect import RegistryHandle
from sharedsock.testing import Actors, Raised
from tests.descriptors.sharers import Clocks, is_open_for, skewed_registry, wait_end_of, wait_until

DAY_S = 86_400.0
EXPIRED = Raised("TicketExpired", 10022, 22)
INVALID = Raised("TicketInvalid", 10022, 22)


@pytest.fixture(scope="module")
def skewed() -> Iterator[tuple[RegistryHandle, Clocks]]:
    with skewed_registry() as both:
        yield both


@pytest.fixture
def clocks(skewed: tuple[RegistryHandle, Clocks]) -> Iterator[Clocks]:
    yield skewed[1]
    skewed[1].wall_s = 0.0


@pytest.fixture
def actors(clocks: Clocks) -> Iterator[Actors]:
    with Actors("fork") as company:
        yield company


@pytest.fixture
def pair(clocks: Clocks) -> Iterator[tuple[ss.SharedSocket, socket.socket]]:
    left, peer = socket.socketpair()
    with peer, ss.adopt(left) as ours:
        yield ours, peer


@pytest.mark.fault("F-20", "S-09")
def test_an_unbound_ticket_lives_for_sixty_seconds(clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """The default of share(None): good at 59 s, over at 60; its reference goes with it."""
    ours, peer = pair
    early, late = ours.share(None), ours.share(None)
    clocks.monotonic_s += 59.0
    ss.fromshare(early).close()
    clocks.monotonic_s += 1.1
    with pytest.raises(ss.TicketExpired) as caught:
        ss.fromshare(late)
    assert caught.value.winerror == 10022
    assert ours.references() == 1
    assert is_open_for(peer)


@pytest.mark.fault("F-20")
@pytest.mark.parametrize("target", ["bound", "unbound"])
def test_a_time_of_ones_own(
    clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket], actors: Actors, target: str
) -> None:
    """expires_s: for either kind; the rightful target is told, a stranger is not (S-10)."""
    ours, _ = pair
    rightful, stranger = actors.start("rightful", "stranger")
    info = ours.share(rightful.pid if target == "bound" else None, expires_s=5.0)
    clocks.monotonic_s += 4.0
    assert ours.references() == 2
    clocks.monotonic_s += 1.1
    assert stranger.thread("main").do("take", info).outcome() == (INVALID if target == "bound" else EXPIRED)
    assert rightful.thread("main").do("take", info).outcome() == EXPIRED
    wait_until(lambda: ours.references() == 1, "the expired ticket to be dropped")


@pytest.mark.fault("F-20")
def test_the_last_reference_expires(
    skewed: tuple[RegistryHandle, Clocks], clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """The sharer has closed; the ticket's end is the socket's end."""
    ours, peer = pair
    info = ours.share(None, expires_s=5.0)
    ours.close()
    assert is_open_for(peer)
    clocks.monotonic_s += 5.1
    skewed[0].client.statistics()  # any word wakes the registry, whose clock has been moved under it
    wait_end_of(peer)
    with pytest.raises(ss.TicketExpired):
        ss.fromshare(info)


@pytest.mark.fault("F-20")
@pytest.mark.rule("DUP-13")
def test_a_bound_ticket_has_no_clock(
    clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket], actors: Actors
) -> None:
    """It lives exactly as long as its target: a year is no time, the target's death is the end."""
    ours, peer = pair
    one, two = actors.start("one", "two")
    infos = [ours.share(one.pid), ours.share(two.pid)]
    clocks.monotonic_s += 365 * DAY_S
    assert ours.references() == 3
    one.do("take", infos[0])
    one.sendall(b"after a year")
    assert peer.recv(16) == b"after a year"
    two.kill()
    wait_until(lambda: ours.references() == 2, "the ticket to go with its target")


@pytest.mark.fault("F-21")
@pytest.mark.parametrize("wall_s", [DAY_S, -DAY_S, -1.8e9, 1e9, 1.0, -0.001])
def test_the_wall_clock_has_no_say(clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket], wall_s: float) -> None:
    """A day, 1970, a leap second: neither kills a ticket nor keeps one alive."""
    ours, _ = pair
    bound, unbound, short = ours.share(os.getpid()), ours.share(None), ours.share(None, expires_s=5.0)
    clocks.wall_s = wall_s
    ss.fromshare(bound).close()
    ss.fromshare(unbound).close()
    clocks.monotonic_s += 5.1
    with pytest.raises(ss.TicketExpired):
        ss.fromshare(short)


@pytest.mark.fault("F-20")
def test_a_ticket_without_any_time_is_never_redeemed(
    clocks: Clocks, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """expires_s=0 is over at once, a negative time too; infinity is no clock."""
    ours, _ = pair
    for expires_s in (0.0, -1.0):
        with pytest.raises(ss.TicketExpired):
            ss.fromshare(ours.share(None, expires_s=expires_s))
    for_ever = ours.share(None, expires_s=float("inf"))
    clocks.monotonic_s += 365 * DAY_S
    ss.fromshare(for_ever).close()
