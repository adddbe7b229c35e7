"""Who and what: process instances, holders, sockets, descriptors, and the values that describe them.

A bare pid can be reused, so a process is its pid and start time, and a holder adds a nonce (rule 9). A socket is
its SO_COOKIE: the same in every process that holds it, never given to another (rule 16). All values are frozen. What
every request looks up in a table is a named tuple: a dataclass would hash in Python, each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

__all__ = [
    "DescriptorFacts",
    "DescriptorId",
    "Holder",
    "HolderId",
    "PendingOperation",
    "ProcessId",
    "RegistryStatistics",
    "SocketFacts",
    "SocketId",
    "Statistics",
]

DescriptorId = NewType("DescriptorId", int)
"""One process's handle on a socket: a number this process never gives out twice. It is not a file descriptor."""

SocketId = NewType("SocketId", int)
"""The underlying socket: its SO_COOKIE (64 bits), or dev << 64 | inode where the kernel has none."""


class ProcessId(NamedTuple):
    """One process instance: the pid, and when it started in clock ticks since boot (0 where unknown)."""

    pid: int
    start_ticks: int = 0


class HolderId(NamedTuple):
    """A process instance as the registry knows it. The nonce (16 bytes) tells a forked child from its parent."""

    process: ProcessId
    nonce: bytes


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """What a socket is, read from the kernel and never from a message (F-37)."""

    socket: SocketId
    family: int
    type: int
    protocol: int


@dataclass(frozen=True, slots=True)
class DescriptorFacts:
    """What is told to the registry about one descriptor.

    Attributes:
        descriptor: its number in the holding process.
        opened_at: "file:line in function", the place of user code that opened it.
        opened_s: when, in seconds since the epoch.
    """

    descriptor: DescriptorId
    opened_at: str
    opened_s: float


@dataclass(frozen=True, slots=True)
class Holder:
    """One reference, as `SharedSocket.holders()` lists it.

    Attributes:
        pid: the holding process; for an unclaimed ticket its target (0: first claimer wins).
        name: the process's name.
        descriptor: its number there; 0 for an unclaimed ticket.
        kind: "descriptor", "closing", "ticket" or "lent"; of one that has gone "closed" or "died".
        opened_at: "file:line in function".
        since_s: since when, in seconds since the epoch.
    """

    pid: int
    name: str
    descriptor: DescriptorId
    kind: str
    opened_at: str
    since_s: float


@dataclass(frozen=True, slots=True)
class PendingOperation:
    """One operation of this process that waits in the kernel.

    Attributes:
        thread: the thread's name; `thread_id` its native id.
        kind: "recv", "accept" …
        since_s: since when, in seconds since the epoch.
    """

    thread: str
    thread_id: int
    kind: str
    since_s: float


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """What one registry counts, at one moment."""

    pid: int
    clients: int
    sockets: int
    descriptors: int
    tickets: int
    custody: int
    refusals: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What this process counts, at one moment.

    Attributes:
        descriptors: open ones.
        shared: those of them that a registry knows.
        pending: operations that wait.
        retiring: numbers of closed descriptors that wait for the last call inside to leave; no leak.
    """

    descriptors: int
    shared: int
    pending: int
    retiring: int
