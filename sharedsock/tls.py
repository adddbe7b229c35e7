"""FACE: TLS over a descriptor, which a close in this process ends like any other call (CLOSE-20).

`context.wrap_socket()` takes a file number away from us, so a close could not end its calls. Here the TLS machine works
on memory alone (`ssl.MemoryBIO`), and the wire is a `Descriptor`: waits, timeouts, aborts and errors are those of
`SharedSocket`. The socket may be shared, the TLS state never: it is keys and counters of one process.

Invariants:
- *Bytes*: ciphertext is fed in the order of its arrival and sent in the order of its making, each byte once, whatever
  timeout, interrupt or abort comes between (I1): what is under way is kept here, not in a frame.
- *Locks*: `_receiving` and `_sending` belong to who reads or writes the wire and may be held while waiting, `_state`
  guards the machine and is not. Order: receiving, sending, state. A closer takes none that anybody may hold.
"""

from __future__ import annotations

import copy
import errno
import socket
import ssl
import threading
from collections import deque
from contextlib import suppress
from itertools import starmap
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from sharedsock.descriptors import launching, options, transfer
from sharedsock.descriptors.transfer import Kept
from sharedsock.kernel import operations
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import ForkedDescriptor, NotASocket, OperationAborted, from_errno, with_winerror
from sharedsock.sharedsocket import SharedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TLSSocket", "wrap_tls"]

_WIRE_CHUNK: Final = 1 << 15
_RECORD: Final = 1 << 14
_SEND_CHUNK: Final = 1 << 16
_makefile: Final = socket.socket.makefile

T = TypeVar("T")

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


class _WantRead(ssl.SSLWantReadError, BlockingIOError):
    """Nothing more has arrived, and the timeout is 0; as both families know it."""


class _WantWrite(ssl.SSLWantWriteError, BlockingIOError):
    """There is no room to send, and the timeout is 0; as both families know it."""


