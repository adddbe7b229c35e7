"""SHAREDSOCK_DEBUG=1: every call notices a number that is no longer our socket, and leaves alone what has it now."""

from __future__ import annotations

import _socket
import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Final

import pytest

import sharedsock as ss
from sharedsock.kernel import checked, numbers, sockets
from tests.kernel import kinds, stage

pytestmark = pytest.mark.fault("F-55")


@pytest.fixture(autouse=True)
def debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with SHAREDSOCK_DEBUG=1 from the start of the process."""
    ss.SharedSocket().close()
    monkeypatch.setattr(sockets, "_kind", checked.CheckedKernel)


class Stranger:
    """A plain pair that gets a number of ours, with a byte to be read; what it is and has, as a value."""

    def __init__(self) -> None:
        self.end, self.peer = socket.socketpair()
        self.end.setblocking(True)
        self.peer.send(b"theirs")
        self.peer.settimeout(0.0)
        self.numbers: list[int] = []

    def take(self, number: int) -> None:
        """Somebody closes the number, and this file is the next that is opened there."""
        os.dup2(self.end.fileno(), number, inheritable=False)
        self.numbers.append(number)

    def is_untouched(self) -> bool:
        """Nothing taken, sent, set, shut down or closed."""
        for number in self.numbers:
            assert os.path.sameopenfile(number, self.end.fileno())
            assert os.get_blocking(number)
            assert not os.get_inheritable(number)
        assert self.end.recv(64, socket.MSG_PEEK) == b"theirs"
        assert self.end.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
        with pytest.raises(BlockingIOError):  # neither data nor an end
            self.peer.recv(1)
        return True

    def close(self) -> None:
        for number in self.numbers:
            os.close(number)
        self.end.close()
        self.peer.close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    stranger = Stranger()
    yield stranger
    stranger.close()


def send_a_file(s: ss.SharedSocket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"ours")
        file.seek(0)
        s.sendfile(file)


def ask_flags(s: ss.SharedSocket) -> None:
    s.set_inheritable(True)


CALLS: Final[dict[str, Callable[[ss.SharedSocket], Any]]] = {
    "accept": lambda s: s.accept(),
    "begin_recv": lambda s: s.begin_recv(1).result(),
    "begin_send": lambda s: s.begin_send(b"ours").result(),
    "bind": lambda s: s.bind(""),
    "connect": lambda s: s.connect("nowhere"),
    "detach": lambda s: s.detach(),
    "dup": lambda s: s.dup(),
    "get_inheritable": lambda s: s.get_inheritable(),
    "getpeername": lambda s: s.getpeername(),
    "getsockname": lambda s: s.getsockname(),
    "getsockopt": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "listen": lambda s: s.listen(),
    "recv": lambda s: s.recv(1),
    "recv, flags": lambda s: s.recv(1, socket.MSG_DONTWAIT),
    "recv_into": lambda s: s.recv_into(bytearray(1)),
    "recvfrom": lambda s: s.recvfrom(1),
    "recvfrom_into": lambda s: s.recvfrom_into(bytearray(1)),
    "recvmsg": lambda s: s.recvmsg(1),
    "recvmsg_into": lambda s: s.recvmsg_into([bytearray(1)]),
    "select": lambda s: ss.select([s], [], [], 0),
    "Selector.register": lambda s: ss.Selector().register(s, 1),
    "send": lambda s: s.send(b"ours"),
    "sendall": lambda s: s.sendall(b"ours"),
    "sendfile": send_a_file,
    "sendmsg": lambda s: s.sendmsg([b"ours"]),
    "sendto": lambda s: s.sendto(b"ours", "nowhere"),
    "set_inheritable": ask_flags,
    "setblocking": lambda s: s.setblocking(False),
    "setsockopt": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1),
    "share": lambda s: s.share(None),
    "shutdown": lambda s: s.shutdown(socket.SHUT_RDWR),
    "ticket": lambda s: s.ticket(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_on_a_strangers_number_is_an_error_and_does_nothing(stranger: Stranger, name: str) -> None:
    s, peer = ss.socketpair()
    peer.sendall(b"our data")
    number = s.fileno()
    stranger.take(number)
    with pytest.raises(ss.LostDescriptor, match=rf"number {number} in process {os.getpid()} .* but another") as caught:
        CALLS[name](s)
    assert caught.value.winerror == 10038
    assert caught.value.descriptor == s.descriptor  # type: ignore[attr-defined]  # a fact
    assert "opened at " in str(caught.value)
    assert stranger.is_untouched()
    if name != "detach":  # which has closed it
        with pytest.raises(ss.LostDescriptor):
            s.close()
    assert stranger.is_untouched()
    assert s.fileno() == -1
    del s, caught
    gc.collect()
    assert stranger.is_untouched()
    peer.close()


@pytest.mark.parametrize("name", CALLS)
def test_each_of_these_calls_is_another_ones_or_none_while_the_number_is_ours(name: str) -> None:
    """So that the table above tries calls that do something."""
    s, peer = ss.socketpair()
    peer.sendall(b"our data")
    refused = ("accept", "connect", "listen", "sendto")
    with pytest.raises(OSError) if name in refused else nullcontext() as caught:
        result = CALLS[name](s)
        if name == "detach":
            os.close(result)
        elif name == "dup":
            result.close()
        elif name == "share":
            ss.revoke(result)
        elif name == "ticket":
            result.revoke()
    assert caught is None or not isinstance(caught.value, ss.LostDescriptor)
    s.close()
    peer.close()


def end_by(name: str, s: ss.SharedSocket) -> None:
    if name == "with":
        with s:
            pass
    else:
        getattr(s, name)()


@pytest.mark.parametrize(
    ("end", "is_shared"),
    [*((end, is_shared) for end in ("close", "abort", "with") for is_shared in (False, True)), ("detach", False)],
)
def test_an_end_leaves_the_stranger_alone_and_gives_the_reference_back(
    registry: ss.Registry, stranger: Stranger, end: str, is_shared: bool
) -> None:
    s, peer = ss.socketpair()
    twin = s.dup() if is_shared else None
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stranger.take(s.fileno())
    with pytest.raises(ss.LostDescriptor, match="left alone; whoever takes a number over needs"):
        end_by(end, s)
    assert stranger.is_untouched()
    s.close()
    if twin is not None:
        assert twin.references() == 1
        twin.close()
    peer.close()


@pytest.mark.parametrize("what", ["nothing", "file"])
def test_the_error_says_what_the_number_is_now(what: str) -> None:
    s = ss.SharedSocket()
    number = s.fileno()
    os.close(number)
    if what == "file":
        reader, writer = os.pipe()
        if number not in (reader, writer):
            os.dup2(reader, number, inheritable=False)
    with pytest.raises(ss.LostDescriptor, match={"nothing": "no open file", "file": "no socket"}[what]):
        s.getsockname()
    with pytest.raises(ss.LostDescriptor):
        s.close()
    if what == "file":
        for one in {reader, writer, number}:
            os.close(one)


def test_a_later_descriptor_on_the_same_socket_is_another_one() -> None:
    """They have one cookie: the close of the first would end the second."""
    s, peer = ss.socketpair()
    spare = os.dup(s.fileno())
    number = s.fileno()
    os.close(number)
    later = ss.SharedSocket(fileno=os.dup2(spare, number, inheritable=False))
    with pytest.raises(ss.LostDescriptor, match="a later descriptor on the same socket"):
        s.recv(1)
    with pytest.raises(ss.LostDescriptor):
        s.close()
    later.sendall(b"alive")
    assert peer.recv(16) == b"alive"
    os.close(spare)
    later.close()
    peer.close()


def test_the_same_socket_put_back_is_no_loss() -> None:
    """dup2 of a duplicate over the number: a new number of nobody's, and the same socket."""
    s, peer = ss.socketpair()
    spare = os.dup(s.fileno())
    os.dup2(spare, s.fileno(), inheritable=False)
    os.close(spare)
    s.sendall(b"alive")
    assert peer.recv(16) == b"alive"
    s.close()
    assert peer.recv(16) == b""
    peer.close()


