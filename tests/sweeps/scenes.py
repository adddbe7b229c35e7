"""What a sweep needs of one public call: a scene. It sets the stage, gives out the call and judges what became of it.

A scene is a generator function that yields the call once:

    @scene("SharedSocket.recv")
    def recv(stage):
        ours, peer = stage.connected()
        peer.sendall(TAGGED)
        outcome = yield lambda: ours.recv(64)       # the sweep makes the call, troubled or not
        received = outcome.value_or(lambda: ours.recv(64))
        assert received + stage.rest_of(ours) == TAGGED

What a call that failed has to leave behind is the same everywhere: the next call succeeds (from another thread, which
a lock left behind would hold up), and nothing that was taken is lost. The stage closes what it has opened, and then
nothing may be left: `play` compares files, owned numbers and the registry's count.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, TypeAlias, TypeVar

import sharedsock as ss
from sharedsock.descriptors import overlapped, service, table
from sharedsock.kernel import numbers
from tests.descriptors.sharers import Running, wait_until

__all__ = ["SCENES", "TAGGED", "Outcome", "Scene", "Stage", "belongings", "play", "scene"]

PATIENCE_S: Final = 60.0
TAGGED: Final = bytes(range(256))

T = TypeVar("T")
_imported_at_first_use = overlapped  # which is no part of the sweeps


class Outcome:
    """What a call came to: a value, or an error."""

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error
        _forget_frames(error)

    @property
    def was_interrupted(self) -> bool:
        return isinstance(self.error, KeyboardInterrupt)

    def value_or(self, again: Callable[[], T]) -> T:
        """Return the value; where the call has failed, what it gives untroubled, in another thread."""
        return self.value if self.error is None else untroubled(again)


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and of what led to it: their frames hold what the call had in hand."""
    met = set()
    left = [error]
    while left:
        error = left.pop()
        if error is not None and id(error) not in met:
            met.add(id(error))
            error.__traceback__ = None
            left += error.__cause__, error.__context__


def untroubled(call: Callable[[], T]) -> T:
    """Make a call in another thread; return what it returns, or raise what it raises."""
    running = Running(call)
    running.outcome()
    if running.error is not None:
        raise running.error
    return running.value  # type: ignore[no-any-return]


class Stage:
    """Opens what a scene plays with, and closes it when the scene is over."""

    def __init__(self, registry: ss.Registry) -> None:
        self.registry = registry
        self._props = contextlib.ExitStack()

    def has(self, prop: Any) -> Any:
        """Close a socket, a selector, a file … at the end of the scene; return it."""
        self._props.callback(prop.close)
        return prop

    def each(self, props: Iterable[Any]) -> tuple[Any, ...]:
        """As `has`, for several."""
        return tuple(map(self.has, props))

    def connected(self, kind: str = "unix", timeout_s: float | None = PATIENCE_S) -> tuple[Any, socket.socket]:
        """Return a connected SharedSocket and its peer, a plain socket."""
        if kind == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                left = socket.create_connection(listener.getsockname())
                right = listener.accept()[0]
        else:
            left, right = socket.socketpair(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
        with left:
            ours = self.has(ss.adopt(left))
        ours.settimeout(timeout_s)
        peer = self.has(right)
        peer.settimeout(PATIENCE_S)
        return ours, peer

    def shared(self, kind: str = "unix") -> tuple[Any, Any]:
        """Return two descriptors of this process on one socket."""
        ours, _ = self.connected(kind)
        return ours, self.has(ours.dup())

    def listener(self) -> Any:
        """Return a listening TCP SharedSocket."""
        return self.has(ss.create_server(("127.0.0.1", 0)))

    def client_of(self, listener: Any) -> socket.socket:
        """Connect a plain client to a listener."""
        client: socket.socket = self.has(socket.create_connection(listener.getsockname()))
        client.settimeout(PATIENCE_S)
        return client

    def rest_of(self, ours: Any, size: int = 1 << 16) -> bytes:
        """Return what can be received at once, and no more."""
        found = bytearray()
        ours.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while data := untroubled(lambda: ours.recv(size)):
                found += data
        return bytes(found)

    def end(self) -> None:
        """Close everything."""
        self._props.close()


Scene: TypeAlias = Callable[[Stage], Generator[Callable[[], Any], Outcome, None]]

SCENES: Final[dict[str, Scene]] = {}
"""By the name of the call, with a slash and what is special where a call has several scenes."""


def scene(name: str) -> Callable[[Scene], Scene]:
    """Enter a scene under the name of its call."""

    def enter(play: Scene) -> Scene:
        assert name not in SCENES, f"{name} has a scene already"
        SCENES[name] = play
        return play

    return enter


def sees_end(peer: socket.socket) -> bool:
    """Whether the peer is at the end of the stream, or sees it within a bound."""
    peer.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(1 << 16):
            pass
    return True


def is_silent(peer: socket.socket) -> bool:
    """Whether a peer sees neither bytes nor an end at this moment."""
    poll = select.poll()
    poll.register(peer, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


def open_files() -> Counter[str]:
    """Count this process's open files by what they refer to."""
    files: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            files[os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]] += 1
    return files


def belongings(stage: Stage) -> dict[str, Any]:
    """Return what this process has, and what the registry counts for it, once no thread of ours is busy."""

    def is_at_rest() -> bool:
        # Each time anew: a collection may be under way in the service, whose finds are held until its destructors end.
        table.flush_abandoned()
        stage.registry.client.rest()  # what it keeps as long as its channel
        return service.NAME not in {thread.name for thread in threading.enumerate()}

    wait_until(is_at_rest, "the service to end")
    return {
        "counted": stage.registry.client.sockets(),
        "files": open_files(),
        "owned": numbers.owned(),
        "descriptors": len(table.open_descriptors()),
    }


def play(stage: Stage, name: str, trouble: Callable[[Callable[[], Any]], Outcome]) -> Outcome:
    """Play one scene, with the call made by `trouble`; return the outcome.

    Raises:
        AssertionError: something was lost, or is left over.
    """
    before = belongings(stage)
    acts = SCENES[name](stage)
    try:
        outcome = trouble(next(acts))
        assert not numbers.gate._is_owned(), "a lock is left"  # type: ignore[attr-defined]  # no public question
        try:
            acts.send(outcome)
        except StopIteration:
            pass
        else:
            raise AssertionError(f"{name} yields a second call")
    finally:
        acts.close()
        stage.end()
    after = belongings(stage)
    if after != before:
        del acts
        gc.collect()  # an error met on the way and its traceback are a cycle
        after = belongings(stage)
        left = {what: (before[what], after[what]) for what in before if before[what] != after[what]}
        assert not left, f"left over, before and after: {left}"
    return outcome


def plainly(call: Callable[[], Any]) -> Outcome:
    """Make a call without trouble."""
    return Outcome(call())
