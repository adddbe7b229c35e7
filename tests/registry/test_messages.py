"""The wire: every shape goes there and back, and nothing else is a message."""

from __future__ import annotations

import json
import marshal
import math
import pickle
import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedsock.model import errors
from sharedsock.registry.messages import (
    HEADER,
    HOLDER_KINDS,
    MAX_CHAIN,
    MAX_MESSAGE,
    MAX_TEXT,
    SHAPES,
    Code,
    ProtocolError,
    decode,
    encode,
    error_fields,
    error_of,
    fitting,
    readdress,
)

_SOCKET_FACTS = {"socket": 1 << 127 | 5, "family": 2, "type": 1, "protocol": 6}
_DESCRIPTOR_FACTS = {"descriptor": 7, "opened_at": "täst.py:3 in f", "opened_s": 1.5}
_COMMON = {
    "shut_receive": True,
    "shut_send": False,
    "reset_seen": True,
    "nonblocking": False,
    "linger_s": None,
    "linger_kept_s": 7,
    "has_port": True,
    "events": 4_194_303 << 6 | 33,
}
_SECRET = bytes(range(32))

VALID: dict[Code, dict[str, Any]] = {
    Code.CHALLENGE: {"nonce": _SECRET},
    Code.ANSWER: {"nonce": _SECRET, "holder": b"h" * 16, "proof": _SECRET},
    Code.WELCOME: {"proof": _SECRET, "incarnation": b"i" * 16, "pid": 77, "page": True},
    Code.ANNOUNCE: {**_SOCKET_FACTS, **_DESCRIPTOR_FACTS, "chain": '[["m:Täst", {}]]'},
    Code.RECOVER: {**_SOCKET_FACTS, **_DESCRIPTOR_FACTS, **_COMMON, "chain": ""},
    Code.RECOVERED: {},
    Code.ISSUE: {
        "secret": _SECRET,
        "socket": 9,
        "descriptor": 7,
        "target": 4242,
        "expires_s": None,
        "launching": False,
    },
    Code.BIND: {"secret": _SECRET, "target": 3},
    Code.CLAIM: {"secret": _SECRET},
    Code.ACK: {"number": 5, **_DESCRIPTOR_FACTS},
    Code.REFUSE: {"number": 5},
    Code.REVOKE: {"secret": _SECRET},
    Code.BEGIN_CLOSE: {"descriptor": 7},
    Code.END_CLOSE: {"descriptor": 7},
    Code.CANCEL_CLOSE: {"descriptor": 7},
    Code.LEND: {"socket": 9, "descriptor": 7, "target": 3, "started_ticks": 11, "since_s": 1.5},
    Code.REFERENCES: {"socket": 9},
    Code.HOLDERS: {"socket": 9, "start": 0},
    Code.FORMER_HOLDERS: {"socket": 9, "start": 0},
    Code.SOCKETS: {"start": 0},
    Code.SET_COMMON: {"socket": 9, "changed": 31, **_COMMON},
    Code.COMMON: {"slot": 8},
    Code.STATISTICS: {},
    Code.REFUSALS: {},
    Code.BYE: {},
    Code.SHUTDOWN: {},
    Code.OK: {},
    Code.ERROR: {"kind": 2, "errno": 22, "message": "no such ticket"},
    Code.ANNOUNCED: {"slot": 65_535},
    Code.FLAG: {"value": True},
    Code.CLAIMED: {"number": 5, **_SOCKET_FACTS, "slot": 8, "target_bound": True, "chain": ""},
    Code.NUMBER: {"value": 1 << 63},
    Code.HOLDERS_PAGE: {"following": 0, "items": ((1, "python", 7, 0, "a.py:1 in f", 2.5), (2, "", 0, 2, "", 0.0))},
    Code.SOCKETS_PAGE: {"following": 1, "items": ((9, 2, 1, 6, 3),)},
    Code.COMMON_IS: {**_COMMON, "linger_s": 30},
    Code.STATISTICS_ARE: dict.fromkeys(
        ("pid", "clients", "sockets", "descriptors", "tickets", "custody", "refusals"), 3
    ),
    Code.REFUSALS_PAGE: {"items": (("bad magic", 3),)},
}


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_every_shape_goes_there_and_back(code: Code) -> None:
    """S-07: one fixed shape per code, and each has one spelling."""
    data = encode(code, 77, **VALID[code])
    message = decode(data)
    assert (message.code, message.request, message.values) == (code, 77, VALID[code])
    assert encode(message.code, message.request, **message.values) == data
    assert len(data) <= MAX_MESSAGE


