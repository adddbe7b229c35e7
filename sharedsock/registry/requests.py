"""THE REQUESTS: one table code -> handler, each a few lines between a message and the ledger.

A handler decides everything before it changes anything, and answers with a message or raises the `OSError` that becomes
an ERROR. Who asks is the channel's holder. A descriptor that came along is kept by exactly one handler (ISSUE);
everything else, and every other outcome, closes it before the reply (S-13).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sharedsock.model import trace
from sharedsock.model.errors import TicketError, from_errno
from sharedsock.model.identity import DescriptorFacts, DescriptorId, Holder, HolderId, SocketFacts, SocketId
from sharedsock.registry.connection import Channel, Received
from sharedsock.registry.custody import Custody
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness
from sharedsock.registry.messages import (
    COMMON_FIELDS,
    HOLDER_KINDS,
    SECRET_SIZE,
    SHAPES,
    Code,
    Message,
    encode,
    fitting,
    readdress,
)
from sharedsock.registry.page import SLOTS, CommonState, PageWriter

__all__ = ["Asked", "Asker", "Reply", "Services", "answer"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's bytes, the descriptor that goes along, and the ticket number whose claim a failed sending undoes."""

    data: bytes
    descriptor: int | None = None
    claim: int | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Who waits for the late answer of a begin-close."""

    channel: Channel
    request: int


class Services(Protocol):
    """What handlers need of the server."""

    ledger: Ledger
    custody: Custody
    liveness: Liveness
    page: PageWriter

    def now(self) -> float: ...
    def wall_s(self) -> float: ...
    def random(self, size: int) -> bytes: ...
    def reap_dead(self) -> None: ...
    def numbers(self) -> dict[str, int]: ...
    def refusals(self) -> list[tuple[str, int]]: ...
    def request_stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: who asks, what, and what came along."""

    services: Services
    channel: Channel
    holder: HolderId
    message: Message
    received: Received

    def ok(self, code: Code = Code.OK, **values: Any) -> Reply:
        return Reply(encode(code, self.message.request, **values))


def answer(asked: Asked) -> Reply | None:
    """Do what a request asks; None: the answer follows later.

    Raises:
        OSError: refused, and nothing is changed.
    """
    message, received = asked.message, asked.received
    handler = _HANDLERS.get(message.code)
    if handler is None:
        raise from_errno(errno.EINVAL, "that message is no request")
    if SHAPES[message.code].descriptor:
        if received.lost and not received.descriptors:
            raise from_errno(errno.EMFILE, "the registry is out of descriptors; try again later")
        if received.lost or len(received.descriptors) != 1:
            raise from_errno(errno.EINVAL, "exactly one descriptor belongs to this request")
    elif received.lost or received.descriptors:
        raise from_errno(errno.EINVAL, "no descriptor belongs to this request")
    return handler(asked)


def _socket_facts(message: Message) -> SocketFacts:
    return SocketFacts(SocketId(message.socket), message.family, message.type, message.protocol)


def _descriptor_facts(message: Message) -> DescriptorFacts:
    return DescriptorFacts(DescriptorId(message.descriptor), message.opened_at, message.opened_s)


def _announce(asked: Asked) -> Reply:
    message = asked.message
    slot = asked.services.ledger.announce(
        asked.holder, _socket_facts(message), _descriptor_facts(message), chain=message.chain
    )
    return asked.ok(Code.ANNOUNCED, slot=slot)


def _recover(asked: Asked) -> Reply:
    message = asked.message
    state = CommonState(**{name: message.values[name] for name in COMMON_FIELDS})
    facts = _socket_facts(message), _descriptor_facts(message)
    slot = asked.services.ledger.announce(asked.holder, *facts, state, message.chain)
    return asked.ok(Code.ANNOUNCED, slot=slot)


def _recovered(asked: Asked) -> Reply:
    asked.services.ledger.has_announced(asked.holder.nonce)
    return asked.ok()


def _issue(asked: Asked) -> Reply:
    services, message = asked.services, asked.message
    socket, descriptor = SocketId(message.socket), DescriptorId(message.descriptor)
    services.ledger.check_issue(asked.holder, socket, descriptor)
    facts = services.custody.admit(asked.received.descriptors[0], socket)
    target = None
    if message.target is not None:
        services.liveness.check_same_namespace(asked.channel.pid)
        target = services.liveness.watch_target(message.target)
        services.reap_dead()
    secret = services.random(SECRET_SIZE)
    number = services.ledger.issue(
        asked.holder,
        socket,
        descriptor,
        secret,
        target,
        message.expires_s,
        services.now(),
        services.wall_s(),
        launching=message.launching,
    )
    services.ledger.correct(facts)
    services.custody.keep(number, asked.received.descriptors.pop())
    return asked.ok(Code.ISSUED, secret=secret)


def _bind(asked: Asked) -> Reply:
    services, message = asked.services, asked.message
    services.liveness.check_same_namespace(asked.channel.pid)
    try:
        target = services.liveness.watch_target(message.target)
    except TicketError:
        target = None
    services.reap_dead()
    return asked.ok(Code.FLAG, value=services.ledger.bind(asked.holder, message.secret, target))


