"""Two actors with the provider, and connections between one of them and this process."""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from sharedsock import spi
from sharedsock.model.errors import wsa_name
from sharedsock.testing.actors import Actor
from sharedsock.testing.company import Actors
from sharedsock.testing.conformance import calls
from sharedsock.testing.conformance.calls import Answer
from sharedsock.testing.conformance.promising import expect
from sharedsock.testing.frames import plain_socket
from sharedsock.testing.pending import ActorDied, Pending

__all__ = ["TIMEOUT_S", "Stage", "is_quiet", "read_all"]

TIMEOUT_S: Final = 5.0
QUICK_S = 1.0
"""How long the kit waits for what should come at once."""


class Stage:
    """Two actors with the provider, and connections between A and this process.

    Attributes:
        quick_s: how long to wait for what should come at once.
    """

    def __init__(self, entry: spi.WSAPROTOCOL_INFO) -> None:
        self.entry = entry
        self.quick_s = QUICK_S
        self._company = Actors("fork", timeout_s=TIMEOUT_S)
        self.a, self.b = self._company.start("A", "B")
        for actor in (self.a, self.b):
            actor.call(calls.begin)

    def end(self, *, is_hung: bool) -> None:
        """End both actors; one that hangs is killed."""
        if is_hung:
            self._company.kill()
        with contextlib.suppress(ActorDied):
            self._company.close()

    @contextlib.contextmanager
    def connection(self, *, small: bool = False) -> Iterator[tuple[int, socket.socket]]:
        """Give A's handle on a connection, and its far end."""
        with plain_socket(_socket.socket().detach()) as door:
            if small:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            door.bind(("127.0.0.1", 0))
            door.listen(1)
            s: int = self.a.call(calls.open_connection, self.entry, door.getsockname())
            far, _ = door.accept()
        with far:
            far.settimeout(TIMEOUT_S)
            yield s, far

    def share(self, s: int) -> int:
        """Give B a descriptor on A's socket."""
        info = self.value(self.a, "WSPDuplicateSocket", s, self.b.pid)
        answer = self.b.call(calls.take, info)
        expect(answer.code == 0, f"B could not make a descriptor from its info: {answer}")
        handle: int = answer.value
        return handle

    def value(self, actor: Actor, name: str, *arguments: Any) -> Any:
        """Make a call that must succeed, and return its value."""
        answer: Answer = actor.call(calls.call, name, *arguments)
        expect(answer.code == 0, f"{name} in {actor.name} failed: {answer}")
        return answer.value

    def fails(self, actor: Actor, code: int, name: str, *arguments: Any) -> None:
        """Make a call that must fail with a code."""
        answer: Answer = actor.call(calls.call, name, *arguments)
        expect(answer.code == code, f"{name} in {actor.name}: {answer}, not {wsa_name(code)}")

    def blocked(self, actor: Actor, function: Callable[..., Answer], *arguments: Any) -> Pending:
        """Have a thread of an actor make a call that blocks."""
        pending = actor.thread("blocked").call(function, *arguments)
        actor.wait_until_blocked("blocked")
        return pending


def is_quiet(far: socket.socket) -> bool:
    """Whether the far end sees nothing at all at this moment, neither data nor FIN nor reset."""
    poll = select.poll()
    poll.register(far, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


def read_all(far: socket.socket, patience_s: float) -> tuple[int, str]:
    """Read to the end; return how many bytes, and how it ended: "FIN", "reset", or "open" where nothing more came."""
    far.settimeout(patience_s)
    count = 0
    try:
        while data := far.recv(1 << 16):
            count += len(data)
    except ConnectionResetError:
        return count, "reset"
    except TimeoutError:
        return count, "open"
    return count, "FIN"
