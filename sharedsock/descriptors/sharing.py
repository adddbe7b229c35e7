"""Tickets: the single-use right to a reference, made by one process and redeemed by another.

    share:   register the socket at its first share -> custody takes a duplicate -> the ledger issues the ticket
    redeem:  the ledger claims -> custody passes the number -> a descriptor stands on it -> acknowledged

A ticket is a reference from the moment it is issued, so the sharer may close, or die, before it is redeemed (DUP-12).
A refusal uses nothing up. A ticket's bytes hold the registry's runtime path, its incarnation and the secret; a
checksum turns away damage before anybody is asked. The key of the registry is never in a ticket (S-06).

Source: "Shared Sockets in the SPI", LPWSPDUPLICATESOCKET.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from sharedsock.descriptors import closing, options, table, transfer
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.kernel import numbers, sockets, system
from sharedsock.kernel.waker import Waker
from sharedsock.model import trace
from sharedsock.model.errors import NotASocket, RegistryGone, TicketInvalid
from sharedsock.registry import connect

if TYPE_CHECKING:
    from sharedsock.registry.client import Claim, Client

__all__ = ["bind", "duplicate", "lend", "mint", "minting", "redeem", "register", "revoke", "share"]

# magic, checksum, incarnation, secret; then the runtime path in UTF-8.
_HEAD: Final = struct.Struct("4s16s16s32s")
_MAGIC: Final = b"SST1"
_PATH_LIMIT: Final = 4096

_launch = threading.local()


def _checksum(body: bytes) -> bytes:
    import hashlib  # 1 ms to import: only sharing pays it

    return hashlib.sha256(body).digest()[:16]


def _encode(client: Client, secret: bytes) -> bytes:
    path = os.fsencode(client.runtime)
    body = client.incarnation + secret + path
    return _MAGIC + _checksum(body) + body


def _decode(info: bytes) -> tuple[str, bytes, bytes]:
    """Return runtime path, incarnation and secret; only the size is looked at before the checksum has matched."""
    if not isinstance(info, bytes | bytearray | memoryview):
        raise TypeError(f"a ticket is bytes, not {type(info).__name__}")
    info = bytes(info)
    if not _HEAD.size < len(info) <= _HEAD.size + _PATH_LIMIT:
        raise TicketInvalid(f"{len(info)} bytes are no ticket; ask the sharer for another share()")
    magic, checksum, incarnation, secret = _HEAD.unpack_from(info)
    import hmac

    if magic != _MAGIC or not hmac.compare_digest(checksum, _checksum(info[20:])):
        raise TicketInvalid("this ticket is damaged or no ticket; ask the sharer for another share()")
    return os.fsdecode(info[_HEAD.size :]), incarnation, secret


def register(descriptor: Descriptor) -> Client:
    """Make the socket known to a registry, at its first share; return the channel, which renews itself.

    Raises:
        RegistryGone: no registry can be reached or started.
        NotASocket: the descriptor was closed meanwhile.
    """
    if descriptor.client is not None:
        return descriptor.client
    kernel = transfer.require_kernel(descriptor)
    with descriptor.share_lock:
        client = descriptor.client
        if client is None:
            client = connect.default_client()
            client.on_reconnect = table.announce_again
            facts = descriptor.socket_facts()
            descriptor.slot = client.announce(facts, descriptor.facts())
            # Only what differs from a new record travels: another adopter of the same file may have set more.
            changes = options.differences(descriptor.local)
            if changes:
                client.set_common(facts.socket, **changes)
            descriptor.client = client
    # Race: a close that saw no registry has given nothing back. Its mark came first, so we see it here, and withdraw.
    if kernel.aborted is not None:
        with suppress(RegistryGone, NotASocket):
            client.begin_close(descriptor.id)
            client.end_close(descriptor.id)
        transfer.require_kernel(descriptor)
    return client


def share(descriptor: Descriptor, target: int | None, expires_s: float | None) -> bytes:
    """Issue a ticket for one process, or with None for the first claimer; return its bytes.

    Other processes: none is asked; the socket now stays open until the ticket is redeemed, revoked or void.

    Raises:
        NotASocket: the descriptor is closed. TicketError: no such process. TicketLimit: too many unclaimed tickets.
        RegistryGone: no registry.
    """
    kernel = transfer.require_kernel(descriptor)
    if trace.hook is not None:
        trace.hit("share.begin", descriptor=descriptor.id)
    client = register(descriptor)
    table.flush_abandoned()
    assert descriptor.socket_id is not None
    try:
        secret = client.issue(descriptor.socket_id, descriptor.id, kernel.number, target, expires_s)
    except OSError:
        # A close has overtaken us: custody got the dead file, or the registry an unknown descriptor.
        if kernel.aborted is not None:
            transfer.require_kernel(descriptor)
        raise
    if trace.hook is not None:
        trace.hit("share.issued", descriptor=descriptor.id)
    return _encode(client, secret)


def redeem(info: bytes) -> Descriptor:
    """Turn a ticket into a descriptor of this process on the same socket.

    Raises:
        TicketInvalid, TicketAlreadyClaimed, TicketExpired: refused, and nothing is used up.
        OSError: EMFILE, no number was free; the ticket can be redeemed again. RegistryGone: its registry has died.
    """
    runtime, incarnation, secret = _decode(info)
    table.note_fork()
    client = connect.client_of(runtime)
    if client.incarnation != incarnation:
        raise TicketInvalid("this ticket belongs to a registry that has ended; ask the sharer for another share()")
    kept: list[Claim] = []
    descriptor: Descriptor | None = None
    try:
        waker = Waker()  # before the claim: for want of a number nothing is claimed
        claim = client.claim(secret, kept)
        facts = claim.socket
        descriptor = Descriptor(sockets.adopt(claim.fd, facts.family, facts.type, facts.protocol, waker))
        if trace.hook is not None:
            trace.hit("take.wrapped", descriptor=descriptor.id)
        descriptor.socket_id, descriptor.slot, descriptor.client = facts.socket, claim.slot, client
        client.on_reconnect = table.announce_again
        client.acknowledge(claim, descriptor.facts())
    except BaseException:
        for claim in kept:
            with suppress(RegistryGone, TicketInvalid):
                client.refuse(claim)
            numbers.release_stray(claim.fd)
        if descriptor is not None:
            descriptor.client = None
            closing.collect(descriptor)
        raise
    return table.enter(descriptor)


def revoke(info: bytes) -> bool:
    """Take an unclaimed ticket back; report whether there was one to take.

    Other processes: the target can not redeem it any more. If it was the last reference, the socket ends.
    """
    runtime, incarnation, secret = _decode(info)
    client = connect.client_of(runtime)
    return client.incarnation == incarnation and client.revoke(secret)


def bind(info: bytes, target: int) -> None:
    """Tie a claim-once ticket to the process it was minted for: its clock stops, it lives as long as that process."""
    runtime, _, secret = _decode(info)
    connect.client_of(runtime).bind(secret, target)


def duplicate(descriptor: Descriptor) -> Descriptor:
    """Open a second, independent descriptor of this process on the same socket (DUP-11).

    Raises:
        OSError: EMFILE, no number is free; nothing has changed.
    """
    kernel = transfer.require_kernel(descriptor)
    client = register(descriptor)
    with numbers.gate:
        twin = Descriptor(
            sockets.adopt(system.duplicate(kernel.number), descriptor.family, descriptor.type, descriptor.protocol)
        )
    # A close may have put the dead file over the number before we duplicated it: then this is no socket.
    twin.socket_id = descriptor.socket_id
    twin.slot = client.announce(descriptor.socket_facts(), twin.facts())
    twin.client = client
    return table.enter(twin)


def lend(descriptor: Descriptor, target: int) -> None:
    """Count a reference for a process without sharedsock, until that process ends.

    Raises:
        TicketError: no such process.
    """
    client = register(descriptor)
    assert descriptor.socket_id is not None
    client.lend(descriptor.socket_id, descriptor.id, target)


@contextmanager
def minting(minted: list[bytes]) -> Iterator[None]:
    """Collect the tickets that pickling mints in this thread, while multiprocessing launches a child."""
    _launch.minted = minted
    try:
        yield
    finally:
        _launch.minted = None


def mint(descriptor: Descriptor) -> bytes:
    """Issue the ticket a pickled socket stands for: the first claimer of the registry wins.

    Raises:
        NotASocket: closed before it was pickled: a queue or pool pickles later, in a thread of its own.
    """
    if descriptor.is_closed:
        raise NotASocket(
            f"descriptor {descriptor.id} was closed before it was pickled; Queue, Pool and executors pickle later, in "
            "a thread of their own: hand over s.ticket(), which is minted at once",
            descriptor=descriptor.id,
        )
    info = share(descriptor, None, None)
    minted = getattr(_launch, "minted", None)
    if minted is not None:
        minted.append(info)
    return info
