"""What only the kernel knows of Unix sockets: the file one is bound to, the socket one is connected to.

Asked over netlink (sock_diag(7), linux/unix_diag.h). Another system has no such thing, and a kernel may be built
without: that is an OSError to one question, and nothing known to the other.
"""

from __future__ import annotations

import _socket
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

__all__ = ["bound_file", "unix_peers"]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_ONE: Final = 0x001  # NLM_F_REQUEST
_ALL: Final = 0x301  # and NLM_F_DUMP
_SHOW_VFS: Final = 2
_SHOW_PEER: Final = 4
_VFS: Final = 1
_PEER: Final = 2
_ANY: Final = 0xFFFFFFFF
# struct nlmsghdr, unix_diag_req (a socket by its inode, whatever its cookie), unix_diag_msg, nlattr.
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBHIIIII")
_REPLY: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_FILE: Final = struct.Struct("=II")

_Attributes = dict[int, bytes]


def bound_file(inode: int) -> tuple[int, int] | None:
    """Return (inode, device) of the file a Unix socket is bound to, in the kernel's own numbers; None: to none.

    Raises:
        OSError: the kernel does not tell.
    """
    for _, attributes in _ask(_ONE, inode & _ANY, _SHOW_VFS):
        if _VFS in attributes:
            number, device = _FILE.unpack_from(attributes[_VFS])
            return number, device
    return None


def unix_peers() -> dict[int, int]:
    """Return the inode of each connected Unix socket's peer; empty where the kernel does not tell."""
    found: dict[int, int] = {}
    with suppress(OSError, struct.error):
        for inode, attributes in _ask(_ALL, 0, _SHOW_PEER):
            if _PEER in attributes:
                found[inode] = int.from_bytes(attributes[_PEER][:4], sys.byteorder)
    return found


def _ask(how: int, inode: int, show: int) -> Iterator[tuple[int, _Attributes]]:
    """Yield (inode, attributes) of each socket the kernel answers with."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, show, _ANY, _ANY)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    asking = _socket.socket(getattr(socket, "AF_NETLINK", -1), kind, _NETLINK_SOCK_DIAG)
    try:
        asking.settimeout(0.0)  # what is to be read is there before send() and recv() return
        asking.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, how, 1, 0) + request)
        while True:
            answers = list(_answers(asking.recv(1 << 17)))
            yield from (answer for answer in answers if answer is not None)
            if how == _ONE or None in answers:
                return
    finally:
        asking.close()


def _answers(data: bytes) -> Iterator[tuple[int, _Attributes] | None]:
    """Yield what one datagram has; None for NLMSG_DONE or an error, after which nothing comes."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind != _SOCK_DIAG_BY_FAMILY:
            yield None
            return
        inode = _REPLY.unpack_from(data, offset + _HEADER.size)[4]
        attributes: _Attributes = {}
        place, end = offset + _HEADER.size + _REPLY.size, min(offset + size, len(data))
        while place + _ATTRIBUTE.size <= end:
            length, attribute = _ATTRIBUTE.unpack_from(data, place)
            attributes[attribute] = data[place + _ATTRIBUTE.size : place + length]
            place += max((length + 3) & ~3, _ATTRIBUTE.size)
        yield inode, attributes
        offset += max((size + 3) & ~3, _HEADER.size)
