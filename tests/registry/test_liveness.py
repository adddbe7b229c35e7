"""Liveness: a process instance, not a pid; death by pidfd, of processes that need not be children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from sharedsock.model.errors import TicketError
from sharedsock.model.identity import ProcessId
from sharedsock.registry.liveness import Liveness, System, peer_credentials
from tests.registry.dialogue import World, child, open_numbers, wait_dead, wait_readable

WAIT = "import sys; sys.stdin.read()"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=["pidfd", "polling"])
def liveness(request: pytest.FixtureRequest, world: World) -> Iterator[Liveness]:
    """With pidfds, and with the fallback where the system has none."""
    world.pidfds = request.param == "pidfd"
    made = Liveness(world, own_pid=1)
    yield made
    made.close()


def test_a_process_is_known_by_pid_and_start(liveness: Liveness) -> None:
    process = liveness.watch_target(os.getpid())
    assert process.pid == os.getpid()
    assert process.start_ticks > 0
    assert liveness.watch_target(os.getpid()) == process
    assert list(liveness.watched()) == [process]
    assert liveness.take_dead() == []


def test_a_death_is_noticed_once(liveness: Liveness) -> None:
    with child(WAIT) as target:
        process = liveness.watch_target(target.pid)
        assert not liveness.notice(process)
        target.kill()
        assert wait_dead(target.pid)
        assert liveness.notice(process), "a zombie is dead (F-99)"
        assert not liveness.notice(process)
        assert liveness.take_dead() == [process]
        assert list(liveness.watched()) == []


@pytest.mark.fault("F-99")
def test_a_zombie_is_dead_and_no_target(liveness: Liveness) -> None:
    with child("") as target:
        assert wait_dead(target.pid)
        assert target.returncode is None, "not reaped"
        with pytest.raises(TicketError):
            liveness.watch_target(target.pid)


def test_a_process_whose_first_thread_has_ended_lives(liveness: Liveness) -> None:
    """/proc calls its leader a zombie; the process goes on in its other threads."""
    code = (
        "import ctypes, threading, sys, os\n"
        "def rest():\n os.write(1, b'x'); sys.stdin.buffer.raw.read(1); os._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with child(code) as target:
        assert target.stdout is not None
        assert target.stdin is not None
        assert target.stdout.read(1) == b"x"
        process = liveness.watch_target(target.pid)
        assert not liveness.notice(process)
        target.stdin.close()
        assert wait_dead(target.pid)
        assert liveness.notice(process)


@pytest.mark.fault("F-101")
@pytest.mark.parametrize("kind", ["grandchild", "orphan"])
def test_no_child_of_ours_is_needed(liveness: Liveness, kind: str) -> None:
    code = (
        "import os, sys\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.close(1); sys.stdin.read(); os._exit(0)\n"
        "os.write(1, b'%d\\n' % pid)\n" + ("os._exit(0)\n" if kind == "orphan" else "os.waitpid(pid, 0)\n")
    )
    with child(code) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        pid = int(parent.stdout.readline())
        process = liveness.watch_target(pid)
        assert not liveness.notice(process)
        os.kill(pid, signal.SIGKILL)
        assert wait_dead(pid)
        assert liveness.notice(process)


@pytest.mark.fault("F-10", "F-19")
def test_who_cannot_be_a_target(liveness: Liveness, world: World) -> None:
    with child(WAIT) as other:
        world.foreign.add(other.pid)
        with pytest.raises(TicketError):
            liveness.watch_target(other.pid)
    for pid in (-1, 0, 1, 1 << 31, 0x7FFFFFFE):
        with pytest.raises(TicketError):
            liveness.watch_target(pid)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(TicketError):
            liveness.watch_target(thread.native_id)
    finally:
        done.set()
        thread.join()
    assert list(liveness.watched()) == []


@pytest.mark.fault("F-19", "F-100")
def test_a_reused_pid_is_another_process(world: World) -> None:
    """Injected identity: the pid is given out again before the death of its first owner has been looked at."""

    class Reused(World):
        generation = 0
        ends: dict[int, tuple[int, int]]

        def pidfd(self, pid: int) -> int | None:
            ours, theirs = os.pipe()
            self.pipes.append(theirs)
            return ours

        pipes: list[int] = []  # noqa: RUF012

        def uid(self, pid: int) -> int | None:
            return os.geteuid()

        def stat(self, pid: int):  # type: ignore[no-untyped-def]
            found = super().stat(os.getpid())
            assert found is not None
            return type(found)(found.name, False, self.generation, found.image)

    reused = Reused()
    liveness = Liveness(reused, own_pid=1)
    first = liveness.watch_target(4242)
    assert liveness.watch_target(4242) == first
    os.close(reused.pipes.pop())  # its pidfd becomes readable
    reused.generation += 1
    second = liveness.watch_target(4242)
    assert second != first
    assert liveness.take_dead() == [first], "to be reaped before the second is used"
    assert list(liveness.watched()) == [second]
    for number in reused.pipes:
        os.close(number)
    liveness.close()


@pytest.mark.parametrize("peer_pidfds", [True, False], ids=["SO_PEERPIDFD", "pidfd_open"])
def test_the_peer_of_a_connection(world: World, peer_pidfds: bool) -> None:
    world.peer_pidfds = peer_pidfds
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        who = peer_credentials(ours)
        assert (who.pid, who.uid) == (os.getpid(), os.geteuid())
        liveness = Liveness(world, own_pid=1)
        process = liveness.watch_peer(ours, who.pid)
        assert process == liveness.watch_target(os.getpid())
        liveness.close()


def test_a_peer_that_is_gone_is_not_taken_for_whoever_has_its_pid_now(world: World) -> None:
    """Without SO_PEERPIDFD: the connection has ended, so the pid may be anybody's."""
    world.peer_pidfds = False
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    before = len(open_numbers())
    with ours:
        liveness = Liveness(world, own_pid=1)
        with pytest.raises(ProcessLookupError):
            liveness.watch_peer(ours, os.getpid())
        assert len(open_numbers()) == before
        assert list(liveness.watched()) == []


