"""The exception tree and the code table: picklable facts, Winsock's numbers, one class per culprit."""

from __future__ import annotations

import copy
import errno
import os
import pickle

import pytest

from sharedsock.model import errors, winsock
from sharedsock.model.errors import (
    WSA_TABLE,
    ForkedDescriptor,
    InternalError,
    InvalidProvider,
    LostDescriptor,
    NotASocket,
    OperationAborted,
    RegistryGone,
    SharedSocketError,
    TicketAlreadyClaimed,
    TicketError,
    TicketExpired,
    TicketInvalid,
    TicketLimit,
    from_errno,
    with_winerror,
    wsa_name,
    wsa_number,
)

# spec 9.1, as text: name, number, the errno names its row allows ("" where POSIX has none). Where the column says "no
# exact match" or names a condition, the library may leave the errno out.
SPECIFIED = """
WSA_INVALID_HANDLE 6 EBADF?
WSA_NOT_ENOUGH_MEMORY 8 ENOMEM
WSA_INVALID_PARAMETER 87 EINVAL?
WSA_OPERATION_ABORTED 995 ECANCELED
WSA_IO_INCOMPLETE 996 EAGAIN?
WSA_IO_PENDING 997 EINPROGRESS
WSAEINTR 10004 EINTR
WSAEBADF 10009 EBADF?
WSAEACCES 10013 EACCES
WSAEFAULT 10014 EFAULT
WSAEINVAL 10022 EINVAL
WSAEMFILE 10024 EMFILE
WSAEWOULDBLOCK 10035 EAGAIN
WSAEINPROGRESS 10036 EBUSY
WSAEALREADY 10037 EALREADY
WSAENOTSOCK 10038 ENOTSOCK,EBADF
WSAEMSGSIZE 10040 EMSGSIZE
WSAENOPROTOOPT 10042 ENOPROTOOPT
WSAEPROTONOSUPPORT 10043 EPROTONOSUPPORT
WSAESOCKTNOSUPPORT 10044 ESOCKTNOSUPPORT
WSAEOPNOTSUPP 10045 EOPNOTSUPP
WSAEAFNOSUPPORT 10047 EAFNOSUPPORT
WSAEADDRINUSE 10048 EADDRINUSE
WSAENETDOWN 10050 ENETDOWN
WSAENETRESET 10052 ENETRESET
WSAECONNABORTED 10053 ECONNABORTED
WSAECONNRESET 10054 ECONNRESET
WSAENOBUFS 10055 ENOBUFS
WSAEISCONN 10056 EISCONN
WSAENOTCONN 10057 ENOTCONN
WSAESHUTDOWN 10058 ESHUTDOWN
WSAETIMEDOUT 10060 ETIMEDOUT
WSAECONNREFUSED 10061 ECONNREFUSED
WSAEPROCLIM 10067 EAGAIN?
WSASYSNOTREADY 10091 ENETDOWN?
WSAVERNOTSUPPORTED 10092 ENOTSUP
WSANOTINITIALISED 10093 EPERM
WSAEDISCON 10101 -?
WSAEINVALIDPROVIDER 10105 EINVAL?
WSAEPROVIDERFAILEDINIT 10106 EIO?
WSASYSCALLFAILURE 10107 EIO
"""
ROWS = [(name, int(number), codes) for name, number, codes in map(str.split, SPECIFIED.strip().splitlines())]
IN_TABLE = {row.name: row for row in WSA_TABLE}

KINDS: list[tuple[type[SharedSocketError], int, int]] = [
    (OperationAborted, errno.ECANCELED, 10004),
    (NotASocket, errno.EBADF, 10038),
    (ForkedDescriptor, errno.EBADF, 10038),
    (LostDescriptor, errno.EBADF, 10038),
    (TicketError, errno.EINVAL, 10022),
    (TicketInvalid, errno.EINVAL, 10022),
    (TicketAlreadyClaimed, errno.EINVAL, 10022),
    (TicketExpired, errno.EINVAL, 10022),
    (TicketLimit, errno.EINVAL, 10022),
    (RegistryGone, errno.ENETDOWN, 10050),
    (InvalidProvider, errno.EIO, 10105),
    (InternalError, errno.EIO, 10107),
]


