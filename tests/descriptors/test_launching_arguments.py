"""Sockets among the arguments of a new process, under each start method: exactly one new reference, or none."""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pytest

import sharedsock as ss
from sharedsock.descriptors import launching, sharing
from sharedsock.testing import Actors
from sharedsock.testing.commands import Belongings
from sharedsock.testing.faults import ActorProbe, Fault, Kill
from tests.descriptors.launched import (
    Bag,
    Child,
    Fatal,
    ForkedChild,
    Holder,
    Raising,
    Slotted,
    Unpicklable,
    context_of,
    expect_closed,
    finish,
    run,
    say,
    say_and_wait,
    say_each,
    say_of_the_bag,
    say_whether_one,
    wait_and_say,
)
from tests.descriptors.sharers import hooked, is_open_for, wait_end_of, wait_until

pytestmark = pytest.mark.usefixtures("light_children")

METHODS: Final = ("fork", "forkserver", "spawn")
PICKLED: Final = ("forkserver", "spawn")


PLACES: Final[dict[str, Callable[[ss.SharedSocket], dict[str, Any]]]] = {
    "argument": lambda shared: {"target": say, "args": (shared,)},
    "keyword": lambda shared: {"target": say, "kwargs": {"shared": shared}},
    "list": lambda shared: {"target": say_each, "args": ([1, [shared]],)},
    "dict": lambda shared: {"target": say_each, "args": ({"deep": {"deeper": (shared,)}},)},
    "deque": lambda shared: {"target": say_each, "args": (deque([shared]),)},
    "partial": lambda shared: {"target": functools.partial(say, shared)},
    "partial in a list": lambda shared: {"target": say_each, "args": ([functools.partial(say, shared=shared)],)},
    "bound method": lambda shared: {"target": Holder(shared).say},
    "object": lambda shared: {"target": say_each, "args": (Holder(shared),)},
    "slots": lambda shared: {"target": say_each, "args": (Slotted(Slotted(shared)),)},
    "container's attribute": lambda shared: {"target": say_of_the_bag, "args": (bag_with(shared),)},
}


def bag_with(shared: ss.SharedSocket) -> Bag:
    bag = Bag([1, 2])
    bag.shared = shared
    return bag


