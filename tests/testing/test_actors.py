"""Actors are real processes that do what they are told, and nothing of them is left."""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from sharedsock.model import trace
from sharedsock.testing import Aborted, ActorDied, ActorRaised, Actors, ActorTimeout, Raised, Received, Returned
from sharedsock.testing.commands import Belongings
from sharedsock.testing.launch import START_METHODS
from sharedsock.testing.observation import files, thread_facts
from tests.testing.conftest import Pair

_WITHIN_S = 60.0


@pytest.mark.parametrize("method", START_METHODS)
def test_an_actor_is_a_process_of_its_own_under_every_start_method(method: str) -> None:
    with Actors(method) as actors:
        one, two = actors.start("one", "two")
        pids = {one.call(os.getpid), two.call(os.getpid)}
        assert pids == {one.pid, two.pid}
        assert os.getpid() not in pids
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.rule("CLOSE-28")
@pytest.mark.parametrize("method", START_METHODS)
def test_close_in_one_process_leaves_the_other_reading(method: str, pair: Any) -> None:
    """LPWSPDuplicateSocket: the underlying socket remains open until the last descriptor closes."""
    with Actors(method) as actors:
        a, b = actors.share(pair.local)
        reading = b.thread("reader").recv(16)
        b.wait_until_blocked("reader")
        b.close()
        assert reading.outcome() == Aborted(10004)
        assert b.thread("reader").recv(16).outcome() == Raised("NotASocket", 10038, errno.EBADF)
        pair.peer.sendall(b"still here")
        assert a.recv(16) == b"still here"


def test_commands_of_one_thread_run_in_order_and_of_two_threads_at_once(actors: Actors, pair: Any) -> None:
    (actor,) = actors.start("a")
    actor.do("keep", pair.local)
    blocked = actor.thread("one").recv(1)
    behind = actor.thread("one").call(os.getpid)
    assert actor.thread("two").call(threading.active_count).value() >= 3
    assert not behind.is_done()
    pair.peer.sendall(b"x")
    assert (blocked.outcome(), behind.outcome()) == (Received(b"x"), Returned(actor.pid))
    assert blocked.began_s <= blocked.ended_s <= behind.began_s


def test_an_error_in_a_callable_is_its_outcome_and_the_actor_goes_on(actors: Actors) -> None:
    (actor,) = actors.start("a")
    assert actor.thread("main").call(divmod, 1, 0).outcome() == Raised("ZeroDivisionError")
    with pytest.raises(ActorRaised, match="ZeroDivisionError"):
        actor.call(divmod, 1, 0)
    assert actor.thread("main").call(sys.exit, 3).outcome() == Raised("SystemExit")
    assert actor.thread("main").call(threading.Lock).outcome() == Raised("TypeError"), "no value that can travel"
    assert actor.call(abs, -1) == 1


