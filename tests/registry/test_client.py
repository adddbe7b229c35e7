"""The calls of one process: what they answer, and what a dead, hung or full world does to them."""

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
import time
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
    T_DEAD_S,
    T_EXIT_S,
    Script,
    end_registry,
    facts,
    facts_of,
    in_child,
    open_numbers,
    registries,
    remove_tree,
    shared_socket,
    ticket,
    tree,
    wait_ended,
)

ONE, TWO, THREE = DescriptorId(1), DescriptorId(2), DescriptorId(3)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with tree(monkeypatch):
        yield connect.default_client()


@pytest.fixture
def pair(client: Client) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer, _ = shared_socket(client)
    with ours, peer:
        yield ours, peer
    end_registry(client)


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
            barrier.wait(10)

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
        thread.join(20)
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


@pytest.mark.fault("F-29", "F-96")
def test_connecting_with_too_few_numbers_is_emfile_and_leaks_nothing(client: Client) -> None:
    client.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_numbers()) + 8, hard))
    filling: list[int] = []
    try:
        while True:
            try:
                filling.append(os.dup(0))
            except OSError:
                break
        tries: list[tuple[int | None, bool]] = []
        while True:
            before = open_numbers_without_listing(filling)
            try:
                client.connect()
                break
            except OSError as error:
                tries.append((error.errno, open_numbers_without_listing(filling) == before))
                os.close(filling.pop())
        assert len(tries) >= 2
        assert set(tries) == {(errno.EMFILE, True)}
        assert client.statistics().clients >= 1
    finally:
        for number in filling:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_numbers_without_listing(filling: list[int]) -> dict[int, tuple[int, int]]:
    """Which numbers are open, found without opening one."""
    found = {}
    for number in range(max(filling, default=0) + 10):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        found[number] = (status.st_dev, status.st_ino)
    return found


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


@pytest.mark.fault("F-31", "F-85")
@pytest.mark.parametrize("point", ["take.sent", "take.received"])
def test_a_registry_killed_during_a_claim_ends_it_at_once(
    client: Client, pair: tuple[socket.socket, socket.socket], point: str
) -> None:
    ours, _ = pair
    secret = ticket(client, ours)
    pid = client.pid
    os.kill(pid, signal.SIGSTOP)  # nothing is answered after this
    began = [0.0]

    def kill(reached: str, context: object) -> None:
        if reached == "take.sent":
            os.kill(pid, signal.SIGKILL if point == "take.sent" else signal.SIGCONT)
        elif reached == point:
            os.kill(pid, signal.SIGKILL)
            wait_ended(pid, T_EXIT_S)
        began[0] = time.monotonic()

    before = open_numbers()
    trace.hook = kill
    if point == "take.sent":
        with pytest.raises(RegistryGone) as caught:
            client.claim(secret)
        assert time.monotonic() - began[0] < T_DEAD_S
        assert caught.value.winerror == 10050
    else:
        claim = client.claim(secret)  # it had arrived: success wins
        with pytest.raises(RegistryGone):
            client.acknowledge(claim, facts(2))
        os.close(claim.fd)
    trace.hook = None
    left = {n: what for n, what in open_numbers().items() if before.get(n) != what}
    assert left == {}


