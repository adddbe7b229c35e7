"""The functions that make a SharedSocket, as the socket module's make a socket."""

from __future__ import annotations

import _socket
import errno
import socket
import types
from typing import TYPE_CHECKING, Any

from sharedsock.descriptors import options, providing, table
from sharedsock.descriptors.descriptor import Descriptor
from sharedsock.kernel import sockets, system
from sharedsock.model.errors import from_errno, with_winerror
from sharedsock.sharedsocket.base import PlainSocket
from sharedsock.sharedsocket.face import SharedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.model.identity import Statistics

__all__ = ["adopt", "create_connection", "create_server", "socketpair", "statistics"]


def adopt(plain: socket.socket) -> SharedSocket:
    """Take over a plain socket, which is then detached, with its timeout.

    Raises:
        TypeError: not a socket, or one that is ours already. OSError: closed (10038).
    """
    given: object = plain
    if not isinstance(given, PlainSocket) or isinstance(given, SharedSocket):
        raise TypeError(f"adopt() takes a plain socket.socket, not {type(given).__name__}")
    if plain.fileno() < 0:
        raise from_errno(errno.EBADF, "adopt() of a closed socket")
    shared = _take_over(plain)
    plain._closed = True  # type: ignore[attr-defined]  # as its own detach() does
    return shared


def _take_over(plain: _socket.socket) -> SharedSocket:
    """Adopt what a socket object has; cut short, the number is closed or still that object's."""
    table.note_fork()  # as in the constructor
    timeout_s = plain.gettimeout()
    facts = plain.family, plain.type, plain.proto
    cookie = system.socket_cookie(plain.fileno())
    taken: list[int] = []
    try:
        taken.extend(map(_socket.socket.detach, (plain,)))
        kernel = sockets.adopt(taken[0], *facts)
    except BaseException:
        for number in taken:
            sockets.close_stray(number, cookie)
        raise
    descriptor = Descriptor(kernel)
    descriptor.chain = providing.current
    descriptor.timeout_s = timeout_s
    options.take_over_linger(descriptor)
    return SharedSocket._over(descriptor)


def statistics() -> Statistics:
    """Count what this process has: open descriptors, shared ones, pending operations, retiring numbers."""
    return table.statistics()


def socketpair(
    family: int | None = None,
    type: int = socket.SOCK_STREAM,
    proto: int = 0,  # as in the stdlib
) -> tuple[SharedSocket, SharedSocket]:
    """Open a connected pair, as `socket.socketpair`."""
    family = socket.AF_UNIX if family is None else family
    try:
        made = _socket.socketpair(family, type, proto)
    except OSError as error:
        raise with_winerror(error) from None
    pair: list[SharedSocket] = []
    try:
        for end in made:
            pair.append(_take_over(end))
            pair[-1]._kernel.is_exclusive = True
    except BaseException:
        for opened in (*made, *pair):
            opened.close()
        raise
    return pair[0], pair[1]


def create_server(address: Any, **keywords: Any) -> SharedSocket:
    """Open a listener, as `socket.create_server`: family, backlog, reuse_port, dualstack_ipv6."""
    return _taken_over(socket.create_server, address, **keywords)


def create_connection(address: Any, *arguments: Any, **keywords: Any) -> SharedSocket:
    """Connect to an address, as `socket.create_connection`: timeout, source_address, all_errors."""
    return _taken_over(socket.create_connection, address, *arguments, **keywords)


def _taken_over(make: Callable[..., socket.socket], *arguments: Any, **keywords: Any) -> SharedSocket:
    """Adopt what a function of the socket module makes; where SharedSocket stands in for socket.socket, it is one."""
    if providing.current is not None:
        make = _over_ours(make)
    try:
        made = make(*arguments, **keywords)
    except OSError as error:
        with_winerror(error)
        raise
    if isinstance(made, SharedSocket):
        return made
    with made:
        shared = adopt(made)
    shared._kernel.is_exclusive = True
    return shared


def _over_ours(make: Any) -> Callable[..., socket.socket]:
    """Return a function of the socket module that opens a SharedSocket: its bind or connect is the chain's as well."""
    names = {**make.__globals__, "socket": SharedSocket}
    ours = types.FunctionType(make.__code__, names, make.__name__, make.__defaults__, make.__closure__)
    ours.__kwdefaults__ = make.__kwdefaults__
    return ours
