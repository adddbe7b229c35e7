"""Forks: the child owns nothing of the parent's, and the parent notices nothing (rules 9, 10, 11)."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedsock.model import trace
from sharedsock.model.identity import DescriptorId
from sharedsock.registry import connect, numbers, runtime
from sharedsock.registry.client import Client
from tests.registry.double import (
    BOUND_S,
    T_EXIT_S,
    end_registry,
    facts,
    facts_of,
    in_child,
    open_numbers,
    shared_socket,
    ticket,
    tree,
    wait_ended,
    wait_readable,
)

ONE = DescriptorId(1)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with tree(monkeypatch):
        client = connect.default_client()
        yield client
        trace.hook = None
        end_registry(client)


@pytest.fixture
def sock(client: Client) -> Iterator[socket.socket]:
    ours, peer, _ = shared_socket(client)
    with ours, peer:
        yield ours


def _as_the_hooks_do(work: Callable[[], Any]) -> Any:
    """Fork as `descriptors` has it done: the turn across the fork, the child's hook first of all."""
    connect.fork_lock_acquire()
    try:

        def child() -> Any:
            connect.after_fork_in_child()
            return work()

        return _forked(child)
    finally:
        connect.fork_lock_release()


def _forked(work: Callable[[], Any]) -> Any:
    return in_child(work)


@pytest.mark.fault("F-86")
def test_a_child_owns_no_number_of_the_room(client: Client, sock: socket.socket) -> None:
    exchange = client._session.channel
    assert exchange is not None
    number = exchange._number
    claim = client.claim(ticket(client, sock))  # a descriptor on its way to its owner

    def look() -> tuple[dict[int, str], bool]:
        return open_numbers(), client.is_alive

    found, alive = _as_the_hooks_do(look)
    assert number not in found
    assert claim.fd not in found
    assert not alive
    assert not [what for what in found.values() if client.runtime in what]
    assert client.statistics().clients == 1
    client.refuse(claim)
    os.close(claim.fd)


@pytest.mark.fault("F-87", "F-93")
def test_a_child_that_calls_is_a_holder_of_its_own(client: Client, sock: socket.socket) -> None:
    nonce = client._session.nonce
    found = facts_of(sock)

    def child() -> tuple[bytes, int, list[int]]:
        client.announce(found, facts(1))
        counts = client.references(found.socket)
        return client._session.nonce, counts, sorted(holder.pid for holder in client.holders(found.socket))

    theirs, counts, pids = _as_the_hooks_do(child)
    assert theirs != nonce
    assert counts == 2
    assert os.getpid() in pids
    assert len(set(pids)) == 2
    wait_for_count(client, found.socket, 1)
    assert client._session.nonce == nonce


def wait_for_count(client: Client, socket_id: Any, count: int) -> None:
    """Wait until the registry has reaped the dead; each look is a call, so it meets the truth."""
    for _ in range(2000):
        if client.references(socket_id) == count:
            return
        select.poll().poll(1)
    raise AssertionError(f"{client.references(socket_id)} references, not {count}")


@pytest.mark.fault("F-90")
def test_a_fork_that_ran_no_hooks_is_noticed_at_the_next_call(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)
    heard = client.statistics().refusals
    libc = ctypes.PyDLL(None)
    reader, writer = os.pipe()
    exchange = client._session.channel
    assert exchange is not None
    claim = client.claim(ticket(client, sock))
    inherited = {(n, open_numbers()[n]) for n in (exchange._number, claim.fd)}
    pid = libc.fork()
    if pid == 0:
        status = 1
        try:
            alive = client.is_alive
            mine = client.statistics().clients
            os.write(writer, pickle.dumps((alive, mine, inherited & set(open_numbers().items()))))
            status = 0
        finally:
            os._exit(status)
    try:
        assert wait_readable(reader)
        alive, clients, kept = pickle.loads(os.read(reader, 4096))
        assert not alive
        assert clients == 2
        assert not kept
    finally:
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert client.references(found.socket) == 2, "the parent's stream is intact"
    assert client.statistics().refusals == heard, "no byte of the child came on the parent's channel"
    client.refuse(claim)
    os.close(claim.fd)


