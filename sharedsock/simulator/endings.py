"""How the last holder's leaving ends a socket: by its close, as linger says, or by its death, as the kernel says.

Each way is one function, chosen by transport and linger option: FIN after all data, reset, a wait for the peer's
acknowledgement, a hard close when the wait runs out; datagrams, which have no end. Before any of them the last
holder has queued more than the peer, which is not reading, will take.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from typing import Any, Final

from sharedsock.model.winsock import WSAECONNRESET
from sharedsock.simulator import player
from sharedsock.simulator.checks import expect_aborted, size, tcp_stream
from sharedsock.simulator.invariants import T_ABORT, T_EOF, T_REAP
from sharedsock.simulator.stage import LISTENER, PEER, STREAM, UNREAD, Stage
from sharedsock.testing.observation import thread_facts
from sharedsock.testing.pending import Pending

__all__ = ["Queued", "end_by_close", "end_by_kill", "queue_to_the_peer"]

_ROOM_S: Final = 10.0  # beyond a linger time, until we believe that a close hangs
_DATAGRAMS: Final = range(32)
_RECORD_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Queued:
    """What the last holder has sent and the peer has not read: bytes and their digest."""

    count: int
    digest: str = ""


def queue_to_the_peer(stage: Stage, name: str, on: str = STREAM) -> Queued:
    """Have a holder send until the kernel takes no more; the peer does not read. Datagrams: a few."""
    main = stage[name].thread("main")
    if not stage.transport.has_connections:
        main.do("call_with", player.send_records, on, _DATAGRAMS, _RECORD_BYTES).value()
        return Queued(len(_DATAGRAMS) * _RECORD_BYTES)
    return Queued(*main.do("call_with", player.queue_all_it_takes, on).value())


def expect_queued(stage: Stage, queued: Queued) -> None:
    """The peer lacks something still: with TCP it waits on our side, else in the peer's own queue, unread."""
    if stage.transport.is_tcp:
        left, where = tcp_stream(stage).unsent_bytes, "unsent at the last close, peer not reading"
    else:
        left, where = stage.peer.do("call_with", player.unread, STREAM), "unread by the peer at the last close"
    # Of datagrams, FIONREAD tells the first one's size.
    seen = (
        f"{size(left)} of {size(queued.count)}" if stage.transport.has_connections else f"{len(_DATAGRAMS)} datagrams"
    )
    stage.expect(where, seen, "LINGER-2", left > 0)


def end_by_close(stage: Stage, name: str, queued: Queued) -> None:
    """The last holder closes everything, one socket after the other."""
    expect_queued(stage, queued)
    kinds = [kind for kind in ("fin", "reset", "waits") if stage.asks(kind)]
    if not stage.transport.has_connections:
        _close_datagrams(stage, name)
    elif "reset" in kinds:
        _close_with_reset(stage, name, queued)
    elif "waits" in kinds:
        _close_and_wait(stage, name, queued)
        if stage.asks("hard"):
            _close_in_vain(stage, name)
    else:
        stage.asks("hard")
        _close_at_once(stage, name, queued)
    if stage.transport.has_connections:
        closing = stage[name].thread("main").close(LISTENER)
        expect_aborted(stage, name, LISTENER, closing.began_s)
        _expect_path(stage, is_left=False)
    stage.leave(name)
    _expect_nobody(stage)


def end_by_kill(stage: Stage, name: str, queued: Queued) -> None:
    """The last holder is killed: the kernel closes for it, by its own rule, and the registry forgets it in time."""
    expect_queued(stage, queued)
    kinds = [kind for kind in ("fin", "reset", "waits", "hard") if stage.asks(kind)]
    hearing = _hear(stage, STREAM) if "reset" in kinds else None
    left = stage.transport.is_tcp and not hearing
    killed_s = stage[name].kill()
    stage.mark(name, "killed", killed_s)
    stage.leave(name)
    if left:
        unsent = tcp_stream(stage).unsent_bytes
        stage.expect(f"{name} is killed; the kernel sends on", f"{size(unsent)} still unsent", "EXIT-1", unsent > 0)
    witness = next(stage[one] for one in stage.schedule.holders if stage[one].is_alive)

    def sockets() -> int:
        return int(witness.do("call_with", player.registry_view)[0])

    counted, seen_s = stage.wait_until(sockets, 0, 4 * T_REAP)
    seen = f"{counted} sockets" if counted else "none"
    what = f"references after SIGKILL of {name}"
    stage.expect(what, seen, "EXIT-1", counted == 0, seen_s - killed_s, T_REAP)
    for kind in kinds:
        stage.asks(kind)
    if hearing:
        _expect_reset(stage, STREAM, hearing, killed_s, queued)
    elif stage.transport.has_connections:
        _expect_everything_then_fin(stage, queued)
    else:
        _expect_datagrams_then_silence(stage)
    _expect_path(stage, is_left=True)
    _expect_nobody(stage)


