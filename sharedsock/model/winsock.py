"""Winsock's constants, by their own names and with Winsock's values: what an SPI client says and gets back.

They are not the kernel's: SO_LINGER is 0x0080 here and 13 on Linux. Whoever calls the kernel takes its constants from
the `socket` module. The meaning and the errno of each WSA code are in `errors.WSA_TABLE`, which has the same names.

Source: winsock2.h, ws2spi.h, ws2def.h.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BASE_PROTOCOL",
    "FD_ACCEPT",
    "FD_CLOSE",
    "FD_CONNECT",
    "FD_OOB",
    "FD_READ",
    "FD_WRITE",
    "FIONBIO",
    "FROM_PROTOCOL_INFO",
    "INVALID_SOCKET",
    "LAYERED_PROTOCOL",
    "MAX_PROTOCOL_CHAIN",
    "SD_BOTH",
    "SD_RECEIVE",
    "SD_SEND",
    "SIO_FLUSH",
    "SOCKET_ERROR",
    "SOL_SOCKET",
    "SO_DONTLINGER",
    "SO_LINGER",
    "SO_PROTOCOL_INFOW",
    "WSAEACCES",
    "WSAEADDRINUSE",
    "WSAEADDRNOTAVAIL",
    "WSAEAFNOSUPPORT",
    "WSAEALREADY",
    "WSAEBADF",
    "WSAECONNABORTED",
    "WSAECONNREFUSED",
    "WSAECONNRESET",
    "WSAEDESTADDRREQ",
    "WSAEDISCON",
    "WSAEFAULT",
    "WSAEHOSTUNREACH",
    "WSAEINPROGRESS",
    "WSAEINTR",
    "WSAEINVAL",
    "WSAEINVALIDPROVIDER",
    "WSAEISCONN",
    "WSAEMFILE",
    "WSAEMSGSIZE",
    "WSAENETDOWN",
    "WSAENETRESET",
    "WSAENETUNREACH",
    "WSAENOBUFS",
    "WSAENOPROTOOPT",
    "WSAENOTCONN",
    "WSAENOTSOCK",
    "WSAEOPNOTSUPP",
    "WSAEPROCLIM",
    "WSAEPROTONOSUPPORT",
    "WSAEPROTOTYPE",
    "WSAEPROVIDERFAILEDINIT",
    "WSAESHUTDOWN",
    "WSAESOCKTNOSUPPORT",
    "WSAETIMEDOUT",
    "WSAEWOULDBLOCK",
    "WSANOTINITIALISED",
    "WSASYSCALLFAILURE",
    "WSASYSNOTREADY",
    "WSAVERNOTSUPPORTED",
    "WSA_FLAG_OVERLAPPED",
    "WSA_INVALID_HANDLE",
    "WSA_INVALID_PARAMETER",
    "WSA_IO_INCOMPLETE",
    "WSA_IO_PENDING",
    "WSA_NOT_ENOUGH_MEMORY",
    "WSA_OPERATION_ABORTED",
    "XP1_CONNECTIONLESS",
    "XP1_GRACEFUL_CLOSE",
    "XP1_GUARANTEED_DELIVERY",
    "XP1_GUARANTEED_ORDER",
    "XP1_IFS_HANDLES",
    "XP1_MESSAGE_ORIENTED",
    "XP1_PARTIAL_MESSAGE",
    "XP1_PSEUDO_STREAM",
]

# -- results ------------------------------------------------------------------------------------------------------
INVALID_SOCKET: Final = -1
SOCKET_ERROR: Final = -1

WSA_INVALID_HANDLE: Final = 6
WSA_NOT_ENOUGH_MEMORY: Final = 8
WSA_INVALID_PARAMETER: Final = 87
WSA_OPERATION_ABORTED: Final = 995
WSA_IO_INCOMPLETE: Final = 996
WSA_IO_PENDING: Final = 997
WSAEINTR: Final = 10004
WSAEBADF: Final = 10009
WSAEACCES: Final = 10013
WSAEFAULT: Final = 10014
WSAEINVAL: Final = 10022
WSAEMFILE: Final = 10024
WSAEWOULDBLOCK: Final = 10035
WSAEINPROGRESS: Final = 10036
WSAEALREADY: Final = 10037
WSAENOTSOCK: Final = 10038
WSAEDESTADDRREQ: Final = 10039
WSAEMSGSIZE: Final = 10040
WSAEPROTOTYPE: Final = 10041
WSAENOPROTOOPT: Final = 10042
WSAEPROTONOSUPPORT: Final = 10043
WSAESOCKTNOSUPPORT: Final = 10044
WSAEOPNOTSUPP: Final = 10045
WSAEAFNOSUPPORT: Final = 10047
WSAEADDRINUSE: Final = 10048
WSAEADDRNOTAVAIL: Final = 10049
WSAENETDOWN: Final = 10050
WSAENETUNREACH: Final = 10051
WSAENETRESET: Final = 10052
WSAECONNABORTED: Final = 10053
WSAECONNRESET: Final = 10054
WSAENOBUFS: Final = 10055
WSAEISCONN: Final = 10056
WSAENOTCONN: Final = 10057
WSAESHUTDOWN: Final = 10058
WSAETIMEDOUT: Final = 10060
WSAECONNREFUSED: Final = 10061
WSAEHOSTUNREACH: Final = 10065
WSAEPROCLIM: Final = 10067
WSASYSNOTREADY: Final = 10091
WSAVERNOTSUPPORTED: Final = 10092
WSANOTINITIALISED: Final = 10093
WSAEDISCON: Final = 10101
WSAEINVALIDPROVIDER: Final = 10105
WSAEPROVIDERFAILEDINIT: Final = 10106
WSASYSCALLFAILURE: Final = 10107

# -- socket options and modes -------------------------------------------------------------------------------------
SOL_SOCKET: Final = 0xFFFF
SO_LINGER: Final = 0x0080
SO_DONTLINGER: Final = ~SO_LINGER
"""TRUE means linger is off; enabling either option disables the other (LINGER-9)."""
SO_PROTOCOL_INFOW: Final = 0x2005
FIONBIO: Final = 0x8004667E
SIO_FLUSH: Final = 0x28000004

SD_RECEIVE: Final = 0
SD_SEND: Final = 1
SD_BOTH: Final = 2

# -- network events -----------------------------------------------------------------------------------------------
FD_READ: Final = 0x01
FD_WRITE: Final = 0x02
FD_OOB: Final = 0x04
FD_ACCEPT: Final = 0x08
FD_CONNECT: Final = 0x10
FD_CLOSE: Final = 0x20

# -- opening a socket; protocol entries ---------------------------------------------------------------------------
FROM_PROTOCOL_INFO: Final = -1
"""As address family, type or protocol: take it from the protocol info (DUP-21)."""
WSA_FLAG_OVERLAPPED: Final = 0x01

XP1_CONNECTIONLESS: Final = 0x00000001
XP1_GUARANTEED_DELIVERY: Final = 0x00000002
XP1_GUARANTEED_ORDER: Final = 0x00000004
XP1_MESSAGE_ORIENTED: Final = 0x00000008
XP1_PSEUDO_STREAM: Final = 0x00000010
XP1_GRACEFUL_CLOSE: Final = 0x00000020
XP1_IFS_HANDLES: Final = 0x00020000
"""The provider's descriptors are real handles of the operating system (IFS-1)."""
XP1_PARTIAL_MESSAGE: Final = 0x00040000
MAX_PROTOCOL_CHAIN: Final = 7
BASE_PROTOCOL: Final = 1
LAYERED_PROTOCOL: Final = 0
