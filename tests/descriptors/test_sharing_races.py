"""share() and dup() against a close in another thread: a valid ticket or NotASocket, never another socket (I5)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import service, sharing, table
from sharedsock.registry.client import Client
from tests.descriptors.sharers import Pause, Running, cookie_of, hooked, is_open_for, paused, wait_end_of, wait_until

BEFORE_SENDING = "before the descriptor is sent"
WHILE_REGISTERING = "while the socket is registered"


@contextmanager
def held_at(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pause]:
    """Hold the sharing thread at a point, or where it has all it needs and the message is not made yet."""
    names = {BEFORE_SENDING: "issue", WHILE_REGISTERING: "announce"}
    if place not in names:
        with paused(place) as pause:
            yield pause
        return
    pause = Pause()
    real = getattr(Client, names[place])

    def held(*arguments: Any, **named: Any) -> Any:
        pause.hold()
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Client, names[place], held)
        try:
            yield pause
        finally:
            pause.release()


def _open_sockets(count: int) -> ExitStack:
    """Take the numbers that a close may have freed: by sockets, so that a wrong one would pass for the right one."""
    stack = ExitStack()
    for _ in range(count):
        left, right = ss.socketpair()
        stack.enter_context(left)
        stack.enter_context(right)
    return stack


@pytest.mark.fault("F-13")
@pytest.mark.rule("DUP-7")
@pytest.mark.parametrize(
    ("place", "was_shared"),
    [
        (WHILE_REGISTERING, False),
        *((p, was) for p in ("share.begin", BEFORE_SENDING, "share.fd_sent", "share.issued") for was in (False, True)),
    ],
)
@pytest.mark.parametrize("ending", ["close", "abort", "detach"])
def test_a_close_in_the_middle_of_share(
    registry: ss.Registry,
    pair: tuple[ss.SharedSocket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    was_shared: bool,
    ending: str,
) -> None:
    """Up to the sending the close wins: NotASocket. From then on the ticket does, and it is for the same socket."""
    ours, peer = pair
    identity = cookie_of(ours)
    if was_shared:
        ss.revoke(ours.share(os.getpid()))
    end: Callable[[], Any] = getattr(ours, ending)
    with held_at(place, monkeypatch) as pause:
        sharer = Running(ours.share, os.getpid())
        pause.wait_reached()
        if ending == "detach" and (was_shared or place not in ("share.begin", WHILE_REGISTERING)):
            with pytest.raises(OSError, match="share") as caught:
                end()
            assert caught.value.errno == errno.EINVAL
        else:
            number = end()
            if ending == "detach":
                os.close(number)
        with _open_sockets(8):
            pause.release()
            outcome = sharer.outcome()
    if isinstance(outcome, bytes):
        assert place in ("share.fd_sent", "share.issued") or ending == "detach"
        with ss.fromshare(outcome) as redeemed:
            assert cookie_of(redeemed) == identity
            redeemed.sendall(b"the same")
            assert peer.recv(16) == b"the same"
        ours.close()
    else:
        assert isinstance(outcome, ss.NotASocket)
        assert outcome.winerror == 10038
        assert place in ("share.begin", WHILE_REGISTERING, BEFORE_SENDING)
    wait_end_of(peer)
    assert registry.client.sockets() == ()


@pytest.mark.fault("F-13")
@pytest.mark.rule("DUP-7", "DUP-11")
@pytest.mark.parametrize("place", ["before the number is duplicated", "before it is announced", "after"])
def test_a_close_in_the_middle_of_dup(
    pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A twin that is announced in time keeps the socket; one that comes too late is not handed out."""
    ours, peer = pair
    identity = cookie_of(ours)
    ss.revoke(ours.share(os.getpid()))
    pause = Pause("open.registered" if place == "after" else "")
    if place != "after":
        owner: Any = sharing if place.endswith("duplicated") else Client
        name = "_twin_of" if place.endswith("duplicated") else "announce"
        real = getattr(owner, name)

        def hold(*arguments: Any, **named: Any) -> Any:
            pause.hold()
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, hold)
    with hooked(pause):
        duplicating = Running(ours.dup)
        pause.wait_reached()
        ours.close()
        with _open_sockets(8):
            pause.release()
            outcome = duplicating.outcome()
    if place == "after":
        assert isinstance(outcome, ss.SharedSocket)
        assert cookie_of(outcome) == identity
        assert is_open_for(peer)
        assert outcome.references() == 1
        outcome.close()
    else:
        assert isinstance(outcome, ss.NotASocket)
    wait_end_of(peer)


@pytest.mark.fault("F-13")
@pytest.mark.rule("DUP-7")
def test_a_closed_descriptor_is_shared_no_more(pair: tuple[ss.SharedSocket, socket.socket]) -> None:
    """LPWSPDUPLICATESOCKET: WSAENOTSOCK; by every way a ticket can be made."""
    ours, _ = pair
    ours.close()
    for call in (
        lambda: ours.share(os.getpid()),
        lambda: ours.share(None),
        ours.ticket,
        ours.dup,
        lambda: ours.lend(os.getpid()),
        lambda: ours.__reduce_ex__(2),
        ours.references,
        ours.holders,
    ):
        with pytest.raises(ss.NotASocket) as caught:
            call()
        assert caught.value.winerror == 10038
        assert caught.value.errno == errno.EBADF


@pytest.mark.fault("F-13")
def test_two_threads_share_for_the_first_time_at_once(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket]
) -> None:
    """One record, one reference, two tickets."""
    ours, _ = pair
    with paused("share.begin") as pause:
        first = Running(ours.share, os.getpid())
        pause.wait_reached()
        second = Running(ours.share, os.getpid()).outcome()
        pause.release()
        tickets = [first.outcome(), second]
    assert [count for _, count in registry.client.sockets()] == [3]
    for info in tickets:
        ss.fromshare(info).close()
    assert ours.references() == 1


@pytest.mark.fault("F-13", "F-114")
def test_without_a_service_a_collected_descriptor_is_counted_until_the_next_call(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector makes no registry call; whoever shares, redeems or counts next gives the reference back first."""
    monkeypatch.setattr(service, "flush_soon", lambda: None)  # as where no thread was to be had
    ours, _ = pair
    other = ours.dup()
    assert ours.references() == 2
    with pytest.warns(ResourceWarning, match="unclosed"):
        del other
    assert ours._descriptor.client is not None
    assert ours._descriptor.socket_id is not None
    assert ours._descriptor.client.references(ours._descriptor.socket_id) == 2, "the registry has not been told"
    info = ours.share(os.getpid())
    assert ours.references() == 2, "the ticket has come, the collected one has gone"
    assert ss.revoke(info)
    assert not table._abandoned
    wait_until(lambda: ours.references() == 1, "one reference")
