"""What tests of sharing need beside actors: identity of sockets, points held in this process, a registry with a clock
of its own, a table of files with a chosen room.

Functions that actors call are plain and picklable by name.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.registry import connect, runtime, server
from sharedsock.registry.serving import RegistryServer
from sharedsock.testing import Actor
from sharedsock.testing.commands import Belongings

BOUND_S: Final = 60.0
_SO_COOKIE: Final = 57


def give(shared: ss.SharedSocket, *actors: Actor) -> None:
    """Give a socket to actors, and our own reference up."""
    for actor in actors:
        actor.do("take", shared.share(actor.pid))
    shared.close()


def cookie_of(shared: socket.socket) -> bytes:
    """Return what is the same in every holder of a socket, and different for any other."""
    return shared.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)


def wait_until(condition: Callable[[], bool], what: str, bound_s: float = BOUND_S) -> float:
    """Wait for a condition of other processes that has no event; return how long it took."""
    began_s = time.monotonic()
    never = threading.Event()
    while not condition():
        assert time.monotonic() < began_s + bound_s, f"waited in vain for {what}"
        never.wait(0.001)
    return time.monotonic() - began_s


def is_open_for(peer: socket.socket) -> bool:
    """Report whether a quiet peer sees neither FIN nor reset at this moment."""
    poll = select.poll()
    poll.register(peer, select.POLLIN | select.POLLRDHUP | select.POLLHUP)
    return not poll.poll(0)


def wait_end_of(peer: socket.socket, bound_s: float = BOUND_S) -> float:
    """Wait until the peer sees the end of a stream; return how long it took."""
    began_s = time.monotonic()
    peer.settimeout(bound_s)
    with contextlib.suppress(ConnectionResetError):
        assert peer.recv(1) == b"", "the peer was sent something"
    return time.monotonic() - began_s


def kill(pid: int) -> None:
    """SIGKILL a process of ours that is not our child, a registry for instance, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(BOUND_S * 1000), f"process {pid} survives SIGKILL"
    finally:
        os.close(pidfd)


# -- points of this process -------------------------------------------------------------------------------------------


class Pause:
    """Holds the first thread of this process that comes by a probe point, or by a function put in place of another."""

    def __init__(self, point: str = "", nth: int = 1) -> None:
        self._point = point
        self._left = nth
        self._reached = threading.Event()
        self._go_on = threading.Event()

    def __call__(self, point: str, context: Mapping[str, Any]) -> None:
        if point == self._point:
            self.hold()

    def hold(self) -> None:
        """Hold this thread if it is the one to be held."""
        self._left -= 1
        if self._left == 0:
            self._reached.set()
            assert self._go_on.wait(BOUND_S), "never released"

    def wait_reached(self) -> None:
        assert self._reached.wait(BOUND_S), f"nobody came by {self._point or 'the place'}"

    def release(self) -> None:
        self._go_on.set()


@contextmanager
def paused(point: str, nth: int = 1) -> Iterator[Pause]:
    """Hold the nth hit of a point in this process; released at the end at the latest."""
    pause = Pause(point, nth)
    with hooked(pause):
        try:
            yield pause
        finally:
            pause.release()


@contextmanager
def hooked(probe: trace.Probe) -> Iterator[None]:
    """Have a probe called at each point of this process."""
    assert trace.hook is None
    trace.hook = probe
    try:
        yield
    finally:
        trace.hook = None


class Running:
    """A call in a thread of its own, and what it came to."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._call = function, arguments
        self._thread = threading.Thread(target=self._run, name="held", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        function, arguments = self._call
        del self._call
        try:
            self.value = function(*arguments)
        except BaseException as error:  # the outcome, whatever it is
            self.error = error.with_traceback(None)
            self.error.__context__ = self.error.__cause__ = None

    def outcome(self) -> Any:
        """Return the value, or the error as a value."""
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive(), "the call hangs"
        return self.value if self.error is None else self.error


# -- room for files ---------------------------------------------------------------------------------------------------


@contextmanager
def room_for(free: int) -> Iterator[None]:
    """Let this process have exactly so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- a registry of one's own ------------------------------------------------------------------------------------------


class Clocks:
    """The clocks of a registry, moved by a test while it runs: seconds ahead of the real ones."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 16)

    @property
    def monotonic_s(self) -> float:
        return float(struct.unpack_from("d", self._page, 0)[0])

    @monotonic_s.setter
    def monotonic_s(self, ahead_s: float) -> None:
        struct.pack_into("d", self._page, 0, ahead_s)

    @property
    def wall_s(self) -> float:
        return float(struct.unpack_from("d", self._page, 8)[0])

    @wall_s.setter
    def wall_s(self, ahead_s: float) -> None:
        struct.pack_into("d", self._page, 8, ahead_s)


@contextmanager
def skewed_registry() -> Iterator[tuple[connect.RegistryHandle, Clocks]]:
    """Run a registry whose clocks can be moved, and make it current for this process."""
    clocks = Clocks()
    path = runtime.new_directory_name()
    os.close(runtime.make_directory(path))
    ready, report = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(path, report, clocks))
    process.start()
    os.close(report)
    try:
        assert os.read(ready, 1) == server.READY
        directory = runtime.open_directory(path)
        key = runtime.read_key(directory)
        os.close(directory)
        handle = ss.connect_registry(path, key)
        try:
            yield handle, clocks
        finally:
            handle.close()
        wait_until(lambda: not process.is_alive(), "the registry to end by itself")
    finally:
        os.close(ready)
        if process.is_alive():
            process.kill()
        process.join(BOUND_S)
        process.close()
        connect._clients.pop(path, None)


def _serve(path: str, report: int, clocks: Clocks) -> None:
    real_monotonic, real_wall = time.monotonic, time.time

    def skewed(*arguments: Any, **keywords: Any) -> RegistryServer:
        return RegistryServer(
            *arguments,
            clock=lambda: real_monotonic() + clocks.monotonic_s,
            wall=lambda: real_wall() + clocks.wall_s,
            **keywords,
        )

    vars(server)["RegistryServer"] = skewed  # main() makes it from its own name
    server.main(path, report)


# -- what actors are told to do ---------------------------------------------------------------------------------------


def open_pair(has: Belongings, address: Any, on: str = "socket") -> Any:
    """Connect a SharedSocket to an address; the test has the other end."""
    has.sockets[on] = ss.create_connection(address)
    return has.sockets[on].getsockname()


def cookie_in(has: Belongings, on: str = "socket") -> bytes:
    return cookie_of(has[on])


def die() -> None:
    """SIGKILL oneself."""
    os.kill(os.getpid(), signal.SIGKILL)
