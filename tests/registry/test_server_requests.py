"""The server's answers to an honest peer: the ledger's rules, over a real connection and with real sockets."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharedsock.model import trace
from sharedsock.model.errors import (
    InternalError,
    NotASocket,
    TicketAlreadyClaimed,
    TicketError,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
)
from sharedsock.registry.messages import Code
from sharedsock.registry.page import CommonState, PageReader
from sharedsock.registry.records import Limits
from tests.registry.dialogue import Dialogue, Stepped, child, facts_of, open_numbers, wait_dead, wait_readable

FIRST = {"started_ticks": 0, "since_s": 9.5}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stepped]]:
    made: list[Stepped] = []

    def start(**more: object) -> Stepped:
        made.append(Stepped(str(tmp_path / f"r{len(made)}"), **more))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def registry(make: Callable[..., Stepped]) -> Stepped:
    return make()


@pytest.fixture
def peer(registry: Stepped) -> Dialogue:
    return registry.peer()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected TCP pair: ours and the far end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, far:
        far.settimeout(60)
        yield ours, far


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-12")
def test_a_socket_goes_through_custody_to_the_target(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    ours, far = pair
    slot = peer.announce(ours, 1).slot
    secret = peer.issue(ours, 1, os.getpid())
    assert len(secret) == 32
    assert peer.references(ours) == 2
    granted, received = peer.claim(secret)
    with received:
        assert facts_of(received) == facts_of(ours)
        assert (granted.socket, granted.family, granted.slot) == (facts_of(ours).socket, ours.family, slot)
        assert granted.target_bound
        assert peer.statistics()["custody"] == 1, "rule 8: kept until the claimer has acknowledged"
        peer.acknowledge(granted.number, 2)
        assert peer.statistics()["custody"] == 0
        assert peer.references(ours) == 2
        far.sendall(b"hello")
        assert received.recv(5) == b"hello"


@pytest.mark.fault("F-35", "S-15")
def test_every_number_of_the_registry_is_close_on_exec(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    before = set(open_numbers())
    other = registry.peer()
    other.announce(pair[0], 1)
    other.issue(pair[0], 1, os.getpid())
    for number in set(open_numbers()) - before:
        assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, open_numbers()[number]
    for number in registry.server.custody._kept.values():
        assert not os.get_inheritable(number)


@pytest.mark.rule("DUP-3", "DUP-5")
@pytest.mark.fault("F-22", "F-23", "F-24")
def test_refusals_arrive_by_their_kinds(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    secret = peer.issue(pair[0], 1, os.getpid())
    with pytest.raises(TicketInvalid):
        peer.claim(bytes(32))
    granted, received = peer.claim(secret)
    received.close()
    with pytest.raises(TicketAlreadyClaimed):
        peer.claim(secret)
    peer.ask(Code.REFUSE, number=granted.number)
    granted, received = peer.claim(secret)
    received.close()
    peer.acknowledge(granted.number, 2)
    with pytest.raises(TicketAlreadyClaimed):
        peer.claim(secret)
    expiring = peer.issue(pair[0], 1, None, 5.0)
    registry.pass_time(5.0)
    with pytest.raises(TicketExpired):
        peer.claim(expiring)
    assert peer.references(pair[0]) == 2


@pytest.mark.fault("F-24", "S-10")
def test_another_process_of_the_same_user_cannot_claim(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    code = "import sys; sys.stdin.read()"
    with child(code) as target:
        secret = peer.issue(pair[0], 1, target.pid)
        with pytest.raises(TicketInvalid):
            peer.claim(secret)
        assert peer.references(pair[0]) == 2, "the ticket is unharmed"


@pytest.mark.fault("F-11", "F-12")
def test_a_ticket_survives_its_issuers_close(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    ours, far = pair
    peer.announce(ours, 1)
    secret = peer.issue(ours, 1, os.getpid())
    assert peer.ask(Code.BEGIN_CLOSE, descriptor=1).value is False
    ours.close()
    peer.ask(Code.END_CLOSE, descriptor=1)
    assert not wait_readable(far, 0.05), "no EOF: custody holds the socket"
    granted, received = peer.claim(secret)
    peer.acknowledge(granted.number, 2)
    with received:
        received.sendall(b"still here")
        assert far.recv(16) == b"still here"
        assert peer.ask(Code.BEGIN_CLOSE, descriptor=2).value is True
    peer.ask(Code.END_CLOSE, descriptor=2)
    assert far.recv(1) == b""


@pytest.mark.fault("F-10")
@pytest.mark.rule("DUP-6")
def test_a_ticket_needs_a_live_target_of_this_user(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    with child("") as unreaped:
        assert wait_dead(unreaped.pid)
        with pytest.raises(TicketError, match="not running"):
            peer.issue(pair[0], 1, unreaped.pid)
    with pytest.raises(TicketError):
        peer.issue(pair[0], 1, unreaped.pid)
    with child("import sys; sys.stdin.read()") as foreign:
        registry.world.foreign.add(foreign.pid)
        with pytest.raises(TicketError):
            peer.issue(pair[0], 1, foreign.pid)
    for pid in (1, 0, 0x7FFFFFFE, 0xFFFFFFFF):  # 1 is the registry's own here
        with pytest.raises(TicketError):
            peer.issue(pair[0], 1, pid)
    with pytest.raises(TicketError):
        peer.ask(Code.LEND, socket=facts_of(pair[0]).socket, descriptor=1, target=unreaped.pid, **FIRST)
    assert peer.references(pair[0]) == 1
    assert peer.statistics()["custody"] == 0


@pytest.mark.fault("F-27")
def test_a_pid_of_another_namespace_is_not_believed(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    registry.world.namespaces = {os.getpid(): "pid:[1]", 1: "pid:[2]"}
    for call in (
        lambda: peer.issue(pair[0], 1, os.getpid()),
        lambda: peer.ask(Code.BIND, secret=bytes(32), target=os.getpid()),
        lambda: peer.ask(Code.LEND, socket=facts_of(pair[0]).socket, descriptor=1, target=os.getpid(), **FIRST),
    ):
        with pytest.raises(OSError, match="namespace"):
            call()
    assert peer.issue(pair[0], 1, None), "claim-once names no pid"


@pytest.mark.fault("F-18")
@pytest.mark.rule("DUP-13")
def test_the_targets_death_ends_its_ticket_and_the_peer_sees_eof(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    ours, far = pair
    peer.announce(ours, 1)
    with child("import sys; sys.stdin.read()") as target:
        peer.issue(ours, 1, target.pid)
        peer.ask(Code.BEGIN_CLOSE, descriptor=1)
        ours.close()
        peer.ask(Code.END_CLOSE, descriptor=1)
        assert not registry.ledger.is_empty()
        seen = []
        trace.hook = lambda point, context: seen.append(point) if point == "reg.death_seen" else None
        try:
            target.kill()
            registry.server.step(10)
        finally:
            trace.hook = None
        assert seen == ["reg.death_seen"]
    assert registry.ledger.is_empty()
    assert far.recv(1) == b""


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.fault("F-59")
def test_two_closers_one_last(registry: Stepped, peer: Dialogue, pair: Pair, order: int) -> None:
    other = registry.peer()
    peer.announce(pair[0], 1)
    other.announce(pair[0], 1)
    first, second = (peer, other) if order == 0 else (other, peer)
    assert first.ask(Code.BEGIN_CLOSE, descriptor=1).value is False
    waiting = second.send(Code.BEGIN_CLOSE, descriptor=1)
    registry.settle()
    assert not wait_readable(second.connection, 0)
    assert second.statistics()["descriptors"] == 2, "other requests of the waiting one go on"
    first.ask(Code.END_CLOSE, descriptor=1)
    late = second.receive()
    assert (late.code, late.request, late.value) == (Code.FLAG, waiting, True)
    second.ask(Code.END_CLOSE, descriptor=1)
    assert registry.ledger.is_empty()


@pytest.mark.fault("F-59")
def test_a_late_answer_comes_in_time(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    """At most T_rpc: the client gives up after 2 s."""
    other = registry.peer()
    peer.announce(pair[0], 1)
    other.announce(pair[0], 1)
    peer.ask(Code.BEGIN_CLOSE, descriptor=1)
    waiting = other.send(Code.BEGIN_CLOSE, descriptor=1)
    registry.settle()
    registry.pass_time(1.4)
    assert not wait_readable(other.connection, 0)
    registry.pass_time(0.2)
    assert (other.receive().request, waiting) == (waiting, waiting)


def test_the_late_answer_for_one_who_left_meets_nobody(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    other = registry.peer()
    peer.announce(pair[0], 1)
    other.announce(pair[0], 1)
    peer.ask(Code.BEGIN_CLOSE, descriptor=1)
    other.send(Code.BEGIN_CLOSE, descriptor=1)
    registry.settle()
    other.close()
    peer.ask(Code.END_CLOSE, descriptor=1)
    assert peer.statistics()["clients"] == 1


@pytest.mark.fault("F-32")
def test_a_claim_whose_channel_breaks_goes_back(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    secret = peer.issue(pair[0], 1, os.getpid())
    other = registry.peer()
    _, received = other.claim(secret)
    received.close()
    other.close()
    registry.settle()
    assert peer.references(pair[0]) == 2
    granted, received = peer.claim(secret)
    received.close()
    peer.acknowledge(granted.number, 2)


@pytest.mark.fault("F-32")
def test_a_lost_acknowledgement_can_be_repeated_through_a_new_channel(
    registry: Stepped, peer: Dialogue, pair: Pair
) -> None:
    peer.announce(pair[0], 1)
    secret = peer.issue(pair[0], 1, os.getpid())
    other = registry.peer()
    granted, received = other.claim(secret)
    with received:
        other.close()
        registry.settle()
        again = registry.peer(nonce=other.nonce)
        again.acknowledge(granted.number, 9)
        again.acknowledge(granted.number, 9)
        assert peer.references(pair[0]) == 2


def test_the_same_holder_has_one_channel(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    again = registry.peer(nonce=peer.nonce)
    assert peer.is_gone()
    assert again.references(pair[0]) == 1
    again.announce(pair[0], 1)
    assert again.references(pair[0]) == 1
    assert again.statistics()["clients"] == 1


def test_bye_ends_the_channel_and_drops_no_reference(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    other = registry.peer()
    peer.announce(pair[0], 1)
    peer.ask(Code.BYE)
    assert peer.is_gone()
    assert other.references(pair[0]) == 1


def test_revoke_and_bind(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    secret = peer.issue(pair[0], 1, None)
    assert peer.ask(Code.BIND, secret=secret, target=os.getpid()).value is True
    registry.pass_time(1000)
    assert peer.references(pair[0]) == 2
    assert peer.ask(Code.REVOKE, secret=secret).value is True
    assert peer.ask(Code.REVOKE, secret=secret).value is False
    assert peer.statistics()["custody"] == 0
    secret = peer.issue(pair[0], 1, None)
    with child("") as dead:
        dead.wait()
        assert peer.ask(Code.BIND, secret=secret, target=dead.pid).value is True
    assert peer.references(pair[0]) == 1


def test_lending_counts_until_the_process_ends(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    peer.announce(pair[0], 1)
    with child("import sys; sys.stdin.read()") as borrower:
        peer.ask(Code.LEND, socket=facts_of(pair[0]).socket, descriptor=1, target=borrower.pid, **FIRST)
        (_, lent) = peer.ask(Code.HOLDERS, socket=facts_of(pair[0]).socket, start=0).items
        assert (lent[0], lent[3], lent[5]) == (borrower.pid, 3, FIRST["since_s"])
        borrower.kill()
        registry.server.step(10)
        assert peer.references(pair[0]) == 1


@pytest.mark.fault("F-19")
def test_a_loan_is_counted_again_for_the_same_process_alone(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    """Told after a restart: whoever has the borrower's number by then is another process."""
    peer.announce(pair[0], 1)
    with child("import sys; sys.stdin.read()") as borrower:
        loan = {"socket": facts_of(pair[0]).socket, "descriptor": 1, "target": borrower.pid, "since_s": 2.5}
        began_ticks = peer.ask(Code.LEND, **loan, started_ticks=0).value
        assert began_ticks > 0
        assert peer.ask(Code.LEND, **loan, started_ticks=began_ticks).value == began_ticks, "counted once"
        assert peer.references(pair[0]) == 2
        borrower.kill()
        registry.server.step(10)
    with child("import sys; sys.stdin.read()") as other:
        loan["target"] = other.pid
        with pytest.raises(TicketError, match="another one"):
            peer.ask(Code.LEND, **loan, started_ticks=began_ticks + 1_000_000)
    assert peer.references(pair[0]) == 1


