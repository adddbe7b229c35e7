"""The registry as a process: how it starts, serves, survives and ends, and what it leaves (nothing)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharedsock.registry import runtime
from sharedsock.registry.handshake import ClientHandshake
from sharedsock.registry.messages import Code
from tests.registry.dialogue import (
    Dialogue,
    Gone,
    Running,
    Stepped,
    child,
    open_numbers,
    wait_dead,
    wait_readable,
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(prepare: str = "", arguments: str = "") -> Running:
        made.append(Running(str(tmp_path / f"r{len(made)}"), prepare, arguments))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def registry(run: Callable[..., Running]) -> Running:
    return run()


@pytest.mark.fault("S-01", "S-02", "S-03", "S-06")
def test_its_files_are_ours_alone(registry: Running) -> None:
    directory = os.lstat(registry.path)
    assert stat.S_IMODE(directory.st_mode) == 0o700
    modes = {name: os.lstat(os.path.join(registry.path, name)) for name in os.listdir(registry.path)}
    assert {"s", "key", "alive.lock"} <= set(modes)
    assert all(stat.S_IMODE(found.st_mode) & 0o077 == 0 for found in modes.values())
    assert stat.S_IMODE(modes["s"].st_mode) == stat.S_IMODE(modes["key"].st_mode) == 0o600
    assert stat.S_ISSOCK(modes["s"].st_mode)
    with open("/proc/net/unix") as table:
        rows = [line.split() for line in table if line.rstrip().endswith(registry.path + "/s")]
    assert rows, "a path, not an abstract name"
    assert len(registry.key) == 32


@pytest.mark.fault("S-06")
def test_the_key_is_in_no_argument_and_no_environment(registry: Running) -> None:
    key = registry.key
    for name in ("cmdline", "environ"):
        with open(f"/proc/{registry.pid}/{name}", "rb") as file:
            said = file.read()
        assert key not in said
        assert key.hex().encode() not in said


@pytest.mark.fault("S-12")
def test_one_thread_whatever_the_number_of_peers(registry: Running) -> None:
    peers = [registry.peer() for _ in range(20)]
    strangers = [Dialogue.connect(registry.path) for _ in range(20)]
    assert peers[0].statistics()["clients"] == 20
    assert len(os.listdir(f"/proc/{registry.pid}/task")) == 1
    for one in peers + strangers:
        one.close()


@pytest.mark.fault("S-15", "S-16")
def test_no_descriptor_of_it_survives_an_exec(registry: Running, ours: socket.socket) -> None:
    with registry.peer() as peer:
        peer.announce(ours, 1)
        peer.issue(ours, 1, os.getpid())
        for number in open_numbers(registry.pid):
            with open(f"/proc/{registry.pid}/fdinfo/{number}") as file:
                flags = int(next(line for line in file if line.startswith("flags")).split()[1], 8)
            assert number <= 2 or flags & os.O_CLOEXEC, open_numbers(registry.pid)[number]


@pytest.mark.fault("F-80")
def test_it_ends_by_itself_after_the_last_client_and_leaves_nothing(registry: Running) -> None:
    registry.peer().close()
    started = time.monotonic()
    assert registry.wait_end(1.0 * 4) == 0
    assert time.monotonic() - started < 1.0 * 4
    assert not os.path.exists(registry.path)
    assert registry.complaints() == ""


@pytest.mark.fault("F-09")
@pytest.mark.parametrize("how", ["idle", "TERM"])
def test_it_ends_in_order_though_its_directory_was_removed(registry: Running, how: str) -> None:
    peer = registry.peer()
    shutil.rmtree(registry.path)
    assert peer.statistics()["clients"] == 1
    if how == "TERM":
        registry.process.send_signal(signal.SIGTERM)
    else:
        peer.close()
    assert registry.wait_end() == 0
    assert registry.complaints() == ""
    peer.close()


def test_one_that_no_client_ever_reaches_ends_as_well(run: Callable[..., Running]) -> None:
    registry = run(arguments="caps=Caps(first_s=0.2)")
    assert registry.wait_end() == 0
    assert not os.path.exists(registry.path)


@pytest.mark.fault("F-80")
def test_it_lives_while_a_reference_does_though_nobody_is_connected(
    run: Callable[..., Running], ours: socket.socket
) -> None:
    """BYE drops nothing: the process that holds the reference lives. Its death ends the registry."""
    registry = run(arguments="caps=Caps(grace_s=0.05)")
    code = (
        "import sys, socket, os\n"
        "from tests.registry.dialogue import Dialogue\n"
        "from sharedsock.registry.messages import Code\n"
        "peer = Dialogue.connect(sys.argv[1], bytes.fromhex(sys.argv[2]))\n"
        "s = socket.socket(); peer.announce(s, 1); peer.ask(Code.BYE); peer.close()\n"
        "os.write(1, b'x'); sys.stdin.read()\n"
    )
    with child(code, registry.path, registry.key.hex()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"x"
        number = os.pidfd_open(registry.pid)
        assert not wait_readable(number, 0.3)
        os.close(number)
        holder.kill()
        assert registry.wait_end() == 0
    assert not os.path.exists(registry.path)


@pytest.mark.fault("F-18")
def test_a_dead_holders_references_go_within_t_reap(registry: Running, ours: socket.socket, bounds: object) -> None:
    code = (
        "import sys, socket, os\n"
        "from tests.registry.dialogue import Dialogue\n"
        "peer = Dialogue.connect(sys.argv[1], bytes.fromhex(sys.argv[2]))\n"
        "s = socket.socket(fileno=os.dup(int(sys.argv[3]))); peer.announce(s, 1)\n"
        "os.write(1, b'x'); sys.stdin.read()\n"
    )
    os.set_inheritable(ours.fileno(), True)
    with registry.peer() as peer:
        peer.announce(ours, 1)
        holder = subprocess.Popen(
            [sys.executable, "-c", code, registry.path, registry.key.hex(), str(ours.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[ours.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.read(1) == b"x"
            assert peer.references(ours) == 2
            holder.kill()
            started = time.monotonic()
            while peer.references(ours) == 2 and time.monotonic() < started + 60:
                pass
            bounds.check("T_reap", time.monotonic() - started)  # type: ignore[attr-defined]
        assert peer.references(ours) == 1


@pytest.mark.fault("F-79")
def test_interrupt_and_hangup_are_ignored_and_term_ends_in_order(registry: Running, ours: socket.socket) -> None:
    peer = registry.peer()
    peer.announce(ours, 1)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.killpg(registry.pid, number)
        assert peer.references(ours) == 1
    for _ in range(20):
        registry.process.send_signal(signal.SIGTERM)
    assert registry.wait_end() == 0
    assert peer.is_gone()
    peer.close()
    assert not os.path.exists(registry.path)
    assert registry.complaints() == ""


def test_shutdown_answers_and_ends(registry: Running) -> None:
    with registry.peer() as peer:
        assert peer.ask(Code.SHUTDOWN).code is Code.OK
        assert registry.wait_end() == 0
        assert peer.is_gone()
    assert not os.path.exists(registry.path)


@pytest.mark.fault("F-05", "F-77")
def test_a_second_registry_for_the_same_directory_does_not_start(registry: Running) -> None:
    with pytest.raises(AssertionError, match="another registry serves"):
        Running(registry.path)
    with registry.peer() as peer:
        assert peer.statistics()["pid"] == registry.pid


@pytest.mark.fault("F-80")
def test_while_somebody_holds_the_start_lock_it_stays(run: Callable[..., Running]) -> None:
    """A starter between "it is alive" and its first connection must not find the directory gone."""
    registry = run(arguments="caps=Caps(first_s=1.0, grace_s=0.05)")
    directory = runtime.open_directory(registry.path)
    lock = runtime.try_start_lock(directory)
    assert lock is not None
    number = os.pidfd_open(registry.pid)
    assert not wait_readable(number, 1.3)
    with registry.peer() as peer:
        runtime.release_lock(lock)
        os.close(directory)
        assert not wait_readable(number, 0.3)
        assert peer.statistics()["clients"] == 1
    assert wait_readable(number)
    os.close(number)


def test_it_asks_to_end_only_when_idle_for_the_whole_grace(tmp_path: Path, ours: socket.socket) -> None:
    """0.3 s after use, 5 s if nobody ever comes; a client or a reference stops the clock, which is the test's."""
    registry = Stepped(str(tmp_path / "r"))
    try:
        registry.pass_time(4.9)
        assert registry.ends == 0
        registry.pass_time(0.1)
        assert registry.ends == 1, "asked, and refused"
        peer = registry.peer()
        peer.announce(ours, 1)
        registry.pass_time(3600)
        peer.ask(Code.BEGIN_CLOSE, descriptor=1)
        peer.ask(Code.END_CLOSE, descriptor=1)
        registry.pass_time(3600)
        assert registry.ends == 1, "a client is here"
        peer.close()
        registry.settle()
        registry.pass_time(0.2)
        assert registry.ends == 1
        registry.pass_time(0.1)
        assert registry.ends == 2
        registry.pass_time(0.3)
        assert registry.ends == 3, "refused: asked again"
    finally:
        registry.close()


