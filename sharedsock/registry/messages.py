"""THE WIRE: every message of the registry's protocol, as one table code -> (name, fields), and its two directions.

One message is one SEQPACKET record of at most 4 KiB: a header (magic, version, code, request id) and the fields of
its shape, in order, nothing after them. Each field is of a fixed size, or a text or list whose 16-bit length is
checked against what is really there before anything is built. No peer's bytes reach pickle, eval or an allocation
they announce (I9, S-07, F-104 … F-107). At most one file descriptor travels with a message, where the table says so.

What the fields mean is the ledger's business; sending them is the server's and the client's.

The server is started as `main(runtime_dir, ready_fd)` (see server.py); no secret is an argument or in the environment.
"""

from __future__ import annotations

import errno as _errno
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

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

__all__ = [
    "COMMON_FIELDS",
    "HEADER",
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
]

MAX_MESSAGE: Final = 4096
MAX_TEXT: Final = 255  # bytes of UTF-8; a longer place keeps its end, which names the line
SECRET_SIZE: Final = 32
NONCE_SIZE: Final = 32
MAX_CHAIN: Final = 2048  # bytes of UTF-8: a chain of providers, as import names and parameters
VERSION: Final = 1
_MAGIC: Final = 0x5353
HEADER: Final = struct.Struct("!HHHI")  # magic, version, code, request id

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


