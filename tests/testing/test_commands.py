"""Every command of the table does in the actor what its name says."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest

from sharedsock.testing import Accepted, Actor, Actors, Raised, Received, Returned
from sharedsock.testing.commands import COMMANDS, Belongings


def _ask(has: Belongings, what: str) -> tuple[str, list[str], str]:
    return has.name, sorted(has.sockets), what


def _serve(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    address = actor.do("listen", "door")
    serving = actor.thread("server").do("serve_clients", on="door")
    actor.wait_until_blocked("server")
    with socket.create_connection(address) as client:
        client.settimeout(60)
        assert client.recv(64, socket.MSG_WAITALL).decode() == actor.name
        own = client.getsockname()
    actor.wait_for(lambda: any(event.kind == "client" for event in actor.events), "the client to be reported")
    assert [event.value for event in actor.events if event.kind == "client"] == [own]
    actor.wait_until_blocked("server")
    actor.close("door")
    assert str(serving.outcome()) == "OperationAborted 10004"


def _accept(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    address = actor.do("listen", "door")
    with socket.create_connection(address) as client:
        assert actor.thread("main").accept("door", into="client").outcome() == Accepted(client.getsockname())
        assert actor.do("send", b"hello", on="client") == 5
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"


def _connect(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        for plain in (True, False):
            own = actor.do("connect", f"out {plain}", door.getsockname(), plain=plain, send_buffer=4096)
            accepted, address = door.accept()
            accepted.close()
            assert address == own


def _receive(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    peer.sendall(b"abcd")
    assert actor.do("recv", 2, socket.MSG_PEEK) == b"ab"
    records = actor.thread("reader").do("receive_records", 2)
    peer.shutdown(socket.SHUT_WR)
    assert records.outcome() == Received(b"")
    assert [event.value for event in actor.events if event.kind == "record"] == [b"ab", b"cd"]


def _receive_all(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    receiving = actor.thread("main").do("receive_all")
    peer.sendall(b"x" * 100_000)
    peer.shutdown(socket.SHUT_WR)
    assert receiving.outcome() == Received(b"x" * 100_000)


def _send(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    actor.sendall(b"all of it")
    assert peer.recv(64) == b"all of it"
    actor.do("shutdown", socket.SHUT_WR)
    assert peer.recv(64) == b""
    assert actor.thread("main").send(b"x").outcome() == Raised("BrokenPipeError", 10058, errno.EPIPE)


def _close(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    for code in ("abort", "close"):
        actor.do(code)
        assert actor.thread("main").recv(1).outcome() == Raised("NotASocket", 10038, errno.EBADF)


def _drop(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    actor.do("listen", "door", plain=True)
    actor.do("close", on="door")
    actor.do("drop", on="door")
    assert actor.do("call_with", _ask, "?") == (actor.name, ["socket"], "?")
    assert actor.thread("main").do("drop", on="door").outcome() == Raised("KeyError")


def _share(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    (other,) = actors.start("other")
    actor.give_to(other)
    assert other.do("references") == actor.do("references")
    assert {holder.pid for holder in other.do("holders")} >= {actor.pid, other.pid}
    assert other.do("facts")[1] == actor.do("facts")[1]
    actor.do("listen", "plain", plain=True)
    assert actor.thread("main").do("share", None, on="plain").outcome() == Raised("TypeError")


def _options(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    actor.do("set_linger", True, 0)
    actor.do("set_timeout", 0.01)
    assert actor.thread("main").recv(1).outcome() == Raised("TimeoutError", 10060)


def _watch(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        actor.do("connect", "out", door.getsockname(), plain=True)
        accepted, _ = door.accept()
        with accepted:
            watching = actor.thread("watch").do("watch", on="out")
            actor.wait_until_asleep("watch")
            assert not watching.is_done()
            accepted.sendall(b"x")
            assert watching.outcome() == Returned(select.POLLIN)


def _calls(actor: Actor, peer: socket.socket, actors: Actors) -> None:
    assert actor.call(divmod, 7, 2) == (3, 1)
    assert actor.do("call", int, "ff", base=16) == 255
    assert actor.do("call", os.getpid) == actor.pid
    assert set(actor.do("thread_names")) >= {"control", "main"}


_EXERCISES: dict[Callable[[Actor, socket.socket, Actors], None], tuple[str, ...]] = {
    _serve: ("listen", "serve_clients"),
    _accept: ("accept", "send"),
    _connect: ("connect",),
    _receive: ("recv", "receive_records"),
    _receive_all: ("receive_all",),
    _send: ("sendall", "shutdown"),
    _close: ("abort", "close"),
    _drop: ("drop", "call_with"),
    _share: ("share", "take", "references", "holders", "facts"),
    _options: ("set_linger", "set_timeout"),
    _watch: ("watch",),
    _calls: ("call", "thread_names"),
}


@pytest.mark.parametrize("exercise", _EXERCISES, ids=lambda exercise: exercise.__name__.strip("_"))
def test_commands(exercise: Callable[[Actor, socket.socket, Actors], None], actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    pair.local.close()
    exercise(actor, pair.peer, actors)


def test_a_pickled_shared_socket_can_be_kept(actors: Actors, pair: Any) -> None:
    (actor,) = actors.start("a")
    actor.do("keep", pair.local)
    pair.peer.sendall(b"x")
    assert actor.recv(1) == b"x"


def test_every_command_is_exercised() -> None:
    assert {code for codes in _EXERCISES.values() for code in codes} | {"keep"} == set(COMMANDS)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        COMMANDS["recv"] = COMMANDS["send"]  # type: ignore[index]  # the point of the test
