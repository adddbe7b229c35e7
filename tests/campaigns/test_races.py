"""Close against recv, send, accept and connect, free-running, with strangers on every number that comes free.

100,000 races in the campaign, a few hundred in the usual suite. Half of them with the socket shared by another process,
which sits in the same call all the time and goes on; the others with a second descriptor of this process. What is
held: no byte, record or client is lost, taken twice or given to somebody else (I1); the count is right after each
close (I2); the peer sees the end when the last has closed, and not before (I3).

Source: "Closing Sockets" (Winsock SPI); spec/fault-catalogue.md, A.1.
"""

from __future__ import annotations

import gc
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import sharedsock as ss
from tests.campaigns.conftest import Run
from tests.campaigns.partners import (
    RECORD,
    Partner,
    block_of,
    connecting_clients,
    drinking,
    feeding,
    holding_attempts,
    partner,
    record_of,
    serve,
    settle,
    sharing_accepts,
    sharing_receives,
    taking_clients,
)
from tests.campaigns.racing import HANG_S, lively_interpreter, race
from tests.campaigns.strangers import strangers
from tests.descriptors import kinds, sharers

ROUNDS_OF_EACH: Final = 25_000
SMALL: Final = 60
COUNT_EVERY: Final = 50
BLOCK: Final = {"tcp4": 1 << 15, "unix-stream": 1 << 12, "unix-dgram": 1 << 9}

COMPANIES: Final = ("twin", "process")
STREAMS: Final = ("tcp4", "unix-stream", "unix-dgram")
DOORS: Final = ("tcp4", "unix-stream")


