"""Receiving a descriptor: no room, deaths at each point, lost words. A failed try leaves ticket and count alone."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.model.errors import RegistryGone
from sharedsock.registry import connect, launch
from sharedsock.registry.client import Client
from sharedsock.testing import Actors, Raised, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors.sharers import (
    cookie_of,
    hooked,
    is_open_for,
    kill,
    room_for,
    wait_end_of,
    wait_until,
)

TAKE_POINTS = ("take.sent", "take.received", "take.wrapped", "take.acked")


# -- F-29: no room ----------------------------------------------------------------------------------------------------


def _take_with(has: Belongings, info: bytes, free: int, is_connected: bool) -> str:
    """Redeem with so much room; report what it came to, and anything a failure left behind."""
    if is_connected:
        connect.default_client().statistics()
    else:
        connect.close_idle_clients()
    before = sorted(os.listdir("/proc/self/fd"))
    with room_for(free):
        try:
            has.sockets["socket"] = ss.fromshare(info)
        except OSError as error:
            outcome = errno.errorcode[error.errno or 0]
            error.__traceback__ = error.__context__ = error.__cause__ = None
        else:
            return "redeemed"
    left = set(os.listdir("/proc/self/fd")) - set(before)
    return f"{outcome}, left {left}" if left and is_connected else outcome


@pytest.mark.fault("F-29", "F-96")
@pytest.mark.parametrize("is_connected", [True, False], ids=["channel open", "no channel yet"])
def test_each_count_of_free_numbers_succeeds_or_is_emfile(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], is_connected: bool
) -> None:
    """WSAEMFILE; the ticket is redeemable and the count unchanged after each try, and then it succeeds."""
    ours, peer = pair
    (target,) = actors.start("target")
    info = ours.share(target.pid)
    came = []
    for free in range(16):
        came.append(target.do("call_with", _take_with, info, free, is_connected))
        assert ours.references() == 2
        if came[-1] == "redeemed":
            break
    assert came[-1] == "redeemed", came
    assert set(came[:-1]) == {"EMFILE"}
    assert len(came) > (2 if is_connected else 3), "room for nothing, and for too little"
    target.sendall(b"at last")
    assert peer.recv(8) == b"at last"


# -- F-30: the redeemer dies ------------------------------------------------------------------------------------------


@pytest.mark.fault("F-30", "F-18")
@pytest.mark.rule("DUP-13", "EXIT-1")
@pytest.mark.parametrize("point", TAKE_POINTS)
def test_a_target_killed_while_it_redeems_leaves_nothing(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], point: str, bounds: Any
) -> None:
    """Its ticket, and whatever that had become, go with it: the count is true within T_reap, nobody is disturbed."""
    ours, peer = pair
    (target,) = actors.start("target")
    info = ours.share(target.pid)
    target.kill_at(point)
    target.thread("main").do("take", info)
    assert target.wait_dead() == "killed by SIGKILL"
    bounds.check("T_reap", wait_until(lambda: ours.references() == 1, "the count to be true"))
    assert is_open_for(peer)
    ours.sendall(b"undisturbed")
    assert peer.recv(16) == b"undisturbed"


@pytest.mark.fault("F-30")
@pytest.mark.rule("DUP-13", "EXIT-1")
@pytest.mark.parametrize("point", TAKE_POINTS)
def test_the_peer_sees_the_end_when_the_last_reference_dies_on_its_way(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], point: str, bounds: Any
) -> None:
    """The sharer has closed: the target in the middle of its receipt was all there was."""
    ours, peer = pair
    (target,) = actors.start("target")
    info = ours.share(target.pid)
    ours.close()
    with target.hold_at(point) as barrier:
        target.thread("main").do("take", info)
        barrier.wait_reached()
        assert is_open_for(peer)
        target.kill()
        bounds.check("T_reap", wait_end_of(peer))


@pytest.mark.fault("F-30")
@pytest.mark.parametrize("point", TAKE_POINTS)
def test_an_unbound_ticket_survives_a_claimer_that_dies(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], point: str
) -> None:
    """Not used up before the acknowledgement (I8): another process can redeem it; afterwards it has been used."""
    ours, _ = pair
    first, second = actors.start("first", "second")
    info = ours.share(None)
    first.kill_at(point)
    first.thread("main").do("take", info)
    first.wait_dead()
    wait_until(lambda: ours.references() == (1 if point == "take.acked" else 2), "the claimer's death")
    outcome = second.thread("main").do("take", info).outcome()
    assert outcome == (Raised("TicketAlreadyClaimed", 10022, 22) if point == "take.acked" else Returned(None))


# -- F-31: the registry dies ------------------------------------------------------------------------------------------


@pytest.mark.fault("F-31", "F-85")
@pytest.mark.parametrize("point", TAKE_POINTS)
def test_a_registry_killed_during_a_receipt(point: str, bounds: Any) -> None:
    """The caller hears it within T_dead, unless it has the socket already; a new registry's count is true."""
    left, peer = socket.socketpair()
    with peer, ss.Registry() as registry, Actors("fork") as actors, ss.adopt(left) as ours:
        (target,) = actors.start("target")
        info = ours.share(target.pid)
        with target.hold_at(point) as barrier:
            taking = target.thread("main").do("take", info)
            barrier.wait_reached()
            kill(registry.client.pid)
            released_s = time.monotonic()
        if point == "take.acked":
            assert taking.outcome() == Returned(None)
        else:
            assert taking.outcome() == Raised("RegistryGone", 10050, errno.ENETDOWN)
            bounds.check("T_dead", taking.ended_s - released_s)
        assert is_open_for(peer)
        # A registry anew, in the same place: holders announce themselves with their next call that needs it.
        assert launch.start(registry.runtime)
        held = 2 if point == "take.acked" else 1
        if held == 2:
            assert target.do("references") >= 1
        assert ours.references() == held
        assert target.thread("main").do("take", info, on="again").outcome() == Raised("TicketInvalid", 10022, 22)
        fresh = ours.share(target.pid)
        target.do("take", fresh, on="fresh")
        target.sendall(b"goes on", on="fresh")
        assert peer.recv(8) == b"goes on"
        assert ours.references() == held + 1


