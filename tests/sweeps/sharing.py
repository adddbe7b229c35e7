"""Scenes of the calls that make, share and close descriptors: the count is true after each, and no ticket is lost."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import warnings
from collections.abc import Callable, Generator
from typing import Any

import sharedsock as ss
from sharedsock import spi
from tests.descriptors.sharers import wait_until
from tests.sweeps.scenes import PATIENCE_S, TAGGED, Outcome, Scene, Stage, is_silent, scene, sees_end, untroubled

Acts = Generator[Callable[[], Any], Outcome, None]


# -- opening ----------------------------------------------------------------------------------------------------------


def _opening(make: Callable[[], Any]) -> Scene:
    """A call that opens something leaves nothing open where it fails, and then can be made again."""

    def play(stage: Stage) -> Acts:
        outcome = yield make
        made = outcome.value_or(make)
        for shared in made if isinstance(made, tuple) else (made,):
            stage.has(shared)
            assert shared.fileno() >= 0

    return play


scene("SharedSocket.__init__")(_opening(ss.SharedSocket))
scene("create_server")(_opening(lambda: ss.create_server(("127.0.0.1", 0))))
scene("socketpair")(_opening(ss.socketpair))


@scene("SharedSocket.__init__/on a number")
def init_on_a_number(stage: Stage) -> Acts:
    """From the call on the number is ours to close; a call that failed before that has left it to its caller."""
    plain, peer = socket.socketpair()
    number, peer = plain.detach(), stage.has(peer)
    outcome = yield lambda: ss.SharedSocket(fileno=number)
    if outcome.error is None:
        stage.has(outcome.value).sendall(TAGGED)
        assert peer.recv(1 << 16) == TAGGED
    elif is_silent(peer):
        os.close(number)


@scene("adopt")
def adopt(stage: Stage) -> Acts:
    """Where it fails the plain socket is untouched, or has ended: nothing in between."""
    plain, peer = stage.each(socket.socketpair())
    outcome = yield lambda: ss.adopt(plain)
    if outcome.error is None:
        stage.has(outcome.value).sendall(TAGGED)
    elif plain.fileno() >= 0:
        plain.sendall(TAGGED)
    peer.settimeout(PATIENCE_S)
    assert peer.recv(1 << 16) in ((TAGGED,) if outcome.error is None else (TAGGED, b""))


@scene("create_connection")
def create_connection(stage: Stage) -> Acts:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        outcome = yield lambda: ss.create_connection(address)
        made = stage.has(outcome.value_or(lambda: ss.create_connection(address)))
        made.sendall(TAGGED)


# -- sharing ----------------------------------------------------------------------------------------------------------


def _ticketing(call: Callable[[Any], Any], redeem: Callable[[Any], Any], is_first: bool) -> Scene:
    """A ticket that its minter never saw is no reference; one he has seen works."""

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected()
        if not is_first:
            ours.dup().close()
        outcome = yield lambda: call(ours)
        assert untroubled(ours.references) == (1 if outcome.error else 2)
        with redeem(outcome.value_or(lambda: call(ours))) as taken:
            assert ours.references() == 2
            taken.sendall(TAGGED)
            assert peer.recv(1 << 16) == TAGGED
        assert ours.references() == 1

    return play


for _way, _is_first in (("first", True), ("again", False)):
    scene(f"SharedSocket.share/{_way}")(_ticketing(lambda s: s.share(os.getpid()), ss.fromshare, _is_first))
scene("SharedSocket.share/claim-once")(_ticketing(lambda s: s.share(None), ss.fromshare, False))
scene("SharedSocket.ticket")(_ticketing(lambda s: s.ticket(), lambda ticket: ticket.redeem(), False))
# The pickler is not asked: what it has made of it is its caller's, who may lose it.
scene("SharedSocket.__reduce_ex__")(
    _ticketing(lambda s: s.__reduce_ex__(4), lambda reduced: reduced[0](*reduced[1]), False)
)


@scene("Ticket.__reduce__")
def pickle_a_ticket(stage: Stage) -> Acts:
    """It is minted already, and stays good."""
    ours, _ = stage.connected()
    ticket = ours.ticket()
    outcome = yield lambda: pickle.dumps(ticket)
    with pickle.loads(outcome.value_or(lambda: pickle.dumps(ticket))):
        assert ours.references() == 2
    assert ours.references() == 1


@scene("SharedSocket.lend")
def lend(stage: Stage) -> Acts:
    """Counted once, however it ends: for a process that has been lent it already nothing is added by another try."""
    ours, _ = stage.connected()
    ours.dup().close()
    child = stage.has(_Child())
    outcome = yield lambda: ours.lend(child.pid)
    outcome.value_or(lambda: ours.lend(child.pid))
    assert untroubled(ours.references) in ((2,) if outcome.error is None else (2, 3))
    child.close()
    wait_until(lambda: ours.references() == 1, "the lent reference to end with its process")


class _Child:
    """A process that waits for its end."""

    def __init__(self) -> None:
        wait, self._end = os.pipe()
        self.pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[
            (os.POSIX_SPAWN_DUP2, wait, 0), (os.POSIX_SPAWN_CLOSE, self._end),
        ])  # fmt: skip
        os.close(wait)

    def close(self) -> None:
        if self._end >= 0:
            os.close(self._end)
            self._end = -1
            os.waitpid(self.pid, 0)


def _redeeming(call: Callable[[bytes], Any]) -> Scene:
    """F-96, I8: a try that failed has not used the ticket up, and a second handle never comes of it."""

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected()
        info = ours.share(os.getpid())
        outcome = yield lambda: call(info)
        assert untroubled(ours.references) == 2
        with outcome.value_or(lambda: call(info)) as taken:
            assert ours.references() == 2
            taken.sendall(TAGGED)
            assert peer.recv(1 << 16) == TAGGED
        assert ours.references() == 1

    return play


scene("fromshare")(_redeeming(ss.fromshare))
scene("Ticket.redeem")(_redeeming(lambda info: ss.Ticket(info).redeem()))


def _revoking(call: Callable[[bytes], bool]) -> Scene:
    """Once it is revoked it is nobody's; a try that failed leaves it whole, or has taken it."""

    def play(stage: Stage) -> Acts:
        ours, _ = stage.connected()
        info = ours.share(os.getpid())
        outcome = yield lambda: call(info)
        if outcome.error is not None:
            untroubled(lambda: call(info))
        else:
            assert outcome.value
        assert ours.references() == 1

    return play


