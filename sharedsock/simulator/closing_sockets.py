"""The story "closing-sockets": what a close does to sockets that several processes share.

One process makes a connected socket and a listener and shares both; in every process threads block on them. Then
the holders leave, one after the other, each by a close, one perhaps by SIGKILL, and the last with data still queued;
a far peer sees from outside what each of these ends. Each promise is one function, `endings` has the last leaving.
Sources: the Winsock SPI pages "Closing Sockets", "Shared Sockets in the SPI" and LPWSPCLOSESOCKET; the rule numbers
are those of the digest of these pages.
"""

from __future__ import annotations

import errno
import os
import select
from functools import partial
from time import monotonic
from typing import Final

from sharedsock.model.winsock import WSAENOPROTOOPT, WSAENOTSOCK
from sharedsock.simulator import player
from sharedsock.simulator.checks import (
    close_all,
    expect_counts,
    expect_peer_unaware,
    expect_undisturbed,
    look,
    reports,
    wait_reports,
)
from sharedsock.simulator.endings import end_by_close, end_by_kill, queue_to_the_peer
from sharedsock.simulator.invariants import (
    T_REAP,
    T_REGISTRY_END,
    bound_under,
    i1_exactly_once,
    i2_count,
    i6_residue,
    look_at,
)
from sharedsock.simulator.scenario import NoMeaning, Options, Promise, Scenario
from sharedsock.simulator.schedule import Schedule, shares_of
from sharedsock.simulator.stage import LISTENER, STREAM, UNREAD, Stage
from sharedsock.simulator.transports import TRANSPORTS
from sharedsock.testing.choreography import Barrier
from sharedsock.testing.outcomes import Raised
from sharedsock.testing.pending import Pending

__all__ = ["CLOSING_SOCKETS"]

RECORD_BYTES: Final = 64
RECORDS: Final = 1024
# A datagram takes 768 bytes of the receive buffer, and what finds no room in it is lost: all of them fit.
DATAGRAMS: Final = 128
CLIENTS: Final = 8
# Fixed sizes end the kernel's own tuning: the window stays smaller than what the last closer can queue.
_PEER_WINDOW: Final = 64 << 10
_BUFFER: Final = 1 << 20

_ONE_EACH: Final = {1: "one socket", 2: "one stream, one listener", 3: "two streams, one listener"}
_NOT_A_SOCKET: Final = Raised("NotASocket", WSAENOTSOCK, errno.EBADF)
_NO_OPTION: Final = Raised("OSError", WSAENOPROTOOPT, errno.ENOPROTOOPT)


def shared_by_ticket(stage: Stage) -> None:
    """1. The maker makes the sockets and shares them; in each process threads block on them."""
    maker = stage[stage.schedule.maker]
    _open_sockets(stage)
    _set_linger(stage)

    stage.asks("socket")
    began_s = monotonic()
    others = [name for name in stage.schedule.holders if name != maker.name]
    for name in others:
        for on in stage.shared:
            maker.give_to(stage[name], on)
    handed = len(others) * len(stage.shared)
    each_s = (monotonic() - began_s) / handed
    stage.expect("shared by tickets for one process each", f"{handed} tickets, each used once", "DUP-2", True, each_s)

    everyone = stage.schedule.holders
    expect_counts(stage, "REF-1")
    pids = sorted(stage[name].pid for name in everyone)
    inodes = {on: {stage[name].do("facts", on=on)[1] for name in everyone} for on in stage.shared}
    holders = {on: sorted(holder.pid for holder in maker.do("holders", on=on)) for on in stage.shared}
    is_one = all(holders[on] == pids and len(inodes[on]) == 1 for on in stage.shared)
    count = sum(map(len, inodes.values()))
    seen = f"{len(pids)} processes, {count} inode{'s' if count != 1 else ''}"
    stage.asks("listener")
    stage.expect(f"{_ONE_EACH[len(stage.shared)]} under all of them", seen, "DUP-2", is_one)

    for name in everyone:
        for thread in stage.readers:
            stage.waiting[name, thread] = stage[name].thread(thread).do("receive_records", RECORD_BYTES, on=STREAM)
        if LISTENER in stage.shared:
            stage.waiting[name, "accept"] = stage[name].thread("accept").do("serve_clients", on=LISTENER)
    looks = stage.wait_all_blocked(everyone)
    in_recv = len(everyone) * len(stage.readers)
    seen = f"{in_recv} in recv" + (f", {len(looks) - in_recv} in accept" if LISTENER in stage.shared else "")
    all_there = len(looks) == len(everyone) * len(stage.blocking)
    stage.expect("blocked, say our table and the kernel", seen, "DUP-14", all_there)
    # The far peer's witness: asleep in one poll() until the kernel has anything at all to say about the connection.
    stage.facts["watch"] = stage.peer.thread("watch").do("watch", on=STREAM)
    stage.peer.wait_until_asleep("watch")


