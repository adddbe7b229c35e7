"""For the server's tests: a peer made of a raw socket, and registries to talk to, stepped by hand or in a process.

`Dialogue` speaks the protocol with nothing but messages.py and handshake.py, so it can lie as well. `Stepped` is the
server in this process, one step at a time, with a clock and a world of processes of its own; `Running` is one in its
own process. Nobody sleeps: whoever waits, polls a descriptor, bounded.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sharedsock.model.identity import DescriptorFacts, DescriptorId, SocketFacts
from sharedsock.registry import runtime
from sharedsock.registry.facts import socket_facts
from sharedsock.registry.handshake import ClientHandshake, Welcome
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness, System
from sharedsock.registry.messages import COMMON_FIELDS, MAX_MESSAGE, Code, Message, decode, encode, error_of
from sharedsock.registry.reception import Caps
from sharedsock.registry.records import Limits
from sharedsock.registry.serving import RegistryServer

PATIENCE_S = 60.0


def wait_readable(target: Any, timeout_s: float = PATIENCE_S) -> bool:
    """Wait until a number, socket or pidfd is readable; report whether it is."""
    poller = select.poll()
    poller.register(target, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def wait_dead(pid: int, timeout_s: float = PATIENCE_S) -> bool:
    """Wait for the end of a process, which need not be a child."""
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_readable(number, timeout_s)
    finally:
        os.close(number)


def open_numbers(pid: int | str = "self") -> dict[int, str]:
    """Return the open descriptors of a process and what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {number: what for number, what in found.items() if what != f"/proc/{os.getpid()}/fd"}


class Gone(Exception):
    """The registry has closed this connection."""


