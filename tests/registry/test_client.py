"""The calls of one process, over a live registry: what they answer and what they refuse."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from sharedsock.model import trace
from sharedsock.model.errors import (
    NotASocket,
    RegistryGone,
    TicketAlreadyClaimed,
    TicketError,
    TicketInvalid,
)
from sharedsock.model.identity import DescriptorId
from sharedsock.registry import connect, runtime
from sharedsock.registry.client import Client
from sharedsock.registry.page import CommonState
from tests.registry.double import (
    Script,
    facts,
    facts_of,
    in_child,
    open_numbers,
    ticket,
)

ONE, TWO, THREE = DescriptorId(1), DescriptorId(2), DescriptorId(3)


@pytest.fixture(autouse=True)
def no_hook() -> Iterator[None]:
    yield
    trace.hook = None


def test_a_ticket_becomes_a_descriptor_on_the_same_socket(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = pair
    found = facts_of(ours)
    claim = client.claim(ticket(client, ours))
    with socket.socket(fileno=claim.fd) as twin:
        assert claim.socket == found
        assert claim.target_bound
        assert client.references(found.socket) == 2, "rule 8: the ticket's reference, until it is acknowledged"
        client.acknowledge(claim, facts(2))
        client.acknowledge(claim, facts(2))
        assert client.references(found.socket) == 2
        twin.send(b"through the twin")
        assert peer.recv(99) == b"through the twin"
        assert [holder.descriptor for holder in client.holders(found.socket)] == [1, 2]
        assert client.sockets() == ((found, 2),)
    assert not client.begin_close(TWO)
    client.end_close(TWO)
    assert [(holder.descriptor, holder.kind) for holder in client.former_holders(found.socket)] == [(TWO, "closed")]
    assert client.begin_close(ONE)
    client.cancel_close(ONE)
    assert client.begin_close(ONE)
    client.end_close(ONE)
    assert client.references(found.socket) == 0
    assert client.is_idle()


def test_refuse_and_revoke_leave_no_reference(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    found = facts_of(ours)
    secret = ticket(client, ours)
    claim = client.claim(secret)
    client.refuse(claim)
    os.close(claim.fd)
    again = client.claim(secret)
    os.close(again.fd)
    client.refuse(again)
    assert client.references(found.socket) == 2
    assert client.revoke(secret)
    assert not client.revoke(secret)
    assert client.references(found.socket) == 1
    with pytest.raises(TicketInvalid):
        client.claim(secret)


def test_bind_and_lend_reach_the_ledger(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    found = facts_of(ours)
    secret = client.issue(found.socket, ONE, ours.fileno(), None, None)
    assert client.bind(secret, os.getpid())
    claim = client.claim(secret)
    os.close(claim.fd)
    client.refuse(claim)
    assert client.revoke(secret)
    with Script("import sys; print('up', flush=True); sys.stdin.read()") as other:
        other.hear()
        client.lend(found.socket, ONE, other.pid)
        assert client.references(found.socket) == 2
        assert [(h.kind, h.pid) for h in client.holders(found.socket)][1] == ("lent", other.pid)


@pytest.mark.rule("DUP-6")
@pytest.mark.fault("F-10")
@pytest.mark.parametrize("pid", [0, -1, 1 << 31, "reaped", "zombie", "registry"])
def test_a_target_that_is_no_living_process_of_ours_gets_no_ticket(
    client: Client, pair: tuple[socket.socket, socket.socket], pid: Any
) -> None:
    ours, _ = pair
    found = facts_of(ours)
    process = None
    if pid == "registry":
        pid = client.pid
    elif isinstance(pid, str):
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if pid == "reaped":
            process.wait()
        pid = process.pid
    try:
        with pytest.raises(TicketError) as caught:
            client.issue(found.socket, ONE, ours.fileno(), pid, None)
    finally:
        if process is not None:
            process.wait()
    assert caught.value.winerror == 10022
    assert client.references(found.socket) == 1


@pytest.mark.fault("F-22")
@pytest.mark.rule("DUP-3")
def test_two_threads_that_redeem_at_once_get_one_descriptor(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair
    secret = ticket(client, ours)
    barrier = threading.Barrier(2)

    def meet(point: str, context: object) -> None:
        if point == "take.sent":
            barrier.wait(60)

    trace.hook = meet
    outcomes: list[object] = []

    def redeem() -> None:
        try:
            outcomes.append(client.claim(secret))
        except TicketAlreadyClaimed as refused:
            outcomes.append(refused)

    threads = [threading.Thread(target=redeem) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    trace.hook = None
    claims = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert len(outcomes) == 2
    assert len(claims) == 1
    os.close(claims[0].fd)  # type: ignore[attr-defined]


def test_the_common_state_is_read_from_the_page(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    found = facts_of(ours)
    slot = client.announce(found, facts(1))
    assert client.common(slot) == CommonState()
    client.set_common(found.socket, linger_s=0, shut_send=True)
    client.set_common(found.socket, nonblocking=True)
    assert client.common(slot) == CommonState(shut_send=True, nonblocking=True, linger_s=0)
    client.set_common(found.socket, linger_s=None)
    assert client.common(slot).linger_s is None
    with pytest.raises(TypeError):
        client.set_common(found.socket, colour=3)
    with pytest.raises(NotASocket):
        client.set_common(type(found.socket)(found.socket + 1), linger_s=0)
    os.kill(client.pid, signal.SIGKILL)
    assert client.common(slot).nonblocking, "the mapping outlives the registry"


def test_lists_longer_than_a_message_come_in_pages(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    found = facts_of(ours)
    for number in range(2, 200):
        client.announce(found, facts(number))
    assert sorted(holder.descriptor for holder in client.holders(found.socket)) == list(range(1, 200))


@pytest.mark.fault("F-29")
def test_no_room_for_the_descriptor_leaves_the_ticket_good(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    """EMFILE at the receiver: recvmsg succeeds, and the descriptor is gone. The sweep: k free numbers, k = 0, 1 …"""
    ours, _ = pair
    found = facts_of(ours)
    secret = ticket(client, ours)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_numbers()) + 5, hard))
    filling: list[int] = []
    try:
        while True:
            try:
                filling.append(os.dup(0))
            except OSError:
                break
        refusals: list[tuple[int | None, int]] = []
        for _ in range(3):
            for _ in range(2):
                try:
                    claim = client.claim(secret)
                    break
                except OSError as error:
                    refusals.append((error.errno, error.winerror))  # type: ignore[attr-defined]
                    with pytest.raises(OSError, match="Too many open files"):
                        filling.append(os.dup(0))
            else:
                os.close(filling.pop())
                continue
            break
        assert refusals == [(errno.EMFILE, 10024)] * 2
        assert claim.socket == found
        assert client.references(found.socket) == 2
        os.close(claim.fd)
        client.refuse(claim)
        assert client.claim(secret).fd == claim.fd, "no number was lost on the way"
        os.close(claim.fd)
    finally:
        for number in filling:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F-35", "S-15")
def test_what_arrives_is_never_inherited(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    claim = client.claim(ticket(client, ours))
    try:
        assert not os.get_inheritable(claim.fd)
        text = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        listed = subprocess.run([sys.executable, "-S", "-c", text], close_fds=False, capture_output=True, check=True)
        assert f"'{claim.fd}'" not in listed.stdout.decode()
    finally:
        client.refuse(claim)
        os.close(claim.fd)


def test_a_slow_answer_holds_up_nobody(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    """Two closers of one socket: the newest waits for the other, and the calls of other threads do not wait for it."""
    ours, _ = pair
    found = facts_of(ours)
    client.announce(found, facts(2))
    assert not client.begin_close(ONE)
    answers: list[bool] = []
    closer = threading.Thread(target=lambda: answers.append(client.begin_close(TWO)))
    closer.start()
    while not any(holder.kind == "closing" for holder in client.holders(found.socket)[1:]):
        assert closer.is_alive()
    for _ in range(100):
        assert client.references(found.socket) == 2
    assert answers == []
    client.end_close(ONE)
    closer.join(60)
    assert answers == [True]
    client.end_close(TWO)


@pytest.mark.fault("S-06", "S-08")
def test_no_secret_is_shown_or_pickled(client: Client) -> None:
    directory = runtime.open_directory(client.runtime)
    key = runtime.read_key(directory)
    os.close(directory)
    with pytest.raises(TypeError):
        pickle.dumps(client)
    handle = connect.connect_registry(client.runtime, key)
    try:
        for shown in (repr(client), repr(handle), str(vars(connect))):
            assert repr(key) not in shown
            assert key.hex() not in shown
        with pytest.raises(TypeError):
            pickle.dumps(handle)
    finally:
        handle.close()
        client.use_key(None)
    wrong = Client(client.runtime, b"w" * 32)
    wrong.rpc_timeout_s = 0.5
    try:
        wrong.connect()
    except RegistryGone:
        text = traceback.format_exc()
        assert repr(b"w" * 32) not in text
    else:
        pytest.fail("a wrong key was taken")


def test_two_processes_share_through_one_registry(client: Client, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    found = facts_of(ours)
    text = """
