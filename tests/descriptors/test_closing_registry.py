"""Closing without a registry: dead, hung, silent, replaced. The local half of a close never waits for it; the other
half waits T_rpc at most, and then the kernel's rule ends the socket.

Source: DESIGN.md 5 ("registry dies"); spec/fault-catalogue.md, F-02, F-60, F-63, F-74, F-80.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.registry import connect
from sharedsock.registry.client import Client
from sharedsock.testing import Aborted, Actors, Raised, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors import kinds, sharers

SHORT_S = 0.3


class Own:
    """A registry of one test, with a company in it, and ways to be rid of it."""

    def __init__(self, registry: ss.Registry, actors: Actors) -> None:
        self.registry = registry
        self.pid = registry.client.pid
        self.a, self.b = actors.start("A", "B")
        self._pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        """SIGKILL it, and return when it is dead."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        assert select.select([self._pidfd], [], [], 60)[0]

    def stop(self) -> None:
        """SIGSTOP it, and return when it has stopped."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
        while " T " not in Path(f"/proc/{self.pid}/stat").read_text():
            os.sched_yield()

    def cont(self) -> None:
        """Let it go on."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def dispose(self) -> None:
        """Leave nothing of it."""
        self.kill()
        os.close(self._pidfd)
        shutil.rmtree(self.registry.runtime, ignore_errors=True)  # its own end would have done it

    def give(self, shared: ss.SharedSocket) -> None:
        """Hand a socket to both actors, and our own reference up."""
        for actor in (self.a, self.b):
            actor.do("take", shared.share(actor.pid))
        shared.close()


@pytest.fixture
def own() -> Iterator[Own]:
    with ss.Registry() as registry, Actors("fork") as actors:
        made = Own(registry, actors)
        try:
            yield made
        finally:
            made.dispose()
    registry.client.close()


def shorten_rpc(has: Belongings) -> None:
    """In an actor: bound every registry call by a time a test can wait for."""
    client = has.shared("socket")._descriptor.client
    assert client is not None
    client.rpc_timeout_s = SHORT_S


@pytest.mark.fault("F-60")
@pytest.mark.rule("CLOSE-1", "CLOSE-6", "CLOSE-11", "CLOSE-20")
@pytest.mark.parametrize("state", ["killed", "stopped"])
def test_a_close_ends_locally_at_once_and_returns_within_t_rpc_without_a_registry(
    state: str, own: Own, bounds: Any
) -> None:
    a, b = own.a, own.b
    with kinds.pair_of("tcp4") as pair:
        own.give(pair.local)
        a.do("call_with", shorten_rpc)
        ours, theirs = a.thread("caller").recv(16), b.thread("caller").recv(16)
        a.wait_until_blocked("caller")
        asleep = b.wait_until_blocked("caller")
        own.kill() if state == "killed" else own.stop()
        closing = a.thread("closer").close()
        assert ours.outcome() == Aborted(10004)
        bounds.check("T_abort", ours.ended_s - closing.began_s)
        assert closing.outcome() == Returned(), "a close answers 0 or a documented code; losing the registry is none"
        # T_rpc, which is short here, once for the whole close.
        bounds.check("T_dead", closing.ended_s - closing.began_s - (0 if state == "killed" else SHORT_S))
        assert b.wait_until_blocked("caller") == asleep
        assert kinds.is_silent(pair.peer)
        pair.peer.sendall(b"still here")
        assert theirs.value() == b"still here"
        own.kill()
        b.close()
        assert pair.peer.recv(1) == b"", "the last file is closed: the kernel's rule"


@pytest.mark.fault("F-60", "F-78")
def test_after_a_registry_that_hung_the_count_is_true_again_with_the_next_call(own: Own) -> None:
    a, b = own.a, own.b
    with kinds.pair_of("tcp4") as pair, kinds.pair_of("tcp4") as other:
        own.give(pair.local)
        a.do("take", other.local.share(a.pid), on="other")
        a.do("call_with", shorten_rpc)
        own.stop()
        a.close()
        own.cont()
        a.close(on="other")
        assert b.do("references") == 1
        b.close()


@pytest.mark.fault("F-60", "F-66")
@pytest.mark.rule("LINGER-3")
def test_a_hard_linger_needs_no_registry(own: Own) -> None:
    """It stands on the kernel socket from the start."""
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        own.give(pair.local)
        own.kill()
        own.a.close()
        assert kinds.is_silent(pair.peer)
        own.b.close()
        assert kinds.is_reset(pair.peer)


