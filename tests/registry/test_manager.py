"""RegistryManager is a BaseManager: its own interface works, and behind it is the ledger."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing import AuthenticationError, ProcessError, managers
from pathlib import Path
from typing import Any

import pytest

from sharedsock.model.errors import RegistryGone
from sharedsock.registry import runtime
from sharedsock.registry.manager import RegistryManager, key_of
from sharedsock.registry.serializer import SERIALIZER, LedgerConnection
from tests.registry.dialogue import Dialogue, facts_of, wait_dead

AUTHKEY = b"any length will do"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[RegistryManager]:
    manager = RegistryManager(str(tmp_path / "r"), AUTHKEY)
    with manager:
        yield manager
    del manager
    gc.collect()


def holder_of(manager: RegistryManager, authkey: bytes = AUTHKEY) -> Dialogue:
    return Dialogue.connect(os.path.dirname(manager.address), key_of(authkey))


def test_it_is_a_manager_and_starts_connects_and_shuts_down(tmp_path: Path, ours: socket.socket) -> None:
    manager = RegistryManager(str(tmp_path / "r"), AUTHKEY)
    assert isinstance(manager, managers.BaseManager)
    manager.start()
    assert manager.address == str(tmp_path / "r" / "s")
    pid = manager.statistics().pid
    assert pid != os.getpid()
    with holder_of(manager) as holder:
        holder.announce(ours, 1)
        other = RegistryManager(manager.address, AUTHKEY)
        other.connect()
        socket_id = facts_of(ours).socket
        assert other.references(socket_id) == manager.references(socket_id) == 1
        ((facts, count),) = other.sockets()
        assert (facts, count) == (facts_of(ours), 1)
        (row,) = other.holders(socket_id)
        assert (row.pid, row.kind, row.descriptor) == (os.getpid(), "descriptor", 1)
        assert other.statistics().clients == 3
        assert other.refusals() == {}
        other.shutdown()
        assert manager.references(socket_id) == 1, "letting go of a connection ends no registry"
    manager.shutdown()
    assert wait_dead(pid, 4.0)
    assert not os.path.exists(tmp_path / "r")


def test_with_is_start_and_shutdown(tmp_path: Path) -> None:
    with RegistryManager(authkey=AUTHKEY) as manager:
        pid = manager.statistics().pid
        directory = os.path.dirname(manager.address)
        assert os.path.isdir(directory)
    assert wait_dead(pid, 4.0)
    assert not os.path.exists(directory)
    manager.shutdown()
    with pytest.raises(ProcessError):
        manager.start()
    with pytest.raises(ProcessError):
        manager.references(facts_of_nothing())


def facts_of_nothing() -> Any:
    return 1


def test_it_does_not_end_by_itself_while_the_manager_holds_it(started: RegistryManager) -> None:
    pidfd = os.pidfd_open(started.statistics().pid)
    try:
        from tests.registry.dialogue import wait_readable

        assert not wait_readable(pidfd, 0.8), "longer than the grace"
    finally:
        os.close(pidfd)
    assert started.statistics().clients == 1


def test_what_base_manager_itself_asks(started: RegistryManager, ours: socket.socket) -> None:
    """`_number_of_objects`, `_debug_info` and `dispatch` go through the serializer's Client."""
    base: Any = started
    assert base._number_of_objects() == 0
    with holder_of(started) as holder:
        holder.announce(ours, 1)
        assert base._number_of_objects() == 1
    assert "sockets: 1" in base._debug_info()
    connection = LedgerConnection(started.address, authkey=AUTHKEY)
    dispatch: Any = managers.dispatch  # type: ignore[attr-defined]  # typeshed leaves it out
    assert dispatch(connection, None, "dummy") is None
    for name in ("create", "incref", "accept_connection", "get_methods"):
        with pytest.raises(TypeError, match="serves a ledger"):
            dispatch(connection, None, name)
    connection.close()
    connection.close()


def test_states_are_kept_as_in_the_standard_library(started: RegistryManager) -> None:
    for call in (started.start, started.get_server):
        with pytest.raises(ProcessError, match="Already started"):
            call()
    fresh = RegistryManager(authkey=AUTHKEY)
    with pytest.raises(ProcessError, match="not connected"):
        fresh.statistics()
    with pytest.raises(TypeError, match="nobody's code"):
        fresh.start(initializer=print)


def test_only_one_registry_per_address(started: RegistryManager) -> None:
    with pytest.raises(RegistryGone, match="connect"):
        RegistryManager(started.address, AUTHKEY).start()
    with pytest.raises(RegistryGone, match="another registry"):
        RegistryManager(started.address, AUTHKEY).get_server()
    assert started.statistics().clients == 1


