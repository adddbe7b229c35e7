"""TLS between a machine that works on memory (`ssl.MemoryBIO`) and a wire: a descriptor, or the providers over it.

Keeps, for the face (face.py):
- *Bytes*: ciphertext is fed in the order of its arrival and sent in the order of its making, each byte once, whatever
  timeout, interrupt or abort comes between (I1): what is under way is kept here, not in a frame. Providers under the
  socket have frames: an interrupt in one of those loses what it had.
- *Locks*: `_receiving` and `_sending` belong to who reads or writes the wire and may be held while waiting, `_state`
  guards the machine and is not. Order: receiving, sending, state. A closer takes none that anybody may hold.
"""

from __future__ import annotations

import copy
import errno
import ssl
import threading
from collections import deque
from contextlib import suppress
from itertools import starmap
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sharedsock.descriptors import options, transfer
from sharedsock.descriptors.transfer import Kept, data_of
from sharedsock.kernel.system import DONTWAIT, NOSIGNAL
from sharedsock.model.errors import ForkedDescriptor, NotASocket, OperationAborted, from_errno, with_winerror

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedsock.descriptors.descriptor import Descriptor
    from sharedsock.descriptors.providing import Wire

__all__ = ["SEND_CHUNK", "Patience", "Session"]

SEND_CHUNK: Final = 1 << 16
_WIRE_CHUNK: Final = 1 << 15
_RECORD: Final = 1 << 14

T = TypeVar("T")


class _WantRead(ssl.SSLWantReadError, BlockingIOError):
    """Nothing more has arrived, and the timeout is 0; as both families know it."""


class _WantWrite(ssl.SSLWantWriteError, BlockingIOError):
    """There is no room to send, and the timeout is 0; as both families know it."""


class Patience:
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


