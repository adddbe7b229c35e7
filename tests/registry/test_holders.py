"""The locked pipes by which a registry finds the holders that a dead one has left, and calls them."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharedsock.registry import launch, runtime
from sharedsock.registry.holders import HolderPipe, HolderPipes, has_holders
from tests.registry.double import Script, open_numbers, wait_ended, wait_readable

NONCE = bytes(range(16))
CHILD = """
import os, sys
from sharedsock.registry.holders import HolderPipe
pipe = HolderPipe({path!r}, bytes(range(16)), lambda number, is_held: None)
pipe.hold()
{more}
print(os.getpid(), flush=True)
sys.stdin.read(1)
os.execv(sys.executable, [sys.executable, "-c", "print('another program', flush=True); input()"])
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[tuple[str, int]]:
    path = str(tmp_path / "r")
    number = runtime.make_directory(path)
    yield path, number
    os.close(number)


Told = list[tuple[int, bool]]


def pipe_in(path: str) -> tuple[HolderPipe, Told]:
    told: Told = []
    return HolderPipe(path, NONCE, lambda number, is_held: told.append((number, is_held))), told


def outside(path: str, question: str) -> str:
    """Ask from another process: a lock of one's own is never seen from inside."""
    text = "from sharedsock.registry.holders import *\nfrom sharedsock.registry import runtime\n"
    text += f"pipes = HolderPipes(runtime.open_directory({path!r}))\nprint({question}, flush=True)\n"
    with Script(text) as script:
        return script.hear()


def test_a_holder_is_found_while_it_holds_and_not_after(directory: tuple[str, int]) -> None:
    path, _ = directory
    before = open_numbers()
    pipe, told = pipe_in(path)
    pipe.hold()
    (name,) = os.listdir(path)
    found = os.stat(os.path.join(path, name))
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert not os.get_inheritable(told[0][0])
    assert outside(path, "pipes.find()") == str({NONCE})
    pipe.close(lambda: True)
    assert pipe.is_held, "somebody has begun to hold something meanwhile"
    pipe.close()
    assert outside(path, "pipes.find()") == "set()"
    assert os.listdir(path) == []
    pipe.hold()
    assert outside(path, "pipes.find()") == str({NONCE})
    pipe.close()
    pipe.close()
    assert os.listdir(path) == []
    assert [is_held for _, is_held in told] == [True, False, True, False]
    assert open_numbers() == before


def test_a_new_registry_s_call_is_readable_until_it_is_silenced(directory: tuple[str, int]) -> None:
    path, _ = directory
    pipe, told = pipe_in(path)
    pipe.hold()
    number = told[0][0]
    assert not wait_readable(number, 0)
    for _ in range(2):
        assert outside(path, "pipes.call(bytes(range(16)))") == "None"
        assert wait_readable(number)
        pipe.silence()
        poller = select.poll()
        poller.register(number, select.POLLIN)
        assert poller.poll(0) == [], "no hang-up either: waiting for the next call does not spin"
    pipe.close()


@pytest.mark.fault("F-76", "F-88", "F-90")
@pytest.mark.parametrize("way", ["killed", "killed, its child lives", "killed, a child without hooks lives", "exec"])
def test_the_lock_ends_with_the_process_that_took_it(directory: tuple[str, int], way: str) -> None:
    """Not with a forked child's life, and not beyond an exec: what it held has ended then."""
    path, number = directory
    fork = {"killed, its child lives": "os.fork()", "killed, a child without hooks lives": "ctypes.CDLL(None).fork()"}
    more = ""
    if way in fork:
        more = f"import ctypes, signal\nif not {fork[way]}:\n    sys.stdin.read(1)\n    os._exit(0)\n"
    with Script(CHILD.format(path=path, more=more)) as script:
        pid = int(script.hear())
        assert HolderPipes(number).find() == {NONCE}
        assert has_holders(number)
        if way == "exec":
            script.tell()
            assert script.hear() == "another program"
        else:
            os.kill(pid, signal.SIGKILL)
            wait_ended(pid, 10)
        assert not HolderPipes(number).look(NONCE)
        assert os.listdir(path) == []


@pytest.mark.fault("F-09")
def test_a_directory_that_was_removed_has_nobody_who_waits(directory: tuple[str, int]) -> None:
    path, _ = directory
    os.rmdir(path)
    pipe, told = pipe_in(path)
    pipe.hold()
    assert not pipe.is_held
    assert not told
    os.close(runtime.make_directory(path))
    pipe.renew()
    assert pipe.is_held
    os.unlink(os.path.join(path, os.listdir(path)[0]))
    pipe.renew()
    assert len(os.listdir(path)) == 1, "the name is there again, and locked"
    assert outside(path, "pipes.find()") == str({NONCE})
    pipe.close()


