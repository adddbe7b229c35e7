"""SO_LINGER as an option: one value for all sharers, kept by us, of which the kernel knows only what it must.

Source: LPWSPGETSOCKOPT, LPWSPSETSOCKOPT; "Multiple Handles to a Single Socket"; SOL_SOCKET Socket Options.
"""

from __future__ import annotations

import array
import socket
import struct
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.testing import Actor
from sharedsock.testing.commands import Belongings
from tests.descriptors import kinds


def winerror_of(call: Any, *arguments: Any) -> int:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    number: int = caught.value.winerror  # type: ignore[attr-defined]  # typeshed: Windows only
    return number


def linger_in(has: Belongings, on: str = "socket") -> tuple[tuple[int, int], tuple[int, int]]:
    """In an actor: the option as we have it, and as the kernel has it."""
    return kinds.get_linger(has[on]), kinds.kernel_linger(has.shared(on))


@pytest.mark.rule("LINGER-1")
@pytest.mark.parametrize("kind", kinds.STREAM_KINDS)
def test_a_new_socket_does_not_linger(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        assert kinds.get_linger(pair.local) == (0, 0)
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == 0


@pytest.mark.rule("LINGER-9")
@pytest.mark.parametrize(("linger_s", "seen"), [(None, (0, 0)), (0, (1, 0)), (5, (1, 5)), (65535, (1, 65535))])
def test_what_is_set_is_read_in_each_form(linger_s: int | None, seen: tuple[int, int]) -> None:
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 77)
        kinds.set_linger(pair.local, linger_s)
        assert kinds.get_linger(pair.local) == seen
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == seen[0]
        assert pair.local.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 4) == struct.pack("i", seen[0])
        kinds.set_linger(pair.local, None)


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda data: array.array("i", data)])
def test_any_buffer_will_do_and_none_of_them_reaches_the_kernel_s_own_linger(form: Any) -> None:
    """The kernel's LINGER(t) would go on sending after t, and would make every closer wait."""
    with kinds.pair_of("tcp4") as pair:
        pair.local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, form(struct.pack("ii", 1, 30)))
        assert kinds.get_linger(pair.local) == (1, 30)
        assert kinds.kernel_linger(pair.local)[0] == 0
        kinds.set_linger(pair.local, None)


@pytest.mark.parametrize("value", [b"", b"\1", b"\1\0\0\0", 1, 0])
def test_another_shape_is_10022_and_changes_nothing(value: Any) -> None:
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 3)
        assert winerror_of(pair.local.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, value) == 10022
        assert kinds.get_linger(pair.local) == (1, 3)
        kinds.set_linger(pair.local, None)


@pytest.mark.rule("LINGER-11")
@pytest.mark.parametrize("kind", kinds.DATAGRAM_KINDS)
def test_where_there_are_no_connections_it_is_10042(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        assert winerror_of(kinds.set_linger, pair.local, 0) == 10042
        assert winerror_of(kinds.get_linger, pair.local) == 10042


@pytest.mark.rule("LINGER-12", "DUP-16")
@pytest.mark.fault("F-68")
def test_any_holder_sets_it_and_each_holder_reads_it(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        kinds.set_linger(pair.local, 3)
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        for actor in (a, b):
            assert actor.do("call_with", linger_in)[0] == (1, 3), "set before sharing"
        a.do("set_linger", True, 8)
        assert b.do("call_with", linger_in) == ((1, 8), (0, 0))
        assert kinds.get_linger(pair.local) == (1, 8)
        b.do("set_linger", True, 0)
        assert a.do("call_with", linger_in) == ((1, 0), (1, 0)), "LINGER(0) stands on the kernel socket too"
        pair.local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        for actor in (a, b):
            assert actor.do("call_with", linger_in) == ((0, 0), (0, 0))
            actor.close()


@pytest.mark.rule("DUP-16")
@pytest.mark.parametrize(
    ("level", "option", "value"),
    [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
)
def test_an_option_of_the_kernel_is_everybody_s(
    level: int, option: int, value: int, company: tuple[Actor, Actor]
) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        a.do("call_with", kinds.attribute_of, "setsockopt", "socket", level, option, value)
        for found in (
            b.do("call_with", kinds.attribute_of, "getsockopt", "socket", level, option),
            pair.local.getsockopt(level, option),
        ):
            assert found == value
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("DUP-19")
@pytest.mark.fault("F-51")
def test_a_timeout_is_a_descriptor_s_own(company: tuple[Actor, Actor]) -> None:
    a, b = company
    with kinds.pair_of("tcp4") as pair:
        for actor in (a, b):
            actor.do("take", pair.local.share(actor.pid))
        reading = b.thread("caller").recv(16)
        asleep = b.wait_until_blocked("caller")
        a.do("set_timeout", 0.0)
        pair.local.settimeout(0.01)
        assert a.thread("caller").recv(1).outcome().winerror == 10035  # type: ignore[union-attr]  # Raised
        assert b.wait_until_blocked("caller") == asleep
        pair.peer.sendall(b"in time")
        assert reading.value() == b"in time"
        for actor in (a, b):
            actor.close()


@pytest.mark.rule("LINGER-1")
def test_a_listener_can_be_given_it_as_well() -> None:
    with ss.SharedSocket() as listener:
        kinds.set_linger(listener, 0)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert kinds.get_linger(listener) == (1, 0)
