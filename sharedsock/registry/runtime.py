"""WHERE A REGISTRY LIVES: the locks and the address in its runtime directory (see directory.py), and all names at once.

    s            the registry's socket: AF_UNIX SOCK_SEQPACKET, a path, 0600; never abstract, never TCP (S-01, S-03)
    key          32 random bytes, 0600, redrawn at each start of a registry (S-06)
    start.lock   flock: held by whoever starts the registry, and by a registry that removes the directory (rule 15)
    alive.lock   flock: held by the registry process for its life; the kernel gives it back, however it dies
    holder.*     a locked pipe of each process that has something counted (holders.py)

Whoever waits for a lock checks, once it has it, that the name still means the same file: a registry that ends unlinks
the locks before it gives them back. The numbers this file opens are known to `numbers`, so that a forked child can
close them: a lock belongs to the open file, which the child has as well (rule 11).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from sharedsock.model import trace
from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.registry.directory import (
    ALIVE_LOCK,
    FILE_FLAGS,
    KEY_FILE,
    KEY_SIZE,
    SOCKET_FILE,
    START_LOCK,
    TREE_VARIABLE,
    in_directory,
    is_directory_name,
    make_directory,
    new_directory_name,
    open_directory,
    read_key,
    remove_directory,
    tree_directory,
    write_key,
)
from sharedsock.registry.numbers import close_number, keep_number, kept, undivided

__all__ = [
    "KEY_FILE",
    "KEY_SIZE",
    "SOCKET_FILE",
    "TREE_VARIABLE",
    "acquire_start_lock",
    "bind_listener",
    "connect_to",
    "hold_alive_lock",
    "in_directory",
    "is_alive",
    "is_directory_name",
    "make_directory",
    "new_directory_name",
    "open_directory",
    "read_key",
    "release_lock",
    "remove_directory",
    "socket_address",
    "tree_directory",
    "try_start_lock",
    "write_key",
]

_PATH_LIMIT: Final = 107  # sun_path, less its final zero byte; Linux takes 108 without it, others do not
_DETOUR = "/proc/self/fd/{}"
_BACKLOG: Final = 1024
_TIMEVAL: Final = struct.Struct("ll")


# -- locks --------------------------------------------------------------------------------------------------------


def hold_alive_lock(dir_fd: int) -> int | None:
    """Take the lock that says "the registry of this directory lives"; None while another process has it."""
    return _try_lock(dir_fd, ALIVE_LOCK)


def try_start_lock(dir_fd: int) -> int | None:
    """Take the lock that decides who starts or removes (rule 15); None while another process has it."""
    return _try_lock(dir_fd, START_LOCK)


def is_alive(dir_fd: int) -> bool:
    """Report whether a registry process holds `alive.lock`. Asked under `start.lock` only.

    The question takes the lock for a moment, shared: a registry that is just starting without a starter (F-06: that one
    was killed) may find it taken, ends, and the asker starts another.
    """
    import fcntl

    try:
        number = os.open(ALIVE_LOCK, os.O_RDWR | FILE_FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def _try_lock(dir_fd: int, name: str) -> int | None:
    import fcntl

    number = kept(lambda: os.open(name, os.O_RDWR | os.O_CREAT | FILE_FLAGS, 0o600, dir_fd=dir_fd))
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(number), os.stat(name, dir_fd=dir_fd, follow_symlinks=False)):
            taken, number = number, -1
            return taken
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if number >= 0:
            close_number(number)
    return None


def release_lock(number: int) -> None:
    """Give a lock back and close its number. Explicitly: a forked child may have the same open file."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(number, fcntl.LOCK_UN)
    close_number(number)


def acquire_start_lock(path: str, timeout_s: float) -> tuple[int, int]:
    """Make the directory if need be and wait for its start lock; return (directory number, lock number).

    Reports "reg.lock" to the Probe before (stage="waiting") and after (stage="held"). flock has no timeout and no
    event, so the wait asks again, at growing intervals of 1 to 20 ms: it is met only while a registry starts or ends.

    Raises:
        TimeoutError: another process has held it for `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    trace.hit("reg.lock", stage="waiting", path=path)
    interval_ms = 1
    while True:
        directory = kept(lambda: make_directory(path))
        try:
            with contextlib.suppress(FileNotFoundError):  # removed since we opened it
                lock = try_start_lock(directory)
                if lock is not None:
                    try:
                        if os.path.samestat(os.fstat(directory), os.lstat(path)):
                            trace.hit("reg.lock", stage="held", path=path)
                            ours, directory = directory, -1
                            return ours, lock
                    except BaseException:
                        release_lock(lock)
                        raise
                    release_lock(lock)
        finally:
            if directory >= 0:
                close_number(directory)
        if time.monotonic() >= deadline:
            raise from_errno(errno.ETIMEDOUT, f"another process has held the start lock of {path} for {timeout_s} s")
        select.poll().poll(interval_ms)
        interval_ms = min(20, interval_ms * 2)


# -- the address --------------------------------------------------------------------------------------------------


def socket_address(path: str) -> str:
    """Return the path of a registry's socket; its length has no limit here (F-08)."""
    return os.path.join(path, SOCKET_FILE)


