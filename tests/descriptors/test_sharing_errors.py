"""What can go wrong when the descriptor is sent to custody: a bounded retry, a clear error, nothing left behind."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import sharedsock as ss
from sharedsock.model.errors import RegistryGone, from_errno
from sharedsock.registry.client import Client
from tests.descriptors.sharers import cookie_of

TRANSIENT = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
Ancillary = list[tuple[int, int, bytes]]


@pytest.fixture
def ours(registry: ss.Registry) -> Iterator[ss.SharedSocket]:
    left, peer = socket.socketpair()
    with peer, ss.adopt(left) as shared:
        ss.fromshare(shared.share(os.getpid())).close()
        yield shared


class Sending:
    """Stands in the way of this process's sending of descriptors to its registry."""

    def __init__(self, registry: ss.Registry) -> None:
        channel = registry.client._session.channel
        assert channel is not None
        self._socket = cast("Any", channel._socket)
        self._real = self._socket.sendmsg
        self.tries = 0
        self._failures: list[int] = []
        self._alter: Callable[[Ancillary], Ancillary] = list
        self._socket.sendmsg = self

    def fail(self, *errnos: int) -> None:
        self._failures.extend(errnos)

    def change(self, change: Callable[[Ancillary], Ancillary]) -> None:
        self._alter = change

    def __call__(self, buffers: Any, ancillary: Any = (), *rest: Any) -> int:
        if not ancillary:
            return int(self._real(buffers, ancillary, *rest))
        self.tries += 1
        if self._failures:
            raise from_errno(self._failures.pop(0), "injected")
        return int(self._real(buffers, self._alter(list(ancillary)), *rest))

    def stop(self) -> None:
        del self._socket.sendmsg


@pytest.fixture
def sending(registry: ss.Registry, ours: ss.SharedSocket) -> Iterator[Sending]:
    way = Sending(registry)
    yield way
    way.stop()


def is_redeemable(info: bytes, ours: ss.SharedSocket) -> bool:
    with ss.fromshare(info) as redeemed:
        return cookie_of(redeemed) == cookie_of(ours)


@pytest.mark.fault("F-14")
@pytest.mark.parametrize("code", TRANSIENT)
def test_a_passing_want_of_room_is_waited_for(ours: ss.SharedSocket, sending: Sending, code: int) -> None:
    """unix(7): too many descriptors of this user are in flight; they arrive, and then there is room."""
    sending.fail(code, code, code)
    assert is_redeemable(ours.share(os.getpid()), ours)
    assert sending.tries == 4
    assert ours.references() == 1


@pytest.mark.fault("F-14")
@pytest.mark.parametrize("code", TRANSIENT[1:])
def test_a_lasting_want_of_room_is_an_error_in_time(
    registry: ss.Registry,
    ours: ss.SharedSocket,
    sending: Sending,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    bounds: Any,
) -> None:
    """Within T_rpc, with its errno; no ticket, and the next share() works."""
    monkeypatch.setattr(registry.client, "rpc_timeout_s", 0.1)
    began_s = time.monotonic()
    sending.fail(*[code] * 10_000)
    with pytest.raises(OSError, match="no room") as caught:
        ours.share(os.getpid())
    assert caught.value.errno == code
    bounds.check("T_rpc", time.monotonic() - began_s)
    assert ours.references() == 1
    sending._failures.clear()
    assert is_redeemable(ours.share(os.getpid()), ours)


@pytest.mark.fault("F-14")
@pytest.mark.parametrize("code", [errno.EPIPE, errno.ECONNRESET])
def test_a_channel_found_broken_is_made_anew(code: int) -> None:
    """Nothing was sent, so nothing can have been done: the request goes over a new channel."""
    with ss.Registry() as registry, ss.SharedSocket() as ours:
        ss.revoke(ours.share(os.getpid()))
        incarnation = registry.client.incarnation
        Sending(registry).fail(code)
        assert is_redeemable(ours.share(os.getpid()), ours)
        assert ours.references() == 1
        assert registry.client.incarnation == incarnation