def test_a_client_that_comes_and_leaves_in_one_pass_was_here(tmp_path: Path) -> None:
    """The grace counts from its end, not from the registry's start, and it is the short one."""
    registry = Stepped(str(tmp_path / "r"))
    try:
        registry.pass_time(1.0)
        peer = registry.peer(authenticated=False)
        handshake = ClientHandshake(Stepped.KEY, b"n" * 16)
        peer.send_raw(handshake.answer(peer.receive_raw()))
        peer.close()
        registry.settle()
        assert registry.server.client_count() == 0
        registry.pass_time(0.29)
        assert registry.ends == 0
        registry.pass_time(0.02)
        assert registry.ends == 1
    finally:
        registry.close()


@pytest.mark.fault("F-21", "F-103")
def test_the_wall_clock_has_no_say(tmp_path: Path, ours: socket.socket) -> None:
    registry = Stepped(str(tmp_path / "r"))
    try:
        peer = registry.peer()
        peer.announce(ours, 1)
        peer.issue(ours, 1, None)
        for wall_s in (0.0, 1e12, -86_400.0):
            registry.server.wall_s = lambda now=wall_s: now  # type: ignore[misc]
            registry.settle()
            assert peer.references(ours) == 2
        registry.pass_time(60.0)
        assert peer.references(ours) == 1
    finally:
        registry.close()


