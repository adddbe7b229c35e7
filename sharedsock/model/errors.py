"""The exception tree, and the one table that ties WSA codes to POSIX errno values.

Who did it decides the class: you closed it (`OperationAborted`, `NotASocket`), the peer or the network (the
plain `OSError` subclasses, given their WSA number by `with_winerror`), the ticket (`TicketError`), the registry
(`RegistryGone`), or we ourselves (`InternalError`, which names the invariant). Every one is an `OSError`,
carries `.errno` and `.winerror`, keeps its facts as attributes and survives pickling. Translation happens once,
at the boundary; nobody else spells a WSA number next to an errno.
"""

from __future__ import annotations

import errno
from typing import Any, Final, NamedTuple

__all__ = [
    "WSA_TABLE",
    "ForkedDescriptor",
    "InternalError",
    "InvalidProvider",
    "LostDescriptor",
    "NotASocket",
    "OperationAborted",
    "RegistryGone",
    "SharedSocketError",
    "TicketAlreadyClaimed",
    "TicketError",
    "TicketExpired",
    "TicketInvalid",
    "TicketLimit",
    "WSACode",
    "from_errno",
    "with_winerror",
    "wsa_errno",
    "wsa_meaning",
    "wsa_name",
    "wsa_number",
]


class WSACode(NamedTuple):
    """One row of the table: Winsock's name and number, the errno it stands for (None: POSIX has none), its meaning."""

    name: str
    number: int
    errno: int | None
    meaning: str


# Source: "Windows Sockets Error Codes" for names and numbers; the errno column is our choice
# (spec/winsock-semantics.md 9.1). Where two rows share an errno, the first row is the one an errno maps to.
WSA_TABLE: Final[tuple[WSACode, ...]] = (
    WSACode("WSAEINTR", 10004, errno.EINTR, "blocking call cancelled (cancel, or close by the own process)"),
    WSACode("WSAEBADF", 10009, None, "bad handle (not used by socket calls)"),
    WSACode("WSAEACCES", 10013, errno.EACCES, "not permitted"),
    WSACode("WSAEFAULT", 10014, errno.EFAULT, "bad or too small buffer"),
    WSACode("WSAEINVAL", 10022, errno.EINVAL, "bad argument or state, used-up or foreign protocol info"),
    WSACode("WSAEMFILE", 10024, errno.EMFILE, "no more descriptors"),
    WSACode("WSAEWOULDBLOCK", 10035, errno.EAGAIN, "would block; close refused under LINGER(t > 0)"),
    WSACode("WSAEINPROGRESS", 10036, errno.EBUSY, "nested call, or a callback is active"),
    WSACode("WSAEALREADY", 10037, errno.EALREADY, "connect already in progress"),
    WSACode("WSAENOTSOCK", 10038, errno.EBADF, "closed, or never a socket"),
    WSACode("WSAEDESTADDRREQ", 10039, errno.EDESTADDRREQ, "no destination address given"),
    WSACode("WSAEMSGSIZE", 10040, errno.EMSGSIZE, "message larger than the buffer or the limit"),
    WSACode("WSAEPROTOTYPE", 10041, errno.EPROTOTYPE, "protocol does not fit the socket type"),
    WSACode("WSAENOPROTOOPT", 10042, errno.ENOPROTOOPT, "option or disconnect data unsupported"),
    WSACode("WSAEPROTONOSUPPORT", 10043, errno.EPROTONOSUPPORT, "protocol unsupported"),
    WSACode("WSAESOCKTNOSUPPORT", 10044, errno.ESOCKTNOSUPPORT, "type unsupported"),
    WSACode("WSAEOPNOTSUPP", 10045, errno.EOPNOTSUPP, "operation unsupported for this socket"),
    WSACode("WSAEAFNOSUPPORT", 10047, errno.EAFNOSUPPORT, "family unsupported"),
    WSACode("WSAEADDRINUSE", 10048, errno.EADDRINUSE, "address in use"),
    WSACode("WSAEADDRNOTAVAIL", 10049, errno.EADDRNOTAVAIL, "address not available here"),
    WSACode("WSAENETDOWN", 10050, errno.ENETDOWN, "network, or the registry, failed"),
    WSACode("WSAENETUNREACH", 10051, errno.ENETUNREACH, "no route to the network"),
    WSACode("WSAENETRESET", 10052, errno.ENETRESET, "keep-alive broke the connection"),
    WSACode("WSAECONNABORTED", 10053, errno.ECONNABORTED, "connection aborted locally"),
    WSACode("WSAECONNRESET", 10054, errno.ECONNRESET, "the peer reset the connection"),
    WSACode("WSAENOBUFS", 10055, errno.ENOBUFS, "no handle or buffer space"),
    WSACode("WSAEISCONN", 10056, errno.EISCONN, "already connected"),
    WSACode("WSAENOTCONN", 10057, errno.ENOTCONN, "not connected"),
    WSACode("WSAESHUTDOWN", 10058, errno.ESHUTDOWN, "that direction was shut down"),
    WSACode("WSAETIMEDOUT", 10060, errno.ETIMEDOUT, "the peer did not answer"),
    WSACode("WSAECONNREFUSED", 10061, errno.ECONNREFUSED, "nothing is listening"),
    WSACode("WSAEHOSTUNREACH", 10065, errno.EHOSTUNREACH, "no route to the host"),
    WSACode("WSAEPROCLIM", 10067, None, "too many client processes"),
    WSACode("WSASYSNOTREADY", 10091, None, "subsystem not ready at startup"),
    WSACode("WSAVERNOTSUPPORTED", 10092, errno.ENOTSUP, "version unsupported"),
    WSACode("WSANOTINITIALISED", 10093, errno.EPERM, "no successful startup"),
    WSACode("WSAEDISCON", 10101, None, "graceful remote close of a message socket"),
    WSACode("WSAEINVALIDPROVIDER", 10105, None, "provider entry invalid"),
    WSACode("WSAEPROVIDERFAILEDINIT", 10106, None, "provider failed to start"),
    WSACode("WSASYSCALLFAILURE", 10107, errno.EIO, "unexpected system failure"),
    WSACode("WSATRY_AGAIN", 11002, None, "not decided now; ask again"),
    WSACode("WSA_INVALID_HANDLE", 6, None, "event object handle invalid"),
    WSACode("WSA_NOT_ENOUGH_MEMORY", 8, errno.ENOMEM, "out of memory"),
    WSACode("WSA_INVALID_PARAMETER", 87, None, "bad overlapped parameter"),
    WSACode("WSA_OPERATION_ABORTED", 995, errno.ECANCELED, "overlapped request ended by close or flush"),
    WSACode("WSA_IO_INCOMPLETE", 996, None, "polled request not finished"),
    WSACode("WSA_IO_PENDING", 997, errno.EINPROGRESS, "request accepted, completes later"),
)

