"""FACE: TLS over a descriptor, which a close in this process ends like any other call (CLOSE-20).

`context.wrap_socket()` takes a file number away from us, so a close could not end its calls. Here the TLS machine works
on memory alone (`ssl.MemoryBIO`), and the wire is a `Descriptor`: waits, timeouts, aborts and errors are those of
`SharedSocket`. The socket may be shared, the TLS state never: it is keys and counters of one process.

This file is what a user sees; the machine, the wire and their locks are in session.py.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, cast

from sharedsock.descriptors import launching, transfer
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import operations
from sharedsock.model.errors import OperationAborted, from_errno
from sharedsock.sharedsocket import SharedSocket
from sharedsock.tls.session import SEND_CHUNK, Patience, Session

if TYPE_CHECKING:
    import ssl

__all__ = ["TLSSocket", "wrap_tls"]

_makefile: Final = socket.socket.makefile

# What is the socket's own, TLS or not.
_OF_THE_SOCKET: Final = frozenset(
    """
    descriptor family type proto timeout fileno getsockname getpeername getsockopt setsockopt settimeout gettimeout
    setblocking getblocking get_inheritable set_inheritable shutdown references holders pending_operations
    """.split()
)
# What the session tells about itself: the methods and attributes of ssl.SSLObject.
_OF_THE_SESSION: Final = frozenset(
    """
    context server_side server_hostname session session_reused getpeercert cipher shared_ciphers compression version
    selected_alpn_protocol get_channel_binding verify_client_post_handshake get_verified_chain get_unverified_chain
    """.split()
)


def wrap_tls(
    context: ssl.SSLContext,
    s: SharedSocket,
    server_side: bool = False,
    server_hostname: str | None = None,
    *,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    session: ssl.SSLSession | None = None,
) -> TLSSocket:
    """Begin TLS on a connected stream; return the TLS side, which stands in for the socket until `unwrap`.

    Other processes: one that holds the same socket sees ciphertext; only this process has the keys.

    Args:
        context, server_side, server_hostname, session: as `ssl.SSLContext.wrap_socket`.
        do_handshake_on_connect: False leaves the handshake to `do_handshake`, or to the first call that needs it.
        suppress_ragged_eofs: True: an end of the stream without TLS's own close_notify is an end like any other.

    Raises:
        TypeError: not a SharedSocket. ValueError: no stream, or arguments that do not fit.
        ssl.SSLError: the handshake failed; the socket is open, and good only for closing.
        OperationAborted: this process closed the descriptor during the handshake (10004).
        OSError: not connected (10057), and as `SharedSocket.recv` and `send`.
    """
    if not isinstance(s, SharedSocket):
        raise TypeError(f"wrap_tls() takes a SharedSocket, not {type(s).__name__}; see adopt()")
    if s.type != socket.SOCK_STREAM:
        raise ValueError("TLS needs a stream socket")
    if server_side and (server_hostname or session is not None):
        raise ValueError("server_hostname and session are a client's")
    if context.check_hostname and not server_hostname:
        raise ValueError("check_hostname requires server_hostname")
    if do_handshake_on_connect and s.gettimeout() == 0:
        raise ValueError("a handshake may have to wait: give the socket a timeout, or do_handshake_on_connect=False")
    s.getpeername()
    chain = s._descriptor.chain
    wire = None if chain is None else chain.wire_of(s)
    made = Session(s._descriptor, context, server_side, server_hostname, session, suppress_ragged_eofs, wire)
    secured = TLSSocket(s, made)
    if do_handshake_on_connect:
        secured.do_handshake()
    return secured


class TLSSocket:
    """The TLS side of a SharedSocket: the methods of `ssl.SSLSocket`, ended by a close of this process.

    Made by `wrap_tls`. One thread may receive while another sends; several of a kind take turns.
    """

    __slots__ = ("__weakref__", "_closed", "_io_refs", "_session", "_shared")

    def __init__(self, shared: SharedSocket, session: Session) -> None:
        self._shared = shared
        self._session = session
        self._closed = False
        self._io_refs = 0

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_SOCKET:
            return getattr(self._shared, name)
        if name in _OF_THE_SESSION:
            return getattr(self._session.machine, name)
        raise AttributeError(f"TLSSocket has no attribute {name!r}")

    def __repr__(self) -> str:
        return (
            f"<sharedsock.TLSSocket {self._session.machine.version() or 'before its handshake'} over {self._shared!r}>"
        )

    # -- calls ------------------------------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands; a second time does nothing.

        Args:
            block: wait for ever where the timeout is 0.

        Raises:
            ssl.SSLError: it failed. OperationAborted, TimeoutError, OSError: as `recv`.
        """
        patience = self._session.begin()
        if block and patience.timeout_s == 0:
            patience = Patience(None)
        self._session.shake_hands("handshake", patience)

    def recv(self, bufsize: int = 1024, flags: int = 0) -> bytes:
        """Receive at most `bufsize` bytes; b"" is the peer's end.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited; no byte was taken (10004).
            NotASocket: closed before (10038). TimeoutError (10060). ssl.SSLError: the peer broke the protocol.
            ssl.SSLWantReadError: also a BlockingIOError (10035); timeout 0, and nothing is there.
        """
        _require_no_flags(flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        patience = self._session.begin()
        return self._session.receive(bufsize, patience) if bufsize else b""

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive into a buffer; return how many bytes. Errors as `recv`."""
        with memoryview(buffer) as whole:
            limit = nbytes or whole.nbytes
            if limit > whole.nbytes:
                raise ValueError("buffer too small for requested bytes")
            data = self.recv(limit, flags)
            if data:
                whole.cast("B")[: len(data)] = data
            return len(data)

    def read(self, len: int = 1024, buffer: Any = None) -> bytes | int:  # as ssl.SSLSocket
        """Receive as `recv`, or into a buffer as `recv_into`."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len)

    def pending(self) -> int:
        """Return how many bytes `recv` would give without waiting for the wire: ask before a select().

        What has arrived is deciphered for the answer, since no selector can see it any more.
        """
        return self._session.pending()

    def send(self, data: Any, flags: int = 0) -> int:
        """Send up to 64 KiB; return how many bytes. They are on their way, or wait here for the next call's turn.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited.
            ssl.SSLWantWriteError: also a BlockingIOError; timeout 0, and what earlier calls left fills the line.
            TimeoutError: the same with a timeout. Nothing of this call was taken.
        """
        _require_no_flags(flags)
        with memoryview(data) as whole, whole.cast("B") as view:
            patience = self._session.begin()
            with view[:SEND_CHUNK] as chunk:
                return self._session.send(chunk, "send", patience, must_leave=False)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send every byte.

        Raises:
            OperationAborted: as `send`; `.bytes_transferred` were sent before.
        """
        _require_no_flags(flags)
        with memoryview(data) as whole, whole.cast("B") as view:
            patience = self._session.begin()
            sent = 0
            while sent < len(view):
                try:
                    with view[sent : sent + SEND_CHUNK] as chunk:
                        sent += self._session.send(chunk, "sendall", patience, must_leave=True)
                except OperationAborted as error:
                    error.bytes_transferred = sent
                    raise

    def write(self, data: Any) -> int:
        """Send as `send`."""
        return self.send(data)

    def unwrap(self) -> SharedSocket:
        """End TLS by its own goodbye, both ways, and return the socket, on which plain bytes may follow.

        Raises:
            ssl.SSLError: the peer ended without a goodbye, or there are bytes nobody has received.
        """
        rest = self._session.say_goodbye(self._session.begin())
        if rest:  # the peer's plain bytes came in one piece with its goodbye
            operations.keep_for_next(transfer.require_kernel(self._shared._descriptor), Kept(rest))
        return self._shared

    # -- closing ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the descriptor, as `SharedSocket.close`: a call waiting in another thread ends with OperationAborted.

        It says no goodbye (`unwrap` does). While makefile() objects are open it is deferred. After `unwrap` the socket
        is its caller's, and stays open.

        Raises:
            BlockingIOError: 10035, refused as `SharedSocket.close` is; nothing was closed.
        """
        self._closed = True
        if self._io_refs <= 0 and not self._session.is_over:
            with suppress(OSError):  # closed before; or no room, and nobody will wait for it
                self._session.push_if_free("close")
            try:
                self._shared.close()
            except BlockingIOError:
                self._closed = False
                raise

    def abort(self) -> None:
        """Close at once, even while makefile() objects would defer it."""
        self._closed = True
        if not self._session.is_over:
            self._shared.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        if self._io_refs <= 0 and not self._session.is_over:
            self._shared.__exit__(*exc_info)

    def makefile(self, *arguments: Any, **keywords: Any) -> Any:
        """Return a file object, as `socket.socket.makefile`."""
        return _makefile(cast("socket.socket", self), *arguments, **keywords)

    def _decref_socketios(self) -> None:
        """A makefile() object has closed; the stdlib's SocketIO calls this."""
        self._io_refs = max(self._io_refs - 1, 0)
        if self._closed:
            self.close()

    # -- never shared -----------------------------------------------------------------------------------------

    def share(self, *arguments: Any, **keywords: Any) -> Any:
        """Refuse: TLS state is one process's.

        Raises:
            OSError: 10045.
        """
        raise from_errno(
            errno.EOPNOTSUPP,
            "TLS state is keys and counters of one process and cannot be shared: share the socket before wrap_tls() "
            "or after unwrap(), and let one process at a time speak TLS on it",
        )

    ticket = lend = dup = detach = share

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            "a TLSSocket cannot be pickled: TLS state is one process's; hand over the SharedSocket before wrap_tls() "
            "or after unwrap()"
        )


def _require_no_flags(flags: int) -> None:
    if flags:
        raise ValueError("a TLS stream knows no flags")


launching.keep_out(TLSSocket)
