"""Registries and holders that die at named points, and what the kernel and the count say afterwards."""

from __future__ import annotations

import os
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.messages import Code
from sharedsock.registry.records import Limits
from tests.registry.dialogue import Dialogue, Gone, Running, Stepped, child, facts_of, wait_dead, wait_readable


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(prepare: str = "", arguments: str = "") -> Running:
        made.append(Running(str(tmp_path / f"r{len(made)}"), prepare, arguments))
        return made[-1]

    yield start
    for one in made:
        one.close()


KILL_AT = """
import os, signal
left = {hits}
def hook(point, context):
    global left
    if point == {point!r} and context.get("code", {code}) == {code}:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault("F-30", "F-31")
@pytest.mark.parametrize("point", ["take.counted", "take.fd_queued"])
def test_killed_in_the_middle_of_a_claim_the_claimer_gets_the_end_and_nothing_stays(
    run: Callable[..., Running], point: str
) -> None:
    """Counted for the claimer, or already on its way: custody and what is in flight are the kernel's to end."""
    registry = run(KILL_AT.format(point=point, code=0, hits=1), "hook=hook")
    near, far = socket.socketpair()
    with registry.peer() as peer:
        peer.announce(near, 1)
        secret = peer.issue(near, 1, os.getpid())
        near.close()
        with pytest.raises(Gone):
            while True:
                peer.send(Code.CLAIM, secret=secret)
                peer.receive()
        assert wait_dead(registry.pid)
        assert bool(peer.came) == (point == "take.fd_queued")
    assert far.recv(1) == b""
    far.close()


@pytest.mark.fault("F-75", "F-31", "F-04")
@pytest.mark.parametrize("point", ["reg.request", "reg.commit", "reg.reply"])
@pytest.mark.parametrize("code", [Code.ANNOUNCE, Code.ISSUE, Code.CLAIM, Code.ACK, Code.BEGIN_CLOSE, Code.END_CLOSE])
def test_killed_at_a_point_of_a_request_the_client_gets_its_reply_or_the_end(
    run: Callable[..., Running], ours: socket.socket, point: str, code: Code
) -> None:
    """Never a hang, and never more descriptors than the kernel gave: the channel ends."""
    requests = [Code.ANNOUNCE, Code.ISSUE, Code.CLAIM, Code.ACK, Code.BEGIN_CLOSE, Code.END_CLOSE]
    # reg.reply names no code: the welcome is the first, each request's the next.
    hits = requests.index(code) + 2 if point == "reg.reply" else 1
    registry = run(KILL_AT.format(point=point, code=int(code), hits=hits), "hook=hook")
    peer = registry.peer()
    received: list[socket.socket] = []
    done: list[Code] = []

    def whole_life() -> None:
        peer.announce(ours, 1)
        done.append(Code.ANNOUNCE)
        secret = peer.issue(ours, 1, os.getpid())
        done.append(Code.ISSUE)
        granted, twin = peer.claim(secret)
        received.append(twin)
        done.append(Code.CLAIM)
        peer.acknowledge(granted.number, 2)
        done.append(Code.ACK)
        peer.ask(Code.BEGIN_CLOSE, descriptor=2)
        done.append(Code.BEGIN_CLOSE)
        peer.ask(Code.END_CLOSE, descriptor=2)
        done.append(Code.END_CLOSE)

    with pytest.raises(Gone):
        whole_life()
    assert done == requests[: requests.index(code)]
    assert wait_dead(registry.pid)
    for twin in received:
        twin.close()
    peer.close()


@pytest.mark.fault("F-75")
@pytest.mark.parametrize("point", ["reg.accept", "reg.authed"])
def test_killed_while_a_client_comes_in(run: Callable[..., Running], point: str) -> None:
    registry = run(KILL_AT.format(point=point, code=0, hits=1), "hook=hook")
    with pytest.raises(Gone):
        registry.peer()
    assert wait_dead(registry.pid)


