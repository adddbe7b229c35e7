"""THE REGISTRY AS A MANAGER: `multiprocessing.managers.BaseManager`'s own interface, with the ledger behind it.

`start`, `connect`, `shutdown`, `with`, `join`, `address`, `get_server().serve_forever()` are what they are in the
standard library. What is replaced, and why: the process is a plain subprocess, since daemonic workers may not have
children of multiprocessing; the server is the selector loop, since the stock one gives each silent stranger a thread
and buffers messages of any announced size; the serializer unpickles nothing (S-05, S-07, S-12). So there are no proxies
and nothing can be registered: the ledger's questions are typed methods.

The authkey is the registry's key: 32 bytes as they are, any other length through SHA-256. It reaches the process by a
0600 file in the runtime directory (S-06).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import weakref
from collections.abc import Callable
from multiprocessing import ProcessError, managers, util
from typing import Any, Final

from sharedsock.model.errors import RegistryGone
from sharedsock.model.identity import DescriptorId, Holder, RegistryStatistics, SocketFacts, SocketId
from sharedsock.registry import launch, runtime
from sharedsock.registry.holders import HolderPipes
from sharedsock.registry.messages import HOLDER_KINDS, Code, Message
from sharedsock.registry.serializer import (
    SERIALIZER,
    LedgerConnection,
    LedgerListener,
    directory_of,
    key_of,
    no_proxies,
)
from sharedsock.registry.server import give_key
from sharedsock.registry.serving import RegistryServer

__all__ = ["SERIALIZER", "LedgerServer", "RegistryManager", "key_of"]

_managers: Any = managers  # typeshed leaves out State and BaseManager's own attributes
_State: Final = _managers.State


class _StopEvent(threading.Event):
    """The `stop_event` of a stock server, which here also wakes the loop."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__()
        self._stop = stop

    def set(self) -> None:
        super().set()
        self._stop()


