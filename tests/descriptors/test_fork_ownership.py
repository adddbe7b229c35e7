"""After a raw fork the child owns nothing: no socket, no channel, no lock of its parent, which notices nothing."""

from __future__ import annotations

import ast
import ctypes
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.testing import Actors, Received, Returned
from sharedsock.testing.commands import Belongings
from tests.descriptors.sharers import (
    Running,
    hooked,
    is_open_for,
    paused,
    wait_end_of,
    wait_until,
)

CHILD_BOUND_S: Final = 60.0

# What a program may do with a socket, and what each use says in a child that only inherited it.
USES: Final[dict[str, Callable[[ss.SharedSocket], Any]]] = {
    "recv": lambda shared: shared.recv(1),
    "recv_into": lambda shared: shared.recv_into(bytearray(1)),
    "recvfrom": lambda shared: shared.recvfrom(1),
    "recvmsg": lambda shared: shared.recvmsg(1),
    "send": lambda shared: shared.send(b"x"),
    "sendall": lambda shared: shared.sendall(b"x"),
    "sendto": lambda shared: shared.sendto(b"x", ("127.0.0.1", 1)),
    "accept": lambda shared: shared.accept(),
    "connect": lambda shared: shared.connect(("127.0.0.1", 1)),
    "bind": lambda shared: shared.bind(("127.0.0.1", 0)),
    "listen": lambda shared: shared.listen(),
    "shutdown": lambda shared: shared.shutdown(socket.SHUT_RDWR),
    "getsockname": lambda shared: shared.getsockname(),
    "getpeername": lambda shared: shared.getpeername(),
    "getsockopt": lambda shared: shared.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "setsockopt": lambda shared: shared.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "settimeout": lambda shared: shared.settimeout(1),
    "share": lambda shared: shared.share(os.getpid()),
    "ticket": lambda shared: shared.ticket(),
    "pickle": lambda shared: pickle.dumps(shared),
    "dup": lambda shared: shared.dup(),
    "lend": lambda shared: shared.lend(os.getpid()),
    "references": lambda shared: shared.references(),
    "holders": lambda shared: shared.holders(),
}


