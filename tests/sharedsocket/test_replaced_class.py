"""Whoever blocks or watches sockets puts a class of his own where socket.socket stands; nothing here goes through it.

pytest-socket does so for whole test sessions, and so does CPython's own suite when it runs with SharedSocket.
"""

from __future__ import annotations

import _socket
import ast
import multiprocessing
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import sharedsock as ss
from sharedsock.sharedsocket import opening
from sharedsock.testing import Actors

PACKAGE = Path(ss.__file__).parent
PLAIN = socket.socket


class _Blocked(socket.socket):
    """As pytest-socket's guard."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _Blocked:
        raise RuntimeError("a test tried to use socket.socket")


def _blocked(*arguments: Any, **keywords: Any) -> Any:
    raise RuntimeError("a test tried to use socket.socket")


@pytest.fixture(params=[_Blocked, _blocked, ss.SharedSocket], ids=["a class", "a function", "SharedSocket"])
def replaced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """socket.socket is something else for the time of a test."""
    monkeypatch.setattr(socket, "socket", request.param)
    return cast("object", request.param)


@pytest.fixture
def plain_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two plain sockets from before."""
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def test_open_share_redeem_and_close(replaced: object) -> None:
    """With a registry of one's own, started meanwhile: its client connects by the class it found at import."""
    with ss.Registry():
        a, b = ss.socketpair()
        twin = ss.fromshare(a.share(None))
        third = twin.dup()
        assert third.references() == 3
        third.sendall(b"hello")
        assert b.recv(5) == b"hello"
        for s in (third, twin, a):
            s.close()
        assert b.recv(1) == b""
        b.close()


def test_adopt_takes_a_plain_socket(plain_pair: tuple[socket.socket, socket.socket], replaced: object) -> None:
    """One from before the replacement is still a plain socket, and one of ours is still none."""
    ours = ss.adopt(plain_pair[0])
    with ours:
        ours.sendall(b"x")
        assert plain_pair[1].recv(1) == b"x"
        with pytest.raises(TypeError, match="plain"):
            ss.adopt(ours)


def test_a_pair_that_cannot_be_adopted_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the two fails: both are closed (the oracle looks)."""
    made: list[ss.SharedSocket] = []

    def adopt_once(plain: _socket.socket) -> ss.SharedSocket:
        if made:
            raise OSError(24, "no number is free")
        made.append(adopt(plain))
        return made[0]

    adopt = opening._take_over
    monkeypatch.setattr(opening, "_take_over", adopt_once)
    with pytest.raises(OSError):
        ss.socketpair()
    assert made[0].fileno() == -1


def _answer(s: ss.SharedSocket) -> None:
    with s:
        s.sendall(b"from a child")


def test_a_child_gets_a_socket(replaced: object, registry: ss.Registry) -> None:
    a, b = ss.socketpair()
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(a,))
    child.start()
    a.close()
    assert b.recv(100) == b"from a child"
    child.join()
    child.close()
    b.close()


def test_actors_talk_to_their_controller(replaced: object) -> None:
    """Their pipes are the instruments' own."""
    with Actors("fork") as company:
        assert company.start("a")[0].is_alive


def test_only_names_bound_at_import_make_sockets() -> None:
    """A call of socket.socket(...) or socket.socketpair(...) looks the name up when it runs."""
    looked_up = {
        "socket.socket",
        "socket.socketpair",
        "socket.fromfd",
        "socket.create_connection",
        "socket.create_server",
    }
    found = []
    for room in ("kernel", "descriptors", "testing", "registry/client.py", "registry/link.py", "registry/runtime.py"):
        place = PACKAGE / room
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in looked_up:
                    found.append((file.name, ast.unparse(node)))
    # The registry's own process, which runs nothing of a user's.
    assert found == [("runtime.py", "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)")]


def test_the_face_is_a_socket_whatever_stands_there(replaced: object) -> None:
    assert issubclass(ss.SharedSocket, PLAIN)
