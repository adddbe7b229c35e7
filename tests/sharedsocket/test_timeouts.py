"""Timeouts of each call, and makefile() objects: as in the standard library, per descriptor, with their WSA numbers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import sharedsock as ss
from tests.descriptors import kinds

# -- makefile -------------------------------------------------------------------------------------------------------


def test_a_close_waits_for_makefile_objects_as_in_the_stdlib_and_abort_does_not() -> None:
    with kinds.pair_of("tcp4") as pair:
        reader, writer = pair.local.makefile("rb"), pair.local.makefile("wb")
        pair.local.close()
        pair.peer.sendall(b"line\n")
        assert reader.readline() == b"line\n"
        writer.write(b"answer")
        writer.close()
        assert pair.peer.recv(16) == b"answer"
        assert kinds.is_silent(pair.peer)
        reader.close()
        assert pair.peer.recv(1) == b""
    with kinds.pair_of("tcp4") as pair:
        with pair.local.makefile("rb") as reader:
            pair.local.abort()
            assert pair.peer.recv(1) == b""
            with pytest.raises(ss.NotASocket):
                reader.read(1)


def test_a_makefile_that_would_block_is_none_as_in_the_stdlib() -> None:
    with kinds.pair_of("tcp4") as pair, pair.local.makefile("rb", buffering=0) as raw:
        pair.local.setblocking(False)
        assert raw.read(1) is None


def test_a_makefile_that_timed_out_says_so() -> None:
    with kinds.pair_of("tcp4") as pair, pair.local.makefile("rb") as reader:
        pair.local.settimeout(0.01)
        with pytest.raises(TimeoutError):
            reader.read(1)
        with pytest.raises(OSError, match="timed out"):
            reader.read(1)


# -- timeouts -------------------------------------------------------------------------------------------------------

TIMED: dict[str, Callable[[ss.SharedSocket], object]] = {
    **kinds.RECEIVES,
    "makefile": kinds.READERS["makefile-rb"],
}


@pytest.mark.parametrize("call", TIMED)
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream", "unix-seqpacket"])
def test_a_receive_times_out_after_its_time_and_takes_nothing(kind: str, call: str) -> None:
    with kinds.pair_of(kind) as pair:
        pair.local.settimeout(0.03)
        took: list[float] = []
        with pytest.raises(TimeoutError) as caught:
            kinds.timed(lambda: TIMED[call](pair.local), took)
        assert caught.value.winerror == 10060  # type: ignore[attr-defined]  # typeshed: Windows only
        assert str(caught.value) == "timed out"
        assert 0.03 <= took[0] < 5
        pair.peer.send(b"later")
        assert pair.local.recv(16) == b"later"


@pytest.mark.parametrize("call", ["send", "sendall", "sendmsg", "sendfile"])
def test_a_send_times_out_after_its_time(call: str) -> None:
    with kinds.pair_of("unix-stream", send_buffer=8192) as pair:
        kinds.fill(pair.local)
        pair.local.settimeout(0.03)
        with pytest.raises(TimeoutError):
            kinds.SENDS[call](pair.local, b"xx")


def test_sendall_has_one_time_for_all_of_it() -> None:
    with kinds.pair_of("unix-stream", send_buffer=8192) as pair:
        pair.local.settimeout(0.05)
        took: list[float] = []
        with pytest.raises(TimeoutError):
            kinds.timed(lambda: pair.local.sendall(b"x" * 10_000_000), took)
        assert took[0] < 5


def test_an_accept_times_out() -> None:
    with kinds.listener_of("tcp4") as listener:
        listener.settimeout(0.02)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            listener.accept()
        assert caught.value.winerror == 10035  # type: ignore[attr-defined]  # typeshed: Windows only


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"])
def test_without_waiting_a_receive_is_10035(call: str) -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.local.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            kinds.RECEIVES[call](pair.local)
        assert caught.value.winerror == 10035  # type: ignore[attr-defined]  # typeshed: Windows only


@pytest.mark.parametrize("call", ["send", "sendall", "sendmsg"])
def test_without_waiting_a_send_is_10035(call: str) -> None:
    with kinds.pair_of("unix-stream", send_buffer=8192) as pair:
        kinds.fill(pair.local)
        pair.local.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            kinds.SENDS[call](pair.local, b"x")
        assert caught.value.winerror == 10035  # type: ignore[attr-defined]  # typeshed: Windows only


def test_a_timeout_changed_meanwhile_is_the_next_call_s() -> None:
    with kinds.pair_of("tcp4") as pair:
        pair.local.settimeout(None)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(pair.local.recv(16)))
        reader.start()
        while not pair.local.pending_operations():
            os.sched_yield()
        pair.local.setblocking(False)
        pair.peer.sendall(b"data")
        reader.join(60)
        assert got == [b"data"]
