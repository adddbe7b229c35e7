"""What other platforms lack, taken away here: pipe for eventfd, poll for epoll, a foreign socket as dead file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedsock.kernel import numbers, operations, sockets, system
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, Pair


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No eventfd."""
    monkeypatch.setattr(system, "make_eventfd", system._no_eventfd)


@pytest.fixture
def socket_as_dead_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No O_PATH: the dead file is an unconnected socket of another family."""
    monkeypatch.delattr("os.O_PATH")
    monkeypatch.setattr(sockets, "_dead", {})
    monkeypatch.setattr(numbers, "_reserve", -1)
    monkeypatch.setattr(numbers, "_reserve_identity", ())
    yield
    for number, _ in sockets._dead.values():
        system.close(number)
    numbers.spend_reserve()


@pytest.mark.usefixtures("pipes")
def test_a_pipe_wakes_for_ever(pair: Pair, way: str) -> None:
    """Level-triggered and never drained, waking twice is waking once, both ends are closed with it."""
    kernel = kinds.adopt(pair.local)
    first = stage.blocked(kernel, RECEIVES[0])
    second = stage.blocked(kernel, RECEIVES[0])
    kinds.close(kernel)
    first.error(OperationAborted)
    second.error(OperationAborted)
    for _ in range(1 << 17):  # more than a pipe holds
        kinds.waker_of(kernel).signal()


def test_an_eventfd_at_its_limit_is_awake() -> None:
    """EAGAIN from the write: readable already."""
    pair = kinds.make_pair("unix-stream")
    kernel = kinds.adopt(pair.local)
    assert system.write_eventfd is not None
    system.write_eventfd(kinds.waker_of(kernel).number, (1 << 64) - 2)
    kinds.waker_of(kernel).signal()
    pair.close()


@pytest.mark.usefixtures("socket_as_dead_file")
@pytest.mark.parametrize("call", RECEIVES, ids=lambda call: call.method)
def test_a_call_that_meets_the_dead_socket_is_aborted(
    pair: Pair, call: kinds.BlockingCall, points: stage.Points
) -> None:
    """It answers EAGAIN, ENOTCONN and the like instead of EBADF: a buried socket's errors are all the close's."""
    kernel = kinds.adopt(pair.local)
    method, direction, function, arguments = call.of(kernel)

    def bury_then_call(*rest: object) -> object:
        sockets.abort(kernel, "the test")
        sockets.keep_and_bury(kernel, keep=False)
        return function(*rest)

    for timeout_s in (None, 0.0):
        with pytest.raises(OperationAborted):
            operations.perform(kernel, method, direction, timeout_s, bury_then_call, arguments)
        kernel.aborted = None
    kernel.aborted = "the test"


@pytest.mark.usefixtures("socket_as_dead_file")
@pytest.mark.parametrize("kind", kinds.DATAGRAMS)
def test_the_dead_socket_really_sends_nothing(kind: str, tmp_path: Path) -> None:
    """An unconnected datagram socket of the same family would: its peer's address is all it takes."""
    receiver = kinds.make_client(kind)
    receiver.bind(str(tmp_path / "receiver") if kind == "unix-datagram" else ("127.0.0.1", 0))
    receiver.setblocking(False)
    kernel = kinds.adopt(kinds.make_client(kind))
    address = receiver.getsockname()
    kinds.close(kernel)
    with pytest.raises(OSError):
        kernel.sendto(b"from the dead", DONTWAIT, address)
    with pytest.raises(OSError):
        kernel.connect(address)
    with pytest.raises(BlockingIOError):
        receiver.recv(64)
    receiver.close()


@pytest.mark.usefixtures("socket_as_dead_file")
def test_each_family_has_a_dead_socket_of_another() -> None:
    """Two of them, opened when first needed and kept."""
    for family, other in ((socket.AF_INET, socket.AF_UNIX), (socket.AF_UNIX, socket.AF_INET)):
        number = sockets._require_dead_file(family)
        assert sockets._require_dead_file(family) == number
        view = socket.socket(fileno=number)
        assert (view.family, view.type) == (other, socket.SOCK_DGRAM)
        assert not os.get_blocking(number)
        view.detach()


def test_the_dead_file_answers_every_call_with_ebadf(pair: Pair) -> None:
    """O_PATH: nothing is sent, received, connected, shut down or asked through a dead number."""
    kernel = kinds.adopt(pair.local)
    address = pair.peer.getsockname()
    kinds.close(kernel)
    calls = (
        lambda: kernel.recv(1, DONTWAIT),
        lambda: kernel.send(b"x", DONTWAIT),
        lambda: kernel.connect(address),
        lambda: kernel._accept(),
        lambda: kernel.shutdown(socket.SHUT_RDWR),
        lambda: kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda: kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\0" * 8),
        lambda: kernel.getsockname(),
        lambda: kernel.listen(1),
    )
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


def test_without_tcp_info_the_state_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 stands for "not TCP, or nobody can tell"."""
    pair = kinds.make_pair("tcp4")
    assert system.tcp_state(pair.local) == 1
    monkeypatch.setattr(system, "_TCP_INFO", None)
    assert system.tcp_state(pair.local) == 0
    pair.close()
    with kinds.make_client("udp4") as udp:
        monkeypatch.undo()
        assert system.tcp_state(udp) == 0


def test_the_identity_of_a_socket_is_its_cookie(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    """Rule 16: the same through every number, another for every socket; device and inode where there is none."""
    with pair.local.dup() as twin:
        for _ in range(2):
            cookie = system.socket_cookie(pair.local.fileno())
            assert cookie == system.socket_cookie(twin.fileno()) != system.socket_cookie(pair.peer.fileno())
            monkeypatch.setattr(system, "_SO_COOKIE", 0x7FFF)
    with open("/dev/null") as no_socket, pytest.raises(OSError, match="non-socket"):
        system.socket_cookie(no_socket.fileno())


def test_without_epoll_or_eventfd_the_platform_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSYS, which the waker and the sets take as the sign for their fallbacks."""
    monkeypatch.delattr("select.epoll")
    for make in (system.make_epoll, system._no_eventfd):
        with pytest.raises(OSError, match="on this platform"):
            make()
    pair = kinds.make_pair("tcp4")
    kernel = kinds.adopt(pair.local)
    kinds.fill(kernel)
    calls = stage.blocked(kernel, RECEIVES[0]), stage.blocked(kernel, kinds.SENDS[0])
    assert {row[0] for row in kernel.waiters.values()} == {"recv", "send"}
    assert kernel.sets == [None, None]
    kinds.close(kernel)
    for call in calls:
        call.error(OperationAborted)
    pair.close()