def editions(kinds_: tuple[str, ...], in_suite: str) -> pytest.MarkDecorator:
    """Return the cases of one race: a small one for each company, and those of the campaign."""
    small = [pytest.param(in_suite, company, SMALL, id=f"{in_suite}-{company}-small") for company in COMPANIES]
    full = [
        pytest.param(
            kind, company, -(-ROUNDS_OF_EACH // (2 * len(kinds_))), id=f"{kind}-{company}", marks=pytest.mark.campaign
        )
        for kind in kinds_
        for company in COMPANIES
    ]
    return pytest.mark.parametrize(("kind", "company", "rounds"), [*small, *full])


@contextmanager
def arena(run: Run) -> Iterator[ExitStack]:
    """Strangers, a lively interpreter, and at the end no complaint of a stranger's."""
    with ExitStack() as stack, lively_interpreter(), strangers(run.dice) as beside:
        yield stack
    run.note(strangers=beside.seen)
    assert not beside.complaints
    gc.collect()  # a caught error and its traceback are a cycle, which may hold the last frame of a closed descriptor
    sharers.wait_until(lambda: ss.statistics().pending == ss.statistics().retiring == 0, "the last calls to leave")


def sharer_of(stack: ExitStack, company: str, work: Callable[..., object], shared: ss.SharedSocket) -> Partner | None:
    """Start the other process, if there is to be one."""
    return stack.enter_context(partner(work, shared)) if company == "process" else None


def checked_count(number: int, shared: ss.SharedSocket, sharer: Partner | None) -> None:
    """I2: after the round's close there are this descriptor, and the sharer's."""
    if number % COUNT_EVERY == 0:
        assert shared.references() == (1 if sharer is None else 2), f"round {number}"


def all_once(taken: list[list[int]], count: int) -> None:
    """I1: every one of the numbers is in exactly one place, and in order wherever it is."""
    for one in taken:
        assert one == sorted(one), "out of order"
    assert sorted(itertools.chain(*taken)) == list(range(count))


# -- recv -------------------------------------------------------------------------------------------------------------


def _recv_into(shared: ss.SharedSocket) -> bytes:
    buffer = bytearray(RECORD.size)
    assert shared.recv_into(buffer) == RECORD.size
    return bytes(buffer)


RECEIVES: Final[tuple[Callable[[ss.SharedSocket], bytes], ...]] = (
    lambda shared: shared.recv(RECORD.size),
    lambda shared: shared.recv(RECORD.size),
    _recv_into,
    lambda shared: shared.recvmsg(RECORD.size)[0],
    lambda shared: shared.begin_recv(RECORD.size).result(HANG_S),
)


@pytest.mark.rule("CLOSE-20", "DUP-15", "REF-1")
@pytest.mark.fault("I1", "I2", "I3")
@editions(STREAMS, "tcp4")
def test_close_against_recv(kind: str, company: str, rounds: int, run: Run) -> None:
    with kinds.pair_of(kind) as pair, pair.local as local, ExitStack() as others:
        feeder = others.enter_context(partner(feeding, pair.peer, run.dice.randrange(1 << 32)))
        pair.peer.close()
        sharer = sharer_of(others, company, sharing_receives, local)
        here: list[int] = []

        def begin(number: int) -> tuple[ss.SharedSocket, Callable[[], bytes]]:
            twin, receive = local.dup(), run.dice.choice(RECEIVES)
            return twin, lambda: receive(twin)

        def drain() -> None:
            try:
                while True:
                    here.append(RECORD.unpack(local.recv(RECORD.size, socket.MSG_DONTWAIT))[0])
            except BlockingIOError:
                pass

        def after(number: int, outcome: str, value: Any) -> None:
            if outcome == "won":
                here.append(RECORD.unpack(value)[0])
            drain()
            checked_count(number, local, sharer)

        with arena(run):
            tally = race(run.rounds(rounds), run.dice, begin, after)
        sent = feeder.ask("stop", meanwhile=drain)
        drain()
        there = [] if sharer is None else sharer.ask(0)
        drain()
        all_once([here, there], sent)
        assert local.references() == 1
        local.close()
        feeder.ask("end")
        run.note(recv=tally.total(), **tally, records=sent, elsewhere=len(there))


# -- send -------------------------------------------------------------------------------------------------------------


def _begin_sendall(shared: ss.SharedSocket, data: bytes) -> None:
    shared.begin_sendall(data).result(HANG_S)


# Each returns how many bytes it has sent, None for all.
SENDS: Final[dict[str, Callable[[ss.SharedSocket, bytes], int | None]]] = {
    "send": lambda shared, data: shared.send(data),
    "sendall": lambda shared, data: shared.sendall(data),
    "sendmsg": lambda shared, data: shared.sendmsg([data[:9], data[9:]]),
    "begin_send": lambda shared, data: shared.begin_send(data).result(HANG_S),
    "begin_sendall": _begin_sendall,
}


class Sent(NamedTuple):
    """How much of a block has been sent, as far as the sender knows, and what became of the call."""

    size: int
    how: str


@pytest.mark.rule("CLOSE-20", "DUP-15", "REF-1")
@pytest.mark.fault("I1", "I2", "I3")
@editions(STREAMS, "tcp4")
def test_close_against_send(kind: str, company: str, rounds: int, run: Run, tmp_path: Path) -> None:
    """What the peer got is what the sends say they have sent; an aborted one says how much of it was queued before.

    There is no room when a call begins, so that it waits for the peer, who receives at random moments.
    """
    size = BLOCK[kind]
    sent: list[Sent] = []
    got = tmp_path / "got"
    with (
        kinds.pair_of(kind, send_buffer=1 << 13, receive_buffer=1 << 14) as pair,
        pair.local as local,
        ExitStack() as others,
    ):
        drinker = others.enter_context(partner(drinking, pair.peer, got, size // 2, run.dice.randrange(1 << 32)))
        pair.peer.close()
        sharer = sharer_of(others, company, sharing_receives, local)

        def begin(number: int) -> tuple[ss.SharedSocket, Callable[[], int | None]]:
            try:
                while True:
                    sent.append(Sent(local.send(block_of(len(sent), size), socket.MSG_DONTWAIT), "filled"))
            except BlockingIOError:
                pass
            twin, way = local.dup(), run.dice.choice(list(SENDS))
            data = block_of(len(sent), size)
            sent.append(Sent(size, way))
            return twin, lambda: SENDS[way](twin, data)

        def after(number: int, outcome: str, value: Any) -> None:
            sent[-1] = Sent(size if value is None else value, f"{sent[-1].how}: {outcome}")
            checked_count(number, local, sharer)

        with arena(run):
            tally = race(run.rounds(rounds), run.dice, begin, after)
        drinker.ask("farewell")
        there = [] if sharer is None else sharer.ask(1)
        assert there == ([] if sharer is None else [0]), "the sharer goes on"
        assert local.references() == 1
        if local.type == socket.SOCK_DGRAM:
            local.send(b"")
        local.close()
        drinker.hear()
        compare(got, sent, size)
        run.note(send=tally.total(), **tally, bytes=got.stat().st_size)


def compare(got: Path, sent: list[Sent], size: int) -> None:
    """I1: the bytes that came are the blocks, as far as each was sent, one after the other."""
    with got.open("rb") as file:
        for number, (queued, _) in enumerate(sent):
            found = file.read(queued)
            wanted = block_of(number, size)[:queued]
            near = sent[max(0, number - 2) : number + 2]
            assert found == wanted, f"block {number} of {near}: {found[:8]!r} instead of {wanted[:8]!r}"
        assert file.read() == b"", "more has come than was sent"


# -- accept -----------------------------------------------------------------------------------------------------------


ACCEPTS: Final[tuple[Callable[[ss.SharedSocket], ss.SharedSocket], ...]] = (
    lambda shared: shared.accept()[0],
    lambda shared: shared.accept()[0],
    lambda shared: shared.begin_accept().result(HANG_S)[0],
)


@pytest.mark.rule("CLOSE-20", "CLOSE-42", "REF-1")
@pytest.mark.fault("I1", "I2", "I3")
@editions(DOORS, "tcp4")
def test_close_against_accept(kind: str, company: str, rounds: int, run: Run) -> None:
    """Every client is accepted by somebody, once, and served."""
    with kinds.listener_of(kind, 64) as local, ExitStack() as others:
        address = local.getsockname()
        clients = others.enter_context(
            partner(connecting_clients, address, int(local.family), run.dice.randrange(1 << 32))
        )
        sharer = sharer_of(others, company, sharing_accepts, local)
        local.settimeout(0)
        here: list[int] = []

        def begin(number: int) -> tuple[ss.SharedSocket, Callable[[], ss.SharedSocket]]:
            twin, accept = local.dup(), run.dice.choice(ACCEPTS)
            twin.settimeout(None)
            return twin, lambda: accept(twin)

        def drain() -> None:
            try:
                while True:
                    here.append(serve(local.accept()[0]))
            except BlockingIOError:
                pass

        def after(number: int, outcome: str, value: Any) -> None:
            if outcome == "won":
                here.append(serve(value))
            drain()
            checked_count(number, local, sharer)

        with arena(run):
            tally = race(run.rounds(rounds), run.dice, begin, after)
        made = clients.ask("stop", meanwhile=drain)
        clients.hear(meanwhile=drain)
        there = [] if sharer is None else sharer.ask(0)
        all_once([here, there], made)
        assert local.references() == 1
        local.close()
        with socket.socket(local.family) as late, pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            late.connect(address)
        run.note(accept=tally.total(), **tally, clients=made, elsewhere=len(there))


# -- connect ----------------------------------------------------------------------------------------------------------


CONNECTS: Final[tuple[Callable[[ss.SharedSocket, Any], None], ...]] = (
    lambda shared, address: shared.connect(address),
    lambda shared, address: shared.connect(address),
    lambda shared, address: shared.begin_connect(address).result(HANG_S),
)


@pytest.mark.rule("CLOSE-20", "REF-1")
@pytest.mark.fault("I1", "I2", "I3")
@editions(DOORS, "tcp4")
def test_close_against_connect(kind: str, company: str, rounds: int, run: Run, tmp_path: Path) -> None:
    """The attempt belongs to the socket: whoever else has it sees it through, and each arrives exactly once."""
    with ExitStack() as others:
        door = others.enter_context(socket.socket(socket.AF_INET if kind == "tcp4" else socket.AF_UNIX))
        door.bind(("127.0.0.1", 0) if kind == "tcp4" else str(tmp_path / "door"))
        door.listen(0)
        family, address = door.family, door.getsockname()
        server = others.enter_context(partner(taking_clients, door, run.dice.randrange(1 << 32)))
        door.close()
        other = others.enter_context(partner(holding_attempts)) if company == "process" else None
        twin: ss.SharedSocket | None = None

        def begin(number: int) -> tuple[ss.SharedSocket, Callable[[], None]]:
            nonlocal twin
            connect = run.dice.choice(CONNECTS)
            shared = ss.SharedSocket(family, socket.SOCK_STREAM)
            if other is None:
                twin = shared.dup()
            else:
                other.ask("take", shared.share(other.pid))
            if kind == "unix-stream":
                fill(family, address)
            return shared, lambda: connect(shared, address)

        def after(number: int, outcome: str, value: Any) -> None:
            if other is not None:
                other.ask("settle", address, number)
            else:
                assert twin is not None
                if number % COUNT_EVERY == 0:
                    assert twin.references() == 1
                settle(twin, address, number)

        with arena(run):
            tally = race(run.rounds(rounds), run.dice, begin, after)
        if other is not None:
            other.ask("end")
        records = server.ask("end")
        assert records == [record_of(number) for number in range(tally.total())]
        run.note(connect=tally.total(), **tally)


def fill(family: int, address: Any) -> None:
    """Leave no room in an AF_UNIX backlog, so that a connect waits; a full TCP backlog would hold it up for seconds."""
    try:
        while True:
            with socket.socket(family) as client:
                client.setblocking(False)
                client.connect(address)
    except BlockingIOError:
        pass
