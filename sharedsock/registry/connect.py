"""WHICH REGISTRY, and this process's one `Client` for each.

The current registry of a process is, in this order: the innermost `Registry()` or `connect_registry()` open in it,
the one SHAREDSOCK_REGISTRY names (a runtime directory), the default of its tree of processes, which is started
when it is needed and ends by itself. A ticket names its registry by the runtime directory, whose key only its owner can
read; a registry is never started to redeem a ticket, since a new one cannot know it.

A forked child inherits which registry is current, and nothing else: see `after_fork_in_child`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from sharedsock.model.errors import RegistryGone, TicketInvalid, with_winerror
from sharedsock.registry import launch, runtime
from sharedsock.registry.client import Client
from sharedsock.registry.numbers import abandon_numbers, fork_lock_acquire, fork_lock_release

if TYPE_CHECKING:
    from sharedsock.registry.manager import RegistryManager

__all__ = [
    "REGISTRY_VARIABLE",
    "Registry",
    "RegistryHandle",
    "after_fork_in_child",
    "client_of",
    "close_idle_clients",
    "connect_registry",
    "connected_clients",
    "default_client",
    "fork_lock_acquire",
    "fork_lock_release",
    "revive",
    "set_holding_hook",
    "set_reconnect_hook",
]

REGISTRY_VARIABLE: Final = "SHAREDSOCK_REGISTRY"
_PATH_LIMIT: Final = 4096

_clients: Final[dict[str, Client]] = {}
_current: Final[list[RegistryHandle]] = []
_reconnect_hook: list[Callable[[Client], None] | None] = [None]
_holding_hook: list[Callable[[Client, int, bool], None] | None] = [None]


def default_client() -> Client:
    """Return the connected client of this process's current registry, starting the tree's default if need be.

    Raises:
        RegistryGone: the registry that was named is not there, or the default cannot be started.
        PermissionError: the runtime directory is not one we use (S-02).
    """
    if _current:
        client = _current[-1].client
    else:
        named = os.environ.get(REGISTRY_VARIABLE)
        client = _client(_directory_of(named) if named else runtime.tree_directory())
    client.connect()
    return client


def client_of(path: str) -> Client:
    """Return the connected client of the registry in a runtime directory, as a ticket names it.

    Raises:
        TicketInvalid: no runtime directory of ours; a registry that has ended takes its directory with it.
        RegistryGone: the directory is there, its registry has died.
    """
    known = _clients.get(path)
    if known is not None and known.is_alive:
        return known
    plain = path.rstrip("/")
    if not os.path.isabs(plain) or "\0" in plain or len(plain) > _PATH_LIMIT:
        raise TicketInvalid("this ticket names no registry")
    client = _clients.get(plain)
    if client is None or client is known or not client.is_alive:
        _check_directory(plain)
        client = _client(plain)
        client.connect(start=False)
    return client


def _check_directory(path: str) -> None:
    try:
        runtime.in_directory(path, os.fstat)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise TicketInvalid("this ticket belongs to a registry that has ended, or to another user's") from error


def _client(path: str, key: bytes | None = None) -> Client:
    """Return the process's one client of a registry."""
    client = _clients.get(path)
    if client is None or key is not None:
        made = Client(path, key, starts=key is None and path == runtime.tree_directory())
        made.on_reconnect, made.on_hold = _reconnect_hook[0], _holding_hook[0]
        client = _clients.setdefault(path, made)  # atomic: two threads agree on one
        if key is not None:
            client.use_key(key)
    return client


def _directory_of(address: str) -> str:
    """Return the runtime directory of an address, which may be the directory or the socket in it."""
    plain = os.path.abspath(address)
    return os.path.dirname(plain) if os.path.basename(plain) == runtime.SOCKET_FILE else plain


def revive(client: Client) -> None:
    """Make a client's channel anew, starting the default registry if it has died; announcements come first."""
    client.connect()


def set_reconnect_hook(hook: Callable[[Client], None] | None) -> None:
    """Say what is to run when a new registry has taken a dead one's place, in the calling thread and before any other
    call: the announcement of this process's descriptors with recovered=True."""
    _reconnect_hook[0] = hook
    for client in _clients.copy().values():
        client.on_reconnect = hook


def set_holding_hook(hook: Callable[[Client, int, bool], None] | None) -> None:
    """Say what is to run with a client, the number of its pipe and True when the pipe is there, False before it goes.

    Whoever waits on that number has an idle process announce itself to a restarted registry.
    """
    _holding_hook[0] = hook
    for client in _clients.copy().values():
        client.on_hold = hook