@dataclass
class Dialogue:
    """One connection. `pump`, if given, is called instead of waiting: the server lives in this thread."""

    connection: socket.socket
    pump: Callable[[], None] | None = None
    nonce: bytes = field(default_factory=lambda: os.urandom(16))
    welcome: Welcome | None = None
    page: int | None = None
    requests: int = 0
    came: list[int] = field(default_factory=list)  # descriptors that came along with the latest message

    @classmethod
    def connect(cls, path: str, key: bytes | None = None, **more: Any) -> Self:
        """Connect to a registry's runtime directory; with a key, authenticate."""
        made = cls(runtime.connect_to(path), **more)
        if key is not None:
            made.authenticate(key)
        return made

    def authenticate(self, key: bytes) -> Welcome:
        handshake = ClientHandshake(key, self.nonce)
        self.send_raw(handshake.answer(self.receive_raw()))
        self.welcome = handshake.check(self.receive_raw())
        if self.welcome.page:
            (self.page,) = self.came
            self.came.clear()
        return self.welcome

    def send_raw(self, data: bytes, *descriptors: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self.connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive_raw(self) -> bytes:
        if self.pump is not None:
            for _ in range(1000):
                if wait_readable(self.connection, 0):
                    break
                self.pump()
        assert wait_readable(self.connection, 0 if self.pump else PATIENCE_S), "the registry does not answer"
        try:
            data, ancillary, _, _ = self.connection.recvmsg(MAX_MESSAGE, 256, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raise Gone from None
        for _, kind, value in ancillary:
            if kind == socket.SCM_RIGHTS:
                self.came.extend(array.array("i", value))
        if not data:
            raise Gone
        return data

    def send(self, code: Code, *descriptors: int, **values: Any) -> int:
        """Send a request; return its id."""
        self.requests += 1
        self.send_raw(encode(code, self.requests, **values), *descriptors)
        return self.requests

    def receive(self) -> Message:
        return decode(self.receive_raw())

    def ask(self, code: Code, *descriptors: int, **values: Any) -> Message:
        """Send a request and return its reply; an ERROR is raised as what it stands for."""
        request = self.send(code, *descriptors, **values)
        reply = self.receive()
        assert reply.request == request
        if reply.code is Code.ERROR:
            raise error_of(reply)
        return reply

    def is_gone(self) -> bool:
        """Read until the registry closes this connection; report whether it does."""
        try:
            while True:
                self.receive_raw()
                self.close_came()
        except Gone:
            return True
        except AssertionError:
            return False

    # -- the usual requests -----------------------------------------------------------------------------------

    def announce(self, subject: socket.socket | SocketFacts, descriptor: int) -> Message:
        return self._announce(Code.ANNOUNCE, subject, descriptor)

    def recover(self, subject: socket.socket | SocketFacts, descriptor: int, **common: Any) -> Message:
        blank = dict.fromkeys(COMMON_FIELDS, False) | {"linger_s": None}
        return self._announce(Code.RECOVER, subject, descriptor, **(blank | common))

    def _announce(self, code: Code, subject: socket.socket | SocketFacts, descriptor: int, **more: Any) -> Message:
        facts = subject if isinstance(subject, SocketFacts) else facts_of(subject)
        return self.ask(
            code,
            socket=facts.socket,
            family=facts.family,
            type=facts.type,
            protocol=facts.protocol,
            descriptor=descriptor,
            opened_at="test.py:1 in f",
            opened_s=1.0,
            chain="",
            **more,
        )

    def issue(
        self,
        subject: socket.socket,
        descriptor: int,
        target: int | None,
        expires_s: float | None = None,
        launching: bool = False,
    ) -> bytes:
        secret = os.urandom(32)
        self.ask(
            Code.ISSUE,
            subject.fileno(),
            secret=secret,
            socket=facts_of(subject).socket,
            descriptor=descriptor,
            target=target,
            expires_s=expires_s,
            launching=launching,
        )
        return secret

    def claim(self, secret: bytes) -> tuple[Message, socket.socket]:
        reply = self.ask(Code.CLAIM, secret=secret)
        (number,) = self.came
        self.came.clear()
        return reply, socket.socket(fileno=number)

    def acknowledge(self, number: int, descriptor: int) -> Message:
        return self.ask(Code.ACK, number=number, descriptor=descriptor, opened_at="test.py:2 in g", opened_s=2.0)

    def references(self, subject: socket.socket | SocketFacts) -> int:
        facts = subject if isinstance(subject, SocketFacts) else facts_of(subject)
        return int(self.ask(Code.REFERENCES, socket=facts.socket).value)

    def statistics(self) -> dict[str, int]:
        return dict(self.ask(Code.STATISTICS).values)

    def refusals(self) -> dict[str, int]:
        return dict(self.ask(Code.REFUSALS).items)

    def close_came(self) -> None:
        while self.came:
            os.close(self.came.pop())

    def close(self) -> None:
        self.close_came()
        if self.page is not None:
            os.close(self.page)
            self.page = None
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def facts_of(subject: socket.socket) -> SocketFacts:
    facts = socket_facts(subject.fileno())
    assert facts is not None
    return facts


def described(number: int) -> DescriptorFacts:
    return DescriptorFacts(DescriptorId(number), "test.py:1 in f", 1.0)


@dataclass
class World(System):
    """A System whose answers a test changes. What it does not say is asked of the real one."""

    foreign: set[int] = field(default_factory=set)
    own_uid: int | None = None
    peer_pidfds: bool = True
    pidfds: bool = True
    namespaces: dict[int, str] = field(default_factory=dict)

    def euid(self) -> int:
        return os.geteuid() if self.own_uid is None else self.own_uid

    def uid(self, pid: int) -> int | None:
        return 4_000_000 if pid in self.foreign else super().uid(pid)

    def pidfd(self, pid: int) -> int | None:
        return super().pidfd(pid) if self.pidfds else None

    def peer_pidfd(self, channel: socket.socket) -> int | None:
        return super().peer_pidfd(channel) if self.peer_pidfds and self.pidfds else None

    def namespace(self, pid: int) -> str | None:
        return self.namespaces.get(pid) or super().namespace(pid)


class Stepped:
    """A server in this thread: `step()` does what is due and never waits; `clock` moves when the test says so."""

    KEY = bytes(range(32))

    def __init__(self, path: str, *, caps: Caps | None = None, limits: Limits | None = None) -> None:
        self.path = path
        self.time_s = 1000.0
        self.ends = 0
        self.world = World()
        directory = runtime.make_directory(path)
        try:
            listener = runtime.bind_listener(directory, path)
        finally:
            os.close(directory)
        # The registry's own pid is nobody's target: here it must not be the test's.
        self.server = RegistryServer(
            listener,
            self.KEY,
            caps=caps,
            limits=limits,
            clock=lambda: self.time_s,
            liveness=Liveness(self.world, own_pid=1),
            may_end=self._may_end,
        )
        self._peers: list[Dialogue] = []

    def _may_end(self) -> bool:
        self.ends += 1
        return False

    @property
    def ledger(self) -> Ledger:
        return self.server.ledger

    def step(self) -> None:
        self.server.step(0)

    def settle(self) -> None:
        """Step until nothing more is to do at this time."""
        for _ in range(20):
            self.step()

    def pass_time(self, seconds: float) -> None:
        self.time_s += seconds
        self.settle()

    def peer(self, *, authenticated: bool = True, **more: Any) -> Dialogue:
        made = Dialogue.connect(self.path, pump=self.step, **more)
        self._peers.append(made)
        if authenticated:
            made.authenticate(self.KEY)
        return made

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self.server.close()


class Running:
    """A registry in a process of its own, made by `main`; `code` may prepare that process and give main arguments."""

    def __init__(self, path: str, prepare: str = "", arguments: str = "") -> None:
        self.path = path
        os.close(runtime.make_directory(path))
        ready, theirs = os.pipe()
        code = (
            "import sys; from sharedsock.registry import server; from sharedsock.registry.reception import Caps\n"
            "from sharedsock.registry.records import Limits\n"
            f"{prepare}\nserver.main(sys.argv[1], int(sys.argv[2]), {arguments})\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, path, str(theirs)],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        os.close(theirs)
        try:
            assert wait_readable(ready)
            if os.read(ready, 1) != b"R":
                raise AssertionError(self.complaints())
        finally:
            os.close(ready)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def key(self) -> bytes:
        directory = runtime.open_directory(self.path)
        try:
            return runtime.read_key(directory)
        finally:
            os.close(directory)

    def peer(self, **more: Any) -> Dialogue:
        return Dialogue.connect(self.path, self.key, **more)

    def complaints(self) -> str:
        """Wait for the end and return what it wrote to its standard error."""
        assert self.process.stderr is not None
        return self.process.communicate(timeout=PATIENCE_S)[1].decode()

    def wait_end(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextlib.contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code in a process with pipes; killed and reaped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def thread_of(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a function in a thread that is joined at the end."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
