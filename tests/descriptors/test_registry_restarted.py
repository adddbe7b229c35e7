"""A registry is killed and another takes its place: who holds sockets announces them again, though it calls nobody.

Source: spec/fault-catalogue.md, F-74, F-76, F-77; rule 7, rule 16.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import lending, service
from sharedsock.descriptors.providing import spelled
from sharedsock.registry import connect
from sharedsock.registry.client import T_RPC_S, Client
from sharedsock.registry.numbers import noted_numbers
from sharedsock.testing import Actor, Actors, Checkers, Raised, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors import kinds, requests, sharers
from tests.stdlib_helpers import stop_helpers


class Company:
    """Actors of two start methods in one tree of processes, which has a default registry."""

    def __init__(self, forked: Actors, spawned: Actors) -> None:
        self.a, self.b = forked.start("A", "B")
        (self.c,) = spawned.start("C")
        self.all = (self.a, self.b, self.c)
        self.forked = forked

    def give_round(self, door: socket.socket, linger_s: int | None = None) -> socket.socket:
        """Have A connect and share with the others; return the peer's end."""
        self.a.do("connect", "socket", door.getsockname())
        peer, _ = door.accept()
        if linger_s is not None:
            self.a.do("set_linger", True, linger_s)
        for other in (self.b, self.c):
            self.a.give_to(other)
        for actor in self.all:
            actor.do("call_with", note_answers)
        return peer

    def kill_registry(self) -> int:
        """SIGKILL it, and return its pid when it is dead."""
        pid: int = self.b.do("call_with", registry_pid)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)
        return pid

    def told(self) -> list[bool]:
        """What the closers have been told, all of them."""
        return sorted(answer for actor in self.all if actor.is_alive for answer in actor.do("call", answers))


def registry_pid(has: Belongings) -> int:
    """In an actor: the registry that counts its socket."""
    client = has.shared("socket")._descriptor.client
    assert client is not None
    return client.pid


_answers: list[bool] = []


def note_answers(has: Belongings) -> None:
    """In an actor: keep what each begin-close is told."""
    begin_close = Client.begin_close

    def noted(client: Client, descriptor: Any) -> bool:
        answer = begin_close(client, descriptor)
        _answers.append(answer)
        return answer

    Client.begin_close = noted  # type: ignore[method-assign, assignment]  # in that process alone


def answers() -> list[bool]:
    return _answers


@pytest.fixture
def registry_of_our_own() -> Iterator[ss.Registry]:
    with ss.Registry() as registry:
        yield registry


def wait_count(actor: Actor, count: int) -> float:
    """Wait until an actor is told so many references; return how long it took."""
    return sharers.wait_until(lambda: actor.do("references") == count, f"{count} references")


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    environment = {
        "XDG_RUNTIME_DIR": str(directory),
        "SHAREDSOCK_TREE": str(directory / f"sharedsock-{os.urandom(16).hex()}"),
        connect.REGISTRY_VARIABLE: None,
    }
    with Actors("fork", environment=environment) as forked, Actors("spawn", environment=environment) as spawned:
        yield Company(forked, spawned)
    began_s = monotonic()
    while any(directory.iterdir()):
        assert monotonic() - began_s < 60, f"left behind: {list(directory.rglob('*'))}"
    stop_helpers()


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.mark.fault("F-74", "F-76")
@pytest.mark.rule("REF-1", "REF-5", "LINGER-7", "LINGER-12")
def test_holders_that_call_nobody_are_counted_again_and_exactly_one_is_last(company: Company, door: Any) -> None:
    """B and C only hold the socket. A shares it once more, which starts a registry: it calls them, and they come."""
    a, b, c = company.all
    with company.give_round(door, linger_s=1) as peer:
        dead = company.kill_registry()
        (d,) = company.forked.start("D")
        a.give_to(d)
        assert a.do("call_with", registry_pid) != dead
        wait_count(a, 4)
        assert sorted(holder.pid for holder in a.do("holders")) == sorted(actor.pid for actor in (a, b, c, d))
        d.do("call_with", note_answers)
        for actor in (a, d, b):
            actor.close()
        assert kinds.is_silent(peer)
        queued = fill(c)
        closing = c.thread("closer").close()
        assert closing.outcome() == Returned()
        assert closing.ended_s - closing.began_s > 0.9, "the linger time that A had set before the crash"
        received = 0
        with pytest.raises(ConnectionResetError):
            while data := peer.recv(1 << 16):
                received += len(data)
        assert received < queued
        assert sorted([*company.told(), *d.do("call", answers)]) == [False, False, False, True]