@pytest.mark.parametrize("name", ["recv", "recv_into", "accept", "begin_recv", "sendfile"])
def test_a_call_that_waits_asks_before_each_try(stranger: Stranger, name: str) -> None:
    """The socket lives on in another holder, so its set wakes us: for a number that is a stranger's by then (I1)."""
    if name == "accept":
        s = ss.create_server(("127.0.0.1", 0))
    else:
        s, peer = ss.socketpair()
    holder = os.dup(s.fileno())
    queued = kinds.fill(s._kernel) if name == "sendfile" else 0
    if name == "begin_recv":
        operation = s.begin_recv(16)
        call = stage.Call(operation.result)
        stage.wait_for(lambda: bool(s.pending_operations()), "the operation is pending")
    else:
        call = stage.Call(CALLS[name], s)
        call.wait_blocked(s._kernel)
    stranger.take(s.fileno())
    if name == "accept":
        plain = socket.socket(fileno=holder)
        client = socket.create_connection(plain.getsockname())
    elif name == "sendfile":
        while queued:
            queued -= len(peer.recv(1 << 20))
    else:
        peer.sendall(b"ours")
    call.error(ss.LostDescriptor)
    assert stranger.is_untouched()
    with pytest.raises(ss.LostDescriptor):
        s.close()
    assert stranger.is_untouched()
    if name == "accept":
        accepted, _ = plain.accept()
        for one in (accepted, client, plain):
            one.close()
    else:
        if name != "sendfile":
            assert os.read(holder, 16) == b"ours"
        os.close(holder)
        peer.close()