_ROW_OF: Final = {row.number: row for row in WSA_TABLE}
_NAME_OF: Final = {row.number: row.name for row in WSA_TABLE}
_NUMBER_OF: Final = {row.name: row.number for row in WSA_TABLE}
_NUMBER_OF_ERRNO: Final[dict[int, int]] = {}
for _row in WSA_TABLE:
    if _row.errno is not None:
        _NUMBER_OF_ERRNO.setdefault(_row.errno, _row.number)
# Linux says EPIPE where Winsock says WSAESHUTDOWN, ENOTSOCK and EBADF where it says WSAENOTSOCK.
_NUMBER_OF_ERRNO[errno.EPIPE] = _NUMBER_OF["WSAESHUTDOWN"]
_NUMBER_OF_ERRNO[errno.ENOTSOCK] = _NUMBER_OF["WSAENOTSOCK"]
_NUMBER_OF_ERRNO[errno.ENFILE] = _NUMBER_OF["WSAEMFILE"]


def wsa_name(number: int) -> str:
    """Return Winsock's name of a code, or the number as text where the table has none."""
    return _NAME_OF.get(number, str(number))


def wsa_errno(number: int) -> int:
    """Return the POSIX errno a WSA code stands for; EIO where POSIX has none."""
    row = _ROW_OF.get(number)
    return errno.EIO if row is None or row.errno is None else row.errno


def wsa_meaning(number: int) -> str:
    """Return what a code means, in a few words; empty where the table lacks it."""
    row = _ROW_OF.get(number)
    return "" if row is None else row.meaning


