"""The calls of one process when the world is dead, hung or full: bounded, clear, and nothing lost."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from sharedsock.model import trace
from sharedsock.model.errors import (
    RegistryGone,
)
from sharedsock.model.identity import DescriptorId
from sharedsock.registry import launch, runtime
from sharedsock.registry.client import Client
from tests.registry.double import (
    T_DEAD_S,
    T_EXIT_S,
    Script,
    facts,
    facts_of,
    open_numbers,
    registries,
    ticket,
    wait_ended,
)

ONE, TWO, THREE = DescriptorId(1), DescriptorId(2), DescriptorId(3)


@pytest.fixture(autouse=True)
def no_hook() -> Iterator[None]:
    yield
    trace.hook = None


@pytest.mark.fault("F-29", "F-96")
@pytest.mark.parametrize("registry", ["there", "to be started"])
def test_connecting_with_too_few_numbers_is_emfile_and_leaks_nothing(client: Client, registry: str) -> None:
    pid = client.pid
    client.close()
    if registry == "to be started":
        wait_ended(pid, T_EXIT_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_numbers()) + 20, hard))
    filling: list[int] = []
    try:
        while True:
            try:
                filling.append(os.dup(0))
            except OSError:
                break
        tries: list[tuple[int | None, int | None, bool]] = []
        while True:
            before = open_numbers_without_listing(filling)
            try:
                client.connect()
                break
            except OSError as error:
                same = open_numbers_without_listing(filling) == before
                tries.append((error.errno, getattr(error, "winerror", None), same))
                os.close(filling.pop())
        assert len(tries) >= 2
        assert set(tries) == {(errno.EMFILE, 10024, True)}
        assert client.statistics().clients >= 1
    finally:
        for number in filling:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F-96")
def test_a_first_use_with_too_few_numbers_is_emfile_whatever_has_still_to_be_loaded() -> None:
    text = """
import os, resource
from sharedsock.registry import connect
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
filling = []
try:
    while True:
        filling.append(os.dup(0))
except OSError:
    pass
seen = set()
while True:
    try:
        client = connect.default_client()
        break
    except OSError as error:
        seen.add((error.errno, error.winerror))
        os.close(filling.pop())
print(seen, client.statistics().clients, flush=True)
"""
    path = runtime.new_directory_name()
    with Script(text, **{runtime.TREE_VARIABLE: path}) as script:
        assert script.hear() == "{(24, 10024)} 1"
        assert script.finish() == 0
    for pid in registries(path):
        wait_ended(pid, T_EXIT_S)


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
        thread.join(60)
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


@pytest.mark.fault("F-74", "I7")
def test_registries_that_die_one_after_the_other_hold_up_no_call(
    client: Client, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is dead before it can be asked: two are started for one call, and then that says so."""
    found = facts_of(pair[0])
    ended: list[int] = []
    start = launch.start

    def start_and_kill(path: str, timeout_s: float = launch.START_TIMEOUT_S) -> bool:
        is_ours = start(path, timeout_s)
        other = Client(path)
        ended.append(other.pid)
        os.kill(ended[-1], signal.SIGKILL)
        wait_ended(ended[-1], T_EXIT_S)
        other.close()
        return is_ours

    os.kill(client.pid, signal.SIGKILL)
    wait_ended(client.pid, T_EXIT_S)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "start", start_and_kill)
        with pytest.raises(RegistryGone, match="as soon as it was started") as caught:
            client.references(found.socket)
        assert caught.value.winerror == 10050
        assert len(ended) == 2, "two, and no third"
    assert client.references(found.socket) == 0, "a call that meets one which lives is as ever: nothing is left of it"


@pytest.mark.fault("F-06", "F-74", "I7")
def test_a_registry_that_lives_and_never_comes_to_its_address_is_given_t_rpc(
    client: Client, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the time that a start of our own may take on a slow machine."""
    found = facts_of(pair[0])
    os.kill(client.pid, signal.SIGKILL)
    wait_ended(client.pid, T_EXIT_S)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "start", lambda path, timeout_s: False)
        patch.setattr(client, "rpc_timeout_s", 0.2)
        began_s = time.monotonic()
        with pytest.raises(RegistryGone, match="is not there"):
            client.references(found.socket)
        assert time.monotonic() - began_s < launch.START_TIMEOUT_S / 2
    client.references(found.socket)


@pytest.mark.fault("F-74", "F-04")
def test_the_next_call_restarts_a_dead_registry_and_announces_first(
    client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = pair
    found = facts_of(ours)
    heard: list[bytes] = []

    def again(which: Client) -> None:
        heard.append(which.incarnation)
        assert which.recover(found, facts(1)) >= 0

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
    client.on_reconnect = lambda which: which.recover(found, facts(1)) and None
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
        if registry == "dead":
            wait_ended(pid, T_EXIT_S)
        script.tell()
        assert script.hear() == "exiting"
        began = time.monotonic()
        assert script.finish() == 0
        assert time.monotonic() - began < T_EXIT_S
        if registry == "hung":
            os.kill(pid, signal.SIGCONT)
    wait_ended(pid, T_EXIT_S)
    assert not os.path.exists(path), "what a crashed registry left, its last client takes away"