def close_idle_clients() -> int:
    """Close every channel through which this process holds nothing now; return how many. The next call makes a new one.

    A registry ends by itself once nobody is connected and nothing is counted: for leak checks, and ends of runs.
    """
    used = {id(handle.client) for handle in _current}
    closed = 0
    for client in [client for client in _clients.copy().values() if client.is_idle()]:
        if id(client) in used:
            client.rest()
        else:
            closed += client.is_connected()
            client.close()
    return closed


def connected_clients() -> list[Client]:
    """Return the clients that have a channel now; none is made, nobody is asked."""
    return [client for client in _clients.copy().values() if client.is_connected()]


def after_fork_in_child() -> None:
    """Own nothing of the parent's: channel numbers are closed without traffic, locks and nonces are new (rule 11)."""
    abandon_numbers()
    for client in _clients.copy().values():
        client.after_fork_in_child()


def _at_exit() -> None:
    """Take what is ours out of the directories of dead registries: nobody else will for a while."""
    for client in _clients.copy().values():
        client.leave()


atexit.register(_at_exit)


class RegistryHandle:
    """A registry chosen by name: current for this process from `connect_registry` until `close()`."""

    def __init__(self, path: str, key: bytes | None = None) -> None:
        self.runtime = path
        self._key = key
        self._manager: RegistryManager | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.runtime}{'' if self in _current else ', closed'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"a {type(self).__name__} belongs to its process: pass its address, or set {REGISTRY_VARIABLE}")

    @property
    def address(self) -> str:
        """The path of the registry's socket."""
        return runtime.socket_address(self.runtime)

    @property
    def authkey(self) -> bytes:
        """The registry's key: 32 bytes, for `connect_registry`; read from its file unless it was given."""
        if self._key is not None:
            return self._key
        return runtime.in_directory(self.runtime, runtime.read_key)

    @property
    def client(self) -> Client:
        """This process's client of the registry."""
        return _client(self.runtime)

    @property
    def manager(self) -> RegistryManager:
        """The registry as a connected `multiprocessing` manager, made at first use."""
        if self._manager is None:
            from sharedsock.registry.manager import RegistryManager

            manager = RegistryManager(address=self.address, authkey=self.authkey)
            try:
                manager.connect()
            except OSError as error:
                with_winerror(error)
                raise
            self._manager = manager
        return self._manager

    def close(self) -> None:
        """Be current no longer. Sockets shared through it stay shared; its channel ends with the last of ours."""
        manager = self._manager
        if manager is not None:
            manager.shutdown()
            self._manager = None
        self.client.retire()
        if self in _current:  # last: what is cut short can be done again
            _current.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Registry(RegistryHandle):
    """A registry of one's own: started by `with`, current for this process and, through the environment, its children.

    It ends by itself, within 1 s of the last reference, ticket and client. Other processes: children of this one
    inherit SHAREDSOCK_REGISTRY while it is open; others need its address and key.
    """

    def __init__(self) -> None:
        super().__init__(runtime.new_directory_name())
        self._before: str | None = None

    def start(self) -> Self:
        """Start it and make it current; what `with` does.

        Raises:
            RegistryGone: it could not be started.
        """
        if self in _current:
            return self
        launch.start(self.runtime)
        client = self.client
        client.connect()
        self._before = os.environ.get(REGISTRY_VARIABLE)
        os.environ[REGISTRY_VARIABLE] = self.runtime
        _current.append(self)
        return self

    def close(self) -> None:
        """Be current no longer, and leave it to end by itself. Idempotent."""
        if self not in _current:
            return
        if os.environ.get(REGISTRY_VARIABLE) == self.runtime:
            if self._before is None:
                del os.environ[REGISTRY_VARIABLE]
            else:
                os.environ[REGISTRY_VARIABLE] = self._before
        super().close()

    def __enter__(self) -> Self:
        return self.start()


def connect_registry(address: str, authkey: bytes) -> RegistryHandle:
    """Make a registry current for this process, from wherever: its address and key are all that is needed.

    Args:
        address: the path of its socket, or of its runtime directory.
        authkey: `Registry.authkey`, or what a `RegistryManager` was started with.

    Raises:
        RegistryGone: no registry there, or not one with this key.
        PermissionError: not a runtime directory of this user.
    """
    key = bytes(authkey)
    if len(key) != runtime.KEY_SIZE:
        from sharedsock.registry.serializer import key_of

        key = key_of(key)
    handle = RegistryHandle(_directory_of(address), key)
    client = _client(handle.runtime, handle.authkey)
    try:
        client.connect(start=False)
    except RegistryGone:
        client.use_key(None)
        raise
    try:
        _current.append(handle)
        return handle
    except BaseException:  # interrupted between the two: a handle that nobody has could never be closed
        with contextlib.suppress(ValueError):
            _current.remove(handle)
        raise
