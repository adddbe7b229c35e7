"""`ss.select`: as select.select, for SharedSockets as well, and ended by a close in this process.

Source: LPWSPSELECT; Windows Sockets 1.1 sec. 2.7; spec/winsock-semantics.md, section 8.
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Aborted, Actor, Raised, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors import kinds
from tests.kernel.stage import wait_blocked

ON = "socket"


@pytest.fixture
def pair() -> Iterator[kinds.Pair]:
    with kinds.pair_of("tcp4") as pair:
        yield pair


def select_on(
    has: Belongings, timeout_s: float | None, reading: list[str], writing: list[str], failing: list[str]
) -> Any:
    """In an actor: select on sockets by name; return the names of the ready ones."""
    rlist, wlist, xlist = ([has[name] for name in names] for names in (reading, writing, failing))
    names = {id(has[name]): name for name in (*reading, *writing, *failing)}
    return [[names[id(item)] for item in ready] for ready in ss.select(rlist, wlist, xlist, timeout_s)]


def hand_over(shared: ss.SharedSocket, *actors: Actor, on: str = ON) -> None:
    """Give a socket to actors, and our own reference up."""
    for actor in actors:
        actor.do("take", shared.share(actor.pid), on=on)
    shared.close()


# -- ended by a close -------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-38")
@pytest.mark.rule("CLOSE-21", "CLOSE-28")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_close_ends_this_process_s_select_and_no_other_s(
    which: int, company: tuple[Actor, Actor], bounds: Any
) -> None:
    """In whichever of the three sets it is; the other sockets are unaffected."""
    a, b = company
    with kinds.pair_of("tcp4", send_buffer=8192, receive_buffer=4096) as pair, kinds.pair_of("unix-stream") as other:
        kinds.fill(pair.local)
        hand_over(pair.local, a, b)
        hand_over(other.local, a, b, on="other")
        sets: list[list[str]] = [["other"], [], []]
        sets[which] = [*sets[which], ON]
        ours = a.thread("caller").do("call_with", select_on, None, *sets)
        theirs = b.thread("caller").do("call_with", select_on, None, *sets)
        a.wait_until_blocked("caller")
        asleep = b.wait_until_blocked("caller")
        closing = a.thread("closer").close(on=ON)
        assert ours.outcome() == Aborted(10004)
        assert closing.outcome() == Returned()
        bounds.check("T_abort", ours.ended_s - closing.began_s)
        assert b.wait_until_blocked("caller") == asleep, "the other process made a system call meanwhile"
        other.peer.send(b"x")
        assert theirs.value() == [["other"], [], []]
        assert a.do("call_with", select_on, None, ["other"], [], []) == [["other"], [], []]
        for actor in (a, b):
            actor.close(on="other")
        b.close(on=ON)


@pytest.mark.rule("CLOSE-44")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_member_that_is_closed_already_is_10038_and_no_set_is_touched(
    which: int, company: tuple[Actor, Actor], pair: kinds.Pair
) -> None:
    a, _ = company
    with kinds.pair_of("unix-stream") as other:
        hand_over(pair.local, a)
        hand_over(other.local, a, on="other")
        a.close(on=ON)
        other.peer.send(b"ready all the same")
        sets: list[list[str]] = [["other"], ["other"], []]
        sets[which] = [*sets[which], ON]
        asked = a.thread("main").do("call_with", select_on, None, *sets)
        assert asked.outcome() == Raised("NotASocket", 10038, 9)
        a.close(on="other")
    lists: list[list[Any]] = [[other.local], [], []]
    with pytest.raises(ss.NotASocket):
        ss.select(lists[0], lists[1], lists[2], 0)
    assert lists == [[other.local], [], []]


@pytest.mark.rule("CLOSE-21")
def test_the_error_of_a_select_says_who_closed(pair: kinds.Pair) -> None:
    caught: list[ss.OperationAborted] = []

    def wait() -> None:
        try:
            ss.select([pair.local], [], [])
        except ss.OperationAborted as error:
            caught.append(error.with_traceback(None))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_blocked(waiting, pair.local.pending_operations)
    pair.local.close()
    waiting.join()
    (error,) = caught
    assert (error.winerror, error.operation, error.errno) == (10004, "select", errno.ECANCELED)
    assert "test_the_error_of_a_select" in str(error.closed_by)


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("SELECT-1")
@pytest.mark.parametrize(
    ("with_socket", "timeout_s"), [(False, 0), (False, None), (True, -1), (True, -0.001), (True, float("nan"))]
)
def test_three_empty_sets_or_a_bad_timeout_are_10022(with_socket: bool, timeout_s: Any, pair: kinds.Pair) -> None:
    with pytest.raises(ValueError) as refused:
        ss.select([pair.local] if with_socket else [], [], [], timeout_s)
    error: Any = refused.value
    assert (isinstance(error, OSError), error.winerror, error.errno) == (True, 10022, errno.EINVAL)
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


def test_arguments_are_refused_as_the_standard_library_refuses_them(pair: kinds.Pair) -> None:
    with socket.socket() as plain:
        pass
    refused: list[tuple[Any, type[Exception]]] = [
        (["no file"], TypeError),
        ([plain], ValueError),
        ([-1], ValueError),
        (5, TypeError),
    ]
    for wrong, error in refused:
        with pytest.raises(error):
            select.select(wrong, [], [], 0)
        with pytest.raises(error):
            ss.select(wrong, [], [], 0)
    with pytest.raises(TypeError):
        ss.select([pair.local], [], [], "soon")  # type: ignore[arg-type]  # as above


@pytest.mark.fault("F-55")
def test_a_number_that_is_no_file_is_10038() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    os.close(number)
    with pytest.raises(ss.NotASocket):
        ss.select([number], [], [], 0)


def test_any_object_with_a_number_any_iterable_and_the_very_objects_come_back(pair: kinds.Pair) -> None:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "wb", buffering=0) as writer:
        writer.write(b"x")
        pair.peer.send(b"y")
        kinds.wait_event(pair.local)
        asked = (reader, pair.local, pair.peer)
        assert ss.select(iter(asked), (one for one in [writer, pair.local]), {pair.local}, None) == (
            [reader, pair.local],
            [writer, pair.local],
            [],
        )
        assert ss.select([read, pair.local, pair.local], [], []) == ([read, pair.local, pair.local], [], [])


def test_a_number_beyond_1023_is_no_limit(pair: kinds.Pair) -> None:
    import fcntl
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        number = fcntl.fcntl(pair.peer.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        with ss.adopt(socket.socket(fileno=number)) as high:
            assert ss.select([], [high], []) == ([], [high], [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- ready ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("SELECT-2")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_listener_is_readable_when_a_connection_waits(kind: str) -> None:
    with kinds.listener_of(kind) as door:
        assert ss.select([door], [], [door], 0) == ([], [], [])
        with kinds.client_of(door):
            assert ss.select([door], [], [door], 60) == ([door], [], [])
            door.accept()[0].close()
        assert ss.select([door], [], [door], 0) == ([], [], [])


@pytest.mark.rule("SELECT-2")
def test_a_connection_is_readable_on_data_on_the_peer_s_end_and_on_a_reset(pair: kinds.Pair) -> None:
    local = pair.local
    assert ss.select([local], [], [], 0) == ([], [], [])
    pair.peer.send(b"x")
    assert ss.select([local], [], [], 60) == ([local], [], [])
    local.recv(16)
    pair.peer.shutdown(socket.SHUT_WR)
    assert ss.select([local], [], [], 60) == ([local], [], [])
    assert local.recv(16) == b""
    with kinds.pair_of("tcp4") as other:
        other.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        other.peer.close()
        assert ss.select([other.local], [], [], 60) == ([other.local], [], [])
        with pytest.raises(ConnectionResetError):
            other.local.recv(1)


@pytest.mark.rule("SELECT-3")
def test_a_nonblocking_connect_is_writable_on_success() -> None:
    with kinds.listener_of("tcp4") as door, ss.SharedSocket() as local:
        local.settimeout(0)
        assert local.connect_ex(door.getsockname()) in (0, errno.EINPROGRESS)
        assert ss.select([], [local], [local], 60) == ([], [local], [])
        assert local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.rule("SELECT-3")
@pytest.mark.parametrize("asked", ["alone", "with the write set"])
def test_a_nonblocking_connect_that_failed_is_exceptional(asked: str) -> None:
    """As Winsock has it; select(2) says writable, which is kept for who looks there."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = door.getsockname()
    with ss.SharedSocket() as local:
        local.settimeout(0)
        assert local.connect_ex(address) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        if asked == "alone":
            assert ss.select([], [], [local], 60) == ([], [], [local])
        else:
            assert ss.select([], [local], [local], 60) == ([], [local], [local])
            assert local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_urgent_data_is_exceptional(pair: kinds.Pair) -> None:
    pair.peer.send(b"!", socket.MSG_OOB)
    assert ss.select([], [], [pair.local], 60) == ([], [], [pair.local])


