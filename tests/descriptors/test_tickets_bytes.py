"""A ticket's bytes: damage is turned away before anybody is asked, forgery by the registry; nothing is used up."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sharedsock as ss
from sharedsock.descriptors import sharing

HEAD = 4 + 16 + 16 + 32


@pytest.fixture
def pair(registry: ss.Registry) -> Iterator[tuple[ss.SharedSocket, ss.SharedSocket]]:
    ours, peer = ss.socketpair()
    with ours, peer:
        yield ours, peer


def refused(info: Any) -> ss.TicketError:
    with pytest.raises(ss.TicketInvalid) as caught:
        ss.fromshare(info)
    assert caught.value.winerror == 10022
    return caught.value


def forged(info: bytes, place: int, value: bytes) -> bytes:
    """A ticket with other contents and the right checksum."""
    body = bytearray(info[20:])
    body[place - 20 : place - 20 + len(value)] = value
    return info[:4] + sharing._checksum(bytes(body)) + bytes(body)


def flipped(info: bytes, bit: int) -> bytes:
    changed = bytearray(info)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def still_good(info: bytes, peer: ss.SharedSocket) -> None:
    with ss.fromshare(info) as redeemed:
        redeemed.sendall(b"unharmed")
        assert peer.recv(16) == b"unharmed"


@pytest.mark.fault("F-23", "S-08")
@pytest.mark.rule("DUP-4")
def test_every_flipped_bit_is_damage(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """LPWSPSOCKET: WSAEINVAL for a protocol info that is incomplete or corrupt."""
    info = pair[0].share(os.getpid())
    for bit in range(len(info) * 8):
        refused(flipped(info, bit))
    still_good(info, pair[1])


@pytest.mark.fault("F-23", "S-08")
@pytest.mark.rule("DUP-4")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda info: [info[:size] for size in range(len(info))], id="every truncation"),
        pytest.param(lambda info: [info[start:] for start in range(1, len(info))], id="every missing start"),
        pytest.param(lambda info: [info + b"\0", info + info, info[:HEAD] * 2], id="more than a ticket"),
        pytest.param(lambda info: [b"", b"\0" * len(info), os.urandom(len(info))], id="nothing like a ticket"),
        pytest.param(lambda info: [b"\0" * (1 << 20), info.ljust(1 << 20, b"\0")], id="1 MiB"),
    ],
)
def test_incomplete_or_inflated_bytes_are_refused(
    pair: tuple[ss.SharedSocket, ss.SharedSocket], damage: Callable[[bytes], list[bytes]]
) -> None:
    """LPWSPSOCKET: WSAEINVAL for a protocol info that is incomplete or corrupt."""
    info = pair[0].share(os.getpid())
    for changed in damage(info):
        refused(changed)
    still_good(info, pair[1])


@pytest.mark.fault("F-23", "S-09", "S-10")
def test_a_guessed_secret_opens_nothing(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """Every bit of the secret and of the incarnation counts, also when the checksum is right."""
    info = pair[0].share(os.getpid())
    texts = set()
    for bit in range(20 * 8, HEAD * 8):
        texts.add(str(refused(forged(info, bit // 8, bytes([info[bit // 8] ^ 1 << bit % 8])))))
    assert len(texts) == 2, "one answer for a secret nobody has, one for a registry that is not this one"
    still_good(info, pair[1])


@pytest.mark.fault("F-23", "S-02")
@pytest.mark.parametrize(
    "path", ["relative/path", "/nowhere/at/all", "/tmp", "/", "/proc/self", "a\0b", "/dev/null", "/" + "x" * 4095]
)
def test_a_path_that_is_no_registry_of_ours_is_refused(
    pair: tuple[ss.SharedSocket, ss.SharedSocket], path: str
) -> None:
    """A ticket names its registry; only a directory that is ours alone is asked."""
    info = pair[0].share(os.getpid())
    body = info[20:HEAD] + path.encode()
    refused(info[:4] + sharing._checksum(body) + body)
    still_good(info, pair[1])


@pytest.mark.parametrize("info", [None, "text", 5, 1.5, [1, 2], object()])
def test_what_is_not_bytes_is_wrong_use(info: Any) -> None:
    """Wrong use is a TypeError; nobody is asked."""
    with pytest.raises(TypeError, match="a ticket is bytes"):
        ss.fromshare(info)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_will_do(pair: tuple[ss.SharedSocket, ss.SharedSocket], kind: Callable[[bytes], Any]) -> None:
    """A ticket may have come out of a buffer."""
    still_good(kind(pair[0].share(os.getpid())), pair[1])


@pytest.mark.fault("S-06", "S-09")
def test_a_ticket_says_nothing_it_should_not(
    registry: ss.Registry, pair: tuple[ss.SharedSocket, ss.SharedSocket]
) -> None:
    """The registry's key is in no ticket, and a ticket's secret in no repr, error or reduced exception."""
    ticket = pair[0].ticket()
    info = ticket.__reduce__()[1][0]
    secret = info[36:HEAD]
    assert registry.authkey not in info
    for shown in (repr(ticket), str(ticket), repr(pair[0]), repr(registry.client)):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    error = refused(forged(info, 36, bytes(32)))
    assert secret not in pickle.dumps(error)
    assert ticket.revoke()


@pytest.mark.fault("S-08")
def test_a_pickled_socket_is_a_function_and_a_ticket(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """A pickled handle reduces to (function, ticket bytes) and nothing else; so does a ticket."""
    function, arguments = pair[0].__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    assert function is ss.fromshare
    assert [type(argument) for argument in arguments] == [bytes]
    assert ss.revoke(arguments[0])
    with pytest.raises(TypeError, match="no state"):
        pair[0].__getstate__()


@pytest.mark.rule("DUP-1", "DUP-2", "DUP-11", "DUP-12")
def test_revoking_takes_the_reference_back(pair: tuple[ss.SharedSocket, ss.SharedSocket]) -> None:
    """A ticket is a reference until it is redeemed or revoked, once."""
    ours, _ = pair
    info = ours.share(os.getpid())
    assert ours.references() == 2
    assert ss.revoke(info)
    assert ours.references() == 1
    assert not ss.revoke(info)
    refused(info)
    redeemed = ss.fromshare(other := ours.share(None))
    assert ours.references() == 2
    assert not ss.revoke(other), "it has become a descriptor"
    redeemed.close()
    with pytest.raises(ss.TicketInvalid):
        ss.revoke(flipped(other, 100))
