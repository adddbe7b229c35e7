"""The story "closing-sockets": what a close does to sockets that several processes share.

One process makes a connected socket and a listener and shares both; in every process threads block on them. Then
the maker closes, another holder is killed, and the last one closes with data still queued; a far peer sees from
outside what each of these ends. Each promise is one function. Sources: the Winsock SPI pages "Closing Sockets",
"Shared Sockets in the SPI" and LPWSPCLOSESOCKET; the rule numbers are those of the digest of these pages.
"""

from __future__ import annotations

import errno
import os
import select
from functools import partial
from time import monotonic
from typing import Any, Final

from sharedsock.model.winsock import WSAECONNRESET, WSAEINTR, WSAENOTSOCK
from sharedsock.simulator import player
from sharedsock.simulator.invariants import (
    T_ABORT,
    T_EOF,
    T_REAP,
    T_REGISTRY_END,
    i1_exactly_once,
    i2_count,
    i6_residue,
    look_at,
)
from sharedsock.simulator.scenario import NoMeaning, Promise, Scenario
from sharedsock.simulator.schedule import shares_of
from sharedsock.simulator.stage import PEER, Stage
from sharedsock.testing.choreography import Barrier
from sharedsock.testing.observation import TcpFacts, ThreadFacts, tcp_sockets
from sharedsock.testing.outcomes import Aborted, Raised, Returned
from sharedsock.testing.pending import Pending

__all__ = ["CLOSING_SOCKETS"]

RECORD_BYTES: Final = 64
RECORDS: Final = 1024
CLIENTS: Final = 8
STREAM: Final = "stream"
LISTENER: Final = "listener"
_ESTABLISHED: Final = 1
# Fixed sizes end the kernel's own tuning: the window stays smaller than what the last closer can queue.
_PEER_WINDOW: Final = 64 << 10
_SEND_BUFFER: Final = 1 << 20

_NOT_A_SOCKET: Final = Raised("NotASocket", WSAENOTSOCK, errno.EBADF)

_Looks = dict[tuple[str, str], ThreadFacts]


def shared_by_ticket(stage: Stage) -> None:
    """1. The maker shares a connected socket and a listener; in each process threads block on both."""
    maker, peer = stage[stage.schedule.maker], stage.peer
    address = peer.do("listen", "door", plain=True, receive_buffer=_PEER_WINDOW)
    accepting = peer.thread("main").accept("door", into=STREAM)
    own = maker.do("connect", STREAM, address, send_buffer=_SEND_BUFFER)
    accepting.value()
    stage.facts.update(ports=(own[1], address[1]), address=maker.do("listen", LISTENER))
    if stage.options.linger == "0":
        maker.do("set_linger", True, 0, on=STREAM)

    began_s = monotonic()
    for name in stage.schedule.receivers:
        for on in (STREAM, LISTENER):
            maker.give_to(stage[name], on)
    handed = len(stage.schedule.receivers) * 2
    each_s = (monotonic() - began_s) / handed
    stage.expect("shared by tickets for one process each", f"{handed} tickets, each used once", "DUP-2", True, each_s)

    everyone = stage.schedule.holders
    _expect_counts(stage, maker.name, len(everyone), "REF-1")
    pids = sorted(stage[name].pid for name in everyone)
    inodes = {on: {stage[name].do("facts", on=on)[1] for name in everyone} for on in (STREAM, LISTENER)}
    holders = {on: sorted(holder.pid for holder in maker.do("holders", on=on)) for on in (STREAM, LISTENER)}
    is_one = all(holders[on] == pids and len(inodes[on]) == 1 for on in (STREAM, LISTENER))
    seen = f"{len(pids)} processes, {sum(map(len, inodes.values()))} inodes"
    stage.expect("one stream, one listener under all of them", seen, "DUP-2", is_one)

    for name in everyone:
        for thread in stage.readers:
            stage.waiting[name, thread] = stage[name].thread(thread).do("receive_records", RECORD_BYTES, on=STREAM)
        stage.waiting[name, "accept"] = stage[name].thread("accept").do("serve_clients", on=LISTENER)
    looks = stage.wait_all_blocked(everyone)
    in_recv = len(everyone) * len(stage.readers)
    seen = f"{in_recv} in recv, {len(everyone)} in accept"
    stage.expect("blocked, say our table and the kernel", seen, "DUP-14", len(looks) == in_recv + len(everyone))
    # The far peer's witness: asleep in one poll() until the kernel has anything at all to say about the connection.
    stage.facts["watch"] = peer.thread("watch").do("watch", on=STREAM)
    peer.wait_until_asleep("watch")


