"""WHERE A REGISTRY LIVES: its runtime directory, the key and lock files in it, and its address.

    s            the registry's socket: AF_UNIX SOCK_SEQPACKET, a path, 0600; never abstract, never TCP (S-01, S-03)
    key          32 random bytes, 0600, redrawn at each start of a registry (S-06)
    start.lock   flock: held by whoever starts the registry, and by a registry that removes the directory (rule 15)
    alive.lock   flock: held by the registry process for its life; the kernel gives it back, however it dies

The directory has 128 random bits in its name, drawn once per tree of processes and inherited in SHAREDSOCK_TREE, so
that siblings which never shared before agree on it. It is made by mkdir 0700 at first use. Every use goes through
`open_directory`, which opens without following a link and then looks at what it has opened: a real directory, ours,
closed to others (S-02, F-112). Files in it are reached through that number, never through the path again.

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
import stat
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from sharedsock.model import trace
from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.registry.numbers import borrowed, close_number, keep_number, kept, undivided

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

T = TypeVar("T")
TREE_VARIABLE: Final = "SHAREDSOCK_TREE"
SOCKET_FILE: Final = "s"
KEY_FILE: Final = "key"
START_LOCK: Final = "start.lock"
ALIVE_LOCK: Final = "alive.lock"
KEY_SIZE: Final = 32
_PATH_LIMIT: Final = 107  # sun_path, less its final zero byte; Linux takes 108 without it, others do not
_DETOUR = "/proc/self/fd/{}"
_BACKLOG: Final = 1024
_TIMEVAL: Final = struct.Struct("ll")
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


# -- the directory ------------------------------------------------------------------------------------------------


def tree_directory() -> str:
    """Return the path of this tree's runtime directory, drawing its name if no ancestor has."""
    name = os.environ.get(TREE_VARIABLE)
    if name is None or not os.path.isabs(name):
        name = new_directory_name()
        os.environ[TREE_VARIABLE] = name
    return name


def new_directory_name() -> str:
    """Return a path that nobody can guess: $XDG_RUNTIME_DIR if it is ours and 0700, else the temporary directory."""
    return os.path.join(_base(), "sharedsock-" + os.urandom(16).hex())


def _base() -> str:
    preferred = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(preferred) and _is_private(preferred) and os.access(preferred, os.W_OK | os.X_OK):
        return preferred
    # As tempfile.gettempdir() chooses; importing tempfile would cost more than the rest of this room (P16).
    for name in (os.environ.get("TMPDIR"), os.environ.get("TEMP"), os.environ.get("TMP"), "/tmp", "/var/tmp"):
        if name and os.path.isabs(name) and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            return name
    return os.getcwd()


def _is_private(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077 == 0


def open_directory(path: str) -> int:
    """Open a runtime directory; return its number (close-on-exec). Nothing in it has been used yet.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: a link, no directory, another user's, or open to others (S-02).
    """
    try:
        number = os.open(path.rstrip("/") or "/", _DIRECTORY_FLAGS)  # "name/" would follow a link
    except OSError as error:
        raise _refused(error, path) from None
    try:
        _check_directory(number, path)
        return number
    except BaseException:
        os.close(number)
        raise


def in_directory(path: str, work: Callable[[int], T]) -> T:
    """Do work with the number of a verified runtime directory, which is closed after it, whatever interrupts."""

    def verified(number: int) -> T:
        _check_directory(number, path)
        return work(number)

    try:
        return borrowed(partial(os.open, path.rstrip("/") or "/", _DIRECTORY_FLAGS), verified)
    except OSError as error:
        raise _refused(error, path) from error.__cause__


def _refused(error: OSError, path: str) -> OSError:
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return from_errno(errno.EACCES, f"{path} is no directory of ours; set {TREE_VARIABLE}")
    return with_winerror(error)


def _check_directory(number: int, path: str) -> None:
    found = os.fstat(number)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise from_errno(errno.EACCES, f"{path} belongs to another user or is open to others: it must be ours, 0700")


def make_directory(path: str) -> int:
    """Open a runtime directory as `open_directory` does, making it (0700) if there is none; return its number."""
    for _ in range(8):  # an ending registry may remove what we have just found
        with contextlib.suppress(FileExistsError):
            try:
                os.mkdir(path, 0o700)
            except FileNotFoundError:  # the base itself went away
                raise from_errno(errno.ENOENT, f"no directory to make {path} in") from None
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise with_winerror(error) from None
        with contextlib.suppress(FileNotFoundError):
            return open_directory(path)
    raise from_errno(errno.ENOENT, f"{path} is removed again and again")


def remove_directory(path: str, dir_fd: int) -> None:
    """Remove a runtime directory and what is in it, the locks last. The caller holds both locks (S-03).

    A starter that opened `start.lock` meanwhile finds another inode behind the name, or none, and begins anew; one that
    has made a new `start.lock` in here keeps the directory: the rmdir finds it not empty and leaves it.
    """
    names = [SOCKET_FILE, KEY_FILE]
    with contextlib.suppress(OSError):
        names += [name for name in os.listdir(dir_fd) if name not in (START_LOCK, ALIVE_LOCK, *names)]
    for name in (*names, ALIVE_LOCK, START_LOCK):
        with contextlib.suppress(OSError):  # gone already, or a directory nobody of us made
            os.unlink(name, dir_fd=dir_fd)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(dir_fd), os.lstat(path)):
            os.rmdir(path)


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
        number = os.open(ALIVE_LOCK, os.O_RDWR | _FILE_FLAGS, dir_fd=dir_fd)
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

    number = kept(lambda: os.open(name, os.O_RDWR | os.O_CREAT | _FILE_FLAGS, 0o600, dir_fd=dir_fd))
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


# -- the key ------------------------------------------------------------------------------------------------------


def write_key(dir_fd: int) -> bytes:
    """Draw a key, write it to its 0600 file in one step (readers see the old one or the new one), and return it."""
    key = os.urandom(KEY_SIZE)
    draft = f"{KEY_FILE}.{os.urandom(8).hex()}"
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600, dir_fd=dir_fd)
    try:
        try:
            os.fchmod(number, 0o600)
            if os.write(number, key) != KEY_SIZE:
                raise from_errno(errno.ENOSPC, "no room for the registry's key file")
        finally:
            os.close(number)
        os.rename(draft, KEY_FILE, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=dir_fd)
        raise
    return key


def read_key(dir_fd: int) -> bytes:
    """Return the 32 bytes of the key file.

    Raises:
        FileNotFoundError: no registry has started here.
        PermissionError: not a plain file of ours that others cannot read, or not 32 bytes long (F-112).
    """
    try:
        return borrowed(partial(os.open, KEY_FILE, os.O_RDONLY | os.O_NONBLOCK | _FILE_FLAGS, dir_fd=dir_fd), _read_key)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise from_errno(errno.EACCES, "the registry's key file is a link") from None
        raise with_winerror(error) from None


def _read_key(number: int) -> bytes:
    found = os.fstat(number)
    private = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if private and found.st_uid == os.geteuid() and found.st_size == KEY_SIZE:
        return os.read(number, KEY_SIZE)
    raise from_errno(errno.EACCES, "the registry's key file must be a plain file of ours, mode 0600, 32 bytes")


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


tree_directory()
