"""Connected handles, chains to have them through, and what actors are told to do with theirs."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sharedsock import spi
from sharedsock.descriptors import table
from sharedsock.kernel import operations
from sharedsock.model.winsock import AF_INET, FIONBIO, IPPROTO_TCP, SOCK_DGRAM, SOCK_STREAM, WSA_FLAG_OVERLAPPED
from sharedsock.spi import WSAPROTOCOL_INFO, LayeredProvider
from tests.descriptors import sharers
from tests.kernel import kinds as kernel_kinds
from tests.kernel import stage as kernel_stage

CHAINS = ("base", "chain")
BOUND_S = 60.0


class Plain(LayeredProvider):
    """A layer that does nothing of its own."""


def base_entry(type: int = SOCK_STREAM) -> WSAPROTOCOL_INFO:
    """Return the base provider's entry for IPv4."""
    return next(
        info
        for info in spi.WSCEnumProtocols()
        if (info.iAddressFamily, info.iSocketType) == (AF_INET, type) and len(info.ProtocolChain) == 1
    )


@contextlib.contextmanager
def installed(kind: Any, below: WSAPROTOCOL_INFO, **parameters: Any) -> Iterator[WSAPROTOCOL_INFO]:
    """Have a provider in the catalogue for a while."""
    info = spi.WSCInstallProvider(kind, below, **parameters)
    try:
        yield info
    finally:
        spi.WSCDeinstallProvider(info.dwCatalogEntryId)


@dataclass(frozen=True)
class Entries:
    """Where handles of a test come from."""

    tcp: WSAPROTOCOL_INFO
    udp: WSAPROTOCOL_INFO

    @classmethod
    @contextlib.contextmanager
    def of(cls, chain: str) -> Iterator[Entries]:
        """Give the base provider's entries, or those of two layers above it."""
        tcp, udp = base_entry(), base_entry(SOCK_DGRAM)
        if chain == "base":
            yield cls(tcp, udp)
            return
        with installed(Plain, tcp) as middle, installed(Plain, middle) as top:
            with installed(Plain, udp) as low, installed(Plain, low) as high:
                yield cls(top, high)

    def open(self, flags: int = WSA_FLAG_OVERLAPPED) -> int:
        return spi.WSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP, self.tcp, 0, flags)

    def datagrams(self) -> int:
        s = spi.WSPSocket(AF_INET, SOCK_DGRAM, 0, self.udp)
        spi.WSPBind(s, ("127.0.0.1", 0))
        return s

    def listener(self, backlog: int = 16) -> int:
        s = self.open()
        spi.WSPBind(s, ("127.0.0.1", 0))
        spi.WSPListen(s, backlog)
        return s

    @contextlib.contextmanager
    def connected(self, flags: int = WSA_FLAG_OVERLAPPED, small: bool = False) -> Iterator[tuple[int, socket.socket]]:
        """Give a connected handle, and the far end, a plain socket that knows nothing of all this.

        Args:
            small: little room for what is sent and not read.
        """
        with socket.socket() as door:
            if small:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            door.bind(("127.0.0.1", 0))
            door.listen(1)
            s = self.open(flags)
            spi.WSPConnect(s, door.getsockname())
            far, _ = door.accept()
        with far:
            far.settimeout(BOUND_S)
            yield s, far


def code_of(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> int:
    """Return the code a call fails with, 0 if it does not."""
    try:
        call(*arguments, **keywords)
    except spi.WSAError as error:
        return error.winerror
    return 0


def recv(s: int, size: int = 64, flags: int = 0) -> bytes:
    """Receive at most `size` bytes."""
    buffer = bytearray(size)
    count, _ = spi.WSPRecv(s, [buffer], flags)
    return bytes(buffer[:count])


def is_quiet(far: socket.socket) -> bool:
    """Whether the far end sees nothing at all at this moment, neither data nor FIN nor reset."""
    poll = select.poll()
    poll.register(far, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


def ends_with_reset(far: socket.socket) -> bool:
    """Read to the end; report whether it was a reset."""
    try:
        while far.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


def fill(s: int) -> int:
    """Fill the kernel socket under a handle, below every layer; return how many bytes. It is left blocking."""
    name = spi.WSPGetSockName(s)
    kernel = next(one.kernel for one in table.open_descriptors() if one.kernel.getsockname() == name)
    spi.WSPIoctl(s, FIONBIO, 0)
    return kernel_kinds.fill(kernel)


class Running(sharers.Running):
    """A call of the SPI in a thread of its own, and the code it came to."""

    def code(self) -> int:
        """Wait for the end; return the code it failed with, 0 if it did not."""
        self.outcome()
        if self.error is None:
            return 0
        assert isinstance(self.error, spi.WSAError), self.error
        return self.error.winerror

    def wait_blocked(self) -> None:
        """Wait until the call's thread waits, as this process's table and the kernel have it."""
        kernel_stage.wait_blocked(
            self._thread, lambda: (row for one in table.open_descriptors() for row in operations.pending(one.kernel))
        )


# -- what actors are told to do: each takes place in the actor's process ---------------------------------------------


def take(info: WSAPROTOCOL_INFO) -> int:
    """Start up, and make a descriptor from a duplicate's info."""
    spi.WSPStartup()
    return spi.WSPSocket(-1, -1, -1, info, 0, WSA_FLAG_OVERLAPPED)


def own_pid() -> int:
    return os.getpid()
