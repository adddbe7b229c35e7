"""A DIRECTORY OF ONE'S OWN: where its name comes from, who may be in it, and the key that lies there.

The directory has 128 random bits in its name, drawn once per tree of processes and inherited in SHAREDSOCK_TREE, so
that siblings which never shared before agree on it. It is made by mkdir 0700 at first use. Every use goes through
`open_directory`, which opens without following a link and then looks at what it has opened: a real directory, ours,
closed to others (S-02, F-112). Files in it are reached through that number, never through the path again.
What is in it is told in runtime.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.registry.numbers import borrowed

__all__ = [
    "ALIVE_LOCK",
    "FILE_FLAGS",
    "KEY_FILE",
    "KEY_SIZE",
    "SOCKET_FILE",
    "START_LOCK",
    "TREE_VARIABLE",
    "in_directory",
    "is_directory_name",
    "make_directory",
    "new_directory_name",
    "open_directory",
    "read_key",
    "remove_directory",
    "tree_directory",
    "write_key",
]

T = TypeVar("T")
TREE_VARIABLE: Final = "SHAREDSOCK_TREE"
SOCKET_FILE: Final = "s"
KEY_FILE: Final = "key"
START_LOCK: Final = "start.lock"
ALIVE_LOCK: Final = "alive.lock"
KEY_SIZE: Final = 32
_PREFIX: Final = "sharedsock-"
FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree_directory() -> str:
    """Return the path of this tree's runtime directory, drawing its name if no ancestor has."""
    name = os.environ.get(TREE_VARIABLE)
    if name is None or not os.path.isabs(name):
        name = new_directory_name()
        os.environ[TREE_VARIABLE] = name
    return name


def new_directory_name() -> str:
    """Return a path that nobody can guess: $XDG_RUNTIME_DIR if it is ours and 0700, else the temporary directory."""
    return os.path.join(_base(), _PREFIX + os.urandom(16).hex())


def is_directory_name(name: str) -> bool:
    """Say whether a name is one that `new_directory_name` makes."""
    digits = name.removeprefix(_PREFIX)
    return name.startswith(_PREFIX) and len(digits) == 32 and set(digits) <= set("0123456789abcdef")


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


# -- the key ------------------------------------------------------------------------------------------------------


def write_key(dir_fd: int) -> bytes:
    """Draw a key, write it to its 0600 file in one step (readers see the old one or the new one), and return it."""
    key = os.urandom(KEY_SIZE)
    draft = f"{KEY_FILE}.{os.urandom(8).hex()}"
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE_FLAGS, 0o600, dir_fd=dir_fd)
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
        return borrowed(partial(os.open, KEY_FILE, os.O_RDONLY | os.O_NONBLOCK | FILE_FLAGS, dir_fd=dir_fd), _read_key)
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


tree_directory()
