"""Damaged and invented messages: what a fuzzer without a compiler's help can do with a corpus of valid ones.

Flips, truncations, surplus, splices of two messages, fields exchanged between two, lengths that lie, codes that do not
belong to the fields, and now and then bytes of no origin.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sharedsock.registry.messages import HEADER, MAX_MESSAGE, Code, encode
from tests.registry.test_messages import VALID

__all__ = ["Mutator", "corpus", "peaceful"]

_EDGES: Final = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
_LENGTHS: Final = (0, 1, 2, 127, 128, 254, 255, 256, 257, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF)


def corpus() -> list[bytes]:
    """Return every valid message once."""
    return [encode(code, 0 if code < 0x10 else 1, **VALID[code]) for code in Code]


def peaceful(data: bytes) -> bool:
    """Report whether this is no request to end the registry or the connection, which any client may make."""
    return data[:6] not in _ENDS


_ENDS: Final = {HEADER.pack(0x5353, 1, code, 0)[:6] for code in (Code.BYE, Code.SHUTDOWN)}


class Mutator:
    """An endless supply of damaged messages; iterate."""

    def __init__(self, seeds: Sequence[bytes], dice: random.Random) -> None:
        self._seeds = list(seeds)
        self._dice = dice
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._flip,
            self._edge,
            self._cut,
            self._append,
            self._splice,
            self._exchange,
            self._lie,
            self._lie,
            self._recode,
            self._shift,
        )

    def __iter__(self) -> Iterator[bytes]:
        dice = self._dice
        while True:
            if dice.random() < 0.02:
                yield dice.randbytes(dice.choice([0, 1, 9, 10, 11, 64, MAX_MESSAGE, MAX_MESSAGE + 1]))
                continue
            data = bytearray(dice.choice(self._seeds))
            for _ in range(dice.choice([1, 1, 1, 2, 3])):
                if data:
                    dice.choice(self._ways)(data)
            yield bytes(data)

    def _place(self, data: bytearray) -> int:
        return self._dice.randrange(len(data))

    def _flip(self, data: bytearray) -> None:
        data[self._place(data)] ^= 1 << self._dice.randrange(8)

    def _edge(self, data: bytearray) -> None:
        data[self._place(data)] = self._dice.choice(_EDGES)

    def _cut(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _append(self, data: bytearray) -> None:
        data += self._dice.randbytes(self._dice.choice([1, 2, 16, 300]))

    def _splice(self, data: bytearray) -> None:
        other = self._dice.choice(self._seeds)
        data[self._place(data) :] = other[self._dice.randrange(len(other)) :]

    def _exchange(self, data: bytearray) -> None:
        other = self._dice.choice(self._seeds)
        size = self._dice.choice([1, 2, 4, 8, 16, 32])
        start = self._dice.randrange(len(other))
        place = self._place(data)
        piece = other[start : start + size]
        data[place : place + len(piece)] = piece

    def _lie(self, data: bytearray) -> None:
        if len(data) > HEADER.size + 1:
            place = self._dice.randrange(HEADER.size, len(data) - 1)
            struct.pack_into("!H", data, place, self._dice.choice(_LENGTHS))

    def _recode(self, data: bytearray) -> None:
        if len(data) >= 6:
            struct.pack_into("!H", data, 4, self._dice.choice(list(Code)))

    def _shift(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = data[place : place + self._dice.randrange(9)]