class ProtocolError(ValueError):
    """Bytes that are no message of this protocol. `cause` is a fixed word for the counters, never peer bytes."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Kind(Protocol):
    """How one field travels. `unpack` takes from `offset` on and returns the value and the next offset."""

    def pack(self, value: Any) -> bytes: ...
    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]: ...


class _Number:
    """A struct of one member: fixed size, and for a float never NaN."""

    def __init__(self, code: str) -> None:
        self._struct = struct.Struct("!" + code)

    def pack(self, value: Any) -> bytes:
        return self._struct.pack(value)

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        if offset + self._struct.size > len(data):
            raise ProtocolError("truncated")
        (value,) = self._struct.unpack_from(data, offset)
        if isinstance(value, float) and math.isnan(value):
            raise ProtocolError("not a number")
        return value, offset + self._struct.size


class _Flag:
    """One byte, 0 or 1; every other value is refused, so that each message has one spelling."""

    def pack(self, value: Any) -> bytes:
        return b"\x01" if value else b"\x00"

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        if offset >= len(data):
            raise ProtocolError("truncated")
        if data[offset] > 1:
            raise ProtocolError("bad flag")
        return data[offset] == 1, offset + 1


class _Bytes:
    """Exactly `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def pack(self, value: Any) -> bytes:
        if len(value) != self._size:
            raise ValueError(f"{len(value)} bytes where {self._size} are meant")
        return bytes(value)

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        end = offset + self._size
        if end > len(data):
            raise ProtocolError("truncated")
        return data[offset:end], end


class _WideInt:
    """An unsigned number of 128 bits: a SocketId (64 bits of SO_COOKIE, or dev << 64 | inode)."""

    def pack(self, value: Any) -> bytes:
        return int(value).to_bytes(16, "big")

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        if offset + 16 > len(data):
            raise ProtocolError("truncated")
        return int.from_bytes(data[offset : offset + 16], "big"), offset + 16


class _Text:
    """UTF-8 behind a 16-bit length of at most MAX_TEXT. Packing keeps the end of a longer text."""

    _length = struct.Struct("!H")
    _most = MAX_TEXT

    def pack(self, value: Any) -> bytes:
        raw = str(value).encode("utf-8", "replace")
        if len(raw) > MAX_TEXT:
            raw = raw[-MAX_TEXT:].decode("utf-8", "ignore").encode("utf-8")
        return self._length.pack(len(raw)) + raw

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        start = offset + 2
        if start > len(data):
            raise ProtocolError("truncated")
        (size,) = self._length.unpack_from(data, offset)
        if size > self._most:
            raise ProtocolError("text too long")
        if start + size > len(data):
            raise ProtocolError("truncated")
        try:
            return data[start : start + size].decode("utf-8", "strict"), start + size
        except UnicodeDecodeError:
            raise ProtocolError("bad utf-8") from None


class _Chain(_Text):
    """A text of at most MAX_CHAIN bytes, whole or not at all: its end alone would be another chain."""

    _most = MAX_CHAIN

    def pack(self, value: Any) -> bytes:
        raw = str(value).encode("utf-8")
        if len(raw) > MAX_CHAIN:
            raise ValueError(f"a chain of {len(raw)} bytes; {MAX_CHAIN} may travel")
        return self._length.pack(len(raw)) + raw


class _Optional:
    """A flag, then the value: present or not, the size is the same, so a shape stays fixed."""

    def __init__(self, kind: _Number, blank: float) -> None:
        self._kind, self._blank = kind, kind.pack(blank)

    def pack(self, value: Any) -> bytes:
        return _FLAG.pack(value is not None) + (self._blank if value is None else self._kind.pack(value))

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        given, start = _FLAG.unpack(data, offset)
        value, end = self._kind.unpack(data, start)
        if given:
            return value, end
        if data[start:end] != self._blank:
            raise ProtocolError("bad blank")
        return None, end


class _List:
    """A 16-bit count of records, each a tuple of fields. The count is believed only as far as the bytes go."""

    _length = struct.Struct("!H")

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds

    def pack(self, value: Any) -> bytes:
        rows = [b"".join(kind.pack(v) for kind, v in zip(self._kinds, row, strict=True)) for row in value]
        return self._length.pack(len(rows)) + b"".join(rows)

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        if offset + 2 > len(data):
            raise ProtocolError("truncated")
        (count,) = self._length.unpack_from(data, offset)
        offset += 2
        rows = []
        for _ in range(count):
            row = []
            for kind in self._kinds:
                value, offset = kind.unpack(data, offset)
                row.append(value)
            rows.append(tuple(row))
        return tuple(rows), offset


_U8, _U16, _U32, _U64, _I32, _F64 = _Number("B"), _Number("H"), _Number("I"), _Number("Q"), _Number("i"), _Number("d")
_FLAG, _TEXT, _CHAIN, _SOCKET = _Flag(), _Text(), _Chain(), _WideInt()
_SECRET, _NONCE, _HOLDER_NONCE = _Bytes(SECRET_SIZE), _Bytes(NONCE_SIZE), _Bytes(16)
_OPTIONAL_U32, _OPTIONAL_F64 = _Optional(_U32, 0), _Optional(_F64, 0.0)

Fields = tuple[tuple[str, Kind], ...]
_SOCKET_FACTS: Fields = (("socket", _SOCKET), ("family", _I32), ("type", _I32), ("protocol", _I32))
_DESCRIPTOR_FACTS: Fields = (("descriptor", _U64), ("opened_at", _TEXT), ("opened_s", _F64))
_COMMON: Fields = (
    ("shut_receive", _FLAG),
    ("shut_send", _FLAG),
    ("reset_seen", _FLAG),
    ("nonblocking", _FLAG),
    ("linger_s", _OPTIONAL_U32),
    ("linger_kept_s", _OPTIONAL_U32),
    ("has_port", _FLAG),
    ("events", _U32),
)


class Code(IntEnum):
    """The message codes: below 0x10 the handshake, below 0x80 requests, from 0x80 on replies."""

    CHALLENGE = 0x01
    ANSWER = 0x02
    WELCOME = 0x03
    ANNOUNCE = 0x10
    ISSUE = 0x11
    BIND = 0x12
    CLAIM = 0x13
    ACK = 0x14
    REFUSE = 0x15
    REVOKE = 0x16
    BEGIN_CLOSE = 0x17
    END_CLOSE = 0x18
    CANCEL_CLOSE = 0x19
    LEND = 0x1A
    REFERENCES = 0x1B
    HOLDERS = 0x1C
    SOCKETS = 0x1D
    SET_COMMON = 0x1E
    COMMON = 0x1F
    STATISTICS = 0x20
    REFUSALS = 0x21
    BYE = 0x22
    SHUTDOWN = 0x23
    RECOVER = 0x24
    RECOVERED = 0x25
    FORMER_HOLDERS = 0x26
    OK = 0x80
    ERROR = 0x81
    ANNOUNCED = 0x82
    ISSUED = 0x83
    FLAG = 0x84
    CLAIMED = 0x85
    NUMBER = 0x86
    HOLDERS_PAGE = 0x87
    SOCKETS_PAGE = 0x88
    COMMON_IS = 0x89
    STATISTICS_ARE = 0x8A
    REFUSALS_PAGE = 0x8B


_CODES: Final = {int(code): code for code in Code}  # calling an enum costs three look-ups


class Shape(NamedTuple):
    """One row: the message's fields, the reply a request gets, and whether a descriptor travels with it."""

    fields: Fields
    reply: Code | None = None
    descriptor: bool = False


# The one table. WELCOME carries the page's memfd when its `page` flag says so.
SHAPES: Final[dict[Code, Shape]] = {
    Code.CHALLENGE: Shape((("nonce", _NONCE),)),
    Code.ANSWER: Shape((("nonce", _NONCE), ("holder", _HOLDER_NONCE), ("proof", _SECRET))),
    Code.WELCOME: Shape(
        (("proof", _SECRET), ("incarnation", _HOLDER_NONCE), ("pid", _U32), ("page", _FLAG)), descriptor=True
    ),
    Code.ANNOUNCE: Shape((*_SOCKET_FACTS, *_DESCRIPTOR_FACTS, ("chain", _CHAIN)), Code.ANNOUNCED),
    Code.ISSUE: Shape(
        (
            ("socket", _SOCKET),
            ("descriptor", _U64),
            ("target", _OPTIONAL_U32),
            ("expires_s", _OPTIONAL_F64),
            ("launching", _FLAG),  # for a child that has no pid yet: BIND follows
        ),
        Code.ISSUED,
        descriptor=True,
    ),
    Code.BIND: Shape((("secret", _SECRET), ("target", _U32)), Code.FLAG),
    Code.CLAIM: Shape((("secret", _SECRET),), Code.CLAIMED),
    Code.ACK: Shape((("number", _U64), *_DESCRIPTOR_FACTS), Code.OK),
    Code.REFUSE: Shape((("number", _U64),), Code.OK),
    Code.REVOKE: Shape((("secret", _SECRET),), Code.FLAG),
    Code.BEGIN_CLOSE: Shape((("descriptor", _U64),), Code.FLAG),
    Code.END_CLOSE: Shape((("descriptor", _U64),), Code.OK),
    Code.CANCEL_CLOSE: Shape((("descriptor", _U64),), Code.OK),
    Code.LEND: Shape((("socket", _SOCKET), ("descriptor", _U64), ("target", _U32)), Code.OK),
    Code.REFERENCES: Shape((("socket", _SOCKET),), Code.NUMBER),
    Code.HOLDERS: Shape((("socket", _SOCKET), ("start", _U32)), Code.HOLDERS_PAGE),
    Code.FORMER_HOLDERS: Shape((("socket", _SOCKET), ("start", _U32)), Code.HOLDERS_PAGE),
    Code.SOCKETS: Shape((("start", _U32),), Code.SOCKETS_PAGE),
    # `changed` has one bit per COMMON_FIELDS name: only those are written, the others are sent blank.
    Code.SET_COMMON: Shape((("socket", _SOCKET), ("changed", _U16), *_COMMON), Code.OK),
    Code.COMMON: Shape((("slot", _U32),), Code.COMMON_IS),
    Code.STATISTICS: Shape((), Code.STATISTICS_ARE),
    Code.REFUSALS: Shape((), Code.REFUSALS_PAGE),
    Code.BYE: Shape((), Code.OK),
    Code.SHUTDOWN: Shape((), Code.OK),
    # To a registry in a dead one's place: each descriptor it had counted, with the common state there, then the end.
    Code.RECOVER: Shape((*_SOCKET_FACTS, *_DESCRIPTOR_FACTS, *_COMMON, ("chain", _CHAIN)), Code.ANNOUNCED),
    Code.RECOVERED: Shape((), Code.OK),
    Code.OK: Shape(()),
    Code.ERROR: Shape((("kind", _U8), ("errno", _I32), ("message", _TEXT))),
    Code.ANNOUNCED: Shape((("slot", _U32),)),
    Code.ISSUED: Shape((("secret", _SECRET),)),
    Code.FLAG: Shape((("value", _FLAG),)),
    Code.CLAIMED: Shape(
        (("number", _U64), *_SOCKET_FACTS, ("slot", _U32), ("target_bound", _FLAG), ("chain", _CHAIN)), descriptor=True
    ),
    Code.NUMBER: Shape((("value", _U64),)),
    # Pages: `following` is the `start` of the next page, 0 at the end. A holder's kind is an index into HOLDER_KINDS.
    Code.HOLDERS_PAGE: Shape(
        (
            ("following", _U32),
            ("items", _List(_U32, _TEXT, _U64, _U8, _TEXT, _F64)),  # pid, name, descriptor, kind, opened_at, since_s
        )
    ),
    Code.SOCKETS_PAGE: Shape(
        (("following", _U32), ("items", _List(_SOCKET, _I32, _I32, _I32, _U64)))  # SocketFacts' fields, references
    ),
    Code.COMMON_IS: Shape(_COMMON),
    Code.STATISTICS_ARE: Shape(
        tuple((name, _U64) for name in ("pid", "clients", "sockets", "descriptors", "tickets", "custody", "refusals"))
    ),
    Code.REFUSALS_PAGE: Shape((("items", _List(_TEXT, _U64)),)),  # cause, count
}


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
    if len(values) != len(shape.fields):
        raise TypeError(f"{code.name} has the fields {[name for name, _ in shape.fields]}, not {list(values)}")
    parts = [HEADER.pack(_MAGIC, VERSION, code, request)]
    for name, kind in shape.fields:
        if name not in values:
            raise TypeError(f"{code.name} lacks {name}")
        try:
            parts.append(kind.pack(values[name]))
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{code.name}.{name}: {error}") from None
    data = b"".join(parts)
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"{code.name} of {len(data)} bytes, the cap is {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> Message:
    """Read one message; the result's fields are complete and of the table's types.

    Raises:
        ProtocolError: anything else. Nothing has been allocated beyond the bytes that are there.
    """
    if len(data) > MAX_MESSAGE:
        raise ProtocolError("too long")
    if len(data) < HEADER.size:
        raise ProtocolError("truncated")
    magic, version, number, request = HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ProtocolError("bad magic")
    if version != VERSION:
        raise ProtocolError("bad version")
    code = _CODES.get(number)
    if code is None:
        raise ProtocolError("unknown code")
    values: dict[str, Any] = {}
    offset = HEADER.size
    for name, kind in SHAPES[code].fields:
        values[name], offset = kind.unpack(data, offset)
    if offset != len(data):
        raise ProtocolError("trailing bytes")
    return Message(code, request, values)


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
    kind: int = message.kind
    cls = _ERROR_KINDS[kind] if kind < len(_ERROR_KINDS) else None
    if cls is not None:
        return cls(message.message)
    return from_errno(message.errno, message.message)


def _table_is_complete(codes: Iterable[Code]) -> bool:
    return all(code in SHAPES for code in codes)


assert _table_is_complete(Code), "I9: every code has exactly one shape"
