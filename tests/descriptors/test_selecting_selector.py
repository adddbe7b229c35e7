"""`ss.Selector`: as selectors.DefaultSelector, and a descriptor that is closed is gone from it, ghost and all.

A plain epoll set that knows a closed number goes on reporting the socket while another process holds it, and can not
be told to forget it. Source: epoll(7), Q6; spec/fault-catalogue.md, rule 6 and F-57.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NoReturn

import pytest

import sharedsock as ss
from sharedsock.kernel import system
from sharedsock.testing import Actor, Actors
from sharedsock.testing.observation import thread_facts
from tests.descriptors import kinds

ON = "socket"


@pytest.fixture(scope="module")
def other_process() -> Iterator[Actor]:
    with Actors("fork") as actors:
        (other,) = actors.start("other")
        yield other


@pytest.fixture(params=["epoll", "poll"])
def selector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ss.Selector]:
    """A selector over an epoll set, and one over poll, where no set can be had."""

    def no_set() -> NoReturn:
        raise OSError(errno.EMFILE, "no set can be had")

    if request.param == "poll":
        monkeypatch.setattr(system, "make_epoll", no_set)
    with ss.Selector() as selector:
        yield selector


@pytest.fixture
def pair() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


def wait_asleep(thread: threading.Thread) -> None:
    """Wait until a thread of this process sleeps in a wait for descriptors."""
    assert thread.native_id is not None
    while not thread_facts(os.getpid(), thread.native_id).is_waiting:
        os.sched_yield()


class Selecting:
    """A `select()` in a thread of its own."""

    def __init__(self, selector: ss.Selector) -> None:
        self._ready: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._ready.append(selector.select()), daemon=True)
        self._thread.start()
        wait_asleep(self._thread)

    def result(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive(), "select() hangs"
        return self._ready[0]


# -- a closed descriptor is gone --------------------------------------------------------------------------------------


@pytest.mark.fault("F-57")
@pytest.mark.parametrize("kind", [*kinds.STREAM_KINDS, *kinds.DATAGRAM_KINDS])
def test_no_ghost_events_while_another_process_keeps_the_socket(
    kind: str, selector: ss.Selector, other_process: Actor
) -> None:
    with kinds.pair_of(kind) as pair:
        other_process.do("take", pair.local.share(other_process.pid), on=ON)
        selector.register(pair.local, EVENT_READ, "data")
        pair.peer.send(b"before")
        assert [key.data for key, _ in selector.select(60)] == ["data"]
        pair.local.close()
        assert len(selector.get_map()) == 0
        assert selector.select(0) == []
        pair.peer.send(b"after")
        assert selector.select(0) == []
        # The very number, as another socket: what is reported for it is its own.
        with kinds.pair_of("unix-stream") as fresh:
            selector.register(fresh.local, EVENT_READ, "fresh")
            assert selector.select(0) == []
            fresh.peer.send(b"x")
            assert [key.data for key, _ in selector.select(60)] == ["fresh"]
        assert other_process.recv(16, on=ON).startswith(b"before")
        other_process.close(on=ON)


@pytest.mark.fault("F-57")
def test_a_plain_epoll_set_does_report_a_ghost(pair: kinds.Pair, other_process: Actor) -> None:
    """What `Selector` is for; the remedy in the documentation of epoll is to unregister before the close."""
    other_process.do("take", pair.local.share(other_process.pid), on=ON)
    with select.epoll() as plain:
        plain.register(pair.local.fileno(), select.EPOLLIN)
        pair.local.close()
        pair.peer.send(b"x")
        assert plain.poll(1)
    other_process.close(on=ON)


@pytest.mark.fault("F-57")
@pytest.mark.parametrize("end", ["close", "abort", "with", "detach"])
def test_every_way_to_end_a_descriptor_takes_it_out(end: str, selector: ss.Selector, pair: kinds.Pair) -> None:
    selector.register(pair.local, EVENT_READ)
    if end == "detach":
        os.close(pair.local.detach())
    elif end == "with":
        with pair.local:
            pass
    else:
        getattr(pair.local, end)()
    assert dict(selector.get_map()) == {}
    assert selector.select(0) == []


@pytest.mark.fault("F-114")
def test_a_selector_that_is_collected_lets_go_of_its_sockets(pair: kinds.Pair) -> None:
    """A key holds its SharedSocket, as in the standard library: both are collected, or neither."""
    selector = ss.Selector()
    shared = ss.adopt(socket.socket(fileno=os.dup(pair.local.fileno())))
    selector.register(shared, EVENT_READ)
    del shared
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del selector
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]


@pytest.mark.fault("F-57")
def test_a_waiting_select_is_woken_by_a_close_and_returns_without_that_key(
    selector: ss.Selector, pair: kinds.Pair, bounds: Any
) -> None:
    with kinds.pair_of("unix-stream") as other:
        selector.register(pair.local, EVENT_READ)
        selector.register(other.local, EVENT_READ)
        waiting = Selecting(selector)
        pair.local.close()
        assert waiting.result() == []
        assert [key.fileobj for key in selector.get_map().values()] == [other.local]
        waiting = Selecting(selector)
        other.peer.send(b"x")
        assert [key.fileobj for key, _ in waiting.result()] == [other.local]


@pytest.mark.fault("F-57")
@pytest.mark.rule("CLOSE-29")
def test_another_descriptor_of_the_same_socket_stays(selector: ss.Selector, pair: kinds.Pair) -> None:
    with pair.local.dup() as twin:
        selector.register(pair.local, EVENT_READ, "closed")
        selector.register(twin, EVENT_READ, "kept")
        pair.local.close()
        pair.peer.send(b"x")
        assert [(key.data, events) for key, events in selector.select(60)] == [("kept", EVENT_READ)]


@pytest.mark.rule("CLOSE-44")
def test_a_closed_descriptor_can_not_be_registered_modified_or_unregistered(
    selector: ss.Selector, pair: kinds.Pair
) -> None:
    selector.register(pair.local, EVENT_READ)
    pair.local.close()
    with pytest.raises(ss.NotASocket) as refused:
        selector.register(pair.local, EVENT_READ)
    assert refused.value.winerror == 10038
    for act in (
        lambda: selector.unregister(pair.local),
        lambda: selector.modify(pair.local, EVENT_WRITE),
        lambda: selector.get_key(pair.local),
        lambda: selector.get_map()[pair.local],
    ):
        with pytest.raises(KeyError):
            act()


def test_a_descriptor_in_two_selectors_disappears_from_both(pair: kinds.Pair) -> None:
    with ss.Selector() as one, ss.Selector() as two:
        one.register(pair.local, EVENT_READ)
        two.register(pair.local, EVENT_WRITE)
        pair.local.close()
        assert (dict(one.get_map()), dict(two.get_map())) == ({}, {})


# -- as in the standard library -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [selectors.DefaultSelector, ss.Selector])
def test_the_same_steps_have_the_same_results(make: type[selectors.BaseSelector], pair: kinds.Pair) -> None:
    """Each step is taken on a selector of the standard library and on ours; plain sockets in both."""
    ours, other = socket.socketpair()
    with ours, other, make() as selector:
        key = selector.register(ours, EVENT_READ, "data")
        assert key == selectors.SelectorKey(ours, ours.fileno(), EVENT_READ, "data")
        assert selector.get_key(ours) == key
        assert selector.get_map()[ours] == selector.get_map()[ours.fileno()] == key
        assert (len(selector.get_map()), list(selector.get_map())) == (1, [ours.fileno()])
        assert ours in selector.get_map()
        assert other not in selector.get_map()
        for wrong in (lambda: selector.register(ours, EVENT_WRITE), lambda: selector.unregister(other)):
            with pytest.raises(KeyError):
                wrong()
        wrong_ones: tuple[tuple[Any, int], ...] = ((ours, 0), (ours, 64), ("no file", EVENT_READ), (-1, EVENT_READ))
        for fileobj, events in wrong_ones:
            with pytest.raises(ValueError):
                selector.register(fileobj, events)
        assert selector.select(0) == selector.select(-1) == selector.select(0.001) == []
        other.send(b"x")
        assert selector.select() == [(key, EVENT_READ)]
        both = selector.modify(ours, EVENT_READ | EVENT_WRITE, "changed")
        assert both.data == "changed"
        assert selector.select() == [(both, EVENT_READ | EVENT_WRITE)]
        assert selector.modify(ours, EVENT_READ | EVENT_WRITE).data is None
        writing = selector.modify(ours, EVENT_WRITE)
        assert selector.select() == [(writing, EVENT_WRITE)]
        other.close()
        assert selector.select() == [(writing, EVENT_WRITE)]
        number = ours.fileno()
        assert selector.unregister(number) == writing
        with pytest.raises(KeyError):
            selector.modify(ours, EVENT_READ)
        with open("/etc/hostname") as regular, pytest.raises(PermissionError):
            selector.register(regular, EVENT_READ)
        kept_view = selector.get_map()
        assert dict(kept_view) == {}
    assert selector.get_map() is None
    selector.close()
    with pytest.raises(RuntimeError):
        selector.get_key(ours)


def test_a_plain_file_that_was_closed_can_still_be_unregistered(selector: ss.Selector) -> None:
    ours, other = socket.socketpair()
    with other:
        key = selector.register(ours, EVENT_READ)
        ours.close()
        assert selector.unregister(ours) == key


def test_a_shared_socket_is_a_file_object_like_any_other(selector: ss.Selector, pair: kinds.Pair) -> None:
    key = selector.register(pair.local, EVENT_READ, "data")
    assert key == selectors.SelectorKey(pair.local, pair.local.fileno(), EVENT_READ, "data")
    pair.peer.send(b"x")
    assert selector.select() == [(key, EVENT_READ)]
    assert [ready for _, ready in _modified(selector, pair.local, EVENT_WRITE)] == [EVENT_WRITE]
    assert selector.unregister(pair.local).events == EVENT_WRITE
    assert selector.select(0) == []
    assert pair.local.recv(1) == b"x"
    selector.register(pair.local, EVENT_READ)
    assert selector.select(0) == []


def _modified(selector: ss.Selector, fileobj: Any, events: int) -> list[tuple[Any, int]]:
    selector.modify(fileobj, events)
    return selector.select(60)


def test_what_is_changed_while_another_thread_waits_counts_for_it(selector: ss.Selector, pair: kinds.Pair) -> None:
    with kinds.pair_of("unix-stream") as other:
        selector.register(pair.local, EVENT_READ, "first")
        other.peer.send(b"x")
        waiting = Selecting(selector)
        selector.register(other.local, EVENT_READ, "second")
        woken = waiting.result() or selector.select(60)  # without an epoll set the change itself wakes
        assert [key.data for key, _ in woken] == ["second"]


def test_closing_the_selector_ends_a_wait_and_leaves_the_sockets_alone(selector: ss.Selector, pair: kinds.Pair) -> None:
    selector.register(pair.local, EVENT_READ)
    waiting = Selecting(selector)
    selector.close()
    assert waiting.result() == []
    for use in (selector.select, selector.fileno, lambda: selector.register(pair.local, EVENT_READ)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    pair.peer.send(b"x")
    assert pair.local.recv(1) == b"x"


@pytest.mark.rule("SELECT-5")
def test_ready_is_a_hint(selector: ss.Selector, pair: kinds.Pair, other_process: Actor) -> None:
    other_process.do("take", pair.local.share(other_process.pid), on=ON)
    selector.register(pair.local, EVENT_READ)
    pair.peer.send(b"x")
    assert selector.select(60)
    assert other_process.recv(1, on=ON) == b"x"
    assert selector.select(0) == []
    other_process.close(on=ON)


@pytest.mark.fault("F-50")
def test_what_an_interrupted_receive_has_taken_is_there_to_be_read(selector: ss.Selector, pair: kinds.Pair) -> None:
    from sharedsock.descriptors.transfer import Kept

    selector.register(pair.local, EVENT_READ)
    pair.local._descriptor.kernel.kept.append(Kept(b"taken before"))
    assert [events for _, events in selector.select()] == [EVENT_READ]
    assert pair.local.recv(64) == b"taken before"
    assert selector.select(0) == []


@pytest.mark.fault("F-57")
def test_an_asyncio_loop_over_it_goes_on_after_a_close(pair: kinds.Pair) -> None:
    """add_reader on a SharedSocket, closed under the loop while another process could still hold it."""
    seen: list[bytes] = []
    with kinds.pair_of("unix-stream") as other:
        loop = asyncio.SelectorEventLoop(ss.Selector())
        try:
            loop.add_reader(pair.local, lambda: seen.append(pair.local.recv(16)))

            def stop() -> None:
                seen.append(other.local.recv(16))
                loop.stop()

            loop.add_reader(other.local, stop)
            number = pair.local.fileno()
            loop.call_soon(pair.local.close)
            loop.call_soon(other.peer.send, b"other")
            loop.run_forever()
            assert seen == [b"other"]
            assert not loop.remove_reader(number), "it is gone already"
            loop.remove_reader(other.local)
        finally:
            loop.close()


@pytest.mark.fault("F-03", "F-96")
def test_with_no_number_for_its_bell_a_selector_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(system, "make_eventfd", refuse)
    with pytest.raises(OSError, match="Too many") as refused:
        ss.Selector()
    assert refused.value.errno == errno.EMFILE


@pytest.mark.fault("F-116", "F-118")
def test_an_interpreter_ends_silently_with_a_selector_open() -> None:
    code = "import sharedsock as ss; s = ss.Selector(); a, b = ss.socketpair(); s.register(a, 1)"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", code], capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.mark.fault("F-86", "F-90")
def test_a_forked_child_has_no_part_in_its_parent_s_selector(selector: ss.Selector, pair: kinds.Pair) -> None:
    selector.register(pair.local, EVENT_READ)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with pytest.raises(ss.ForkedDescriptor):
                selector.select(0)
            with pytest.raises(ss.ForkedDescriptor):
                selector.register(0, EVENT_READ)
            selector.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pair.peer.send(b"x")
    assert len(selector.select(60)) == 1, "the child's close of it was not the parent's"