def test_a_receive_after_several_that_had_to_wait_asks_before_it_waits(stranger: Stranger) -> None:
    """Without the mode such a one waits first, and then they are a conversation: here it would wait for ever."""
    s, peer = ss.socketpair()
    for _ in range(4):
        call = stage.Call(s.recv, 16)
        call.wait_blocked(s._kernel)
        peer.sendall(b"ours")
        assert call.outcome() == b"ours"
    stranger.take(s.fileno())
    stage.Call(s.recv, 16).error(ss.LostDescriptor)
    with pytest.raises(ss.LostDescriptor):
        s.close()
    assert stranger.is_untouched()
    peer.close()


def test_the_number_of_a_closed_descriptor_is_not_used_and_not_freed_by_the_last_frame_inside(
    stranger: Stranger,
) -> None:
    """The number waits for the call inside; somebody may have closed it by then (I5)."""
    s = ss.SharedSocket()
    kernel = s._kernel
    number = s.fileno()
    s.close()
    assert sockets.retiring() == 1
    stranger.take(number)
    with pytest.raises(OSError, match="Bad file") as caught:
        kernel.recv(1)
    assert stranger.is_untouched()
    descriptor = s._descriptor
    closed, descriptor.kernel = descriptor.kernel, kernel  # as a call finds it that has looked just before the close
    with pytest.raises(ss.NotASocket, match="was closed by") as caught:
        s.getsockname()
    descriptor.kernel = closed
    del kernel, caught
    gc.collect()
    assert sockets.retiring() == 0
    assert number not in numbers.owned()
    assert stranger.is_untouched()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_collected_descriptor_leaves_the_stranger_alone(stranger: Stranger) -> None:
    s, peer = ss.socketpair()
    number = s.fileno()
    stranger.take(number)
    del s
    gc.collect()
    assert stranger.is_untouched()
    assert number not in numbers.owned()
    peer.close()


def test_what_an_interrupt_left_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adoption that is cut short has taken nothing over."""
    with socket.socket() as plain:

        def cut_short(serial: Any) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(checked, "next", cut_short, raising=False)
        with pytest.raises(KeyboardInterrupt):
            sockets.adopt(plain.fileno(), plain.family, plain.type, plain.proto)
        gc.collect()
        assert plain.getsockname()
        assert plain.fileno() not in numbers.owned()


def test_every_method_of_the_c_class_asks_or_needs_no_system_call() -> None:
    needs_none = {"close", "detach", "fileno", "gettimeout", "getblocking", "family", "type", "proto", "timeout"}
    public = {name for name in vars(_socket.socket) if not name.startswith("__")}
    assert public == set(checked.CALLS) | (needs_none & public)


PROGRAM: Final = """
import os, sys, socket
import sharedsock as ss
s = ss.SharedSocket()
print(type(s._kernel).__name__, "sharedsock.kernel.checked" in sys.modules)
plain = socket.socket()
os.dup2(plain.fileno(), s.fileno())
try:
    s.close()
except ss.LostDescriptor as error:
    print(error.winerror)
"""


@pytest.mark.parametrize(
    ("value", "said"),
    [("1", "CheckedKernel True\n10038\n"), ("0", "KernelSocket False\n"), (None, "KernelSocket False\n")],
)
def test_the_variable_turns_it_on_and_nothing_of_it_is_there_otherwise(value: str | None, said: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "SHAREDSOCK_DEBUG"}
    if value is not None:
        environment["SHAREDSOCK_DEBUG"] = value
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == (said, "")