def test_every_request_names_its_reply() -> None:
    for code, shape in SHAPES.items():
        assert (shape.reply is not None) == (0x10 <= code < 0x80), code


@pytest.mark.fault("F-104")
@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_every_truncation_is_refused(code: Code) -> None:
    data = encode(code, 1, **VALID[code])
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:size])
    with pytest.raises(ProtocolError):
        decode(data + b"\0")


@pytest.mark.fault("F-104")
@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_every_bit_flip_is_refused_or_another_valid_message(code: Code) -> None:
    """A flip never raises anything but ProtocolError, and what is accepted has exactly the shape of its code."""
    data = encode(code, 1, **VALID[code])
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            message = decode(bytes(damaged))
        except ProtocolError:
            continue
        assert bytes(damaged) == encode(message.code, message.request, **message.values)


@pytest.mark.fault("F-106", "S-07")
@pytest.mark.parametrize("length", [MAX_TEXT + 1, 0xFFFF])
def test_an_announced_length_is_not_believed(length: int) -> None:
    head = HEADER.pack(0x5353, 1, Code.ERROR, 1) + struct.pack("!Bi", 0, 0)
    with pytest.raises(ProtocolError):
        decode(head + struct.pack("!H", length) + b"x" * 20)
    page = HEADER.pack(0x5353, 1, Code.SOCKETS_PAGE, 1) + struct.pack("!IH", 0, 0xFFFF)
    with pytest.raises(ProtocolError, match="truncated"):
        decode(page)


@pytest.mark.fault("F-106", "S-07")
def test_a_chain_travels_whole_or_not_at_all() -> None:
    """Its longest spelling fits a message; a longer one is refused by the packer, and by the reader."""
    values = VALID[Code.ANNOUNCE]
    longest = "x" * MAX_CHAIN
    data = encode(Code.ANNOUNCE, 1, **{**values, "chain": longest})
    assert decode(data).chain == longest
    with pytest.raises(ValueError, match="may travel"):
        encode(Code.ANNOUNCE, 1, **{**values, "chain": longest + "x"})
    start = len(data) - MAX_CHAIN - 2
    with pytest.raises(ProtocolError, match="text too long"):
        decode(data[:start] + struct.pack("!H", MAX_CHAIN + 1) + data[start + 2 :] + b"x")


@pytest.mark.fault("F-106")
def test_more_than_the_cap_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        decode(b"\xff" * (MAX_MESSAGE + 1))
    with pytest.raises(ValueError, match="cap"):
        encode(Code.REFUSALS_PAGE, items=[("x" * 200, 1)] * 40)


