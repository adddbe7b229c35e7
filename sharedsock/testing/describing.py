"""From what a census left over to findings: what each thing is, who made it, who else has it.

This is where time is spent, and only once something was found: other processes' files are read, sockets are asked for
their state.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sharedsock.testing.census import Child, Reference, Residue
from sharedsock.testing.findings import (
    DescriptorLeak,
    Finding,
    Holding,
    ProcessLeak,
    ReferenceLeak,
    SocketLeak,
    ThreadLeak,
)
from sharedsock.testing.frames import plain_socket
from sharedsock.testing.loaded import loaded
from sharedsock.testing.observation import files
from sharedsock.testing.origins import NOWHERE, Origin, Recording

if TYPE_CHECKING:
    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.model.identity import Holder

__all__ = ["describe", "name_of", "of_reference"]

# include/net/tcp_states.h; the kernel's own names.
_TCP_STATES: Final = (
    " ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING".split(" ")
)


def describe(residue: Residue, recording: Recording) -> list[Finding]:
    """Return a finding for each thing that was left, worst first."""
    shared = _own_descriptors()
    found: list[Finding] = []
    told = {shared[number].id for number in residue.descriptors if number in shared}
    for reference in residue.references:
        holder = reference.holder
        # A socket of this process that is told as a socket anyway is not told twice.
        if not (holder.pid == os.getpid() and holder.descriptor in told and holder.kind == "descriptor"):
            found.append(of_reference(reference, recording))
    elsewhere = _elsewhere(set(residue.descriptors.values()))
    for number, target in residue.descriptors.items():
        if target.startswith("socket:"):
            found.append(_socket(number, target, shared.get(number), recording, elsewhere))
        else:
            found.append(_file(number, target, recording, elsewhere))
    found += [_process(child, recording) for child in residue.children]
    found += [_thread(thread, recording) for thread in residue.threads]
    return found


def _made(origin: Origin | None, recording: Recording) -> dict[str, Any]:
    """Return who made something; that the test under way did is known even where the place is not."""
    if origin is None:
        return {"test": recording.test, "pid": os.getpid(), "process": name_of(os.getpid())}
    return {
        "test": origin.test or recording.test,
        "pid": origin.pid,
        "process": name_of(origin.pid),
        "thread": origin.thread,
        "place": origin.place,
    }


def name_of(pid: int) -> str:
    """Return a process's name, "ended" once it has."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "ended"


def _own_descriptors() -> dict[int, Descriptor]:
    """Return this process's open SharedSockets by file number."""
    table = loaded("sharedsock.descriptors.table")
    if table is None:
        return {}
    return {descriptor.kernel.number: descriptor for descriptor in table.open_descriptors()}


def _elsewhere(targets: set[str]) -> dict[str, list[Holding]]:
    """Return who else has what, in the order in which the processes started; regular files are everybody's."""
    wanted = {target for target in targets if target.startswith(("socket:", "pipe:"))}
    found: dict[str, list[Holding]] = {}
    if not wanted:
        return found
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        for number, target in files(pid).items():
            if target in wanted:
                found.setdefault(target, []).append(Holding(pid, name_of(pid), f"number {number}"))
    return found


# -- references ---------------------------------------------------------------------------------------------------


def of_reference(reference: Reference, recording: Recording) -> Finding:
    """Return the finding of a reference that a registry still counts."""
    holder = reference.holder
    everybody = _holders(reference.registry, reference.socket)
    family = socket.AddressFamily(reference.family).name if reference.family in _FAMILIES else str(reference.family)
    if holder.kind == "ticket":
        target = f"for process {holder.pid}" if holder.pid else "for whoever comes first"
        what = f"a ticket {target} that nobody has redeemed, on a shared {family} socket"
    else:
        what = f"{holder.kind} {holder.descriptor} of process {holder.pid} on a shared {family} socket"
    origin = recording.of_place(holder.opened_at) or NOWHERE
    return ReferenceLeak(
        what,
        test=origin.test or recording.test,
        pid=holder.pid or os.getpid(),
        process=holder.name or name_of(holder.pid or os.getpid()),
        thread=origin.thread,
        place=holder.opened_at,
        holders=everybody,
    )


_FAMILIES: Final = {int(family) for family in socket.AddressFamily}


def _holders(registry: str, socket_id: Any) -> tuple[Holding, ...]:
    connect = loaded("sharedsock.registry.connect")
    assert connect is not None  # a reference was found through it
    rows: list[Holding] = []
    with suppress(OSError):
        for client in connect.connected_clients():
            if client.runtime == registry:
                former, now = client.former_holders(socket_id), client.holders(socket_id)
                rows += [_holding(row, "descriptor", row.kind) for row in sorted(former, key=lambda row: row.since_s)]
                rows += [_holding(row, row.kind) for row in sorted(now, key=lambda row: row.since_s)]
    return tuple(rows)