@pytest.mark.fault("F-60")
@pytest.mark.parametrize("point", ["close.marked", "close.fd_closed", "close.last", "close.linger"])
def test_a_registry_killed_in_the_middle_of_a_close_does_not_keep_it(point: str, own: Own) -> None:
    with kinds.pair_of("tcp4") as pair:
        own.a.do("take", pair.local.share(own.a.pid))
        pair.local.close()
        with own.a.hold_at(point) as held:
            closing = own.a.thread("closer").close()
            held.wait_reached()
            own.kill()
        assert closing.outcome() == Returned()
        assert pair.peer.recv(1) == b""
        assert own.a.thread("closer").recv(1).outcome() == Raised("NotASocket", 10038, 9)


@pytest.mark.fault("F-63")
def test_an_end_close_that_is_doubled_counts_once(own: Own) -> None:
    a, b = own.a, own.b
    with kinds.pair_of("tcp4") as pair:
        own.give(pair.local)
        a.call(double_end_close)
        a.close()
        assert b.do("references") == 1
        b.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.fault("F-63")
def test_an_end_close_that_is_lost_is_made_up_for_by_the_end_of_its_process(own: Own, bounds: Any) -> None:
    a, b = own.a, own.b
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 0)
        own.give(pair.local)
        a.call(lose_end_close)
        a.close()
        assert b.do("references") == 2, "never below the truth"
        killed_s = a.kill()
        closing = b.thread("closer").close()
        assert closing.outcome() == Returned()
        bounds.check("T_reap", closing.ended_s - killed_s)
        assert kinds.is_reset(pair.peer)


def double_end_close() -> None:
    """In an actor: send each end-close twice."""
    end_close = Client.end_close

    def twice(client: Client, descriptor: Any) -> None:
        end_close(client, descriptor)
        end_close(client, descriptor)

    Client.end_close = twice  # type: ignore[method-assign, assignment]  # in that process alone


def lose_end_close() -> None:
    """In an actor: send no end-close."""
    Client.end_close = lambda client, descriptor: None  # type: ignore[method-assign, assignment]  # in that process alone


# -- without one from the start -----------------------------------------------------------------------------------


@pytest.mark.fault("F-02")
@pytest.mark.rule("CLOSE-1", "CLOSE-6")
@pytest.mark.parametrize("why", ["nobody there", "nobody listens"])
def test_a_registry_that_cannot_be_reached_is_10050_and_leaves_the_socket_as_it_was(
    why: str, own: Own, bounds: Any
) -> None:
    with kinds.pair_of("tcp4") as pair, pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as gone:
        if why == "nobody there":
            # The list itself stays: handles of other fixtures take themselves out of it when they end.
            current = connect._current.copy()
            connect._current.clear()
            gone.callback(connect._current.extend, current)
            monkeypatch.setenv(connect.REGISTRY_VARIABLE, "/nonexistent/sharedsock-none")
        else:
            own.kill()
        number = pair.local.fileno()
        for call in (lambda: pair.local.share(os.getpid()), pair.local.ticket, pair.local.dup):
            began_s = monotonic()
            with pytest.raises(ss.RegistryGone) as caught:
                call()
            bounds.check("T_rpc", monotonic() - began_s)
            assert caught.value.winerror == 10050
        assert (pair.local.fileno(), pair.local.references()) == (number, 1)
        pair.local.sendall(b"still mine")
        assert pair.peer.recv(16) == b"still mine"
        pair.local.close()
        assert pair.peer.recv(1) == b""


# -- idle ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-74")
@pytest.mark.rule("CLOSE-28")
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "udp4"])
def test_sockets_go_on_without_their_registry(kind: str, own: Own) -> None:
    a, b = own.a, own.b
    with kinds.pair_of(kind) as pair:
        own.give(pair.local)
        reading = b.thread("caller").recv(16)
        b.wait_until_blocked("caller")
        own.kill()
        pair.peer.send(b"to B")
        assert reading.value() == b"to B"
        for actor in (a, b):
            actor.do("send", b"from one of them")
            assert pair.peer.recv(100) == b"from one of them"
        assert a.thread("sharer").do("share", b.pid).outcome() == Raised("RegistryGone", 10050, 100)
        for actor in (a, b):
            assert actor.thread("closer").close().outcome() == Returned()