@pytest.mark.fault("F-107", "S-07")
@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a": 1}),
        marshal.dumps((1, 2)),
        json.dumps([[[[]]]] * 100).encode()[:MAX_MESSAGE],
        b"[" * MAX_MESSAGE,
        b'{"a":1,"a":2}',
        b"9" * 4000,
        b"",
        b"\0" * 64,
        HEADER.pack(0x5353, 2, Code.OK, 1),
        HEADER.pack(0x5353, 1, 0x7777, 1),
        HEADER.pack(0x5353, 1, Code.ERROR, 1) + struct.pack("!BiH", 0, 0, 2) + b"\xff\xfe",
        encode(Code.BEGIN_CLOSE, 1, descriptor=1)[:-1],
        HEADER.pack(0x5353, 1, Code.FLAG, 1) + b"\x02",
        HEADER.pack(0x5353, 1, Code.COMMON_IS, 1) + b"\0\0\0\0" + b"\0" + struct.pack("!I", 9),
        HEADER.pack(0x5353, 1, Code.ACK, 1) + struct.pack("!QQdH", 1, 1, math.nan, 0),
    ],
)
def test_nothing_else_is_a_message(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert caught.value.cause.isascii()


@pytest.mark.fault("F-104")
@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_meet_only_protocol_errors(data: bytes) -> None:
    for code in random.Random(len(data)).sample(list(Code), 5):
        for candidate in (data, HEADER.pack(0x5353, 1, code, 1) + data):
            try:
                decode(candidate)
            except ProtocolError:
                pass


def test_wrong_fields_are_the_programmers_error() -> None:
    with pytest.raises(TypeError):
        encode(Code.BEGIN_CLOSE, 1)
    with pytest.raises(TypeError):
        encode(Code.BEGIN_CLOSE, 1, number=3)
    with pytest.raises(ValueError, match="descriptor"):
        encode(Code.BEGIN_CLOSE, 1, descriptor=-1)
    with pytest.raises(ValueError, match="bytes"):
        encode(Code.CLAIM, 1, secret=b"short")
    with pytest.raises(AttributeError):
        _ = decode(encode(Code.OK, 1)).secret


@pytest.mark.fault("S-06")
def test_a_secret_is_in_no_repr() -> None:
    message = decode(encode(Code.CLAIM, 1, secret=_SECRET))
    assert message.secret == _SECRET
    assert repr(_SECRET)[2:-1] not in repr(message)
    assert "secret" not in repr(message)


def test_a_long_place_keeps_its_end() -> None:
    place = "ä" * 400 + "/test_x.py:99 in f"
    message = decode(encode(Code.ERROR, 1, kind=0, errno=5, message=place))
    assert message.message.endswith("/test_x.py:99 in f")
    assert len(message.message.encode()) <= MAX_TEXT


def test_pages_hold_what_fits_and_say_where_to_go_on() -> None:
    rows = [(pid, "python", pid, pid % len(HOLDER_KINDS), "x" * 255, 1.0) for pid in range(1, 101)]
    seen: list[tuple[Any, ...]] = []
    start, pages = 0, 0
    while True:
        page = decode(readdress(fitting(Code.HOLDERS_PAGE, start, rows), 9))
        assert page.request == 9
        seen.extend(page.items)
        start, pages = page.following, pages + 1
        if not start:
            break
    assert seen == rows
    assert pages > 5
    assert decode(fitting(Code.HOLDERS_PAGE, 5000, rows)).items == ()


@pytest.mark.parametrize(
    "error",
    [
        errors.TicketError("a"),
        errors.TicketInvalid("b"),
        errors.TicketAlreadyClaimed("c"),
        errors.TicketExpired("d"),
        errors.TicketLimit("e"),
        errors.NotASocket("f"),
        errors.RegistryGone("g"),
        errors.InternalError("h"),
        errors.from_errno(105, "no buffer"),
        ConnectionResetError(104, "reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_what_it_was(error: OSError) -> None:
    """I10: the same class, errno, WSA number and words."""
    arrived = error_of(decode(encode(Code.ERROR, 3, **error_fields(error))))
    assert type(arrived) is type(error)
    assert (arrived.errno, arrived.strerror) == (error.errno, error.strerror)
    assert getattr(arrived, "winerror", None) == getattr(errors.with_winerror(error), "winerror", None)


def test_an_unknown_kind_is_its_errno() -> None:
    arrived = error_of(decode(encode(Code.ERROR, 3, kind=200, errno=24, message="x")))
    assert type(arrived) is OSError
    assert arrived.errno == 24
