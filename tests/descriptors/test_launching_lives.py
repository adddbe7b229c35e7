"""A ticket minted for a child that is being launched: with whom it lives, when somebody dies, interrupts or hangs.

No clock is involved. Until the child is known it ends with the process that launches, from then on with the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import types
from time import monotonic
from typing import Any, Final

import pytest

import sharedsock as ss
from sharedsock.descriptors import launching, sharing
from sharedsock.testing import Actors, Raised
from sharedsock.testing.commands import Belongings
from tests.descriptors.launched import context_of, say_and_wait
from tests.descriptors.sharers import skewed_registry, wait_end_of, wait_until
from tests.sweeps.interrupting import Interrupter

pytestmark = pytest.mark.usefixtures("light_children")

METHODS: Final = ("fork", "forkserver", "spawn")


def _launch(has: Belongings, method: str, target: Any = say_and_wait) -> int:
    """In an actor: launch a child with the socket among its arguments; return its pid."""
    process = context_of(method).Process(target=target, args=(has["socket"],))
    process.start()
    pid: int = process.pid
    return pid


def _launch_and_die(has: Belongings, method: str) -> None:
    """In an actor: launch a child, and die when it is there and nobody has said whose its ticket is."""

    def die(tickets: list[bytes], child: int | None) -> None:
        assert tickets
        assert child is not None
        os.kill(os.getpid(), signal.SIGKILL)

    sharing.settle = die
    _launch(has, method)


def _launch_and_hold(has: Belongings, method: str) -> None:
    """In an actor: as above, but stay between the two."""

    def hold(tickets: list[bytes], child: int | None) -> None:
        has.report("launched", child)
        signal.pause()

    sharing.settle = hold
    _launch(has, method)


# -- the launcher dies ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89", "F-11")
@pytest.mark.rule("DUP-13", "EXIT-1")
@pytest.mark.parametrize("method", METHODS)
def test_a_launcher_killed_before_there_is_a_child_leaves_nothing(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], method: str, bounds: Any
) -> None:
    """The ticket is minted, nobody will ever have it: it ends with its minter, and so does the socket."""
    ours, peer = pair
    (launcher,) = actors.share(ours, count=1)
    ours.close()
    launcher.kill_at("share.issued")
    launcher.thread("main").do("call_with", _launch, method)
    launcher.wait_dead()
    began_s = monotonic()
    wait_end_of(peer)
    wait_until(lambda: registry.client.sockets() == (), "every reference to go")
    bounds.check("T_reap", monotonic() - began_s)


@pytest.mark.fault("F-89", "F-11")
@pytest.mark.parametrize("method", METHODS)
def test_a_launcher_killed_before_it_can_name_the_child_leaves_nothing(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """The child may have redeemed by then, or comes too late: its reference ends with it, or there is none."""
    ours, peer = pair
    (launcher,) = actors.share(ours, count=1)
    ours.close()
    launcher.thread("main").do("call_with", _launch_and_die, method)
    launcher.wait_dead()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.sendall(b"!")  # a child that has come in time goes
        while peer.recv(64):
            pass
    wait_until(lambda: registry.client.sockets() == (), "every reference to go")


@pytest.mark.fault("F-89")
@pytest.mark.rule("DUP-12", "EXIT-1")
@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_is_faster_than_its_launcher_keeps_what_it_has(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """It has redeemed before it was named; the launcher's death then is none of its business."""
    ours, peer = pair
    (launcher,) = actors.share(ours, count=1)
    ours.close()
    launcher.thread("main").do("call_with", _launch_and_hold, method)
    assert peer.recv(64) == b"2 1\n"
    launcher.kill()
    wait_until(lambda: [n for _, n in registry.client.sockets()] == [1], "the launcher's reference to go")
    peer.sendall(b"!")
    wait_end_of(peer)
    wait_until(lambda: registry.client.sockets() == (), "the child's reference to go")


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89", "F-20")
def test_a_minted_ticket_waits_for_its_child_without_a_clock() -> None:
    """A day before the child is named, and another before it redeems. Outside a launch there is a clock."""
    with skewed_registry() as (_, clocks):
        left, peer = socket.socketpair()
        with peer, ss.adopt(left) as ours:
            tickets: list[bytes] = []
            with sharing.minting(tickets):
                info = sharing.mint(ours._descriptor)
            plain = sharing.mint(ours._descriptor)
            clocks.monotonic_s += 86_400
            with pytest.raises(ss.TicketExpired):
                ss.fromshare(plain)
            sharing.settle(tickets, os.getpid())
            assert not tickets
            clocks.monotonic_s += 86_400
            ss.fromshare(info).close()


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89", "F-33")
@pytest.mark.parametrize("seam", ["fork", "pickled"])
def test_an_interrupt_anywhere_in_a_launch_leaves_no_ticket_of_nobody(
    pair: tuple[ss.SharedSocket, socket.socket], actors: Actors, seam: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: every ticket is the child's, or has been taken back; none stays as long as the launcher lives."""
    ours, _ = pair
    (child,) = actors.start("child")
    process = types.SimpleNamespace(argument=ours)
    popen = types.SimpleNamespace(pid=child.pid)

    def launch(popen: Any, process: Any) -> None:
        if seam == "pickled":
            sharing.mint(process.argument._descriptor)

    made: list[bytes] = []
    real = sharing._encode

    def encode(client: Any, secret: bytes) -> bytes:
        made.append(real(client, secret))
        return made[-1]

    monkeypatch.setattr(sharing, "_encode", encode)
    wrapped = launching._wrap_fork(launch, ss.SharedSocket) if seam == "fork" else launching._wrap_pickled(launch)
    nth, was_cut, cuts = 0, True, 0
    while was_cut:
        interrupter = Interrupter(nth)
        _, was_cut = interrupter.run(wrapped, popen, process)
        cuts += was_cut
        tickets = [holder for holder in ours.holders() if holder.kind == "ticket"]
        assert [holder.pid for holder in tickets] in ([], [child.pid]), interrupter.where
        assert was_cut or tickets, "an undisturbed launch ends with the child's ticket"
        assert not sharing._unsettled
        assert "_bootstrap" not in vars(process)
        for info in made:
            ss.revoke(info)
        made.clear()
        nth += 2
    assert cuts > 10


# -- the registry hangs -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89", "F-78")
@pytest.mark.parametrize("outcome", ["launched", "failed"])
def test_a_registry_that_hangs_hears_of_the_launch_later(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], outcome: str
) -> None:
    """start() succeeds or fails as the launch did, after T_rpc; the next share() tells what became of the ticket."""
    ours, _ = pair
    (child,) = actors.start("child")
    client, pid = registry.client, registry.client.pid
    infos: list[bytes] = []

    def launch(popen: Any, process: Any) -> None:
        infos.append(sharing.mint(ours._descriptor))
        os.kill(pid, signal.SIGSTOP)
        if outcome == "failed":
            raise ValueError("no child")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "rpc_timeout_s", 0.2)
        try:
            wrapped = launching._wrap_pickled(launch)
            if outcome == "failed":
                with pytest.raises(ValueError, match="no child"):
                    wrapped(types.SimpleNamespace(pid=None), None)
            else:
                wrapped(types.SimpleNamespace(pid=child.pid), None)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert len(sharing._unsettled) == 1
    assert ss.revoke(ours.share(None))
    assert not sharing._unsettled
    if outcome == "failed":
        assert ours.references() == 1
    else:
        assert [holder.pid for holder in ours.holders() if holder.kind == "ticket"] == [child.pid]
        with pytest.raises(ss.TicketInvalid):
            ss.fromshare(infos[0])
        child.do("take", infos[0])
        again = child.thread("main").do("take", infos[0], on="again")
        assert again.outcome() == Raised("TicketAlreadyClaimed", 10022, 22)
        child.close()