@pytest.mark.fault("F-31")
def test_a_registry_that_is_not_there_is_said_so_at_once(bounds: Any) -> None:
    """Killed before the ticket is redeemed: RegistryGone, nothing is started, nothing is open."""
    left, peer = socket.socketpair()
    with peer, ss.Registry() as registry, ss.adopt(left) as ours:
        info = ours.share(os.getpid())
        kill(registry.client.pid)
        before = len(os.listdir("/proc/self/fd"))
        began_s = time.monotonic()
        with pytest.raises(RegistryGone) as caught:
            ss.fromshare(info)
        bounds.check("T_dead", time.monotonic() - began_s)
        assert caught.value.winerror == 10050
        assert len(os.listdir("/proc/self/fd")) <= before
        ours.sendall(b"open sockets go on")
        assert peer.recv(32) == b"open sockets go on"
        ours.close()
        assert not os.path.exists(registry.runtime), "its last holder takes away what it has left"


# -- F-32: words lost or doubled --------------------------------------------------------------------------------------


@pytest.mark.fault("F-32")
@pytest.mark.parametrize("fate", ["reply lost", "doubled", "refused after"])
def test_an_acknowledgement_counts_once(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """Lost, the client says it again; doubled, it changes nothing; a refusal after it comes too late."""
    ours, _ = pair
    real = Client._acknowledge
    losses = [RegistryGone("lost on the way")] if fate == "reply lost" else []

    def acknowledge(client: Client, claim: Any, fields: Any) -> None:
        real(client, claim, fields)
        if losses:
            raise losses.pop()
        if fate == "doubled":
            real(client, claim, fields)
        elif fate == "refused after":
            with pytest.raises(ss.TicketInvalid):
                client.refuse(claim)

    monkeypatch.setattr(Client, "_post", lambda *arguments: False)  # it has to wait for the reply
    monkeypatch.setattr(Client, "_acknowledge", acknowledge)
    with ss.fromshare(ours.share(os.getpid())) as redeemed:
        assert ours.references() == redeemed.references() == 2
    assert ours.references() == 1


@pytest.mark.fault("F-32", "F-78")
def test_an_acknowledgement_nobody_answers_is_given_back(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry counted it, the caller heard only silence: an error, and the next call corrects the count."""
    ours, _ = pair
    real = Client._acknowledge

    def acknowledge(client: Client, claim: Any, fields: Any) -> None:
        real(client, claim, fields)
        raise RegistryGone("did not answer")

    info = ours.share(os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(Client, "_post", lambda *arguments: False)  # it has to wait for the reply
        patch.setattr(Client, "_acknowledge", acknowledge)
        with pytest.raises(RegistryGone):
            ss.fromshare(info)
    assert ss.revoke(ours.share(os.getpid()))
    assert ours.references() == 1


# -- F-35, F-37: what is received -------------------------------------------------------------------------------------


@pytest.mark.fault("F-35", "S-15")
def test_nothing_that_arrives_can_be_inherited(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Close-on-exec from the first moment: seen at each point, and by a program that is executed."""
    ours, _ = pair
    inheritable: list[tuple[str, int]] = []
    standard = {number for number in map(int, os.listdir("/proc/self/fd")) if _is_inheritable(number)}

    def look(point: str, context: Mapping[str, Any]) -> None:
        numbers = set(map(int, os.listdir("/proc/self/fd"))) - standard
        inheritable.extend((point, number) for number in numbers if _is_inheritable(number))

    info = ours.share(os.getpid())
    with hooked(look), ss.fromshare(info) as redeemed:
        assert not inheritable
        assert not redeemed.get_inheritable()
        inode = os.fstat(redeemed.fileno()).st_ino
        shown = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        )
        assert "0 -> " in shown.stdout
        assert f"socket:[{inode}]" not in shown.stdout
    assert not inheritable


def _is_inheritable(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # the listing's own
        return False


@pytest.mark.fault("F-37")
@pytest.mark.rule("DUP-21")
def test_what_a_socket_is_comes_from_the_kernel(registry: ss.Registry) -> None:
    """The sharer lies about family, type and protocol; the redeemer asks the socket itself."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        plain = socket.create_connection(door.getsockname())
        far, _ = door.accept()
        with far, ss.SharedSocket(socket.AF_INET6, socket.SOCK_DGRAM, 17, fileno=plain.detach()) as liar:
            liar.settimeout(0.5)
            with ss.fromshare(liar.share(os.getpid())) as told:
                assert (told.family, told.type, told.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                assert cookie_of(told) == cookie_of(liar)
                assert told.gettimeout() is None, "a timeout is a descriptor's own"
                assert told.getblocking()
                told.sendall(b"a stream after all")
                assert far.recv(32) == b"a stream after all"


@pytest.mark.fault("F-35")
def test_a_linger_set_by_the_sharer_is_known_to_the_redeemer(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """What the kernel does not keep comes with the registry's record, before and after the first share."""
    ours, _ = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
    with ss.fromshare(ours.share(os.getpid())) as redeemed:
        assert redeemed.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
        redeemed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == struct.pack("i", 0)
