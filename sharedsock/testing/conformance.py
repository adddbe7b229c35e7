"""The promises of the Winsock SPI as a kit that runs against anybody's provider, over real processes.

    report = check_provider(MyProvider)              # raises NotConforming, which names each promise that was not kept
    check_provider("my.package:MyProvider", depth=3) # parameters are the provider's own

A layered provider is put on TCP over IPv4; another one is given that entry to serve. Each promise is tried with two
forked actors, A and B, that share a connection whose far end is a plain socket of this process; whatever hangs is
killed, and has failed. What is counted (WPUCloseSocketHandle) is counted by upcalls that the kit gives the provider.

Source: the rules named beside each promise.
"""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from sharedsock import spi
from sharedsock.model.errors import wsa_name
from sharedsock.model.winsock import (
    AF_INET,
    FIONBIO,
    FROM_PROTOCOL_INFO,
    SD_SEND,
    SO_DONTLINGER,
    SO_LINGER,
    SOCK_STREAM,
    SOL_SOCKET,
    WSA_FLAG_OVERLAPPED,
    WSA_IO_PENDING,
    WSA_OPERATION_ABORTED,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTSOCK,
    WSAESHUTDOWN,
    WSAEWOULDBLOCK,
)
from sharedsock.testing.actors import Actor
from sharedsock.testing.company import Actors
from sharedsock.testing.frames import plain_socket
from sharedsock.testing.outcomes import ActorRaised
from sharedsock.testing.pending import ActorDied, ActorTimeout, Pending

__all__ = ["PROMISES", "Failure", "NotConforming", "check_provider"]

_TIMEOUT_S: Final = 5.0
_QUICK_S: Final = 1.0


class Failure(NamedTuple):
    """One promise that was not kept: its name, its rules, and what happened instead."""

    promise: str
    rules: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.promise} ({', '.join(self.rules)}): {self.reason}"


class NotConforming(AssertionError):
    """A provider has broken promises.

    Attributes:
        failures: each of them.
    """

    def __init__(self, provider: str, failures: tuple[Failure, ...]) -> None:
        super().__init__(f"{provider}:\n  " + "\n  ".join(map(str, failures)))
        self.failures = failures


class _Broken(Exception):
    """What a promise raises where it is not kept."""


class _Promise(NamedTuple):
    name: str
    rules: tuple[str, ...]
    check: Callable[[_Stage], None]


PROMISES: Final[list[_Promise]] = []


def _promise(*rules: str) -> Callable[[Callable[[_Stage], None]], Callable[[_Stage], None]]:
    def enter(check: Callable[[_Stage], None]) -> Callable[[_Stage], None]:
        PROMISES.append(_Promise(check.__name__, rules, check))
        return check

    return enter


# -- what the actors do: each of these runs in one ------------------------------------------------------------------


class Answer(NamedTuple):
    """What a call came to: a code, 0 for success, and its value."""

    code: int
    value: Any = None

    def __str__(self) -> str:
        return f"success, {self.value!r}" if not self.code else wsa_name(self.code)


class _Upcalls(spi.UpcallTable):
    """The DLL's upcalls, counting what becomes of each handle."""

    def __init__(self) -> None:
        self.created: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()

    def WPUCreateSocketHandle(self, dwCatalogEntryId: int, lpContext: Any) -> int:
        s = super().WPUCreateSocketHandle(dwCatalogEntryId, lpContext)
        self.created[s] += 1
        return s

    def WPUCloseSocketHandle(self, s: int) -> None:
        self.closed[s] += 1
        super().WPUCloseSocketHandle(s)


_upcalls = _Upcalls()
_completions: list[tuple[int, int]] = []
_pending: list[spi.WSAOVERLAPPED] = []


def _begin() -> None:
    global _upcalls
    _upcalls = _Upcalls()
    spi.WSPStartup(0x0202, _upcalls)


def _open(entry: spi.WSAPROTOCOL_INFO, address: Any) -> int:
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, entry)
    spi.WSPConnect(s, address)
    return s


def _listen(entry: spi.WSAPROTOCOL_INFO) -> tuple[int, Any]:
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, 0, entry)
    spi.WSPBind(s, ("127.0.0.1", 0))
    spi.WSPListen(s, 8)
    return s, spi.WSPGetSockName(s)


