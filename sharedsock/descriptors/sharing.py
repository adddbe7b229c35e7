"""Tickets: the single-use right to a reference, made by one process and redeemed by another.

    share:   register the socket at its first share -> custody takes a duplicate -> the ledger issues the ticket
    redeem:  the ledger claims -> custody passes the number -> a descriptor stands on it -> acknowledged -> delivered

A ticket is a reference from the moment it is issued, so the sharer may close, or die, before it is redeemed (DUP-12).
A refusal uses nothing up. A ticket's bytes hold the registry's runtime path, its incarnation and the secret; a
checksum turns away damage before anybody is asked. The key of the registry is never in a ticket (S-06).

An interrupt leaves nothing behind, wherever it lands: a ticket its minter never saw is revoked, a claim that is not
acknowledged is handed back, and a descriptor that is counted but did not reach its caller waits for his next try with
the same ticket (I8, rule 3: the result of what succeeded is never thrown away).

Source: "Shared Sockets in the SPI", LPWSPDUPLICATESOCKET.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sharedsock.descriptors import closing, lending, options, service, table, transfer
from sharedsock.descriptors.descriptor import Closer, Descriptor
from sharedsock.descriptors.providing import chain_of, spelled
from sharedsock.kernel import exclusive, numbers, sockets, system
from sharedsock.model import trace
from sharedsock.model.errors import ForkedDescriptor, NotASocket, RegistryGone, TicketInvalid, with_winerror
from sharedsock.registry import connect

if TYPE_CHECKING:
    from sharedsock.kernel.sockets import KernelSocket
    from sharedsock.model.identity import SocketId
    from sharedsock.registry.client import Claim, Client

__all__ = ["duplicate", "flush", "lend", "mint", "minting", "redeem", "register", "revoke", "settle", "share"]

# Nothing is held at a registry before this module is imported.
connect.set_holding_hook(service.look_after)

# magic, checksum, incarnation, secret; then the runtime path in UTF-8.
_HEAD: Final = struct.Struct("4s16s16s32s")
_MAGIC: Final = b"SST1"
_PATH_LIMIT: Final = 4096
_MOST_UNDELIVERED: Final = 8

T = TypeVar("T")

_launch = threading.local()
# Redeemed and counted, but an interrupt kept it from its caller: by the ticket's secret, oldest first.
_undelivered: OrderedDict[bytes, Descriptor] = OrderedDict()
# Tickets of launches that are over, and the child (None: there is none), of which a registry that hangs has not heard.
_unsettled: deque[tuple[bytes, int | None]] = deque()
os.register_at_fork(after_in_child=_unsettled.clear)  # they are the parent's


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
    kernel = transfer.require_kernel(descriptor)
    if descriptor.client is not None:
        return descriptor.client
    with descriptor.share_lock:
        client = descriptor.client
        if client is None:
            client = connect.default_client()
            client.on_reconnect = table.announce_again
            try:
                exclusive.expose(kernel)
                facts = descriptor.socket_facts()
                descriptor.slot = client.announce(facts, descriptor.facts(), chain=spelled(descriptor.chain))
                # Only what differs from a new record travels: another adopter of the same file may have set more.
                changes = options.differences(descriptor.local)
                if changes:
                    client.set_common(facts.socket, **changes)
                descriptor.client = client
            except BaseException as error:
                _withdraw(client, descriptor, error)
                if kernel.aborted is not None:
                    transfer.require_kernel(descriptor)
                raise
    # Race: a close that saw no registry has given nothing back. Its mark came first, so we see it here, and withdraw.
    if kernel.aborted is not None:
        with suppress(RegistryGone, NotASocket):
            client.begin_close(descriptor.id)
            client.end_close(descriptor.id)
        transfer.require_kernel(descriptor)
    return client


def _withdraw(client: Client, descriptor: Descriptor, error: BaseException) -> None:
    """An announcement did not come to its end: whatever the registry has counted of it is given back, soon or now."""
    table.abandon(client, descriptor.id)
    if not isinstance(error, RegistryGone):  # that one has just been waited for: the next call that reaches it does it
        table.flush_abandoned()


def share(
    descriptor: Descriptor,
    target: int | None,
    expires_s: float | None,
    into: Callable[[bytes], Any] = bytes,
    *,
    launching: bool = False,
) -> Any:
    """Issue a ticket for one process, or with None for the first claimer; return its bytes.

    Other processes: none is asked; the socket now stays open until the ticket is redeemed, revoked or void.

    Args:
        into: makes of the bytes what is returned; part of the delivery, so that an interrupt in it revokes the ticket.
        launching: it is for a child that is being launched: it has no clock, and ends with this process until `settle`.

    Raises:
        NotASocket: the descriptor is closed. TicketError: no such process. TicketLimit: too many unclaimed tickets.
        RegistryGone: no registry.
    """
    kernel = transfer.require_kernel(descriptor)
    if trace.hook is not None:
        trace.hit("share.begin", descriptor=descriptor.id)
    client = register(descriptor)
    flush()
    assert descriptor.socket_id is not None
    secrets: list[bytes] = []
    try:
        client.issue(
            descriptor.socket_id, descriptor.id, kernel.number, target, expires_s, secrets, launching=launching
        )
        if trace.hook is not None:
            trace.hit("share.issued", descriptor=descriptor.id)
        return into(_encode(client, secrets[0]))
    except BaseException:
        for secret in secrets:  # a ticket nobody has seen
            with suppress(OSError):
                client.revoke(secret)
        # A close has overtaken us: custody got the dead file, or the registry an unknown descriptor.
        if kernel.aborted is not None:
            transfer.require_kernel(descriptor)
        raise


def redeem(info: bytes, into: Callable[[Descriptor], T]) -> T:
    """Turn a ticket into a descriptor of this process on the same socket; return what `into` makes of it.

    Args:
        into: wraps the descriptor for its user; part of the delivery, so that an interrupt in it loses nothing.

    Raises:
        TicketInvalid, TicketAlreadyClaimed, TicketExpired: refused, and nothing is used up.
        InvalidProvider: this process has not the chain under it; the ticket can be redeemed elsewhere, or again.
        OSError: EMFILE, no number was free; the ticket can be redeemed again. RegistryGone: its registry has died.
    """
    runtime, incarnation, secret = _decode(info)
    table.note_fork()
    found: list[Descriptor | None] = []
    try:
        found.extend(map(_undelivered.pop, (secret,), (None,)))  # one of two threads gets it, and no step loses it
        if found[0] is not None and not found[0].is_closed:
            return into(table.enter(found[0]))
    except BaseException:
        for descriptor in filter(None, found):
            _keep_undelivered(secret, descriptor)
        raise
    client = connect.client_of(runtime)
    if client.incarnation != incarnation:
        raise TicketInvalid("this ticket belongs to a registry that has ended; ask the sharer for another share()")
    flush()
    claims: list[Claim] = []
    fresh: Descriptor | None = None
    try:
        claim = client.claim(secret, claims)
        facts = claim.socket
        chain = chain_of(claim.chain) if claim.chain else None  # what cannot be had here uses no ticket up
        fresh = Descriptor(sockets.adopt(claim.fd, facts.family, facts.type, facts.protocol))
        if trace.hook is not None:
            trace.hit("take.wrapped", descriptor=fresh.id)
        fresh.socket_id, fresh.slot, fresh.chain = facts.socket, claim.slot, chain
        client.on_reconnect = table.announce_again
        client.acknowledge(claim, fresh.facts(), posted=True)
        fresh.client = client
        table.enter(fresh)
        if not client.is_from(claim):  # another one has come meanwhile, and has been told of all but this one
            table.announce_again(client)
        return into(fresh)
    except BaseException as error:
        if fresh is not None and claims and _is_counted(client, claims[0], fresh, error):
            fresh.client = client
            _keep_undelivered(secret, fresh)
        elif fresh is not None:
            fresh.client = None
            closing.collect(fresh)
        elif claims:
            _hand_back(client, claims[0])
        raise


def _hand_back(client: Client, claim: Claim) -> None:
    """Nothing stands on a claim's number: return the ticket, and close the number unless that has been done."""
    with suppress(RegistryGone, TicketInvalid):
        client.refuse(claim)
    sockets.close_stray(claim.fd, claim.socket.socket)