def bind_listener(dir_fd: int, path: str) -> socket.socket:
    """Return a bound, listening, nonblocking SEQPACKET socket at the registry's address, file mode 0600 (S-01, S-03).

    The caller holds `alive.lock`, so a socket file that is already there is a dead registry's, and is removed.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET_FILE, dir_fd=dir_fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _reachable(dir_fd, path) as name:
            before = os.umask(0o077)
            try:
                listener.bind(name)
            finally:
                os.umask(before)
        os.chmod(SOCKET_FILE, 0o600, dir_fd=dir_fd)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect_to(path: str, timeout_s: float = 1.0, *, noted: bool = False) -> socket.socket:
    """Connect to the registry of a runtime directory; return the nonblocking SEQPACKET channel.

    A connection may wait in a full backlog, at most `timeout_s`. Nothing has been said yet: that the other side is a
    registry of ours, SO_PEERCRED and the handshake have still to show.

    Args:
        noted: the number goes into `numbers`, so that a forked child has it closed; else that is the caller's business.

    Raises:
        FileNotFoundError, ConnectionRefusedError: no registry there.
        PermissionError: the directory is not one we use.
        TimeoutError: it does not accept connections.
    """

    def connected(directory: int) -> socket.socket:
        with _reachable(directory, path) as name:
            return _connected(name, timeout_s, noted)

    try:
        return in_directory(path, connected)
    except BlockingIOError:
        raise from_errno(errno.ETIMEDOUT, f"the registry at {path} accepts no connection") from None
    except OSError as error:
        raise with_winerror(error) from None


def _connected(name: str, timeout_s: float, noted: bool) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.001, deadline - time.monotonic())
        channel = undivided(_new_noted_channel) if noted else _new_channel()
        try:
            # A nonblocking connect() of a Unix socket says EAGAIN when the backlog is full, and no event tells when it
            # is not. A blocking one waits, and SO_SNDTIMEO bounds it (unix(7), socket(7)).
            bound = _TIMEVAL.pack(*divmod(int(left_s * 1e6), 1_000_000))
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
            channel.connect(name)
            # After a signal the interpreter asks SO_ERROR whether it is connected, and a Unix socket says 0 either way.
            channel.getpeername()
            channel.setblocking(False)
            ours, channel = channel, None  # type: ignore[assignment]  # given away
            return ours
        except OSError as error:
            if error.errno != errno.ENOTCONN or time.monotonic() >= deadline:
                raise
        finally:
            if channel is not None:
                close_number(channel.detach())


class _Channel(socket.socket):
    """A socket that is closed without a warning when an interrupt has lost it."""

    def __del__(self) -> None:
        if self.fileno() >= 0:  # -1 as well where the constructor has failed
            self.close()


def _new_channel() -> socket.socket:
    return _Channel(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _new_noted_channel() -> socket.socket:
    channel = _new_channel()
    keep_number(channel.fileno())
    return channel


@contextlib.contextmanager
def _reachable(dir_fd: int, path: str) -> Iterator[str]:
    """Give the shortest usable name of the registry's socket: its path, or a detour through the directory's number."""
    plain = socket_address(path)
    if len(os.fsencode(plain)) <= _PATH_LIMIT:
        yield plain
        return
    detour = _DETOUR.format(dir_fd)
    if os.path.isdir(detour):
        yield f"{detour}/{SOCKET_FILE}"
        return
    for base in ("/tmp", "/var/tmp"):  # no /proc: a short link, ours alone, for as long as the call takes
        short = f"{base}/ss-{os.urandom(16).hex()}"
        try:
            os.symlink(path, short)
        except OSError:
            continue
        try:
            yield f"{short}/{SOCKET_FILE}"
        finally:
            os.unlink(short)
        return
    raise from_errno(errno.ENAMETOOLONG, f"the address {plain} is longer than {_PATH_LIMIT} bytes: set XDG_RUNTIME_DIR")