class Session:
    """One TLS session of this process. Every call begins with `begin`, whose patience it is given.

    Attributes:
        machine: what the session tells about itself.
        is_over: both sides have said goodbye.
    """

    __slots__ = (
        "_arrived",
        "_decipher",
        "_descriptor",
        "_failure",
        "_feeds",
        "_incoming",
        "_is_established",
        "_line",
        "_outgoing",
        "_plain",
        "_produced",
        "_receiving",
        "_sending",
        "_state",
        "_suppress_ragged_eofs",
        "_wire",
        "is_over",
        "machine",
    )

    def __init__(
        self,
        descriptor: Descriptor,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
        suppress_ragged_eofs: bool,
        wire: Wire | None,
    ) -> None:
        # In a forked child a SharedSocket may get another descriptor; this one refuses there, and the keys with it.
        self._descriptor = descriptor
        self._wire = wire  # providers under the socket; None: there are none, the descriptor itself is the wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.machine = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        # Its read() is Python: an interrupt between the C call in it and its return would lose a record (rule 3).
        self._decipher = self.machine._sslobj.read  # type: ignore[attr-defined]  # no public name
        self._suppress_ragged_eofs = suppress_ragged_eofs
        self._receiving, self._sending, self._state = threading.Lock(), threading.Lock(), threading.Lock()
        self._arrived: deque[bytes] = deque()  # ciphertext off the wire, not yet fed
        self._plain: deque[bytes] = deque()  # plaintext an interrupt, or pending(), has left for the next receive
        self._produced: list[bytes] = []  # ciphertext out of the machine, not yet on the line
        # What is being sent, and the counts of what has been: read and replaced as one.
        self._line: tuple[memoryview, list[int]] = memoryview(b""), []
        self._feeds = 0
        self._is_established = self.is_over = False
        self._failure: ssl.SSLError | None = None

    # -- calls ------------------------------------------------------------------------------------------------

    def begin(self) -> Patience:
        """Begin a call; return how long it may wait.

        Raises:
            NotASocket: closed. ValueError: TLS has ended. ssl.SSLError: the session is broken.
        """
        transfer.require_kernel(self._descriptor)
        if self.is_over:
            raise ValueError("TLS has ended here: go on with the socket that unwrap() returned")
        if self._failure is not None:
            raise copy.copy(self._failure)
        return Patience(self._descriptor.timeout_s)

    def shake_hands(self, kind: str, patience: Patience) -> None:
        """Shake hands, unless that has been done."""

        def shake() -> None:
            if not self._is_established:
                self._converse(kind, patience, self.machine.do_handshake)
                self._is_established = True

        if not self._is_established:
            self._in_turn(self._receiving, kind, patience, shake)

    def receive(self, limit: int, patience: Patience) -> bytes:
        """Receive at least a byte, or b"" at the end."""
        self.shake_hands("recv", patience)
        taken: list[bytes] = []
        try:
            self._in_turn(self._receiving, "recv", patience, self._wait_read, limit, taken, patience)
        except BaseException:
            self._plain.extendleft(filter(None, taken))
            raise
        return taken[0]

    def pending(self) -> int:
        """Return how many bytes can be received without the wire; deciphers for it what has arrived."""
        transfer.require_kernel(self._descriptor)
        with self._state:
            if self._is_established and not self._plain and not self.machine.pending() and self._incoming.pending:
                try:
                    self._plain.extend(filter(None, starmap(self._decipher, ((_RECORD,),))))
                except ssl.SSLError as error:  # the next receive raises it, if it is one
                    self._note_failure(error)
            return sum(map(len, self._plain)) + self.machine.pending()

    def send(self, view: memoryview, kind: str, patience: Patience, *, must_leave: bool) -> int:
        """Encipher a view and send it; return its size. What earlier calls have left goes first.

        Args:
            must_leave: raise when it cannot leave in time; else it is taken all the same, and waits for the next call.
        """
        self.shake_hands(kind, patience)
        while True:
            feeds = self._feeds
            count = self._in_turn(self._sending, kind, patience, self._encipher, view, kind, patience, must_leave)
            with suppress(OSError):  # what another thread has left to us, whose call it is not
                self.push_if_free(kind)
            if count is not None:
                return count
            self._in_turn(self._receiving, kind, patience, self._fetch_unless_fed, feeds, kind, patience)

    def say_goodbye(self, patience: Patience) -> bytes:
        """Say goodbye and hear it; return what the peer has sent after its own, which is not TLS any more."""

        def part() -> bytes:
            with suppress(ssl.SSLZeroReturnError):  # both have said it before
                self._converse("unwrap", patience, self.machine.unwrap)
            self.is_over = True
            return self._incoming.read()

        return self._in_turn(self._receiving, "unwrap", patience, part)

    def push_if_free(self, kind: str) -> None:
        """Send what there is room for, unless another thread is sending: that one looks again when it has done."""
        try:
            transfer.require_kernel(self._descriptor)
        except NotASocket:  # in a forked child, the locks may be held for ever by threads that are not here
            return
        while self._has_output():
            held: list[bool] = []
            try:
                held += map(self._sending.acquire, (False,))
                if not held[0]:
                    return
                self._push(kind, Patience(0.0))
            except OperationAborted:
                raise
            except OSError:  # no room: the next call goes on; or a broken line, which is the next sender's to hear
                return
            finally:
                if held and held[-1]:
                    self._sending.release()

    # -- the machine and the wire -------------------------------------------------------------------------------

    def _in_turn(
        self,
        lock: threading.Lock,
        kind: str,
        patience: Patience,
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

    def _wait_read(self, limit: int, taken: list[bytes], patience: Patience) -> None:
        while not self._read(limit, taken):
            self.push_if_free("recv")
            self._fetch("recv", patience)
        with suppress(OSError):  # what was received is the result, whatever comes of an answer to it
            self.push_if_free("recv")

    def _read(self, limit: int, taken: list[bytes]) -> bool:
        """Move plaintext into `taken` if there is any, or b"" at the end; report whether something was."""
        with self._state:
            if self._plain:
                data = self._plain[0]
                if len(data) > limit:
                    self._plain[0] = data[limit:]
                    taken.append(data[:limit])
                else:
                    del self._plain[0]  # an interrupt falls after a call: when both have been done, or neither
                    taken.append(data)
                return True
            try:
                taken.extend(starmap(self._decipher, ((limit,),)))
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

    def _converse(self, kind: str, patience: Patience, step: Callable[[], object]) -> None:
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
                self.push_if_free(kind)  # the alert that tells the peer why
                raise
            self._in_turn(self._sending, kind, patience, self._push, kind, patience)
            if is_done:
                return
            self._fetch(kind, patience)

    def _fetch(self, kind: str, patience: Patience) -> None:
        """Feed what the wire has, at least a byte or its end; waits. The caller has `_receiving`."""
        if not self._arrived:
            left_s = patience.left_s()
            receive: Callable[..., bytes] = transfer.receive
            receipt: tuple[Any, ...]
            if self._wire is None:
                arguments = (_WIRE_CHUNK, DONTWAIT)
                receipt = self._descriptor, kind, "recv", arguments, Kept, data_of, _WIRE_CHUNK, False, left_s
            else:
                receive, receipt = self._wire.receive, (kind, _WIRE_CHUNK, left_s)
            try:
                self._arrived.extend(starmap(receive, (receipt,)))  # received and stored in one C call
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

    def _encipher(self, view: memoryview, kind: str, patience: Patience, must_leave: bool) -> int | None:
        """Return how many bytes were taken; None: a peer of TLS 1.2 wants to shake hands again, and has to be heard."""
        self._push(kind, patience)
        count: int | None = 0
        try:
            if view:
                with self._state:
                    count = self.machine.write(view)
        except ssl.SSLWantReadError:
            count = None
        try:
            self._push(kind, patience)
        except (BlockingIOError, TimeoutError):
            if must_leave or count is None:
                raise
        return count

    def _fetch_unless_fed(self, feeds: int, kind: str, patience: Patience) -> None:
        if self._feeds == feeds:
            self._fetch(kind, patience)

    def _push(self, kind: str, patience: Patience) -> None:
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
            left, left_s = view[sent:], patience.left_s()
            send: Callable[..., int] = transfer.send
            dispatch: tuple[Any, ...]
            if self._wire is None:
                dispatch = self._descriptor, kind, "send", (left, DONTWAIT | NOSIGNAL), False, left_s
            else:
                send, dispatch = self._wire.send, (kind, left, left_s)
            try:
                counts.extend(starmap(send, (dispatch,)))  # sent and counted in one C call
            except OSError as error:
                raise _as_of(kind, error) from None

    def _has_output(self) -> bool:
        view, counts = self._line
        return bool(self._outgoing.pending or self._produced) or sum(counts) < len(view)


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