def aborts_only_its_own(stage: Stage) -> None:
    """2. One closes, or several do: their own operations abort, later use fails, nobody else notices."""
    if not stage.schedule.closers:
        raise NoMeaning("the only close is the last one: promise 5 has what it aborts")
    later = (("recv", (1,), STREAM), ("send", (b"x",), STREAM), ("accept", (), LISTENER))
    for name in stage.schedule.closers:
        left = [one for one in stage.holding if one != name]
        before = look(stage, left)
        close_all(stage, name)
        tried = [call for call in later if call[2] in stage.shared]
        came = {code: stage[name].thread("main").do(code, *with_, on=on).outcome() for code, with_, on in tried}
        wrong = ", ".join(f"{code}: {outcome}" for code, outcome in came.items() if outcome != _NOT_A_SOCKET)
        stage.expect(f"{', '.join(came)} after it", wrong or f"NotASocket {WSAENOTSOCK}", "CLOSE-2", not wrong)
        stage.asks("others")
        expect_undisturbed(stage, before, left, "CLOSE-28")
        expect_counts(stage, "REF-2")
        expect_peer_unaware(stage, "REF-2")
    stage.asks("accept")


def received_exactly_once(stage: Stage) -> None:
    """3. What the peer sends, and the clients that connect, reach the holders that are left exactly once."""
    receivers = stage.holding
    has_listener = LISTENER in stage.shared
    total = RECORDS if has_listener else DATAGRAMS
    records, clients = shares_of(total, receivers), shares_of(CLIENTS if has_listener else 0, receivers)
    # Whoever an earlier record or client woke, and who has not yet found it taken, would take one of these instead.
    stage.wait_all_blocked(receivers)
    began_s = monotonic()
    for name in receivers:
        _deliver_to(stage, name, records[name], clients[name])
    took_s = monotonic() - began_s

    stage.asks("records")
    # What a holder had before: the record and the client that showed the sockets alive after a kill.
    had: dict[str, tuple[int, int]] = stage.facts.get("had", dict.fromkeys(receivers, (0, 0)))
    got = {name: reports(stage, name, "record")[had[name][0] :] for name in receivers}
    sent = [player.record(number, RECORD_BYTES) for number in range(total)]
    wrong = i1_exactly_once(sent, [data for part in got.values() for data in part])
    noun = "record" if has_listener else "datagram"
    seen = wrong or f"{total} {noun}s, {total * RECORD_BYTES >> 10} KiB"
    stage.expect(f"each {noun} received once", seen, "DUP-15", not wrong, took_s)
    split = " + ".join(f"{name} {len(got[name])}" for name in receivers)
    has_turn = all(len(got[name]) == len(records[name]) for name in receivers)
    stage.expect("each process received, in its turn", split, "DUP-14", has_turn)

    if not stage.asks("clients"):
        return
    whom = stage.transport.name_of
    served = {name: [whom(who) for who in reports(stage, name, "client")[had[name][1] :]] for name in receivers}
    greeted = stage.peer.do("call_with", player.greetings, stage.transport.name, range(CLIENTS))
    claimed = {port: name for name, ports in served.items() for port in ports}
    is_exact = len(claimed) == sum(map(len, served.values())) == CLIENTS and claimed == greeted
    has_turn = all(len(served[name]) == len(clients[name]) for name in receivers)
    split = " + ".join(f"{name} {len(served[name])}" for name in receivers)
    stage.expect("each client accepted and served once", split, "CLOSE-31", is_exact and has_turn)


def outlives_a_kill(stage: Stage) -> None:
    """4. A holder is killed: its references go, the sockets live on."""
    victim = stage.schedule.victim
    if victim is None:
        few = len(stage.schedule.order) == 2 and not stage.options.kill
        spare = "of 2 processes none can be spared: the one that is left closes last"
        raise NoMeaning(spare if few else "nobody is to be killed")
    if stage.schedule.ends_with_kill:
        raise NoMeaning(f"{victim} is the last: promise 5 has what its death ends")
    survivors = tuple(name for name in stage.holding if name != victim)
    witness = stage[survivors[0]]
    before = look(stage, survivors)
    killed_s = stage[victim].kill()
    stage.mark(victim, "killed", killed_s)
    stage.leave(victim)
    stage.asks("reap")

    def counts() -> list[int]:
        return [witness.do("references", on=on) for on in stage.shared]

    counted, seen_s = stage.wait_until(counts, [len(survivors)] * len(stage.shared), 4 * T_REAP)
    wrong = "; ".join(filter(None, (i2_count(one, len(survivors)) for one in counted)))
    seen = wrong or (f"{len(survivors)} each" if len(counted) > 1 else str(len(survivors)))
    stage.expect(f"references after SIGKILL of {victim}", seen, "EXIT-1", not wrong, seen_s - killed_s, T_REAP)
    expect_undisturbed(stage, before, survivors, "EXIT-1")
    expect_peer_unaware(stage, "REF-2")
    _expect_alive(stage, survivors)
    stage.facts["had"] = {name: (len(reports(stage, name, "record")), len(reports(stage, name, "client")))
                          for name in survivors}  # fmt: skip