import os, socket, sys, time
from sharedsock.registry import connect
from sharedsock.model.identity import DescriptorFacts, DescriptorId
client = connect.client_of(sys.stdin.readline().strip())
print("ready", flush=True)
claim = client.claim(bytes.fromhex(sys.stdin.readline()))
client.acknowledge(claim, DescriptorFacts(DescriptorId(1), "other.py:1 in f", time.time()))
with socket.socket(fileno=claim.fd) as shared:
    shared.send(b"from the other")
    print(client.references(claim.socket.socket), flush=True)
    sys.stdin.readline()
    last = client.begin_close(DescriptorId(1))
client.end_close(DescriptorId(1))
print(last, flush=True)
"""
    with Script(text) as other:
        other.tell(client.runtime)
        assert other.hear() == "ready"
        stranger = in_child(lambda: None)
        assert stranger is None
        secret = ticket(client, ours, target=other.pid)
        with pytest.raises(TicketInvalid):
            client.claim(secret)  # F-24: ours, and not for us
        other.tell(secret.hex())
        assert peer.recv(99) == b"from the other"
        assert other.hear() == "2"
        assert {holder.pid for holder in client.holders(found.socket)} == {os.getpid(), other.pid}
        client.begin_close(ONE)
        client.end_close(ONE)
        other.tell()
        assert other.hear() == "True"
        assert other.finish() == 0
    assert client.references(found.socket) == 0
