"""Race: a close, and an operation of several sends that has queued some of its bytes and waits for nothing just then.

It is aborted and says how many; to refuse it would say that it had sent nothing, and lose count of the stream (I1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import transfer
from tests.descriptors import kinds, sharers

BIG = 1 << 20


def _sendfile(shared: ss.SharedSocket, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        shared.sendfile(file)


@pytest.mark.fault("F-43", "I1")
@pytest.mark.rule("CLOSE-32")
@pytest.mark.parametrize(
    ("send", "nth"),
    [(ss.SharedSocket.sendall, 1), (ss.SharedSocket.sendall, 2), (_sendfile, 2)],
    ids=["sendall, first wait", "sendall, second", "sendfile, second"],
)
def test_a_close_as_the_next_send_begins(send: Callable[[ss.SharedSocket, bytes], None], nth: int) -> None:
    with kinds.pair_of("unix-stream", send_buffer=1 << 14) as pair:
        passing = nth
        got = bytearray()

        def close(point: str, context: Mapping[str, Any]) -> None:
            nonlocal passing
            if point == "op.enter":
                passing -= 1
                if not passing:
                    pair.local.close()
            elif point == "op.waiting":
                got.extend(pair.peer.recv(BIG))  # makes room

        with sharers.hooked(close), pytest.raises(ss.OperationAborted) as ended:
            send(pair.local, kinds.payload(BIG))
        check(ended.value, bytes(got) + kinds.receive_all(pair.peer))


def check(error: ss.OperationAborted, got: bytes) -> None:
    assert 0 < error.bytes_transferred < BIG
    assert got == kinds.payload(BIG)[: error.bytes_transferred]


@pytest.mark.fault("F-43", "I1")
@pytest.mark.rule("CLOSE-32")
def test_a_close_before_sendall_looks_where_to_send_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transfer.require_kernel

    def closing_first(descriptor: Any) -> Any:
        pair.local.close()
        return real(descriptor)

    with kinds.pair_of("unix-stream", send_buffer=1 << 14) as pair:
        monkeypatch.setattr(transfer, "require_kernel", closing_first)
        with pytest.raises(ss.OperationAborted) as ended:
            pair.local.sendall(kinds.payload(BIG))
        check(ended.value, kinds.receive_all(pair.peer))
