"""The errno sweep (F-98): each system call that a public call makes fails once, with each errno of its manual page.

What comes of it is a result or a documented `OSError`: it has an errno and a WSA number. Nothing is left, nothing that
was taken is lost, and the next call succeeds. System calls are the functions of `kernel/system.py`, the C methods of
the kernel socket, and what the channel to the registry does.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import pytest

from sharedsock.kernel import system
from sharedsock.kernel.sockets import KernelSocket
from sharedsock.registry import runtime
from tests.sweeps.scenes import Outcome, Stage, plainly, play
from tests.sweeps.table import CALLS

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_RECEIVE: Final = (errno.ECONNREFUSED, errno.ENOMEM, errno.ENOTCONN, errno.ECONNRESET, errno.ETIMEDOUT)
_SEND: Final = (errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM, errno.EPIPE, errno.EMSGSIZE, errno.EPERM)


@dataclass(frozen=True)
class SystemCall:
    """One system call: where its name is looked up, and what its manual page lists."""

    owner: Any
    name: str
    codes: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}"


SYSTEM_CALLS: Final = [
    SystemCall(system, "make_eventfd", (*_NO_ROOM, errno.ENODEV)),
    SystemCall(system, "make_epoll", _NO_ROOM),
    SystemCall(system, "duplicate", (errno.EMFILE,)),
    SystemCall(system, "open_dead_file", _NO_ROOM),
    SystemCall(system, "unsent_bytes", (errno.ENOTTY,)),
    SystemCall(system, "has_unread", (errno.ENOTTY,)),
    SystemCall(KernelSocket, "recv", _RECEIVE),
    SystemCall(KernelSocket, "recv_into", _RECEIVE),
    SystemCall(KernelSocket, "recvfrom", _RECEIVE),
    SystemCall(KernelSocket, "recvfrom_into", _RECEIVE),
    SystemCall(KernelSocket, "recvmsg", _RECEIVE),
    SystemCall(KernelSocket, "recvmsg_into", _RECEIVE),
    SystemCall(KernelSocket, "send", _SEND),
    SystemCall(KernelSocket, "sendto", _SEND),
    SystemCall(KernelSocket, "sendmsg", _SEND),
    SystemCall(KernelSocket, "_accept", (errno.ECONNABORTED, *_NO_ROOM, errno.ENOBUFS, errno.EPERM, errno.EPROTO)),
    SystemCall(KernelSocket, "connect", (errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.ENETUNREACH, errno.ETIMEDOUT)),
    SystemCall(KernelSocket, "bind", (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)),
    SystemCall(KernelSocket, "listen", (errno.EADDRINUSE,)),
    SystemCall(KernelSocket, "shutdown", (errno.ENOTCONN,)),
    SystemCall(KernelSocket, "getsockopt", (errno.ENOPROTOOPT, errno.ENOMEM)),
    SystemCall(KernelSocket, "setsockopt", (errno.ENOPROTOOPT, errno.ENOMEM)),
    SystemCall(KernelSocket, "getsockname", (errno.ENOBUFS,)),
    SystemCall(KernelSocket, "getpeername", (errno.ENOTCONN, errno.ENOBUFS)),
    SystemCall(runtime._Channel, "sendmsg", (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EPIPE)),
    SystemCall(runtime._Channel, "recvmsg", (errno.ENOMEM,)),
    SystemCall(runtime._Channel, "connect", (errno.ECONNREFUSED, errno.ENOENT, errno.EACCES)),
]


class Failing:
    """Stands for a system call; the nth call of it, from 1, raises instead."""

    def __init__(self, real: Callable[..., Any], nth: int, code: int) -> None:
        self._real = real
        self._nth = nth
        self._code = code
        self.calls = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        if self.calls == self._nth:
            raise OSError(self._code, f"{os.strerror(self._code)} (injected)")
        return self._real(*arguments, **keywords)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else lambda *arguments, **keywords: self(instance, *arguments, **keywords)


@contextmanager
def failing(call: SystemCall, nth: int, code: int) -> Iterator[Failing]:
    stand_in = Failing(getattr(call.owner, call.name), nth, code)
    with mock.patch.object(call.owner, call.name, stand_in):
        yield stand_in


def with_failure(call: SystemCall, nth: int, code: int) -> Callable[[Callable[[], Any]], Outcome]:
    def trouble(make: Callable[[], Any]) -> Outcome:
        with failing(call, nth, code):
            try:
                return Outcome(make())
            except OSError as error:
                return Outcome(error=error)

    return trouble


def counted(counts: dict[str, int]) -> Callable[[Callable[[], Any]], Outcome]:
    """Count how often each system call is made."""

    def trouble(make: Callable[[], Any]) -> Outcome:
        with ExitStack() as stack:
            stand_ins = {call.label: stack.enter_context(failing(call, 0, 0)) for call in SYSTEM_CALLS}
            outcome = Outcome(make())
        counts.update({label: stand_in.calls for label, stand_in in stand_ins.items()})
        return outcome

    return trouble


def is_documented(error: Any) -> bool:
    """An OSError with an errno and a WSA number; TLS has its own, the stdlib's."""
    return isinstance(error, ssl.SSLError) or (
        isinstance(error, OSError) and error.errno is not None and getattr(error, "winerror", None) is not None
    )


# Of each call the first few, each with one errno after the other; `-m campaign` has each with each.
SOME = 3
SLOW = ("Registry.", "connect_registry")  # each try starts a process


@pytest.mark.fault("F-98", "F-03", "I6", "I10")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "is_whole", [pytest.param(False, id="some"), pytest.param(True, id="each", marks=pytest.mark.campaign)]
)
@pytest.mark.parametrize("name", CALLS)
def test_each_system_call_fails_once(stage: Stage, name: str, is_whole: bool) -> None:
    play(stage, name, plainly)
    counts: dict[str, int] = {}
    play(stage, name, counted(counts))
    for call in SYSTEM_CALLS:
        made = counts[call.label]
        most = made if is_whole else min(made, 1 if name.startswith(SLOW) else SOME)
        for nth in range(1, most + 1):
            for code in call.codes if is_whole else (call.codes[(nth - 1) % len(call.codes)],):
                try:
                    outcome = play(stage, name, with_failure(call, nth, code))
                    if outcome.error is not None:
                        assert is_documented(outcome.error), repr(outcome.error)
                except Exception as error:
                    error.add_note(f"{call.label} number {nth} raised {errno.errorcode[code]}")
                    raise