def _call(name: str, *arguments: Any) -> Answer:
    try:
        return Answer(0, getattr(spi, name)(*arguments))
    except spi.WSAError as error:
        return Answer(error.winerror)


def _take(info: spi.WSAPROTOCOL_INFO) -> Answer:
    wildcard = (FROM_PROTOCOL_INFO,) * 3
    return _call("WSPSocket", *wildcard, info, 0, WSA_FLAG_OVERLAPPED)


def _recv(s: int, size: int = 64) -> Answer:
    buffer = bytearray(size)
    answer = _call("WSPRecv", s, [buffer])
    return answer if answer.code else Answer(0, bytes(buffer[: answer.value[0]]))


def _fill(s: int) -> int:
    """Send until there is no room, nonblocking from now on; return how many bytes."""
    spi.WSPIoctl(s, FIONBIO, 1)
    sent = 0
    with contextlib.suppress(spi.WSAError):
        while True:
            sent += spi.WSPSend(s, [bytes(1 << 16)])
    return sent


def _counts(s: int) -> tuple[int, int, bool]:
    """Return how often a handle was made and given back by upcall, and whether the DLL still has it."""
    return _upcalls.created[s], _upcalls.closed[s], any(one.handle == s for one in spi.unreturned_handles())


def _begin_receive(s: int) -> int:
    request = spi.WSAOVERLAPPED()
    _pending.append(request)
    _completions.clear()
    return _call(
        "WSPRecv", s, [bytearray(8)], 0, request, lambda error, count, *_: _completions.append((error, count))
    ).code


def _completed() -> list[tuple[int, int]]:
    """Wait alertably for what comes, and a little longer for what should not."""
    spi.SleepEx(int(_QUICK_S * 1000), True)
    spi.SleepEx(20, True)
    return list(_completions)


# -- the stage ------------------------------------------------------------------------------------------------------


class _Stage:
    """Two actors with the provider, and connections between A and this process."""

    def __init__(self, entry: spi.WSAPROTOCOL_INFO) -> None:
        self.entry = entry
        self._company = Actors("fork", timeout_s=_TIMEOUT_S)
        self.a, self.b = self._company.start("A", "B")
        for actor in (self.a, self.b):
            actor.call(_begin)

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
            s: int = self.a.call(_open, self.entry, door.getsockname())
            far, _ = door.accept()
        with far:
            far.settimeout(_TIMEOUT_S)
            yield s, far

    def share(self, s: int) -> int:
        """Give B a descriptor on A's socket."""
        info = self.value(self.a, "WSPDuplicateSocket", s, self.b.pid)
        answer = self.b.call(_take, info)
        expect(answer.code == 0, f"B could not make a descriptor from its info: {answer}")
        handle: int = answer.value
        return handle

    def value(self, actor: Actor, name: str, *arguments: Any) -> Any:
        """Make a call that must succeed, and return its value."""
        answer: Answer = actor.call(_call, name, *arguments)
        expect(answer.code == 0, f"{name} in {actor.name} failed: {answer}")
        return answer.value

    def fails(self, actor: Actor, code: int, name: str, *arguments: Any) -> None:
        """Make a call that must fail with a code."""
        answer: Answer = actor.call(_call, name, *arguments)
        expect(answer.code == code, f"{name} in {actor.name}: {answer}, not {wsa_name(code)}")

    def blocked(self, actor: Actor, function: Callable[..., Answer], *arguments: Any) -> Pending:
        """Have a thread of an actor make a call that blocks."""
        pending = actor.thread("blocked").call(function, *arguments)
        actor.wait_until_blocked("blocked")
        return pending


def expect(holds: bool, reason: str) -> None:
    """Say that a promise is broken unless something holds."""
    if not holds:
        raise _Broken(reason)


