"""What the promises of a story are made of: looks and expectations that several of them share.

Everything here works on a `Stage` and writes down what it saw with `stage.expect`, which raises what does not hold.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Final

from sharedsock.model.winsock import WSAEINTR
from sharedsock.simulator.invariants import T_ABORT, i2_count
from sharedsock.simulator.stage import LISTENER, PEER, STREAM, Stage
from sharedsock.testing.observation import TcpFacts, ThreadFacts, tcp_sockets
from sharedsock.testing.outcomes import Aborted, Returned
from sharedsock.testing.pending import ActorIdle

__all__ = [
    "close_all",
    "expect_aborted",
    "expect_counts",
    "expect_peer_unaware",
    "expect_undisturbed",
    "in_words",
    "look",
    "reports",
    "size",
    "tcp_stream",
    "threads_blocked_on",
    "wait_reports",
]

_ESTABLISHED: Final = 1
_TCP_CLOSE: Final = 7
_IN_WORDS: Final = {1: "the socket", 2: "stream and listener", 3: "both streams and the listener"}

Looks = dict[tuple[str, str], ThreadFacts]


def look(stage: Stage, names: Collection[str]) -> Looks:
    """Look at every blocked thread of these holders, and at the far peer's witness, which must sleep still."""
    witness = _expect_silence(stage, "REF-2")
    return {(PEER, "watch"): witness, **stage.wait_all_blocked(names)}


def expect_undisturbed(stage: Stage, before: Looks, names: Collection[str], rule: str) -> None:
    """Look at the blocked threads again: the same system call, no switch in between."""
    after = look(stage, names)
    moved = [f"{actor} {thread}" for (actor, thread), seen in before.items() if after[actor, thread] != seen]
    seen = f"{', '.join(moved)} moved" if moved else f"{len(before) - 1} threads, no system call"
    stage.expect(f"blocked in {', '.join(names)} throughout", seen, rule, not moved)


def expect_peer_unaware(stage: Stage, rule: str) -> None:
    """Nothing has reached the far peer since the story began: its poll still sleeps, its connection stands."""
    _expect_silence(stage, rule)
    if not stage.transport.is_tcp:
        stage.expect("the far peer", "no event", rule)
        return
    state = tcp_stream(stage, far=True).state
    is_there = state == _ESTABLISHED
    stage.expect("the far peer", "no event, established" if is_there else f"TCP state {state}", rule, is_there)


def _expect_silence(stage: Stage, rule: str) -> ThreadFacts:
    """Look at the far peer's witness asleep in its poll; where it is not, wait for it to say what it was woken by."""
    try:
        return stage.peer.wait_until_asleep("watch")
    except ActorIdle:
        stage.expect("the far peer", f"has an event, mask {stage.facts['watch'].value()}", rule, False)
        raise


def expect_counts(stage: Stage, rule: str) -> None:
    """The registry counts one reference for each holder, on every socket."""
    true = len(stage.holding)
    wrong = [i2_count(stage[stage.holding[0]].do("references", on=on), true) for on in stage.shared]
    seen = "; ".join(filter(None, wrong)) or (f"{true} each" if len(wrong) > 1 else str(true))
    stage.expect(f"references of {in_words(stage)}", seen, rule, not any(wrong))


def close_all(stage: Stage, name: str) -> None:
    """Close every socket in a holder that is not the last; its blocked threads end with OperationAborted in time."""
    closing = {on: stage[name].thread("main").close(on) for on in stage.shared}
    stage.leave(name)
    for on, pending in closing.items():
        came = pending.outcome()
        if came != Returned(None):
            stage.expect(f"{name} closes its {on}", came, "CLOSE-1", False)
        expect_aborted(stage, name, on, pending.began_s)


def expect_aborted(stage: Stage, name: str, on: str, began_s: float) -> None:
    """The threads of a holder that were blocked on a socket it closes end with OperationAborted in time."""
    threads = threads_blocked_on(stage, on)
    if not threads:
        return
    came = [stage.waiting[name, thread] for thread in threads]
    wrong = sorted({str(pending.outcome()) for pending in came if pending.outcome() != Aborted(WSAEINTR)})
    seen = ", ".join(wrong) or f"{len(threads)} x OperationAborted {WSAEINTR}"
    worst_s = max(pending.ended_s for pending in came) - began_s
    call = "accept" if on == LISTENER else "recv"
    stage.asks(call)
    stage.expect(f"{name} closes: blocked in {call}", seen, "CLOSE-20", not wrong, worst_s, T_ABORT)


def threads_blocked_on(stage: Stage, on: str) -> tuple[str, ...]:
    """Return the names of the threads that block on a socket, in each holder."""
    return {STREAM: stage.readers, LISTENER: ("accept",)}.get(on, ())


def reports(stage: Stage, name: str, kind: str) -> list[Any]:
    """Return what a holder's threads have reported so far: its "record"s or its "client"s."""
    return [event.value for event in stage[name].events if event.kind == kind]


def wait_reports(stage: Stage, names: Collection[str], records: int, clients: int) -> None:
    """Wait until these processes together have reported so many records and clients."""

    def has(kind: str, wanted: int) -> bool:
        return sum(len(reports(stage, name, kind)) for name in names) >= wanted

    for kind, wanted in (("record", records), ("client", clients)):
        stage.actors.wait_for(partial(has, kind, wanted), f"{wanted} x {kind}")


def tcp_stream(stage: Stage, far: bool = False) -> TcpFacts:
    """Return what the kernel says about the shared TCP connection, or about its far end."""
    near_port, far_port = stage.facts["ports"]
    wanted = (far_port, near_port) if far else (near_port, far_port)
    sockets = tcp_sockets(stage.transport.family)
    found = [one for one in sockets if (one.local_port, one.remote_port) == wanted]
    return found[0] if found else TcpFacts(*wanted, state=_TCP_CLOSE, unsent_bytes=0, unread_bytes=0, inode=0)


def in_words(stage: Stage) -> str:
    """Return what the shared sockets are."""
    return _IN_WORDS[len(stage.shared)]


def size(count: int) -> str:
    """Return a count of bytes for a reader."""
    return f"{count / (1 << 20):.2f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"
