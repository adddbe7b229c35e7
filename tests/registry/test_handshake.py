"""The handshake: two parties with one key, and everybody else is refused."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest

from sharedsock.registry.handshake import ClientHandshake, HandshakeRefused, ServerHandshake, Welcome
from sharedsock.registry.messages import SHAPES, Code, decode, encode

KEY = bytes(range(32))
HOLDER = b"h" * 16
WELCOME = Welcome(b"i" * 16, 4242, True)


def test_both_sides_agree() -> None:
    server, client = ServerHandshake(KEY), ClientHandshake(KEY, HOLDER)
    assert server.accept(client.answer(server.challenge())) == HOLDER
    assert client.check(server.welcome(WELCOME)) == WELCOME
    assert server.holder == HOLDER


@pytest.mark.fault("F-108", "S-05")
def test_nonces_are_fresh_each_time() -> None:
    challenges = {ServerHandshake(KEY).challenge() for _ in range(100)}
    assert len(challenges) == 100
    one = ServerHandshake(KEY).challenge()
    assert len({ClientHandshake(KEY, HOLDER).answer(one) for _ in range(100)}) == 100


@pytest.mark.fault("F-108", "S-05")
@pytest.mark.parametrize("key", [b"\0" * 32, KEY[::-1], KEY[:-1] + b"\xff"], ids=["empty", "reversed", "one byte"])
def test_a_wrong_key_is_refused_by_both_sides(key: bytes) -> None:
    server, client = ServerHandshake(KEY), ClientHandshake(key, HOLDER)
    answer = client.answer(server.challenge())
    with pytest.raises(HandshakeRefused, match="wrong key"):
        server.accept(answer)
    with pytest.raises(HandshakeRefused, match="out of turn"):
        server.welcome(WELCOME)
    impostor = ServerHandshake(key)
    honest = ClientHandshake(KEY, HOLDER)
    reply = honest.answer(impostor.challenge())
    with pytest.raises(HandshakeRefused, match="wrong key"):
        impostor.accept(reply)
    # One that does not care about our proof still cannot make its own.
    other = ServerHandshake(key)
    other.accept(ClientHandshake(key, HOLDER).answer(other.challenge()))
    with pytest.raises(HandshakeRefused, match="wrong key"):
        honest.check(other.welcome(WELCOME))


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_have_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ServerHandshake(b"k" * size)
    with pytest.raises(ValueError, match="32 bytes"):
        ClientHandshake(b"k" * size, HOLDER)
    with pytest.raises(ValueError, match="16 bytes"):
        ClientHandshake(KEY, b"short")


@pytest.mark.fault("F-108")
def test_a_reflected_challenge_proves_nothing() -> None:
    """Who has no key asks a second instance of the registry to answer the first one's challenge."""
    first, second = ServerHandshake(KEY), ServerHandshake(KEY)
    for data in (first.challenge(), second.challenge()):
        with pytest.raises(HandshakeRefused, match="out of turn"):
            ServerHandshake(KEY).accept(data)
    # The registry's own proof, sent back in an answer, carries the other role's label.
    client = ClientHandshake(KEY, HOLDER)
    second.accept(client.answer(second.challenge()))
    proof = decode(second.welcome(WELCOME)).proof
    with pytest.raises(HandshakeRefused, match="wrong key"):
        first.accept(encode(Code.ANSWER, nonce=b"n" * 32, holder=HOLDER, proof=proof))


@pytest.mark.fault("F-108")
def test_a_replayed_answer_is_refused() -> None:
    server, client = ServerHandshake(KEY), ClientHandshake(KEY, HOLDER)
    answer = client.answer(server.challenge())
    server.accept(answer)
    with pytest.raises(HandshakeRefused, match="out of turn"):
        server.accept(answer)
    with pytest.raises(HandshakeRefused, match="wrong key"):
        ServerHandshake(KEY).accept(answer)


