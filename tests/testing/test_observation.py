"""What is read from /proc is what the processes did."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest

from sharedsock.testing import Actors, observation
from sharedsock.testing.observation import children, files, socket_inodes, tcp_sockets, thread_facts, threads


def test_one_inode_is_one_socket_in_every_process(actors: Actors, pair: Any) -> None:
    a, b = actors.share(pair.local)
    inode = os.fstat(pair.local.fileno()).st_ino
    for pid in (os.getpid(), a.pid, b.pid):
        assert inode in socket_inodes(pid)
    a.close()
    assert inode not in socket_inodes(a.pid)
    assert inode in socket_inodes(b.pid)


def test_queues_of_a_connection_are_seen_from_outside(pair: Any) -> None:
    pair.peer.sendall(b"12345")
    near, far = pair.local.getsockname()[1], pair.peer.getsockname()[1]
    (found,) = [one for one in tcp_sockets() if (one.local_port, one.remote_port) == (near, far)]
    assert (found.state, found.unread_bytes, found.unsent_bytes) == (1, 5, 0)
    assert found.inode == os.fstat(pair.local.fileno()).st_ino


def test_a_listener_over_ipv6_is_seen_among_its_own() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as door:
        port = door.getsockname()[1]
        found = {one.local_port: one for one in tcp_sockets(socket.AF_INET6)}
        assert found[port].inode == os.fstat(door.fileno()).st_ino
        assert port not in {one.local_port for one in tcp_sockets() if one.inode == found[port].inode}


def test_threads_files_and_children_are_those_of_the_process(actors: Actors) -> None:
    (actor,) = actors.start("a")
    assert actor.pid in children(os.getpid())
    assert threading.get_native_id() in threads(os.getpid())
    before = files(os.getpid())
    left, right = socket.socketpair()
    with left, right:
        new = files(os.getpid()).keys() - before.keys()
        assert new == {left.fileno(), right.fileno()}
    actor.kill()
    assert threads(actor.pid) == ()
    assert files(actor.pid) == {}


def test_a_look_at_a_thread_that_moves_meanwhile_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asleep before and after: a look that mixed the two would differ from the next of a thread that only waits."""
    switches = [6]

    def read(path: str) -> str:
        match path.rpartition("/")[2]:
            case "status":
                return f"voluntary_ctxt_switches:\t{switches[0]}\nnonvoluntary_ctxt_switches:\t0\n"
            case "stat":
                return "1 (a) S" + " 0" * 20
            case _:
                switches[0] = 7  # it was asleep for a lock, and now is where it waits
                return "7 0x0\n" if observation._NAMES is observation._ON_X86 else "73 0x0\n"

    monkeypatch.setattr(observation, "_read", read)
    facts = thread_facts(1, 1)
    assert facts.is_waiting
    assert facts.switches == (7, 0)