@pytest.mark.fault("F-09", "F-98")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EROFS])
def test_no_room_for_the_pipe_is_its_error_and_leaves_nothing(
    directory: tuple[str, int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path, _ = directory
    before = open_numbers()

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkfifo", refuse)
    pipe, told = pipe_in(path)
    with pytest.raises(OSError) as caught:
        pipe.hold()
    assert caught.value.errno == code
    assert not told
    assert not pipe.is_held
    assert open_numbers() == before


def test_threads_that_begin_and_end_at_once_agree_in_the_end(directory: tuple[str, int]) -> None:
    """Held if, and only if, somebody still needs it."""
    path, _ = directory
    pipe, told = pipe_in(path)
    held: set[int] = set()

    def work(own: int) -> None:
        for _ in range(200):
            held.add(own)
            pipe.hold()
            assert pipe.is_held
            held.discard(own)
            if not held:
                pipe.close(held.__len__)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.close(held.__len__)
    assert not pipe.is_held
    assert [is_held for _, is_held in told] == [True, False] * (len(told) // 2)
    pipe.close()


def test_a_registry_in_the_holders_own_process_does_not_take_its_lock_away(directory: tuple[str, int]) -> None:
    """A process loses a record lock when it closes any other number of the file."""
    path, number = directory
    pipe, _ = pipe_in(path)
    pipe.hold()
    assert HolderPipes(number).find() == {NONCE}
    HolderPipes(number).call(NONCE)
    assert outside(path, "pipes.find()") == str({NONCE})
    pipe.close()


# -- what a killed registry has left ----------------------------------------------------------------------------------


def abandoned(base: Path, name: str = "sharedsock-" + "a" * 32) -> Path:
    path = base / name
    number = runtime.make_directory(str(path))
    for lock in (runtime.try_start_lock(number), runtime.hold_alive_lock(number)):
        assert lock is not None
        runtime.release_lock(lock)
    runtime.write_key(number)
    os.close(number)
    return path


@pytest.mark.fault("S-02", "F-120")
def test_what_killed_registries_have_left_is_removed_by_the_next_anywhere(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    launch.remove_abandoned(str(tmp_path))
    assert left.exists(), "as young as a start may be"
    launch.remove_abandoned(str(tmp_path), older_than_s=0)
    assert not left.exists()


def held_alive(path: Path, number: int) -> Callable[[], object]:
    lock = runtime.hold_alive_lock(number)
    assert lock is not None
    return lambda: runtime.release_lock(lock)


def held_start(path: Path, number: int) -> Callable[[], object]:
    lock = runtime.try_start_lock(number)
    assert lock is not None
    return lambda: runtime.release_lock(lock)


def held_pipe(path: Path, number: int) -> Callable[[], object]:
    pipe, _ = pipe_in(str(path))
    pipe.hold()
    return pipe.close


@pytest.mark.fault("S-02", "S-03")
@pytest.mark.parametrize("hold", [held_alive, held_start, held_pipe])
def test_what_somebody_has_locked_stays(tmp_path: Path, hold: Callable[[Path, int], Callable[[], object]]) -> None:
    left = abandoned(tmp_path)
    number = runtime.open_directory(str(left))
    let_go = hold(left, number)
    launch.remove_abandoned(str(tmp_path), older_than_s=0)
    assert left.exists()
    assert (left / "key").exists()
    let_go()
    launch.remove_abandoned(str(tmp_path), older_than_s=0)
    assert not left.exists()
    os.close(number)


@pytest.mark.fault("S-02", "F-112")
@pytest.mark.parametrize("kind", ["another name", "open to others", "a link", "a file"])
def test_what_is_not_ours_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / ("sharedsock-mine" if kind == "another name" else "sharedsock-" + "b" * 32)
    if kind in ("another name", "open to others"):
        abandoned(tmp_path, target.name)
        target.chmod(0o755 if kind == "open to others" else 0o700)
    elif kind == "a link":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(0o700)
        (elsewhere / "key").write_text("precious")
        target.symlink_to(elsewhere)
    else:
        target.write_text("x")
    launch.remove_abandoned(str(tmp_path), older_than_s=0)
    assert target.exists()
    assert kind != "a link" or (tmp_path / "elsewhere" / "key").exists()
