"""What a call had taken when an exception fell upon it is the next one's: nothing received is lost (rule 3).

Source: spec/fault-catalogue.md, I1, rule 3, F-50.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.model import trace
from sharedsock.testing import Actors, Raised, Received
from tests.descriptors import kinds
from tests.kernel.test_shortages import free_numbers


@contextmanager
def interrupted_after_taking(shared: ss.SharedSocket, send: Callable[[], object]) -> Iterator[None]:
    """Interrupt the call in this block when it has taken what `send` sends once the call waits."""

    def hook(point: str, context: Mapping[str, Any]) -> None:
        if point == "op.done" and threading.current_thread() is caller:
            trace.hook = None
            raise KeyboardInterrupt

    def feed() -> None:
        while not shared.pending_operations():
            os.sched_yield()
        send()

    caller = threading.current_thread()
    feeder = threading.Thread(target=feed)
    trace.hook = hook
    feeder.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        trace.hook = None
        feeder.join()


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("call", kinds.RECEIVES)
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "udp4", "unix-dgram"])
def test_what_an_interrupted_receive_had_taken_comes_out_of_the_next(kind: str, call: str) -> None:
    with kinds.pair_of(kind) as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.send(b"tagged")):
            kinds.RECEIVES[call](pair.local)
        pair.peer.send(b"more")
        assert kinds.RECEIVES[call](pair.local) == b"tagged"
        assert kinds.RECEIVES[call](pair.local) == b"more"


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("first", kinds.RECEIVES)
@pytest.mark.parametrize("second", kinds.RECEIVES)
def test_it_does_not_matter_by_which_call_it_was_taken(first: str, second: str) -> None:
    with kinds.pair_of("udp4") as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.send(b"tagged")):
            kinds.RECEIVES[first](pair.local)
        assert kinds.RECEIVES[second](pair.local) == b"tagged"


@pytest.mark.fault("F-50")
def test_a_stream_keeps_the_rest_and_the_order() -> None:
    with kinds.pair_of("tcp4") as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.sendall(b"0123456789")):
            pair.local.recv(100)
        pair.peer.sendall(b"abc")
        assert [pair.local.recv(4) for _ in range(3)] == [b"0123", b"4567", b"89"]
        assert pair.local.recv(4) == b"abc"


@pytest.mark.fault("F-50", "F-54")
def test_a_datagram_is_cut_as_the_kernel_would_and_says_so() -> None:
    with kinds.pair_of("udp4") as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.send(b"0123456789")):
            pair.local.recvfrom(100)
        data, _, flags, address = pair.local.recvmsg(4)
        assert (data, address) == (b"0123", pair.peer.getsockname())
        assert flags & socket.MSG_TRUNC
        pair.peer.send(b"whole")
        assert pair.local.recv(100) == b"whole", "datagrams stay whole: the rest is gone"


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("kind", ["tcp4", "udp4"])
def test_a_peek_leaves_what_was_kept(kind: str) -> None:
    with kinds.pair_of(kind) as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.send(b"tagged")):
            pair.local.recv(100)
        assert pair.local.recv(3, socket.MSG_PEEK) == b"tag"
        assert pair.local.recv(100, socket.MSG_PEEK) == b"tagged"
        assert pair.local.recv(100) == b"tagged"


@pytest.mark.fault("F-50")
@pytest.mark.parametrize("call", ["recv", "recvfrom", "recv_into", "recvmsg"])
def test_an_interrupted_peek_has_taken_nothing(call: str) -> None:
    """Its bytes are still in the kernel: keeping them as well would deliver them twice."""
    peeks: dict[str, Callable[[ss.SharedSocket], object]] = {
        "recv": lambda end: end.recv(100, socket.MSG_PEEK),
        "recvfrom": lambda end: end.recvfrom(100, socket.MSG_PEEK),
        "recv_into": lambda end: end.recv_into(bytearray(100), 0, socket.MSG_PEEK),
        "recvmsg": lambda end: end.recvmsg(100, 0, socket.MSG_PEEK),
    }
    with kinds.pair_of("tcp4") as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.sendall(b"tagged")):
            peeks[call](pair.local)
        assert pair.local.recv(100) == b"tagged"
        pair.local.setblocking(False)
        with pytest.raises(BlockingIOError):
            pair.local.recv(100)


@pytest.mark.fault("F-50")
def test_descriptors_that_came_along_are_kept_with_their_bytes() -> None:
    with kinds.pair_of("unix-stream") as pair:
        reader, writer = os.pipe()
        with interrupted_after_taking(pair.local, lambda: socket.send_fds(pair.peer, [b"with a file"], [writer])):
            pair.local.recvmsg(100, socket.CMSG_SPACE(4))
        data, ancillary, _, _ = pair.local.recvmsg(100, socket.CMSG_SPACE(4))
        assert data == b"with a file"
        number = int.from_bytes(ancillary[0][2], "little")
        os.write(number, b"through it")
        assert os.read(reader, 100) == b"through it"
        for each in (reader, writer, number):
            os.close(each)


@pytest.mark.fault("F-50", "F-41")
@pytest.mark.parametrize("kind", kinds.LISTENER_KINDS)
def test_a_client_an_interrupted_accept_had_taken_comes_out_of_the_next(kind: str) -> None:
    with kinds.listener_of(kind) as listener:
        clients: list[socket.socket] = []
        with interrupted_after_taking(listener, lambda: clients.append(kinds.client_of(listener))):
            listener.accept()
        listener.settimeout(60)
        accepted, _ = listener.accept()
        with accepted, clients[0] as client:
            accepted.sendall(b"not reset")
            assert client.recv(100) == b"not reset"


@pytest.mark.fault("F-50")
def test_what_is_kept_when_its_descriptor_closes_is_gone_with_it_like_unread_input() -> None:
    with kinds.pair_of("tcp4") as pair:
        with interrupted_after_taking(pair.local, lambda: pair.peer.sendall(b"tagged")):
            pair.local.recv(100)
        pair.local.close()
        with pytest.raises(ss.NotASocket):
            pair.local.recv(100)


@pytest.mark.fault("F-03")
@pytest.mark.rule("CLOSE-40")
def test_an_accept_without_a_number_leaves_the_client_in_the_backlog() -> None:
    with kinds.listener_of("tcp4") as listener, kinds.client_of(listener) as client:
        with free_numbers(0), pytest.raises(OSError) as caught:
            listener.accept()
        assert caught.value.winerror == 10024  # type: ignore[attr-defined]  # typeshed: Windows only
        accepted, address = listener.accept()
        with accepted:
            assert address == client.getsockname()


@pytest.mark.fault("F-50")
@pytest.mark.rule("DUP-15")
def test_what_one_process_keeps_is_not_delivered_in_another(actors: Actors) -> None:
    (a,) = actors.start("A")
    with kinds.pair_of("tcp4") as pair:
        a.do("take", pair.local.share(a.pid))
        a.raise_at("op.done", SystemExit, "caller")
        reading = a.thread("caller").recv(100)
        a.wait_until_blocked("caller")
        pair.peer.sendall(b"A's")
        assert isinstance(reading.outcome(), Raised)
        pair.peer.sendall(b"ours")
        assert pair.local.recv(100) == b"ours"
        assert a.thread("caller").recv(100).outcome() == Received(b"A's")
        a.close()
