"""THE REQUESTS: one table, how a message begins -> its shape and handler, each a few lines between message and ledger.

A handler gets the house, the channel that asks, and the message's fields: its request id first, the rest in the order
of the table in messages.py. It decides everything before it changes anything, and returns the bytes of the reply, or
raises the `OSError` that becomes an ERROR. Who asks is the channel's holder. A descriptor that came along is kept by
exactly one handler (ISSUE); everything else, and every other outcome, closes it before the reply (S-13).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from sharedsock.model import trace
from sharedsock.model.errors import TicketError, from_errno
from sharedsock.model.identity import DescriptorFacts, Holder, HolderId, SocketFacts
from sharedsock.registry.connection import Channel
from sharedsock.registry.custody import Custody
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness
from sharedsock.registry.messages import COMMON_FIELDS, HOLDER_KINDS, SHAPES, Code, Shape, fitting, readdress
from sharedsock.registry.page import SLOTS, CommonState, PageWriter

__all__ = ["REQUESTS", "Asker", "Granting", "Handling", "Services", "check_descriptors"]

_COMMON: Final = len(COMMON_FIELDS)
_OK, _FLAG, _NUMBER, _ANNOUNCED, _CLAIMED, _COMMON_IS, _STATISTICS_ARE, _REFUSALS_PAGE = (
    SHAPES[code].pack
    for code in (
        Code.OK,
        Code.FLAG,
        Code.NUMBER,
        Code.ANNOUNCED,
        Code.CLAIMED,
        Code.COMMON_IS,
        Code.STATISTICS_ARE,
        Code.REFUSALS_PAGE,
    )
)


class Granting(NamedTuple):
    """A reply with a descriptor, and the ticket number whose claim a failed sending undoes."""

    data: bytes
    descriptor: int
    claim: int


class Asker(NamedTuple):
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
    def reap_dead(self) -> bool: ...
    def numbers(self) -> dict[str, int]: ...
    def refusals(self) -> list[tuple[str, int]]: ...
    def request_stop(self) -> None: ...


Answer = bytes | Granting | None
"""None: the answer follows later."""
Fields = tuple[Any, ...]


def check_descriptors(channel: Channel, shape: Shape) -> None:
    """Compare what came along with what belongs to the request.

    Raises:
        OSError: refused.
    """
    if shape.descriptor:
        if channel.lost and not channel.came:
            raise from_errno(errno.EMFILE, "the registry is out of descriptors; try again later")
        if channel.lost or len(channel.came) != 1:
            raise from_errno(errno.EINVAL, "exactly one descriptor belongs to this request")
    elif channel.lost or channel.came:
        raise from_errno(errno.EINVAL, "no descriptor belongs to this request")


def _holder(channel: Channel) -> HolderId:
    assert channel.holder is not None, "I9: only who has authenticated asks"
    return channel.holder


def _announce(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket, family, type_, protocol, descriptor, opened_s, opened_at, chain = fields
    facts = SocketFacts(socket, family, type_, protocol), DescriptorFacts(descriptor, opened_at, opened_s)
    return _ANNOUNCED(request, house.ledger.announce(_holder(channel), *facts, chain=chain))


def _recover(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, *common = fields[: _COMMON + 1]
    socket, family, type_, protocol, descriptor, opened_s, opened_at, chain = fields[_COMMON + 1 :]
    facts = SocketFacts(socket, family, type_, protocol), DescriptorFacts(descriptor, opened_at, opened_s)
    state = CommonState(**dict(zip(COMMON_FIELDS, common, strict=True)))
    return _ANNOUNCED(request, house.ledger.announce(_holder(channel), *facts, state, chain))


def _recovered(house: Services, channel: Channel, fields: Fields) -> Answer:
    house.ledger.has_announced(_holder(channel).nonce)
    return _OK(fields[0])


def _issue(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, secret, socket, descriptor, wanted, expires_s, launching = fields
    holder = _holder(channel)
    house.ledger.check_issue(holder, socket, descriptor, secret)
    facts = house.custody.admit(channel.came[0], socket)
    target = None
    has_changed = False
    if wanted is not None:
        house.liveness.check_same_namespace(channel.pid)
        target = house.liveness.watch_target(wanted)
        has_changed = house.reap_dead()
    number = house.ledger.issue(
        holder,
        socket,
        descriptor,
        secret,
        target,
        expires_s,
        house.now(),
        house.wall_s(),
        launching=launching,
        is_checked=not has_changed,
    )
    house.ledger.correct(facts)
    house.custody.keep(number, channel.came.pop())
    return _OK(request)


def _bind(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, secret, wanted = fields
    house.liveness.check_same_namespace(channel.pid)
    try:
        target = house.liveness.watch_target(wanted)
    except TicketError:
        target = None
    house.reap_dead()
    return _FLAG(request, house.ledger.bind(_holder(channel), secret, target))


def _claim(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, secret = fields
    granted = house.ledger.claim(_holder(channel), secret, house.now())
    number, facts = granted.number, granted.socket
    if trace.hook is not None:
        trace.hit("take.counted", number=number)
    data = _CLAIMED(
        request,
        number,
        facts.socket,
        facts.family,
        facts.type,
        facts.protocol,
        granted.slot,
        granted.target_bound,
        granted.chain,
    )
    return Granting(data, house.custody.descriptor_of(number), number)


def _acknowledge(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, number, descriptor, opened_s, opened_at = fields
    house.ledger.acknowledge(_holder(channel), number, DescriptorFacts(descriptor, opened_at, opened_s))
    return _OK(request)


def _refuse(house: Services, channel: Channel, fields: Fields) -> Answer:
    house.ledger.refuse(_holder(channel), fields[1])
    return _OK(fields[0])


def _revoke(house: Services, channel: Channel, fields: Fields) -> Answer:
    return _FLAG(fields[0], house.ledger.revoke(_holder(channel), fields[1]))


def _begin_close(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, descriptor = fields
    last = house.ledger.begin_close(_holder(channel), descriptor, Asker(channel, request), house.now())
    return None if last is None else _FLAG(request, last)


def _end_close(house: Services, channel: Channel, fields: Fields) -> Answer:
    house.ledger.end_close(_holder(channel), fields[1])
    return _OK(fields[0])


def _cancel_close(house: Services, channel: Channel, fields: Fields) -> Answer:
    house.ledger.cancel_close(_holder(channel), fields[1])
    return _OK(fields[0])


def _lend(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket, descriptor, wanted, started_ticks, since_s = fields
    house.liveness.check_same_namespace(channel.pid)
    target = house.liveness.watch_target(wanted)
    house.reap_dead()
    if started_ticks not in (0, target.start_ticks):
        raise TicketError(f"process {wanted} is another one than the borrower, which has ended")
    house.ledger.lend(_holder(channel), socket, descriptor, target, since_s)
    return _NUMBER(request, target.start_ticks)


def _references(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket = fields
    return _NUMBER(request, house.ledger.references(socket))


def _holders(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket, start = fields
    return _page_of_holders(request, start, house.ledger.holders(socket))


def _former_holders(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket, start = fields
    return _page_of_holders(request, start, house.ledger.former_holders(socket))


def _page_of_holders(request: int, start: int, holders: tuple[Holder, ...]) -> bytes:
    rows = [
        (holder.pid, holder.name, holder.descriptor, HOLDER_KINDS.index(holder.kind), holder.opened_at, holder.since_s)
        for holder in holders
    ]
    return readdress(fitting(Code.HOLDERS_PAGE, start, rows), request)


def _sockets(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, start = fields
    rows = [(facts.socket, facts.family, facts.type, facts.protocol, count) for facts, count in house.ledger.sockets()]
    return readdress(fitting(Code.SOCKETS_PAGE, start, rows), request)


def _set_common(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, socket, changed, *values = fields
    if changed >> _COMMON:
        raise from_errno(errno.EINVAL, "an unknown field of the common state")
    changes = {name: values[bit] for bit, name in enumerate(COMMON_FIELDS) if changed & (1 << bit)}
    house.ledger.set_common(_holder(channel), socket, changes)
    return _OK(request)


def _common(house: Services, channel: Channel, fields: Fields) -> Answer:
    request, slot = fields
    if slot >= SLOTS:
        raise from_errno(errno.EINVAL, "no such slot")
    state = house.page.read(slot)
    return _COMMON_IS(request, *[getattr(state, name) for name in COMMON_FIELDS])


def _statistics(house: Services, channel: Channel, fields: Fields) -> Answer:
    numbers = house.numbers()
    return _STATISTICS_ARE(fields[0], *[numbers[name] for name in SHAPES[Code.STATISTICS_ARE].names])


def _refusals(house: Services, channel: Channel, fields: Fields) -> Answer:
    return _REFUSALS_PAGE(fields[0], house.refusals())


def _bye(house: Services, channel: Channel, fields: Fields) -> Answer:
    channel.closing = True
    return _OK(fields[0])


def _shutdown(house: Services, channel: Channel, fields: Fields) -> Answer:
    house.request_stop()
    return _OK(fields[0])


Handler = Callable[[Services, Channel, Fields], Answer]


class Handling:
    """One row: how a request is read, and what is done. All but these two are the shape's, nearer at hand."""

    __slots__ = ("code", "descriptor", "handler", "shape", "unpack")

    def __init__(self, shape: Shape, handler: Handler) -> None:
        self.shape, self.handler = shape, handler
        self.code, self.descriptor, self.unpack = shape.code, shape.descriptor, shape.unpack


def _rows(handlers: dict[Code, Handler]) -> dict[bytes, Handling]:
    return {SHAPES[code].head: Handling(SHAPES[code], handler) for code, handler in handlers.items()}


REQUESTS: Final = _rows(
    {
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
)
