"""The page "Closing Sockets", told by real processes: one test for each of its promises, in its words.

A close releases the descriptor: what threads of this process have pending on it is aborted, and later use fails. Shared
sockets are counted; what belongs to the underlying socket, its name and its queues, goes with the last reference only,
and queued data is sent first where DONTLINGER asks for a graceful end. Each test is named after the words it holds.

Its last sentence, on providers without IFS handles, is the SPI face's.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Aborted, Accepted, Actor, Actors, Pending, Raised, Received, Returned
from sharedsock.testing.observation import socket_inodes
from tests.descriptors import kinds

pytestmark = pytest.mark.usefixtures("light_children")

METHODS = ("fork", "forkserver", "spawn", "exec")
THREADS = ("first", "second", "third")


@pytest.fixture(scope="module")
def company(registry: ss.Registry) -> Iterator[tuple[Actor, Actor, Actor]]:
    """Three processes for the promises that do not depend on how a process was started."""
    with Actors("fork") as actors:
        a, b, c = actors.start("A", "B", "C")
        yield a, b, c


def share(shared: ss.SharedSocket, *actors: Actor, on: str = "socket") -> None:
    """Give each actor a descriptor of its own, and our own up."""
    for actor in actors:
        actor.do("take", shared.share(actor.pid), on=on)
    shared.close()


def are_done(operations: list[Pending], count: int) -> Callable[[], bool]:
    """Return a condition: so many of the operations have ended."""
    return lambda: sum(one.is_done() for one in operations) == count


@pytest.mark.rule("CLOSE-1", "CLOSE-2", "CLOSE-20", "CLOSE-28", "CLOSE-31", "REF-2")
@pytest.mark.fault("F-38")
@pytest.mark.parametrize(
    ("method", "under"),
    [*((method, "alone") for method in METHODS), ("fork", "chained"), ("spawn", "chained")],
    indirect=["under"],
)
def test_any_pending_operations_in_any_threads_of_the_same_process_will_be_aborted(
    method: str, under: str, registry: ss.Registry, bounds: Any
) -> None:
    """Three receives and an accept in each of two processes: the closer's end, the other's do not even wake."""
    with Actors(method) as actors, kinds.pair_of("tcp4") as pair, kinds.listener_of("tcp4") as listener:
        a, b = actors.start("A", "B")
        address = listener.getsockname()
        share(pair.local, a, b)
        share(listener, a, b, on="door")
        pending = {actor: [actor.thread(name).recv(16) for name in THREADS] for actor in (a, b)}
        doors = {actor: actor.thread("accepter").accept(on="door") for actor in (a, b)}
        for name in (*THREADS, "accepter"):
            a.wait_until_blocked(name)
        asleep = {name: b.wait_until_blocked(name) for name in (*THREADS, "accepter")}

        closings = [a.thread("closer").close(), a.thread("closer").close(on="door")]
        assert [operation.outcome() for operation in (*pending[a], doors[a])] == [Aborted(10004)] * 4
        for operation, closing in [*((one, closings[0]) for one in pending[a]), (doors[a], closings[1])]:
            bounds.check("T_abort", operation.ended_s - closing.began_s)
        assert kinds.is_silent(pair.peer)
        assert {name: b.wait_until_blocked(name) for name in asleep} == asleep, "no system call meanwhile"

        for number in range(3):
            pair.peer.sendall(b"record %d" % number)
            actors.wait_for(are_done(pending[b], number + 1), "a record of its own for each thread")
        assert sorted(one.value() for one in pending[b]) == [b"record 0", b"record 1", b"record 2"]
        with socket.create_connection(address):
            assert isinstance(doors[b].outcome(), Accepted)
        b.close(on="client")
        b.close(on="door")
        b.close()
        assert pair.peer.recv(1) == b""


@pytest.mark.rule("CLOSE-2", "CLOSE-4", "CLOSE-28")
@pytest.mark.usefixtures("under")
def test_any_further_reference_to_it_will_fail(company: tuple[Actor, Actor, Actor]) -> None:
    """In the process that closed it, whatever the call; not in another, and not through another descriptor."""
    a, b, _ = company
    with kinds.pair_of("tcp4") as pair:
        share(pair.local, a, b)
        a.close()
        not_a_socket = Raised("NotASocket", 10038, 9)
        caller = a.thread("caller")
        for outcome in (
            caller.recv(1),
            caller.send(b"x"),
            caller.sendall(b"x"),
            caller.accept(),
            caller.do("shutdown", socket.SHUT_WR),
            caller.do("set_linger", True, 0),
            caller.do("share", b.pid),
            caller.do("references"),
            caller.do("call_with", kinds.attribute_of, "getsockname", "socket"),
            caller.do("call_with", kinds.attribute_of, "settimeout", "socket", 1.0),
        ):
            assert outcome.outcome() == not_a_socket
        assert kinds.is_silent(pair.peer)
        b.sendall(b"mine is open")
        assert pair.peer.recv(16) == b"mine is open"
        b.close()


@pytest.mark.rule("REF-1", "REF-2", "REF-5", "DUP-12", "CLOSE-1", "SHUT-16")
@pytest.mark.fault("F-12", "F-70")
@pytest.mark.usefixtures("under")
def test_a_reference_count_is_employed_for_shared_sockets(company: tuple[Actor, Actor, Actor]) -> None:
    """Descriptors and tickets count; the socket is there until none is left, and then it is gone everywhere."""
    a, b, c = company
    with kinds.pair_of("tcp4") as pair:
        share(pair.local, a, b)
        (_, inode) = a.do("facts")
        assert a.do("references") == 2
        info = a.do("share", c.pid)
        assert b.do("references") == 3
        for actor, left in ((a, 2), (b, None)):
            actor.close()
            assert kinds.is_silent(pair.peer)
            if left is not None:
                assert b.do("references") == left
        c.do("take", info)
        assert c.do("references") == 1
        c.sendall(b"from the last")
        assert pair.peer.recv(16) == b"from the last"
        assert [inode in socket_inodes(actor.pid) for actor in company] == [False, False, True]
        c.close()
        assert pair.peer.recv(1) == b""
        assert not any(inode in socket_inodes(pid) for pid in (*(actor.pid for actor in company), os.getpid()))


@pytest.mark.rule("REF-2", "REF-3", "CLOSE-42", "CLOSE-43", "LINGER-3", "LINGER-12", "LINGER-13")
@pytest.mark.fault("F-62", "F-66", "F-68")
@pytest.mark.usefixtures("under")
def test_only_the_last_reference_discards_queued_data_where_no_graceful_close_is_requested(
    company: tuple[Actor, Actor, Actor],
) -> None:
    """LINGER(0), set by one, acts when another closes last: options, name and queues are intact until then."""
    a, b, _ = company
    with kinds.pair_of("tcp4", receive_buffer=4096) as pair:
        name = pair.local.getsockname()
        share(pair.local, a, b)
        a.do("set_linger", True, 0)
        queued = a.do("call_with", kinds.queue_in, 1 << 18)
        a.close()
        assert kinds.is_quiet(pair.peer)
        assert b.do("call_with", kinds.attribute_of, "getsockname", "socket") == name
        assert b.do("call_with", kinds.attribute_of, "getpeername", "socket") == pair.peer.getsockname()
        first = kinds.drain_bytes(pair.peer, 1000)
        assert first == kinds.payload(1 << 18)[:1000]
        b.close()
        assert kinds.is_reset(pair.peer)
        with pytest.raises(ConnectionResetError):
            assert len(kinds.receive_all(pair.peer)) < queued - 1000


@pytest.mark.rule("REF-3", "CLOSE-42", "CLOSE-43")
@pytest.mark.fault("F-72")
@pytest.mark.usefixtures("under")
def test_only_the_last_reference_discards_the_naming_information(company: tuple[Actor, Actor, Actor]) -> None:
    """A port can be bound, a path is gone, a client is refused: after the last close, and no sooner."""
    a, b, _ = company
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "door"
        with kinds.listener_of("tcp4") as port, ss.SharedSocket(socket.AF_UNIX) as door:
            address = port.getsockname()
            door.bind(str(path))
            door.listen()
            share(port, a, b, on="port")
            share(door, a, b, on="door")
        for name in ("port", "door"):
            a.close(on=name)
        with socket.create_connection(address), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        for name in ("port", "door"):
            b.close(on=name)
        assert not path.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.socket() as anew:
            anew.bind(address)


@pytest.mark.rule("REF-4", "LINGER-2", "SHUT-16")
@pytest.mark.fault("F-64")
@pytest.mark.usefixtures("under")
def test_with_dontlinger_any_data_queued_for_transmission_will_be_sent(
    company: tuple[Actor, Actor, Actor], bounds: Any
) -> None:
    """2 MiB unsent at the last close, which returns at once; the process is gone before the slow reader has begun."""
    _, _, c = company
    with Actors("fork") as actors, kinds.pair_of("tcp4", receive_buffer=1 << 16) as pair:
        (last,) = actors.start("last")
        share(pair.local, last, c)
        assert last.do("call_with", kinds.queue_in, 2 << 20) == 2 << 20
        c.close()
        closing = last.thread("closer").close()
        assert closing.outcome() == Returned()
        bounds.check("T_eof", closing.ended_s - closing.began_s)
        last.exit()
        assert kinds.receive_all(pair.peer) == kinds.payload(2 << 20)


@pytest.mark.rule("EXIT-1", "CLOSE-28", "REF-2")
@pytest.mark.fault("F-58")
@pytest.mark.usefixtures("under")
def test_a_process_that_ends_without_a_close_has_closed_for_itself_alone(
    company: tuple[Actor, Actor, Actor], bounds: Any
) -> None:
    """LPWSPCLEANUP: a provider must be ready for an abrupt exit."""
    a, *_ = company
    with Actors("fork") as actors, kinds.pair_of("tcp4") as pair:
        (doomed,) = actors.start("doomed")
        share(pair.local, a, doomed)
        reading = a.thread("caller").recv(16)
        asleep = a.wait_until_blocked("caller")
        doomed.kill()
        a.thread("watcher").do("call_with", wait_alone).value()
        assert a.wait_until_blocked("caller") == asleep
        assert kinds.is_silent(pair.peer)
        pair.peer.sendall(b"still here")
        assert reading.outcome() == Received(b"still here")
        a.close()


def wait_alone(has: Any) -> None:
    """In an actor: wait until its reference is the only one left."""
    while has.shared("socket").references() > 1:
        os.sched_yield()