class _Patience:
    """How long one call may still wait."""

    __slots__ = ("_until", "timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._until = None if timeout_s is None else monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Return the seconds left, None for ever.

        Raises:
            TimeoutError: none are; a timeout of 0 is a call that does not wait, and has no end.
        """
        if self._until is None or self.timeout_s == 0:
            return self.timeout_s
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise _timed_out()
        return left_s


def _timed_out() -> OSError:
    error = TimeoutError("timed out")
    error.winerror = from_errno(errno.ETIMEDOUT, "").winerror  # type: ignore[attr-defined]  # typeshed: Windows only
    return error


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
    secured = TLSSocket(context, s, server_side, server_hostname, suppress_ragged_eofs, session)
    if do_handshake_on_connect:
        secured.do_handshake()
    return secured


class TLSSocket:
    """The TLS side of a SharedSocket: the methods of `ssl.SSLSocket`, ended by a close of this process.

    Made by `wrap_tls`. One thread may receive while another sends; several of a kind take turns.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_closed",
        "_descriptor",
        "_failure",
        "_feeds",
        "_incoming",
        "_io_refs",
        "_is_established",
        "_is_over",
        "_line",
        "_machine",
        "_outgoing",
        "_plain",
        "_produced",
        "_receiving",
        "_sending",
        "_shared",
        "_state",
        "_suppress_ragged_eofs",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        shared: SharedSocket,
        server_side: bool,
        server_hostname: str | None,
        suppress_ragged_eofs: bool,
        session: ssl.SSLSession | None,
    ) -> None:
        self._shared = shared
        # In a forked child a SharedSocket may get another descriptor; this one refuses there, and the keys with it.
        self._descriptor = shared._descriptor
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._machine = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        self._suppress_ragged_eofs = suppress_ragged_eofs
        self._receiving, self._sending, self._state = threading.Lock(), threading.Lock(), threading.Lock()
        self._arrived: deque[bytes] = deque()  # ciphertext off the wire, not yet fed
        self._plain: deque[bytes] = deque()  # plaintext an interrupt, or pending(), has left for the next receive
        self._produced: list[bytes] = []  # ciphertext out of the machine, not yet on the line
        # What is being sent, and the counts of what has been: read and replaced as one.
        self._line: tuple[memoryview, list[int]] = memoryview(b""), []
        self._feeds = 0
        self._is_established = self._is_over = self._closed = False
        self._failure: ssl.SSLError | None = None
        self._io_refs = 0

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_SOCKET:
            return getattr(self._shared, name)
        if name in _OF_THE_SESSION:
            return getattr(self._machine, name)
        raise AttributeError(f"TLSSocket has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<sharedsock.TLSSocket {self._machine.version() or 'before its handshake'} over {self._shared!r}>"

    # -- calls ------------------------------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands; a second time does nothing.

        Args:
            block: wait for ever where the timeout is 0.

        Raises:
            ssl.SSLError: it failed. OperationAborted, TimeoutError, OSError: as `recv`.
        """
        patience = self._begin()
        if block and patience.timeout_s == 0:
            patience = _Patience(None)
        self._shake_hands("handshake", patience)

    def _shake_hands(self, kind: str, patience: _Patience) -> None:
        def shake() -> None:
            if not self._is_established:
                self._converse(kind, patience, self._machine.do_handshake)
                self._is_established = True

        self._in_turn(self._receiving, kind, patience, shake)

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
        patience = self._begin()
        if not self._is_established:
            self._shake_hands("recv", patience)
        if bufsize == 0:
            return b""
        taken: list[bytes] = []
        try:
            self._in_turn(self._receiving, "recv", patience, self._wait_read, bufsize, taken, patience)
        except BaseException:
            self._plain.extendleft(filter(None, taken))
            raise
        return taken[0]

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
        transfer.require_kernel(self._descriptor)
        with self._state:
            if self._is_established and not self._plain and not self._machine.pending() and self._incoming.pending:
                try:
                    self._plain.extend(filter(None, starmap(self._machine.read, ((_RECORD,),))))
                except ssl.SSLError as error:  # the next receive raises it, if it is one
                    self._note_failure(error)
            return sum(map(len, self._plain)) + self._machine.pending()

    def send(self, data: Any, flags: int = 0) -> int:
        """Send up to 64 KiB; return how many bytes. They are on their way, or wait here for the next call's turn.

        Raises:
            OperationAborted: this process closed the descriptor while the call waited.
            ssl.SSLWantWriteError: also a BlockingIOError; timeout 0, and what earlier calls left fills the line.
            TimeoutError: the same with a timeout. Nothing of this call was taken.
        """
        _require_no_flags(flags)
        with memoryview(data) as whole, whole.cast("B") as view:
            patience = self._begin()
            with view[:_SEND_CHUNK] as chunk:
                return self._send(chunk, "send", patience, must_leave=False)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send every byte.

        Raises:
            OperationAborted: as `send`; `.bytes_transferred` were sent before.
        """
        _require_no_flags(flags)
        with memoryview(data) as whole, whole.cast("B") as view:
            patience = self._begin()
            sent = 0
            while sent < len(view):
                try:
                    with view[sent : sent + _SEND_CHUNK] as chunk:
                        sent += self._send(chunk, "sendall", patience, must_leave=True)
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
        patience = self._begin()

        def part() -> None:
            with suppress(ssl.SSLZeroReturnError):  # both have said it before
                self._converse("unwrap", patience, self._machine.unwrap)
            self._is_over = True
            rest = self._incoming.read()
            if rest:  # the peer's plain bytes came in one piece with its goodbye
                operations.keep_for_next(transfer.require_kernel(self._descriptor), Kept(rest))

        self._in_turn(self._receiving, "unwrap", patience, part)
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
        if self._io_refs <= 0 and not self._is_over:
            with suppress(OSError):  # closed before; or no room, and nobody will wait for it
                transfer.require_kernel(self._descriptor)
                self._push_if_free("close")
            try:
                self._shared.close()
            except BlockingIOError:
                self._closed = False
                raise

    def abort(self) -> None:
        """Close at once, even while makefile() objects would defer it."""
        self._closed = True
        if not self._is_over:
            self._shared.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        if self._io_refs <= 0 and not self._is_over:
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

    # -- the machine and the wire -------------------------------------------------------------------------------

    def _begin(self) -> _Patience:
        transfer.require_kernel(self._descriptor)
        if self._is_over:
            raise ValueError("TLS has ended here: go on with the socket that unwrap() returned")
        if self._failure is not None:
            raise copy.copy(self._failure)
        return _Patience(self._descriptor.timeout_s)

    def _in_turn(
        self,
        lock: threading.Lock,
        kind: str,
        patience: _Patience,
        action: Callable[..., T],
        *arguments: Any,
    ) -> T:
        """Do something alone at one end of the wire. A close aborts those who wait for their turn as well."""
        held: list[bool] = []
        try:
            held += map(lock.acquire, (False,))  # taken and noted in one C call: no interrupt between
            if not held[0]:
                left_s = patience.left_s()
                if left_s == 0:
                    raise _would_block(lock is self._receiving, "another thread has this end of the wire")
                held += map(lock.acquire, (True,), (-1.0 if left_s is None else min(left_s, threading.TIMEOUT_MAX),))
                if not held[-1]:
                    raise _timed_out()
                try:
                    transfer.require_kernel(self._descriptor)
                except NotASocket as error:
                    raise _as_of(kind, error) from None
            return action(*arguments)
        finally:
            if held and held[-1]:
                lock.release()

    def _wait_read(self, limit: int, taken: list[bytes], patience: _Patience) -> None:
        while not self._read(limit, taken):
            self._push_if_free("recv")
            self._fetch("recv", patience)
        with suppress(OSError):  # what was received is the result, whatever comes of an answer to it
            self._push_if_free("recv")

    def _read(self, limit: int, taken: list[bytes]) -> bool:
        """Move plaintext into `taken` if there is any, or b"" at the end; report whether something was."""
        with self._state:
            if self._plain:
                data = self._plain[0]
                if len(data) > limit:
                    self._plain[0] = data[limit:]
                    taken.append(data[:limit])
                else:
                    taken.append(data)
                    del self._plain[0]
                return True
            try:
                taken.extend(starmap(self._machine.read, ((limit,),)))
            except ssl.SSLWantReadError:
                return False
            except ssl.SSLZeroReturnError:
                taken.append(b"")
            except ssl.SSLEOFError:
                if not self._suppress_ragged_eofs:
                    raise
                taken.append(b"")
            except ssl.SSLError as error:
                self._note_failure(error)
                raise
            return True

    def _note_failure(self, error: ssl.SSLError) -> None:
        """Remember a broken session: asked again, OpenSSL would report an end like any other (measured with 3.0)."""
        if not isinstance(error, ssl.SSLWantReadError | ssl.SSLZeroReturnError | ssl.SSLEOFError):
            self._failure = copy.copy(error)  # without its traceback

    def _converse(self, kind: str, patience: _Patience, step: Callable[[], object]) -> None:
        """Take a step of the machine until it is done, sending what it says and feeding it what arrives."""
        while True:
            try:
                with self._state:
                    step()
                is_done = True
            except ssl.SSLWantReadError:
                is_done = False
            except ssl.SSLError as error:
                self._note_failure(error)
                self._push_if_free(kind)  # the alert that tells the peer why
                raise
            self._in_turn(self._sending, kind, patience, self._push, kind, patience)
            if is_done:
                return
            self._fetch(kind, patience)

    def _fetch(self, kind: str, patience: _Patience) -> None:
        """Feed what the wire has, at least a byte or its end; waits. The caller has `_receiving`."""
        if not self._arrived:
            receipt = (
                self._descriptor,
                kind,
                "recv",
                (_WIRE_CHUNK, DONTWAIT),
                Kept,
                _data_of,
                _WIRE_CHUNK,
                False,
                patience.left_s(),
            )
            try:
                self._arrived.extend(starmap(transfer.receive, (receipt,)))  # received and stored in one C call
            except OSError as error:
                raise _as_of(kind, error, is_receive=True) from None
        while self._arrived:
            is_end = not self._arrived[0]
            if is_end:
                options.verdict_on_empty(self._descriptor)
            with self._state:
                deque(map(self._incoming.write, starmap(self._arrived.popleft, ((),))), 0)  # moved in one C call
                self._feeds += 1
                if is_end:
                    self._incoming.write_eof()

    def _send(self, view: memoryview, kind: str, patience: _Patience, *, must_leave: bool) -> int:
        """Encipher a view and send it; return its size. What earlier calls have left goes first.

        Args:
            must_leave: raise when it cannot leave in time; else it is taken all the same, and waits for the next call.
        """
        if not self._is_established:
            self._shake_hands(kind, patience)
        while True:
            feeds = self._feeds
            count = self._in_turn(self._sending, kind, patience, self._encipher, view, kind, patience, must_leave)
            self._push_if_free(kind)
            if count is not None:
                return count
            self._in_turn(self._receiving, kind, patience, self._fetch_unless_fed, feeds, kind, patience)

    def _encipher(self, view: memoryview, kind: str, patience: _Patience, must_leave: bool) -> int | None:
        """Return how many bytes were taken; None: a peer of TLS 1.2 wants to shake hands again, and has to be heard."""
        self._push(kind, patience)
        count: int | None = 0
        try:
            if view:
                with self._state:
                    count = self._machine.write(view)
        except ssl.SSLWantReadError:
            count = None
        try:
            self._push(kind, patience)
        except (BlockingIOError, TimeoutError):
            if must_leave or count is None:
                raise
        return count

    def _fetch_unless_fed(self, feeds: int, kind: str, patience: _Patience) -> None:
        if self._feeds == feeds:
            self._fetch(kind, patience)

    def _push(self, kind: str, patience: _Patience) -> None:
        """Send what the machine has produced, all of it. The caller has `_sending`."""
        while True:
            view, counts = self._line
            sent = sum(counts)
            if sent == len(view):
                if not self._produced:
                    with self._state:
                        self._produced.extend(filter(None, starmap(self._outgoing.read, ((),))))
                if not self._produced:
                    return
                following = memoryview(self._produced[0])
                # An interrupt falls after a call only, so not between these two.
                self._line = following, []
                del self._produced[0]
                continue
            arguments = (view[sent:], DONTWAIT | NOSIGNAL)
            dispatch = (self._descriptor, kind, "send", arguments, False, patience.left_s())
            try:
                counts.extend(starmap(transfer.send, (dispatch,)))  # sent and counted in one C call
            except OSError as error:
                raise _as_of(kind, error) from None

    def _push_if_free(self, kind: str) -> None:
        """Send what there is room for, unless another thread is sending: that one looks again when it has done."""
        while self._has_output():
            held: list[bool] = []
            try:
                held += map(self._sending.acquire, (False,))
                if not held[0]:
                    return
                self._push(kind, _Patience(0.0))
            except OperationAborted:
                raise
            except OSError:  # no room: the next call goes on; or a broken line, which is the next sender's to hear
                return
            finally:
                if held and held[-1]:
                    self._sending.release()

    def _has_output(self) -> bool:
        view, counts = self._line
        return bool(self._outgoing.pending or self._produced) or sum(counts) < len(view)


def _data_of(kept: Kept) -> bytes:
    return kept.data


def _would_block(is_receive: bool, text: str) -> OSError:
    return with_winerror((_WantRead if is_receive else _WantWrite)(errno.EAGAIN, text))


def _as_of(kind: str, error: OSError, is_receive: bool = False) -> OSError:
    """Return an error of the wire as that of one TLS call, which began while the descriptor was open."""
    if isinstance(error, ForkedDescriptor):
        return error
    if isinstance(error, NotASocket):
        text = f"{kind} ended: this process closed the descriptor"
        return OperationAborted(text, operation=kind, closed_by=getattr(error, "closed_by", None))
    if isinstance(error, BlockingIOError):
        return _would_block(is_receive, str(error))
    return error


def _require_no_flags(flags: int) -> None:
    if flags:
        raise ValueError("a TLS stream knows no flags")


launching.keep_out(TLSSocket)