@pytest.mark.fault("F-75", "F-18")
def test_killed_as_it_sees_a_death_the_kernel_ends_what_custody_held(run: Callable[..., Running]) -> None:
    registry = run(KILL_AT.format(point="reg.death_seen", code=0, hits=1), "hook=hook")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    far.settimeout(60)
    with far, registry.peer() as peer, child("import sys; sys.stdin.read()") as target:
        peer.announce(ours, 1)
        peer.issue(ours, 1, target.pid)
        ours.close()
        target.kill()
        assert wait_dead(registry.pid)
        assert far.recv(1) == b""


@pytest.mark.fault("F-84")
@pytest.mark.parametrize("point", ["reg.accept", "reg.authed", "reg.request", "reg.commit", "reg.reply"])
@pytest.mark.parametrize("error", ["MemoryError()", "OSError(5, 'io')"])
def test_an_exception_at_any_point_leaves_it_serving(
    run: Callable[..., Running], ours: socket.socket, point: str, error: str
) -> None:
    """RAISE: whoever met it is refused or hung up on; the next one is served."""
    prepare = (
        "armed = [2]\n"
        "def hook(point, context):\n"
        f"    if point == {point!r}:\n"
        "        armed[0] -= 1\n"
        "        if armed[0] == 0:\n"
        f"            raise {error}\n"
    )
    registry = run(prepare, "hook=hook")
    outcomes = []
    for _ in range(4):
        try:
            with registry.peer() as peer:
                peer.announce(ours, 1)
            outcomes.append("served")
        except (Gone, OSError) as met:
            outcomes.append(type(met).__name__)
    assert outcomes.count("served") >= 3
    assert registry.process.poll() is None


@pytest.mark.fault("F-78")
def test_held_at_a_point_it_serves_on_when_let_go(run: Callable[..., Running], ours: socket.socket) -> None:
    """PAUSE before a reply: the client waits, a second one too; then both have theirs, each its own."""
    prepare = (
        "import os\n"
        "held = []\n"
        "def hook(point, context):\n"
        "    if point == 'reg.commit' and context['code'] == 0x10 and not held:\n"
        "        held.append(1); os.write(gate, b'h'); os.read(gate, 1)\n"
        "gate = int(os.environ['GATE'])\n"
    )
    ours_gate, gate = socket.socketpair()
    os.environ["GATE"] = str(gate.fileno())
    try:
        registry = _running_with(run, prepare, gate.fileno())
        with registry.peer() as first, registry.peer() as second:
            facts = facts_of(ours)
            request = first.send(
                Code.ANNOUNCE,
                socket=facts.socket,
                family=facts.family,
                type=facts.type,
                protocol=facts.protocol,
                descriptor=1,
                opened_at="",
                opened_s=0.0,
                chain="",
            )
            assert ours_gate.recv(1) == b"h"
            other = second.send(Code.STATISTICS)
            assert not wait_readable(second.connection, 0.1)
            assert not wait_readable(first.connection, 0)
            ours_gate.send(b"x")
            assert (first.receive().code, request) == (Code.ANNOUNCED, 1)
            reply = second.receive()
            assert (reply.code, reply.request, reply.descriptors) == (Code.STATISTICS_ARE, other, 1)
    finally:
        del os.environ["GATE"]
        ours_gate.close()
        gate.close()


def _running_with(run: Callable[..., Running], prepare: str, number: int) -> Running:
    """Start a registry that inherits one more descriptor."""
    import subprocess
    from unittest import mock

    real = subprocess.Popen
    with mock.patch.object(
        subprocess, "Popen", lambda *a, **k: real(*a, **{**k, "pass_fds": [*k["pass_fds"], number]})
    ):
        return run(prepare, "hook=hook")


HOLDER = (
    "import sys, socket, os, threading, signal, ctypes\n"
    "from tests.registry.dialogue import Dialogue\n"
    "peer = Dialogue.connect(sys.argv[1], bytes.fromhex(sys.argv[2]))\n"
    "s = socket.socket(); peer.announce(s, 1)\n"
    "os.write(1, b'x'); os.read(0, 1)\n"
)