@pytest.mark.fault("F-108", "S-05")
def test_another_key_is_an_authentication_error(started: RegistryManager) -> None:
    with pytest.raises(AuthenticationError):
        RegistryManager(started.address, b"another").connect()
    with pytest.raises(AuthenticationError):
        LedgerConnection(started.address)
    assert started.refusals() == {"wrong key": 1}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RegistryManager(str(tmp_path / "none"), AUTHKEY).connect()


@pytest.mark.fault("S-07")
def test_no_serializer_that_unpickles(tmp_path: Path) -> None:
    table: Any = managers
    assert SERIALIZER in table.listener_client
    for name in ("pickle", "xmlrpclib"):
        with pytest.raises(ValueError, match="unpickled"):
            RegistryManager(serializer=name)
    with pytest.raises(TypeError, match="serves a ledger"):
        RegistryManager.register("dict", dict)


@pytest.mark.fault("S-06")
def test_the_key_stays_in_its_file(started: RegistryManager) -> None:
    pid = started.statistics().pid
    key = key_of(AUTHKEY)
    for name in ("cmdline", "environ"):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            said = file.read()
        assert key not in said
        assert AUTHKEY not in said
    directory = runtime.open_directory(os.path.dirname(started.address))
    try:
        assert runtime.read_key(directory) == key
        assert sorted(os.listdir(directory)) == ["alive.lock", "key", "s", "start.lock"]
    finally:
        os.close(directory)


def test_the_default_authkey_is_the_processes_own(tmp_path: Path) -> None:
    """So multiprocessing's children can connect with the address alone."""
    context = multiprocessing.get_context("fork")
    with RegistryManager(str(tmp_path / "r")) as manager:
        child = context.Process(target=_connect_and_compare, args=(manager.address, manager.statistics().pid))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        child.close()


def _connect_and_compare(address: str, pid: int) -> None:
    manager = RegistryManager(address)
    manager.connect()
    os._exit(0 if manager.statistics().pid == pid else 1)


@pytest.mark.fault("F-87", "F-90")
def test_a_forked_child_has_a_connection_of_its_own(started: RegistryManager) -> None:
    before = started.statistics().clients
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if started.statistics().clients == before + 1 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert started.statistics().pid > 0


@pytest.mark.parametrize("how", ["stop", "stop_event", "shutdown", "finalize"])
def test_get_server_serves_the_ledger_in_this_process(tmp_path: Path, ours: socket.socket, how: str) -> None:
    manager = RegistryManager(str(tmp_path / "r"), AUTHKEY)
    server = manager.get_server()
    assert isinstance(server, managers.Server)
    assert server.address == manager.address == str(tmp_path / "r" / "s")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = RegistryManager(server.address, AUTHKEY)
    client.connect()
    with holder_of(manager) as holder:
        holder.announce(ours, 1)
        assert client.references(facts_of(ours).socket) == 1
        assert client.statistics().pid == os.getpid()
    if how == "stop":
        server.stop()
    elif how == "stop_event":
        server.stop_event.set()
    elif how == "shutdown":
        connection = LedgerConnection(server.address, authkey=AUTHKEY)
        connection.send((None, "shutdown", (), {}))
        assert connection.recv() == ("#RETURN", None)
        connection.close()
    else:
        holder = holder_of(manager)
        holder.close()
        server.stop_event.set()
    thread.join(60)
    assert not thread.is_alive()
    client.shutdown()
    assert not os.path.exists(tmp_path / "r")


def test_a_server_that_was_stopped_before_it_served_leaves_nothing(tmp_path: Path) -> None:
    server = RegistryManager(str(tmp_path / "r"), AUTHKEY).get_server()
    server.stop_event.set()
    server.serve_forever()
    assert not os.path.exists(tmp_path / "r")


@pytest.mark.fault("F-02", "F-78")
def test_a_dead_registry_is_noticed_and_shutdown_is_quiet(tmp_path: Path) -> None:
    manager = RegistryManager(str(tmp_path / "r"), AUTHKEY)
    manager.start()
    os.kill(manager.statistics().pid, signal.SIGKILL)
    with pytest.raises(RegistryGone):
        while True:
            manager.statistics()
    manager.shutdown()
    manager.join(1)


def test_a_hung_registry_is_ended_by_shutdown(tmp_path: Path) -> None:
    """As BaseManager does: a message, then terminate, then kill."""
    manager = RegistryManager(str(tmp_path / "r"), AUTHKEY, shutdown_timeout=0.2)
    manager.start()
    pid = manager.statistics().pid
    os.kill(pid, signal.SIGSTOP)
    manager.shutdown()
    assert wait_dead(pid, 4.0)


def test_daemonic_workers_may_start_one(tmp_path: Path) -> None:
    """A multiprocessing child that is a daemon may have no children of multiprocessing; this is none."""
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_start_and_stop, args=(str(tmp_path / "r"),), daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    worker.close()


def _start_and_stop(path: str) -> None:
    with RegistryManager(path, AUTHKEY) as manager:
        assert manager.statistics().pid != os.getppid()
