"""Peers of a living registry that say what they like: strangers without the key, and a client that has it.

They run in processes of their own, so that the registry can drop all they had when they are gone.
"""

from __future__ import annotations

import array
import os
import random
import socket
from typing import Any, Final

from sharedsock.registry import runtime
from sharedsock.registry.messages import MAX_MESSAGE, Code, encode
from tests.campaigns.mutation import Mutator, corpus, peaceful
from tests.registry.dialogue import Dialogue, Gone, facts_of, wait_readable
from tests.registry.test_messages import VALID

__all__ = ["lie", "stranger"]

_AT_ONCE: Final = 12  # messages sent before the replies are read
_SOCKETS: Final = 6
_TRIES: Final = 1000


def stranger(path: str, seed: int, count: int) -> None:
    """Connect without the key and say something damaged, now and then with descriptors, each time anew."""
    dice = random.Random(seed)
    mutator = iter(Mutator(corpus(), dice))
    with open("/dev/null") as null:
        for _ in range(count):
            data = next(mutator)
            with runtime.connect_to(path) as connection:
                try:
                    _say(connection, data or b"\0", [null.fileno()] * dice.choice([0, 0, 0, 1, 3]))
                    if dice.random() < 0.5:
                        connection.shutdown(socket.SHUT_WR)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                _hear_out(connection, to_the_end=dice.random() < 0.3)


def lie(path: str, key: bytes, seed: int, count: int) -> None:
    """Authenticate, and send well-formed nonsense between damaged messages; come back when hung up on."""
    dice = random.Random(seed)
    mutator = iter(Mutator(corpus(), dice))
    sockets = [socket.socket() for _ in range(_SOCKETS)]
    numbers = [one.fileno() for one in sockets]
    nonsense = _Nonsense(dice, [facts_of(one).socket for one in sockets])
    peer = _authenticated(path, key, os.urandom(16))
    try:
        said = 0
        while said < count:
            try:
                for _ in range(_AT_ONCE):
                    data = nonsense.message() if dice.random() < 0.95 else next(mutator)
                    if not peaceful(data):
                        continue
                    said += 1
                    _say(peer.connection, data or b"\0", dice.choices(numbers, k=dice.choice([0, 0, 1, 1, 2])))
                _hear_out(peer.connection)
            except (BrokenPipeError, ConnectionResetError):
                peer.close()
                peer = _authenticated(path, key, peer.nonce if dice.random() < 0.5 else os.urandom(16))
    finally:
        peer.close()
        for one in sockets:
            one.close()


def _authenticated(path: str, key: bytes, nonce: bytes) -> Dialogue:
    for _ in range(_TRIES):
        peer = Dialogue.connect(path, nonce=nonce)
        try:
            peer.authenticate(key)
        except Gone:  # a crowd of strangers is at the door, and the surplus is turned away
            peer.close()
            continue
        peer.connection.setblocking(True)  # the registry waits for nobody, so no two wait for each other
        return peer
    raise Gone


class _Nonsense:
    """Well-formed requests: fields out of a small world, in which they sometimes mean something."""

    def __init__(self, dice: random.Random, sockets: list[int]) -> None:
        self._dice = dice
        self._sockets = sockets
        self.secrets: list[bytes] = [bytes(32)]
        self._requests = [code for code in Code if code not in (Code.BYE, Code.SHUTDOWN) and 0x10 <= code < 0x80]

    def message(self) -> bytes:
        """Return one."""
        code = self._dice.choice(self._requests)
        values = {name: self._value(name, value) for name, value in VALID[code].items()}
        return encode(code, self._dice.randrange(1 << 32), **values)

    def _value(self, name: str, usual: Any) -> Any:
        dice = self._dice
        if name == "socket":
            return dice.choice([*self._sockets, *self._sockets, 0, 1, (1 << 128) - 1])
        if name in ("descriptor", "number"):
            return dice.choice([*range(12), (1 << 64) - 1])
        if name == "secret":
            if dice.random() < 0.5:
                self.secrets.append(dice.randbytes(32))
            return dice.choice(self.secrets[-8:])
        if name == "target":
            return dice.choice([os.getpid(), 0, (1 << 32) - 1])  # what is lent to a process ends with that one
        if name == "expires_s":
            return dice.choice([None, 0.0, 0.01, -1.0, 1e300, float("inf")])
        if name in ("slot", "start"):
            return dice.choice([0, 1, 7, 65535, (1 << 32) - 1])
        if isinstance(usual, bool):
            return dice.random() < 0.5
        return usual


def _say(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def _hear_out(connection: socket.socket, *, to_the_end: bool = False) -> None:
    """Read what has come, or all until the registry hangs up; close the descriptors that come along."""
    while wait_readable(connection, 5.0 if to_the_end else 0.0):
        try:
            data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE, 256, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return
        for _, kind, value in ancillary:
            if kind == socket.SCM_RIGHTS:
                for number in array.array("i", value):
                    os.close(number)
        if not data:
            return
