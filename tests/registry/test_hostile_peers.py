"""Peers that lie, flood, stall or know nothing: refused, and nothing of the honest ones changes."""

from __future__ import annotations

import array
import json
import marshal
import os
import pickle
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedsock.model.errors import NotASocket, TicketInvalid
from sharedsock.model.identity import SocketFacts, SocketId
from sharedsock.registry.handshake import ClientHandshake
from sharedsock.registry.messages import COMMON_FIELDS, HEADER, MAX_MESSAGE, Code, encode
from sharedsock.registry.reception import Caps
from sharedsock.registry.records import Limits
from tests.registry.dialogue import Dialogue, Gone, Stepped, child, facts_of, open_numbers, wait_readable
from tests.registry.test_messages import VALID


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stepped]]:
    made: list[Stepped] = []

    def start(**more: Any) -> Stepped:
        made.append(Stepped(str(tmp_path / f"r{len(made)}"), **more))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def registry(make: Callable[..., Stepped]) -> Stepped:
    return make()


def snapshot(registry: Stepped) -> tuple[object, ...]:
    return registry.ledger.sockets(), registry.ledger.counts(), len(registry.server.custody)


JUNK = [
    b"\0",
    b"GET / HTTP/1.1\r\n\r\n",
    pickle.dumps({"a": [1, 2, 3]}),
    b"cposix\nsystem\n(S'true'\ntR.",
    marshal.dumps({"a": 1}),
    b"[" * MAX_MESSAGE,
    json.dumps({"n": float("inf")}).encode(),
    b"\xff\xfe\xfd" * 100,
    b"#CHALLENGE#" + b"x" * 20,
    struct.pack("!i", -1) + b"x",
    struct.pack("!I", 0xFFFFFFFF),
    struct.pack("!Q", 0xFFFFFFFFFFFFFFFF),
    HEADER.pack(0x5353, 1, Code.ANSWER, 0),
    HEADER.pack(0x5353, 9, Code.ANSWER, 0) + b"x" * 80,
    b"x" * MAX_MESSAGE,
    b"x" * (MAX_MESSAGE + 1),
    b"x" * 60_000,
]


@pytest.mark.fault("F-104", "F-106", "F-107", "I9")
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("authenticated", [False, True])
def test_junk_ends_the_connection_and_nothing_else(
    registry: Stepped, ours: socket.socket, junk: bytes, authenticated: bool
) -> None:
    honest = registry.peer()
    honest.announce(ours, 1)
    before = snapshot(registry)
    liar = registry.peer(authenticated=authenticated)
    if not authenticated:
        liar.receive_raw()
    liar.send_raw(junk)
    assert liar.is_gone()
    assert snapshot(registry) == before
    assert honest.references(ours) == 1
    assert sum(honest.refusals().values()) == 1


@pytest.mark.fault("F-107", "S-07")
def test_pickled_code_is_never_run(registry: Stepped, tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(mark),)

    for authenticated in (False, True):
        liar = registry.peer(authenticated=authenticated)
        liar.send_raw(pickle.dumps(Bomb()))
        assert liar.is_gone()
    assert not mark.exists()


@pytest.mark.fault("F-104")
@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_every_message_as_a_strangers_first_word(registry: Stepped, code: Code) -> None:
    stranger = registry.peer(authenticated=False)
    stranger.receive_raw()
    stranger.send_raw(encode(code, 0 if code < 0x10 else 1, **VALID[code]))
    assert stranger.is_gone()
    assert registry.server.numbers()["clients"] == 0


