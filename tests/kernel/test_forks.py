"""A forked child owns nothing: it closes exactly what it inherited, and touches nothing of its parent's (rule 11)."""

from __future__ import annotations

import gc
import mmap
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest

from sharedsock.kernel import numbers, operations, sockets, system, waiting
from sharedsock.kernel.operations import READ
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES


def _drop() -> None:
    """What the at-fork hook of `descriptors.table` has done already where that room is loaded."""
    if numbers.is_forked():
        numbers.drop_inherited()
        sockets.forget_retiring()


@pytest.mark.fault("F-86")
def test_a_child_closes_exactly_the_inherited_numbers() -> None:
    """Sockets, wakers, sets and kept files; a stranger's files and plain sockets stay."""
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    waiting.set_of(kernel, READ)
    buried = kinds.adopt(kinds.make_client("tcp4"))
    sockets.abort(buried, "the test")
    kept = sockets.keep_and_bury(buried, keep=True)
    assert kept is not None
    era, inherited = numbers.current_era(), numbers.owned()
    assert {kernel.number, kinds.waker_of(kernel).number, kernel.sets[READ].number, kept} <= inherited  # type: ignore[union-attr]
    stranger = os.open("/dev/null", os.O_RDONLY)

    def body(line: stage.Line) -> None:
        _drop()
        assert not any(map(stage.is_open, inherited))
        assert stage.is_open(stranger)
        assert pair.peer.fileno() >= 0
        assert (numbers.owned(), numbers.current_era(), numbers.is_forked()) == (frozenset(), era + 1, False)
        assert sockets.retiring() == 0
        line.say(b"clean")
        line.hear()

    with stage.sibling(body) as child:
        assert child.hear() == b"clean"
        numbers.release(kept, era)
        kinds.close(kernel)
        assert pair.peer.recv(1) == b""  # the child idles, and keeps nothing open
    os.close(stranger)
    pair.close()


@pytest.mark.fault("F-86")
def test_inherited_objects_never_close_a_number_of_the_child() -> None:
    """Collected in the child, after their numbers have become a stranger's: an era is closed by itself only (I5)."""
    pair = kinds.make_pair("tcp4")
    held = [kinds.adopt(pair.local)]
    waiting.set_of(held[0], READ)

    def body(line: stage.Line) -> None:
        _drop()
        strangers = [os.eventfd(0) for _ in range(32)]
        inherited = {held[0].number, kinds.waker_of(held[0]).number, held[0].sets[READ].number}  # type: ignore[union-attr]
        assert inherited <= set(strangers)
        sockets.abort(held[0], "the child")
        held.clear()
        gc.collect()
        assert all(map(stage.is_open, strangers))
        assert not any(int.from_bytes(os.read(n, 8), "little") for n in strangers if _is_readable(n))
        line.say(b"kept")

    with stage.sibling(body) as child:
        assert child.hear() == b"kept"
    kinds.close(held.pop())
    pair.close()


def _is_readable(number: int) -> bool:
    return bool(stage.select.select([number], [], [], 0)[0])


@pytest.mark.fault("F-86")
def test_a_child_has_a_data_plane_of_its_own() -> None:
    """What it opens itself works: waits, is aborted, leaves nothing; the parent's lock is not in its way."""
    with numbers.gate:  # held by the parent's thread at the fork

        def body(line: stage.Line) -> None:
            _drop()
            left, right = socket.socketpair()
            kernel = kinds.adopt(left)
            call = stage.blocked(kernel, RECEIVES[0])
            right.send(b"own")
            assert call.outcome() == b"own"
            kinds.close(kernel)
            del kernel, call
            gc.collect()
            assert numbers.owned() == frozenset()
            line.say(b"works")

        with stage.sibling(body) as child:
            assert child.hear() == b"works"


