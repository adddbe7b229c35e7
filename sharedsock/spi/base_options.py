"""The base provider's options, control codes and numeric addresses, by Winsock's numbers.

What only Winsock has (SO_DONTLINGER, FIONBIO) is the common state all sharers see; the rest is the kernel's.

Source: LPWSPGETSOCKOPT, LPWSPSETSOCKOPT, LPWSPIOCTL, LPWSPSTRINGTOADDRESS, LPWSPADDRESSTOSTRING.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sharedsock.descriptors import lingering, options, transfer
from sharedsock.kernel import polling, system
from sharedsock.model.errors import wsa_number
from sharedsock.model.winsock import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    FIONBIO,
    FIONREAD,
    IPPROTO_TCP,
    SIO_FLUSH,
    SIO_RESET_CONNECTION,
    SIOCATMARK,
    SO_ACCEPTCONN,
    SO_BROADCAST,
    SO_DONTLINGER,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_OOBINLINE,
    SO_PROTOCOL_INFOW,
    SO_RCVBUF,
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_TYPE,
    SOL_SOCKET,
    TCP_NODELAY,
    WSAEFAULT,
    WSAEINVAL,
    WSAENOPROTOOPT,
    WSAEOPNOTSUPP,
)
from sharedsock.spi.base_requests import Requests
from sharedsock.spi.errors import WSAError, speaks_winsock

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.spi.base_sockets import Opened
    from sharedsock.spi.overlapped import WSAOVERLAPPED, CompletionRoutine
    from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO
    from sharedsock.spi.waits import WSATHREADID

__all__ = ["DEFAULT_LINGER_S", "LINGER", "Options"]

DEFAULT_LINGER_S: Final = 5
"""The time with which SO_DONTLINGER FALSE lingers where none was ever set (LINGER-10)."""

_LINGER: Final = struct.Struct("ii")


class LINGER(NamedTuple):
    """struct linger: whether a close lingers, and for how many seconds."""

    l_onoff: int
    l_linger: int


class _Option(NamedTuple):
    """One option of the kernel's under its Winsock number."""

    level: int
    name: int
    is_flag: bool = True
    can_be_set: bool = True