@pytest.mark.fault("F-31")
def test_a_dead_registry_ends_every_waiting_thread_at_once(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    pid = client.pid
    os.kill(pid, signal.SIGSTOP)
    ended: list[float] = []
    waiting = threading.Semaphore(0)

    def ask() -> None:
        waiting.release()
        try:
            client.begin_close(ONE)  # never restarts a registry
        except RegistryGone:
            ended.append(time.monotonic())

    client.rpc_timeout_s = 20.0
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    exchange = client._session.channel
    assert exchange is not None
    while len(exchange._pending) < 6:
        waiting.acquire(timeout=0.01)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    assert len(ended) == 6
    assert max(ended) - began < T_DEAD_S
    assert exchange._number not in open_numbers() or exchange._socket.fileno() == -1


@pytest.mark.fault("F-60", "F-78")
def test_a_hung_registry_holds_nobody_longer_than_its_time(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair
    found = facts_of(ours)
    pid = client.pid
    client.rpc_timeout_s = 0.2
    os.kill(pid, signal.SIGSTOP)
    try:
        for call in (
            lambda: client.begin_close(ONE),
            lambda: client.references(found.socket),
            lambda: client.end_close(ONE),
        ):
            began = time.monotonic()
            with pytest.raises(RegistryGone, match="did not answer"):
                call()
            assert 0.2 <= time.monotonic() - began < 0.2 + T_DEAD_S
    finally:
        os.kill(pid, signal.SIGCONT)
    client.rpc_timeout_s = 2.0
    # The late answers (LAST, a number, OK) meet nobody; each new one is its own.
    assert client.statistics().pid == pid
    assert client.references(found.socket) == 0, "the late begin-close and end-close were carried out"
    assert client.announce(found, facts(3)) == 0


@pytest.mark.fault("F-60")
def test_a_dead_registry_is_said_to_a_closer_at_once_and_not_restarted(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    began = time.monotonic()
    for call in (client.begin_close, client.end_close, client.cancel_close):
        with pytest.raises(RegistryGone):
            call(ONE)
    assert time.monotonic() - began < T_DEAD_S
    assert not client.is_alive
    assert registries(client.runtime) == []


@pytest.mark.fault("F-74", "F-04")
def test_the_next_call_restarts_a_dead_registry_and_announces_first(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = pair
    found = facts_of(ours)
    heard: list[bytes] = []

    def again(which: Client) -> None:
        heard.append(which.incarnation)
        assert which.announce(found, facts(1), recovered=True) >= 0

    client.on_reconnect = again
    incarnation, pid = client.incarnation, client.pid
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    ours.send(b"goes on")
    assert peer.recv(99) == b"goes on"
    secret = ticket(client, ours)
    assert heard == [client.incarnation]
    assert client.incarnation != incarnation
    assert client.references(found.socket) == 2
    claim = client.claim(secret)
    os.close(claim.fd)
    client.refuse(claim)
    assert client.announce(found, facts(1)) >= 0, "not counted twice"
    assert client.references(found.socket) == 2
    client.revoke(secret)
    client.begin_close(ONE)
    client.end_close(ONE)


@pytest.mark.fault("F-26")
def test_a_claim_of_an_earlier_registry_does_not_touch_the_new_one(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair
    found = facts_of(ours)
    client.on_reconnect = lambda which: which.announce(found, facts(1), recovered=True) and None
    old = client.claim(ticket(client, ours))
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    new = client.claim(ticket(client, ours))
    assert new.incarnation != old.incarnation
    with pytest.raises(RegistryGone, match="another one"):
        client.refuse(old)
    with pytest.raises(RegistryGone, match="another one"):
        client.acknowledge(old, facts(2))
    client.acknowledge(new, facts(3))
    for claim in (old, new):
        os.close(claim.fd)
    for number in (THREE, ONE):
        client.begin_close(number)
        client.end_close(number)


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
    closer.join(10)
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


@pytest.mark.fault("F-102")
def test_a_broken_channel_is_no_sigpipe() -> None:
    text = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from sharedsock.registry import connect
from sharedsock.model.identity import DescriptorId
from sharedsock.model.errors import RegistryGone
client = connect.default_client()
pidfd = os.pidfd_open(client.pid)
os.kill(client.pid, signal.SIGKILL)
import select
poller = select.poll(); poller.register(pidfd, select.POLLIN); poller.poll(10000)
try:
    client.begin_close(DescriptorId(1))
except RegistryGone:
    print("survived", flush=True)
print(client.statistics().clients, flush=True)
"""
    path = runtime.new_directory_name()
    with Script(text, **{runtime.TREE_VARIABLE: path}) as script:
        assert script.hear() == "survived"
        assert script.hear() == "1"
        assert script.finish() == 0
    for pid in registries(path):
        wait_ended(pid, T_EXIT_S)


@pytest.mark.fault("F-116", "F-117")
@pytest.mark.parametrize("registry", ["alive", "dead", "hung"])
def test_an_exit_with_an_open_channel_is_quick_and_silent(registry: str) -> None:
    text = """
import sys
from sharedsock.registry import connect
client = connect.default_client()
print(client.pid, flush=True)
sys.stdin.readline()
print("exiting", flush=True)
"""
    path = runtime.new_directory_name()
    with Script(text, **{runtime.TREE_VARIABLE: path}) as script:
        pid = int(script.hear())
        if registry != "alive":
            os.kill(pid, signal.SIGKILL if registry == "dead" else signal.SIGSTOP)
        script.tell()
        assert script.hear() == "exiting"
        began = time.monotonic()
        assert script.finish() == 0
        assert time.monotonic() - began < T_EXIT_S
        if registry == "hung":
            os.kill(pid, signal.SIGCONT)
    wait_ended(pid, T_EXIT_S)
    assert os.path.exists(path) == (registry == "dead"), "only a crash leaves its directory"
    if registry == "dead":
        remove_tree(path)


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