@pytest.mark.fault("F-74")
@pytest.mark.rule("SHUT-2", "SHUT-14")
def test_what_an_empty_receive_means_is_known_without_a_registry(own: Own) -> None:
    with kinds.pair_of("tcp4") as pair, kinds.pair_of("tcp4") as other:
        own.give(pair.local)
        own.a.do("take", other.local.share(own.a.pid), on="other")
        own.kill()
        own.a.thread("caller").do("shutdown", socket.SHUT_RD).outcome()
        assert own.a.thread("caller").recv(1).outcome() == Raised("BrokenPipeError", 10058, 108)
        kinds.set_linger(other.peer, 0)
        other.peer.close()
        for _ in range(2):
            outcome = own.a.thread("caller").recv(1, on="other").outcome()
            assert outcome == Raised("ConnectionResetError", 10054, 104)
        own.a.close(on="other")


def tree_of_its_own(directory: str) -> dict[str, str | None]:
    """The environment of processes that share a default registry with nobody else."""
    return {
        "XDG_RUNTIME_DIR": directory,
        "SHAREDSOCK_TREE": os.path.join(directory, f"sharedsock-{os.urandom(16).hex()}"),
        connect.REGISTRY_VARIABLE: None,
    }


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Actors]:
    """A company with a default registry of its own, which its first share starts."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    with Actors("fork", environment=tree_of_its_own(str(directory))) as actors:
        yield actors


def registry_pid(has: Belongings) -> int:
    """In an actor: the registry that counts its socket."""
    client = has.shared("socket")._descriptor.client
    assert client is not None
    return client.pid


def kill(pid: int) -> None:
    """SIGKILL a registry that is nobody's child, and return when it is dead."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


@pytest.mark.fault("F-74")
def test_the_next_share_starts_a_dead_default_registry_again(tree: Actors) -> None:
    a, b = tree.start("A", "B")
    with socket.create_server(("127.0.0.1", 0)) as door:
        a.do("connect", "socket", door.getsockname())
        peer, _ = door.accept()
        with peer:
            a.give_to(b)
            first = a.do("call_with", registry_pid)
            kill(first)
            b.close()
            a.give_to(b)
            assert a.do("call_with", registry_pid) != first
            assert a.do("references") == 2
            a.close()
            assert kinds.is_silent(peer)
            b.close()
            assert peer.recv(1) == b""


@pytest.mark.fault("F-80")
@pytest.mark.parametrize(
    ("order", "end"), [("starter first", "exits"), ("starter first", "is killed"), ("other first", "exits")]
)
def test_a_registry_outlives_its_starter_while_somebody_holds_and_then_ends_by_itself(
    order: str, end: str, tree: Actors, tmp_path: Path, bounds: Any
) -> None:
    a, b = tree.start("A", "B")
    with socket.create_server(("127.0.0.1", 0)) as door:
        a.do("connect", "socket", door.getsockname())
        peer, _ = door.accept()
        with peer:
            a.give_to(b)
            pidfd = os.pidfd_open(a.do("call_with", registry_pid))
            first, second = (a, b) if order == "starter first" else (b, a)
            first.kill() if end == "is killed" else first.exit()
            bounds.check("T_reap", sharers.wait_until(lambda: second.do("references") == 1, "the death to be counted"))
            assert kinds.is_silent(peer)
            second.kill() if end == "is killed" else second.exit()
            ended_s = monotonic()
            assert select.select([pidfd], [], [], 60)[0]
            bounds.check("T_exit", monotonic() - ended_s)  # of the last reference and client
            os.close(pidfd)
            assert peer.recv(1) == b""
            assert not list((tmp_path / "run").iterdir()), "nothing is left"


@pytest.mark.fault("F-60")
def test_closes_of_many_threads_wait_for_a_hung_registry_side_by_side(own: Own) -> None:
    """T_rpc for all of them together, not one after the other."""
    with kinds.pair_of("tcp4") as pair:
        own.give(pair.local)
        own.a.do("call_with", many_twins, 8)
        own.a.do("call_with", shorten_rpc)
        own.stop()
        took_s = own.a.do("call_with", close_twins)
        assert took_s < 8 * SHORT_S / 2
        own.cont()
        own.a.close()
        own.b.close()


_twins: list[ss.SharedSocket] = []


def many_twins(has: Belongings, count: int) -> None:
    """In an actor: open more descriptors on its socket."""
    _twins.extend(has.shared("socket").dup() for _ in range(count))


def close_twins(has: Belongings) -> float:
    """In an actor: close them all, each in a thread; return how long that took."""
    closers: list[threading.Thread] = [threading.Thread(target=twin.close) for twin in _twins]
    began_s = monotonic()
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    return monotonic() - began_s
