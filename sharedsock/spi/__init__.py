"""FACE: the Winsock service provider interface. Names as in ws2spi.h; constants in `sharedsock.model.winsock`.

    spi.WSPStartup(0x0202)
    s = spi.WSPSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP)
    spi.WSPConnect(s, ("127.0.0.1", 80))
    info = spi.WSPDuplicateSocket(s, pid)                   # there: spi.WSPSocket(-1, -1, -1, info)
    spi.WSPCloseSocket(s)                                   # ends this process's calls on it; the socket lives there
    spi.WSPCleanup()

A provider is a class (`Provider`, `LayeredProvider`), installed with WSCInstallProvider. Every error is a `WSAError`.
"""

from __future__ import annotations

from sharedsock.spi.base import BaseProvider, install
from sharedsock.spi.base_options import LINGER
from sharedsock.spi.calls import (
    WSPAccept,
    WSPAddressToString,
    WSPAsyncSelect,
    WSPBind,
    WSPCancelBlockingCall,
    WSPCloseSocket,
    WSPConnect,
    WSPDuplicateSocket,
    WSPEnumNetworkEvents,
    WSPEventSelect,
    WSPGetOverlappedResult,
    WSPGetPeerName,
    WSPGetSockName,
    WSPGetSockOpt,
    WSPIoctl,
    WSPJoinLeaf,
    WSPListen,
    WSPRecv,
    WSPRecvDisconnect,
    WSPRecvFrom,
    WSPSelect,
    WSPSend,
    WSPSendDisconnect,
    WSPSendTo,
    WSPSetSockOpt,
    WSPShutdown,
    WSPSocket,
    WSPStringToAddress,
)
from sharedsock.spi.catalog import (
    WSCDeinstallProvider,
    WSCEnumProtocols,
    WSCInstallProvider,
    WSCWriteProviderOrder,
)
from sharedsock.spi.chaos import Chaos
from sharedsock.spi.errors import WSAError
from sharedsock.spi.handles import Unreturned
from sharedsock.spi.handles import unreturned as unreturned_handles
from sharedsock.spi.layered import Layer, LayeredProvider
from sharedsock.spi.overlapped import WSAOVERLAPPED, Relay
from sharedsock.spi.ports import (
    CloseCompletionPort,
    CompletionPacket,
    CreateIoCompletionPort,
    GetQueuedCompletionStatus,
    PostQueuedCompletionStatus,
)
from sharedsock.spi.protocol_info import WSAPROTOCOL_INFO, WSPDATA
from sharedsock.spi.provider import WSANETWORKEVENTS, Provider
from sharedsock.spi.startup import WSPCleanup, WSPStartup
from sharedsock.spi.throttling import Throttling
from sharedsock.spi.tracing import Tracing
from sharedsock.spi.upcalls import UpcallTable
from sharedsock.spi.waits import WSATHREADID, SleepEx, WSAWaitForMultipleEvents

__all__ = [
    "LINGER",
    "WSANETWORKEVENTS",
    "WSAOVERLAPPED",
    "WSAPROTOCOL_INFO",
    "WSATHREADID",
    "WSPDATA",
    "BaseProvider",
    "Chaos",
    "CloseCompletionPort",
    "CompletionPacket",
    "CreateIoCompletionPort",
    "GetQueuedCompletionStatus",
    "Layer",
    "LayeredProvider",
    "PostQueuedCompletionStatus",
    "Provider",
    "Relay",
    "SleepEx",
    "Throttling",
    "Tracing",
    "Unreturned",
    "UpcallTable",
    "WSAError",
    "WSAWaitForMultipleEvents",
    "WSCDeinstallProvider",
    "WSCEnumProtocols",
    "WSCInstallProvider",
    "WSCWriteProviderOrder",
    "WSPAccept",
    "WSPAddressToString",
    "WSPAsyncSelect",
    "WSPBind",
    "WSPCancelBlockingCall",
    "WSPCleanup",
    "WSPCloseSocket",
    "WSPConnect",
    "WSPDuplicateSocket",
    "WSPEnumNetworkEvents",
    "WSPEventSelect",
    "WSPGetOverlappedResult",
    "WSPGetPeerName",
    "WSPGetSockName",
    "WSPGetSockOpt",
    "WSPIoctl",
    "WSPJoinLeaf",
    "WSPListen",
    "WSPRecv",
    "WSPRecvDisconnect",
    "WSPRecvFrom",
    "WSPSelect",
    "WSPSend",
    "WSPSendDisconnect",
    "WSPSendTo",
    "WSPSetSockOpt",
    "WSPShutdown",
    "WSPSocket",
    "WSPStartup",
    "WSPStringToAddress",
    "unreturned_handles",
]

install()