def _is_counted(client: Client, claim: Claim, descriptor: Descriptor, error: BaseException) -> bool:
    """After a failure once a descriptor stood on the claim: hand the ticket back; report whether that came too late."""
    if isinstance(error, RegistryGone):
        # Lost with its channel, the claim has gone back by itself; heard late, it counts: the next call gives it back.
        table.abandon(client, descriptor.id)
        return False
    try:
        client.refuse(claim)
    except TicketInvalid:
        with suppress(OSError):
            client.acknowledge(claim, descriptor.facts())  # idempotent: agrees if it is ours, refuses if it is not
            return True
    except RegistryGone:
        table.abandon(client, descriptor.id)
    return False


def _keep_undelivered(secret: bytes, descriptor: Descriptor) -> None:
    """Keep a counted descriptor for the next try with its ticket; the oldest of too many is closed.

    In a new object: the one the caller was to get may be in a half-made face, whose destructor closes it.
    """
    if descriptor.is_closed:
        return
    heir = Descriptor(descriptor.kernel)
    for name in ("id", "client", "slot", "socket_id", "chain", "local", "opened_s", "_place"):
        setattr(heir, name, getattr(descriptor, name))
    descriptor.swap_for_closed(Closer(descriptor, "an interrupt"))
    _undelivered[secret] = table.enter(heir)
    while len(_undelivered) > _MOST_UNDELIVERED:
        closing.close(_undelivered.popitem(last=False)[1])


