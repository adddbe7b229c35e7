"""SD_RECEIVE on a socket without connections ends what is pending, as on a stream: Linux alone would let it wait on.

Source: LPWSPSHUTDOWN; DUP-18: shutdown is felt by every sharer.
"""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from sharedsock.testing import Actors, Raised
from tests.descriptors import kinds

DATAGRAMS = ("udp4", "udp6", "unix-dgram")


@pytest.mark.rule("SHUT-2")
@pytest.mark.parametrize("call", kinds.RECEIVES)
@pytest.mark.parametrize("kind", DATAGRAMS)
def test_a_pending_datagram_receive_ends_with_10058(kind: str, call: str) -> None:
    with kinds.pair_of(kind) as pair:
        errors: list[OSError] = []

        def receive() -> None:
            try:
                kinds.RECEIVES[call](pair.local)
            except OSError as error:
                errors.append(error)

        reader = threading.Thread(target=receive)
        reader.start()
        while not pair.local.pending_operations():
            os.sched_yield()
        pair.local.shutdown(socket.SHUT_RD)
        reader.join(60)
        assert not reader.is_alive()
        assert [getattr(error, "winerror", None) for error in errors] == [10058]


@pytest.mark.rule("DUP-18", "SHUT-2")
@pytest.mark.parametrize("kind", DATAGRAMS)
def test_so_does_one_in_another_process(kind: str, actors: Actors) -> None:
    (a,) = actors.start("A")
    with kinds.pair_of(kind) as pair:
        a.do("take", pair.local.share(a.pid))
        reading = a.thread("reader").recv(16)
        a.wait_until_blocked("reader")
        pair.local.shutdown(socket.SHUT_RD)
        assert reading.outcome() == Raised("BrokenPipeError", 10058, errno.ESHUTDOWN)
        a.close()
