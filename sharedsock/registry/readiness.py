"""WHICH NUMBERS ARE READY: one level-triggered set of the server's own numbers, asked once per pass of its loop.

An epoll set where there is one: its cost does not grow with the numbers that are silent. Elsewhere poll, which says the
same in the same words. The `selectors` module would do, but its objects cost a pass three times what the system call
does.
"""

from __future__ import annotations

import select
from typing import Final, Protocol

__all__ = ["READ", "WRITE", "Readiness", "make_readiness"]

READ: Final = int(select.POLLIN)
WRITE: Final = int(select.POLLOUT)


class Readiness(Protocol):
    """The numbers that are watched, each for READ or READ | WRITE."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """Wait at most so many seconds, None for ever; return numbers and what each is ready for, errors included."""

    def close(self) -> None: ...


class _Poll:
    """The same by poll(2), which counts milliseconds."""

    def __init__(self) -> None:
        poller = select.poll()
        self.register, self.modify, self.unregister = poller.register, poller.modify, poller.unregister
        self._poll = poller.poll

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        return self._poll(None if timeout is None else timeout * 1000)

    def close(self) -> None:
        return


def make_readiness() -> Readiness:
    """Make an empty set."""
    return select.epoll() if hasattr(select, "epoll") else _Poll()