@pytest.mark.fault("F-108")
@pytest.mark.parametrize("digest", ["md5", "sha1", "sha512"])
def test_there_is_one_digest_and_nothing_to_negotiate(digest: str) -> None:
    server = ServerHandshake(KEY)
    nonce = decode(server.challenge()).nonce
    said = b"sharedsock 1 client\0" + nonce + b"n" * 32 + HOLDER
    proof = hmac.new(KEY, said, getattr(hashlib, digest)).digest()[:32].ljust(32, b"\0")
    with pytest.raises(HandshakeRefused, match="wrong key"):
        server.accept(encode(Code.ANSWER, nonce=b"n" * 32, holder=HOLDER, proof=proof))


@pytest.mark.fault("F-104")
def test_every_flip_and_truncation_of_an_answer_is_refused() -> None:
    fixed: Callable[[int], bytes] = lambda size: b"r" * size  # noqa: E731
    answer = ClientHandshake(KEY, HOLDER, fixed).answer(ServerHandshake(KEY, fixed).challenge())
    for bit in range(len(answer) * 8):
        damaged = bytearray(answer)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeRefused):
            ServerHandshake(KEY, fixed).accept(bytes(damaged))
    for size in range(len(answer)):
        with pytest.raises(HandshakeRefused):
            ServerHandshake(KEY, fixed).accept(answer[:size])
    assert ServerHandshake(KEY, fixed).accept(answer) == HOLDER


@pytest.mark.fault("F-104")
def test_every_flip_of_a_welcome_is_refused() -> None:
    """Incarnation, pid and page are under the proof as well."""
    fixed: Callable[[int], bytes] = lambda size: b"r" * size  # noqa: E731

    def client() -> ClientHandshake:
        made = ClientHandshake(KEY, HOLDER, fixed)
        made.answer(ServerHandshake(KEY, fixed).challenge())
        return made

    server = ServerHandshake(KEY, fixed)
    server.accept(ClientHandshake(KEY, HOLDER, fixed).answer(server.challenge()))
    welcome = server.welcome(WELCOME)
    for bit in range(len(welcome) * 8):
        damaged = bytearray(welcome)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeRefused):
            client().check(bytes(damaged))
    assert client().check(welcome) == WELCOME


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.CHALLENGE, Code.ANSWER, Code.WELCOME)])
def test_requests_before_the_proof_are_out_of_turn(code: Code) -> None:
    from tests.registry.test_messages import VALID

    data = encode(code, 0, **VALID[code])
    with pytest.raises(HandshakeRefused):
        ServerHandshake(KEY).accept(data)
    with pytest.raises(HandshakeRefused):
        ClientHandshake(KEY, HOLDER).answer(data)


def test_each_step_once() -> None:
    server, client = ServerHandshake(KEY), ClientHandshake(KEY, HOLDER)
    challenge = server.challenge()
    server.accept(client.answer(challenge))
    with pytest.raises(HandshakeRefused, match="out of turn"):
        client.answer(challenge)
    with pytest.raises(HandshakeRefused, match="out of turn"):
        server.challenge()
    welcome = server.welcome(WELCOME)
    client.check(welcome)
    with pytest.raises(HandshakeRefused, match="out of turn"):
        client.check(welcome)
    with pytest.raises(HandshakeRefused, match="out of turn"):
        server.welcome(WELCOME)


@pytest.mark.fault("S-06")
def test_the_key_is_in_no_repr_and_no_error() -> None:
    server = ServerHandshake(KEY)
    with pytest.raises(HandshakeRefused) as caught:
        server.accept(b"junk")
    text = repr(server) + repr(caught.value) + str(caught.value) + repr(ClientHandshake(KEY, HOLDER))
    assert repr(KEY)[2:-1] not in text
    assert KEY.hex() not in text


@pytest.mark.fault("I9")
def test_what_a_stranger_sends_has_a_fixed_size() -> None:
    """I9: the one message taken before authentication has no variable part."""
    assert {type(kind).__name__ for _, kind in SHAPES[Code.ANSWER].fields} == {"Fixed"}