def ends_at_the_last_close(stage: Stage) -> None:
    """5. The last close, and only it, ends the sockets, as linger says; a death in its place, as the kernel says."""
    *earlier, last = stage.holding
    for name in earlier:
        left = [one for one in stage.holding if one != name]
        before = look(stage, left)
        close_all(stage, name)
        expect_undisturbed(stage, before, left, "LINGER-13")
        expect_peer_unaware(stage, "LINGER-13")
    stage.wait_all_blocked((last,))
    began_s = monotonic()
    queued = queue_to_the_peer(stage, last)
    watch: Pending = stage.facts["watch"]
    mask = watch.value()
    quiet = watch.ended_s >= began_s and mask == select.POLLIN
    since = "it connected" if stage.transport.has_connections else "the start"
    stage.expect(f"the peer's first event since {since}", f"data, as {last} sends", "LINGER-13", quiet)
    if stage.schedule.ends_with_kill:
        end_by_kill(stage, last, queued)
    else:
        end_by_close(stage, last, queued)


def nothing_is_left(stage: Stage) -> None:
    """6. No process of the run holds anything it did not hold before; the registry agrees, and ends."""
    stage.asks("residue")
    for on in stage.facts["peer_sockets"]:
        stage.peer.close(on)
    witness = next(stage[name] for name in stage.schedule.holders if stage[name].is_alive)
    view = witness.do("call_with", player.registry_view)
    seen = "sockets {}, tickets {}, custody {}".format(*view)
    stage.expect("the registry's own view", seen, "I2", view == (0, 0, 0))
    # After quiescence: a thread and the far end of a channel are gone a moment after whoever ended them goes on.
    wrong, _ = stage.wait_until(lambda: i6_residue(stage.before, stage.look()), "", bound_under(stage.slack, T_REAP))
    after = stage.look()
    sockets = sum(len(residue.sockets - stage.before[name].sockets) for name, residue in after.items())
    seen = wrong or f"{sockets} new in {len(after)} processes, by inode"
    stage.expect("sockets, files and threads of every process", seen, "I6", not wrong)

    registry = _Watched(stage.facts["registry_pid"])
    began_s = monotonic()
    stage.actors.close()
    ended_s = monotonic()
    is_gone = registry.wait_ended(4 * stage.slack * T_REGISTRY_END)  # late is not never: the bound is judged below
    seen = "gone" if is_gone else "still there"
    stage.expect("the registry, after its last client", seen, "F-80", is_gone, monotonic() - ended_s, T_REGISTRY_END)
    left = [actor.name for actor in stage.actors if os.path.exists(f"/proc/{actor.pid}")]
    seen = ", ".join(left) or f"{len(after)} ended"
    stage.expect("processes", seen, "I6", not left, ended_s - began_s)
    is_there = os.path.exists(stage.directory)
    stage.expect("runtime directory", "still there" if is_there else "removed", "I6", not is_there)
    wrong = i6_residue({"controller": stage.before_start}, {"controller": look_at(os.getpid())})
    stage.expect("this process", wrong or "as before", "I6", not wrong)


_TEXTS: Final = {
    "share": "Real processes share a socket and a listener, and block on both",
    "close": "A close aborts the process's own operations, and nobody else's",
    "deliver": "The others receive every record and every client exactly once",
    "kill": "A killed holder's references go; the sockets live on",
    "last-close": "The last close, and only it, ends the connection",
    "residue": "Nothing is left",
}
_DATAGRAM_TEXTS: Final = {
    "share": "Real processes share a socket, and block on it",
    "deliver": "The others receive every datagram exactly once",
    "last-close": "The last close, and only it, ends the socket",
}
_CHECKS: Final = {
    "share": shared_by_ticket,
    "close": aborts_only_its_own,
    "deliver": received_exactly_once,
    "kill": outlives_a_kill,
    "last-close": ends_at_the_last_close,
    "residue": nothing_is_left,
}


def promises_for(options: Options) -> tuple[Promise, ...]:
    """Return the promises of a run in the order in which they come true: who is killed first is killed before all."""
    schedule = Schedule.of(options)
    texts = _TEXTS | ({} if TRANSPORTS[options.transport].has_connections else _DATAGRAM_TEXTS)
    if schedule.ends_with_kill:
        texts = texts | {"last-close": "The last holder is killed, and the kernel ends it all by its own rule"}
    promises = [Promise(place, name, texts[name], check) for place, (name, check) in enumerate(_CHECKS.items(), 1)]
    share, close, deliver, kill, *rest = promises
    return (share, kill, deliver, close, *rest) if schedule.begins_with_kill else tuple(promises)