def revoke(info: bytes) -> bool:
    """Take an unclaimed ticket back; report whether there was one to take.

    Other processes: the target can not redeem it any more. If it was the last reference, the socket ends.

    Raises:
        TicketInvalid: damaged, or no ticket. RegistryGone: its registry cannot be reached.
    """
    runtime, incarnation, secret = _decode(info)
    try:
        client = connect.client_of(runtime)
    except TicketInvalid:  # the registry has ended, and its tickets with it
        return False
    return client.incarnation == incarnation and client.revoke(secret)


def settle(tickets: list[bytes], child: int | None) -> None:
    """A launch is over: tie the tickets minted for it to the child, or take them back where there is none.

    Can be cut short anywhere and done again: what is done has left the list. A registry that hangs is told later, by
    the next call of `flush`.
    """
    while tickets:
        if not _settle_one(tickets[-1], child):
            _unsettled.append((tickets[-1], child))
        tickets.pop()


def _settle_one(info: bytes, child: int | None) -> bool:
    """Bind a ticket, or revoke it; False: its registry is there and does not answer. Doubled: no effect."""
    runtime, _, secret = _decode(info)
    try:
        client = connect.client_of(runtime)
    except OSError:  # its registry has ended, and the ticket with it
        return True
    try:
        if child is None:
            client.revoke(secret)
        else:
            client.bind(secret, child)
    except RegistryGone:
        return not client.is_alive
    except OSError:
        # Claimed by now, or ours no more. Or we count processes in a namespace of our own (F-27), so that the registry
        # cannot tell which the child is: the ticket goes on as it is, and ends with us at the latest.
        pass
    return True


def flush() -> None:
    """Tell registries what could not be told when it was due: references given up, launches that are over."""
    table.flush_abandoned()
    for one in list(_unsettled):  # by two threads at once: told twice, which is the same
        if not _settle_one(*one):
            return
        with suppress(ValueError):
            _unsettled.remove(one)


def duplicate(descriptor: Descriptor, into: Callable[[Descriptor], T]) -> T:
    """Open a second, independent descriptor on the same socket; return what `into` makes of it (DUP-11).

    Raises:
        NotASocket: closed, or being closed in another thread.
        OSError: EMFILE, no number is free; nothing has changed.
    """
    kernel = transfer.require_kernel(descriptor)
    client = register(descriptor)
    facts = descriptor.socket_facts()
    twin = Descriptor(_twin_of(descriptor, kernel, facts.socket))
    try:
        twin.socket_id, twin.timeout_s = facts.socket, descriptor.timeout_s
        twin.chain = descriptor.chain
        twin.slot = client.announce(facts, twin.facts(), chain=spelled(twin.chain))
        twin.client = client
        if kernel.aborted is not None:
            # A close came first, and may have been told LAST: the twin must not outlive what that does to the socket.
            transfer.require_kernel(descriptor)
        return into(table.enter(twin))
    except BaseException as error:
        if twin.client is None:
            closing.collect(twin)
            _withdraw(client, twin, error)
        else:
            closing.close(twin)
        raise


def _twin_of(descriptor: Descriptor, kernel: KernelSocket, socket: SocketId) -> KernelSocket:
    taken: list[int] = []
    try:
        with numbers.gate:
            # A close marks before it puts the dead file over the number, and does that under the gate.
            if kernel.aborted is not None:
                transfer.require_kernel(descriptor)
            system.duplicate(kernel.number, taken)
            return sockets.adopt(taken[0], descriptor.family, descriptor.type, descriptor.protocol)
    except BaseException as error:
        for number in taken:
            sockets.close_stray(number, socket)
        if isinstance(error, OSError):
            with_winerror(error)
        raise


def lend(descriptor: Descriptor, target: int) -> None:
    """Count a reference for a process without sharedsock, until that process ends.

    Raises:
        TicketError: no such process.
    """
    lending.lend(register(descriptor), descriptor, target, time())


@contextmanager
def minting(minted: list[bytes]) -> Iterator[None]:
    """Collect the tickets minted in this thread, while multiprocessing launches a child; `settle` them afterwards."""
    before = getattr(_launch, "minted", None)
    _launch.minted = minted
    try:
        yield
    finally:
        _launch.minted = before


def mint(descriptor: Descriptor) -> bytes:
    """Issue the ticket a pickled socket stands for: the first claimer of the registry wins.

    Minted while a child is being launched (`minting`) it has no clock: it ends with this process, and once the child
    is known with the child. Else it is good for 60 s.

    Raises:
        NotASocket: closed before it was pickled: a queue or pool pickles later, in a thread of its own.
        ForkedDescriptor: the parent's.
    """
    minted = getattr(_launch, "minted", None)

    def deliver(info: bytes) -> bytes:
        if minted is not None:
            minted.append(info)
        return info

    try:
        info: bytes = share(descriptor, None, None, deliver, launching=minted is not None)
        return info
    except ForkedDescriptor:
        raise
    except NotASocket as error:
        raise NotASocket(
            f"descriptor {descriptor.id} was closed before it was pickled; Queue, Pool and executors pickle later, in "
            "a thread of their own: hand over s.ticket(), which is minted at once",
            descriptor=descriptor.id,
        ) from error
