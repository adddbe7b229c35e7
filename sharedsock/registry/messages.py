"""THE WIRE: every message of the registry's protocol, as one table code -> shape, and its two directions.

One message is one SEQPACKET record of at most 4 KiB: a header (magic, version, code, request id), then the fields of
its shape: the fixed ones in one struct together with the header, so that a message is packed and read in one step, and
behind them the sized ones. Nothing follows. No peer's bytes reach pickle, eval or an allocation they announce (I9,
S-07, F-104 … F-107). At most one file descriptor travels with a message, where the table says so.

What a field may be is in fields.py; what the fields mean is the ledger's business, sending them the server's and the
client's, who know a shape by its code and use its `pack` and `unpack`; `encode` and `decode` are the same by name.

The server is started as `main(runtime_dir, ready_fd)` (see server.py); no secret is an argument or in the environment.
"""

from __future__ import annotations

import errno as _errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sharedsock.model.errors import (
    InternalError,
    NotASocket,
    RegistryGone,
    SharedSocketError,
    TicketAlreadyClaimed,
    TicketError,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
    from_errno,
)
from sharedsock.registry.fields import (
    CHAIN,
    F64,
    FLAG,
    HOLDER_NONCE,
    I32,
    MAX_CHAIN,
    MAX_TEXT,
    NONCE,
    NONCE_SIZE,
    OPTIONAL_F64,
    OPTIONAL_U32,
    SECRET,
    SECRET_SIZE,
    SOCKET,
    TEXT,
    U8,
    U16,
    U32,
    U64,
    ProtocolError,
    Rows,
)
from sharedsock.registry.shapes import HEAD_SIZE, HEADER, MAGIC, MAX_MESSAGE, VERSION, Code, Fields, Shape

__all__ = [
    "BY_HEAD",
    "COMMON_FIELDS",
    "HEADER",
    "HEAD_SIZE",
    "HOLDER_KINDS",
    "MAX_CHAIN",
    "MAX_MESSAGE",
    "MAX_TEXT",
    "NONCE_SIZE",
    "SECRET_SIZE",
    "SHAPES",
    "VERSION",
    "Code",
    "Message",
    "ProtocolError",
    "Shape",
    "decode",
    "encode",
    "error_fields",
    "error_of",
    "fitting",
    "readdress",
    "refusal_of",
    "shape_of",
]

HOLDER_KINDS: Final = ("descriptor", "closing", "ticket", "lent", "closed", "died")
COMMON_FIELDS: Final = (
    "shut_receive",
    "shut_send",
    "reset_seen",
    "nonblocking",
    "linger_s",
    "linger_kept_s",
    "has_port",
    "events",
)

_SOCKET_FACTS: Fields = (("socket", SOCKET), ("family", I32), ("type", I32), ("protocol", I32))
_DESCRIPTOR_FACTS: Fields = (("descriptor", U64), ("opened_s", F64), ("opened_at", TEXT))
_COMMON: Fields = (
    ("shut_receive", FLAG),
    ("shut_send", FLAG),
    ("reset_seen", FLAG),
    ("nonblocking", FLAG),
    ("linger_s", OPTIONAL_U32),
    ("linger_kept_s", OPTIONAL_U32),
    ("has_port", FLAG),
    ("events", U32),
)


def _table(*shapes: Shape) -> dict[Code, Shape]:
    return {shape.code: shape for shape in shapes}


