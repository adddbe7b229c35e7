"""A receive that always waits takes a shorter way (kernel/conversation.py); all that is promised holds on it as well.

No probe is installed here: with one, every receive takes the long way.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.testing.observation import thread_facts
from tests.descriptors import kinds

TURNS = 20


class Talker:
    """A thread that answers each saying of its peer, until an error or the end."""

    def __init__(self, local: ss.SharedSocket) -> None:
        self.local = local
        self.heard: list[bytes] = []
        self.error: OSError | None = None
        self.thread = threading.Thread(target=self._talk)
        self.thread.start()

    def _talk(self) -> None:
        try:
            while True:
                data = self.local.recv(100)
                self.heard.append(data)
                if not data:
                    return
                self.local.sendall(b"heard")
        except OSError as error:
            self.error = error

    def wait_blocked(self) -> None:
        assert self.thread.native_id is not None
        while not (self.local.pending_operations() and thread_facts(os.getpid(), self.thread.native_id).is_waiting):
            os.sched_yield()

    def join(self) -> int:
        """Wait for its end; return the WSA number of its error, 0 for none."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return 0 if self.error is None else getattr(self.error, "winerror", -1)


@contextmanager
def talking(kind: str = "tcp4") -> Iterator[tuple[Talker, socket.socket]]:
    """A conversation under way, blocked in its next receive."""
    assert trace.hook is None
    with kinds.pair_of(kind) as pair:
        talker = Talker(pair.local)
        for number in range(TURNS):
            talker.wait_blocked()
            pair.peer.send(b"%d" % number)
            assert pair.peer.recv(100) == b"heard"
        talker.wait_blocked()
        yield talker, pair.peer
        pair.local.abort()
        talker.join()


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-20")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "udp4"])
def test_a_close_ends_it_with_10004(kind: str) -> None:
    with talking(kind) as (talker, peer):
        twin = talker.local.dup()
        talker.local.close()
        assert talker.join() == 10004
        assert isinstance(talker.error, ss.OperationAborted)
        assert kinds.is_silent(peer), "another descriptor is open"
        peer.send(b"for the twin")
        assert twin.recv(100) == b"for the twin"
        twin.close()


@pytest.mark.rule("SHUT-2")
@pytest.mark.parametrize("has_arrived", [False, True])
def test_after_sd_receive_it_is_10058_whatever_has_arrived(has_arrived: bool) -> None:
    with kinds.pair_of("tcp4") as pair:
        for number in range(TURNS):
            threading.Timer(0, pair.peer.sendall, (b"%d" % number,)).start()
            assert pair.local.recv(100) == b"%d" % number
        if has_arrived:
            pair.peer.sendall(b"unread")
            kinds.wait_event(pair.local)
        pair.local.shutdown(socket.SHUT_RD)
        for _ in range(3):
            with pytest.raises(BrokenPipeError) as caught:
                pair.local.recv(100)
            assert caught.value.winerror == 10058  # type: ignore[attr-defined]  # typeshed: Windows only


ENDS: dict[str, tuple[Callable[[ss.SharedSocket, socket.socket], object], int]] = {
    "FIN": (lambda local, peer: peer.shutdown(socket.SHUT_WR), 0),
    "reset": (lambda local, peer: (kinds.set_linger(peer, 0), peer.close()), 10054),  # type: ignore[func-returns-value]
    "our SD_RECEIVE": (lambda local, peer: local.shutdown(socket.SHUT_RD), 10058),
    "our SD_BOTH": (lambda local, peer: local.shutdown(socket.SHUT_RDWR), 10058),
}


@pytest.mark.rule("SHUT-13", "SHUT-14", "SHUT-2", "DUP-18")
@pytest.mark.parametrize("how", ENDS)
def test_its_end_is_told_by_its_right_name(how: str) -> None:
    end, number = ENDS[how]
    with talking() as (talker, peer):
        end(talker.local, peer)
        assert talker.join() == number
        assert (talker.heard[-1] == b"") == (how == "FIN")


@pytest.mark.fault("F-40")
def test_what_another_descriptor_has_taken_is_waited_for_again() -> None:
    with talking() as (talker, peer), talker.local.dup() as twin:
        for _ in range(50):
            peer.sendall(b"whose")
            twin.setblocking(False)
            try:
                assert twin.recv(100) == b"whose"
            except BlockingIOError:
                assert peer.recv(100) == b"heard"
        talker.wait_blocked()
        assert talker.error is None


@pytest.mark.fault("F-47")
def test_a_change_of_terms_begins_another() -> None:
    """Another size, flags, a timeout: none of them may inherit what was agreed on before."""
    with kinds.pair_of("tcp4") as pair:
        for size in (100, 3, 100, 2, 50):
            threading.Timer(0, pair.peer.sendall, (b"0123456789",)).start()
            first = pair.local.recv(size)
            assert len(first) <= size
            rest = b""
            while len(first + rest) < 10:
                rest += pair.local.recv(100)
            assert first + rest == b"0123456789"
        pair.local.settimeout(0.01)
        with pytest.raises(TimeoutError):
            pair.local.recv(50)
        pair.local.setblocking(False)
        with pytest.raises(BlockingIOError):
            pair.local.recv(50)