@pytest.mark.fault("F-104")
@pytest.mark.parametrize(
    "code", [code for code in Code if code not in (Code.BYE, Code.SHUTDOWN)], ids=lambda code: code.name
)
def test_truncations_and_flips_of_every_message_by_an_authenticated_peer(
    registry: Stepped, ours: socket.socket, code: Code
) -> None:
    """Each is refused or is another valid request of its own; the honest peer's references stay as they are."""
    honest = registry.peer()
    honest.announce(ours, 1)
    data = encode(code, 1, **VALID[code])
    dice = random.Random(code)
    damaged = [data[:size] for size in range(0, len(data), 3)]
    for bit in dice.sample(range(len(data) * 8), min(40, len(data) * 8)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for piece in damaged:
        if piece[:6] in {HEADER.pack(0x5353, 1, stop, 0)[:6] for stop in (Code.BYE, Code.SHUTDOWN)}:
            continue
        liar = registry.peer()
        if piece:
            liar.send_raw(piece)
        liar.close()
        registry.settle()
    assert registry.ledger.references(facts_of(ours).socket) == 1
    assert honest.references(ours) == 1


@pytest.mark.fault("F-104")
def test_random_records_against_the_live_registry(registry: Stepped, ours: socket.socket) -> None:
    honest = registry.peer()
    honest.announce(ours, 1)
    numbers = len(open_numbers())
    dice = random.Random(7)
    for _ in range(400):
        authenticated = dice.random() < 0.5
        liar = registry.peer(authenticated=authenticated)
        kind = dice.random()
        body = dice.randbytes(dice.choice([0, 1, 9, 10, 11, 60, 400, 4000]))
        if kind < 0.7:
            stops = (Code.SHUTDOWN, Code.BYE)
            code = dice.choice([code for code in Code if code not in stops])
            body = HEADER.pack(0x5353, 1, code, dice.randrange(1 << 32)) + body[: MAX_MESSAGE - 10]
        try:
            liar.send_raw(body or b"\0", *([ours.fileno()] * dice.choice([0, 0, 1, 2])))
        except Gone:
            pass
        registry.settle()
        liar.close()
    registry.settle()
    assert honest.references(ours) == 1
    assert len(open_numbers()) == numbers
    assert "internal error" not in registry.server.refused.by_cause


@pytest.mark.fault("F-105", "S-11")
def test_silent_strangers_are_dropped_at_t_auth(registry: Stepped) -> None:
    strangers = [registry.peer(authenticated=False) for _ in range(50)]
    half = encode(Code.ANSWER, **VALID[Code.ANSWER])[: HEADER.size]
    registry.settle()
    for one in strangers[:25]:
        one.receive_raw()
    registry.pass_time(0.9)
    late = registry.peer(authenticated=False)
    late.receive_raw()
    registry.pass_time(0.1)
    assert all(one.is_gone() for one in strangers)
    late.send_raw(half)
    assert late.is_gone()
    assert registry.server.refused.by_cause["no authentication in time"] == 50


@pytest.mark.fault("F-105", "S-11", "S-12")
def test_a_thousand_silent_strangers_keep_nobody_out_for_long(registry: Stepped) -> None:
    """64 at a time; the surplus is hung up on at once, and T_auth later there is room again."""
    registry.settle()
    before = len(open_numbers())
    strangers: list[Dialogue] = []
    for _ in range(1000):
        strangers.append(Dialogue.connect(registry.path, pump=registry.step))
        registry.step()
        if len(strangers) > 200:
            strangers.pop(0).close()
    registry.settle()
    held = len(open_numbers()) - before - len(strangers)
    assert held <= 2 * 64
    assert registry.server.refused.by_cause["too many unauthenticated peers"] > 500
    for one in strangers:
        one.close()
    registry.pass_time(1.0)
    honest = registry.peer()
    assert honest.statistics()["clients"] == 1


@pytest.mark.fault("S-11")
@pytest.mark.parametrize("beyond", [0, 1])
def test_the_cap_of_unauthenticated_peers_at_the_limit_and_one_beyond(
    make: Callable[..., Stepped], beyond: int
) -> None:
    registry = make(caps=Caps(unauthenticated=5))
    strangers = [registry.peer(authenticated=False) for _ in range(5 + beyond)]
    registry.settle()
    assert [one.is_gone() for one in strangers[5:]] == [True] * beyond
    for one in strangers[:5]:
        one.authenticate(Stepped.KEY)


@pytest.mark.fault("S-11")
def test_the_cap_of_clients_at_the_limit_and_one_beyond(make: Callable[..., Stepped]) -> None:
    registry = make(caps=Caps(clients=3))
    clients = [registry.peer() for _ in range(3)]
    refused = registry.peer(authenticated=False)
    assert refused.is_gone()
    assert registry.server.refused.by_cause["too many clients"] == 1
    clients.pop().close()
    registry.settle()
    registry.peer()


@pytest.mark.fault("S-11")
def test_two_that_were_admitted_together_cannot_both_be_the_last_client(make: Callable[..., Stepped]) -> None:
    registry = make(caps=Caps(clients=1))
    first, second = registry.peer(authenticated=False), registry.peer(authenticated=False)
    first.authenticate(Stepped.KEY)
    with pytest.raises(Gone):
        second.authenticate(Stepped.KEY)


@pytest.mark.fault("S-11", "F-16")
def test_the_cap_of_tickets_per_client(make: Callable[..., Stepped], ours: socket.socket) -> None:
    registry = make(limits=Limits(tickets_per_holder=2))
    first, second = registry.peer(), registry.peer()
    for one in (first, second):
        one.announce(ours, 1)
        one.issue(ours, 1, None)
        one.issue(ours, 1, None)
        with pytest.raises(OSError, match="revoke"):
            one.issue(ours, 1, None)
    assert first.statistics()["tickets"] == 4


@pytest.mark.fault("F-108", "S-05")
def test_a_wrong_key_is_hung_up_on_without_a_word(registry: Stepped) -> None:
    for key in (b"\0" * 32, Stepped.KEY[::-1]):
        stranger = registry.peer(authenticated=False)
        handshake = ClientHandshake(key, b"n" * 16)
        stranger.send_raw(handshake.answer(stranger.receive_raw()))
        with pytest.raises(Gone):
            stranger.receive_raw()
    assert registry.server.refused.by_cause["wrong key"] == 2


@pytest.mark.fault("F-108")
def test_an_answer_replayed_on_another_connection_is_refused(registry: Stepped) -> None:
    first, second = registry.peer(authenticated=False), registry.peer(authenticated=False)
    answer = ClientHandshake(Stepped.KEY, b"n" * 16).answer(first.receive_raw())
    second.receive_raw()
    second.send_raw(answer)
    assert second.is_gone()
    first.send_raw(answer)
    first.receive_raw()


@pytest.mark.fault("S-17")
def test_refusals_are_counted_by_cause_and_logged_once_a_second_without_peer_bytes(registry: Stepped) -> None:
    for text in (b"SECRET-FROM-PEER", b"another one", b"third"):
        for _ in range(3):
            liar = registry.peer(authenticated=False)
            liar.send_raw(text)
            assert liar.is_gone()
    assert len(registry.server.refused.log) == 1
    registry.pass_time(1.0)
    liar = registry.peer(authenticated=False)
    liar.send_raw(b"x" * 200)
    assert liar.is_gone()
    assert len(registry.server.refused.log) == 2
    honest = registry.peer()
    assert honest.refusals() == {"bad magic": 7, "truncated": 3}
    assert honest.statistics()["refusals"] == 10


@pytest.mark.fault("F-109", "S-04")
def test_another_uid_is_hung_up_on_before_a_byte_is_read(registry: Stepped) -> None:
    """SO_PEERCRED against the registry's euid; injected: the owner is somebody else, and root is not exempt."""
    registry.world.own_uid = 12_345
    stranger = registry.peer(authenticated=False)
    with pytest.raises(Gone):
        stranger.receive_raw()
    assert registry.server.refused.by_cause["foreign uid"] == 1
    assert not registry.server._reception.strangers


@pytest.mark.fault("F-109", "S-04")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_real_process_of_another_uid_is_hung_up_on(registry: Stepped) -> None:
    """The directory keeps others out already; here it is opened to them, to see the second line of defence."""
    parents = [Path(registry.path), *Path(registry.path).parents]
    modes = {path: path.stat().st_mode for path in parents if path.stat().st_uid == 0 and path != Path("/")}
    for path in modes:
        path.chmod(0o777)
    os.chmod(registry.path + "/s", 0o777)
    code = (
        "import os, socket, sys\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        "os.write(1, b'c')\n"
        "os.write(1, b'!' if s.recv(100) else b'-')\n"
    )
    try:
        with child(code, registry.path + "/s") as stranger:
            assert stranger.stdout is not None
            assert stranger.stdout.read(1) == b"c"
            registry.settle()
            assert stranger.stdout.read(1) == b"-"
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert registry.server.refused.by_cause["foreign uid"] == 1


def _send_from_a_forked_child(connection: socket.socket, data: bytes) -> None:
    number = os.dup(connection.fileno())  # a number of its own: a child that has our hooks closes the channel's
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.write(number, data)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    finally:
        os.close(number)


@pytest.mark.fault("S-04", "F-25", "F-90")
def test_a_forked_child_cannot_speak_on_its_parents_channel(registry: Stepped, ours: socket.socket) -> None:
    """SO_PEERCRED names who connected; the kernel names the sender of each record."""
    peer = registry.peer()
    peer.announce(ours, 1)
    secret = peer.issue(ours, 1, os.getpid())
    for data in (
        encode(Code.CLAIM, 77, secret=secret),
        encode(Code.BEGIN_CLOSE, 78, descriptor=1),
        b"junk",
    ):
        _send_from_a_forked_child(peer.connection, data)
        registry.settle()
    assert not wait_readable(peer.connection, 0), "no reply: its ids are the parent's"
    assert registry.server.refused.by_cause["sent by another process"] == 3
    assert peer.references(ours) == 2
    granted, received = peer.claim(secret)
    received.close()
    peer.acknowledge(granted.number, 2)


@pytest.mark.fault("S-04")
def test_a_forked_child_cannot_authenticate_a_connection_its_parent_made(registry: Stepped) -> None:
    stranger = registry.peer(authenticated=False)
    answer = ClientHandshake(Stepped.KEY, b"n" * 16).answer(stranger.receive_raw())
    _send_from_a_forked_child(stranger.connection, answer)
    assert stranger.is_gone()


@pytest.mark.fault("F-110", "S-14")
def test_an_authenticated_liar_changes_only_its_own(registry: Stepped, ours: socket.socket) -> None:
    honest, liar = registry.peer(), registry.peer()
    honest.announce(ours, 1)
    secret = honest.issue(ours, 1, os.getpid())
    bound = honest.issue(ours, 1, None)
    granted, received = honest.claim(secret)
    received.close()
    before = snapshot(registry)
    socket_id = facts_of(ours).socket
    blank = {**dict.fromkeys(COMMON_FIELDS, True), "linger_s": 0, "linger_kept_s": None, "events": 0}
    loan = {"socket": socket_id, "descriptor": 1, "target": os.getpid(), "started_ticks": 0, "since_s": 1.0}
    lies: list[tuple[Code, dict[str, Any], type[OSError]]] = [
        (Code.BEGIN_CLOSE, {"descriptor": 1}, NotASocket),
        (Code.END_CLOSE, {"descriptor": 1}, NotASocket),
        (Code.CANCEL_CLOSE, {"descriptor": 1}, NotASocket),
        (Code.ACK, {"number": granted.number, "descriptor": 1, "opened_at": "", "opened_s": 0.0}, TicketInvalid),
        (Code.REFUSE, {"number": granted.number}, TicketInvalid),
        (Code.LEND, loan, NotASocket),
        (Code.SET_COMMON, {"socket": socket_id, "changed": 31, **blank}, NotASocket),
        (Code.BIND, {"secret": bound, "target": os.getpid()}, TicketInvalid),
        (Code.OK, {}, OSError),
        (Code.CHALLENGE, {"nonce": bytes(32)}, OSError),
        (Code.CLAIMED, VALID[Code.CLAIMED], OSError),
    ]
    for code, values, error in lies:
        with pytest.raises(error):
            liar.ask(code, **values)
    assert liar.ask(Code.REVOKE, secret=bound).value is False
    with pytest.raises(NotASocket):
        liar.issue(ours, 1, None)
    assert snapshot(registry) == before
    honest.acknowledge(granted.number, 2)
    honest.ask(Code.BEGIN_CLOSE, descriptor=2)
    for _ in range(3):
        honest.ask(Code.END_CLOSE, descriptor=2)
    assert honest.references(ours) == 2


@pytest.mark.fault("F-110")
def test_random_well_formed_nonsense_leaves_the_honest_count_alone(registry: Stepped, ours: socket.socket) -> None:
    honest = registry.peer()
    honest.announce(ours, 1)
    before = honest.references(ours)
    dice = random.Random(11)
    counted = (Code.ANNOUNCE, Code.RECOVER)
    requests = [c for c in Code if 0x10 <= c < 0x80 and c not in (Code.BYE, Code.SHUTDOWN, *counted)]
    liar = registry.peer()
    for _ in range(1500):
        code = dice.choice(requests)
        values = dict(VALID[code])
        for name in values:
            if name in ("descriptor", "number", "slot", "start"):
                values[name] = dice.choice([0, 1, 2, 3, 1 << 31])
            elif name == "target":
                values[name] = dice.choice([0, 1, os.getpid(), 1 << 31])
            elif name == "socket":
                values[name] = dice.choice([facts_of(ours).socket, 9])
            elif name == "changed":
                values[name] = dice.randrange(256)
        liar.send(code, *([ours.fileno()] * dice.choice([0, 0, 1])), **values)
        registry.settle()
        liar.receive_raw()
        liar.close_came()
    assert honest.references(ours) == before
    assert "internal error" not in registry.server.refused.by_cause


@pytest.mark.fault("F-111", "S-13")
@pytest.mark.parametrize("authenticated", [False, True])
def test_floods_of_descriptors_are_all_closed(registry: Stepped, ours: socket.socket, authenticated: bool) -> None:
    honest = registry.peer()
    honest.announce(ours, 1)
    liar = registry.peer(authenticated=authenticated)
    before = len(open_numbers())
    for _ in range(1000 if authenticated else 1):
        try:
            liar.send(Code.STATISTICS, *[ours.fileno()] * 253)
            registry.step()
            liar.receive_raw()
        except Gone:
            break
    registry.settle()
    assert len(open_numbers()) <= before
    assert honest.references(ours) == 1


@pytest.mark.fault("F-111")
def test_descriptors_without_a_single_byte(registry: Stepped, ours: socket.socket) -> None:
    liar = registry.peer()
    before = len(open_numbers())
    liar.connection.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()]))])
    assert liar.is_gone()
    registry.settle()
    assert len(open_numbers()) < before