def test_a_wait_in_vain_says_where_every_thread_is(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    pending = actor.thread("reader").recv(1)
    actor.wait_until_blocked("reader")
    with pytest.raises(ActorTimeout, match=r"recv in thread reader\n(.|\n)*thread reader:(.|\n)*commands\.py"):
        pending.outcome(0.01)


def test_a_killed_actor_fails_whoever_waits_for_it(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    pending = actor.thread("reader").recv(1)
    actor.wait_until_blocked("reader")
    actor.kill()
    with pytest.raises(ActorDied, match=r"killed by SIGKILL; waited for recv in thread reader"):
        pending.outcome()
    with pytest.raises(ActorDied, match="killed by SIGKILL"):
        actor.call(os.getpid)


def test_what_an_actor_sent_before_it_was_killed_is_not_lost(actors: Actors) -> None:
    (actor,) = actors.start("a")
    pending = actor.thread("main").call(os.getpid)
    suicide = actor.thread("main").call(os.kill, actor.pid, signal.SIGKILL)
    assert actor.wait_dead() == "killed by SIGKILL"
    assert pending.outcome() == Returned(actor.pid)
    with pytest.raises(ActorDied):
        suicide.outcome()


def test_a_stopped_actor_stands_still_until_it_is_continued(actors: Actors, pair: Any) -> None:
    (actor,) = actors.share(pair.local, count=1)
    reading = actor.thread("reader").recv(16)
    actor.wait_until_blocked("reader")
    actor.stop()
    pair.peer.sendall(b"late")
    assert thread_facts(actor.pid, actor.tid("reader")).state == "T"
    assert not reading.is_done()
    actor.cont()
    assert reading.outcome() == Received(b"late")


def test_a_stopped_actor_ends_with_its_company(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedsock.testing.actors._END_S", 0.1)
    with pytest.raises(ActorDied, match="did not end within"):
        with Actors("fork") as company:
            (actor,) = company.start("a")
            actor.stop()
    assert not os.path.exists(f"/proc/{actor.pid}")


def test_an_orderly_end_closes_what_the_actor_keeps(pair: Any) -> None:
    with Actors("fork") as actors:
        actors.share(pair.local, count=1)
        pair.local.close()
        assert not select.select([pair.peer], [], [], 0)[0]
    assert pair.peer.recv(1) == b""


def test_an_actor_never_waits_for_its_controller(actors: Actors) -> None:
    """A result larger than the pipe goes to the backlog; the thread's next command runs with nobody reading."""
    (actor,) = actors.start("a")
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(_WITHIN_S)
        large = actor.thread("main").call(bytes, 4 << 20)
        actor.thread("main").do("connect", "out", door.getsockname(), plain=True)
        client, _ = door.accept()
        client.close()
        assert large.value() == bytes(4 << 20)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_killed_controller_leaves_nothing(method: str) -> None:
    """Blocked, idle and stopped actors all end when their controller is SIGKILLed."""
    program = (
        "import select\n"
        "from sharedsock.testing import Actors\n"
        "if __name__ == '__main__':\n"
        f"    actors = Actors({method!r})\n"
        "    idle, stopped, blocked = actors.start('idle', 'stopped', 'blocked')\n"
        "    stopped.call(abs, 1)\n"
        "    stopped.stop()\n"
        "    blocked.do('listen', 'door', plain=True)\n"
        "    blocked.thread('server').accept('door')\n"
        "    print(idle.pid, stopped.pid, blocked.pid, flush=True)\n"
        "    select.select([], [], [])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        pidfds = [os.pidfd_open(int(pid)) for pid in controller.stdout.readline().split()]
        controller.kill()
    try:
        assert len(pidfds) == 3
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], _WITHIN_S)[0], "an actor outlived its controller"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_a_controller_that_forgets_its_actors_can_still_exit() -> None:
    """The interpreter joins its children at exit; actors left open must not make it wait."""
    program = "from sharedsock.testing import Actors\nactors = Actors('fork')\n(a,) = actors.start('a')\nprint(a.pid)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    assert not os.path.exists(f"/proc/{done.stdout.strip()}")


def test_a_forked_child_of_the_controller_does_not_keep_actors_alive(actors: Actors) -> None:
    (actor,) = actors.start("a")
    release, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        os.read(release, 1)
        os._exit(0)
    try:
        os.close(release)
        pidfd = os.pidfd_open(actor.pid)
        actor._pipe.shutdown(socket.SHUT_RDWR)
        assert select.select([pidfd], [], [], _WITHIN_S)[0]
        os.close(pidfd)
        assert actor.wait_dead() == "exited with 70"
    finally:
        os.close(held)
        os.waitpid(child, 0)


def _work_in_a_daemon(results: Any) -> None:
    with Actors("fork") as actors:
        (actor,) = actors.start("a")
        results.send((actors.start_method, actor.pid == actor.call(os.getpid), actor.pid != os.getpid()))


def test_a_daemonic_worker_has_actors_too() -> None:
    """multiprocessing refuses children to a daemonic process; the actors are plain subprocesses there."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with ours, theirs:
        worker = context.Process(target=_work_in_a_daemon, args=(theirs,), daemon=True)
        worker.start()
        assert ours.poll(_WITHIN_S)
        assert ours.recv() == ("exec", True, True)
        worker.join(_WITHIN_S)
        assert worker.exitcode == 0
        worker.close()


def test_a_company_leaves_the_controller_as_it_was() -> None:
    with Actors("fork") as actors:  # whatever is opened once per process is open now
        actors.start("a")
    before, threads = files(os.getpid()), threading.active_count()
    with Actors("fork") as actors:
        actors.start("a", "b")
        actors["a"].call(abs, 1)
        actors["b"].kill()
    assert files(os.getpid()) == before
    assert threading.active_count() == threads


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="'thread' is none of fork, forkserver, spawn, exec"):
        Actors("thread")
    with Actors("fork") as actors:
        actors.start("a")
        with pytest.raises(ValueError, match="there is an actor 'a' already"):
            actors.start("a")
        with pytest.raises(ActorRaised, match=r"keeps no socket 'socket', only \[\]"):
            actors["a"].recv(1)


def test_actors_get_the_environment_they_are_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREDSOCK_OF_TEST", "inherited")
    monkeypatch.setenv("SHAREDSOCK_GONE", "x")
    with Actors("forkserver", environment={"SHAREDSOCK_GONE": None, "OTHER": "given"}) as actors:
        (actor,) = actors.start("a")
        found = [actor.call(os.getenv, name) for name in ("SHAREDSOCK_OF_TEST", "SHAREDSOCK_GONE", "OTHER")]
    assert found == ["inherited", None, "given"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_a_command_raises_is_its_outcome_and_the_thread_lives_on(
    error: type[BaseException], actors: Actors, pair: Pair
) -> None:
    (a,) = actors.share(pair.local, count=1)
    a.raise_at("op.enter", error, thread="main")
    raised = a.thread("main").recv(1).outcome()
    assert isinstance(raised, Raised)
    assert raised.type == error.__name__
    pair.peer.sendall(b"x")
    assert a.recv(1) == b"x"


def _has_hook() -> bool:
    return trace.hook is not None


def _converses(has: Belongings) -> bool:
    return has.shared("socket")._talk is not None


def test_an_unwatched_actor_takes_the_fast_paths_until_it_is_held(pair: Pair) -> None:
    """CLOSE-20 in a conversation, which a probe would keep it from."""
    with Actors("fork", is_watched=False) as actors:
        a, b = actors.share(pair.local, count=2)
        assert not a.call(_has_hook)
        for _ in range(3):
            reading = a.thread("reader").recv(16)
            a.wait_until_blocked("reader")
            pair.peer.sendall(b"x")
            assert reading.value() == b"x"
        assert a.do("call_with", _converses)
        reading, other = a.thread("reader").recv(16), b.thread("reader").recv(16)
        a.wait_until_blocked("reader")
        b.wait_until_blocked("reader")
        a.close()
        assert reading.outcome() == Aborted(10004)
        pair.peer.sendall(b"still here")
        assert other.value() == b"still here"
        with b.hold_at("op.enter") as held:
            reading = b.thread("reader").recv(1)
            held.wait_reached()
            assert b.call(_has_hook)
        pair.peer.sendall(b"y")
        assert reading.value() == b"y"
        assert any(event.kind == "op.enter" for event in b.events)