def in_child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> tuple[int, int]:
    """Fork, have the child do `work` and end at once; return its pid and the end of a pipe with what it said."""
    ours, theirs = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.write(theirs, repr(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(theirs, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(theirs)
    return pid, ours


def answer_of(child: tuple[int, int]) -> str:
    """Return what the child said, once it has ended; one that hangs is killed."""
    pid, pipe = child
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(CHILD_BOUND_S * 1000):
        os.kill(pid, signal.SIGKILL)
    said = os.read(pipe, 65536).decode()
    os.close(pipe)
    os.waitpid(pid, 0)
    assert said, "the child said nothing"
    return said


def use_of_ones_own() -> str:
    """What a child must be able to do: open, share, redeem and use sockets of its own, close and count them."""
    left, right = ss.socketpair()
    info = left.share(os.getpid())
    with ss.fromshare(info) as redeemed:
        redeemed.sendall(b"own")
        assert right.recv(8) == b"own"
        assert left.references() == 2
    assert left.references() == 1
    left.close()
    assert right.recv(1) == b""
    right.close()
    return "well"


# -- F-86: what is inherited ------------------------------------------------------------------------------------------


def _try_all(shared: ss.SharedSocket) -> dict[str, tuple[str, int]]:
    came = {}
    for name, use in USES.items():
        try:
            use(shared)
            came[name] = ("nothing", 0)
        except OSError as error:
            came[name] = (type(error).__name__, getattr(error, "winerror", 0))
    assert shared.fileno() == -1
    assert "closed" in repr(shared)
    shared.close()  # the parent's, closed here already: no more than a second close
    assert shared.pending_operations() == ()
    assert ss.statistics().descriptors == 0
    return came


@pytest.mark.fault("F-86")
@pytest.mark.rule("DUP-7", "DUP-19")
@pytest.mark.parametrize("was_shared", [False, True], ids=["never shared", "shared"])
def test_every_use_in_the_child_is_refused(pair: tuple[ss.SharedSocket, socket.socket], was_shared: bool) -> None:
    """`ForkedDescriptor`, 10038; sharing is always explicit. The parent's stream and count are whole."""
    ours, peer = pair
    if was_shared:
        ss.revoke(ours.share(os.getpid()))
    came = ast.literal_eval(answer_of(in_child(lambda: _try_all(ours))))
    assert came == dict.fromkeys(USES, ("ForkedDescriptor", 10038))
    assert is_open_for(peer)
    assert ours.references() == 1
    ours.sendall(b"whole")
    assert peer.recv(8) == b"whole"
    peer.sendall(b"too")
    assert ours.recv(8) == b"too"


@pytest.mark.fault("F-90")
@pytest.mark.parametrize("was_shared", [False, True], ids=["never shared", "shared"])
def test_a_fork_that_ran_no_hooks_is_noticed_at_the_first_use(
    pair: tuple[ss.SharedSocket, socket.socket], was_shared: bool
) -> None:
    """fork(2) called by a C extension: each use notices, nothing of the parent's is touched, its own life begins."""
    ours, peer = pair
    if was_shared:
        ss.revoke(ours.share(os.getpid()))
    plain_fork = ctypes.PyDLL(None).fork

    def use_each() -> tuple[dict[str, tuple[str, int]], str]:
        return _try_all(ours), use_of_ones_own()

    came, own = ast.literal_eval(answer_of(in_child(use_each, plain_fork)))
    assert came == dict.fromkeys(USES, ("ForkedDescriptor", 10038))
    assert own == "well"
    for name in USES:  # each of them as the first
        said = answer_of(in_child(lambda name=name: _try_one(ours, name), plain_fork))  # type: ignore[misc]
        assert said == repr(("ForkedDescriptor", 10038)), name
    assert is_open_for(peer)
    assert ours.references() == 1
    ours.sendall(b"whole")
    assert peer.recv(8) == b"whole"


def _try_one(shared: ss.SharedSocket, name: str) -> tuple[str, int]:
    try:
        USES[name](shared)
    except OSError as error:
        return type(error).__name__, getattr(error, "winerror", 0)
    return "nothing", 0


def _sockets_held(_: Any = None) -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the listing's own
            continue
    return found


@pytest.mark.fault("F-86")
@pytest.mark.parametrize("was_shared", [False, True], ids=["never shared", "shared"])
def test_the_parents_close_is_the_end_although_the_child_lives(
    pair: tuple[ss.SharedSocket, socket.socket], was_shared: bool, bounds: Any
) -> None:
    """The idle child inherited every number and kept none: the peer sees EOF within T_eof of the parent's close."""
    ours, peer = pair
    if was_shared:
        ss.revoke(ours.share(os.getpid()))
    inode = os.fstat(ours.fileno()).st_ino
    go_on, release = os.pipe()
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.write(said, b"+" if f"socket:[{inode}]" in _sockets_held() else b"-")
        os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    os.close(said)
    try:
        assert os.read(ready, 1) == b"-", "the child holds the socket"
        ours.close()
        bounds.check("T_eof", wait_end_of(peer))
    finally:
        os.close(ready)
        os.close(release)
        os.waitpid(pid, 0)


@pytest.mark.fault("F-86", "F-87")
def test_a_child_has_a_life_of_its_own(registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """It opens, shares and redeems through a channel of its own, and another holder in the registry's eyes."""
    ours, _ = pair
    ss.revoke(ours.share(os.getpid()))
    assert answer_of(in_child(use_of_ones_own)) == "'well'"
    assert ours.references() == 1
    assert [count for _, count in registry.client.sockets()] == [1]


def _nest(depth: int) -> str:
    assert use_of_ones_own() == "well"
    return answer_of(in_child(lambda: _nest(depth - 1))) if depth else "'the bottom'"


@pytest.mark.fault("F-95")
def test_a_fork_in_a_fork_in_a_thread(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """Five deep, begun in a thread: each owns what it opened and nothing else; the count is true."""
    ours, _ = pair
    ss.revoke(ours.share(os.getpid()))
    said = Running(lambda: answer_of(in_child(lambda: _nest(4)))).outcome()
    assert "the bottom" in said
    assert ours.references() == 1


@pytest.mark.fault("F-86", "F-25")
def test_a_socket_is_handed_to_a_child_by_a_ticket(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """A ticket for the child's pid, through any pipe: the explicit way, after a raw fork too."""
    ours, peer = pair
    incoming, outgoing = os.pipe()

    def take_and_send() -> str:
        os.close(outgoing)
        with ss.fromshare(os.read(incoming, 4096)) as mine:
            mine.sendall(b"from the child")
            return "sent"

    child = in_child(take_and_send)
    os.close(incoming)
    os.write(outgoing, ours.share(child[0]))
    os.close(outgoing)
    assert answer_of(child) == "'sent'"
    assert peer.recv(32) == b"from the child"
    wait_until(lambda: ours.references() == 1, "the child's reference to go")


# -- F-87: forks in the middle of a call ------------------------------------------------------------------------------


@pytest.mark.fault("F-87")
@pytest.mark.parametrize(
    "point",
    [
        "share.begin",
        "share.fd_sent",
        "share.issued",
        "take.sent",
        "take.received",
        "take.wrapped",
        "take.acked",
        "open.registered",
    ],
)
def test_a_fork_while_a_thread_shares_or_redeems(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket], point: str
) -> None:
    """Held there, the thread has its hands full; the child is usable, and then the thread's call ends as ever."""
    ours, peer = pair
    ss.fromshare(ours.share(os.getpid())).close()
    info = ours.share(os.getpid()) if not point.startswith("share") else b""
    inode = os.fstat(ours.fileno()).st_ino
    with paused(point) as pause:
        call = Running(ours.share, os.getpid()) if not info else Running(ss.fromshare, info)
        pause.wait_reached()

        def look_and_use() -> tuple[bool, str]:
            trace.hook = None
            return f"socket:[{inode}]" in _sockets_held(), use_of_ones_own()

        assert answer_of(in_child(look_and_use)) == "(False, 'well')"
        pause.release()
        outcome = call.outcome()
    redeemed = ss.fromshare(outcome) if isinstance(outcome, bytes) else outcome
    assert isinstance(redeemed, ss.SharedSocket), redeemed
    assert ours.references() == 2
    redeemed.sendall(b"whole")
    assert peer.recv(8) == b"whole"
    redeemed.close()
    assert ours.references() == 1


def _fork_and_use(has: Belongings) -> str:
    return answer_of(in_child(use_of_ones_own))


@pytest.mark.fault("F-87")
@pytest.mark.parametrize("point", ["op.enter", "op.waiting", "op.ready", "op.done"])
def test_a_fork_while_a_thread_receives(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], point: str
) -> None:
    """The child is usable; the parent's receive gets every byte."""
    ours, peer = pair
    (holder,) = actors.share(ours, count=1)
    with holder.hold_at(point) as barrier:
        reading = holder.thread("reader").recv(32)
        if point in ("op.ready", "op.done"):
            holder.wait_until_blocked("reader")
            peer.sendall(b"for the parent")
        barrier.wait_reached()
        assert holder.thread("forker").do("call_with", _fork_and_use).value() == "'well'"
    if point in ("op.enter", "op.waiting"):
        holder.wait_until_blocked("reader")
        peer.sendall(b"for the parent")
    assert reading.outcome() == Received(b"for the parent")
    assert ours.references() == 2


@pytest.mark.fault("F-87")
@pytest.mark.parametrize("point", ["close.marked", "close.drained", "close.fd_closed", "close.ended"])
def test_a_fork_while_a_thread_closes(actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], point: str) -> None:
    """Half closed in the parent is nothing in the child; the close ends as ever, the other holder is undisturbed."""
    ours, peer = pair
    (holder,) = actors.share(ours, count=1)
    with holder.hold_at(point) as barrier:
        closing = holder.thread("closer").close()
        barrier.wait_reached()
        assert holder.thread("forker").do("call_with", _fork_and_use).value() == "'well'"
    assert closing.outcome() == Returned(None)
    wait_until(lambda: ours.references() == 1, "the closed reference to go")
    ours.sendall(b"undisturbed")
    assert peer.recv(16) == b"undisturbed"


@pytest.mark.fault("F-87")
@pytest.mark.parametrize("point", ["fork.before", "fork.parent", "fork.child"])
def test_a_hook_that_raises_stops_no_fork(pair: tuple[ss.SharedSocket, socket.socket], point: str) -> None:
    """A fork goes on, whatever runs around it: no lock is left held, in the parent or in the child."""
    ours, peer = pair
    complaints = []
    before, sys.unraisablehook = sys.unraisablehook, lambda it: complaints.append(type(it.exc_value).__name__)
    try:

        def stumble(reached: str, context: Any) -> None:
            if reached == point:
                raise KeyboardInterrupt

        def use() -> str:
            trace.hook = None
            return use_of_ones_own()

        with hooked(stumble):
            said = answer_of(in_child(use))
    finally:
        sys.unraisablehook = before
    assert said == "'well'"
    assert complaints == ([] if point == "fork.child" else ["KeyboardInterrupt"])
    assert Running(use_of_ones_own).outcome() == "well"
    ours.sendall(b"whole")
    assert peer.recv(8) == b"whole"


# -- F-88: the holder dies, its child lives ---------------------------------------------------------------------------


def _leave_a_child(has: Belongings) -> int:
    """Fork a child that outlives us, idle until it is killed."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


@pytest.mark.fault("F-88")
@pytest.mark.rule("EXIT-1")
def test_the_child_of_a_killed_holder_keeps_nothing_alive(
    actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], bounds: Any
) -> None:
    """Neither the count, which goes by the pidfd, nor the socket: the child closed what it inherited."""
    ours, peer = pair
    (holder,) = actors.share(ours, count=1)
    child = holder.do("call_with", _leave_a_child)
    try:
        holder.kill()
        bounds.check("T_reap", wait_until(lambda: ours.references() == 1, "the count to be true"))
        ours.close()
        bounds.check("T_eof", wait_end_of(peer))
    finally:
        os.kill(child, signal.SIGKILL)
        pidfd = os.pidfd_open(child)
        select.select([pidfd], [], [], CHILD_BOUND_S)
        os.close(pidfd)


@pytest.mark.fault("F-86", "F-93")
def test_a_child_that_just_exits_takes_nothing_with_it(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """os._exit, exit with finalizers, a close in the child: the parent's count and stream are untouched."""
    ours, peer = pair
    ss.revoke(ours.share(os.getpid()))
    for end in (lambda: None, ours.close, lambda: ours.__del__(), lambda: ours.abort()):
        assert answer_of(in_child(end)) == "None"
        assert ours.references() == 1
        assert is_open_for(peer)