@pytest.mark.fault("F-82", "S-11")
def test_a_client_that_does_not_read_is_dropped_and_others_are_served(registry: Stepped, ours: socket.socket) -> None:
    honest, deaf = registry.peer(), registry.peer()
    for number in range(200):
        deaf.announce(ours, number)
    deaf.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    registry.server._clients[next(h for h in registry.server._clients if h.nonce == deaf.nonce)].connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
    )
    for _ in range(200):
        try:
            deaf.send(Code.HOLDERS, socket=facts_of(ours).socket, start=0)
        except Gone:
            break
        registry.step()
    assert registry.server.refused.by_cause["replies not read"] == 1
    assert honest.statistics()["clients"] == 1
    assert honest.references(ours) == 200, "its process lives: its references stay"


@pytest.mark.fault("F-82")
def test_a_slow_reader_within_the_bound_gets_everything(registry: Stepped, ours: socket.socket) -> None:
    slow = registry.peer()
    for number in range(30):
        slow.announce(ours, number)
    (channel,) = registry.server._clients.values()
    channel.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = [slow.send(Code.HOLDERS, socket=facts_of(ours).socket, start=0) for _ in range(10)]
    registry.settle()
    assert channel.queued
    assert [slow.receive().request for _ in sent] == sent
    registry.settle()
    assert not channel.queued
    assert slow.references(ours) == 30


@pytest.mark.fault("F-110")
def test_one_descriptor_number_on_two_sockets(registry: Stepped, ours: socket.socket) -> None:
    liar = registry.peer()
    liar.announce(ours, 1)
    with pytest.raises(NotASocket):
        liar.announce(SocketFacts(SocketId(4242), 2, 1, 6), 1)
    assert liar.statistics()["sockets"] == 1


@pytest.mark.fault("F-78")
def test_replies_carry_the_requests_id(registry: Stepped) -> None:
    peer = registry.peer()
    for request in (1, 5, 5, 0xFFFFFFFF):
        peer.send_raw(encode(Code.STATISTICS, request))
        assert peer.receive().request == request