@pytest.mark.fault("F-119", "F-93", "F-88")
@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(3)",
        "os._exit(0)",
        "os.abort()",
        "signal.raise_signal(signal.SIGSEGV)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
        "pid = os.fork()\nif pid == 0: signal.pause()\nos.write(1, b'%d\\n' % pid); os._exit(0)",
    ],
    ids=["exit", "_exit", "abort", "SIGSEGV", "SIGKILL", "thread", "its forked child lives"],
)
def test_every_end_of_a_holder_is_one(
    run: Callable[..., Running], end: str, bounds: object, recwarn: pytest.WarningsRecorder
) -> None:
    """By pidfd, within T_reap; a forked child that has the channel open hides nothing."""
    registry = run()
    with registry.peer() as peer, child(HOLDER + end, registry.path, registry.key.hex()) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.read(1) == b"x"
        assert peer.statistics()["descriptors"] == 1
        holder.stdin.write(b"x")
        holder.stdin.flush()
        assert wait_dead(holder.pid)
        started = time.monotonic()
        while peer.statistics()["descriptors"] and time.monotonic() < started + 60:
            pass
        bounds.check("T_reap", time.monotonic() - started)  # type: ignore[attr-defined]
        if "fork" in end:
            os.kill(int(holder.stdout.readline()), 9)


@pytest.mark.fault("F-28")
def test_both_ends_of_a_pair_in_tickets_leave_no_cycle(tmp_path: Path) -> None:
    """Unix sockets in flight in each other would need the kernel's collector; in custody they are just open."""
    registry = Stepped(str(tmp_path / "r"))
    try:
        peer = registry.peer()
        left, right = socket.socketpair()
        watch = left.dup()
        with child("import sys; sys.stdin.read()") as target:
            for number, end in enumerate((left, right), 1):
                peer.announce(end, number)
                peer.issue(end, number, target.pid)
                peer.ask(Code.BEGIN_CLOSE, descriptor=number)
                end.close()
                peer.ask(Code.END_CLOSE, descriptor=number)
            assert peer.statistics()["custody"] == 2
            assert not wait_readable(watch, 0)
            target.kill()
            assert wait_dead(target.pid)
        registry.settle()
        assert peer.statistics()["custody"] == 0
        assert watch.recv(1) == b"", "the other end is gone"
        watch.close()
    finally:
        registry.close()


@pytest.mark.fault("F-83")
def test_a_handle_costs_less_than_two_kibibytes() -> None:
    ledger = Ledger(limits=Limits())
    holder = HolderId(ProcessId(1, 1), b"h" * 16)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            facts = SocketFacts(SocketId(number), 2, 1, 6)
            ledger.announce(holder, facts, DescriptorFacts(DescriptorId(number), f"{number}.py:1 in f", 1.0))
            ledger.take_effects()
        assert (tracemalloc.get_traced_memory()[0] - before) / 5_000 < 2048
    finally:
        tracemalloc.stop()


@pytest.mark.fault("F-83")
def test_a_call_is_fast_with_many_clients(run: Callable[..., Running], ours: socket.socket) -> None:
    """Less than 10 ms of the registry's time with 200 clients connected, and no thread of theirs in it."""
    registry = run()
    clients = [registry.peer() for _ in range(200)]
    for number, client in enumerate(clients):
        client.announce(ours, number)
    before_s = _processor_s(registry.pid)
    for client in clients * 2:
        assert client.references(ours) == 200
    assert _processor_s(registry.pid) - before_s < 400 * 0.010
    assert len(os.listdir(f"/proc/{registry.pid}/task")) == 1
    for client in clients:
        client.close()


def _processor_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_dialogue_is_the_tests_own() -> None:
    """The peer of these tests is not the client they would otherwise share a fault with."""
    import sys

    assert "client" not in sys.modules[Dialogue.__module__].__dict__