@pytest.mark.fault("F-87")
@pytest.mark.parametrize("point", ["take.sent", "share.fd_sent", "take.received"])
def test_a_fork_while_a_thread_is_in_mid_call_leaves_both_usable(
    client: Client, sock: socket.socket, point: str
) -> None:
    found = facts_of(sock)
    there, go_on = threading.Event(), threading.Event()

    def hold(reached: str, context: object) -> None:
        if reached == point and threading.current_thread().name == "held":
            there.set()
            assert go_on.wait(BOUND_S)

    secrets = [ticket(client, sock)]
    outcomes: list[Any] = []
    trace.hook = hold

    def call() -> None:
        if point == "share.fd_sent":
            secrets.append(ticket(client, sock))
        outcomes.append(client.claim(secrets[-1]))

    thread = threading.Thread(target=call, name="held")
    thread.start()
    assert there.wait(BOUND_S)
    before = client._session.nonce

    def child() -> tuple[int, bool, list[str]]:
        mine = client.announce(found, facts(9))
        client.begin_close(DescriptorId(9))
        client.end_close(DescriptorId(9))
        sockets = [what for what in open_numbers().values() if what.startswith("socket:")]
        return mine, client._session.nonce != before, sockets

    slot, renewed, sockets = _as_the_hooks_do(child)
    go_on.set()
    thread.join(BOUND_S)
    trace.hook = None
    assert slot >= 0
    assert renewed
    inherited = [what for what in open_numbers().values() if what.startswith("socket:")]
    assert len(set(sockets) - set(inherited)) == 1, "its own channel"
    claim = outcomes[0]
    assert claim.socket == found
    os.close(claim.fd)
    client.refuse(claim)


@pytest.mark.fault("F-87")
def test_a_fork_while_another_thread_leads_leaves_its_reply_to_it(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)
    client.announce(found, facts(2))
    assert not client.begin_close(ONE)
    answers: list[bool] = []
    closer = threading.Thread(target=lambda: answers.append(client.begin_close(DescriptorId(2))))
    closer.start()
    while client._session.channel is None or not client._session.channel.is_led:
        assert closer.is_alive()
    assert _as_the_hooks_do(lambda: client.statistics().clients) == 2
    client.end_close(ONE)
    closer.join(BOUND_S)
    assert answers == [True]
    client.end_close(DescriptorId(2))


def test_the_fork_waits_while_a_descriptor_is_between_kernel_and_note(client: Client) -> None:
    inside, leave, forked = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(BOUND_S)

    holder = threading.Thread(target=numbers.undivided, args=(hold,))
    holder.start()
    assert inside.wait(BOUND_S)

    def fork() -> None:
        connect.fork_lock_acquire()
        forked.set()
        connect.fork_lock_release()

    forker = threading.Thread(target=fork)
    forker.start()
    assert not forked.is_set()
    leave.set()
    forker.join(BOUND_S)
    holder.join(BOUND_S)
    assert forked.is_set()
    connect.fork_lock_acquire()
    assert numbers.undivided(lambda: 3) == 3, "the forking thread itself goes on"
    connect.fork_lock_release()


@pytest.mark.fault("F-88")
def test_a_killed_holder_is_reaped_though_its_child_lives(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        connect.after_fork_in_child()
        client.announce(found, facts(1))
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        os.write(writer, str(child).encode())
        signal.pause()
        os._exit(0)
    assert wait_readable(reader)
    grandchild = int(os.read(reader, 100))
    try:
        assert client.references(found.socket) == 2
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_for_count(client, found.socket, 1)
    finally:
        os.kill(grandchild, signal.SIGKILL)
        wait_ended(grandchild, T_EXIT_S)
        os.close(reader)
        os.close(writer)


@pytest.mark.fault("F-95")
def test_a_fork_in_a_fork_in_a_thread(client: Client, sock: socket.socket) -> None:
    found = facts_of(sock)

    def deeper(level: int) -> int:
        count = client.references(found.socket)
        return count if not level else int(_as_the_hooks_do(lambda: deeper(level - 1)))

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(deeper(4)))
    thread.start()
    thread.join(BOUND_S)
    assert results == [1]


def test_a_child_that_closed_and_reused_every_number_loses_none(client: Client) -> None:
    """A daemon closes all numbers it has inherited and opens its own: they are not ours to close."""
    exchange = client._session.channel
    assert exchange is not None
    number = exchange._number

    def child() -> bool:
        os.dup2(os.open(os.devnull, os.O_RDONLY), number)
        connect.after_fork_in_child()
        os.fstat(number)
        return client.statistics().clients == 2

    assert in_child(child)


def test_a_lock_of_a_start_is_not_inherited(client: Client) -> None:
    path = runtime.new_directory_name()
    directory, lock = runtime.acquire_start_lock(path, 1.0)

    def child() -> list[int]:
        return [n for n in (directory, lock) if n in open_numbers()]

    assert _as_the_hooks_do(child) == []
    runtime.remove_directory(path, directory)
    runtime.release_lock(lock)
    numbers.close_number(directory)