@pytest.mark.parametrize(("name", "number", "codes"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table_has_every_specified_code(name: str, number: int, codes: str) -> None:
    """Windows Sockets Error Codes: the number; the errno is one the specification's row names."""
    row = IN_TABLE[name]
    assert row.number == number
    allowed = {getattr(errno, code) for code in codes.rstrip("?").split(",") if code != "-"}
    if row.errno is None:
        assert codes.endswith("?"), "an errno may be left out only where another row's meaning comes first"
    else:
        assert row.errno in allowed


def test_the_table_says_nothing_twice() -> None:
    for column in ("name", "number"):
        values = [getattr(row, column) for row in WSA_TABLE]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("row", WSA_TABLE, ids=lambda row: row.name)
def test_winsock_names_and_the_table_agree(row: errors.WSACode) -> None:
    """One number for one name, whether a client or the library says it."""
    assert getattr(winsock, row.name) == row.number
    assert row.name in winsock.__all__
    assert wsa_name(row.number) == row.name


def test_every_wsa_name_has_its_row() -> None:
    codes = {name for name in winsock.__all__ if name.startswith("WSA") and not name.startswith("WSA_FLAG_")}
    assert codes == set(IN_TABLE)


@pytest.mark.parametrize("row", [row for row in WSA_TABLE if row.errno is not None], ids=lambda row: row.name)
def test_an_errno_leads_back_to_the_first_row_that_has_it(row: errors.WSACode) -> None:
    """Linux has one number for ENOTSUP and EOPNOTSUPP; a call means the latter."""
    assert row.errno is not None
    assert wsa_number(row.errno) == next(first.number for first in WSA_TABLE if first.errno == row.errno)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (errno.EPIPE, 10058),
        (errno.ENOTSOCK, 10038),
        (errno.EBADF, 10038),
        (errno.ENFILE, 10024),
        (errno.EWOULDBLOCK, 10035),
        (errno.EXDEV, 10107),
    ],
    ids=errno.errorcode.get,
)
def test_linux_codes_that_winsock_spells_otherwise(code: int, number: int) -> None:
    """Spec 9.1, the notes in the errno column; whatever the table lacks is WSASYSCALLFAILURE."""
    assert wsa_number(code) == number


def test_an_unknown_number_is_its_own_name() -> None:
    assert wsa_name(4711) == "4711"


@pytest.mark.parametrize(("kind", "code", "winerror"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_is_an_oserror_with_both_numbers(kind: type[SharedSocketError], code: int, winerror: int) -> None:
    """EINTR and EAGAIN are avoided: OSError would turn into a class that retry loops swallow."""
    error = kind("what the caller can do")
    assert isinstance(error, OSError)
    assert type(error) is kind
    assert (error.errno, error.winerror) == (code, winerror)
    assert not isinstance(error, (InterruptedError, BlockingIOError))
    assert str(error) == f"{wsa_name(winerror)} ({winerror}): what the caller can do"


@pytest.mark.parametrize(("kind", "code", "winerror"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_the_facts_survive_pickling(kind: type[SharedSocketError], code: int, winerror: int, protocol: int) -> None:
    """I10: an error raised in a worker says the same in its parent."""
    error = kind("call again", winerror=995, operation="recv", bytes_transferred=7, closed_by="main (a.py:1 in f)")
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is kind
        assert (twin.errno, twin.strerror, twin.winerror) == (code, "call again", 995)
        assert vars(twin) == vars(error)
        assert vars(twin)["closed_by"] == "main (a.py:1 in f)"
        assert str(twin) == str(error)


def test_a_ticket_error_is_a_value_error_and_a_fork_makes_no_socket() -> None:
    assert issubclass(TicketError, ValueError)
    assert issubclass(ForkedDescriptor, NotASocket)
    for kind in (TicketInvalid, TicketAlreadyClaimed, TicketExpired, TicketLimit):
        assert issubclass(kind, TicketError)


def test_a_plain_error_keeps_its_class_and_gets_its_number() -> None:
    """The peer's and the network's errors stay the stdlib's."""
    reset = from_errno(errno.ECONNRESET, "reset by the peer")
    assert type(reset) is ConnectionResetError
    assert vars(reset)["winerror"] == 10054
    kernel = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    assert with_winerror(kernel) is kernel
    assert vars(kernel)["winerror"] == 10057
    special = from_errno(errno.EAGAIN, "would block", winerror=10067)
    assert vars(with_winerror(special))["winerror"] == 10067, "a number once given stays"
    assert "winerror" not in vars(with_winerror(OSError("no errno at all")))
