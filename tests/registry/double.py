"""What the tests of the client half need: a live registry of one's own, a hostile one, processes to stand beside us.

The hostile double keeps a runtime directory and shakes hands as it should; what it answers then is up to the test.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sharedsock.model.errors import RegistryGone
from sharedsock.model.identity import DescriptorFacts, DescriptorId, SocketFacts
from sharedsock.registry import connect, runtime
from sharedsock.registry.client import Client
from sharedsock.registry.facts import socket_facts
from sharedsock.registry.handshake import ServerHandshake, Welcome
from sharedsock.registry.messages import MAX_MESSAGE, Code, Message, decode, encode
from sharedsock.registry.page import PageWriter

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BOUND_S = 60.0
T_DEAD_S = 0.1 + 0.5  # the catalogue's bound, under load
T_EXIT_S = 1.0 * 4


def facts(descriptor: int) -> DescriptorFacts:
    return DescriptorFacts(DescriptorId(descriptor), "test.py:1 in test", time.time())


def facts_of(sock: socket.socket) -> SocketFacts:
    found = socket_facts(sock.fileno())
    assert found is not None
    return found


def open_numbers() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {number: what for number, what in found.items() if f"/proc/{os.getpid()}/fd" not in what}


def wait_readable(number: int, timeout_s: float = BOUND_S) -> bool:
    poller = select.poll()
    poller.register(number, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def wait_ended(pid: int, timeout_s: float) -> float:
    """Wait until a process has ended; return how long it took. It must be alive, or a zombie, when asked."""
    began = time.monotonic()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0.0
    try:
        assert wait_readable(pidfd, timeout_s), f"process {pid} has not ended within {timeout_s} s"
    finally:
        os.close(pidfd)
    return time.monotonic() - began


@contextlib.contextmanager
def tree(monkeypatch: Any, base: Any = None) -> Iterator[str]:
    """A tree of processes of its own: no registry yet, and at the end none is left, nor a descriptor of ours."""
    path = runtime.new_directory_name()
    if base is not None:
        path = os.path.join(str(base), os.path.basename(path))
    before = open_numbers()
    saved = dict(connect._clients)
    connect._clients.clear()
    monkeypatch.setenv(runtime.TREE_VARIABLE, path)
    monkeypatch.delenv(connect.REGISTRY_VARIABLE, raising=False)
    try:
        yield path
        for client in connect._clients.values():
            client.close()
        for pid in registries(path):
            wait_ended(pid, T_EXIT_S)
        assert not os.path.exists(path), "I6: the runtime directory is left"
    finally:
        for client in connect._clients.values():
            forget(client)
        for pid in registries(path):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        connect._clients.clear()
        connect._clients.update(saved)
    deadline = time.monotonic() + BOUND_S
    while left := {n: what for n, what in open_numbers().items() if before.get(n) != what}:
        assert time.monotonic() < deadline, f"I6: descriptors are left: {left}"
        select.poll().poll(5)  # the service thread ends a moment after what it looked after


def forget(client: Client) -> None:
    """Close a client as if everything had been ended that a test has announced with it."""
    client._session.held.clear()
    client.close()


def end_registry(client: Client) -> None:
    """End a registry that still counts what a test has left with it, or clear away after one that was killed."""
    with contextlib.suppress(RegistryGone):
        client.shutdown()
    for pid in registries(client.runtime):
        wait_ended(pid, T_EXIT_S)
    forget(client)
    with contextlib.suppress(FileNotFoundError):
        remove_tree(client.runtime)


def remove_tree(path: str) -> None:
    """Clear away what a killed registry has left."""
    directory = runtime.open_directory(path)
    runtime.remove_directory(path, directory)
    os.close(directory)


def registries(path: str) -> list[int]:
    """The pids of the registry processes of a directory."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(path) in command and any(b"run_registry" in word for word in command):
                found.append(int(name))
    return found


def shared_socket(client: Client, descriptor: int = 1) -> tuple[socket.socket, socket.socket, SocketFacts]:
    """A connected pair whose first end is announced; both ends are the caller's."""
    ours, peer = socket.socketpair()
    found = facts_of(ours)
    client.announce(found, facts(descriptor))
    return ours, peer, found


def ticket(client: Client, sock: socket.socket, descriptor: int = 1, target: int | None = None) -> bytes:
    found = facts_of(sock)
    return client.issue(found.socket, DescriptorId(descriptor), sock.fileno(), target or os.getpid(), None)


