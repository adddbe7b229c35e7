"""Which registry is current: the innermost open one, the one the environment names, the tree's default."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.managers import BaseManager
from pathlib import Path

import pytest

from sharedsock.model.errors import RegistryGone, TicketInvalid
from sharedsock.model.identity import DescriptorId
from sharedsock.registry import connect, runtime
from sharedsock.registry.client import Client
from sharedsock.registry.link import SLOTS
from sharedsock.registry.numbers import forget_number, noted_numbers
from tests.registry.double import (
    BOUND_S,
    ROOT,
    T_EXIT_S,
    Script,
    end_registry,
    facts,
    registries,
    shared_socket,
    ticket,
    tree,
    wait_ended,
)


@pytest.fixture
def own_tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tree(monkeypatch) as path:
        yield path


def test_nothing_is_started_by_looking(own_tree: str) -> None:
    assert runtime.tree_directory() == own_tree
    with pytest.raises(TicketInvalid):
        connect.client_of(own_tree)
    assert connect.close_idle_clients() == 0
    assert not os.path.exists(own_tree)


def test_the_import_is_light() -> None:
    """P16: what a call needs is imported by the call."""
    text = "import sys, types; package = types.ModuleType('sharedsock'); package.__path__ = [sys.argv[1]]\n"
    text += "sys.modules['sharedsock'] = package; import sharedsock.registry.connect; print(*sys.modules)"
    package = os.path.join(ROOT, "sharedsock")
    listed = subprocess.run([sys.executable, "-S", "-c", text, package], capture_output=True, check=True, text=True)
    heavy = "multiprocessing subprocess hmac hashlib ctypes tempfile secrets fcntl mmap psutil threading".split()
    assert set(heavy) & set(listed.stdout.split()) == set()


def test_one_client_per_process_and_registry(own_tree: str) -> None:
    client = connect.default_client()
    assert connect.default_client() is client
    assert connect.client_of(own_tree) is client
    assert connect.client_of(own_tree + "/") is client
    assert client.runtime == own_tree


@pytest.mark.fault("F-112", "S-02", "S-10")
def test_a_ticket_that_names_no_directory_of_ours_is_invalid(own_tree: str, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    link = tmp_path / "link"
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    file = tmp_path / "file"
    file.write_bytes(b"")
    names = [str(open_to_all), str(link), str(link) + "/", str(file), str(tmp_path / "none"), "relative", "", "/\0"]
    for name in [*names, "/" + "x" * 5000, "/x" * 2000]:
        with pytest.raises(TicketInvalid) as caught:
            connect.client_of(name)
        assert caught.value.winerror == 10022


@pytest.mark.fault("F-26")
def test_a_directory_whose_registry_has_died_is_gone_and_not_restarted(own_tree: str) -> None:
    client = connect.default_client()
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    with pytest.raises(RegistryGone):
        connect.client_of(own_tree)
    assert registries(own_tree) == []
    connect.revive(client)
    assert connect.client_of(own_tree).pid != pid


def test_registry_is_current_inside_its_with_and_for_children(own_tree: str) -> None:
    with connect.Registry() as outer:
        assert connect.default_client() is outer.client
        assert os.environ[connect.REGISTRY_VARIABLE] == outer.runtime
        with connect.Registry() as inner:
            assert inner.runtime != outer.runtime
            assert connect.default_client() is inner.client
            inner_pid = inner.client.pid
        assert connect.default_client() is outer.client
        assert os.environ[connect.REGISTRY_VARIABLE] == outer.runtime
        with Script("from sharedsock.registry import connect; print(connect.default_client().pid)") as child:
            assert int(child.hear()) == outer.client.pid
            assert child.finish() == 0
        outer_pid = outer.client.pid
        assert outer.address == os.path.join(outer.runtime, "s")
        assert len(outer.authkey) == 32
        assert repr(outer.authkey) not in repr(outer)
        outer.start()
    outer.close()
    assert connect.REGISTRY_VARIABLE not in os.environ
    for pid in (inner_pid, outer_pid):
        wait_ended(pid, T_EXIT_S)
    assert not os.path.exists(own_tree), "the default was not needed"


@pytest.mark.fault("F-80")
def test_a_registry_outlives_its_with_as_long_as_something_is_shared(own_tree: str) -> None:
    with connect.Registry() as registry:
        client = registry.client
        ours, peer, found = shared_socket(client)
        pid = client.pid
    assert client.is_alive
    assert connect.client_of(registry.runtime) is client
    assert client.references(found.socket) == 1
    assert client.begin_close(DescriptorId(1))
    client.end_close(DescriptorId(1))
    assert not client.is_connected(), "its last descriptor took the channel with it"
    assert wait_ended(pid, T_EXIT_S) < T_EXIT_S
    assert not os.path.exists(registry.runtime)
    ours.close()
    peer.close()


def test_connect_registry_needs_address_and_key(own_tree: str) -> None:
    text = """
import sys
from sharedsock.registry import connect
with connect.Registry() as registry:
    print(registry.address, registry.authkey.hex(), registry.client.pid, flush=True)
    sys.stdin.readline()
