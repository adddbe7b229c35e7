"""WHO WILL ANNOUNCE AGAIN: a locked pipe per holder in the runtime directory, for the registry after the next crash.

A registry that takes a dead one's place must know who holds sockets it has not heard of, or it would call a closer the
last while another process goes on using the socket (F-76). So a process that has something counted keeps a named pipe
`holder.<nonce>` in the directory, 0600 and locked. The next registry finds the locked ones, writes a byte into each,
and the holder, which waits at the other end, announces again. Nobody polls for that.

The lock is a POSIX record lock: the kernel takes it back when the process dies or runs another program, and a forked
child never has it, whether our hooks ran in it or not (rule 9, F-88, F-90). It would also go with any other number of
the same file that this process closes, so a process never opens the pipes of its own a second time: `_ours`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable
from functools import partial
from itertools import starmap
from typing import Final

from sharedsock.model.errors import with_winerror
from sharedsock.registry.directory import FILE_FLAGS, in_directory
from sharedsock.registry.numbers import close_all, keep_number, undivided
from sharedsock.registry.turns import Turn, holding

__all__ = ["HolderPipe", "HolderPipes", "has_holders"]

_PREFIX: Final = "holder."
_TRIES: Final = 20
# O_RDWR: a pipe that has a writer of its own never hangs up, so waiting for its byte does not spin.
_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | FILE_FLAGS
_ours: Final[set[str]] = set()


def _name(nonce: bytes) -> str:
    return _PREFIX + nonce.hex()


class HolderPipe:
    """A holder's own pipe. Safe from any thread and against an interrupt anywhere: each step can be done again.

    Args:
        path: the runtime directory.
        tell: called with the pipe's number and whether it is worth waiting on, whenever that changes; one at a time.

    Attributes:
        is_held: the pipe is there, and locked.
    """

    def __init__(self, path: str, nonce: bytes, tell: Callable[[int, bool], None]) -> None:
        self.is_held = False
        self._path = path
        self._tell = tell
        self._name = _name(nonce)
        self._numbers: list[int] = []
        self._turn = Turn()

    def hold(self) -> None:
        """Have the next registry wait for us. A directory that was removed has no next registry: no effect then.

        Raises:
            OSError: EMFILE, ENOSPC: no number or no room for the pipe.
        """
        if not self.is_held:
            holding(self._turn, self._hold)

    def renew(self) -> None:
        """Hold a pipe in the directory as it is now: it may be another one behind the same name."""
        holding(self._turn, self._renew)

    def _renew(self) -> None:
        if self.is_held and not os.fstat(self._numbers[0]).st_nlink:
            self._drop()
        self._hold()

    def _hold(self) -> None:
        if self.is_held or (self._numbers and self._lock()):
            return
        try:
            for _ in range(_TRIES):  # a registry that looks at it has the lock for a moment, and removes it then
                close_all(self._numbers)
                in_directory(self._path, self._open)
                if self._lock():
                    return
                select.poll().poll(1)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise with_winerror(error) from None

    def _open(self, directory: int) -> None:
        with contextlib.suppress(FileExistsError):  # an interrupt came between here and the lock
            os.mkfifo(self._name, 0o600, dir_fd=directory)

        def noted() -> None:
            self._numbers.extend(starmap(partial(os.open, self._name, _FLAGS, dir_fd=directory), ((),)))
            keep_number(self._numbers[0])

        undivided(noted)

    def _lock(self) -> bool:
        import fcntl  # P16: what a call needs is imported by the call

        number = self._numbers[0]
        _ours.add(self._name)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.fstat(number).st_nlink:
            self._tell(number, True)
            self.is_held = True
        return self.is_held

    def silence(self) -> None:
        """Take the bytes out that new registries have written."""
        with contextlib.suppress(OSError, IndexError):
            os.read(self._numbers[0], 4096)

    def close(self, is_needed: Callable[[], object] = lambda: False) -> None:
        """Have nobody wait for us, and remove the pipe, unless somebody needs it by now. Doubled: no effect."""
        holding(self._turn, self._close, is_needed)

    def _close(self, is_needed: Callable[[], object]) -> None:
        # Race: close against hold. We say that it is not held, then ask; who holds adds what it needs, then looks here.
        was_held, self.is_held = self.is_held, False
        if is_needed():
            self.is_held = was_held
            return
        if self._numbers:
            self._drop()
            with contextlib.suppress(OSError):  # the directory is gone, or is no longer ours to use
                in_directory(self._path, partial(_remove, self._name))
        close_all(self._numbers)
        _ours.discard(self._name)

    def _drop(self) -> None:
        import fcntl

        self._tell(self._numbers[0], False)
        self.is_held = False
        fcntl.lockf(self._numbers[0], fcntl.LOCK_UN)

    def abandon(self) -> None:
        """In a forked child: the pipe is the parent's; `numbers` has closed our copy of its number."""
        self.is_held = False
        self._numbers.clear()
        _ours.discard(self._name)


def _remove(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


class HolderPipes:
    """A registry's view of the pipes in its directory.

    Args:
        directory: its number, which stays the caller's.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def find(self) -> set[bytes]:
        """Return the nonces of the holders that live; what dead ones have left is removed."""
        found = set()
        for name in os.listdir(self._directory):
            if name.startswith(_PREFIX):
                with contextlib.suppress(ValueError):
                    nonce = bytes.fromhex(name.removeprefix(_PREFIX))
                    if self.look(nonce):
                        found.add(nonce)
        return found

    def look(self, nonce: bytes) -> bool:
        """Say whether a holder has its pipe locked; one that nobody has is removed, while we have the lock."""
        import fcntl

        name = _name(nonce)
        if name in _ours:
            return True
        number = self._open(name)
        if number is None:
            return False
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self._directory)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
        finally:
            os.close(number)
        return False

    def call(self, nonce: bytes) -> None:
        """Ask a holder to announce again."""
        name = _name(nonce)
        if name in _ours:
            return  # in this process: it does so with its next call
        number = self._open(name)
        if number is not None:
            with contextlib.suppress(OSError):  # full: it has been asked often enough
                os.write(number, b"A")
            os.close(number)

    def _open(self, name: str) -> int | None:
        try:
            return os.open(name, _FLAGS, dir_fd=self._directory)
        except OSError:  # removed meanwhile, or nothing of ours
            return None


def has_holders(directory: int) -> bool:
    """Say whether some living process holds sockets that a registry of this directory has counted."""
    return bool(HolderPipes(directory).find())