@pytest.mark.fault("F-14")
def test_any_other_errno_reaches_the_caller(ours: ss.SharedSocket, sending: Sending) -> None:
    """With its WSA number, and without a ticket."""
    sending.fail(errno.EACCES)
    with pytest.raises(PermissionError) as caught:
        ours.share(os.getpid())
    assert caught.value.winerror == 10013  # type: ignore[attr-defined]  # typeshed: Windows only
    assert ours.references() == 1


def _sent(count: int, number: int | None = None) -> Callable[[Ancillary], Ancillary]:
    """Send the descriptor so many times, or another number instead."""

    def change(ancillary: Ancillary) -> Ancillary:
        level, kind, data = ancillary[0]
        return [(level, kind, (data if number is None else struct.pack("i", number)) * count)] if count else []

    return change


@pytest.mark.fault("F-15", "F-34", "S-13")
@pytest.mark.parametrize("what", ["none", "two", "250", "a file", "another socket"])
def test_a_wrong_number_of_descriptors_or_a_wrong_one_is_refused(
    registry: ss.Registry, ours: ss.SharedSocket, sending: Sending, what: str
) -> None:
    """Exactly the announced socket, once: everything else is closed and refused, and the registry serves on."""
    with open(os.devnull) as null, socket.socket() as other:
        changes = {
            "none": _sent(0),
            "two": _sent(2),
            "250": _sent(250),
            "a file": _sent(1, null.fileno()),
            "another socket": _sent(1, other.fileno()),
        }
        sending.change(changes[what])
        before = os.listdir(f"/proc/{registry.client.pid}/fd")
        with pytest.raises(OSError) as caught:
            ours.share(os.getpid())
        assert caught.value.errno == errno.EINVAL
        assert not isinstance(caught.value, ss.TicketError)
        assert ours.references() == 1
        assert os.listdir(f"/proc/{registry.client.pid}/fd") == before
    sending.change(list)
    assert is_redeemable(ours.share(os.getpid()), ours)


@pytest.mark.fault("F-78", "F-04")
@pytest.mark.parametrize("is_heard", [True, False], ids=["counted", "not counted"])
def test_a_first_share_that_hears_nothing_can_be_tried_again(
    registry: ss.Registry, monkeypatch: pytest.MonkeyPatch, is_heard: bool
) -> None:
    """Counted or not, nobody knows: the next share() counts it, once, and what follows does not take that back."""
    real = Client.announce

    def announce(*arguments: Any, **keywords: Any) -> int:
        if is_heard:
            real(*arguments, **keywords)
        raise RegistryGone("did not answer")

    left, peer = socket.socketpair()
    with peer, ss.adopt(left) as shared, ss.SharedSocket() as other:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "announce", announce)
            for _ in range(2):
                with pytest.raises(RegistryGone):
                    shared.share(os.getpid())
        assert is_redeemable(shared.share(os.getpid()), shared)
        assert ss.revoke(other.share(os.getpid()))
        assert shared.references() == 1
        assert is_redeemable(shared.share(os.getpid()), shared)


@pytest.mark.fault("F-78")
def test_a_first_share_that_hears_nothing_and_is_given_up_leaves_nothing(
    registry: ss.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, unheard, closed: the next call of this process that reaches the registry gives the reference back."""
    real = Client.announce

    def announce(*arguments: Any, **keywords: Any) -> int:
        real(*arguments, **keywords)
        raise RegistryGone("did not answer")

    left, peer = socket.socketpair()
    with peer, ss.adopt(left) as shared, ss.SharedSocket() as other:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "announce", announce)
            with pytest.raises(RegistryGone):
                shared.share(os.getpid())
        shared.close()
        assert peer.recv(1) == b""
        assert ss.revoke(other.share(os.getpid()))
        assert [count for _, count in registry.client.sockets()] == [1]