class LedgerServer(managers.Server):
    """What `get_server()` returns: `serve_forever()` serves the ledger in the calling thread, until it is told to stop.

    Other processes: served while this one serves; its end ends the registry, as the end of any registry process does.
    """

    listener: LedgerListener

    def __init__(self, registry: Any, address: Any, authkey: bytes, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self._key = key_of(authkey)
        give_key(self.listener.lifetime.directory, self._key)
        self._serving: RegistryServer | None = None
        self.stop_event: threading.Event = _StopEvent(self.stop)

    def serve_forever(self) -> None:
        """Serve until `stop()`, `stop_event.set()`, a client's SHUTDOWN or an interrupt; then remove the directory.

        Unlike the stock server it returns instead of calling sys.exit().
        """
        serving = self._serving = RegistryServer(
            self.listener.socket, self._key, pipes=HolderPipes(self.listener.lifetime.directory)
        )
        try:
            if not self.stop_event.is_set():
                serving.run()
        except KeyboardInterrupt:  # as the stock server takes it
            pass
        finally:
            serving.close()
            self.listener.close()

    def stop(self) -> None:
        """End `serve_forever()`, from any thread."""
        serving = self._serving
        if serving is not None:
            serving.request_stop()


class _RegistryProcess:
    """The process behind `start()`, which is nobody's child: what `BaseManager` asks of a `multiprocessing.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._end = weakref.finalize(self, os.close, self._pidfd)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most `timeout` seconds."""
        if self._end.alive:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if poller.poll(None if timeout is None else timeout * 1000):
                self._end()

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        self.join(0)
        return self._end.alive

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._end.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


class RegistryManager(managers.BaseManager):
    """A registry, started or connected to, through BaseManager's interface.

    While it is started or connected it holds one connection, so that the registry does not end by itself; `shutdown()`
    of a started one ends the registry, of a connected one only the connection.

    Args:
        address: a runtime directory or the path of the socket `s` in it; None: a new one, known after `start()`.
        authkey: None: this process's own, which its multiprocessing children have as well.
    """

    _address: Any
    _authkey: Any
    _serializer: Any
    _state: Any
    _shutdown_timeout: float
    _process: Any = None
    _line: LedgerConnection | None = None

    def __init__(
        self,
        address: str | None = None,
        authkey: bytes | None = None,
        serializer: str = SERIALIZER,
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        if serializer != SERIALIZER:
            raise ValueError(f"a registry speaks {SERIALIZER!r} only: no peer's bytes are unpickled")
        plain = None if address is None else runtime.socket_address(directory_of(address))
        super().__init__(plain, authkey, serializer, ctx, shutdown_timeout=shutdown_timeout)

    @classmethod
    def register(cls, typeid: str, *arguments: Any, **named: Any) -> None:
        """Refuse: a registry serves no objects.

        Raises:
            TypeError: always.
        """
        no_proxies(typeid)

    @property
    def address(self) -> str:
        """The path of the registry's socket; None until it is known."""
        path: str = self._address
        return path

    def get_server(self) -> LedgerServer:
        """Return a server for this process: bound now, serving from `serve_forever()` on."""
        self._check_initial()
        server = LedgerServer({}, self._address, bytes(self._authkey), self._serializer)
        self._address = server.address
        return server

    def start(self, initializer: Callable[..., object] | None = None, initargs: Any = ()) -> None:
        """Start the registry as a process of its own, which is nobody's child.

        Raises:
            RegistryGone: it could not be started, or another serves the address.
            TypeError: an initializer: a registry runs nobody's code.
        """
        self._check_initial()
        if initializer is not None:
            raise TypeError("a registry runs nobody's code: no initializer")
        path = runtime.new_directory_name() if self._address is None else directory_of(self._address)
        directory = runtime.make_directory(path)
        try:
            give_key(directory, key_of(self._authkey), as_offer=True)
        finally:
            os.close(directory)
        if not launch.start(path):
            raise RegistryGone("another registry serves this address; connect() to it")
        self._address = runtime.socket_address(path)
        self._line = LedgerConnection(self._address, authkey=bytes(self._authkey))
        self._process = _RegistryProcess(self._line.pid)
        self._state.value = _State.STARTED
        self.shutdown = util.Finalize(  # type: ignore[method-assign]  # as BaseManager does
            self,
            type(self)._finalize_registry,
            args=(self._line, self._process, self._address, self._authkey, self._state, self._shutdown_timeout),
            exitpriority=0,
        )

    @staticmethod
    def _finalize_registry(
        line: LedgerConnection, process: _RegistryProcess, address: str, authkey: bytes, state: Any, timeout: float
    ) -> None:
        line.close()
        _managers.BaseManager._finalize_manager(process, address, authkey, state, LedgerConnection, timeout)
        process.join(0)

    def connect(self) -> None:
        """Connect to the registry at the address.

        Raises:
            AuthenticationError: it does not take our key.
            FileNotFoundError, ConnectionRefusedError: there is none.
        """
        super().connect()
        self._line = LedgerConnection(self._address, authkey=bytes(self._authkey))

    def shutdown(self) -> None:  # type: ignore[override]  # an attribute there, set by start()
        """End what `start()` or `connect()` began; the registry itself only if this manager has started it."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._state.value = _State.SHUTDOWN

    def references(self, socket: SocketId) -> int:
        """Return how many references a socket has; 0: not shared through this registry."""
        return int(self._ask(Code.REFERENCES, socket=socket).value)

    def holders(self, socket: SocketId) -> tuple[Holder, ...]:
        """Return every reference of a socket."""
        return tuple(
            Holder(pid, name, DescriptorId(descriptor), HOLDER_KINDS[kind], opened_at, since_s)
            for pid, name, descriptor, kind, opened_at, since_s in self._pages(Code.HOLDERS, socket=socket)
        )

    def sockets(self) -> tuple[tuple[SocketFacts, int], ...]:
        """Return every shared socket and its count."""
        return tuple(
            (SocketFacts(SocketId(socket), family, kind, protocol), count)
            for socket, family, kind, protocol, count in self._pages(Code.SOCKETS)
        )

    def statistics(self) -> RegistryStatistics:
        """Return what the registry counts; this manager's connection is one of its clients."""
        return RegistryStatistics(**self._ask(Code.STATISTICS).values)

    def refusals(self) -> dict[str, int]:
        """Return how often the registry has refused something, by cause."""
        return dict(self._ask(Code.REFUSALS).items)

    def _ask(self, code: Code, **values: Any) -> Message:
        if self._state.value != _State.STARTED:
            raise ProcessError("this manager is not connected: start() or connect() first")
        if self._line is None or self._line.closed:  # in a forked child: a line of its own
            self._line = LedgerConnection(self._address, authkey=bytes(self._authkey))
        return self._line.ask(code, **values)

    def _pages(self, code: Code, **values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        start = 0
        while True:
            page = self._ask(code, start=start, **values)
            rows.extend(page.items)
            start = page.following
            if not start:
                return rows

    def _check_initial(self) -> None:
        value = self._state.value
        if value == _State.STARTED:
            raise ProcessError("Already started server")
        if value != _State.INITIAL:
            raise ProcessError("Manager has shut down")