@pytest.mark.fault("F-85")
def test_a_killed_registry_gives_up_custody_and_the_peer_sees_eof(registry: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with far, registry.peer() as peer:
        peer.announce(ours, 1)
        peer.issue(ours, 1, None)
        peer.ask(Code.BEGIN_CLOSE, descriptor=1)
        ours.close()
        peer.ask(Code.END_CLOSE, descriptor=1)
        registry.process.kill()
        far.settimeout(60)
        assert far.recv(1) == b""
        assert peer.is_gone()


@pytest.mark.fault("F-91")
def test_an_exec_drops_what_the_program_before_it_held(registry: Running, ours: socket.socket) -> None:
    code = (
        "import sys, socket, os\n"
        "from tests.registry.dialogue import Dialogue\n"
        "peer = Dialogue.connect(sys.argv[1], bytes.fromhex(sys.argv[2]))\n"
        "s = socket.socket(); peer.announce(s, 1)\n"
        "os.write(1, b'x'); os.read(0, 1); os.execv('/bin/cat', ['cat'])\n"
    )
    with registry.peer() as peer, child(code, registry.path, registry.key.hex()) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.read(1) == b"x"
        assert peer.statistics()["descriptors"] == 1
        holder.stdin.write(b"\ny")
        holder.stdin.flush()
        assert holder.stdout.read(1) == b"y", "the next program runs"
        deadline = time.monotonic() + 60
        while peer.statistics()["descriptors"] and time.monotonic() < deadline:
            pass
        assert peer.statistics()["descriptors"] == 0
        assert holder.poll() is None


def limit_descriptors(pid: int, most: int | None) -> None:
    """Let a process have numbers below `most` only, None: as many as the system grants."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if most is None else most, hard))


@pytest.mark.fault("F-36", "F-81", "F-96")
def test_out_of_descriptors_it_refuses_and_serves_on(registry: Running, ours: socket.socket) -> None:
    """Every number of free descriptors from 0 on: a request for custody succeeds or is refused with EMFILE."""
    peer = registry.peer()
    peer.announce(ours, 1)
    used = max(open_numbers(registry.pid)) + 1
    outcomes = []
    for free in range(5):
        limit_descriptors(registry.pid, used + free)
        try:
            peer.issue(ours, 1, None)
            outcomes.append("issued")
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno or 0])
        assert peer.references(ours) == 1 + outcomes.count("issued")
    assert outcomes[0] == "EMFILE"
    assert set(outcomes) == {"EMFILE", "issued"}
    peer.close()


@pytest.mark.fault("F-81")
def test_an_accept_storm_without_descriptors_does_not_spin(registry: Running) -> None:
    """A stock manager server burns a whole core here. Existing clients are served, and it recovers."""
    peer = registry.peer()
    before = max(open_numbers(registry.pid)) + 1
    limit_descriptors(registry.pid, before)
    storm = [Dialogue.connect(registry.path) for _ in range(100)]
    for one in storm:
        assert one.is_gone()
        one.close()
    with open(f"/proc/{registry.pid}/stat") as file:
        busy = sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    assert not wait_readable(peer.connection, 0.5)
    with open(f"/proc/{registry.pid}/stat") as file:
        busier = sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    assert (busier - busy) / os.sysconf("SC_CLK_TCK") < 0.05 * 0.5 + 0.02
    assert peer.statistics()["clients"] == 1
    assert peer.refusals()["out of descriptors"] >= 100
    limit_descriptors(registry.pid, None)
    registry.peer().close()
    peer.close()


def test_a_killed_registrys_directory_serves_the_next(registry: Running) -> None:
    registry.process.kill()
    assert wait_dead(registry.pid)
    key = registry.key
    second = Running(registry.path)
    try:
        assert second.key != key, "a fresh key for each registry"
        with pytest.raises(Gone):
            Dialogue.connect(registry.path, key)
        second.peer().close()
        assert second.wait_end() == 0
        assert not os.path.exists(registry.path)
    finally:
        second.close()