def fill(actor: Actor) -> int:
    """Send from an actor what its peer does not take in; return how many bytes."""
    actor.do("set_timeout", 0.0)
    sent = 0
    while isinstance(outcome := actor.thread("sender").do("send", b"x" * 65536).outcome(), Returned):
        sent += outcome.value
    assert isinstance(outcome, Raised)
    actor.do("set_timeout", None)
    return sent


@pytest.mark.fault("F-76")
@pytest.mark.parametrize("then", ["goes on", "is killed"])
def test_nobody_is_told_last_while_a_holder_is_missing(company: Company, door: Any, then: str) -> None:
    a, b, c = company.all
    with company.give_round(door) as peer:
        c.stop()
        company.kill_registry()
        assert a.do("references") >= 1, "this starts another"
        wait_count(a, 2)
        a.close()
        closing = b.thread("closer").close()
        b.wait_until_asleep("closer")
        assert kinds.is_silent(peer)
        if then == "is killed":
            c.kill()
            assert closing.outcome() == Returned()
            assert company.told() == [False, True]
        else:
            c.cont()
            assert closing.outcome() == Returned()
            assert company.told() == [False, False]
            c.close()
            assert company.told() == [False, False, True]
        assert peer.recv(1) == b""


@pytest.mark.fault("F-74", "F-60")
@pytest.mark.rule("CLOSE-11", "LINGER-3")
def test_a_close_under_way_is_answered_by_the_registry_that_took_the_place(company: Company, door: Any) -> None:
    """A was closing when the registry died. It is counted all the same, and B and C hear nothing false of it."""
    a, b, c = company.all
    with company.give_round(door) as peer:
        with a.hold_at("close.fd_closed") as held:
            closing = a.thread("closer").close()
            held.wait_reached()
            company.kill_registry()
            assert b.do("references") >= 1
            wait_count(b, 3)
        assert closing.outcome() == Returned()
        wait_count(b, 2)
        for actor in (b, c):
            actor.close()
        assert company.told() == [False, False, True]
        assert peer.recv(1) == b""


@pytest.mark.fault("F-76")
def test_what_the_sharers_agreed_on_outlives_the_registry(company: Company, door: Any) -> None:
    """A set it, and is gone before anybody announces again: B and C know it from the dead registry's page."""
    a, b, c = company.all
    with company.give_round(door, linger_s=30) as peer:
        peer.shutdown(socket.SHUT_WR)
        b.thread("caller").do("shutdown", socket.SHUT_RD).outcome()
        dead = b.do("call_with", registry_pid)
        company.kill_registry()
        a.kill()
        assert b.do("references") >= 1
        wait_count(b, 2)
        assert b.do("call_with", registry_pid) != dead
        for actor in (b, c):
            assert actor.do("call_with", common_of) == (30, True)
            assert actor.thread("caller").recv(1).outcome() == Raised("BrokenPipeError", 10058, 108)
            actor.close()


def common_of(has: Belongings) -> tuple[int | None, bool]:
    """In an actor: what its registry's page shows."""
    descriptor = has.shared("socket")._descriptor
    assert descriptor.client is not None
    state = descriptor.client.common(descriptor.slot)
    return state.linger_s, state.shut_receive


@pytest.mark.fault("F-76", "F-26")
def test_tickets_are_gone_with_their_registry_and_their_references_as_well(company: Company, door: Any) -> None:
    a, b, _ = company.all
    with company.give_round(door):
        ticket = a.do("share", b.pid)
        assert a.do("references") == 4
        company.kill_registry()
        assert a.do("references") >= 1
        wait_count(a, 3)
        assert b.thread("taker").do("take", ticket, on="other").outcome() == Raised("TicketInvalid", 10022, 22)