def aborts_only_its_own(stage: Stage) -> None:
    """2. The maker closes: its own operations abort, later use fails, nobody else notices."""
    maker, others = stage[stage.schedule.maker], stage.schedule.receivers
    before = _look(stage, others)
    _close_and_see_aborts(stage, maker.name)
    later = (("recv", (1,), STREAM), ("send", (b"x",), STREAM), ("accept", (), LISTENER))
    came = {code: maker.thread("main").do(code, *with_, on=on).outcome() for code, with_, on in later}
    wrong = ", ".join(f"{code}: {outcome}" for code, outcome in came.items() if outcome != _NOT_A_SOCKET)
    stage.expect("recv, send, accept after it", wrong or f"NotASocket {WSAENOTSOCK}", "CLOSE-2", not wrong)
    _expect_undisturbed(stage, before, others, "CLOSE-28")
    _expect_counts(stage, others[0], len(others), "REF-2")
    _expect_peer_unaware(stage, "REF-2")


def received_exactly_once(stage: Stage) -> None:
    """3. What the peer sends, and the clients that connect, reach the other holders exactly once."""
    receivers = stage.schedule.receivers
    records, clients = shares_of(RECORDS, receivers), shares_of(CLIENTS, receivers)
    began_s = monotonic()
    for name in receivers:
        _deliver_to(stage, name, records[name], clients[name])
    took_s = monotonic() - began_s

    got = {name: _reports(stage, name, "record") for name in receivers}
    sent = [player.record(number, RECORD_BYTES) for number in range(RECORDS)]
    wrong = i1_exactly_once(sent, [data for part in got.values() for data in part])
    seen = wrong or f"{RECORDS} records, {RECORDS * RECORD_BYTES >> 10} KiB"
    stage.expect("each record received once", seen, "DUP-15", not wrong, took_s)
    split = " + ".join(f"{name} {len(got[name])}" for name in receivers)
    has_turn = all(len(got[name]) == len(records[name]) for name in receivers)
    stage.expect("each process received, in its turn", split, "DUP-14", has_turn)

    served = {name: [address[1] for address in _reports(stage, name, "client")] for name in receivers}
    greeted = stage.peer.do("call_with", player.greetings, range(CLIENTS))
    claimed = {port: name for name, ports in served.items() for port in ports}
    is_exact = len(claimed) == sum(map(len, served.values())) == CLIENTS and claimed == greeted
    has_turn = all(len(served[name]) == len(clients[name]) for name in receivers)
    split = " + ".join(f"{name} {len(served[name])}" for name in receivers)
    stage.expect("each client accepted and served once", split, "CLOSE-31", is_exact and has_turn)