@pytest.mark.rule("SELECT-4")
def test_select_leaves_the_timeout_and_the_sockets_alone(pair: kinds.Pair) -> None:
    """SELECT-4: nothing is registered, no mode is changed, no byte is taken."""
    timeout_s = [0.01]
    pair.local.settimeout(3)
    began_s = monotonic()
    assert ss.select([pair.local], [], [], timeout_s[0]) == ([], [], [])
    assert monotonic() - began_s >= 0.01
    assert (timeout_s, pair.local.gettimeout()) == ([0.01], 3)
    pair.peer.send(b"whole")
    for _ in range(2):
        assert ss.select([pair.local], [], [], 60) == ([pair.local], [], [])
    assert pair.local.recv(16) == b"whole"
    assert ss.select([pair.local], [pair.local], [], 0) == ([], [pair.local], [])


@pytest.mark.rule("SELECT-5")
def test_ready_is_a_hint_as_another_process_may_be_faster(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        hand_over(pair.local, a, b)
        pair.peer.send(b"one")
        for actor in (a, b):
            assert actor.do("call_with", select_on, None, [ON], [], []) == [[ON], [], []]
            actor.do("set_timeout", 0, on=ON)
        assert a.recv(16, on=ON) == b"one"
        late = b.thread("main").recv(16, on=ON)
        assert late.outcome() == Raised("BlockingIOError", 10035, errno.EAGAIN)
        for actor in (a, b):
            actor.close(on=ON)


@pytest.mark.fault("F-50")
def test_what_an_interrupted_receive_has_taken_is_there_to_be_read(pair: kinds.Pair) -> None:
    pair.local._descriptor.kernel.kept.append(_kept(b"taken before"))
    assert ss.select([pair.local], [], [], None) == ([pair.local], [], [])
    assert ss.select([], [pair.local], [], None) == ([], [pair.local], [])
    assert pair.local.recv(64) == b"taken before"
    assert ss.select([pair.local], [], [], 0) == ([], [], [])


def _kept(data: bytes) -> Any:
    from sharedsock.descriptors.transfer import Kept

    return Kept(data)


@pytest.mark.fault("F-86")
def test_a_forked_child_cannot_select_on_its_parent_s(pair: kinds.Pair) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with pytest.raises(ss.ForkedDescriptor):
                ss.select([pair.local], [], [], 0)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
