"""Winsock's constants, by their own names and with Winsock's values: what an SPI client says and gets back.

They are not the kernel's: SO_LINGER is 0x0080 here and 13 on Linux. Whoever calls the kernel takes its constants from
the `socket` module. The meaning and the errno of each WSA code are in `errors.WSA_TABLE`, which has the same names.

Source: winsock2.h, ws2spi.h, ws2def.h.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_UNIX",
    "AF_UNSPEC",
    "BASE_PROTOCOL",
    "CF_ACCEPT",
    "CF_DEFER",
    "CF_REJECT",
    "FD_ACCEPT",
    "FD_ALL_EVENTS",
    "FD_CLOSE",
    "FD_CONNECT",
    "FD_MAX_EVENTS",
    "FD_OOB",
    "FD_READ",
    "FD_WRITE",
    "FIONBIO",
    "FIONREAD",
    "FROM_PROTOCOL_INFO",
    "INFINITE",
    "INVALID_SOCKET",
    "IPPROTO_TCP",
    "IPPROTO_UDP",
    "LAYERED_PROTOCOL",
    "MAXIMUM_WAIT_OBJECTS",
    "MAX_PROTOCOL_CHAIN",
    "MSG_OOB",
    "MSG_PARTIAL",
    "MSG_PEEK",
    "MSG_WAITALL",
    "SD_BOTH",
    "SD_RECEIVE",
    "SD_SEND",
    "SIOCATMARK",
    "SIO_FLUSH",
    "SIO_RESET_CONNECTION",
    "SIO_SET_QOS",
    "SOCKET_ERROR",
    "SOCK_DGRAM",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SO_ACCEPTCONN",
    "SO_BROADCAST",
    "SO_DONTLINGER",
    "SO_ERROR",
    "SO_KEEPALIVE",
    "SO_LINGER",
    "SO_OOBINLINE",
    "SO_PROTOCOL_INFOW",
    "SO_RCVBUF",
    "SO_REUSEADDR",
    "SO_SNDBUF",
    "SO_TYPE",
    "TCP_NODELAY",
    "WAIT_IO_COMPLETION",
    "WAIT_OBJECT_0",
    "WAIT_TIMEOUT",
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
    "WSATRY_AGAIN",
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
WSATRY_AGAIN: Final = 11002

# -- socket options and modes -------------------------------------------------------------------------------------
SOL_SOCKET: Final = 0xFFFF
SO_LINGER: Final = 0x0080
SO_DONTLINGER: Final = ~SO_LINGER
"""TRUE means linger is off; enabling either option disables the other (LINGER-9)."""
SO_PROTOCOL_INFOW: Final = 0x2005
SO_ACCEPTCONN: Final = 0x0002
SO_REUSEADDR: Final = 0x0004
SO_KEEPALIVE: Final = 0x0008
SO_BROADCAST: Final = 0x0020
SO_OOBINLINE: Final = 0x0100
SO_SNDBUF: Final = 0x1001
SO_RCVBUF: Final = 0x1002
SO_ERROR: Final = 0x1007
SO_TYPE: Final = 0x1008
TCP_NODELAY: Final = 0x0001
FIONBIO: Final = 0x8004667E
FIONREAD: Final = 0x4004667F
SIOCATMARK: Final = 0x40047307
SIO_FLUSH: Final = 0x28000004
SIO_SET_QOS: Final = 0x8800000B
SIO_RESET_CONNECTION: Final = 0x98000001
"""A vendor's own (IOC_IN | IOC_VENDOR): end the connection with a reset now, for every sharer."""

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
FD_ALL_EVENTS: Final = 0x3F
FD_MAX_EVENTS: Final = 10

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

# -- address families: Winsock's own numbers ----------------------------------------------------------------------
AF_UNSPEC: Final = 0
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 23
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17

# -- flags of a transfer ------------------------------------------------------------------------------------------
MSG_OOB: Final = 0x1
MSG_PEEK: Final = 0x2
MSG_WAITALL: Final = 0x8
MSG_PARTIAL: Final = 0x8000

# -- what an accept condition function answers --------------------------------------------------------------------
CF_ACCEPT: Final = 0
CF_REJECT: Final = 1
CF_DEFER: Final = 2

# -- waiting for event objects ------------------------------------------------------------------------------------
INFINITE: Final = 0xFFFFFFFF
MAXIMUM_WAIT_OBJECTS: Final = 64
WAIT_OBJECT_0: Final = 0
WAIT_IO_COMPLETION: Final = 0xC0
WAIT_TIMEOUT: Final = 258
