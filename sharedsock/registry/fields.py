"""HOW ONE FIELD TRAVELS: the kinds of fields a message may have, each checked before its value is used.

A *fixed* kind is one member of the message's struct: what the struct itself does not check, or not make, its `to_wire`
and `from_wire` do; None where there is nothing to do, so that such a field costs no call. A *sized* kind has a 16-bit
length, which is compared with what is really there before anything is built (F-106). Nothing here allocates what a peer
announces, and every refusal is a `ProtocolError` whose cause is a word of ours (I9, S-07).

Which fields a message has is messages.py's business.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

__all__ = [
    "CHAIN",
    "F64",
    "FLAG",
    "HOLDER_NONCE",
    "I32",
    "MAX_CHAIN",
    "MAX_TEXT",
    "NONCE",
    "NONCE_SIZE",
    "OPTIONAL_F64",
    "OPTIONAL_U32",
    "SECRET",
    "SECRET_SIZE",
    "SOCKET",
    "TEXT",
    "U8",
    "U16",
    "U32",
    "U64",
    "Chain",
    "Fixed",
    "ProtocolError",
    "Rows",
    "Sized",
    "Text",
]

MAX_TEXT: Final = 255  # bytes of UTF-8; a longer place keeps its end, which names the line
MAX_CHAIN: Final = 2048  # bytes of UTF-8: a chain of providers, as import names and parameters
SECRET_SIZE: Final = 32
NONCE_SIZE: Final = 32
_LENGTH: Final = struct.Struct("!H")


class ProtocolError(ValueError):
    """Bytes that are no message of this protocol. `cause` is a fixed word for the counters, never peer bytes."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Fixed:
    """A field of a fixed size.

    Args:
        member: its one member of a struct.
        to_wire, from_wire: between the value and the member; None: they are the same.
    """

    def __init__(
        self,
        member: str,
        to_wire: Callable[[Any], Any] | None = None,
        from_wire: Callable[[Any], Any] | None = None,
    ) -> None:
        self.member = member
        self.to_wire = to_wire
        self.from_wire = from_wire


class Sized:
    """A field behind a 16-bit length. `unpack` takes from `offset` on and returns the value and the next offset."""

    def pack(self, value: Any) -> bytes:
        """Return its bytes, the length included."""
        raise NotImplementedError

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        """Read one from there on.

        Raises:
            ProtocolError: it is not all there, or not one of this kind.
        """
        raise NotImplementedError


def _exactly(size: int) -> Callable[[Any], bytes]:
    def checked(value: Any) -> bytes:
        if len(value) != size:
            raise ValueError(f"{len(value)} bytes where {size} are meant")
        return bytes(value)

    return checked


def _to_flag(value: Any) -> int:
    return 1 if value else 0


def _from_flag(member: int) -> bool:
    # Every other value is refused, so that each message has one spelling.
    if member > 1:
        raise ProtocolError("bad flag")
    return member == 1


def _to_socket(value: Any) -> bytes:
    return int(value).to_bytes(16, "big")


def _from_socket(member: bytes) -> int:
    return int.from_bytes(member, "big")


def _from_float(member: float) -> float:
    if math.isnan(member):
        raise ProtocolError("not a number")
    return member


def _optional(member: str, of: Callable[[Any], Any] | None = None) -> Fixed:
    """A flag, then the value: present or not, the size is the same, so a message stays fixed."""
    both = struct.Struct("!B" + member)
    blank = both.pack(0, 0)

    def to_wire(value: Any) -> bytes:
        return blank if value is None else both.pack(1, value)

    def from_wire(data: bytes) -> Any:
        if data == blank:
            return None
        given, value = both.unpack(data)
        if not _from_flag(given):
            raise ProtocolError("bad blank")
        return value if of is None else of(value)

    return Fixed(f"{both.size}s", to_wire, from_wire)