def _holding(row: Holder, kind: str, ended: str = "") -> Holding:
    how = f"{kind} {row.descriptor}" if row.descriptor else kind
    return Holding(row.pid, row.name, how, row.opened_at, row.since_s, ended)


# -- sockets and files --------------------------------------------------------------------------------------------


def _socket(
    number: int,
    target: str,
    descriptor: Descriptor | None,
    recording: Recording,
    elsewhere: dict[str, list[Holding]],
) -> Finding:
    origin = recording.of_number(number)
    if descriptor is not None:
        known = recording.of_place(descriptor.opened_at)
        thread = known.thread if known is not None else ""
        origin = Origin(recording.test, os.getpid(), thread, descriptor.opened_at, role=known.role if known else "")
    facts = _facts_of(number)
    role = facts["role"] if facts["role"] == "listener" else (origin.role if origin and origin.role else facts["role"])
    holders = tuple(elsewhere.get(target, ()))
    if descriptor is not None and descriptor.client is not None and descriptor.socket_id is not None:
        holders = tuple(
            holder
            for holder in _holders(descriptor.client.runtime, descriptor.socket_id)
            if (holder.pid, holder.how, holder.ended) != (os.getpid(), f"descriptor {descriptor.id}", "")
        )
    shown = f"{facts['kind']} {role} {facts['local']}" + (f" -> {facts['peer']}" if facts["peer"] else "")
    state = f", {facts['state']}" if facts["state"] else ""
    name = f"descriptor {descriptor.id} (number {number})" if descriptor is not None else f"number {number}"
    return SocketLeak(
        f"{' '.join(shown.split())}{state}, {name}",
        **_made(origin, recording),
        holders=holders,
        state=facts["state"],
        peer=facts["peer"],
        role=role,
    )


def _facts_of(number: int) -> dict[str, str]:
    """Ask a socket what it is, through a duplicate that nobody else sees."""
    facts = dict.fromkeys(("kind", "local", "peer", "state", "role"), "")
    try:
        view = plain_socket(os.dup(number))
    except OSError:
        return facts | {"kind": "a socket that has just gone"}
    with view:
        is_stream = view.type == socket.SOCK_STREAM
        match view.family:
            case socket.AF_INET | socket.AF_INET6:
                facts["kind"] = "TCP" if is_stream else "UDP"
            case socket.AF_UNIX:
                facts["kind"] = "Unix stream" if is_stream else "Unix datagram"
            case family:
                facts["kind"] = getattr(family, "name", str(family))
        with suppress(OSError):
            facts["local"] = _address(view.getsockname())
        with suppress(OSError):
            facts["peer"] = _address(view.getpeername())
        with suppress(OSError):
            listens = bool(view.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            facts["role"] = "listener" if listens else ("" if facts["peer"] or facts["local"] else "unconnected")
        if facts["kind"] == "TCP":
            with suppress(OSError):
                state = view.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                facts["state"] = _TCP_STATES[state] if state < len(_TCP_STATES) else str(state)
    return facts


def _address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    text = os.fsdecode(address) if isinstance(address, str | bytes) else str(address)
    return text.replace("\0", "@", 1)


def _file(number: int, target: str, recording: Recording, elsewhere: dict[str, list[Holding]]) -> Finding:
    origin = recording.of_number(number)
    return DescriptorLeak(
        f"number {number}, {target}", **_made(origin, recording), holders=tuple(elsewhere.get(target, ()))
    )


# -- threads and processes ----------------------------------------------------------------------------------------


def _thread(thread: threading.Thread, recording: Recording) -> Finding:
    origin = recording.of_thread(thread)
    daemon = " (daemon)" if thread.daemon else ""
    frame = sys._current_frames().get(thread.ident or 0)
    at = "" if frame is None else f", now at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    return ThreadLeak(f"{thread.name}{daemon}, native id {thread.native_id}{at}", **_made(origin, recording))


def _process(child: Child, recording: Recording) -> Finding:
    command, state, since_s = _look(child)
    mother = () if child.parent in (0, os.getpid()) else (Holding(child.parent, name_of(child.parent), "its parent"),)
    origin = recording.of_process(child.pid, command, since_s)
    shown = " ".join(word.partition("\n")[0] for word in command)[:120] or name_of(child.pid)
    ended = ", ended, and nobody waited for it" if state == "Z" else ""
    return ProcessLeak(f"process {child.pid}{ended}: {shown}", **_made(origin, recording), holders=mother)


def _look(child: Child) -> tuple[tuple[str, ...], str, float]:
    """Return a process's command line, state, and when it started in seconds since the epoch."""
    command: tuple[str, ...] = ()
    state = "X"
    with suppress(OSError):
        with open(f"/proc/{child.pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{child.pid}/cmdline", "rb") as raw:
            command = tuple(os.fsdecode(word) for word in raw.read().split(b"\0")[:-1])
    # From the clock the kernel counts ticks of; /proc/stat's btime is in whole seconds.
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return command, state, booted_s + child.ticks / os.sysconf("SC_CLK_TCK")