@pytest.mark.fault("F-76", "F-116")
def test_a_holder_answers_after_a_fork_as_before(company: Company, door: Any) -> None:
    """The service thread is stopped for a fork, and there again behind it; the child answers for nobody."""
    a, b, _ = company.all
    with company.give_round(door):
        b.do("call", fork_a_child)
        company.kill_registry()
        assert a.do("references") >= 1
        wait_count(a, 3)
        b.do("call", end_child)


_children: list[tuple[int, int]] = []


def fork_a_child() -> None:
    """In an actor: fork, and let the child sleep."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        os.read(out, 1)
        os._exit(0)
    os.close(out)
    _children.append((child, into))


def end_child() -> None:
    child, into = _children.pop()
    os.close(into)
    os.waitpid(child, 0)


@pytest.mark.fault("F-60", "F-78")
def test_after_a_registry_that_hung_the_count_is_true_without_another_call(bounds: Any) -> None:
    """The closer waited T_rpc for its answer; what it owes is in the channel, and is read when the registry goes on."""
    with ss.Registry() as registry, Actors("fork") as actors, kinds.pair_of("tcp4") as pair:
        a, b = actors.start("A", "B")
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        pair.local.close()
        a.do("call_with", shorten_rpc)
        pid = registry.client.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert a.thread("closer").close().outcome() == Returned()
        finally:
            os.kill(pid, signal.SIGCONT)
        bounds.check("T_reap", wait_count(b, 1))
        b.close()
        assert pair.peer.recv(1) == b""


def shorten_rpc(has: Belongings) -> None:
    client = has.shared("socket")._descriptor.client
    assert client is not None
    client.rpc_timeout_s = 0.2


# -- what is lent -----------------------------------------------------------------------------------------------------


@contextmanager
def borrower() -> Iterator[subprocess.Popen[bytes]]:
    """A program that knows nothing of us, and ends when it is told to."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as program:
        try:
            yield program
        finally:
            program.kill()


def lend(has: Belongings, pid: int) -> None:
    has.shared("socket").lend(pid)


def lent(actor: Actor) -> list[tuple[int, float]]:
    """To whom the actor's socket is lent, and since when."""
    return [(holder.pid, holder.since_s) for holder in actor.do("holders") if holder.kind == "lent"]


@pytest.mark.fault("F-76", "I2")
@pytest.mark.parametrize("lender", ["holds on", "has closed"])
def test_what_is_lent_is_counted_again_and_nobody_is_last_before_its_end(
    company: Company, door: Any, lender: str
) -> None:
    """Only the lender knows of it; the borrower's end is the end of it, at the next registry as at the first."""
    a, b, c = company.all
    with company.give_round(door) as peer, borrower() as program:
        a.do("call_with", lend, program.pid)
        before = lent(b)
        assert [pid for pid, _ in before] == [program.pid]
        if lender == "has closed":
            a.close()
        company.kill_registry()
        assert b.do("references") >= 1
        sharers.wait_until(lambda: lent(b) == before, "the loan to be told")
        wait_count(b, 4 if lender == "holds on" else 3)
        for actor in (c, a):
            actor.close()
        wait_count(b, 2)
        assert [holder.kind for holder in b.do("holders")].count("lent") == 1
        assert not any(company.told()), "the borrower uses it still"
        program.kill()
        program.wait()
        wait_count(b, 1)
        b.close()
        assert company.told().count(True) == 1
        assert peer.recv(1) == b""


