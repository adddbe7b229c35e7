"""THE SERIALIZER: what `multiprocessing.managers` takes for the connections of a registry.

The standard library's serializers unpickle what a peer says. This one is a pair of Listener and Client, registered with
`listener_client`, in which the fixed shapes of messages.py travel instead (S-05, S-07). A client's connection carries
one call at a time; `client.py` is what holders use.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing import AuthenticationError, managers
from typing import Any, Final

from sharedsock.model.errors import RegistryGone
from sharedsock.registry import runtime
from sharedsock.registry.handshake import HOLDER_NONCE_SIZE, KEY_SIZE, ClientHandshake, HandshakeRefused
from sharedsock.registry.messages import Code, Message, decode, encode, error_of
from sharedsock.registry.parcels import Parcel, receive, wait_ready
from sharedsock.registry.server import Lifetime

__all__ = ["SERIALIZER", "LedgerConnection", "LedgerListener", "directory_of", "key_of", "no_proxies"]

SERIALIZER: Final = "sharedsock"
_PATIENCE_S: Final = 2.0  # T_rpc


def key_of(authkey: bytes) -> bytes:
    """Return the registry key an authkey stands for: itself if it has 32 bytes, else its SHA-256."""
    return bytes(authkey) if len(authkey) == KEY_SIZE else hashlib.sha256(b"sharedsock" + authkey).digest()


def directory_of(address: str) -> str:
    """Return the runtime directory of an address, which may be the directory or the socket in it."""
    plain = os.path.abspath(address)
    return os.path.dirname(plain) if os.path.basename(plain) == runtime.SOCKET_FILE else plain


class LedgerListener:
    """The `Listener` of the serializer: a registry's directory, locked and bound.

    Raises:
        RegistryGone: another registry serves it.
    """

    def __init__(self, address: str | None = None, family: str | None = None, backlog: int = 1) -> None:
        path = runtime.new_directory_name() if address is None else directory_of(address)
        os.close(runtime.make_directory(path))
        self.lifetime = Lifetime(path)
        self.socket = runtime.bind_listener(self.lifetime.directory, path)
        self.address = runtime.socket_address(path)

    def close(self) -> None:
        """Close the listener and remove its directory. Doubled: no effect."""
        self.socket.close()
        self.lifetime.end()


_lines: weakref.WeakSet[LedgerConnection] = weakref.WeakSet()


class LedgerConnection:
    """The `Client` of the serializer: one authenticated connection, for one call at a time.

    `send` and `recv` speak to `managers.dispatch`: they take its tuples for the few calls a manager makes, and turn
    them into messages. `ask` is the way for everything else.

    Raises:
        AuthenticationError: the registry does not take this key, or does not have it itself.
        FileNotFoundError, ConnectionRefusedError, TimeoutError: no registry at that address.
    """

    def __init__(self, address: str, family: str | None = None, authkey: bytes | None = None) -> None:
        if authkey is None:
            raise AuthenticationError("a registry needs its key")
        self._lock = threading.Lock()
        self._requests = 0
        self._answer: Callable[[], object] | None = None
        self._socket: socket.socket | None = runtime.connect_to(directory_of(address))
        _lines.add(self)
        try:
            handshake = ClientHandshake(key_of(authkey), os.urandom(HOLDER_NONCE_SIZE))
            self._socket.sendall(handshake.answer(self._receive()))
            self.pid = handshake.check(self._receive()).pid
        except (HandshakeRefused, EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            raise AuthenticationError(f"the registry does not take this key, or has another: {error}") from None
        except BaseException:
            self.close()
            raise

    def ask(self, code: Code, **values: Any) -> Message:
        """Make one request; return its reply.

        Raises:
            RegistryGone: no reply.
            OSError: what the registry refuses with.
        """
        with self._lock:
            if self._socket is None:
                raise RegistryGone("this manager has let go of its registry")
            self._requests += 1
            try:
                self._socket.sendall(encode(code, self._requests, **values))
                while (reply := decode(self._receive())).request != self._requests:
                    pass  # a late reply to an earlier call
            except (EOFError, TimeoutError, BrokenPipeError, ConnectionResetError) as error:
                raise RegistryGone(f"the registry does not answer: {type(error).__name__}") from None
        if reply.code is Code.ERROR:
            raise error_of(reply)
        return reply

    def _receive(self) -> bytes:
        """Take one record within the patience; descriptors that come along (the page) are closed."""
        assert self._socket is not None, "callers have looked"
        parcel = Parcel()
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while not parcel.raw:
                if not wait_ready(self._socket.fileno(), select.POLLIN, deadline):
                    raise TimeoutError("the registry does not answer")
                receive(self._socket, parcel)
            if not parcel.data:
                raise EOFError
            return parcel.data
        finally:
            parcel.close()

    def send(self, request: tuple[object, str, tuple[object, ...], dict[str, object]]) -> None:
        """Take a call of `managers.dispatch`: dummy, number_of_objects, debug_info, shutdown."""
        _, name, _, _ = request
        calls: dict[str, Callable[[], object]] = {
            "dummy": lambda: self._told(Code.STATISTICS),
            "number_of_objects": lambda: int(self.ask(Code.STATISTICS).sockets),
            "debug_info": self._description,
            "shutdown": lambda: self._told(Code.SHUTDOWN),
        }
        self._answer = calls.get(name, lambda: no_proxies(name))

    def _told(self, code: Code) -> None:
        self.ask(code)

    def _description(self) -> str:
        rows = (*self.ask(Code.STATISTICS).values.items(), *self.ask(Code.REFUSALS).items)
        return "\n".join(f"{name}: {value}" for name, value in rows)

    def recv(self) -> tuple[str, object]:
        """Return what `managers.dispatch` expects for the call `send` took."""
        answer, self._answer = self._answer, None
        try:
            return "#RETURN", None if answer is None else answer()
        except Exception as error:
            return "#ERROR", error

    def close(self) -> None:
        """Close the connection. Doubled: no effect."""
        line, self._socket = self._socket, None
        if line is not None:
            line.close()

    @property
    def closed(self) -> bool:
        """Whether it has been closed, here or, in a forked child, by the fork."""
        return self._socket is None


def no_proxies(name: str) -> object:
    """Refuse a call that only makes sense for shared objects."""
    raise TypeError(f"a registry has no {name!r}: it serves a ledger, not objects; use the manager's methods")


def _abandon_lines() -> None:
    for line in list(_lines):
        line._lock = threading.Lock()
        line.close()
    _lines.clear()


os.register_at_fork(after_in_child=_abandon_lines)


_managers: Any = managers  # typeshed does not list the table of serializers
_managers.listener_client[SERIALIZER] = (LedgerListener, LedgerConnection)