CLOSING_SOCKETS: Final = Scenario(
    "closing-sockets", "a close ends this process's use of a socket; the last close ends the socket", promises_for
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


def _open_sockets(stage: Stage) -> None:
    """The peer and the maker connect, once for each connection; then the maker opens the listener."""
    maker, peer, kind = stage[stage.schedule.maker], stage.peer, stage.transport.name
    if not stage.transport.has_connections:
        far = peer.do("call_with", player.open_peer, STREAM, kind, stage.address("peer"))
        near = maker.do("call_with", player.open_near, STREAM, kind, far, _BUFFER)
        peer.do("call_with", player.open_peer, STREAM, kind, None, near)
        stage.facts["peer_sockets"] = (STREAM,)
        return
    door = stage.address("door")
    far = peer.do("call_with", player.listen, "door", kind, door, plain=True, receive_buffer=_PEER_WINDOW)
    for on in stage.shared:
        if on == LISTENER:
            stage.facts["address"] = maker.do("call_with", player.listen, on, kind, stage.address(LISTENER))
            continue
        accepting = peer.thread("main").accept("door", into=on)
        near = maker.do("call_with", player.open_near, on, kind, far, _BUFFER)
        accepting.value()
        if on == STREAM and stage.transport.is_tcp:
            stage.facts["ports"] = (near[1], far[1])
    stage.facts["peer_sockets"] = ("door", *(on for on in (STREAM, UNREAD) if on in stage.shared))


def _set_linger(stage: Stage) -> None:
    """The maker sets linger once, for whoever closes last; a datagram socket refuses it."""
    linger_s = stage.options.linger_s
    if linger_s is None:
        return
    main = stage[stage.schedule.maker].thread("main")
    for on in stage.shared:
        if on == LISTENER:
            continue
        setting = main.do("set_linger", True, linger_s, on=on)
        if stage.transport.has_connections:
            setting.value()
        else:
            came = setting.outcome()
            seen = f"refused, {WSAENOPROTOOPT}" if came == _NO_OPTION else came
            stage.expect("SO_LINGER on a datagram socket", seen, "LINGER-11", came == _NO_OPTION)


def _expect_alive(stage: Stage, holders: tuple[str, ...]) -> None:
    """One record more, and one client where there is a listener, reach the holders that are left."""
    kind = stage.transport.name
    had = [(len(reports(stage, name, "record")), len(reports(stage, name, "client"))) for name in holders]
    records, clients = sum(one for one, _ in had) + 1, sum(two for _, two in had)
    stage.peer.do("call_with", player.send_records, STREAM, range(RECORDS, RECORDS + 1), RECORD_BYTES)
    if LISTENER not in stage.shared:
        wait_reports(stage, holders, records, clients)
        stage.expect("the socket lives on", f"1 datagram by {' or '.join(holders)}", "EXIT-1")
        return
    stage.peer.do("call_with", player.connect_clients, kind, stage.facts["address"], range(1))
    wait_reports(stage, holders, records, clients + 1)
    greeted = stage.peer.do("call_with", player.greetings, kind, range(1))
    seen = f"1 record, 1 client by {', '.join(greeted.values())}"
    stage.expect("the sockets live on", seen, "EXIT-1", set(greeted.values()) <= set(holders))


def _deliver_to(stage: Stage, name: str, records: range, clients: range) -> None:
    """Have one process take a part of the records and clients while all the others are held at "op.ready".

    All are held first, and seen to be: each process was woken and could have taken. Then only `name` goes on; the
    others go on when everything is taken, find nothing, and wait again.
    """
    receivers = stage.holding
    had = len(reports(stage, name, "record")), len(reports(stage, name, "client"))
    gates: dict[str, Barrier] = {one: stage[one].hold_at("op.ready", count=None) for one in receivers}
    stage.peer.do("call_with", player.send_records, STREAM, records, RECORD_BYTES)
    if clients:
        stage.peer.do("call_with", player.connect_clients, stage.transport.name, stage.facts["address"], clients)
    for one in receivers:
        stage[one].wait_for(partial(_has_reader, gates[one]), f"{one} to be woken by the records")
        if clients:
            gates[one].wait_reached(thread="accept")
    gates[name].release()
    wait_reports(stage, (name,), had[0] + len(records), had[1] + len(clients))
    for gate in gates.values():
        gate.release()
    stage.wait_all_blocked(receivers)


def _has_reader(gate: Barrier) -> bool:
    return any(thread != "accept" for thread, _ in gate.reached)
