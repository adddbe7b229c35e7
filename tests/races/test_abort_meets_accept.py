"""Race: an abort against a client that arrives. A client taken is delivered, one not taken is another's (F-41)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sharedsock.kernel import sockets
from sharedsock.kernel.operations import READ
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import BlockingCall

ACCEPT = BlockingCall("_accept", READ, tuple)


@pytest.mark.fault("F-41")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_client_won_as_close_is_called_is_delivered(kind: str, tmp_path: Path, points: stage.Points) -> None:
    """Rule 2: discarding a won accept would reset an established client."""
    listener = kinds.make_listener(kind, tmp_path)
    with kinds.make_client(kind) as client:
        client.settimeout(60)
        address = listener.getsockname()
        kernel = kinds.adopt(listener)
        done = points.hold("op.done")
        blocked = stage.blocked(kernel, ACCEPT)
        client.connect(address)
        done.wait_reached()
        sockets.abort(kernel, "the test")
        done.release()
        number, _ = blocked.outcome()
        kinds.close(kernel)
        with socket.socket(fileno=number) as accepted:
            accepted.sendall(b"welcome")
            assert client.recv(16) == b"welcome"


@pytest.mark.fault("F-41", "F-39")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_client_that_waits_as_close_is_called_is_another_holders(
    kind: str, tmp_path: Path, way: str, points: stage.Points
) -> None:
    """Woken, nothing taken: the client stays in the backlog of the shared listener."""
    listener = kinds.make_listener(kind, tmp_path)
    with listener.dup() as other_holder, kinds.make_client(kind) as client:
        address = listener.getsockname()
        other_holder.settimeout(60)
        client.settimeout(60)
        kernel = kinds.adopt(listener)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, ACCEPT)
        client.connect(address)
        ready.wait_reached()
        sockets.abort(kernel, "the test")
        ready.release()
        blocked.error(OperationAborted)
        kinds.close(kernel)
        accepted, _ = other_holder.accept()
        with accepted:
            accepted.sendall(b"welcome")
            assert client.recv(16) == b"welcome"


@pytest.mark.fault("F-40", "F-41")
@pytest.mark.parametrize("kind", kinds.STREAMS)
def test_a_client_another_process_takes_first_leaves_the_accept_waiting(
    kind: str, tmp_path: Path, way: str, points: stage.Points
) -> None:
    """Rule 5: O_NONBLOCK keeps the accept from sticking in the kernel; it waits on, and an abort still ends it."""
    listener = kinds.make_listener(kind, tmp_path)
    address = listener.getsockname()

    def steal(line: stage.Line) -> None:
        line.hear()
        accepted, _ = listener.accept()
        line.say(b"%d" % os.getpid())
        line.hear()
        accepted.close()

    with stage.sibling(steal) as thief, kinds.make_client(kind) as client:
        kernel = kinds.adopt(listener)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, ACCEPT)
        client.connect(address)
        ready.wait_reached()
        thief.line.say()
        thief.hear()
        ready.release()
        blocked.wait_blocked(kernel)
        sockets.abort(kernel, "the test")
        blocked.error(OperationAborted)
        kinds.close(kernel)