def wsa_number(code: int) -> int:
    """Return the WSA number of a POSIX errno; one the table lacks is WSASYSCALLFAILURE (10107)."""
    return _NUMBER_OF_ERRNO.get(code, _NUMBER_OF["WSASYSCALLFAILURE"])


def with_winerror(error: OSError) -> OSError:
    """Give an `OSError` of the kernel its WSA number in `.winerror`, unless it has one; return it for `raise`."""
    if getattr(error, "winerror", None) is None and error.errno is not None:
        error.winerror = wsa_number(error.errno)  # type: ignore[attr-defined]  # typeshed: Windows only
    return error


def from_errno(code: int, message: str, *, winerror: int | None = None) -> OSError:
    """Build the plain `OSError` subclass of an errno (`ConnectionResetError` …) with its WSA number."""
    error = OSError(code, message)
    error.winerror = wsa_number(code) if winerror is None else winerror  # type: ignore[attr-defined]  # as above
    return error


class SharedSocketError(OSError):
    """The root of everything this package raises by a name of its own.

    Attributes:
        winerror: the WSA number (10004, 10038 …).
        errno: the POSIX number.
    """

    winerror: int
    _errno = errno.EIO
    _winerror = 10107

    def __init__(self, message: str, *, winerror: int | None = None, **facts: Any) -> None:
        super().__init__(self._errno, message)
        self.winerror = self._winerror if winerror is None else winerror
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{wsa_name(self.winerror)} ({self.winerror}): {self.strerror}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.strerror or "", dict(self.__dict__))


def _restore(cls: type[SharedSocketError], message: str, facts: dict[str, Any]) -> SharedSocketError:
    error = cls(message)
    error.__dict__.update(facts)
    return error


class OperationAborted(SharedSocketError):
    """This process closed the descriptor while the operation was pending; the operation took nothing.

    `winerror` is 10004 (WSAEINTR) for a synchronous call, 995 (WSA_OPERATION_ABORTED) for an overlapped one.

    Attributes:
        operation: its kind, "recv", "accept" …
        bytes_transferred: bytes of a send that were queued before the abort; they follow the linger rules.
        closed_by: the thread that closed, as "name (place)", or None where unknown.

    Source: "Closing Sockets" (Winsock SPI); Windows Sockets 1.1 sec. 2.7 for the number.
    """

    _errno = errno.ECANCELED
    _winerror = 10004
    operation: str = ""
    bytes_transferred: int = 0
    closed_by: str | None = None


class NotASocket(SharedSocketError):
    """The call began on a descriptor that this process has closed, or that never was one (WSAENOTSOCK)."""

    _errno = errno.EBADF
    _winerror = 10038


class ForkedDescriptor(NotASocket):
    """The descriptor belongs to the parent: after a fork the child owns nothing; sharing is always explicit."""


class LostDescriptor(NotASocket):
    """Somebody else in this process has closed its file number: a use would be one of whatever has the number now.

    A close notices it where nobody has the number yet; with SHAREDSOCK_DEBUG=1 every call does, whoever has it.
    """


class TicketError(SharedSocketError, ValueError):
    """A ticket was refused and is not used up by it (WSAEINVAL)."""

    _errno = errno.EINVAL
    _winerror = 10022


class TicketInvalid(TicketError):
    """Not a ticket of a live registry, damaged, revoked, or not made for this process (a stranger sees only this)."""


class TicketAlreadyClaimed(TicketError):
    """This process has already redeemed the ticket: each yields one descriptor."""


class TicketExpired(TicketError):
    """The ticket was for this process, and its time is over; its reference has been given back."""


class TicketLimit(TicketError):
    """The registry's cap of unclaimed tickets is reached; claim or revoke some."""


class RegistryGone(SharedSocketError):
    """The registry cannot be reached, or died during the call (WSAENETDOWN); sockets already open go on working."""

    _errno = errno.ENETDOWN
    _winerror = 10050


class InvalidProvider(SharedSocketError):
    """A chain of providers cannot be had in this process (WSAEINVALIDPROVIDER); nothing is used up.

    Attributes:
        import_name: the class that is at fault, "package.module:Class"; empty where it is the chain's spelling.
    """

    _winerror = 10105
    import_name: str = ""


class InternalError(SharedSocketError):
    """A promise of this package does not hold; the message names the invariant. Please report it."""

    invariant: str = ""