# The one table. WELCOME carries the page's memfd when its `page` flag says so.
SHAPES: Final[dict[Code, Shape]] = _table(
    Shape(Code.CHALLENGE, (("nonce", NONCE),)),
    Shape(Code.ANSWER, (("nonce", NONCE), ("holder", HOLDER_NONCE), ("proof", SECRET))),
    Shape(
        Code.WELCOME, (("proof", SECRET), ("incarnation", HOLDER_NONCE), ("pid", U32), ("page", FLAG)), descriptor=True
    ),
    Shape(Code.ANNOUNCE, (*_SOCKET_FACTS, *_DESCRIPTOR_FACTS, ("chain", CHAIN)), Code.ANNOUNCED),
    Shape(
        Code.ISSUE,
        (
            ("secret", SECRET),  # the issuer's: it knows the ticket whatever becomes of the reply
            ("socket", SOCKET),
            ("descriptor", U64),
            ("target", OPTIONAL_U32),
            ("expires_s", OPTIONAL_F64),
            ("launching", FLAG),  # for a child that has no pid yet: BIND follows
        ),
        Code.OK,
        descriptor=True,
    ),
    Shape(Code.BIND, (("secret", SECRET), ("target", U32)), Code.FLAG),
    Shape(Code.CLAIM, (("secret", SECRET),), Code.CLAIMED),
    Shape(Code.ACK, (("number", U64), *_DESCRIPTOR_FACTS), Code.OK),
    Shape(Code.REFUSE, (("number", U64),), Code.OK),
    Shape(Code.REVOKE, (("secret", SECRET),), Code.FLAG),
    Shape(Code.BEGIN_CLOSE, (("descriptor", U64),), Code.FLAG),
    Shape(Code.END_CLOSE, (("descriptor", U64),), Code.OK),
    Shape(Code.CANCEL_CLOSE, (("descriptor", U64),), Code.OK),
    # `started_ticks` of the only process that may be meant, 0: any; the reply says which one it is.
    Shape(
        Code.LEND,
        (("socket", SOCKET), ("descriptor", U64), ("target", U32), ("started_ticks", U64), ("since_s", F64)),
        Code.NUMBER,
    ),
    Shape(Code.REFERENCES, (("socket", SOCKET),), Code.NUMBER),
    Shape(Code.HOLDERS, (("socket", SOCKET), ("start", U32)), Code.HOLDERS_PAGE),
    Shape(Code.FORMER_HOLDERS, (("socket", SOCKET), ("start", U32)), Code.HOLDERS_PAGE),
    Shape(Code.SOCKETS, (("start", U32),), Code.SOCKETS_PAGE),
    # `changed` has one bit per COMMON_FIELDS name: only those are written, the others are sent blank.
    Shape(Code.SET_COMMON, (("socket", SOCKET), ("changed", U16), *_COMMON), Code.OK),
    Shape(Code.COMMON, (("slot", U32),), Code.COMMON_IS),
    Shape(Code.STATISTICS, (), Code.STATISTICS_ARE),
    Shape(Code.REFUSALS, (), Code.REFUSALS_PAGE),
    Shape(Code.BYE, (), Code.OK),
    Shape(Code.SHUTDOWN, (), Code.OK),
    # To a registry in a dead one's place: each descriptor it had counted, with the common state there, then the end.
    Shape(Code.RECOVER, (*_COMMON, *_SOCKET_FACTS, *_DESCRIPTOR_FACTS, ("chain", CHAIN)), Code.ANNOUNCED),
    Shape(Code.RECOVERED, (), Code.OK),
    Shape(Code.OK, ()),
    Shape(Code.ERROR, (("kind", U8), ("errno", I32), ("message", TEXT))),
    Shape(Code.ANNOUNCED, (("slot", U32),)),
    Shape(Code.FLAG, (("value", FLAG),)),
    Shape(
        Code.CLAIMED,
        (("number", U64), *_SOCKET_FACTS, ("slot", U32), ("target_bound", FLAG), ("chain", CHAIN)),
        descriptor=True,
    ),
    Shape(Code.NUMBER, (("value", U64),)),
    # Pages: `following` is the `start` of the next page, 0 at the end. A holder's kind is an index into HOLDER_KINDS.
    Shape(
        Code.HOLDERS_PAGE,
        (
            ("following", U32),
            ("items", Rows(U32, TEXT, U64, U8, TEXT, F64)),  # pid, name, descriptor, kind, opened_at, since_s
        ),
    ),
    Shape(
        Code.SOCKETS_PAGE,
        (("following", U32), ("items", Rows(SOCKET, I32, I32, I32, U64))),  # SocketFacts' fields, references
    ),
    Shape(Code.COMMON_IS, _COMMON),
    Shape(
        Code.STATISTICS_ARE,
        tuple((name, U64) for name in ("pid", "clients", "sockets", "descriptors", "tickets", "custody", "refusals")),
    ),
    Shape(Code.REFUSALS_PAGE, (("items", Rows(TEXT, U64)),)),  # cause, count
)

