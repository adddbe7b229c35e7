"""How a SharedSocket comes to be, what it says it is, and how it is given away again."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import sharedsock as ss
from tests.descriptors import kinds


@contextmanager
def no_default_timeout(value: float | None) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(value)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- the constructor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [(f, k) for f in (socket.AF_INET, socket.AF_INET6) for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    + [(socket.AF_UNIX, k) for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)],
)
def test_a_new_socket_is_of_the_kind_asked_for(family: int, kind: int) -> None:
    with ss.SharedSocket(family, kind) as shared:
        assert (shared.family, shared.type, shared.gettimeout(), shared.references()) == (family, kind, None, 1)
        assert not os.get_blocking(shared.fileno()), "rule 5: O_NONBLOCK is set once and stays"
        assert not shared.get_inheritable()


@pytest.mark.fault("F-51")
@pytest.mark.parametrize("timeout_s", [None, 0.0, 1.0])
def test_a_timeout_leaves_the_file_description_alone(timeout_s: float | None) -> None:
    """Rule 5: O_NONBLOCK is common to all sharers, so no timeout of one of them touches it."""
    with ss.SharedSocket() as shared:
        shared.settimeout(timeout_s)
        assert not os.get_blocking(shared.fileno())
        shared.setblocking(True)
        assert not os.get_blocking(shared.fileno())


def test_the_defaults_are_the_stdlib_s() -> None:
    with ss.SharedSocket() as shared, socket.socket() as plain:
        assert (shared.family, shared.type, shared.proto) == (plain.family, plain.type, plain.proto)


def test_sock_nonblock_is_a_timeout_of_nothing() -> None:
    with ss.SharedSocket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as shared:
        assert (shared.type, shared.gettimeout()) == (socket.SOCK_STREAM, 0.0)


def test_the_default_timeout_applies_to_what_is_opened_and_accepted() -> None:
    with no_default_timeout(7.5):
        with kinds.listener_of("tcp4") as listener, kinds.client_of(listener):
            assert listener.gettimeout() == 7.5
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.gettimeout() == 7.5


@pytest.mark.parametrize(
    ("arguments", "number"),
    [((9999,), 10047), ((socket.AF_INET, 99), 10022), ((socket.AF_INET, socket.SOCK_STREAM, 9999), None)],
)
def test_what_cannot_be_opened_says_so_with_its_wsa_number(arguments: tuple[int, ...], number: int | None) -> None:
    with pytest.raises(OSError) as caught:
        ss.SharedSocket(*arguments)
    with pytest.raises(OSError) as plain:
        socket.socket(*arguments)
    assert caught.value.errno == plain.value.errno
    assert number in (None, getattr(caught.value, "winerror", None))


def test_a_number_is_taken_over_with_what_the_kernel_knows_of_it() -> None:
    plain = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    number = plain.detach()
    with ss.SharedSocket(fileno=number) as shared:
        assert (shared.fileno(), shared.family, shared.type) == (number, socket.AF_INET6, socket.SOCK_DGRAM)


@pytest.mark.parametrize("wrong", [-1, 10**6, "3"])
def test_a_number_that_is_no_socket_is_refused_and_left_alone(wrong: Any) -> None:
    with pytest.raises((OSError, ValueError, TypeError)):
        ss.SharedSocket(fileno=wrong)
    reader, writer = os.pipe()
    with pytest.raises(OSError):
        ss.SharedSocket(fileno=reader)
    os.close(reader)
    os.close(writer)


# -- adopt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [None, 0.0, 3.5])
def test_adopt_takes_the_number_and_the_timeout_and_leaves_the_plain_socket_detached(timeout_s: float | None) -> None:
    plain, peer = socket.socketpair()
    plain.settimeout(timeout_s)
    number = plain.fileno()
    with ss.adopt(plain) as shared, peer:
        assert plain.fileno() == -1
        assert (shared.fileno(), shared.gettimeout()) == (number, timeout_s)


@pytest.mark.rule("LINGER-12")
@pytest.mark.parametrize("linger_s", [None, 0, 9])
def test_adopt_takes_the_linger_option_over(linger_s: int | None) -> None:
    plain = socket.socket()
    kinds.set_linger(plain, linger_s)
    with ss.adopt(plain) as shared:
        assert kinds.get_linger(shared) == (linger_s is not None, linger_s or 0)
        assert kinds.kernel_linger(shared)[0] == (linger_s == 0), "a time is kept by us alone"


@pytest.mark.rule("LINGER-12")
def test_a_number_taken_over_keeps_its_linger_option() -> None:
    plain = socket.socket()
    kinds.set_linger(plain, 4)
    with ss.SharedSocket(fileno=plain.detach()) as shared:
        assert kinds.get_linger(shared) == (1, 4)


@pytest.mark.parametrize("wrong", [None, 3, "socket"])
def test_adopt_of_something_else_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        ss.adopt(wrong)


def test_adopt_of_ours_is_a_type_error_and_of_a_closed_one_is_10038() -> None:
    with ss.SharedSocket() as shared, pytest.raises(TypeError):
        ss.adopt(shared)
    plain = socket.socket()
    plain.close()
    with pytest.raises(OSError) as caught:
        ss.adopt(plain)
    assert caught.value.winerror == 10038  # type: ignore[attr-defined]  # typeshed: Windows only


# -- the functions of the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [None, socket.AF_UNIX])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socketpair_is_a_connected_pair_of_ours(family: int | None, kind: int) -> None:
    left, right = ss.socketpair(family, kind)
    with left, right:
        left.send(b"ping")
        assert right.recv(16) == b"ping"
        assert all(isinstance(end, ss.SharedSocket) for end in (left, right))


def test_create_server_and_create_connection_keep_the_stdlib_s_signature() -> None:
    with ss.create_server(("127.0.0.1", 0), family=socket.AF_INET, backlog=3, reuse_port=True) as door:
        with ss.create_connection(door.getsockname(), 5, ("127.0.0.1", 0)) as client:
            accepted, address = door.accept()
            with accepted:
                assert address == client.getsockname()
                assert client.gettimeout() == 5
                assert isinstance(accepted, ss.SharedSocket)
                client.sendall(b"hello")
                assert accepted.recv(16) == b"hello"


def test_create_connection_says_who_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = door.getsockname()
    with pytest.raises(ConnectionRefusedError):
        ss.create_connection(address, timeout=60)


@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_connect_and_accept_wait_for_each_other(kind: str) -> None:
    with kinds.listener_of(kind) as listener, ss.SharedSocket(listener.family, listener.type) as client:
        accepted: list[ss.SharedSocket] = []
        accepter = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
        accepter.start()
        client.connect(listener.getsockname())
        accepter.join(60)
        with accepted[0] as server:
            client.sendall(b"x" * 1000)
            assert len(server.recv(2000, socket.MSG_WAITALL & 0)) == 1000
            assert server.getsockname() == client.getpeername()


def test_connect_to_nobody_is_10061_and_connect_ex_its_errno() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = door.getsockname()
    with ss.SharedSocket() as client:
        with pytest.raises(ConnectionRefusedError) as caught:
            client.connect(address)
        assert caught.value.winerror == 10061  # type: ignore[attr-defined]  # typeshed: Windows only
    with ss.SharedSocket() as client:
        assert client.connect_ex(address) == 111


def test_connect_without_waiting_is_under_way_and_then_there() -> None:
    with kinds.listener_of("tcp4") as listener, ss.SharedSocket() as client:
        client.setblocking(False)
        code = client.connect_ex(listener.getsockname())
        assert code in (0, 115)
        accepted, _ = listener.accept()
        with accepted:
            client.settimeout(60)
            client.sendall(b"there")
            assert accepted.recv(5) == b"there"


def test_connect_that_takes_too_long_is_10060() -> None:
    with kinds.full_door("tcp4") as door, ss.SharedSocket() as client:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError) as caught:
            client.connect(door.getsockname())
        assert caught.value.winerror == 10060  # type: ignore[attr-defined]  # typeshed: Windows only


# -- what it says it is ---------------------------------------------------------------------------------------------


def test_repr_tells_a_reader_which_and_where_to() -> None:
    with kinds.pair_of("tcp4") as pair:
        text = repr(pair.local)
        for part in (f"descriptor={pair.local.descriptor}", f"fd={pair.local.fileno()}", "laddr=", "raddr="):
            assert part in text
        pair.local.close()
        assert "[closed]" in repr(pair.local)


def test_a_ticket_s_repr_shows_none_of_its_bytes() -> None:
    with kinds.pair_of("tcp4") as pair:
        ticket = pair.local.ticket()
        assert repr(ticket) == "<sharedsock.Ticket>"
        assert ticket.revoke()


def test_pending_operations_name_thread_kind_and_since_when() -> None:
    with kinds.pair_of("tcp4") as pair:
        reader = threading.Thread(target=lambda: pair.local.recv(1), name="the reader")
        reader.start()
        while not pair.local.pending_operations():
            os.sched_yield()
        (operation,) = pair.local.pending_operations()
        assert (operation.thread, operation.thread_id, operation.kind) == ("the reader", reader.native_id, "recv")
        assert ss.statistics().pending == 1
        pair.peer.sendall(b"x")
        reader.join()
        assert pair.local.pending_operations() == ()


def test_holders_of_a_socket_never_shared_are_this_process() -> None:
    with kinds.pair_of("tcp4") as pair:
        (holder,) = pair.local.holders()
        assert (holder.pid, holder.descriptor) == (os.getpid(), pair.local.descriptor)
        assert "kinds.py" in holder.opened_at, "where user code opened it"
        assert pair.local.references() == 1


def test_statistics_follow_what_is_open() -> None:
    before = ss.statistics().descriptors
    with ss.SharedSocket(), ss.SharedSocket():
        assert ss.statistics().descriptors == before + 2
    assert ss.statistics().descriptors == before


# -- giving it away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [None, 0.0, 2.0])
def test_detach_gives_the_number_away_as_a_plain_socket_would_have_it(timeout_s: float | None) -> None:
    left, right = ss.socketpair()
    with right:
        left.settimeout(timeout_s)
        number = left.fileno()
        assert left.detach() == number
        assert os.get_blocking(number) == (timeout_s is None)
        assert left.fileno() == -1
        with socket.socket(fileno=number) as plain:
            plain.sendall(b"still connected")
            assert right.recv(100) == b"still connected"


@pytest.mark.rule("LINGER-12")
def test_detach_gives_the_linger_option_to_the_kernel() -> None:
    with ss.SharedSocket() as shared:
        kinds.set_linger(shared, 6)
        with socket.socket(fileno=shared.detach()) as plain:
            assert kinds.get_linger(plain) == (1, 6)
            kinds.set_linger(plain, None)


@pytest.mark.fault("F-38")
def test_detach_ends_the_operations_of_this_process() -> None:
    left, right = ss.socketpair()
    with right:
        caught: list[BaseException] = []

        def read() -> None:
            try:
                left.recv(1)
            except OSError as error:
                caught.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while not left.pending_operations():
            os.sched_yield()
        number = left.detach()
        reader.join(60)
        assert isinstance(caught[0], (ss.OperationAborted, ss.NotASocket))
        os.close(number)


def test_detach_of_a_shared_socket_is_refused_and_changes_nothing() -> None:
    with kinds.pair_of("tcp4") as pair:
        ss.revoke(pair.local.share(None))
        with pytest.raises(OSError) as caught:
            pair.local.detach()
        assert caught.value.winerror == 10022  # type: ignore[attr-defined]  # typeshed: Windows only
        assert "share" in str(caught.value)
        assert "lend" in str(caught.value)
        pair.local.sendall(b"as before")
        assert pair.peer.recv(16) == b"as before"


def test_dup_is_a_second_independent_descriptor() -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.local.settimeout(4)
        with pair.local.dup() as twin:
            assert twin.descriptor != pair.local.descriptor
            assert twin.gettimeout() == 4
            pair.local.close()
            twin.sendall(b"twin")
            assert pair.peer.recv(16) == b"twin"
        assert pair.peer.recv(1) == b""


def test_an_iteration_of_names_finds_no_state_to_copy() -> None:
    with ss.SharedSocket() as shared, pytest.raises(TypeError, match="ticket"):
        shared.__getstate__()


def test_pickling_a_closed_socket_says_what_to_do() -> None:
    shared = ss.SharedSocket()
    shared.close()
    with pytest.raises(ss.NotASocket, match="ticket"):
        pickle.dumps(shared)