UNHOOKED = """
    import ctypes, os, select
    from sharedsock.kernel import numbers, sockets
    from tests.kernel import kinds, stage
    from tests.kernel.kinds import RECEIVES

    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    call = stage.blocked(kernel, RECEIVES[0])
    assert not numbers.is_forked() and numbers.calm[0] == 1
    numbers.calm[kernel.slot] = 1
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        status = 1
        try:
            assert numbers.is_forked(), "not noticed"
            assert bytes(numbers.calm) == bytes(len(numbers.calm)), "the page is not wiped"
            sockets.abort(kernel, "the child")
            sockets.keep_and_bury(kernel, keep=False)
            assert kernel.aborted == "the child"
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert numbers.calm[0] == 1
    assert call.thread.is_alive() and len(kernel.waiters) == 1, "the child's abort has ended the parent's wait"
    waker = kinds.waker_of(kernel)
    assert not select.select([waker.number], [], [], 0)[0], "the child has woken the parent's waiters for ever"
    pair.peer.send(b"still ours")
    assert call.outcome() == b"still ours"
    pair.peer.send(b"more")
    assert kernel.sets[0].poll(1, 8) == [(kernel.number, select.EPOLLIN)], "out of the parent's set"
    kinds.close(kernel)
    print("ok")
"""


@pytest.mark.fault("F-86", "F-90")
def test_a_fork_that_ran_no_hook_is_noticed_and_harmless() -> None:
    """Called through ctypes: the wiped page tells it; an abort there takes no socket out of the parent's sets."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNHOOKED)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("ok\n", "", 0)


@pytest.mark.fault("F-90")
def test_where_the_page_is_not_wiped_the_pid_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the fast path, which looks at the page alone, is never open."""
    monkeypatch.setattr(numbers, "_page_is_wiped", False)
    assert not numbers.is_forked()
    monkeypatch.setattr(numbers, "_pid", os.getpid() + 1)
    assert numbers.is_forked()
    assert numbers.slot_of(5) == numbers.NEVER_CALM
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    pair.peer.send(b"x")
    assert operations.perform(kernel, "recv", READ, None, kernel.recv, (1,)) == b"x"
    assert numbers.calm[numbers.NEVER_CALM] == 0
    monkeypatch.setattr(numbers, "_pid", os.getpid())
    kinds.close(kernel)
    pair.close()


def test_a_kernel_that_cannot_wipe_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """madvise refuses: the page is still there, and known not to be wiped."""

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    page, is_wiped = numbers._make_page()
    assert (page[0], is_wiped) == (0, False)


def test_numbers_beyond_the_page_are_never_calm() -> None:
    """The last byte is nobody's, and always 0."""
    assert [numbers.slot_of(n) for n in (0, 1, 65533)] == [1, 2, 65534]
    assert [numbers.slot_of(n) for n in (-1, 65534, 65535, 1 << 20)] == [numbers.NEVER_CALM] * 4


@pytest.mark.fault("F-86", "F-87")
@pytest.mark.parametrize("step", ["close", "make_eventfd"])
def test_a_fork_waits_while_a_number_changes_hands(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open but not on the list is what a child would keep open without knowing: the gate is held over both steps."""
    held, go = threading.Event(), threading.Event()
    original: Callable[..., object] = getattr(system, step)

    def hold(*arguments: int) -> object:
        if threading.current_thread().name == "worker":
            held.set()
            assert go.wait(stage.PATIENCE_S)
        return original(*arguments)

    kernel = kinds.adopt(kinds.make_client("tcp4"))
    number, era = kernel.number, kernel.era
    kernel.detach()
    kernel.number = -1
    monkeypatch.setattr(system, step, hold)

    def work() -> None:
        if step == "close":
            numbers.release(number, era)
        else:
            opened = kinds.adopt(kinds.make_client("tcp4"))
            kinds.waker_of(opened)
            kinds.close(opened)

    worker = stage.Call(work, name="worker")
    assert held.wait(stage.PATIENCE_S)
    assert not numbers.gate.acquire(timeout=0.02), "a fork could come between"
    go.set()
    worker.outcome()
    assert numbers.gate.acquire(timeout=stage.PATIENCE_S)
    numbers.gate.release()
    if step == "make_eventfd":
        numbers.release(number, era)
    assert not stage.is_open(number)