# -- F-89: exactly one ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89")
@pytest.mark.rule("DUP-2", "REF-1", "EXIT-1")
@pytest.mark.parametrize(
    ("method", "place"),
    [
        *(("fork", place) for place in PLACES),
        *((method, place) for method in PICKLED for place in ("argument", "slots")),
    ],
)
def test_a_socket_anywhere_in_the_arguments_is_one_new_reference(
    pair: tuple[ss.SharedSocket, socket.socket], method: str, place: str
) -> None:
    """Wherever it lies, the child gets a descriptor of its own on the same socket, and gives it back by ending."""
    ours, peer = pair
    context = context_of(method)
    assert run(context.Process(**PLACES[place](ours))) == 0
    assert peer.recv(64) == b"2 1\n"
    wait_until(lambda: ours.references() == 1, "the child's reference to go")
    ours.sendall(b"still ours")
    assert peer.recv(64) == b"still ours"


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("kind", [Child, ForkedChild])
def test_an_attribute_of_a_process_subclass(
    pair: tuple[ss.SharedSocket, socket.socket], kind: Callable[[ss.SharedSocket], Any]
) -> None:
    """A class of the user's with its own run()."""
    ours, peer = pair
    assert run(kind(ours)) == 0
    assert peer.recv(64) == b"2 1\n"
    wait_until(lambda: ours.references() == 1, "the child's reference to go")


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("method", METHODS)
def test_the_same_object_twice_is_the_same_object_there(
    pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """As pickle keeps identity within one dump, so does the fork seam: one reference."""
    ours, peer = pair
    process = context_of(method).Process(target=say_whether_one, args=(ours, [ours, ours]))
    assert run(process) == 0
    assert peer.recv(64) == b"2 1"


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("method", METHODS)
def test_two_descriptors_of_one_socket_are_two_references(
    pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """Each object is a descriptor; each child's descriptor is its own."""
    ours, peer = pair
    with ours.dup() as twin:
        assert run(context_of(method).Process(target=say_each, args=(ours, [twin]))) == 0
    said = b""
    while said.count(b"\n") < 2:
        said += peer.recv(64)
    assert said == b"4 1\n4 1\n"


# -- what becomes of the sharer ---------------------------------------------------------------------------------------


@pytest.mark.fault("F-89", "F-12")
@pytest.mark.rule("DUP-12", "REF-5")
@pytest.mark.parametrize("method", METHODS)
def test_the_sharer_may_close_at_once(pair: tuple[ss.SharedSocket, socket.socket], method: str) -> None:
    """start() has returned: whatever the child has done by then, its reference is there."""
    ours, peer = pair
    process = context_of(method).Process(target=wait_and_say, args=(ours,))
    process.start()
    ours.close()
    assert is_open_for(peer)
    peer.sendall(b"!")  # it asks for the count only now: it may have come before our close
    assert peer.recv(64) == b"1 1\n"
    assert finish(process) == 0
    wait_end_of(peer)


def _start_child(has: Belongings, method: str) -> int:
    process = context_of(method).Process(target=say_and_wait, args=(has["socket"],))
    process.start()
    pid: int = process.pid
    return pid


@pytest.mark.fault("F-89", "F-11")
@pytest.mark.rule("DUP-12", "EXIT-1")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_sharer_may_die_before_the_child_runs(
    registry: ss.Registry, actors: Actors, pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """The child's ticket is the child's: it redeems though nobody is left who could have asked."""
    ours, peer = pair
    (sharer,) = actors.share(ours, count=1)
    ours.close()
    child = sharer.do("call_with", _start_child, method)
    sharer.kill()
    assert peer.recv(64) in (b"1 1\n", b"2 1\n"), "the sharer's own reference may be there still"
    wait_until(lambda: sum(n for _, n in registry.client.sockets()) == 1, "the sharer's reference to go")
    peer.sendall(b"!")
    wait_end_of(peer)
    wait_until(lambda: not os.path.exists(f"/proc/{child}/fd/0") and not _is_running(child), "the child to end")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


# -- launches that fail -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("method", PICKLED)
def test_arguments_that_cannot_be_pickled_leave_no_ticket(
    pair: tuple[ss.SharedSocket, socket.socket], method: str
) -> None:
    """The socket's ticket was minted before the failure: it is revoked, and start() raises."""
    ours, _ = pair
    process = context_of(method).Process(target=say, args=(ours, Unpicklable()))
    with pytest.raises(ValueError, match="not to be pickled"):
        process.start()
    assert ours.references() == 1


@pytest.mark.fault("F-89", "F-07")
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_fails_leaves_no_ticket(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """fork(2): EAGAIN, ENOMEM; the tickets minted for the child are revoked."""
    ours, peer = pair

    opened: list[int] = []
    real_pipe = os.pipe

    def pipe() -> tuple[int, int]:
        ends = real_pipe()
        opened.extend(ends)
        return ends

    def fork() -> int:
        raise OSError(code, os.strerror(code))

    process = context_of("fork").Process(target=say, args=(ours,))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fork)
        patch.setattr(os, "pipe", pipe)
        with pytest.raises(OSError) as caught:
            process.start()
    for number in opened:  # multiprocessing's own, which it leaves open when the fork fails
        os.close(number)
    assert caught.value.errno == code
    assert ours.references() == 1
    assert "_bootstrap" not in vars(process)
    assert run(process) == 0, "the same process object can be started later"
    assert peer.recv(64) == b"2 1\n"


@pytest.mark.fault("F-89", "F-18")
@pytest.mark.rule("DUP-13")
@pytest.mark.parametrize("method", PICKLED)
@pytest.mark.parametrize("end", [Fatal, Raising])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_child_that_ends_while_it_unpickles_gives_the_reference_back(
    pair: tuple[ss.SharedSocket, socket.socket], method: str, end: Callable[[], Any], order: str
) -> None:
    """Killed, or raising on import, before it has redeemed the ticket or after: nothing is left in either case."""
    ours, _ = pair
    arguments = (end(), ours) if order == "before" else (ours, end())
    status = run(context_of(method).Process(target=say_each, args=arguments))
    assert status == (3 if end is Fatal else 1)
    wait_until(lambda: ours.references() == 1, "the child's reference to go")


@pytest.mark.fault("F-89", "F-30")
@pytest.mark.rule("DUP-13")
@pytest.mark.parametrize("point", ["take.sent", "take.received", "take.wrapped", "take.acked"])
def test_a_forked_child_killed_before_it_runs(pair: tuple[ss.SharedSocket, socket.socket], point: str) -> None:
    """At each point of the redemption that happens before the target's first line."""
    ours, peer = pair
    probe = ActorProbe(lambda frame: None)
    probe.arm(1, Fault(point, Kill()))
    process = context_of("fork").Process(target=say, args=(ours,))
    with hooked(probe):
        process.start()
    assert finish(process) == -9
    wait_until(lambda: ours.references() == 1, "the child's reference to go")
    assert is_open_for(peer)


@pytest.mark.fault("F-89")
def test_a_forked_child_that_cannot_redeem_says_so_and_ends(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its tickets are taken back behind its back: exit code 1, and why on stderr; the target does not run."""
    ours, peer = pair
    real = sharing.mint

    def mint_and_spoil(descriptor: Any) -> bytes:
        info = real(descriptor)
        assert ss.revoke(info)
        return info

    monkeypatch.setattr(sharing, "mint", mint_and_spoil)
    assert run(context_of("fork").Process(target=say, args=(ours,))) == 1
    assert "TicketInvalid" in capfd.readouterr().err
    assert ours.references() == 1
    assert is_open_for(peer)


@pytest.mark.fault("F-89")
@pytest.mark.parametrize("method", METHODS)
def test_a_closed_socket_among_the_arguments(
    pair: tuple[ss.SharedSocket, socket.socket], method: str, registry: ss.Registry
) -> None:
    """Pickled, it raises NotASocket, which says what to do; a fork passes on what it is: closed."""
    ours, _ = pair
    ours.close()
    process = context_of(method).Process(target=expect_closed, args=(ours,))
    if method == "fork":
        assert run(process) == 0
    else:
        with pytest.raises(ss.NotASocket, match="ticket"):
            process.start()
    assert registry.client.sockets() == ()


# -- the seam itself --------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-89")
def test_the_seam_is_put_in_once() -> None:
    """However often it is asked for, and also in the child of a fork in the middle of it."""
    launching.install(ss.SharedSocket)
    before = {launcher: vars(launcher)["_launch"] for launcher in launching._seams}
    assert len(before) == 3
    launching._installed = False
    launching.install(ss.SharedSocket)
    assert {launcher: vars(launcher)["_launch"] for launcher in launching._seams} == before


@pytest.mark.fault("F-89")
def test_the_search_runs_no_code_of_the_users(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """A proxy whose attributes are calls, a property, a cycle: looked at, not run."""
    ours, peer = pair

    class Nosy:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        @property
        def value(self) -> Any:
            raise AssertionError("a property was run")

    cycle: list[Any] = [Nosy(), ours]
    cycle.append(cycle)
    process = context_of("fork").Process(target=lambda things: say(things[1]), args=(cycle,))
    assert run(process) == 0
    assert peer.recv(64) == b"2 1\n"


@pytest.mark.fault("F-89")
def test_a_closure_is_searched_where_nothing_is_pickled(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """fork takes closures, defaults and lambdas, which no pickle does."""
    ours, peer = pair

    def closure(other: Any = None, *, another: Any = [ours]) -> None:  # noqa: B006  # a default that holds a socket
        assert another[0] is ours
        say(ours)

    assert run(context_of("fork").Process(target=closure)) == 0
    assert peer.recv(64) == b"2 1\n"