def _claim(asked: Asked) -> Reply:
    services, message = asked.services, asked.message
    granted = services.ledger.claim(asked.holder, message.secret, services.now())
    trace.hit("take.counted", number=granted.number)
    facts = granted.socket
    data = encode(
        Code.CLAIMED,
        message.request,
        number=granted.number,
        socket=facts.socket,
        family=facts.family,
        type=facts.type,
        protocol=facts.protocol,
        slot=granted.slot,
        target_bound=granted.target_bound,
        chain=granted.chain,
    )
    return Reply(data, services.custody.descriptor_of(granted.number), granted.number)


def _acknowledge(asked: Asked) -> Reply:
    asked.services.ledger.acknowledge(asked.holder, asked.message.number, _descriptor_facts(asked.message))
    return asked.ok()


def _refuse(asked: Asked) -> Reply:
    asked.services.ledger.refuse(asked.holder, asked.message.number)
    return asked.ok()


def _revoke(asked: Asked) -> Reply:
    return asked.ok(Code.FLAG, value=asked.services.ledger.revoke(asked.holder, asked.message.secret))


def _begin_close(asked: Asked) -> Reply | None:
    services, message = asked.services, asked.message
    token = Asker(asked.channel, message.request)
    last = services.ledger.begin_close(asked.holder, DescriptorId(message.descriptor), token, services.now())
    return None if last is None else asked.ok(Code.FLAG, value=last)


def _end_close(asked: Asked) -> Reply:
    asked.services.ledger.end_close(asked.holder, DescriptorId(asked.message.descriptor))
    return asked.ok()


def _cancel_close(asked: Asked) -> Reply:
    asked.services.ledger.cancel_close(asked.holder, DescriptorId(asked.message.descriptor))
    return asked.ok()


def _lend(asked: Asked) -> Reply:
    services, message = asked.services, asked.message
    services.liveness.check_same_namespace(asked.channel.pid)
    target = services.liveness.watch_target(message.target)
    services.reap_dead()
    descriptor = DescriptorId(message.descriptor)
    services.ledger.lend(asked.holder, SocketId(message.socket), descriptor, target, services.wall_s())
    return asked.ok()


def _references(asked: Asked) -> Reply:
    return asked.ok(Code.NUMBER, value=asked.services.ledger.references(SocketId(asked.message.socket)))


def _holders(asked: Asked) -> Reply:
    return _page_of_holders(asked, asked.services.ledger.holders(SocketId(asked.message.socket)))


def _former_holders(asked: Asked) -> Reply:
    return _page_of_holders(asked, asked.services.ledger.former_holders(SocketId(asked.message.socket)))


def _page_of_holders(asked: Asked, holders: tuple[Holder, ...]) -> Reply:
    rows = [
        (holder.pid, holder.name, holder.descriptor, HOLDER_KINDS.index(holder.kind), holder.opened_at, holder.since_s)
        for holder in holders
    ]
    return Reply(readdress(fitting(Code.HOLDERS_PAGE, asked.message.start, rows), asked.message.request))


def _sockets(asked: Asked) -> Reply:
    rows = [
        (facts.socket, facts.family, facts.type, facts.protocol, count)
        for facts, count in asked.services.ledger.sockets()
    ]
    return Reply(readdress(fitting(Code.SOCKETS_PAGE, asked.message.start, rows), asked.message.request))


def _set_common(asked: Asked) -> Reply:
    message = asked.message
    if message.changed >> len(COMMON_FIELDS):
        raise from_errno(errno.EINVAL, "an unknown field of the common state")
    changes = {name: message.values[name] for bit, name in enumerate(COMMON_FIELDS) if message.changed & (1 << bit)}
    asked.services.ledger.set_common(asked.holder, SocketId(message.socket), changes)
    return asked.ok()


def _common(asked: Asked) -> Reply:
    if asked.message.slot >= SLOTS:
        raise from_errno(errno.EINVAL, "no such slot")
    state = asked.services.page.read(asked.message.slot)
    return asked.ok(Code.COMMON_IS, **{name: getattr(state, name) for name in COMMON_FIELDS})


def _statistics(asked: Asked) -> Reply:
    return asked.ok(Code.STATISTICS_ARE, **asked.services.numbers())


def _refusals(asked: Asked) -> Reply:
    return asked.ok(Code.REFUSALS_PAGE, items=asked.services.refusals())


def _bye(asked: Asked) -> Reply:
    asked.channel.closing = True
    return asked.ok()


def _shutdown(asked: Asked) -> Reply:
    asked.services.request_stop()
    return asked.ok()


_HANDLERS: Final[dict[Code, Callable[[Asked], Reply | None]]] = {
    Code.ANNOUNCE: _announce,
    Code.ISSUE: _issue,
    Code.BIND: _bind,
    Code.CLAIM: _claim,
    Code.ACK: _acknowledge,
    Code.REFUSE: _refuse,
    Code.REVOKE: _revoke,
    Code.BEGIN_CLOSE: _begin_close,
    Code.END_CLOSE: _end_close,
    Code.CANCEL_CLOSE: _cancel_close,
    Code.LEND: _lend,
    Code.REFERENCES: _references,
    Code.HOLDERS: _holders,
    Code.FORMER_HOLDERS: _former_holders,
    Code.SOCKETS: _sockets,
    Code.SET_COMMON: _set_common,
    Code.COMMON: _common,
    Code.STATISTICS: _statistics,
    Code.REFUSALS: _refusals,
    Code.BYE: _bye,
    Code.SHUTDOWN: _shutdown,
    Code.RECOVER: _recover,
    Code.RECOVERED: _recovered,
}
