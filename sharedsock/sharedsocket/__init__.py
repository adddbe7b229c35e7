"""FACE: SharedSocket, a socket-like object that real processes can share and close as Winsock closes.

face.py        the class: what it is, sharing, closing, timeouts, connections
receiving.py, sending.py, asking.py, overlapping.py     its calls, by kind
base.py        what all of them stand on
opening.py     the functions that make one
"""

from sharedsock.sharedsocket.face import SharedSocket, Ticket, fromshare, revoke
from sharedsock.sharedsocket.opening import adopt, create_connection, create_server, socketpair, statistics

__all__ = [
    "SharedSocket",
    "Ticket",
    "adopt",
    "create_connection",
    "create_server",
    "fromshare",
    "revoke",
    "socketpair",
    "statistics",
]
