"""Every kind of socket is counted alike: by descriptors and tickets, from the first share to the end of the last one.

I1 and the behaviour of each kind are `test_sharing_kinds`'s; here I2 and I3, in the registry's books and the kernel's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import sharedsock as ss
from sharedsock.testing import Actors
from sharedsock.testing.observation import socket_inodes
from tests.descriptors.kinds import DATAGRAM_KINDS, LISTENER_KINDS, STREAM_KINDS, listener_of, pair_of
from tests.descriptors.sharers import wait_until

Open = Callable[[Path], AbstractContextManager[ss.SharedSocket]]


@contextmanager
def _connected(kind: str, _: Path) -> Iterator[ss.SharedSocket]:
    with pair_of(kind) as pair:
        yield pair.local


def _listening(kind: str, _: Path) -> AbstractContextManager[ss.SharedSocket]:
    return listener_of(kind)


@contextmanager
def _unconnected(family: int, kind: int, name: object = None) -> Iterator[ss.SharedSocket]:
    with ss.SharedSocket(family, kind) as made:
        if name is not None:
            made.bind(name)
        yield made


OPENINGS: Final[dict[str, Open]] = {
    **{f"connected {kind}": partial(_connected, kind) for kind in (*STREAM_KINDS, *DATAGRAM_KINDS)},
    **{f"listening {kind}": partial(_listening, kind) for kind in (*LISTENER_KINDS, "unix-seqpacket")},
    "unconnected tcp4": lambda _: _unconnected(socket.AF_INET, socket.SOCK_STREAM),
    "unconnected tcp6": lambda _: _unconnected(socket.AF_INET6, socket.SOCK_STREAM),
    "unconnected unix-stream": lambda _: _unconnected(socket.AF_UNIX, socket.SOCK_STREAM),
    "unconnected udp4": lambda _: _unconnected(socket.AF_INET, socket.SOCK_DGRAM),
    "bound udp6": lambda _: _unconnected(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
    "path of a unix-dgram": lambda path: _unconnected(socket.AF_UNIX, socket.SOCK_DGRAM, str(path / "name")),
    "path of a unix-stream": lambda path: _unconnected(socket.AF_UNIX, socket.SOCK_STREAM, str(path / "name")),
    "abstract name": lambda _: _unconnected(socket.AF_UNIX, socket.SOCK_DGRAM, b"\0sharedsock-tests-%d" % os.getpid()),
}


@pytest.mark.fault("F-17", "F-18")
@pytest.mark.rule("REF-1", "REF-2", "DUP-12", "DUP-13")
@pytest.mark.parametrize("opening", OPENINGS)
def test_each_kind_is_counted_to_its_end(registry: ss.Registry, actors: Actors, opening: str, tmp_path: Path) -> None:
    """A descriptor here, one there, a ticket for a third: each goes by itself, and then nobody has the socket."""
    holder, target = actors.start("holder", "target")
    with OPENINGS[opening](tmp_path) as ours:
        inode = os.fstat(ours.fileno()).st_ino
        holder.do("take", ours.share(holder.pid))
        assert ours.references() == 2
        ours.share(target.pid)
        assert ours.references() == 3
        ours.close()
        assert holder.do("references") == 2
        assert inode in socket_inodes(registry.client.pid), "the ticket's, in custody"
        target.kill()
        wait_until(lambda: holder.do("references") == 1, "the ticket to go with its target")
        assert inode not in socket_inodes(registry.client.pid)
        holder.kill()
        wait_until(lambda: registry.client.sockets() == (), "the last reference to go")


@pytest.mark.fault("F-17", "F-12")
@pytest.mark.rule("REF-3", "DUP-12")
@pytest.mark.parametrize("opening", OPENINGS)
def test_each_kind_lives_in_a_ticket_alone(registry: ss.Registry, actors: Actors, opening: str, tmp_path: Path) -> None:
    """Nobody has it but the ticket; redeemed it is the same socket; closed there it is nobody's."""
    (target,) = actors.start("target")
    with OPENINGS[opening](tmp_path) as ours:
        inode, name = os.fstat(ours.fileno()).st_ino, ours.getsockname()
        info = ours.share(target.pid)
        ours.close()
        assert [count for _, count in registry.client.sockets()] == [1]
        target.do("take", info)
        assert target.do("facts")[1] == inode
        assert target.do("references") == 1
        target.close()
        assert registry.client.sockets() == ()
        assert inode not in socket_inodes(target.pid) | socket_inodes(registry.client.pid)
        if isinstance(name, str) and name and opening.startswith(("listening", "path of a unix-dgram")):
            assert not os.path.exists(name), "its path has gone with it"