@pytest.mark.fault("F-76", "F-13")
@pytest.mark.parametrize("lender", ["holds on", "has closed"])
def test_a_borrower_that_died_with_the_registry_is_not_counted_again(company: Company, door: Any, lender: str) -> None:
    a, b, _ = company.all
    with company.give_round(door) as peer, borrower() as program:
        a.do("call_with", lend, program.pid)
        if lender == "has closed":
            a.close()
        company.kill_registry()
        program.kill()
        program.wait()
        holders = [actor for actor in company.all if actor is not a or lender == "holds on"]
        assert b.do("references") >= 1
        sharers.wait_until(lambda: a.call(loans) == 0, "the loan to be forgotten")
        wait_count(b, len(holders))
        assert lent(b) == []
        for actor in holders:
            actor.close()
        assert company.told().count(True) == 1
        assert peer.recv(1) == b""


def loans() -> int:
    return len(lending._loans)


def test_loans_that_have_ended_are_forgotten_in_time(registry_of_our_own: ss.Registry) -> None:
    """Whoever lends a socket to one program after the other keeps no list of all of them."""
    ours, peer = ss.socketpair()
    with ours, peer:
        for _ in range(lending._WORTH_PRUNING + 1):
            with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as program:
                ours.lend(program.pid)
        assert loans() == 1
    lending.forget_all()


# -- the holder's pipe ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-76")
def test_who_holds_nothing_any_more_is_not_waited_for(company: Company, door: Any) -> None:
    """A keeps its channel and its pipe. The next registry calls it, and hears at once that there is nothing."""
    a, b, c = company.all
    with company.give_round(door) as peer:
        a.close()
        company.kill_registry()
        assert b.do("references") >= 1
        wait_count(b, 2)
        began_s = monotonic()
        for actor in (b, c):
            actor.close()
        assert monotonic() - began_s < T_RPC_S
        assert company.told() == [False, False, True]
        assert peer.recv(1) == b""


def test_pipe_and_thread_are_made_once_and_go_with_the_channel() -> None:
    """A socket that is taken and closed again and again costs neither each time."""
    requests.wait_service_idle()
    before = noted_numbers()
    with ss.Registry() as registry:
        seen = set()
        for _ in range(3):
            with Checkers.only("threads", "descriptors"), kinds.pair_of("tcp4") as pair:
                with ss.fromshare(pair.local.share(os.getpid())):
                    assert requests.service_threads() == [service.kept_thread()]
            (name,) = [name for name in os.listdir(registry.runtime) if name.startswith("holder.")]
            seen.add((os.stat(os.path.join(registry.runtime, name)).st_ino, service.kept_thread()))
        assert len(seen) == 1
        registry.client.rest()
        assert not [name for name in os.listdir(registry.runtime) if name.startswith("holder.")]
        assert service.kept_thread() is None
    requests.wait_service_idle()
    assert noted_numbers() == before


# -- what lies under the face ---------------------------------------------------------------------------------------


def put_chaos_under(has: Belongings) -> None:
    """In an actor: what it opens from now on has its first send refused, in each process that has it."""
    ss.use_provider("sharedsock.spi.chaos:Chaos", at={"WSPSend": {1: "refuse"}})


def chain_text(has: Belongings) -> str:
    """In an actor: how the chain under its socket is spelled."""
    return spelled(has.shared("socket")._descriptor.chain)


@pytest.mark.fault("F-76")
@pytest.mark.rule("DUP-22", "NONIFS-13")
def test_a_chain_of_providers_is_announced_again(company: Company, door: Any) -> None:
    """Whoever gets the socket from a holder, after the crash, has under it what those before the crash had."""
    a, b, _ = company.all
    a.do("call_with", put_chaos_under)
    with company.give_round(door) as peer:
        text = a.do("call_with", chain_text)
        assert "Chaos" in text
        company.kill_registry()
        d, e = company.forked.start("D", "E")
        b.give_to(d)  # redeemed itself, before: what is announced again is what its ticket brought
        wait_count(b, 4)
        d.give_to(e)  # which has never known the registry that died
        assert [actor.do("call_with", chain_text) for actor in (*company.all, d, e)] == [text] * 5
        for actor in (d, e):
            assert actor.thread("sender").do("send", b"refused").outcome() == Raised("OSError", 10055, 105)
            actor.sendall(b"sent")
        assert peer.recv(8, socket.MSG_WAITALL) == b"sentsent"
        for actor in (*company.all, d, e):
            actor.close()