scene("revoke")(_revoking(ss.revoke))
scene("Ticket.revoke")(_revoking(lambda info: ss.Ticket(info).revoke()))


@scene("SharedSocket.dup")
def dup(stage: Stage) -> Acts:
    ours, peer = stage.connected()
    outcome = yield ours.dup
    assert untroubled(ours.references) == (1 if outcome.error else 2)
    with outcome.value_or(ours.dup) as twin:
        assert ours.references() == 2
        twin.sendall(TAGGED)
    assert peer.recv(1 << 16) == TAGGED
    assert ours.references() == 1


def _counting(ask: Callable[[Any], Any], expected: Callable[[Any], bool]) -> Scene:
    def play(stage: Stage) -> Acts:
        ours, _ = stage.shared()
        outcome = yield lambda: ask(ours)
        assert expected(outcome.value_or(lambda: ask(ours)))

    return play


scene("SharedSocket.references")(_counting(lambda s: s.references(), lambda count: count == 2))
scene("SharedSocket.holders")(_counting(lambda s: s.holders(), lambda holders: len(holders) == 2))
scene("SharedSocket.pending_operations")(_counting(lambda s: s.pending_operations(), lambda found: found == ()))


@scene("statistics")
def statistics(stage: Stage) -> Acts:
    stage.shared()
    outcome = yield ss.statistics
    assert outcome.value_or(ss.statistics).shared >= 2, "a sweep may have sockets of its own open meanwhile"
    assert ss.statistics().shared == 2


# -- closing ----------------------------------------------------------------------------------------------------------


def _leave(shared: Any) -> None:
    with shared:
        pass


def _collect(shared: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        shared.clear()


CLOSES: dict[str, Callable[[Any], Any]] = {
    "close": lambda s: s.close(),
    "abort": lambda s: s.abort(),
    "__exit__": _leave,
}


def _closing(call: Callable[[Any], Any], linger_s: int | None = None) -> Scene:
    """An attempt that was cut short has closed it, or the next one does; the peer sees the end."""

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected("tcp")
        if linger_s is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _linger(linger_s))
        outcome = yield lambda: call(ours)
        if outcome.error is not None:
            untroubled(lambda: call(ours))
        assert ours.fileno() == -1
        assert sees_end(peer)

    return play


