"""What is fuzzed: each target takes bytes, and raises AssertionError if the parser does anything but its promise.

A message is refused with a cause that is one of ours, or it is read and has exactly one spelling: these bytes. A
handshake goes on only with what the other side really said. A ticket of other bytes is no ticket.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Final

import sharedsock as ss
from sharedsock.registry.handshake import ClientHandshake, HandshakeRefused, ServerHandshake, Welcome
from sharedsock.registry.messages import Code, Message, ProtocolError, decode, encode, error_of, readdress

__all__ = ["TARGETS", "messages", "shake_hands", "tickets", "with_checksum"]

_CAUSES: Final = frozenset(
    {
        "bad blank",
        "bad flag",
        "bad magic",
        "bad utf-8",
        "bad version",
        "not a number",
        "text too long",
        "too long",
        "trailing bytes",
        "truncated",
        "unknown code",
    }
)
_KEY: Final = bytes(range(32))
_REFUSALS: Final = _CAUSES | {"out of turn", "wrong key"}


def messages(data: bytes) -> None:
    """Read them as a message, in either direction."""
    cause = ""
    try:
        message: Message = decode(data)
    except ProtocolError as error:
        cause = error.cause
    if cause:
        assert cause in _CAUSES, cause
        return
    assert encode(message.code, message.request, **message.values) == data
    assert decode(readdress(data, 7)).values == message.values
    if message.code is Code.ERROR:
        assert isinstance(error_of(message), OSError)


def _fixed(size: int) -> bytes:
    return b"\x07" * size


def _cause(step: Callable[[bytes], object], data: bytes) -> str:
    """Return why a step of a handshake was refused, empty if it was not."""
    try:
        step(data)
    except HandshakeRefused as error:
        return error.cause
    return ""


def shake_hands(data: bytes) -> None:
    """Say them at each turn of the handshake, to either side; only what the other side really says is taken."""
    server, client = ServerHandshake(_KEY, _fixed), ClientHandshake(_KEY, b"h" * 16, _fixed)
    answer = client.answer(server.challenge())
    # Any nonce is a challenge; its answer is good for that nonce alone.
    assert _cause(ClientHandshake(_KEY, b"h" * 16, _fixed).answer, data) in {"", *_REFUSALS}
    cause = _cause(ServerHandshake(_KEY, _fixed).accept, data)
    assert cause in _REFUSALS or data == answer, "a forged proof was believed"
    server.accept(answer)
    welcome = server.welcome(Welcome(b"i" * 16, 77, True))
    cause = _cause(client.check, data)
    assert cause in _REFUSALS or data == welcome, "a forged proof was believed"


def tickets(data: bytes) -> None:
    """Redeem and revoke them; whoever knows the format may have made the checksum right."""
    for info in (data, with_checksum(data)):
        for use in (ss.fromshare, ss.revoke):
            with contextlib.suppress(ss.TicketInvalid, ss.RegistryGone):
                found = use(info)
                assert found is False, "bytes of no origin are a ticket"


def with_checksum(data: bytes) -> bytes:
    """Return a ticket whose magic and checksum are right, whatever is in it."""
    return b"SST1" + hashlib.sha256(data[20:]).digest()[:16] + data[20:]


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "messages": messages,
    "handshake": shake_hands,
    "tickets": tickets,
}