def _is_quiet(far: socket.socket) -> bool:
    poll = select.poll()
    poll.register(far, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


def _read_all(far: socket.socket) -> tuple[int, str]:
    """Read to the end; return how many bytes, and how it ended."""
    count = 0
    try:
        while data := far.recv(1 << 16):
            count += len(data)
    except ConnectionResetError:
        return count, "reset"
    except TimeoutError:
        return count, "open"
    return count, "FIN"


def check_provider(provider: type[spi.Provider] | str, **parameters: Any) -> tuple[str, ...]:
    """Try every promise on a provider; return their names.

    Args:
        provider: its class, or the import name of it.
        parameters: its own.

    Raises:
        NotConforming: promises were not kept; each is named, with what happened instead.
    """
    below = next(
        info
        for info in spi.WSCEnumProtocols()
        if (info.iAddressFamily, info.iSocketType) == (AF_INET, SOCK_STREAM) and len(info.ProtocolChain) == 1
    )
    entry = spi.WSCInstallProvider(provider, below, **parameters)
    failures: list[Failure] = []
    stage: _Stage | None = None
    try:
        for promise in PROMISES:
            stage = stage or _Stage(entry)
            try:
                promise.check(stage)
            except (_Broken, ActorTimeout, ActorDied, ActorRaised, OSError) as error:
                reason = str(error).splitlines()[0]
                failures.append(Failure(promise.name, promise.rules, reason))
                # What is left of the promise (a hung thread, an open handle) is no business of the next one.
                stage.end(is_hung=True)
                stage = None
    finally:
        if stage is not None:
            stage.end(is_hung=False)
        spi.WSCDeinstallProvider(entry.dwCatalogEntryId)
    if failures:
        raise NotConforming(str(provider), tuple(failures))
    return tuple(promise.name for promise in PROMISES)


# -- the promises ---------------------------------------------------------------------------------------------------


@_promise("CLOSE-20", "CLOSE-1")
def a_close_ends_the_own_process_s_blocked_call(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        reading = stage.blocked(stage.a, _recv, s)
        stage.value(stage.a, "WSPCloseSocket", s)
        answer: Answer = reading.value(_QUICK_S)
        expect(answer.code == WSAEINTR, f"the blocked receive came to {answer}, not WSAEINTR")


@_promise("CLOSE-28", "REF-2", "DUP-18")
def a_close_leaves_the_other_process_and_the_peer_alone(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        reading = stage.blocked(stage.b, _recv, theirs)
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(not reading.is_done(), "B's receive has ended with A's close")
        expect(_is_quiet(far), "the peer has noticed A's close")
        far.sendall(b"still here")
        answer: Answer = reading.value(_QUICK_S)
        expect(answer == (0, b"still here"), f"B's receive came to {answer}")
        stage.value(stage.b, "WSPCloseSocket", theirs)


@_promise("CLOSE-2", "CLOSE-3")
def a_closed_handle_is_10038_from_every_call(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        stage.value(stage.a, "WSPCloseSocket", s)
        for name, arguments in (
            ("WSPSend", ([b"x"],)),
            ("WSPRecv", ([bytearray(1)],)),
            ("WSPGetSockName", ()),
            ("WSPShutdown", (SD_SEND,)),
            ("WSPIoctl", (FIONBIO, 1)),
            ("WSPCloseSocket", ()),
        ):
            stage.fails(stage.a, WSAENOTSOCK, name, s, *arguments)


@_promise("CLOSE-4")
def no_handle_is_given_out_twice(stage: _Stage) -> None:
    seen: set[int] = set()
    for _ in range(8):
        s = stage.value(stage.a, "WSPSocket", AF_INET, SOCK_STREAM, 0, stage.entry)
        expect(s not in seen, f"handle {s} was given out again")
        seen.add(s)
        stage.value(stage.a, "WSPCloseSocket", s)


@_promise("REF-1", "REF-5", "LINGER-2")
def the_connection_ends_with_the_last_close_in_whatever_order(stage: _Stage) -> None:
    for is_source_first in (True, False):
        with stage.connection() as (s, far):
            theirs = stage.share(s)
            closers = [(stage.a, s), (stage.b, theirs)]
            for actor, handle in closers if is_source_first else reversed(closers):
                expect(_is_quiet(far), "the peer has noticed a close that was not the last")
                stage.value(actor, "WSPCloseSocket", handle)
            _, end = _read_all_soon(far)
            expect(end == "FIN", f"after the last close the connection is {end}")


def _read_all_soon(far: socket.socket) -> tuple[int, str]:
    far.settimeout(_QUICK_S)
    return _read_all(far)


@_promise("DUP-12")
def an_info_is_a_reference_from_the_moment_it_is_made(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        info = stage.value(stage.a, "WSPDuplicateSocket", s, stage.b.pid)
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(_is_quiet(far), "the connection has ended while an info was under way")
        answer: Answer = stage.b.call(_take, info)
        expect(answer.code == 0, f"B could not use its info after A's close: {answer}")
        stage.value(stage.b, "WSPSend", answer.value, [b"x"])
        expect(far.recv(1) == b"x", "B's descriptor is of another socket")
        stage.value(stage.b, "WSPCloseSocket", answer.value)


@_promise("DUP-3", "DUP-5")
def an_info_is_good_once_and_for_its_target_only(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        info = stage.value(stage.a, "WSPDuplicateSocket", s, stage.b.pid)
        answer: Answer = stage.a.call(_take, info)
        expect(answer.code == WSAEINVAL, f"a stranger's use of an info came to {answer}, not WSAEINVAL")
        first: Answer = stage.b.call(_take, info)
        expect(first.code == 0, f"a refused use has used the info up: {first}")
        again: Answer = stage.b.call(_take, info)
        expect(again.code == WSAEINVAL, f"the second use of an info came to {again}, not WSAEINVAL")
        stage.value(stage.b, "WSPCloseSocket", first.value)
        stage.value(stage.a, "WSPCloseSocket", s)


@_promise("DUP-15", "CLOSE-20")
def what_one_descriptor_has_not_received_is_there_for_the_other(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        far.sendall(b"abcdef")
        answer: Answer = stage.a.call(_recv, s, 3)
        expect(answer == (0, b"abc"), f"A's receive of 3 bytes came to {answer}")
        stage.value(stage.a, "WSPCloseSocket", s)
        reading = stage.b.thread("blocked").call(_recv, theirs, 64)
        answer = reading.value(_QUICK_S)
        expect(answer == (0, b"def"), f"B received {answer}, not the rest")
        stage.value(stage.b, "WSPCloseSocket", theirs)


@_promise("DUP-17")
def the_blocking_mode_is_common(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPIoctl", s, FIONBIO, 1)
        reading = stage.b.thread("blocked").call(_recv, theirs)
        answer: Answer = reading.value(_QUICK_S)
        expect(answer.code == WSAEWOULDBLOCK, f"after FIONBIO in A, B's receive came to {answer}")
        for actor, handle in ((stage.a, s), (stage.b, theirs)):
            stage.value(actor, "WSPCloseSocket", handle)


@_promise("DUP-18", "SHUT-1")
def a_shutdown_is_common(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPShutdown", s, SD_SEND)
        expect(far.recv(1) == b"", "the peer got no FIN")
        stage.fails(stage.b, WSAESHUTDOWN, "WSPSend", theirs, [b"x"])
        for actor, handle in ((stage.a, s), (stage.b, theirs)):
            stage.value(actor, "WSPCloseSocket", handle)


@_promise("LINGER-2", "REF-4")
def a_graceful_close_delivers_what_is_queued(stage: _Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(_fill, s)
        stage.value(stage.a, "WSPCloseSocket", s)
        count, end = _read_all_soon(far)
        expect((count, end) == (queued, "FIN"), f"of {queued} queued bytes {count} arrived, then {end}")


@_promise("LINGER-3", "LINGER-13")
def linger_0_resets_at_the_last_close_and_only_there(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, 0))
        stage.value(stage.a, "WSPCloseSocket", s)
        expect(_is_quiet(far), "LINGER(0) has acted on a close that was not the last")
        stage.value(stage.b, "WSPCloseSocket", theirs)
        _, end = _read_all_soon(far)
        expect(end == "reset", f"after the last close with LINGER(0) the connection is {end}")


@_promise("LINGER-4", "LINGER-5", "REF-6", "NONIFS-11")
def a_refused_close_has_changed_nothing(stage: _Stage) -> None:
    with stage.connection(small=True) as (s, far):
        queued = stage.a.call(_fill, s)
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_LINGER, spi.LINGER(1, 30))
        stage.fails(stage.a, WSAEWOULDBLOCK, "WSPCloseSocket", s)
        _, closed, _ = stage.a.call(_counts, s)
        expect(not closed, "WPUCloseSocketHandle was called on a refused close")
        stage.fails(stage.a, WSAEWOULDBLOCK, "WSPRecv", s, [bytearray(1)])
        stage.value(stage.a, "WSPSetSockOpt", s, SOL_SOCKET, SO_DONTLINGER, True)
        stage.value(stage.a, "WSPCloseSocket", s)
        count, end = _read_all_soon(far)
        expect((count, end) == (queued, "FIN"), f"of {queued} queued bytes {count} arrived, then {end}")


@_promise("NONIFS-5", "NONIFS-10")
def each_handle_is_given_back_exactly_once(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        theirs = stage.share(s)
        for actor, handle, when in ((stage.a, s, "not the last"), (stage.b, theirs, "the last")):
            stage.value(actor, "WSPCloseSocket", handle)
            created, closed, is_kept = actor.call(_counts, handle)
            expect(closed == created, f"WPUCloseSocketHandle was called {closed} times at a close that was {when}")
            expect(not is_kept, f"the handle was not given back at a close that was {when}")


@_promise("CLOSE-22", "CLOSE-23", "OVERLAP-13")
def a_close_completes_a_request_exactly_once_with_995(stage: _Stage) -> None:
    with stage.connection() as (s, _far):
        code = stage.a.call(_begin_receive, s)
        expect(code == WSA_IO_PENDING, f"beginning a receive came to {wsa_name(code)}")
        stage.value(stage.a, "WSPCloseSocket", s)
        completions = stage.a.call(_completed)
        expect(completions == [(WSA_OPERATION_ABORTED, 0)], f"its completions are {completions}")


@_promise("OVERLAP-2", "OVERLAP-7")
def a_request_completes_exactly_once_with_its_bytes(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        code = stage.a.call(_begin_receive, s)
        expect(code == WSA_IO_PENDING, f"beginning a receive came to {wsa_name(code)}")
        far.sendall(b"abc")
        completions = stage.a.call(_completed)
        expect(completions == [(0, 3)], f"its completions are {completions}")
        stage.value(stage.a, "WSPCloseSocket", s)


@_promise("CLOSE-31", "CLOSE-43")
def a_closed_listener_takes_no_client_from_the_other_process(stage: _Stage) -> None:
    listener, address = stage.a.call(_listen, stage.entry)
    theirs = stage.share(listener)
    mine = stage.blocked(stage.a, _call, "WSPAccept", listener)
    other = stage.blocked(stage.b, _call, "WSPAccept", theirs)
    stage.value(stage.a, "WSPCloseSocket", listener)
    answer: Answer = mine.value(_QUICK_S)
    expect(answer.code == WSAEINTR, f"A's accept came to {answer}, not WSAEINTR")
    with plain_socket(_socket.socket().detach()) as client:
        client.settimeout(_TIMEOUT_S)
        client.connect(address)
        answer = other.value(_QUICK_S)
        expect(answer.code == 0, f"B's accept came to {answer}")
        for handle in (answer.value[0], theirs):
            stage.value(stage.b, "WSPCloseSocket", handle)


@_promise("CLEANUP-3", "CLEANUP-4")
def the_last_cleanup_ends_this_process_s_references_only(stage: _Stage) -> None:
    with stage.connection() as (s, far):
        theirs = stage.share(s)
        stage.value(stage.a, "WSPCleanup")
        far.sendall(b"x")
        reading = stage.b.thread("blocked").call(_recv, theirs)
        answer: Answer = reading.value(_QUICK_S)
        expect(answer == (0, b"x"), f"after A's cleanup B's receive came to {answer}")
        stage.a.call(_begin)
        stage.fails(stage.a, WSAENOTSOCK, "WSPSend", s, [b"x"])
        stage.value(stage.b, "WSPCloseSocket", theirs)
        _, end = _read_all_soon(far)
        expect(end == "FIN", f"after the last close the connection is {end}: A's cleanup has kept a reference")
