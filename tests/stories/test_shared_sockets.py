"""The page "Shared Sockets in the SPI", told by real processes: how sockets come to be shared, and what that means."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import sharedsock as ss
from sharedsock.descriptors.providing import spelled
from sharedsock.registry import runtime
from sharedsock.testing import Aborted, Actor, Actors, Raised, Received
from sharedsock.testing.commands import Belongings
from tests.stories.conftest import put_under

pytestmark = pytest.mark.usefixtures("light_children")

METHODS = ("fork", "forkserver", "spawn", "exec")
BOUND_S = 60.0


def _chain_of(has: Belongings) -> str:
    """In an actor: what lies under its socket."""
    return spelled(has.shared("socket")._descriptor.chain)


@contextlib.contextmanager
def connection(shared_by: Actor, under: str = "") -> Iterator[socket.socket]:
    """Have an actor connect to this process; give the far end, a plain socket that knows nothing of all this."""
    if under:
        shared_by.do("call_with", put_under)
    with socket.create_server(("127.0.0.1", 0)) as door:
        shared_by.do("connect", "socket", door.getsockname())
        far, _ = door.accept()
    with far:
        far.settimeout(BOUND_S)
        yield far


def is_quiet(far: socket.socket) -> bool:
    """Whether the far end sees nothing at all at this moment, neither data nor FIN nor reset."""
    poll = select.poll()
    poll.register(far, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-3", "DUP-12", "DUP-14", "DUP-19", "DUP-21", "REF-1", "REF-2")
@pytest.mark.fault("F-12")
@pytest.mark.parametrize(
    ("method", "under"), [*((method, "alone") for method in METHODS), ("fork", "chained")], indirect=["under"]
)
def test_the_sequence_of_the_page(registry: ss.Registry, method: str, under: str) -> None:
    """Steps 1 to 10 of the table, source and target started by each method."""
    with Actors(method) as actors:
        source, target = actors.start("source", "target")
        # 1: the source creates and connects. 2-4: it learns the target's process id, by any IPC.
        with connection(source, under) as far:
            target_pid = target.call(os.getpid)
            # 5: the source asks for a special protocol info for that process; its own descriptor is unchanged.
            info = source.do("share", target_pid)
            source.sendall(b"5")
            assert far.recv(8) == b"5"
            # 6-7: the info travels by any IPC; whoever carries it can do nothing with it.
            with pytest.raises(ss.TicketInvalid):
                ss.fromshare(info)
            # 8: the target creates a socket from it: the same one, with its family, type and protocol. Once.
            target.do("take", info)
            again = target.thread("main").do("take", info, on="again").outcome()
            assert again == Raised("TicketAlreadyClaimed", 10022, 22)
            assert source.do("references") == 2
            assert [actor.do("call_with", _chain_of) for actor in (source, target)] == [under, under]
            # 9: the target uses it, and so does the source.
            target.sendall(b"9")
            assert far.recv(8) == b"9"
            far.sendall(b"to whoever reads")
            assert source.recv(7) + target.recv(32) == b"to whoever reads"
            # 10: the source closes. The target's descriptor is its own, and nobody else noticed.
            reading = target.thread("reader").recv(32)
            target.wait_until_blocked("reader")
            source.close()
            assert is_quiet(far)
            far.sendall(b"10")
            assert reading.outcome() == Received(b"10")
            assert target.do("references") == 1
            target.close()
            assert far.recv(1) == b""


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.fault("F-24")
def test_strangers_share_by_the_ticket_alone(registry: ss.Registry) -> None:
    """Source and target of different trees of processes, with no registry in common but the one the ticket names."""
    elsewhere: dict[str, str | None] = {
        "SHAREDSOCK_REGISTRY": None,
        runtime.TREE_VARIABLE: runtime.new_directory_name(),
    }
    with Actors("fork") as ours, Actors("exec", environment=elsewhere) as theirs:
        (source,) = ours.start("source")
        (target,) = theirs.start("target")
        with connection(source) as far:
            info = source.do("share", target.pid)
            source.kill()
            target.do("take", info)
            target.sendall(b"never met")
            assert far.recv(16) == b"never met"
            target.close()
            assert far.recv(1) == b""


@pytest.mark.rule("DUP-10", "DUP-15", "CLOSE-43", "CLOSE-42", "EXIT-1", "REF-5")
@pytest.mark.fault("F-17", "F-30")
@pytest.mark.usefixtures("under")
def test_a_listener_served_by_a_house_of_workers(registry: ss.Registry) -> None:
    """One ticket for each worker; the source leaves, a worker is killed: clients are served, each of them once."""
    with Actors("fork") as actors, ss.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        workers = actors.share(listener, count=3)
        listener.close()
        serving = [worker.thread("server").do("serve_clients") for worker in workers]
        for worker in workers:
            worker.wait_until_blocked("server")

        def greeted(count: int) -> Counter[bytes]:
            """Connect, one after the other: all workers wait for each client, one gets it."""
            names: Counter[bytes] = Counter()
            for _ in range(count):
                with socket.create_connection(address, BOUND_S) as client:
                    names[client.recv(64)] += 1
            return names

        assert sum(greeted(12).values()) == 12
        assert sum(len([e for e in worker.events if e.kind == "client"]) for worker in _pumped(actors)) == 12
        workers[0].kill()
        names = greeted(12)
        assert sum(names.values()) == 12
        assert workers[0].name.encode() not in names
        workers[1].wait_until_blocked("server")
        workers[1].close()
        assert serving[1].outcome() == Aborted(10004)
        assert greeted(3) == {workers[2].name.encode(): 3}
        workers[2].wait_until_blocked("server")
        workers[2].close()
        assert serving[2].outcome() == Aborted(10004)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, BOUND_S)


def _pumped(actors: Actors) -> list[Actor]:
    everybody = list(actors)
    actors.wait_for(
        lambda: sum(event.kind == "client" for actor in everybody for event in actor.events) == 12, "twelve reports"
    )
    return everybody


def _hand_on(has: Belongings, pid: int) -> bytes:
    """Share what was just taken with the next process, and close: the socket travels."""
    shared = has.shared("socket")
    info = shared.share(pid)
    shared.close()
    return info


@pytest.mark.rule("DUP-12", "REF-2", "REF-5")
@pytest.mark.fault("F-12", "F-70")
def test_a_socket_travels_through_processes_that_each_close_it(registry: ss.Registry, under: str) -> None:
    """Between two stations the ticket is the only reference there is; the far end never notices."""
    with Actors("fork") as actors:
        stations = actors.start("first", "second", "third", "fourth")
        with connection(stations[0], under) as far:
            for here, there in itertools.pairwise(stations):
                info = here.do("call_with", _hand_on, there.pid)
                assert [count for _, count in registry.client.sockets()] == [1]
                assert is_quiet(far)
                there.do("take", info)
                there.sendall(there.name.encode())
                assert far.recv(16) == there.name.encode()
            assert stations[-1].do("call_with", _chain_of) == under
            stations[-1].close()
            assert far.recv(1) == b""
            assert registry.client.sockets() == ()


@pytest.mark.rule("DUP-14", "DUP-19", "CLOSE-20", "CLOSE-28")
@pytest.mark.parametrize("ending", ["close", "kill"])
def test_what_one_process_does_to_its_descriptor_is_its_own_affair(
    registry: ss.Registry, ending: str, under: str
) -> None:
    """Three processes blocked in recv on one socket: one closes or dies, the others go on waiting and receive."""
    with Actors("fork") as actors:
        trio = actors.start("one", "two", "three")
        with connection(trio[0], under) as far:
            trio[0].give_to(trio[1])
            trio[1].give_to(trio[2])
            reading = [actor.thread("reader").recv(16) for actor in trio]
            looks = [actor.wait_until_blocked("reader") for actor in trio]
            end: Callable[[], object] = getattr(trio[0], ending)
            end()
            if ending == "close":
                assert reading[0].outcome() == Aborted(10004)
            assert [actor.wait_until_blocked("reader") for actor in trio[1:]] == looks[1:], "no system call meanwhile"
            assert is_quiet(far)
            for _ in range(2):
                far.sendall(b"still here")
                actors.wait_for(lambda: any(one.is_done() for one in reading[1:]), "one of the two to receive")
                done = next(one for one in reading[1:] if one.is_done())
                assert done.outcome() == Received(b"still here")
                reading.remove(done)
            assert len(reading) == 1
