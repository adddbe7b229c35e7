"""WHAT A MESSAGE LOOKS LIKE: its code, its header, and the shape that packs and reads all of its fields at once.

The fixed fields are one struct together with the header, and a field that asks for nothing more costs nothing more; the
sized ones follow. How one field travels is in fields.py, which message has which is the table in messages.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, Final

from sharedsock.registry.fields import Fixed, ProtocolError, Sized

__all__ = ["HEADER", "HEAD_SIZE", "MAGIC", "MAX_MESSAGE", "VERSION", "Code", "Fields", "Shape"]

MAX_MESSAGE: Final = 4096
VERSION: Final = 1
MAGIC: Final = 0x5353
HEADER: Final = struct.Struct("!HHHI")  # magic, version, code, request id
HEAD_SIZE: Final = 6  # of the header without the request id: the same in every message of a code

Fields = tuple[tuple[str, Fixed | Sized], ...]


class Code(IntEnum):
    """The message codes: below 0x10 the handshake, below 0x80 requests, from 0x80 on replies."""

    __hash__ = int.__hash__  # an enum's own is a frame of Python, at each look into a table

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
    FLAG = 0x84
    CLAIMED = 0x85
    NUMBER = 0x86
    HOLDERS_PAGE = 0x87
    SOCKETS_PAGE = 0x88
    COMMON_IS = 0x89
    STATISTICS_ARE = 0x8A
    REFUSALS_PAGE = 0x8B


class Shape:
    """One row of the table: a message's fields, and how all of them are packed and read at once.

    Attributes:
        code: which message it is; `head` is how it begins, whatever its request id.
        fields: the fixed ones before the sized ones.
        reply: the code a request is answered with.
        descriptor: whether a descriptor travels along.
        pack: make the bytes of one from a request id and the values, in the order of the fields.
        unpack: read them back: the request id, then the values. The head has been compared before.
    """

    __slots__ = (
        "_from_wire",
        "_sized",
        "_struct",
        "_to_wire",
        "code",
        "descriptor",
        "fields",
        "head",
        "names",
        "pack",
        "reply",
        "unpack",
    )

    def __init__(self, code: Code, fields: Fields, reply: Code | None = None, *, descriptor: bool = False) -> None:
        fixed = [kind for _, kind in fields if isinstance(kind, Fixed)]
        self.code, self.fields, self.reply, self.descriptor = code, fields, reply, descriptor
        self.names = tuple(name for name, _ in fields)
        self.head = HEADER.pack(MAGIC, VERSION, code, 0)[:HEAD_SIZE]
        members = "".join(kind.member for kind in fixed)
        self._struct = struct.Struct(f"!{HEAD_SIZE}xI{members}")
        self._to_wire = [(place, kind.to_wire) for place, kind in enumerate(fixed) if kind.to_wire is not None]
        self._from_wire = [(place, kind.from_wire) for place, kind in enumerate(fixed, 1) if kind.from_wire is not None]
        self._sized = [kind for _, kind in fields if isinstance(kind, Sized)]
        assert [kind for _, kind in fields] == [*fixed, *self._sized], "I9: the fixed fields come first"
        make = partial(struct.Struct(HEADER.format + members).pack, MAGIC, VERSION, code)
        # Where no field asks for more, the struct's own methods are the whole work: no frame of Python for it.
        self.pack: Callable[..., bytes] = make
        self.unpack: Callable[[bytes], tuple[Any, ...]] = self._struct.unpack
        if self._sized or len(fixed) > 1:
            if self._to_wire or self._sized:
                self.pack = partial(self._pack, make, len(fixed))
            if self._from_wire or self._sized:
                self.unpack = self._unpack
        elif fixed:
            if fixed[0].to_wire is not None:
                self.pack = partial(_pack_one, make, fixed[0].to_wire)
            if fixed[0].from_wire is not None:
                self.unpack = partial(_unpack_one, self._struct.unpack, fixed[0].from_wire)

    def __repr__(self) -> str:
        return f"<shape of {self.code.name}>"

    def _pack(self, make: partial[bytes], fixed: int, request: int, *values: Any) -> bytes:
        members = list(values[:fixed])
        try:
            for place, to_wire in self._to_wire:
                members[place] = to_wire(members[place])
            data = make(request, *members)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{self.code.name} of {', '.join(self.names)}: {error}") from None
        if self._sized:
            for kind, value in zip(self._sized, values[fixed:], strict=True):
                data += kind.pack(value)
            if len(data) > MAX_MESSAGE:
                raise ValueError(f"{self.code.name} of {len(data)} bytes, the cap is {MAX_MESSAGE}")
        return data

    def _unpack(self, data: bytes) -> tuple[Any, ...]:
        if not self._sized:
            members = list(self._struct.unpack(data))
        else:
            members = list(self._struct.unpack_from(data))
        for place, from_wire in self._from_wire:
            members[place] = from_wire(members[place])
        offset = self._struct.size
        for kind in self._sized:
            value, offset = kind.unpack(data, offset)
            members.append(value)
        if offset != len(data):
            raise ProtocolError("trailing bytes")
        return tuple(members)

    def read(self, data: bytes) -> tuple[Any, ...]:
        """Read a message of this code from somebody who may send anything; see `unpack`.

        Raises:
            ProtocolError: it is too short, too long, or a field is not what it may be.
        """
        try:
            return self.unpack(data)
        except struct.error:
            raise ProtocolError("truncated" if len(data) < self._struct.size else "trailing bytes") from None


def _pack_one(make: partial[bytes], to_wire: Callable[[Any], Any], request: int, value: Any) -> bytes:
    return make(request, to_wire(value))


def _unpack_one(
    unpack: Callable[[bytes], tuple[Any, ...]], from_wire: Callable[[Any], Any], data: bytes
) -> tuple[Any, ...]:
    request, member = unpack(data)
    return request, from_wire(member)