@pytest.mark.fault("S-14")
def test_common_state_is_in_the_page_before_the_reply(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    slot = peer.announce(pair[0], 1).slot
    assert peer.page is not None
    page = PageReader(os.dup(peer.page))
    blank = dataclasses.asdict(CommonState())
    wanted = {"socket": facts_of(pair[0]).socket, **blank}
    peer.ask(Code.SET_COMMON, **{**wanted, "changed": 0b10001, "shut_receive": True, "linger_s": 12})
    assert page.read(slot) == CommonState(shut_receive=True, linger_s=12)
    peer.ask(Code.SET_COMMON, **{**wanted, "changed": 0b00010, "shut_send": True})
    assert page.read(slot) == CommonState(shut_receive=True, shut_send=True, linger_s=12)
    shown = peer.ask(Code.COMMON, slot=slot)
    assert (shown.shut_receive, shown.shut_send, shown.linger_s) == (True, True, 12)
    stranger = registry.peer()
    with pytest.raises(NotASocket):
        stranger.ask(Code.SET_COMMON, **{**wanted, "changed": 0b10000, "linger_s": 0})
    with pytest.raises(OSError):
        peer.ask(Code.SET_COMMON, **{**wanted, "changed": 1 << 8})
    with pytest.raises(OSError):
        peer.ask(Code.COMMON, slot=1 << 20)
    assert page.read(slot).linger_s == 12
    page.close()


@pytest.mark.fault("F-37")
def test_what_a_socket_is_comes_from_the_kernel(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    from dataclasses import replace

    truth = facts_of(pair[0])
    peer.announce(replace(truth, family=99, type=98, protocol=97), 1)
    granted, received = peer.claim(peer.issue(pair[0], 1, os.getpid()))
    received.close()
    assert (granted.family, granted.type, granted.protocol) == (truth.family, truth.type, truth.protocol)


@pytest.mark.fault("F-34", "S-13")
def test_only_the_announced_socket_is_taken_into_custody(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    ours, far = pair
    peer.announce(ours, 1)
    before = len(open_numbers())
    read_end, write_end = os.pipe()
    with open(os.devnull) as file:
        for number in (read_end, write_end, file.fileno(), far.fileno()):
            with pytest.raises(OSError, match=r"not a socket|another socket"):
                wanted = {"socket": facts_of(ours).socket, "descriptor": 1, "target": None, "expires_s": None}
                peer.ask(Code.ISSUE, number, **wanted, secret=os.urandom(32), launching=False)
    os.close(read_end)
    os.close(write_end)
    assert len(open_numbers()) == before
    assert peer.references(ours) == 1


@pytest.mark.fault("F-15")
def test_a_missing_doubled_or_needless_descriptor_is_refused(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    ours = pair[0]
    peer.announce(ours, 1)
    before = len(open_numbers())
    facts = {"secret": os.urandom(32), "socket": facts_of(ours).socket, "descriptor": 1}
    wanted = facts | {"target": None, "expires_s": None, "launching": False}
    for numbers in ((), (ours.fileno(),) * 2, (ours.fileno(),) * 100):
        with pytest.raises(OSError, match="exactly one"):
            peer.ask(Code.ISSUE, *numbers, **wanted)
    with pytest.raises(OSError, match="no descriptor"):
        peer.ask(Code.STATISTICS, ours.fileno())
    assert len(open_numbers()) == before
    assert peer.references(ours) == 1


@pytest.mark.fault("F-16", "S-11")
def test_the_ticket_cap_over_the_wire(make: Callable[..., Stepped], pair: Pair) -> None:
    registry = make(limits=Limits(tickets=3))
    peer = registry.peer()
    peer.announce(pair[0], 1)
    for _ in range(3):
        peer.issue(pair[0], 1, None)
    with pytest.raises(TicketLimit):
        peer.issue(pair[0], 1, None)
    assert peer.statistics()["custody"] == 3
    registry.pass_time(60.0)
    assert peer.statistics()["custody"] == 0
    assert peer.references(pair[0]) == 1


def test_long_lists_come_in_pages(registry: Stepped, peer: Dialogue, pair: Pair) -> None:
    for number in range(300):
        peer.announce(pair[0], number)
    rows: list[tuple[object, ...]] = []
    start = 0
    while True:
        page = peer.ask(Code.HOLDERS, socket=facts_of(pair[0]).socket, start=start)
        rows.extend(page.items)
        start = page.following
        if not start:
            break
    assert [row[2] for row in rows] == list(range(300))
    assert {row[0] for row in rows} == {os.getpid()}
    assert all(row[1] for row in rows), "the process's name"
    (only,) = peer.ask(Code.SOCKETS, start=0).items
    assert only[0] == facts_of(pair[0]).socket
    assert only[4] == 300


@pytest.mark.fault("F-84")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x"), OSError(5, "io")])
def test_an_unexpected_exception_fails_one_request(
    registry: Stepped, peer: Dialogue, pair: Pair, error: Exception
) -> None:
    def hook(point: str, context: object) -> None:
        if point == "reg.request":
            raise error

    trace.hook = hook
    try:
        with pytest.raises(OSError) as caught:
            peer.announce(pair[0], 1)
    finally:
        trace.hook = None
    assert isinstance(caught.value, InternalError) or caught.value.errno == 5
    assert peer.references(pair[0]) == 0
    peer.announce(pair[0], 1)
    assert peer.references(pair[0]) == 1


@pytest.mark.fault("F-14")
def test_too_many_descriptors_in_flight_hands_the_ticket_back(
    registry: Stepped, peer: Dialogue, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharedsock.registry.connection import Channel

    peer.announce(pair[0], 1)
    secret = peer.issue(pair[0], 1, os.getpid())
    honest = Channel._try

    def full(self: Channel, data: bytes, descriptor: int | None) -> bool:
        if descriptor is not None:
            raise OSError(109, "Too many references: cannot splice")
        return honest(self, data, descriptor)

    monkeypatch.setattr(Channel, "_try", full)
    with pytest.raises(OSError) as caught:
        peer.ask(Code.CLAIM, secret=secret)
    assert caught.value.errno == 109
    monkeypatch.undo()
    _, received = peer.claim(secret)
    received.close()


def test_the_probe_is_told_of_every_request(registry: Stepped, pair: Pair) -> None:
    seen: list[str] = []
    trace.hook = lambda point, context: seen.append(point)
    try:
        registry.peer().announce(pair[0], 1)
    finally:
        trace.hook = None
    assert seen == ["reg.accept", "reg.authed", "reg.reply", "reg.request", "reg.commit", "reg.reply"]
    assert set(seen) <= trace.POINTS