def in_child(work: Callable[[], Any]) -> Any:
    """Fork, do `work` in the child, and return what it returns; an exception there is a failure here. Bounded."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            try:
                answer: tuple[bool, Any] = (True, work())
            except BaseException:
                answer = (False, traceback.format_exc())
            with open(writer, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    pidfd = os.pidfd_open(pid)
    try:
        if not wait_readable(pidfd):
            os.kill(pid, signal.SIGKILL)
        with open(reader, "rb") as pipe:
            data = pipe.read()
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)
    assert data, "the child ended without an answer (killed after its time, or crashed)"
    good, value = pickle.loads(data)
    assert good, value
    return value


class Script:
    """A Python process that runs a text, says lines on stdout and hears lines on stdin. Warnings are errors there."""

    def __init__(self, text: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", text, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": ROOT} | environment,
            bufsize=0,
        )
        self.pid = self.process.pid

    def hear(self, timeout_s: float = BOUND_S) -> str:
        """Return the next line it says; empty: it has ended."""
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            assert wait_readable(self.process.stdout.fileno(), timeout_s), "the script is silent"
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                break
            line += byte
        return line.decode().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)

    def finish(self) -> int:
        """Let it see the end of its input; return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(BOUND_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


Reply = tuple[bytes, list[int]]
"""Bytes to send and descriptors to send with them."""


class Hostile:
    """A registry double: `answer(message, numbers)` says what to send for each request, in order.

    It serves one connection after another in one thread; `None` instead of a list hangs up.
    """

    def __init__(self, path: str, answer: Callable[[Message, list[int]], list[Reply] | None]) -> None:
        self.path = path
        self.heard: list[Message] = []
        self._answer = answer
        self._directory = runtime.make_directory(path)
        self._alive = runtime.hold_alive_lock(self._directory)
        self.key = runtime.write_key(self._directory)
        self._listener = runtime.bind_listener(self._directory, path)
        self._listener.setblocking(True)
        self._page = PageWriter()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name="hostile registry", daemon=True)
        self._thread.start()

    def client(self, timeout_s: float = 2.0) -> Client:
        client = Client(self.path)
        client.rpc_timeout_s = timeout_s
        return client

    def _run(self) -> None:
        while True:
            if not self._wait(self._listener.fileno()):
                return
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                if self._shake_hands(connection):
                    self._serve(connection)

    def _wait(self, number: int) -> bool:
        poller = select.poll()
        poller.register(number, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        return all(found != self._stop for found, _ in poller.poll())

    def _shake_hands(self, connection: socket.socket) -> bool:
        handshake = ServerHandshake(self.key)
        connection.send(handshake.challenge())
        if not self._wait(connection.fileno()):
            return False
        data = connection.recv(MAX_MESSAGE)
        if not data:
            return False
        handshake.accept(data)
        assert self._page.fd is not None
        _send(connection, handshake.welcome(Welcome(b"i" * 16, os.getpid(), True)), [self._page.fd])
        return True

    def _serve(self, connection: socket.socket) -> None:
        while self._wait(connection.fileno()):
            data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(64))
            if not data:
                return
            numbers = [n for _, _, raw in ancillary for n in struct.unpack(f"{len(raw) // 4}i", raw)]
            message = decode(data)
            self.heard.append(message)
            try:
                replies = self._answer(message, numbers)
            finally:
                for number in numbers:
                    os.close(number)
            if replies is None:
                return
            for reply, sent in replies:
                _send(connection, reply, sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stopped)
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()
        os.close(self._stop)
        self._listener.close()
        self._page.close()
        assert self._alive is not None
        runtime.remove_directory(self.path, self._directory)
        runtime.release_lock(self._alive)
        os.close(self._directory)


def _send(connection: socket.socket, data: bytes, numbers: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(numbers)}i", *numbers))] if numbers else []
    connection.sendmsg([data], ancillary)


def claimed(message: Message, sock: SocketFacts, number: int = 7) -> bytes:
    """The CLAIMED that grants a ticket on a socket."""
    return encode(
        Code.CLAIMED,
        message.request,
        number=number,
        socket=sock.socket,
        family=sock.family,
        type=sock.type,
        protocol=sock.protocol,
        slot=0,
        target_bound=True,
        chain="",
    )


def ok(message: Message) -> bytes:
    return encode(Code.OK, message.request)