_OPTIONS: Final = {
    (SOL_SOCKET, SO_ACCEPTCONN): _Option(socket.SOL_SOCKET, socket.SO_ACCEPTCONN, can_be_set=False),
    (SOL_SOCKET, SO_BROADCAST): _Option(socket.SOL_SOCKET, socket.SO_BROADCAST),
    (SOL_SOCKET, SO_KEEPALIVE): _Option(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (SOL_SOCKET, SO_OOBINLINE): _Option(socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (SOL_SOCKET, SO_RCVBUF): _Option(socket.SOL_SOCKET, socket.SO_RCVBUF, is_flag=False),
    (SOL_SOCKET, SO_REUSEADDR): _Option(socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (SOL_SOCKET, SO_SNDBUF): _Option(socket.SOL_SOCKET, socket.SO_SNDBUF, is_flag=False),
    (IPPROTO_TCP, TCP_NODELAY): _Option(socket.IPPROTO_TCP, socket.TCP_NODELAY),
}


def _linger_of(opened: Opened) -> LINGER:
    return LINGER(*_LINGER.unpack(options.get_linger(opened.descriptor)))


def _error_of(opened: Opened) -> int:
    code = transfer.require_kernel(opened.descriptor).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return wsa_number(code) if code else 0


# What the kernel does not keep, or not in this form.
_OWN: Final[dict[int, Callable[[Opened], Any]]] = {
    SO_LINGER: _linger_of,
    SO_DONTLINGER: lambda opened: not _linger_of(opened).l_onoff,
    SO_TYPE: lambda opened: opened.info.iSocketType,
    SO_PROTOCOL_INFOW: lambda opened: opened.info,
    SO_ERROR: _error_of,
}


class Options(Requests):
    """Options, control codes, numeric addresses."""

    # -- options ---------------------------------------------------------------------------------------------

    @speaks_winsock
    def WSPGetSockOpt(self, s: int, level: int, optname: int) -> Any:
        opened = self.opened(s)
        descriptor = opened.descriptor
        if level == SOL_SOCKET and hasattr(optname, "__index__") and optname in _OWN:
            return _OWN[optname](opened)
        option = _known(level, optname)
        value = transfer.require_kernel(descriptor).getsockopt(option.level, option.name)
        return bool(value) if option.is_flag else value

    @speaks_winsock
    def WSPSetSockOpt(self, s: int, level: int, optname: int, optval: Any) -> None:
        descriptor = self.opened(s).descriptor
        if optval is None:
            raise WSAError(WSAEFAULT, "no value")
        if level == SOL_SOCKET and optname in (SO_LINGER, SO_DONTLINGER):
            self._set_linger(self.opened(s), optname, optval)
            return
        option = _known(level, optname)
        if not option.can_be_set:
            raise WSAError(WSAENOPROTOOPT, "this option can only be read")
        if not isinstance(optval, int):
            raise WSAError(WSAEFAULT, f"{optval!r} is no value of this option")
        value = int(bool(optval)) if option.is_flag else optval
        transfer.require_kernel(descriptor).setsockopt(option.level, option.name, value)

    def _set_linger(self, opened: Opened, optname: int, optval: Any) -> None:
        descriptor = opened.descriptor
        transfer.require_kernel(descriptor)
        state = options.common(descriptor)
        kept_s = state.linger_s if state.linger_s is not None else state.linger_kept_s
        if optname == SO_DONTLINGER:  # TRUE: linger is off (LINGER-9)
            is_on, linger_s = not optval, DEFAULT_LINGER_S if kept_s is None else kept_s
        else:
            try:
                is_on, linger_s = bool(optval[0]), int(optval[1])
            except (TypeError, ValueError, IndexError) as error:
                raise WSAError(WSAEFAULT, f"{optval!r} is no LINGER(l_onoff, l_linger)") from error
            if not 0 <= linger_s <= 0xFFFF:
                raise WSAError(WSAEINVAL, f"l_linger is {linger_s}; it has 16 bits")
        options.set_linger(descriptor, _LINGER.pack(is_on, linger_s))
        options.change_common(descriptor, linger_kept_s=None if is_on else kept_s)

    # -- control codes ---------------------------------------------------------------------------------------

    @speaks_winsock
    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: Any = None,
        lpOverlapped: WSAOVERLAPPED | None = None,
        lpCompletionRoutine: CompletionRoutine | None = None,
        lpThreadId: WSATHREADID | None = None,
    ) -> Any:
        opened = self.opened(s)
        if lpOverlapped is None:
            return self._control(opened, dwIoControlCode, lpvInBuffer)
        control = partial(self._control, opened, dwIoControlCode, lpvInBuffer)
        return self.carry_out(opened, control, lpOverlapped, lpCompletionRoutine, lpThreadId)

    def _control(self, opened: Opened, dwIoControlCode: int, lpvInBuffer: Any) -> Any:
        kernel = transfer.require_kernel(opened.descriptor)
        if dwIoControlCode == FIONBIO:
            if not isinstance(lpvInBuffer, int):
                raise WSAError(WSAEFAULT, "FIONBIO takes a number: 0 is blocking")
            self._set_nonblocking(opened, bool(lpvInBuffer))
            return None
        if dwIoControlCode == FIONREAD:
            return sum(len(kept.data) for kept in kernel.kept) + system.unread_bytes(kernel.number)
        if dwIoControlCode == SIOCATMARK:
            return not polling.is_ready(kernel.number, select.POLLPRI) & select.POLLPRI
        if dwIoControlCode == SIO_FLUSH:
            self.flush_sends(opened)
            return None
        if dwIoControlCode == SIO_RESET_CONNECTION:
            if opened.descriptor.type not in options.STREAMS:
                raise WSAError(WSAEOPNOTSUPP, "a socket without connections has none to reset")
            options.change_common(opened.descriptor, reset_seen=True)
            lingering.reset(kernel, others_may_hold=True)
            return None
        raise WSAError(WSAEOPNOTSUPP, f"control code {dwIoControlCode!r}")

    def _set_nonblocking(self, opened: Opened, is_on: bool) -> None:
        """Set the mode for every descriptor of the socket in every process; no system call is made (DUP-17)."""
        if not is_on and options.common(opened.descriptor).events:
            raise WSAError(WSAEINVAL, "an event registration is active: end it with WSPEventSelect(s, 0, 0) first")
        options.change_common(opened.descriptor, nonblocking=is_on)

    # -- numeric addresses -----------------------------------------------------------------------------------

    @speaks_winsock
    def WSPStringToAddress(
        self, AddressString: str, AddressFamily: int, lpProtocolInfo: WSAPROTOCOL_INFO | None = None
    ) -> Any:
        if not isinstance(AddressString, str):
            raise WSAError(WSAEFAULT, "no text")
        try:
            return _parse(AddressString, AddressFamily)
        except (ValueError, OSError) as error:
            raise WSAError(WSAEINVAL, f"{AddressString!r} is no numeric address of family {AddressFamily}") from error

    @speaks_winsock
    def WSPAddressToString(self, lpsaAddress: Any, lpProtocolInfo: WSAPROTOCOL_INFO | None = None) -> str:
        match lpsaAddress:
            case str():
                return lpsaAddress
            case [str(host), int(port), *rest] if 0 <= port <= 0xFFFF and len(rest) in (0, 1, 2):
                scope = f"%{rest[1]}" if len(rest) > 1 and rest[1] else ""
                text = f"{host}{scope}"
                if ":" not in host:
                    return f"{host}:{port}" if port else host
                return f"[{text}]:{port}" if port else text
        raise WSAError(WSAEFAULT, f"{lpsaAddress!r} is no address")


def _known(level: int, optname: int) -> _Option:
    try:
        return _OPTIONS[level, optname]
    except (KeyError, TypeError, ValueError):
        raise WSAError(WSAENOPROTOOPT, f"no option {optname!r} at level {level!r}") from None


def _parse(text: str, family: int) -> Any:
    """Read "127.0.0.1", "127.0.0.1:80", "::1", "[::1%2]:80" or a path.

    Raises:
        ValueError, OSError: it is none of these.
    """
    if family == AF_UNIX:
        return text
    if family == AF_INET:
        host, _, port = text.partition(":")
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, host)), _port(port, text)
    if family == AF_INET6:
        host, port = text, ""
        if text.startswith("["):
            host, _, port = text[1:].partition("]")
            if port and not port.startswith(":"):
                raise ValueError(text)
        host, _, scope = host.partition("%")
        packed = socket.inet_pton(socket.AF_INET6, host)
        return socket.inet_ntop(socket.AF_INET6, packed), _port(port.removeprefix(":"), text), 0, int(scope or 0)
    raise OSError(errno.EAFNOSUPPORT, "no such family")


def _port(text: str, whole: str) -> int:
    if not text:
        if whole.endswith(":") and not whole.endswith("::"):
            raise ValueError(whole)
        return 0
    if not text.isascii() or not text.isdigit() or int(text) > 0xFFFF:
        raise ValueError(whole)
    return int(text)
