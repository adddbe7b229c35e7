"""A socket, or a ticket for it, through whatever pickles: queues, pools, executors, managers, under each start method.

A ticket is minted when `ticket()` is called, so its maker may close at once; a socket is minted when it is pickled, and
queues, pools and executors do that later, in a thread of their own.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import pickle
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import queues
from typing import Any, Final

import pytest

import sharedsock as ss
from tests.descriptors.launched import JOIN_S, finish
from tests.descriptors.sharers import skewed_registry, wait_end_of, wait_until
from tests.sharedsocket import pickled

pytestmark = pytest.mark.usefixtures("light_children")

METHODS: Final = ("fork", "forkserver", "spawn")


def lines(peer: socket.socket, count: int) -> list[bytes]:
    """Receive so many lines, in any order."""
    said = b""
    while said.count(b"\n") < count:
        chunk = peer.recv(4096)
        assert chunk, said
        said += chunk
    return sorted(said.splitlines())


@contextmanager
def executor(method: str, workers: int = 1, **more: Any) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, **more) as made:
        yield made


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
@pytest.mark.parametrize("method", METHODS)
def test_a_ticket_through_each_kind_of_queue(
    pair: tuple[ss.SharedSocket, socket.socket], method: str, kind: str
) -> None:
    """Put, and the maker's descriptor closed before anybody gets it."""
    ours, peer = pair
    context = multiprocessing.get_context(method)
    queue: Any = getattr(context, kind)()
    queue.put(ours.ticket())
    ours.close()
    process = context.Process(target=pickled.take_from, args=(queue, b"from the queue"))  # type: ignore[attr-defined]
    process.start()
    assert lines(peer, 1) == [b"from the queue"]
    assert finish(process) == 0
    wait_end_of(peer)
    queue.close()
    if kind != "SimpleQueue":
        queue.join_thread()


