"""A stream received under interrupts: one at each place where a signal is seen in our code, and not a byte is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import CodeType
from typing import Final

from sharedsock.kernel.sockets import KernelSocket
from tests.kernel.test_interrupts import STREAM
from tests.sweeps.interrupting import Interrupter, Places, at_signals

__all__ = ["come_out_whole"]

_LONG_STREAM: Final = STREAM * 4


def _in_the_package(code: CodeType) -> Places | None:
    """Where a signal is seen in our own code."""
    return at_signals(code) if f"{os.sep}sharedsock{os.sep}" in code.co_filename else None


def come_out_whole(
    kernel: KernelSocket,
    size: int,
    send: Callable[[bytes], object],
    receive: Callable[[], bytes],
    prepare: Callable[[], object],
    is_idle: Callable[[], bool],
) -> list[str]:
    """Interrupt a receive of `size` bytes at its first place, the next one at its second …; return the places.

    Args:
        prepare: before each receive, whose data has been sent already.
        is_idle: whether nobody is inside any more.
    """
    received = bytearray()
    struck: list[str] = []
    sent = 0

    def take() -> None:
        received.extend(receive())

    while True:
        send(_LONG_STREAM[sent : sent + size])
        sent += size
        prepare()
        interrupt = Interrupter(len(struck), _in_the_package)
        returned = not interrupt.run(take)[1]
        assert returned != interrupt.has_struck
        assert is_idle(), interrupt.where
        if len(received) < sent:  # nothing had been taken: it is all still there
            received += receive()
        assert (bytes(received), kernel.kept) == (_LONG_STREAM[:sent], []), interrupt.where
        if returned:
            return struck
        struck.append(interrupt.where)