"""
    with Script(text) as owner:
        address, key, pid = owner.hear().split()
        for where in (address, os.path.dirname(address)):
            with connect.connect_registry(where, bytes.fromhex(key)) as handle:
                assert connect.default_client() is handle.client
                assert handle.client.pid == int(pid)
                assert handle.address == address
                assert handle.client.statistics().clients == 2
        for bad in (b"", b"short", b"x" * 33, b"w" * 32):
            with pytest.raises(RegistryGone):
                connect.connect_registry(address, bad)
        with pytest.raises(RegistryGone):
            connect.connect_registry(address + "nowhere", bytes.fromhex(key))
        with pytest.raises(RegistryGone):
            connect.connect_registry(own_tree, bytes.fromhex(key))
        assert connect._current == []
        owner.tell()
        assert owner.finish() == 0


def test_the_manager_of_a_registry_is_a_connected_one(own_tree: str) -> None:
    with connect.Registry() as registry:
        ours, peer, found = shared_socket(registry.client)
        assert registry.manager is registry.manager
        assert isinstance(registry.manager, BaseManager)
        assert registry.manager.address == registry.address
        assert registry.manager.references(found.socket) == 1
        pid = registry.client.pid
        registry.client.begin_close(DescriptorId(1))
        registry.client.end_close(DescriptorId(1))
        ours.close()
        peer.close()
    wait_ended(pid, T_EXIT_S)


def test_a_registry_that_is_named_and_not_there_is_gone(own_tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connect.REGISTRY_VARIABLE, own_tree + "-none")
    with pytest.raises(RegistryGone):
        connect.default_client()
    assert not os.path.exists(own_tree)
    assert not os.path.exists(own_tree + "-none")


def test_idle_channels_can_be_given_up_and_come_back(own_tree: str) -> None:
    client = connect.default_client()
    ours, peer, found = shared_socket(client)
    assert connect.close_idle_clients() == 0
    secret = ticket(client, ours)
    client.revoke(secret)
    client.begin_close(DescriptorId(1))
    client.end_close(DescriptorId(1))
    pid = client.pid
    assert connect.close_idle_clients() == 1
    assert connect.close_idle_clients() == 0
    wait_ended(pid, T_EXIT_S)
    assert not os.path.exists(own_tree)
    assert client.announce(found, facts(2)) == SLOTS, "a new registry's first place"
    assert client.pid != pid
    client.begin_close(DescriptorId(2))
    client.end_close(DescriptorId(2))
    ours.close()
    peer.close()


def test_a_channel_given_up_twice_leaves_its_number_to_the_next(own_tree: str) -> None:
    """A forked child must close the number that is another channel's by now: the note is that one's."""
    for stale in noted_numbers():  # tests that closed a claim's number for themselves
        forget_number(stale)
    first, second = Client(own_tree, starts=True), Client(own_tree, starts=True)
    first.connect()
    (number,) = noted_numbers()
    first.close()
    second.connect()
    assert noted_numbers() == {number}, "the lowest free number"
    first.close()
    assert noted_numbers() == {number}
    second.close()
    assert not noted_numbers()


@pytest.mark.fault("F-74", "F-76")
def test_the_hook_announces_before_any_other_thread_gets_through(own_tree: str) -> None:
    client = connect.default_client()
    ours, peer, found = shared_socket(client)
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def again(which: Client) -> None:
        inside.set()
        assert go_on.wait(BOUND_S)
        which.recover(found, facts(1))
        order.append("announced")

    connect.set_reconnect_hook(again)
    try:
        pid = client.pid
        os.kill(pid, signal.SIGKILL)
        wait_ended(pid, T_EXIT_S)

        def use() -> None:
            assert client.references(found.socket) == 1
            order.append("used")

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert inside.wait(BOUND_S)
        assert order == []
        go_on.set()
        for thread in threads:
            thread.join(BOUND_S)
        assert order == ["announced", "used", "used", "used"]
    finally:
        connect.set_reconnect_hook(None)
        end_registry(client)
        ours.close()
        peer.close()


def test_a_hook_that_fails_fails_the_call_and_is_tried_again(own_tree: str) -> None:
    client = connect.default_client()
    ours, peer, found = shared_socket(client)
    tries: list[int] = []

    def again(which: Client) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError
        which.recover(found, facts(1))

    client.on_reconnect = again
    client.close()
    assert client.references(found.socket) == 1
    assert tries == [], "the same registry has kept what we hold"
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, T_EXIT_S)
    with pytest.raises(ZeroDivisionError):
        client.references(found.socket)
    assert not client.is_connected()
    assert client.references(found.socket) == 1
    assert len(tries) == 2
    end_registry(client)
    ours.close()
    peer.close()


@pytest.mark.fault("F-80")
def test_it_ends_within_its_time_after_the_last_process_dies(own_tree: str) -> None:
    """The last reference goes with a killed process; nobody is there to say so."""
    text = """
import os, socket, sys, time
from sharedsock.registry import connect
from sharedsock.registry.facts import socket_facts
from sharedsock.model.identity import DescriptorFacts, DescriptorId
client = connect.default_client()
ours, peer = socket.socketpair()
found = socket_facts(ours.fileno())
client.announce(found, DescriptorFacts(DescriptorId(1), "x", 0.0))
client.issue(found.socket, DescriptorId(1), ours.fileno(), os.getpid(), None)
print(client.pid, flush=True)
sys.stdin.read()
"""
    with Script(text) as holder:
        pid = int(holder.hear())
        pidfd = os.pidfd_open(pid)
        holder.kill()
        began = time.monotonic()
        os.close(pidfd)
        wait_ended(pid, T_EXIT_S)
        assert time.monotonic() - began < T_EXIT_S
    assert not os.path.exists(own_tree)


def test_what_a_crash_has_left_can_be_used_again(own_tree: str) -> None:
    text = "from sharedsock.registry import connect; print(connect.default_client().pid, flush=True); input()"
    with Script(text) as s:
        pid = int(s.hear())
        os.kill(pid, signal.SIGKILL)
        wait_ended(pid, T_EXIT_S)
    left = sorted(os.listdir(own_tree))
    assert left == ["alive.lock", "key", "s", "start.lock"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(os.path.join(own_tree, "s"))
    assert connect.default_client().statistics().clients == 1
