"""Race: poll said ready, then another process took it. The call waits on, and can still be aborted (F-40)."""

from __future__ import annotations

import socket

import pytest

from sharedsock.kernel import sockets
from sharedsock.kernel.system import DONTWAIT
from sharedsock.model.errors import OperationAborted
from tests.kernel import kinds, stage
from tests.kernel.kinds import RECEIVES, SENDS, Pair


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("call", RECEIVES, ids=lambda call: call.method)
@pytest.mark.parametrize("ending", ["abort", "more data"])
def test_stolen_data(pair: Pair, call: kinds.BlockingCall, ending: str, points: stage.Points) -> None:
    """Data and datagrams: the other process has them, we wait for the next or for the abort."""

    def steal(line: stage.Line) -> None:
        line.hear()
        line.say(pair.local.recv(64))
        line.hear()

    with stage.sibling(steal) as thief:
        kernel = kinds.adopt(pair.local)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, call)
        pair.peer.send(b"contested")
        ready.wait_reached()
        thief.line.say()
        assert thief.hear() == b"contested"
        ready.release()
        blocked.wait_blocked(kernel)
        if ending == "abort":
            sockets.abort(kernel, "the test")
            blocked.error(OperationAborted)
        else:
            pair.peer.send(b"next")
            result = blocked.outcome()
            assert (result[0] if isinstance(result, tuple) else result) in (b"next", 4)
        kinds.close(kernel)


@pytest.mark.fault("F-40")
@pytest.mark.parametrize("call", SENDS, ids=lambda call: call.method)
@pytest.mark.parametrize("kind", ["tcp4", "unix-stream"])
def test_stolen_send_space(pair: Pair, call: kinds.BlockingCall, way: str, points: stage.Points) -> None:
    """The peer makes room, another process fills it, we wait on."""

    def steal(line: stage.Line) -> None:
        line.hear()
        sent = 0
        try:
            while True:
                sent += pair.local.send(b"t" * 65536, DONTWAIT)
        except BlockingIOError:
            pass
        line.say(b"%d" % sent)
        line.hear()

    with stage.sibling(steal) as thief:
        kernel = kinds.adopt(pair.local)
        filled = kinds.fill(kernel)
        ready = points.hold("op.ready")
        blocked = stage.blocked(kernel, call)
        pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        kinds.drain(pair.peer, filled)
        ready.wait_reached()
        thief.line.say()
        stolen = int(thief.hear())
        assert stolen > 0
        kinds.fill(kernel)  # what the thief's last, larger piece did not fit into
        ready.release()
        blocked.wait_blocked(kernel)
        sockets.abort(kernel, "the test")
        blocked.error(OperationAborted)
        kinds.close(kernel)