class Text(Sized):
    """UTF-8 of at most MAX_TEXT bytes. Packing keeps the end of a longer text."""

    _most = MAX_TEXT

    def pack(self, value: Any) -> bytes:
        raw = str(value).encode("utf-8", "replace")
        if len(raw) > MAX_TEXT:
            raw = raw[-MAX_TEXT:].decode("utf-8", "ignore").encode("utf-8")
        return _LENGTH.pack(len(raw)) + raw

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        size, start = _length_at(data, offset)
        if size > self._most:
            raise ProtocolError("text too long")
        if start + size > len(data):
            raise ProtocolError("truncated")
        try:
            return data[start : start + size].decode("utf-8", "strict"), start + size
        except UnicodeDecodeError:
            raise ProtocolError("bad utf-8") from None


class Chain(Text):
    """A text of at most MAX_CHAIN bytes, whole or not at all: its end alone would be another chain."""

    _most = MAX_CHAIN

    def pack(self, value: Any) -> bytes:
        raw = str(value).encode("utf-8")
        if len(raw) > MAX_CHAIN:
            raise ValueError(f"a chain of {len(raw)} bytes; {MAX_CHAIN} may travel")
        return _LENGTH.pack(len(raw)) + raw


class Rows(Sized):
    """A 16-bit count of records, each a tuple of fields. The count is believed only as far as the bytes go."""

    def __init__(self, *kinds: Fixed | Sized) -> None:
        self._kinds = [kind if isinstance(kind, Sized) else _Alone(kind) for kind in kinds]

    def pack(self, value: Any) -> bytes:
        rows = [b"".join(kind.pack(v) for kind, v in zip(self._kinds, row, strict=True)) for row in value]
        return _LENGTH.pack(len(rows)) + b"".join(rows)

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        count, offset = _length_at(data, offset)
        rows = []
        for _ in range(count):
            row = []
            for kind in self._kinds:
                value, offset = kind.unpack(data, offset)
                row.append(value)
            rows.append(tuple(row))
        return tuple(rows), offset


class _Alone(Sized):
    """A fixed field among sized ones: a struct of its own."""

    def __init__(self, kind: Fixed) -> None:
        self._struct = struct.Struct("!" + kind.member)
        self._to_wire, self._from_wire = kind.to_wire, kind.from_wire

    def pack(self, value: Any) -> bytes:
        return self._struct.pack(value if self._to_wire is None else self._to_wire(value))

    def unpack(self, data: bytes, offset: int) -> tuple[Any, int]:
        if offset + self._struct.size > len(data):
            raise ProtocolError("truncated")
        (member,) = self._struct.unpack_from(data, offset)
        return member if self._from_wire is None else self._from_wire(member), offset + self._struct.size


def _length_at(data: bytes, offset: int) -> tuple[int, int]:
    if offset + _LENGTH.size > len(data):
        raise ProtocolError("truncated")
    return _LENGTH.unpack_from(data, offset)[0], offset + _LENGTH.size


U8: Final = Fixed("B")
U16: Final = Fixed("H")
U32: Final = Fixed("I")
U64: Final = Fixed("Q")
I32: Final = Fixed("i")
F64: Final = Fixed("d", None, _from_float)  # never NaN
FLAG: Final = Fixed("B", _to_flag, _from_flag)
SOCKET: Final = Fixed("16s", _to_socket, _from_socket)  # a SocketId: 64 bits of SO_COOKIE, or dev << 64 | inode
SECRET: Final = Fixed(f"{SECRET_SIZE}s", _exactly(SECRET_SIZE))
NONCE: Final = Fixed(f"{NONCE_SIZE}s", _exactly(NONCE_SIZE))
HOLDER_NONCE: Final = Fixed("16s", _exactly(16))
OPTIONAL_U32: Final = _optional("I")
OPTIONAL_F64: Final = _optional("d", _from_float)
TEXT: Final = Text()
CHAIN: Final = Chain()
