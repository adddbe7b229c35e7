"""Leases: a bound, listening socket handed over instead of a port number.

A free port that is looked up, closed and bound again may be somebody else's in between. A socket that listens already
cannot be: the kernel gave its port to nobody else, and clients that come before the server accepts wait in its backlog.
The socket is a plain `socket.socket` whose file blocks, so that a server that knows nothing of us takes it as its own:

    subprocess.Popen([..., "--fd", str(lease.fileno())], pass_fds=lease.pass_fds)     uvicorn, hypercorn
    subprocess.Popen([..., "--bind", lease.fd_url], pass_fds=lease.pass_fds)          gunicorn, circus
    subprocess.Popen(activated([...], lease), pass_fds=lease.pass_fds)                LISTEN_FDS, as systemd does it

The number is not inheritable: only a process that is handed it has it. A Unix lease's path goes with its close.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Self

__all__ = ["Lease", "TcpLease", "UnixLease", "activated", "lease_tcp", "lease_unix"]

_BACKLOG: Final = 128
# The stdlib's own class, also where somebody has put another one in its place (pytest-socket, our own drop-in tests).
_Plain: Final[Any] = next(
    kind for kind in socket.socket.__mro__ if (kind.__module__, kind.__qualname__) == ("socket", "socket")
)
# sd_listen_fds(3): the sockets are the numbers from 3 on, and LISTEN_PID is the process that executes the server.
_ACTIVATE: Final = (
    "import os, sys\n"
    "numbers = [int(number) for number in sys.argv[1].split(',')]\n"
    "spare = [os.dup(number) for number in numbers]\n"
    "while min(spare) < 3 + len(numbers): spare = [os.dup(number) for number in spare]\n"
    "for place, number in enumerate(spare): os.dup2(number, 3 + place)\n"
    "os.environ.update(LISTEN_FDS=str(len(numbers)), LISTEN_PID=str(os.getpid()))\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


class Lease(_Plain):  # type: ignore[misc]  # a class found at run time
    """A bound, listening socket; as a context manager it is closed at the end."""

    if sys.version_info:  # the methods of socket.socket, for the type checker
        fileno: Any
        close: Any
        getsockname: Any

    @property
    def pass_fds(self) -> tuple[int]:
        """The argument of that name of `subprocess.Popen`: the child has the socket under the same number."""
        return (self.fileno(),)

    @property
    def fd_url(self) -> str:
        """ "fd://N", as gunicorn's --bind takes it."""
        return f"fd://{self.fileno()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TcpLease(Lease):
    """A listening TCP socket on loopback."""

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        host, port = self.getsockname()[:2]
        return host, port

    @property
    def host(self) -> str:
        """The numeric address."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port; nobody else can listen on it while this socket, or a duplicate of it, is open."""
        return self.address[1]

    @property
    def url(self) -> str:
        """ "http://host:port"."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UnixLease(Lease):
    """A listening Unix stream socket in a directory of its own, which nobody else can enter; both go at close."""

    path: str = ""
    _owner: int = 0

    def close(self) -> None:
        """Close this number and remove the path; a server that was handed the socket goes on with its clients."""
        super().close()
        if self.path and self._owner == os.getpid():
            shutil.rmtree(os.path.dirname(self.path), ignore_errors=True)


def lease_tcp(host: str = "127.0.0.1", *, backlog: int = _BACKLOG) -> TcpLease:
    """Return a TCP socket that listens on a port nobody else has.

    Args:
        host: a numeric address of this machine; IPv6 with a colon.
    """
    lease = TcpLease(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # No SO_REUSEADDR: with it two sockets could bind one port before either listens.
        lease.bind((host, 0))
        lease.listen(backlog)
        lease.settimeout(None)  # socket.setdefaulttimeout() would have made the file nonblocking
    except BaseException:
        lease.close()
        raise
    return lease


def lease_unix(directory: str | None = None, *, backlog: int = _BACKLOG) -> UnixLease:
    """Return a Unix stream socket that listens on a short path of its own.

    Args:
        directory: where that path's own directory is made; None: the temporary directory.
    """
    lease = UnixLease(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = tempfile.mkdtemp(prefix="ss-", dir=directory)  # 0700; sun_path holds 107 bytes, so no long names
        lease.path, lease._owner = os.path.join(directory, "s"), os.getpid()
        lease.bind(lease.path)
        lease.listen(backlog)
        lease.settimeout(None)
    except BaseException:
        with suppress(OSError):
            lease.close()
        raise
    return lease


def activated(command: Sequence[str], *leases: Lease) -> list[str]:
    """Return the command line that runs `command` with the leases as LISTEN_FDS, in their order, from number 3 on.

    The caller passes the numbers themselves: `Popen(activated(command, a, b), pass_fds=a.pass_fds + b.pass_fds)`.
    """
    if not leases:
        raise ValueError("no lease to hand over")
    numbers = ",".join(str(lease.fileno()) for lease in leases)
    return [sys.executable, "-S", "-E", "-c", _ACTIVATE, numbers, *command]