def test_the_loop_is_told_which_numbers_to_select_on(world: World) -> None:
    liveness = Liveness(world, own_pid=1)
    told: list[tuple[str, int]] = []
    liveness.on_watch = lambda process, pidfd: told.append(("watch", pidfd))
    liveness.on_forget = lambda pidfd: told.append(("forget", pidfd))
    with child(WAIT) as target:
        process = liveness.watch_target(target.pid)
        liveness.watch_target(target.pid)
        number = liveness.pidfd_of(process)
        assert number is not None
        assert not os.get_inheritable(number), "S-15"
        assert not wait_readable(number, 0)
        target.kill()
        assert wait_readable(number)
        liveness.notice_all()
        assert told == [("watch", number), ("forget", number)]
    assert not liveness.needs_polling()


def test_only_the_fallback_needs_polling(liveness: Liveness, world: World) -> None:
    assert not liveness.needs_polling()
    with child(WAIT) as target:
        process = liveness.watch_target(target.pid)
        assert liveness.needs_polling() == (not world.pidfds)
        target.kill()
        assert wait_dead(target.pid)
        liveness.notice_all(polled_only=True)
        assert liveness.take_dead() == ([] if world.pidfds else [process])


def test_forgotten_processes_leave_nothing_open(liveness: Liveness) -> None:
    before = len(open_numbers())
    with child(WAIT) as target:
        process = liveness.watch_target(target.pid)
        liveness.forget(process)
        liveness.forget(process)
        assert liveness.pidfd_of(process) is None
        liveness.forget(ProcessId(1, 1))
    assert len(open_numbers()) == before


@pytest.mark.parametrize(
    "errno_", [pytest.param(38, id="ENOSYS"), pytest.param(1, id="EPERM"), pytest.param(22, id="EINVAL")]
)
def test_a_system_without_pidfds_is_noticed(errno_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno_, "no")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    if errno_ == 22:
        with pytest.raises(ProcessLookupError):
            System().pidfd(os.getpid())
    else:
        assert System().pidfd(os.getpid()) is None
    monkeypatch.delattr(os, "pidfd_open")
    assert System().pidfd(os.getpid()) is None


def test_without_proc_and_pidfds_signal_zero_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(System):
        def pidfd(self, pid: int) -> int | None:
            return None

        def peer_pidfd(self, channel: socket.socket) -> int | None:
            return None

        def stat(self, pid: int) -> None:
            return None

        def uid(self, pid: int) -> int | None:
            return None

    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    liveness = Liveness(Bare(), own_pid=1)
    target = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    process = liveness.watch_target(target.pid)
    assert process == ProcessId(target.pid, 0)
    assert not liveness.notice(process)
    target.kill()
    target.communicate()
    assert liveness.notice(process)
    with pytest.raises(TicketError):
        liveness.watch_target(target.pid)


@pytest.mark.fault("F-91")
def test_another_program_in_the_process_has_another_image() -> None:
    code = "import os, sys; os.write(1, b'1'); os.read(0, 1); os.execv('/bin/cat', ['cat'])"
    with child(code) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        assert target.stdout.read(1) == b"1"
        before = System().stat(target.pid)
        assert before is not None
        assert before.image is not None
        target.stdin.write(b"\nx")
        target.stdin.flush()
        assert target.stdout.read(1) == b"x"
        after = System().stat(target.pid)
        assert after is not None
        assert after.start_ticks == before.start_ticks
        assert after.image != before.image


def test_namespaces() -> None:
    class Apart(World):
        def namespace(self, pid: int) -> str | None:
            return {os.getpid(): "pid:[1]", 77: "pid:[2]"}.get(pid)

    liveness = Liveness(Apart(), own_pid=os.getpid())
    liveness.check_same_namespace(os.getpid())
    liveness.check_same_namespace(78)
    with pytest.raises(OSError, match="namespace"):
        liveness.check_same_namespace(77)
