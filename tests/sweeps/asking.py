"""Scenes of the calls that never wait: what a socket is, its options, its shut-down."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from typing import Any, Final

import pytest

import sharedsock as ss
from tests.sweeps.scenes import TAGGED, Outcome, Scene, Stage, scene

Acts = Generator[Callable[[], Any], Outcome, None]

QUESTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "fileno": lambda s: s.fileno(),
    "descriptor": lambda s: s.descriptor,
    "family": lambda s: s.family,
    "type": lambda s: s.type,
    "proto": lambda s: s.proto,
    "getsockname": lambda s: s.getsockname(),
    "getpeername": lambda s: s.getpeername(),
    "gettimeout": lambda s: s.gettimeout(),
    "timeout": lambda s: s.timeout,
    "getblocking": lambda s: s.getblocking(),
    "get_inheritable": lambda s: s.get_inheritable(),
    "getsockopt": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
}
# call -> (make it, ask whether it was done)
CHANGES: Final[dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Any]]] = {
    "settimeout": (lambda s: s.settimeout(7.0), lambda s: s.gettimeout(), 7.0),
    "setblocking": (lambda s: s.setblocking(False), lambda s: s.getblocking(), False),
    "set_inheritable": (lambda s: s.set_inheritable(True), lambda s: s.get_inheritable(), True),
    "setsockopt": (
        lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        lambda s: bool(s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
        True,
    ),
    "setsockopt/SO_LINGER": (
        lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\5\0\0\0"),
        lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8),
        b"\1\0\0\0\5\0\0\0",
    ),
}


def _asking(ask: Callable[[Any], Any]) -> Scene:
    """Asked again it answers the same."""

    def play(stage: Stage) -> Acts:
        ours, _ = stage.shared("tcp")
        expected = ask(ours)
        outcome = yield lambda: ask(ours)
        assert outcome.value_or(lambda: ask(ours)) == expected

    return play


def _changing(change: Callable[[Any], Any], ask: Callable[[Any], Any], expected: Any) -> Scene:
    """Done or not done; it can be done again."""

    def play(stage: Stage) -> Acts:
        ours, twin = stage.shared("tcp")
        outcome = yield lambda: change(ours)
        outcome.value_or(lambda: change(ours))
        assert ask(ours) == expected
        twin.sendall(TAGGED)

    return play


for _name, _ask in QUESTIONS.items():
    scene(f"SharedSocket.{_name}")(_asking(_ask))
for _name, _change in CHANGES.items():
    scene(f"SharedSocket.{_name}")(_changing(*_change))


@scene("SharedSocket.__repr__")
def representation(stage: Stage) -> Acts:
    """An address that cannot be had is left out."""
    ours, _ = stage.connected("tcp")
    outcome = yield lambda: repr(ours)
    assert f"descriptor={ours.descriptor}" in outcome.value_or(lambda: repr(ours))


@scene("SharedSocket.bind")
def bind(stage: Stage) -> Acts:
    ours = stage.has(ss.SharedSocket())
    outcome = yield lambda: ours.bind(("127.0.0.1", 0))
    if outcome.error is not None and ours.getsockname()[1] == 0:
        ours.bind(("127.0.0.1", 0))
    assert ours.getsockname()[1]


@scene("SharedSocket.listen")
def listen(stage: Stage) -> Acts:
    ours = stage.has(ss.SharedSocket())
    ours.bind(("127.0.0.1", 0))
    outcome = yield ours.listen
    outcome.value_or(ours.listen)
    stage.client_of(ours)


@scene("SharedSocket.shutdown")
def shutdown(stage: Stage) -> Acts:
    """Every sharer's record and the kernel agree in the end."""
    ours, peer = stage.connected("tcp")
    twin = stage.has(ours.dup())
    outcome = yield lambda: ours.shutdown(socket.SHUT_WR)
    outcome.value_or(lambda: ours.shutdown(socket.SHUT_WR))
    assert peer.recv(1) == b""
    with pytest.raises(BrokenPipeError) as caught:
        twin.send(b"x")
    assert caught.value.winerror == 10058  # type: ignore[attr-defined]


@scene("SharedSocket.makefile")
def makefile(stage: Stage) -> Acts:
    """A file that its caller never got does not keep the socket open for ever."""
    ours, peer = stage.connected()
    outcome = yield lambda: ours.makefile("rb")
    peer.sendall(TAGGED)
    with outcome.value_or(lambda: ours.makefile("rb")) as file:
        assert file.read(len(TAGGED)) == TAGGED