def outlives_a_kill(stage: Stage) -> None:
    """4. A holder is killed: its references go, the sockets live on."""
    victim = stage.schedule.victim
    if victim is None:
        raise NoMeaning("of 2 processes none can be spared: the one that is left closes last")
    survivors = stage.schedule.closers
    witness = stage[survivors[0]]
    before = _look(stage, survivors)
    killed_s = stage[victim].kill()
    stage.mark(victim, "killed", killed_s)

    def counts() -> list[int]:
        return [witness.do("references", on=on) for on in (STREAM, LISTENER)]

    counted, seen_s = stage.wait_until(counts, [len(survivors)] * 2, 4 * T_REAP)
    wrong = "; ".join(filter(None, (i2_count(one, len(survivors)) for one in counted)))
    seen = wrong or f"{len(survivors)} each"
    stage.expect(f"references after SIGKILL of {victim}", seen, "EXIT-1", not wrong, seen_s - killed_s, T_REAP)
    _expect_undisturbed(stage, before, survivors, "EXIT-1")
    _expect_peer_unaware(stage, "REF-2")
    had = {name: (len(_reports(stage, name, "record")), len(_reports(stage, name, "client"))) for name in survivors}
    stage.peer.do("call_with", player.send_records, STREAM, range(RECORDS, RECORDS + 1), RECORD_BYTES)
    stage.peer.do("call_with", player.connect_clients, stage.facts["address"], range(1))
    _wait_reports(stage, survivors, sum(one for one, _ in had.values()) + 1, sum(two for _, two in had.values()) + 1)
    greeted = stage.peer.do("call_with", player.greetings, range(1))
    seen = f"1 record, 1 client by {', '.join(greeted.values())}"
    stage.expect("the sockets live on", seen, "EXIT-1", set(greeted.values()) <= set(survivors))


def ends_at_the_last_close(stage: Stage) -> None:
    """5. The last close, and only it, ends the connection: gracefully after all data, or by a reset with LINGER(0)."""
    *earlier, last_name = stage.schedule.closers
    for place, name in enumerate(earlier):
        left = stage.schedule.closers[place + 1 :]
        before = _look(stage, left)
        _close_and_see_aborts(stage, name)
        _expect_undisturbed(stage, before, left, "LINGER-13")
        _expect_peer_unaware(stage, "LINGER-13")
    last = stage[last_name]
    stage.wait_all_blocked((last_name,))
    filling = last.thread("main").do("call_with", player.queue_all_it_takes, STREAM)
    queued, digest = filling.value()
    watch: Pending = stage.facts["watch"]
    mask = watch.value()
    quiet = watch.ended_s >= filling.began_s and mask == select.POLLIN
    stage.expect("the peer's first event since it connected", f"data, as {last_name} sends", "LINGER-13", quiet)
    unsent = _stream(stage).unsent_bytes
    seen = f"{_size(unsent)} of {_size(queued)}"
    stage.expect("unsent at the last close, peer not reading", seen, "LINGER-2", unsent > 0)

    # POLLERR comes with a reset only; a FIN behind unread data says nothing that this poll() would hear.
    hearing = stage.peer.thread("watch").do("call_with", player.watch_the_end, STREAM)
    stage.peer.wait_until_asleep("watch")
    closing = _close_and_see_aborts(stage, last_name)
    stage.mark(last_name, "last close", closing.ended_s)
    if stage.options.linger == "0":
        _expect_reset(stage, closing, hearing, queued)
    else:
        _expect_everything_then_fin(stage, closing, queued, digest)
    refused = stage.peer.do("call_with", player.is_refused, stage.facts["address"])
    stage.expect("connect to the listener now", "refused" if refused else "accepted", "CLOSE-42", refused)


def nothing_is_left(stage: Stage) -> None:
    """6. No process of the run holds anything it did not hold before; the registry agrees, and ends."""
    maker = stage[stage.schedule.maker]
    for on in (STREAM, "door"):
        stage.peer.close(on)
    view = maker.do("call_with", player.registry_view)
    seen = "sockets {}, tickets {}, custody {}".format(*view)
    stage.expect("the registry's own view", seen, "I2", view == (0, 0, 0))
    after = stage.look()
    wrong = i6_residue(stage.before, after)
    sockets = sum(len(residue.sockets - stage.before[name].sockets) for name, residue in after.items())
    seen = wrong or f"{sockets} new in {len(after)} processes, by inode"
    stage.expect("sockets, files and threads of every process", seen, "I6", not wrong)

    registry = _Watched(stage.facts["registry_pid"])
    began_s = monotonic()
    stage.actors.close()
    ended_s = monotonic()
    is_gone = registry.wait_ended(4 * T_REGISTRY_END)
    seen = "gone" if is_gone else "still there"
    stage.expect("the registry, after its last client", seen, "F-80", is_gone, monotonic() - ended_s, T_REGISTRY_END)
    left = [actor.name for actor in stage.actors if os.path.exists(f"/proc/{actor.pid}")]
    seen = ", ".join(left) or f"{len(after)} ended"
    stage.expect("processes", seen, "I6", not left, ended_s - began_s)
    is_there = os.path.exists(stage.directory)
    stage.expect("runtime directory", "still there" if is_there else "removed", "I6", not is_there)
    wrong = i6_residue({"controller": stage.before_start}, {"controller": look_at(os.getpid())})
    stage.expect("this process", wrong or "as before", "I6", not wrong)