@pytest.mark.rule("DUP-2")
def test_a_simple_queue_pickles_at_once(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """So the socket itself will do, even with a close right behind the put."""
    ours, peer = pair
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    queue.put(ours)
    ours.close()
    with queue.get() as mine:
        mine.sendall(b"here\n")
        assert lines(peer, 1) == [b"here"]
    queue.close()


@pytest.mark.rule("DUP-7")
def test_a_socket_closed_before_its_queue_pickles_it_says_what_to_do(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue.put(s); s.close()`: the feeder thread meets a closed socket. The queue goes on with what follows."""
    ours, peer = pair
    closed, errors = threading.Event(), []
    real = ss.SharedSocket.__reduce_ex__

    def reduce_late(self: ss.SharedSocket, protocol: object) -> Any:
        assert closed.wait(JOIN_S)
        return real(self, protocol)

    monkeypatch.setattr(ss.SharedSocket, "__reduce_ex__", reduce_late)
    monkeypatch.setattr(queues.Queue, "_on_queue_feeder_error", staticmethod(lambda error, item: errors.append(error)))
    queue: Any = multiprocessing.get_context("spawn").Queue()
    queue.put(ours)
    queue.put(ours.ticket())
    ours.close()
    closed.set()
    with queue.get(timeout=JOIN_S) as mine:
        mine.sendall(b"by ticket\n")
        assert lines(peer, 1) == [b"by ticket"]
    (error,) = errors
    assert isinstance(error, ss.NotASocket)
    assert error.winerror == 10038
    assert "ticket()" in str(error)
    queue.close()
    queue.join_thread()


# -- once, and not at all ---------------------------------------------------------------------------------------------


@pytest.mark.rule("DUP-3")
@pytest.mark.fault("F-22")
def test_one_pickle_is_one_socket_wherever_it_is_unpickled(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """The same bytes in a worker and here: whoever comes second is told so."""
    ours, peer = pair
    ticket = ours.ticket()
    data = pickle.dumps(ticket)
    with executor("fork") as workers:
        assert workers.submit(pickled.answer, ticket, b"first").result(JOIN_S) == 0
        assert lines(peer, 1) == [b"first"]
        with pytest.raises(ss.TicketAlreadyClaimed):
            pickle.loads(data)
        # What cannot be unpickled in a worker breaks an executor: the standard library's own rule, for any argument.
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            workers.submit(pickled.answer, ticket).result(JOIN_S)
    wait_until(lambda: ours.references() == 1, "the worker's reference to go")


@pytest.mark.rule("DUP-13")
@pytest.mark.fault("F-20")
@pytest.mark.parametrize("what", ["ticket", "pickle"])
def test_what_is_never_unpickled_is_given_back_after_its_time(what: str) -> None:
    """A Ticket that is collected is not revoked: its bytes may be on their way. It ends after 60 s, or by revoke()."""
    with skewed_registry() as (handle, clocks):
        left, peer = socket.socketpair()
        with peer, ss.adopt(left) as ours:
            revoked = ours.ticket()
            dropped: Any = pickle.dumps(ours) if what == "pickle" else ours.ticket()
            assert ours.references() == 3
            assert revoked.revoke()
            data = dropped if what == "pickle" else pickle.dumps(dropped)
            del dropped
            gc.collect()
            assert ours.references() == 2, "in a pickle, in a pipe, in a queue: somebody may have it"
            ours.close()
            clocks.monotonic_s += 50.0
            handle.client.statistics()  # any word wakes the registry, whose clock has been moved under it
            peer.sendall(b"still open")
            clocks.monotonic_s += 10.1
            handle.client.statistics()
            with pytest.raises(ss.TicketExpired):
                pickle.loads(data)
            wait_end_of(peer)


# -- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("DUP-2")
@pytest.mark.fault("F-93")
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_takes_tickets_as_arguments_of_its_tasks(
    pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """apply, map, imap, apply_async: one ticket a task, whichever worker gets it, in however large chunks."""
    ours, peer = pair
    words = [b"%d" % number for number in range(6)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        left = pool.map(pickled.answer_each, [(ours.ticket(), word) for word in words], chunksize=3)
        assert left == [2, 1, 0] * 2, "a chunk is unpickled as a whole, so all its tickets are redeemed at once"
        assert lines(peer, 6) == words
        assert list(pool.imap_unordered(pickled.answer_each, ((ours.ticket(), word) for word in words))) == [0] * 6
        assert lines(peer, 6) == words
        assert pool.apply_async(pickled.answer, (ours.ticket(),)).get(JOIN_S) == 0
        assert pool.apply(pickled.answer, (), {"shared": ours.ticket()}) == 0
        assert lines(peer, 2) == [b"used", b"used"]
        assert ours.references() == 1, "every worker has closed what it was given"
        pool.close()
        pool.join()


@pytest.mark.rule("DUP-2", "REF-1")
@pytest.mark.fault("F-89", "F-93")
@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", METHODS)
def test_each_worker_gets_a_descriptor_of_its_own_from_initargs(
    pair: tuple[ss.SharedSocket, socket.socket], method: str, kind: str
) -> None:
    """The socket itself: one ticket is minted as each worker is launched. They are the workers', and go with them."""
    ours, peer = pair
    initialized: Any = {"initializer": pickled.keep, "initargs": (ours,)}
    if kind == "Pool":
        with multiprocessing.get_context(method).Pool(2, **initialized) as pool:
            pool.map(pickled.answer_kept, [b"kept"] * 2, chunksize=1)
            assert lines(peer, 2) == [b"kept"] * 2
            wait_until(lambda: ours.references() == 3, "both workers to be there")
            pool.close()
            pool.join()
    else:
        with executor(method, 1, **initialized) as workers:
            workers.submit(pickled.answer_kept, b"kept").result(JOIN_S)
            assert lines(peer, 1) == [b"kept"]
            assert ours.references() == 2
    wait_until(lambda: ours.references() == 1, "the workers' references to go")


# -- executors --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.parametrize("method", METHODS)
def test_an_executor_takes_tickets_and_gives_sockets(pair: tuple[ss.SharedSocket, socket.socket], method: str) -> None:
    """submit and map with tickets; a result that is a ticket, or a socket, is a socket here."""
    ours, peer = pair
    with executor(method) as workers:
        running = workers.submit(pickled.answer, ours.ticket(), b"by submit")
        mapped = workers.map(pickled.answer, [ours.ticket(), ours.ticket()], [b"one", b"two"])
        ours.close()
        assert running.result(JOIN_S) == 0
        assert list(mapped) == [0, 0]
        assert lines(peer, 3) == [b"by submit", b"one", b"two"]
        wait_end_of(peer)
        with workers.submit(pickled.make, "ticket").result(JOIN_S) as made:
            assert isinstance(made, ss.SharedSocket)
            assert made.recv(32) == b"made there"
            assert made.recv(1) == b"", "the worker has closed both of its ends"


@pytest.mark.rule("DUP-7")
def test_a_socket_closed_before_an_executor_pickles_it_fails_its_future(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the future's, and names ticket(); the executor goes on."""
    ours, _ = pair
    closed = threading.Event()
    real = ss.SharedSocket.__reduce_ex__

    def reduce_late(self: ss.SharedSocket, protocol: object) -> Any:
        assert closed.wait(JOIN_S)
        return real(self, protocol)

    monkeypatch.setattr(ss.SharedSocket, "__reduce_ex__", reduce_late)
    with executor("fork") as workers:
        running = workers.submit(pickled.answer, ours)
        ours.close()
        closed.set()
        with pytest.raises(ss.NotASocket, match=r"ticket\(\)"):
            running.result(JOIN_S)
        assert workers.submit(len, b"four").result(JOIN_S) == 4


@pytest.mark.rule("DUP-2", "REF-1")
def test_a_task_that_raises_gives_its_socket_back(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Closed by the task's own with-block; the worker lives on."""
    ours, _ = pair
    with executor("fork") as workers:
        with pytest.raises(ValueError, match="as told"):
            workers.submit(pickled.fail_with, ours.ticket()).result(JOIN_S)
        assert workers.submit(pickled.references_of, ours.ticket()).result(JOIN_S) == 2
        assert ours.references() == 1


@pytest.mark.rule("DUP-2", "REF-1")
def test_a_socket_as_a_result_is_left_to_the_worker_s_collector(registry: ss.Registry) -> None:
    """It is pickled in time; what the worker still has is collected there, and counted out with its next call."""
    with executor("fork") as workers:
        with warnings.catch_warnings(), workers.submit(pickled.make, "socket").result(JOIN_S) as made:
            assert made.recv(32) == b"made there"
            workers.submit(pickled.make, "ticket").result(JOIN_S).close()
            wait_until(lambda: made.references() == 1, "the worker's own to be counted out")
            assert made.recv(1) == b""


# -- managers ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("DUP-2", "DUP-12")
@pytest.mark.parametrize("method", METHODS)
def test_a_manager_s_queue_passes_a_socket_on(pair: tuple[ss.SharedSocket, socket.socket], method: str) -> None:
    """The manager's process redeems what is put there, and mints anew for whoever gets it."""
    ours, peer = pair
    context = multiprocessing.get_context(method)
    with context.Manager() as manager:
        queue = manager.Queue()
        queue.put(ours.ticket())
        ours.close()
        process = context.Process(target=pickled.take_from, args=(queue, b"by a manager"))  # type: ignore[attr-defined]
        process.start()
        assert lines(peer, 1) == [b"by a manager"]
        assert finish(process) == 0
    wait_end_of(peer)
