"""WHO IS THERE: the mutual challenge and response of a new channel, as one pure state machine per side.

    server -> client   CHALLENGE  nonce S
    client -> server   ANSWER     nonce C, holder nonce, HMAC(key, "client", S, C, holder)
    server -> client   WELCOME    HMAC(key, "server", C, S, holder, incarnation, pid, page), those, and the page's memfd

HMAC-SHA-256 both ways with fresh nonces, role labels (a reflected challenge proves nothing) and a comparison in
constant time; there is one digest and nothing to negotiate (S-05, F-108). Each side does each step once. The bytes come
from and go to the caller: no I/O here, and the random source is an argument. The peer's uid has been checked before
(S-04, server.py). The key appears in no repr, message or exception (S-06).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sharedsock.registry.messages import NONCE_SIZE, Code, ProtocolError, decode, encode

__all__ = ["HOLDER_NONCE_SIZE", "KEY_SIZE", "ClientHandshake", "HandshakeRefused", "ServerHandshake", "Welcome"]

KEY_SIZE: Final = 32
HOLDER_NONCE_SIZE: Final = 16
_CLIENT: Final = b"sharedsock 1 client"
_SERVER: Final = b"sharedsock 1 server"


class HandshakeRefused(ValueError):
    """The other side does not have the key, or does not keep to the three steps. `cause` is a fixed word."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the registry says of itself: its incarnation (16 bytes), its pid, and whether a page came along."""

    incarnation: bytes
    pid: int
    page: bool


def _proof(key: bytes, role: bytes, *parts: bytes) -> bytes:
    # Every part has a fixed size, and the label ends in a zero byte: no two messages have the same bytes.
    return hmac.digest(key, role + b"\0" + b"".join(parts), "sha256")


def _checked_key(key: bytes) -> bytes:
    if len(key) != KEY_SIZE:
        raise ValueError(f"a registry key has {KEY_SIZE} bytes, not {len(key)}")
    return bytes(key)


def _expect(data: bytes, code: Code) -> dict[str, bytes]:
    try:
        message = decode(data)
    except ProtocolError as error:
        raise HandshakeRefused(error.cause) from None
    if message.code is not code or message.request != 0:
        raise HandshakeRefused("out of turn")
    return message.values


class ServerHandshake:
    """The registry's side: `challenge()`, then `accept(answer)` once, then `welcome`."""

    __slots__ = ("_key", "_nonce", "_peer", "holder")

    def __init__(self, key: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        self._key = _checked_key(key)
        self._nonce: bytes | None = random(NONCE_SIZE)
        self._peer: bytes | None = None
        self.holder: bytes = b""

    def challenge(self) -> bytes:
        """Return the CHALLENGE to send first."""
        if self._nonce is None:
            raise HandshakeRefused("out of turn")
        return encode(Code.CHALLENGE, nonce=self._nonce)

    def accept(self, data: bytes) -> bytes:
        """Check the ANSWER; return the peer's holder nonce (16 bytes).

        Raises:
            HandshakeRefused: wrong key, wrong bytes, or a second try. The channel is to be closed without a word.
        """
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise HandshakeRefused("out of turn")
        values = _expect(data, Code.ANSWER)
        wanted = _proof(self._key, _CLIENT, nonce, values["nonce"], values["holder"])
        if not hmac.compare_digest(wanted, values["proof"]):
            raise HandshakeRefused("wrong key")
        self._peer, self.holder = values["nonce"] + nonce, values["holder"]
        return self.holder

    def welcome(self, welcome: Welcome) -> bytes:
        """Return the WELCOME that proves to the peer that we have the key as well."""
        peer, self._peer = self._peer, None
        if peer is None:
            raise HandshakeRefused("out of turn")
        proof = _proof(self._key, _SERVER, peer, self.holder, _described(welcome))
        return encode(Code.WELCOME, proof=proof, incarnation=welcome.incarnation, pid=welcome.pid, page=welcome.page)


class ClientHandshake:
    """A holder's side: `answer(challenge)`, then `check(welcome)`.

    Args:
        holder: the 16-byte nonce of this process instance, renewed in a forked child.
    """

    __slots__ = ("_holder", "_key", "_nonce", "_peer")

    def __init__(self, key: bytes, holder: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        if len(holder) != HOLDER_NONCE_SIZE:
            raise ValueError(f"a holder nonce has {HOLDER_NONCE_SIZE} bytes, not {len(holder)}")
        self._key = _checked_key(key)
        self._holder = bytes(holder)
        self._nonce: bytes | None = random(NONCE_SIZE)
        self._peer: bytes | None = None

    def answer(self, data: bytes) -> bytes:
        """Return the ANSWER to the registry's CHALLENGE.

        Raises:
            HandshakeRefused: it was no CHALLENGE, or not the first.
        """
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise HandshakeRefused("out of turn")
        theirs = _expect(data, Code.CHALLENGE)["nonce"]
        self._peer = nonce + theirs
        proof = _proof(self._key, _CLIENT, theirs, nonce, self._holder)
        return encode(Code.ANSWER, nonce=nonce, holder=self._holder, proof=proof)

    def check(self, data: bytes) -> Welcome:
        """Check the WELCOME; return what the registry says of itself.

        Raises:
            HandshakeRefused: whoever answered does not have the key.
        """
        peer, self._peer = self._peer, None
        if peer is None:
            raise HandshakeRefused("out of turn")
        values = _expect(data, Code.WELCOME)
        welcome = Welcome(values["incarnation"], int(values["pid"]), bool(values["page"]))
        wanted = _proof(self._key, _SERVER, peer, self._holder, _described(welcome))
        if not hmac.compare_digest(wanted, values["proof"]):
            raise HandshakeRefused("wrong key")
        return welcome


def _described(welcome: Welcome) -> bytes:
    return welcome.incarnation + welcome.pid.to_bytes(4, "big") + (b"\x01" if welcome.page else b"\x00")
