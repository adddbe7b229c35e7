"""THE REGISTRY PROCESS: how it begins and ends in its runtime directory.

`main(runtime_dir, ready_fd)` is the process's body. Both arguments may be seen by anybody: the key is drawn here and
written to its 0600 file (S-06). It takes `alive.lock`, binds the socket `s`, writes b"R" to `ready_fd` and closes it.
It ends by itself within a second of the last reference, ticket and client: it takes `start.lock` without waiting (busy:
somebody is about to use us, stay), looks once more for connections, then removes the directory. SIGTERM and SHUTDOWN
end it in order. What it does meanwhile is serving.py's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Final

from sharedsock.model import trace
from sharedsock.model.errors import RegistryGone
from sharedsock.registry import launch, runtime
from sharedsock.registry.holders import HolderPipes
from sharedsock.registry.reception import Caps
from sharedsock.registry.records import Limits
from sharedsock.registry.serving import RegistryServer

__all__ = ["Lifetime", "give_key", "main"]

READY: Final = b"R"
_OFFER: Final = "key.offered"


class Lifetime:
    """The registry's hold on its directory: locks at the start, removal at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.directory = runtime.open_directory(path)
        self.server: RegistryServer | None = None
        self._start_lock: int | None = None
        self._ended = False
        self._alive_lock = runtime.hold_alive_lock(self.directory)
        if self._alive_lock is None:
            os.close(self.directory)
            raise RegistryGone("another registry serves this directory")

    def may_end(self) -> bool:
        """Take the start lock for the end; False: somebody is about to use us, or has come just now."""
        try:
            lock = runtime.try_start_lock(self.directory)
        except OSError:  # the directory has been removed under us: nobody can find us any more
            return True
        if lock is None:
            return False
        if self.server is not None and self.server.has_visitors():
            runtime.release_lock(lock)
            return False
        self._start_lock = lock
        return True

    def end(self) -> None:
        """Remove the directory, unless a starter holds its lock: it will start anew in there. Doubled: no effect."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError):  # removed under us
            for _ in range(50):
                if self._start_lock is not None:
                    break
                self._start_lock = runtime.try_start_lock(self.directory)
                select.poll().poll(0 if self._start_lock is not None else 10)
        if self._start_lock is not None:
            runtime.remove_directory(self.path, self.directory)
            runtime.release_lock(self._start_lock)
        if self._alive_lock is not None:
            runtime.release_lock(self._alive_lock)
        os.close(self.directory)


def main(
    runtime_dir: str,
    ready_fd: int | None = None,
    *,
    key: bytes | None = None,
    limits: Limits | None = None,
    caps: Caps | None = None,
    hook: trace.Probe | None = None,
) -> None:
    """Be the registry of a runtime directory, until the end. For a process of its own: it takes the signals.

    Args:
        ready_fd: the end of a pipe; gets b"R" when connections are accepted, then is closed.
        key: only from code in this process (tests); None takes the one a manager has left for it, or draws one.
        hook: a Probe, only from code in this process; there is no switch from outside.

    Raises:
        RegistryGone: another registry serves the directory.
        OSError: the directory is not one we use.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hook is not None:
        trace.hook = hook
    _raise_descriptor_limit()
    lifetime = Lifetime(runtime_dir)
    try:
        if key is not None:
            give_key(lifetime.directory, key)
        elif (key := _offered_key(lifetime.directory)) is None:
            key = runtime.write_key(lifetime.directory)
        listener = runtime.bind_listener(lifetime.directory, runtime_dir)
        pipes = HolderPipes(lifetime.directory)
        server = RegistryServer(listener, key, limits=limits, caps=caps, pipes=pipes, may_end=lifetime.may_end)
        lifetime.server = server
        signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: server.request_stop())
        if ready_fd is not None:
            os.write(ready_fd, READY)
            os.close(ready_fd)
        launch.remove_abandoned(os.path.dirname(runtime_dir))
        server.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        lifetime.end()


def give_key(directory: int, key: bytes, *, as_offer: bool = False) -> None:
    """Write a key to the key file of a runtime directory, or beside it for the registry that starts there next."""
    draft = f"draft.{os.urandom(8).hex()}"
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.write(number, key)
    finally:
        os.close(number)
    os.rename(draft, _OFFER if as_offer else runtime.KEY_FILE, src_dir_fd=directory, dst_dir_fd=directory)


def _offered_key(directory: int) -> bytes | None:
    """Take the key that whoever starts this registry has left for it (RegistryManager.start), None: none."""
    try:
        os.rename(_OFFER, runtime.KEY_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return None
    return runtime.read_key(directory)


def _raise_descriptor_limit() -> None:
    """Use all descriptors the system grants us: each ticket and each client takes some."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):  # then it is what it is: requests beyond it are refused
        pass