def _linger(seconds: int) -> bytes:
    return struct.pack("ii", 1, seconds)


def _closing_shared(call: Callable[[Any], Any]) -> Scene:
    """I2, I4: the other descriptor goes on and is counted alone."""

    def play(stage: Stage) -> Acts:
        ours, peer = stage.connected()
        twin = stage.has(ours.dup())
        outcome = yield lambda: call(ours)
        if outcome.error is not None:
            untroubled(lambda: call(ours))
        assert ours.fileno() == -1
        assert twin.references() == 1
        assert is_silent(peer)
        twin.sendall(TAGGED)
        assert peer.recv(1 << 16) == TAGGED

    return play


for _name, _call in CLOSES.items():
    scene(f"SharedSocket.{_name}")(_closing(_call))
    scene(f"SharedSocket.{_name}/not the last")(_closing_shared(_call))
    scene(f"SharedSocket.{_name}/LINGER(1)")(_closing(_call, 1))
scene("SharedSocket.close/LINGER(0)")(_closing(CLOSES["close"], 0))


@scene("SharedSocket.__del__")
def collected(stage: Stage) -> Acts:
    """What is collected ends, however its destructor is troubled."""
    plain, peer = socket.socketpair()
    peer = stage.has(peer)
    box = [ss.adopt(plain)]
    yield lambda: _collect(box)
    box.clear()
    assert sees_end(peer)


@scene("SharedSocket.detach")
def detach(stage: Stage) -> Acts:
    """The number is the caller's; where he has not got it, the descriptor is closed, or can be detached again."""
    ours, peer = stage.connected()
    outcome = yield ours.detach
    if outcome.error is None:
        with socket.socket(fileno=outcome.value) as plain:
            plain.sendall(TAGGED)
        assert peer.recv(1 << 16) == TAGGED
    else:
        ours.close()
        assert sees_end(peer)


# -- the registry -----------------------------------------------------------------------------------------------------


@scene("Registry.start")
def start_registry(stage: Stage) -> Acts:
    """A start that was cut short leaves a registry that ends by itself, or none; the next one succeeds."""
    registry = stage.has(ss.Registry())
    outcome = yield registry.start
    outcome.value_or(registry.start)
    assert registry.client.sockets() == ()


@scene("use_provider")
def use_provider(stage: Stage) -> Acts:
    """Begun half way or not: it can be begun again, and ended."""
    try:
        outcome = yield lambda: ss.use_provider(spi.Tracing)
        outcome.value_or(lambda: ss.use_provider(spi.Tracing))
        assert type(stage.has(ss.SharedSocket())) is not ss.SharedSocket
    finally:
        ss.use_provider(None)
    assert type(stage.has(ss.SharedSocket())) is ss.SharedSocket


@scene("connect_registry")
def connect_registry(stage: Stage) -> Acts:
    registry = stage.has(ss.Registry().start())
    address, key = registry.address, registry.authkey
    registry.client.close()
    outcome = yield lambda: ss.connect_registry(address, key)
    handle = stage.has(outcome.value_or(lambda: ss.connect_registry(address, key)))
    assert handle.client.sockets() == ()


@scene("Registry.close")
def close_registry(stage: Stage) -> Acts:
    """What is closed half way can be closed again, and is current no longer."""
    registry = ss.Registry().start()
    outcome = yield registry.close
    outcome.value_or(registry.close)
    with ss.SharedSocket() as ours:
        ours.dup().close()
        assert stage.registry.client.sockets() != ()


@scene("Registry.manager")
def manager(stage: Stage) -> Acts:
    registry = stage.has(ss.Registry().start())
    outcome = yield lambda: registry.manager
    assert outcome.value_or(lambda: registry.manager).statistics().clients >= 1


@scene("Registry.authkey")
def authkey(stage: Stage) -> Acts:
    """Read from its file each time."""
    outcome = yield lambda: stage.registry.authkey
    assert len(outcome.value_or(lambda: stage.registry.authkey)) == 32


@scene("Registry.client")
def client(stage: Stage) -> Acts:
    outcome = yield lambda: stage.registry.client.statistics()
    assert outcome.value_or(lambda: stage.registry.client.statistics()).clients >= 1
