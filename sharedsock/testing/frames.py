"""The pipe between a controller and one actor: length, then a pickle, over a socket pair made by the controller.

Both ends are processes of ours, started by us, and the pair has no name, so pickle is safe here; nothing else
in the project reads pickles from a socket (S-07). The controller writes and waits. The actor never waits for its
controller: what does not fit into the pipe goes to a backlog, which the actor's main thread writes out later.
"""

from __future__ import annotations

import _socket
import pickle
import select
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import Any, Final

__all__ = ["Backlog", "Reader", "encode", "pipe_pair", "plain_socket", "wait_readable"]

# The stdlib's own class, also where somebody has put another one in its place before we are imported.
_Plain: Final[Any] = next(kind for kind in socket.socket.__mro__ if kind.__module__ == "socket")
_LENGTH: Final = struct.Struct("!I")
_CHUNK: Final = 1 << 16


def encode(frame: tuple[Any, ...]) -> bytes:
    """Return a frame as it goes over the pipe.

    Raises:
        Exception: what pickling the frame raises; nothing has been sent then.
    """
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def pipe_pair() -> tuple[socket.socket, socket.socket]:
    """Return a connected pair of plain sockets, also where a test has replaced socket.socket."""
    ours, theirs = _socket.socketpair()
    return plain_socket(ours.detach()), plain_socket(theirs.detach())


def plain_socket(number: int) -> socket.socket:
    """Return a plain socket on a number, also where a test has replaced socket.socket."""
    made: socket.socket = _Plain(fileno=number)
    return made


class Reader:
    """Takes whole frames out of a stream of chunks."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._buffer = bytearray()
        self.is_at_end = False

    def take(self) -> list[tuple[Any, ...]]:
        """Read once, and return the frames that are whole now; sets `is_at_end` when the other end has gone."""
        try:
            chunk = self._pipe.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            # A Unix stream reports this once its data is read, if the other end died with commands unread.
            chunk = b""
        if not chunk:
            self.is_at_end = True
            return []
        self._buffer += chunk
        frames = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(pickle.loads(bytes(self._buffer[_LENGTH.size : end])))  # our own process
            del self._buffer[:end]
        return frames


class Backlog:
    """The actor's sending side: whole frames in order, from any thread, never waiting for the controller."""

    def __init__(self, pipe: socket.socket, wake: socket.socket) -> None:
        self._pipe = pipe
        self._wake = wake
        # Re-entrant: a finalizer that runs in here may report a probe point of its own.
        self._lock = threading.RLock()
        self._chunks: deque[memoryview] = deque()

    def post(self, frame: tuple[Any, ...]) -> None:
        """Send a frame, or keep what does not fit for `flush`. A controller that has gone is no error here."""
        data = memoryview(encode(frame))
        with self._lock:
            self._chunks.append(data)
            if len(self._chunks) == 1:
                self._write_locked()
            has_rest = bool(self._chunks)
        if has_rest:
            with suppress(BlockingIOError):  # a full wake pipe wakes as well
                self._wake.send(b"w", socket.MSG_DONTWAIT)

    def flush(self) -> bool:
        """Write on; report whether something is still left."""
        with self._lock:
            self._write_locked()
            return bool(self._chunks)

    def _write_locked(self) -> None:
        while self._chunks:
            try:
                sent = self._pipe.send(self._chunks[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._chunks.clear()  # the main thread reads the same end-of-file and ends the process
                return
            self._chunks[0] = self._chunks[0][sent:]
            if not self._chunks[0]:
                self._chunks.popleft()


def wait_readable(pipe: socket.socket, deadline_s: float) -> bool:
    """Wait until the pipe has something to read; report False once `deadline_s` (monotonic) is over."""
    timeout_s = deadline_s - monotonic()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(max(0, timeout_s) * 1000))