# The ways of a close.


def _close_at_once(stage: Stage, name: str, queued: Queued) -> None:
    """DONTLINGER, or a socket that knows no other: the close returns while data is still to be delivered."""
    closing = _close_stream(stage, name)
    if stage.transport.is_tcp:
        still = tcp_stream(stage).unsent_bytes
    else:
        still = stage.peer.do("call_with", player.unread, STREAM)
    seen = f"at once, {size(still)} still {'unsent' if stage.transport.is_tcp else 'unread'}"
    rule = "LINGER-2" if stage.options.linger == "off" else "CLOSE-1"
    stage.expect("the last close returns", seen, rule, still > 0, _took_s(closing), T_ABORT)
    _expect_everything_then_fin(stage, queued)


def _close_with_reset(stage: Stage, name: str, queued: Queued) -> None:
    """LINGER(0): nothing more is delivered."""
    hearing = _hear(stage, STREAM)
    closing = _close_stream(stage, name)
    stage.asks("reset")
    stage.expect("the last close returns", "at once", "LINGER-3", True, _took_s(closing), T_ABORT)
    _expect_reset(stage, STREAM, hearing, closing.began_s, queued)


def _close_and_wait(stage: Stage, name: str, queued: Queued) -> None:
    """LINGER(t), and the peer begins to read once the closer waits: the close returns when all is acknowledged."""
    linger_s = stage.options.linger_s or 0
    last = stage[name]
    seen_before = len(last.events)
    closing = last.thread("main").close(STREAM)
    last.wait_for(lambda: any(one.kind == "close.last" for one in last.events[seen_before:]), "the last close")
    began_s = next(one.at_s for one in last.events[seen_before:] if one.kind == "close.begin")
    expect_aborted(stage, name, STREAM, began_s)

    def is_over() -> bool:
        return closing.is_done() or any(one.kind == "close.linger" for one in last.events[seen_before:])

    # Asleep, and not for the registry's answer: that comes after the linger, whose end would have been told before.
    stage.wait_until(lambda: is_over() or thread_facts(last.pid, last.tid("main")).is_waiting, True, _ROOM_S)
    waits = not is_over()
    stage.asks("waits")
    what = "the last close, with the peer not reading"
    stage.expect(what, "waits" if waits else "does not wait", "LINGER-6", waits)
    reading = stage.peer.thread("main").do("call_with", player.read_to_the_end, STREAM)
    closing.value(linger_s + _ROOM_S)
    stage.mark(name, "last close", closing.ended_s)
    unsent = tcp_stream(stage).unsent_bytes
    # Our FIN counts as one byte until it is acknowledged too.
    is_waited = unsent <= 1 and closing.ended_s > reading.began_s
    seen = "all acknowledged, before t" if is_waited else f"{size(unsent)} unacknowledged"
    stage.expect(
        "it returns once the peer has read", seen, "LINGER-6", is_waited, _took_s(closing), T_ABORT, beyond_s=linger_s
    )
    _expect_all_came(stage, reading, queued)


def _close_in_vain(stage: Stage, name: str) -> None:
    """LINGER(t) against a peer that never reads: at t the connection is reset, and then the close returns."""
    linger_s = stage.options.linger_s or 0
    queued = queue_to_the_peer(stage, name, UNREAD)
    hearing = _hear(stage, UNREAD)
    closing = stage[name].thread("main").close(UNREAD)
    closing.value(linger_s + _ROOM_S)
    took_s = _took_s(closing)
    seen = f"after {took_s:.3f} s; t is {linger_s} s"
    what = "the close of the unread stream returns"
    stage.expect(what, seen, "LINGER-7", took_s >= linger_s, took_s, T_ABORT, beyond_s=linger_s)
    _expect_reset(stage, UNREAD, hearing, closing.began_s + linger_s, queued)


