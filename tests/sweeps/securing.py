"""Scenes of TLS over a descriptor: a handshake, and each call of the TLS side."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import sharedsock as ss
from tests.descriptors.sharers import Running
from tests.sharedsocket.tls_parties import HOST, Contexts, make_contexts, tcp_pair
from tests.sweeps.scenes import PATIENCE_S, TAGGED, Outcome, Scene, Stage, scene

Acts = Generator[Callable[[], Any], Outcome, None]


@functools.cache
def _contexts() -> Contexts:
    return make_contexts()


@contextlib.contextmanager
def _answered(stage: Stage) -> Iterator[tuple[Any, Running]]:
    """A client's socket, and a server that shakes hands on the other one."""
    _contexts()  # made once, not by two threads at a time
    ours, theirs = stage.each(tcp_pair())
    for end in (ours, theirs):
        end.settimeout(PATIENCE_S)
    serving = Running(_serve, theirs)
    try:
        yield ours, serving
    finally:
        ours.close()  # ends a handshake that nobody answers
        with contextlib.suppress(OSError):
            serving.outcome()


def _serve(theirs: Any) -> Any:
    try:
        return ss.wrap_tls(_contexts().server, theirs, True)
    except BaseException:
        theirs.close()  # or the client would wait for us
        raise


@scene("wrap_tls")
def wrap_tls(stage: Stage) -> Acts:
    """A handshake that was cut short leaves a socket that is good for closing, and nothing else."""
    with _answered(stage) as (ours, serving):
        outcome = yield lambda: ss.wrap_tls(_contexts().client, ours, server_hostname=HOST)
        if outcome.error is None:
            server = serving.outcome()
            # A system call that was to fail may have been the server's; with TLS 1.3 the client is done before it.
            if not isinstance(server, OSError):
                outcome.value.sendall(TAGGED)
                assert server.recv(1 << 16) == TAGGED
        assert ours.pending_operations() == ()


def _secured(call: Callable[[Any], Any], check: Callable[[Any, Outcome], None]) -> Scene:
    def play(stage: Stage) -> Acts:
        with _answered(stage) as (ours, serving):
            client = ss.wrap_tls(_contexts().client, ours, server_hostname=HOST)
            server = serving.outcome()
            server.sendall(TAGGED)
            outcome = yield lambda: call(client)
            check((client, server), outcome)

    return play


def _received_all(parties: Any, outcome: Outcome) -> None:
    client, _ = parties
    found = outcome.value_or(lambda: client.recv(64))
    while len(found) < len(TAGGED):
        found += client.recv(1 << 16)
    assert found == TAGGED


def _sent_all_or_nothing(parties: Any, outcome: Outcome) -> None:
    client, server = parties
    client.sendall(b"!")
    found = server.recv(1 << 16)
    while not found.endswith(b"!"):
        found += server.recv(1 << 16)
    assert found == TAGGED + b"!" or (outcome.error is not None and found == b"!")


def _is_closed(parties: Any, outcome: Outcome) -> None:
    client, _ = parties
    outcome.value_or(client.close)
    assert client.fileno() == -1


scene("wrap_tls/recv")(_secured(lambda client: client.recv(64), _received_all))
scene("wrap_tls/sendall")(_secured(lambda client: client.sendall(TAGGED), _sent_all_or_nothing))
scene("wrap_tls/close")(_secured(lambda client: client.close(), _is_closed))