CLOSING_SOCKETS: Final = Scenario(
    "closing-sockets",
    "a close ends this process's use of a socket; the last close ends the socket",
    (
        Promise(1, "share", "Real processes share a socket and a listener, and block on both", shared_by_ticket),
        Promise(2, "close", "A close aborts the process's own operations, and nobody else's", aborts_only_its_own),
        Promise(3, "deliver", "The others receive every record and every client exactly once", received_exactly_once),
        Promise(4, "kill", "A killed holder's references go; the sockets live on", outlives_a_kill),
        Promise(5, "last-close", "The last close, and only it, ends the connection", ends_at_the_last_close),
        Promise(6, "residue", "Nothing is left", nothing_is_left),
    ),
)


# What the promises are made of.


class _Watched:
    """A process that is not ours, seen through a pidfd opened while it was alive."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    def wait_ended(self, within_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        is_over = bool(poll.poll(within_s * 1000))
        os.close(self._pidfd)
        return is_over


def _look(stage: Stage, names: tuple[str, ...] | list[str]) -> _Looks:
    looks = stage.wait_all_blocked(names)
    looks[PEER, "watch"] = stage.peer.wait_until_asleep("watch")
    return looks


def _expect_undisturbed(stage: Stage, before: _Looks, names: tuple[str, ...] | list[str], rule: str) -> None:
    """Look at the blocked threads again: the same system call, no switch in between."""
    after = _look(stage, names)
    moved = [f"{actor} {thread}" for (actor, thread), look in before.items() if after[actor, thread] != look]
    seen = f"{', '.join(moved)} moved" if moved else f"{len(before) - 1} threads, no system call"
    who = ", ".join(names)
    stage.expect(f"blocked in {who} throughout", seen, rule, not moved)


def _expect_peer_unaware(stage: Stage, rule: str) -> None:
    watch: Pending = stage.facts["watch"]
    state = _stream(stage, far=True).state
    unaware = not watch.is_done() and state == _ESTABLISHED
    seen = "no event, established" if unaware else f"event {watch.is_done()}, TCP state {state}"
    stage.expect("the far peer", seen, rule, unaware)


def _expect_counts(stage: Stage, asked: str, true: int, rule: str) -> None:
    wrong = [i2_count(stage[asked].do("references", on=on), true) for on in (STREAM, LISTENER)]
    seen = "; ".join(filter(None, wrong)) or f"{true} each"
    stage.expect("references of stream and listener", seen, rule, not any(wrong))


def _close_and_see_aborts(stage: Stage, name: str) -> Pending:
    """Close both sockets in one process; its blocked threads end with OperationAborted in time."""
    closing = {on: stage[name].thread("main").close(on) for on in (STREAM, LISTENER)}
    worst_s = 0.0
    came = set()
    for thread in stage.blocking:
        pending = stage.waiting[name, thread]
        came.add(str(pending.outcome()) if pending.outcome() != Aborted(WSAEINTR) else "")
        worst_s = max(worst_s, pending.ended_s - closing[LISTENER if thread == "accept" else STREAM].began_s)
    for pending in closing.values():
        came.add("" if pending.outcome() == Returned(None) else f"close: {pending.outcome()}")
    wrong = ", ".join(sorted(came - {""}))
    seen = wrong or f"{len(stage.blocking)} x OperationAborted {WSAEINTR}"
    stage.expect(f"{name} closes: its blocked threads", seen, "CLOSE-20", not wrong, worst_s, T_ABORT)
    return closing[STREAM]


def _deliver_to(stage: Stage, name: str, records: range, clients: range) -> None:
    """Have one process take a part of the records and clients while all the others are held at "op.ready".

    All are held first, and seen to be: each process was woken and could have taken. Then only `name` goes on; the
    others go on when everything is taken, find nothing, and wait again.
    """
    receivers = stage.schedule.receivers
    had = {one: (len(_reports(stage, one, "record")), len(_reports(stage, one, "client"))) for one in receivers}
    gates: dict[str, Barrier] = {one: stage[one].hold_at("op.ready", count=None) for one in receivers}
    stage.peer.do("call_with", player.send_records, STREAM, records, RECORD_BYTES)
    if clients:
        stage.peer.do("call_with", player.connect_clients, stage.facts["address"], clients)
    for one in receivers:
        stage[one].wait_for(partial(_has_reader, gates[one]), f"{one} to be woken by the records")
        if clients:
            gates[one].wait_reached(thread="accept")
    gates[name].release()
    _wait_reports(stage, (name,), had[name][0] + len(records), had[name][1] + len(clients))
    for gate in gates.values():
        gate.release()
    stage.wait_all_blocked(receivers)


def _has_reader(gate: Barrier) -> bool:
    return any(thread != "accept" for thread, _ in gate.reached)


def _reports(stage: Stage, name: str, kind: str) -> list[Any]:
    return [event.value for event in stage[name].events if event.kind == kind]


def _wait_reports(stage: Stage, names: tuple[str, ...], records: int, clients: int) -> None:
    """Wait until these processes together have reported so many records and clients."""

    def has(kind: str, wanted: int) -> bool:
        return sum(len(_reports(stage, name, kind)) for name in names) >= wanted

    for kind, wanted in (("record", records), ("client", clients)):
        stage.actors.wait_for(partial(has, kind, wanted), f"{wanted} x {kind}")


def _stream(stage: Stage, far: bool = False) -> TcpFacts:
    """Return what the kernel says about the shared connection, or about its far end."""
    near_port, far_port = stage.facts["ports"]
    wanted = (far_port, near_port) if far else (near_port, far_port)
    found = [one for one in tcp_sockets() if (one.local_port, one.remote_port) == wanted]
    return found[0] if found else TcpFacts(*wanted, state=7, unsent_bytes=0, unread_bytes=0, inode=0)


def _expect_everything_then_fin(stage: Stage, closing: Pending, queued: int, digest: str) -> None:
    took_s = closing.ended_s - closing.began_s
    still = _stream(stage).unsent_bytes
    seen = f"at once, {_size(still)} still unsent"
    stage.expect("the last close returns", seen, "LINGER-2", still > 0, took_s, T_ABORT)
    got, got_digest, end, end_s = stage.peer.do("call_with", player.read_to_the_end, STREAM)
    seen = f"{_size(got)}, digest {'equal' if got_digest == digest else 'differs'}"
    stage.expect("the peer gets every byte", seen, "REF-4", (got, got_digest) == (queued, digest))
    stage.expect("then", end, "CLOSE-1", end == "FIN", end_s, T_EOF)


def _expect_reset(stage: Stage, closing: Pending, hearing: Pending, queued: int) -> None:
    took_s = closing.ended_s - closing.began_s
    stage.expect("the last close returns", "at once", "LINGER-3", True, took_s, T_ABORT)
    mask = hearing.value()
    is_reset = bool(mask & select.POLLERR)
    seen = "reset" if is_reset else f"event mask {mask}"
    stage.expect("the peer sees", seen, "LINGER-3", is_reset, hearing.ended_s - closing.began_s, T_EOF)
    got, _, end, _ = stage.peer.do("call_with", player.read_to_the_end, STREAM)
    seen = f"{_size(got)} of {_size(queued)}, then {end}"
    stage.expect("queued data is discarded", seen, "LINGER-3", got < queued and end == str(WSAECONNRESET))


def _size(count: int) -> str:
    return f"{count / (1 << 20):.2f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"