def _close_datagrams(stage: Stage, name: str) -> None:
    """The datagrams that were sent are the peer's already; nothing tells it that nobody is left."""
    closing = _close_stream(stage, name)
    stage.asks("hard")
    stage.expect("the last close returns", "at once", "CLOSE-1", True, _took_s(closing), T_ABORT)
    _expect_datagrams_then_silence(stage)


def _close_stream(stage: Stage, name: str) -> Pending:
    closing = stage[name].thread("main").close(STREAM)
    closing.value()
    stage.mark(name, "last close", closing.ended_s)
    expect_aborted(stage, name, STREAM, closing.began_s)
    if stage.options.linger == "off":
        stage.asks("fin")
    return closing


def _took_s(closing: Pending) -> float:
    return closing.ended_s - closing.began_s


# What the peer sees of them.


def _hear(stage: Stage, on: str) -> Pending:
    """Have the peer listen for a reset, and for nothing else: a FIN behind unread data says nothing to this poll."""
    hearing = stage.peer.thread("watch").do("call_with", player.watch_the_end, on)
    stage.peer.wait_until_asleep("watch")
    return hearing


def _expect_everything_then_fin(stage: Stage, queued: Queued) -> None:
    reading = stage.peer.thread("main").do("call_with", player.read_to_the_end, STREAM)
    _expect_all_came(stage, reading, queued)


def _expect_all_came(stage: Stage, reading: Pending, queued: Queued) -> None:
    got, digest, end, end_s = reading.value()
    seen = f"{size(got)}, digest {'equal' if digest == queued.digest else 'differs'}"
    stage.expect("the peer gets every byte", seen, "REF-4", (got, digest) == (queued.count, queued.digest))
    stage.expect("then", end, "CLOSE-1", end == "FIN", end_s, T_EOF)
    stage.mark(PEER, "FIN", reading.ended_s)


def _expect_reset(stage: Stage, on: str, hearing: Pending, due_s: float, queued: Queued) -> None:
    mask = hearing.value()
    is_reset = bool(mask & select.POLLERR)
    seen = "reset" if is_reset else f"event mask {mask}"
    rule = "LINGER-7" if on == UNREAD else "LINGER-3"
    stage.expect("the peer sees", seen, rule, is_reset, max(0.0, hearing.ended_s - due_s), T_EOF)
    stage.mark(PEER, "reset", hearing.ended_s)
    got, _, end, _ = stage.peer.do("call_with", player.read_to_the_end, on)
    seen = f"{size(got)} of {size(queued.count)}, then {end}"
    is_cut = got < queued.count and end == str(WSAECONNRESET)
    stage.expect("queued data is discarded", seen, rule, is_cut)


def _expect_datagrams_then_silence(stage: Stage) -> None:
    came: list[bytes] = stage.peer.do("call_with", player.read_datagrams, STREAM)
    wanted = [player.record(number, _RECORD_BYTES) for number in _DATAGRAMS]
    stage.expect("the peer gets what was sent before", f"{len(came)} datagrams", "REF-4", came == wanted)


def _expect_path(stage: Stage, is_left: bool) -> None:
    """A Unix listener's path goes with its last close; POSIX leaves it, so a death does as well."""
    path: Any = stage.facts.get("address")
    if stage.transport.host:
        return
    is_there = os.path.exists(path)
    seen = "stays, as the kernel has it" if is_there else "removed"
    stage.expect("the listener's path", seen, "REF-3", is_there == is_left)


def _expect_nobody(stage: Stage) -> None:
    stage.asks("nobody")
    address = stage.facts.get("address")
    refused = stage.peer.do("call_with", player.is_refused, stage.transport.name, address, STREAM)
    has_listener = stage.transport.has_connections
    what = "connect to the listener now" if has_listener else "a datagram from the peer now"
    rule = "CLOSE-42" if has_listener else "REF-3"
    stage.expect(what, "refused" if refused else "accepted", rule, refused)