BY_HEAD: Final[dict[bytes, Shape]] = {shape.head: shape for shape in SHAPES.values()}


@dataclass(frozen=True)
class Message:
    """A decoded message; its fields are attributes, named and typed by the shape of its code."""

    code: Code
    request: int
    values: dict[str, Any] = field(default_factory=dict, repr=False)  # may hold a secret: never in a repr (S-06)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def encode(code: Code, request: int = 0, /, **values: Any) -> bytes:
    """Build the bytes of one message, at most MAX_MESSAGE.

    Args:
        request: its id, echoed by the reply; 0 in the handshake.
        values: exactly the fields of the code's shape.

    Raises:
        TypeError: a field is missing, or is not one of the shape.
        ValueError: a value does not fit its field, or the whole does not fit the cap.
    """
    shape = SHAPES[code]
    if len(values) != len(shape.names) or not values.keys() >= set(shape.names):
        raise TypeError(f"{code.name} has the fields {list(shape.names)}, not {list(values)}")
    try:
        return shape.pack(request, *[values[name] for name in shape.names])
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{code.name} of {', '.join(shape.names)}: {error}") from None


def decode(data: bytes) -> Message:
    """Read one message; the result's fields are complete and of the table's types.

    Raises:
        ProtocolError: anything else. Nothing has been allocated beyond the bytes that are there.
    """
    shape = shape_of(data)
    request, *values = shape.read(data)
    return Message(shape.code, request, dict(zip(shape.names, values, strict=True)))


def shape_of(data: bytes) -> Shape:
    """Return the shape of a message by how it begins.

    Raises:
        ProtocolError: it is none of ours, or longer than any.
    """
    shape = BY_HEAD.get(data[:HEAD_SIZE])
    if len(data) > MAX_MESSAGE:
        raise ProtocolError("too long")
    if shape is not None:
        return shape
    if len(data) < HEADER.size:
        raise ProtocolError("truncated")
    magic, version, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError("bad magic")
    raise ProtocolError("bad version" if version != VERSION else "unknown code")


def fitting(code: Code, start: int, rows: Sequence[tuple[Any, ...]]) -> bytes:
    """Build one page of a list of all `rows`: as many from `start` on as the cap allows; see `encode` for the id.

    Returns:
        The message's bytes with request id 0 (`readdress` gives it the right one); `following` is filled in.
    """
    end = min(len(rows), start + 128)
    while True:
        following = end if end < len(rows) else 0
        try:
            return encode(code, 0, following=following, items=rows[start:end])
        except ValueError:
            if end - start <= 1:
                raise
            end = start + (end - start) // 2


def readdress(data: bytes, request: int) -> bytes:
    """Return the same message with another request id."""
    magic, version, code, _ = HEADER.unpack_from(data)
    return HEADER.pack(magic, version, code, request) + data[HEADER.size :]


# ERROR.kind -> the class raised at the client. Kind 0 is the plain OSError of `errno`.
_ERROR_KINDS: Final[tuple[type[SharedSocketError] | None, ...]] = (
    None,
    TicketError,
    TicketInvalid,
    TicketAlreadyClaimed,
    TicketExpired,
    TicketLimit,
    NotASocket,
    RegistryGone,
    InternalError,
)


def error_fields(error: OSError) -> dict[str, Any]:
    """Return the fields of the ERROR that carries an exception to the client (`error_of` is the way back)."""
    kind = _ERROR_KINDS.index(type(error)) if type(error) in _ERROR_KINDS else 0
    return {"kind": kind, "errno": error.errno or _errno.EIO, "message": error.strerror or ""}


def error_of(message: Message) -> OSError:
    """Build the exception an ERROR stands for; an unknown kind is the plain `OSError` of its errno."""
    return refusal_of(message.kind, message.errno, message.message)


def refusal_of(kind: int, number: int, words: str) -> OSError:
    """Build the exception of an ERROR with these fields; see `error_of`."""
    cls = _ERROR_KINDS[kind] if kind < len(_ERROR_KINDS) else None
    return from_errno(number, words) if cls is None else cls(words)


assert set(SHAPES) == set(Code), "I9: every code has exactly one shape"
