"""The other processes of a race: the peer at the far end, and a sharer that goes on.

Each is a forked process with a control pipe. A sharer holds the very socket that is closed again and again elsewhere,
sits in the same call on it all the time, and reports what it got; any trouble it meets is a failure of the race.
"""

from __future__ import annotations

import errno
import multiprocessing
import random
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import sharedsock as ss
from tests.campaigns.racing import HANG_S

__all__ = [
    "RECORD",
    "Partner",
    "block_of",
    "connecting_clients",
    "drinking",
    "feeding",
    "holding_attempts",
    "partner",
    "record_of",
    "serve",
    "settle",
    "sharing_accepts",
    "sharing_receives",
    "taking_clients",
    "wait_end_of",
]

RECORD: Final = struct.Struct(">QQ")
_PACE_S: Final = 0.0003
_FORK: Final = multiprocessing.get_context("fork")


def record_of(number: int) -> bytes:
    """Return 16 bytes that can be told from any others."""
    return RECORD.pack(number, ~number & 0xFFFFFFFFFFFFFFFF)


def block_of(number: int, size: int) -> bytes:
    """Return a block in which every 8 bytes say which block it is, and where in it."""
    return b"".join(struct.pack(">II", number, place) for place in range(size // 8))


class Partner:
    """A process beside the race, as the race sees it."""

    def __init__(self, process: Any, control: Connection) -> None:
        self._process = process
        self.control = control
        self.pid: int = process.pid

    def ask(self, *words: Any, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """Tell it something and wait for the answer, doing something all the while."""
        self.control.send(words)
        return self.hear(meanwhile)

    def hear(self, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """Wait for its next word.

        Raises:
            AssertionError: it has failed, or says nothing.
        """
        for _ in range(int(HANG_S / 0.002)):
            if self.control.poll(0.002):
                word, value = self.control.recv()
                assert word == "ok", value
                return value
            meanwhile()
        raise AssertionError("a partner does not answer")

    def end(self) -> None:
        """Wait for its end; kill it if it hangs."""
        self.control.close()
        self._process.join(HANG_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextmanager
def partner(work: Callable[..., object], *arguments: Any) -> Iterator[Partner]:
    """Run `work(control, *arguments)` in a forked process, which answers `ask` with what it yields."""
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_run, args=(work, theirs, ours, arguments), name=work.__name__)
    process.start()
    theirs.close()
    made = Partner(process, ours)
    try:
        yield made
    finally:
        made.end()


def _run(work: Callable[..., object], control: Connection, ours: Connection, arguments: tuple[Any, ...]) -> None:
    ours.close()
    try:
        work(control, *arguments)
    except EOFError:  # the race has failed and left
        pass
    except BaseException as error:
        control.send(("failed", f"{work.__name__}: {error!r}"))


def _say(control: Connection, value: Any = None) -> None:
    control.send(("ok", value))


def wait_end_of(peer: socket.socket) -> None:
    """Wait until a stream's peer sees the end, or a datagram's that nobody receives."""
    peer.settimeout(HANG_S)
    if peer.type == socket.SOCK_STREAM:
        try:
            assert peer.recv(1) == b"", "more has come than was sent"
        except ConnectionResetError:
            pass
        return
    while True:
        try:
            peer.send(b"anybody?")
        except ConnectionError:
            return


# -- peers ------------------------------------------------------------------------------------------------------------


def feeding(control: Connection, peer: socket.socket, seed: int) -> None:
    """Send records at random moments until asked; say how many, then wait for the end."""
    dice = random.Random(seed)
    peer.settimeout(HANG_S)
    sent = 0
    while not control.poll(2 * _PACE_S * dice.random()):
        assert peer.send(record_of(sent)) == RECORD.size
        sent += 1
    control.recv()
    _say(control, sent)
    control.recv()
    wait_end_of(peer)
    _say(control)


def drinking(control: Connection, peer: socket.socket, path: Path, most: int, seed: int) -> None:
    """Receive at random moments into a file, at most so much at once; asked, send a record; at the end say so.

    Datagrams have no end: an empty one is it.
    """
    dice = random.Random(seed)
    is_stream = peer.type == socket.SOCK_STREAM
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(peer, select.POLLIN)
    pace_s = _PACE_S
    with path.open("wb") as file:
        while True:
            ready = [number for number, _ in poll.poll(HANG_S * 1000)]
            assert ready, "neither bytes nor a word"
            if control.fileno() in ready:
                control.recv()
                peer.send(record_of(0))
                _say(control)
                pace_s = 0.0
            if peer.fileno() in ready:
                data = peer.recv(dice.randrange(1, most) if is_stream and pace_s else 1 << 16)
                if not data:
                    break
                file.write(data)
                control.poll(2 * pace_s * dice.random())
    if not is_stream:
        wait_end_of(peer)
    _say(control)


def connecting_clients(control: Connection, address: Any, family: int, seed: int) -> None:
    """Connect at random moments, each client with a record of its own, which must come back once, and then the end."""
    dice = random.Random(seed)
    waiting: deque[tuple[int, socket.socket]] = deque()
    made = 0
    while not control.poll(2 * _PACE_S * dice.random()):
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(HANG_S)
        client.connect(address)
        client.send(record_of(made))
        waiting.append((made, client))
        made += 1
        if len(waiting) > 24:
            _check_served(*waiting.popleft())
    control.recv()
    _say(control, made)
    while waiting:
        _check_served(*waiting.popleft())
    _say(control)


def _check_served(number: int, client: socket.socket) -> None:
    with client:
        echo = b""
        while piece := client.recv(64):
            echo += piece
        assert echo == record_of(number), f"client {number} was answered {echo!r}"


def serve(connection: socket.socket) -> int:
    """Give a client its record back; return its number."""
    with connection:
        connection.settimeout(HANG_S)
        data = connection.recv(RECORD.size, socket.MSG_WAITALL)
        connection.sendall(data)
        number: int = RECORD.unpack(data)[0]
        assert data == record_of(number)
        return number


def taking_clients(control: Connection, door: socket.socket, seed: int) -> None:
    """Accept at random moments and read each client to its end; asked, say what all of them sent."""
    dice = random.Random(seed)
    door.settimeout(0)
    records: list[bytes] = []
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(door, select.POLLIN)
    while True:
        ready = [number for number, _ in poll.poll(HANG_S * 1000)]
        if door.fileno() in ready:
            client, _ = door.accept()
            with client:
                client.settimeout(HANG_S)
                while data := client.recv(64):
                    records.append(data)
            control.poll(2 * _PACE_S * dice.random())
        elif ready:
            control.recv()
            break
        assert ready, "neither a client nor a word"
    _say(control, records)


# -- sharers ----------------------------------------------------------------------------------------------------------


def sharing_receives(control: Connection, shared: ss.SharedSocket) -> None:
    """Receive records in another thread all along; told how many are to be seen at least, close and say which."""
    _go_on(control, shared, lambda: RECORD.unpack(shared.recv(RECORD.size))[0])


def sharing_accepts(control: Connection, shared: ss.SharedSocket) -> None:
    """Accept clients in another thread all along, and serve them; told so, close and say which."""
    _go_on(control, shared, lambda: serve(shared.accept()[0]))


def _go_on(control: Connection, shared: ss.SharedSocket, take: Callable[[], int]) -> None:
    taken: list[int] = []
    trouble: list[str] = []
    news = threading.Condition()
    ends = threading.Event()

    def work() -> None:
        try:
            while True:
                one = take()
                with news:
                    taken.append(one)
                    news.notify()
        except BaseException as error:
            if isinstance(error, (ss.OperationAborted, ss.NotASocket)) and ends.is_set():  # in a call, or between two
                return
            with news:
                trouble.append(repr(error))
                news.notify()

    thread = threading.Thread(target=work, name="sharer")
    thread.start()
    try:
        (least,) = control.recv()
        with news:
            seen = news.wait_for(lambda: len(taken) >= least or trouble, HANG_S)
    finally:
        ends.set()
        shared.close()
        thread.join(HANG_S)
    assert seen, f"the sharer has got {len(taken)} of {least}"
    assert not thread.is_alive(), "the sharer's own close does not end its call"
    assert not trouble, f"a close elsewhere was felt here: {trouble[0]}"
    _say(control, taken)


def holding_attempts(control: Connection) -> None:
    """Redeem tickets for sockets whose connect is raced against a close, and see their attempts through (`settle`)."""
    held: list[ss.SharedSocket] = []
    while True:
        word, *rest = control.recv()
        if word == "take":
            held.append(ss.fromshare(rest[0]))
        elif word == "settle":
            settle(held.pop(), *rest)
        else:
            break
        _say(control)
    _say(control)


def settle(shared: ss.SharedSocket, address: Any, number: int) -> None:
    """Make sure a socket is connected, whoever began to, and send its record through it; then close it."""
    with shared:
        shared.settimeout(HANG_S)
        try:
            shared.connect(address)
        except OSError as error:
            if error.errno != errno.EISCONN:  # the attempt went on and has succeeded
                raise
        shared.sendall(record_of(number))
