"""What tests of the data plane are staged with: threads that block, points they are held at, a second process.

Nothing here guesses a delay. A thread "is blocked" when it is registered as a waiter and the kernel shows it asleep in
a wait; an order of two threads is two barriers; a second process answers on a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, NoReturn

from sharedsock.kernel import operations
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.model import trace
from sharedsock.model.identity import PendingOperation
from sharedsock.testing.observation import thread_facts
from tests.kernel.kinds import BlockingCall

PATIENCE_S: Final = 60.0
_never: Final = threading.Event()


def wait_for(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition of the kernel's that has no event."""
    deadline = monotonic() + patience_s
    while not condition():
        if monotonic() > deadline:
            raise AssertionError(f"waited {patience_s} s for {what}")
        _never.wait(0.0005)


def is_open(number: int) -> bool:
    """Whether a number is a file of this process."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def wait_blocked(thread: threading.Thread, pending: Callable[[], Iterable[PendingOperation]]) -> None:
    """Wait until a call of a thread is among the pending operations, and sleeps in its wait.

    Between the two lies the call's last look at `aborted`: a close there finds a call that has not begun to wait, and
    that call is refused (10038), not aborted.
    """
    tid = thread.native_id
    assert tid is not None

    def is_blocked() -> bool:
        assert thread.is_alive(), "the call came back instead of blocking"
        return any(row.thread_id == tid for row in pending()) and thread_facts(os.getpid(), tid).is_waiting

    wait_for(is_blocked, f"{thread.name} to block")


class Call:
    """A function running in a thread of its own, and what came of it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, name: str = "caller") -> None:
        self._function = function
        self._arguments = arguments
        self._result: Any = None
        self._error: BaseException | None = None
        self.ended_s = 0.0
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self.ended_s = monotonic()
            # Its traceback holds frames, and a frame inside holds a closed socket's number.
            self._error = error.with_traceback(None)
            error.__context__ = error.__cause__ = None
        else:
            self.ended_s = monotonic()
        finally:
            del self._function, self._arguments

    @property
    def is_over(self) -> bool:
        return not self.thread.is_alive()

    def outcome(self) -> Any:
        """Wait for the end; return the result or raise the error."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), f"{self.thread.name} never came back"
        if self._error is not None:
            raise self._error
        return self._result

    def error(self, kind: type[BaseException]) -> Any:
        """Wait for the end, which must be an error of this very class; return it."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), f"{self.thread.name} never came back"
        assert type(self._error) is kind, f"{self._error or self._result!r} instead of {kind.__name__}"
        return self._error

    def wait_blocked(self, kernel: KernelSocket) -> None:
        """Wait until this thread is registered as a waiter of the socket and sleeps in its wait."""
        wait_blocked(self.thread, lambda: operations.pending(kernel))


def blocked(kernel: KernelSocket, call: BlockingCall, timeout_s: float | None = None) -> Call:
    """Start a call in a thread and wait until it is blocked."""
    started = performing(kernel, call, timeout_s)
    started.wait_blocked(kernel)
    return started


def performing(
    kernel: KernelSocket, call: BlockingCall, timeout_s: float | None = None, has_tried: bool = False
) -> Call:
    """Start a call in a thread."""
    kind, direction, method, arguments = call.of(kernel)
    return Call(
        operations.perform, kernel, kind, direction, timeout_s, method, arguments, None, has_tried, name=call.method
    )


class Hold:
    """A barrier at a probe point: whoever comes is held until `release`."""

    def __init__(self, point: str, matches: Callable[[Mapping[str, Any]], bool], count: int | None) -> None:
        self.point = point
        self._matches = matches
        self._left = count
        self._came = threading.Semaphore(0)
        self._gone = threading.Event()

    def visit(self, point: str, context: Mapping[str, Any]) -> None:
        if point != self.point or self._left == 0 or self._gone.is_set() or not self._matches(context):
            return
        if self._left is not None:
            self._left -= 1
        self._came.release()
        assert self._gone.wait(PATIENCE_S), f"held at {point} and forgotten"

    def wait_reached(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=PATIENCE_S), f"nobody came to {self.point}"

    def release(self) -> None:
        self._gone.set()


class Points:
    """The probe points of this process, for one test: hold whoever comes, or do something there."""

    def __init__(self) -> None:
        self._holds: list[Hold] = []
        self._actions: list[tuple[str, Callable[[], object]]] = []
        self.seen: list[str] = []

    def __call__(self, point: str, context: Mapping[str, Any]) -> None:
        self.seen.append(point)
        for where, action in tuple(self._actions):
            if where == point:
                action()
        for hold in tuple(self._holds):
            hold.visit(point, context)

    def hold(self, point: str, kind: str | None = None, count: int | None = 1) -> Hold:
        """Hold the next `count` threads that come to a point (with an operation of this kind)."""
        assert point in trace.POINTS
        hold = Hold(point, lambda context: kind is None or context.get("kind") == kind, count)
        self._holds.append(hold)
        return hold

    def act(self, point: str, action: Callable[[], object]) -> None:
        """Run an action once, in the first thread that comes to a point."""
        assert point in trace.POINTS

        def once() -> None:
            self._actions.remove(entry)
            action()

        entry = point, once
        self._actions.append(entry)

    def end(self) -> None:
        for hold in self._holds:
            hold.release()


@contextmanager
def probing() -> Iterator[Points]:
    """Install probe points for the time of a block."""
    points = Points()
    before = trace.hook
    trace.hook = points
    try:
        yield points
    finally:
        points.end()
        trace.hook = before


class Line:
    """One end of a conversation between a test and its second process: whole messages, in order."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write

    def say(self, message: bytes = b"") -> None:
        os.write(self._write, struct.pack("I", len(message)) + message)

    def hear(self, timeout_s: float = PATIENCE_S) -> bytes:
        """Return the next message; AssertionError when none comes in time."""
        if not select.select([self._read], [], [], timeout_s)[0]:
            raise AssertionError("the other process is silent")
        (length,) = struct.unpack("I", self._exactly(4))
        return self._exactly(length)

    def is_silent(self) -> bool:
        """Whether nothing has been said that was not heard."""
        return not select.select([self._read], [], [], 0)[0]

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = os.read(self._read, count - len(data))
            assert chunk, "the other process has ended"
            data += chunk
        return data

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Sibling:
    """A second process that runs a function with a `Line` to us; forked, so it has every plain socket we had."""

    def __init__(self, body: Callable[[Line], object]) -> None:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(body, Line(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self.line = Line(ours_in, ours_out)

    @staticmethod
    def _live(body: Callable[[Line], object], line: Line) -> NoReturn:
        status = 1
        try:
            trace.hook = None
            signal.alarm(int(PATIENCE_S * 2))
            body(line)
            status = 0
        except BaseException as error:
            line.say(b"error: " + repr(error).encode())
        finally:
            os._exit(status)

    def hear(self) -> bytes:
        message = self.line.hear()
        assert not message.startswith(b"error: "), message.decode()
        return message

    def wait_blocked(self) -> None:
        """Wait until its main thread sleeps in a wait for descriptors."""
        wait_for(lambda: thread_facts(self.pid, self.pid).is_waiting, "the second process to block")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it if need be, and wait for its end."""
        self.kill()
        os.waitpid(self.pid, 0)
        self.line.close()


@contextmanager
def sibling(body: Callable[[Line], object]) -> Iterator[Sibling]:
    """A second process for the time of a block."""
    other = Sibling(body)
    try:
        yield other
    finally:
        other.end()
