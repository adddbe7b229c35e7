"""What another holder, the peer or the user does to a socket, and what it must not do to a call that waits on it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic, process_time

import pytest

import sharedsock as ss
from sharedsock.kernel import operations
from sharedsock.testing import Actor, Actors
from sharedsock.testing.commands import Belongings
from tests.descriptors.kinds import pair_of
from tests.descriptors.sharers import is_open_for, wait_end_of
from tests.kernel.stage import Call, wait_blocked, wait_for

IS_IDLE_S = 0.2


@pytest.fixture(scope="module")
def other(registry: ss.Registry) -> Iterator[Actor]:
    """A process that shares what it is given."""
    with Actors("fork") as company:
        (actor,) = company.start("other")
        yield actor


# -- F-51: modes of the file, changed by somebody else ----------------------------------------------------------------


def clear_nonblocking(has: Belongings) -> None:
    os.set_blocking(has["socket"].fileno(), True)


def toggle_nonblocking(has: Belongings) -> None:
    for _ in range(200):
        for is_blocking in (True, False):
            os.set_blocking(has["socket"].fileno(), is_blocking)


def set_short_timeouts(has: Belongings) -> None:
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        has["socket"].setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, 1000))


def set_timeouts(has: Belongings) -> None:
    for timeout_s in (0.0, 0.001, None, 0.0):
        has["socket"].settimeout(timeout_s)


CHANGES = [clear_nonblocking, toggle_nonblocking, set_short_timeouts, set_timeouts]


@pytest.mark.fault("F-51", "I4")
@pytest.mark.parametrize("change", CHANGES)
def test_what_another_holder_does_to_the_modes_changes_no_call_here(
    change: Callable[[Belongings], None], other: Actor
) -> None:
    with pair_of("tcp4") as pair:
        other.do("take", pair.local.share(other.pid))
        waiting = Call(pair.local.recv, 16)
        wait_for(lambda: bool(pair.local.pending_operations()), "the receive to wait")
        other.do("call_with", change)
        assert [operation.kind for operation in pair.local.pending_operations()] == ["recv"]
        pair.peer.sendall(b"in time")
        assert waiting.outcome() == b"in time"
        pair.local.settimeout(0)
        with pytest.raises(BlockingIOError):
            pair.local.recv(1)
        pair.local.settimeout(0.05)
        began_s = monotonic()
        with pytest.raises(TimeoutError):
            pair.local.recv(1)
        assert monotonic() - began_s >= 0.049
        other.close()


@pytest.mark.fault("F-51", "I4")
@pytest.mark.parametrize("change", [clear_nonblocking, toggle_nonblocking, set_timeouts])
def test_a_listener_whose_file_was_made_blocking_is_still_ended_by_a_close(
    change: Callable[[Belongings], None], other: Actor
) -> None:
    """accept(2) has no flag for one call: the mode is put right before each try."""
    with ss.create_server(("127.0.0.1", 0)) as listener:
        other.do("take", listener.share(other.pid))
        waiting = Call(listener.accept)
        wait_for(lambda: bool(listener.pending_operations()), "the accept to wait")
        other.do("call_with", change)
        with socket.create_connection(listener.getsockname()):
            waiting.outcome()[0].close()
        waiting = Call(listener.accept)
        wait_blocked(waiting.thread, listener.pending_operations)
        listener.close()
        assert waiting.error(ss.OperationAborted).winerror == 10004
        other.close()


@pytest.mark.fault("F-51", "I4")
def test_the_first_accept_on_a_file_that_was_made_blocking_is_ended_by_a_close() -> None:
    """It tries before it waits; in a blocking accept(2) no close would reach it."""
    with ss.create_server(("127.0.0.1", 0)) as listener:
        os.set_blocking(listener.fileno(), True)
        waiting = Call(listener.accept)
        wait_for(lambda: not os.get_blocking(listener.fileno()), "the mode to be put right")
        wait_blocked(waiting.thread, listener.pending_operations)
        listener.close()
        assert waiting.error(ss.OperationAborted).winerror == 10004


@pytest.mark.fault("F-51", "I4")
def test_a_connect_on_a_file_that_was_made_blocking_is_ended_by_a_close(tmp_path: Path) -> None:
    """A full backlog of a Unix listener keeps a blocking connect(2) for ever."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "door"))
        listener.listen(0)
        first.connect(str(tmp_path / "door"))
        shared = ss.SharedSocket(socket.AF_UNIX)
        os.set_blocking(shared.fileno(), True)
        waiting = Call(shared.connect, str(tmp_path / "door"))
        wait_blocked(waiting.thread, shared.pending_operations)
        shared.close()
        assert waiting.error(ss.OperationAborted).winerror == 10004


# -- F-52: events that are no data ------------------------------------------------------------------------------------


def _reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


EVENTS: dict[str, tuple[Callable[[socket.socket], object], type[BaseException] | bytes | None]] = {
    "a FIN": (lambda peer: peer.shutdown(socket.SHUT_WR), b""),
    "a hang-up": (lambda peer: peer.close(), b""),
    "a reset": (_reset, ConnectionResetError),
    "urgent data": (lambda peer: peer.send(b"!", socket.MSG_OOB), None),
}


@pytest.mark.fault("F-52", "I7")
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("is_conversation", [False, True], ids=["once", "in a conversation"])
def test_an_event_is_told_once_and_nothing_spins(event: str, is_conversation: bool) -> None:
    cause, expected = EVENTS[event]
    with pair_of("tcp4") as pair:
        for _ in range(3 if is_conversation else 0):
            saying = Call(pair.local.recv, 16)
            wait_for(lambda: bool(pair.local.pending_operations()), "the receive to wait")
            pair.peer.sendall(b"x")
            saying.outcome()
        waiting = Call(pair.local.recv, 16)
        wait_for(lambda: bool(pair.local.pending_operations()), "the receive to wait")
        cause(pair.peer)
        if expected is None:
            busy_s = process_time()
            assert not Event().wait(IS_IDLE_S)
            assert process_time() - busy_s < 0.5 * IS_IDLE_S
            assert pair.local.recv(1, socket.MSG_OOB) == b"!"
            with pytest.raises(OSError):  # it is there or not: nobody waits for it
                pair.local.recv(1, socket.MSG_OOB)
            pair.peer.sendall(b"in band")
            assert waiting.outcome() == b"in band"
        elif isinstance(expected, bytes):
            assert waiting.outcome() == expected
        else:
            waiting.error(expected)
            with pytest.raises(ConnectionResetError):  # SHUT-14: a reset is one for every reader
                pair.local.recv(1)


# -- F-54: datagrams --------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-54")
@pytest.mark.parametrize("kind", ["udp4", "udp6", "unix-dgram"])
@pytest.mark.parametrize("must_wait", [False, True], ids=["at once", "after a wait"])
def test_a_datagram_that_does_not_fit_says_so_and_an_empty_one_is_no_end(kind: str, must_wait: bool) -> None:
    with pair_of(kind) as pair:
        if must_wait:
            operations.note_streak(pair.local._descriptor.kernel, True)
        for datagram in (b"long datagram", b"", b"next", b"long datagram", b"last"):
            pair.peer.send(datagram)
        data, _, flags, _ = pair.local.recvmsg(4)
        assert (data, flags & socket.MSG_TRUNC) == (b"long", socket.MSG_TRUNC)
        data, _, flags, _ = pair.local.recvmsg(4)
        assert (data, flags & socket.MSG_TRUNC) == (b"", 0), "an empty datagram"
        assert pair.local.recv(4) == b"next"
        buffer = bytearray(4)
        assert pair.local.recv_into(buffer, 0, socket.MSG_TRUNC) == len(b"long datagram"), "as recv(2): its real length"
        assert buffer == b"long"
        assert pair.local.recv(16) == b"last"


# -- F-91, F-93: programs and children beside us ----------------------------------------------------------------------


@pytest.mark.fault("F-91", "I3")
def test_a_long_lived_program_inherits_nothing_although_nothing_is_closed_for_it(registry: ss.Registry) -> None:
    """Popen(close_fds=False): every number of ours is close-on-exec."""
    with pair_of("tcp4") as pair:
        pair.local.dup().close()
        waiting = Call(pair.local.recv, 1)
        wait_for(lambda: bool(pair.local.pending_operations()), "a wait set to be there")
        pipe = subprocess.PIPE
        with subprocess.Popen(["/bin/cat"], stdin=pipe, stdout=pipe, close_fds=False) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(b"executed\n")
            program.stdin.flush()
            assert program.stdout.readline() == b"executed\n"
            files = [os.readlink(file) for file in Path(f"/proc/{program.pid}/fd").iterdir() if int(file.name) > 2]
            inode = os.readlink(f"/proc/self/fd/{pair.local.fileno()}")
            assert inode not in files
            assert not [file for file in files if "eventfd" in file or "eventpoll" in file or "sharedsock" in file]
            assert pair.local.references() == 1
            assert is_open_for(pair.peer)
            pair.local.close()
            waiting.error(ss.OperationAborted)
            wait_end_of(pair.peer)
            program.stdin.close()


@pytest.mark.fault("F-91", "F-93", "I2")
def test_a_number_passed_to_a_program_is_the_kernel_s_and_counted_only_if_lent(registry: ss.Registry) -> None:
    """pass_fds makes a reference nobody has told us of: the peer sees the end when the program has ended too."""
    with pair_of("tcp4") as pair:
        pair.local.set_inheritable(True)
        with subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[pair.local.fileno()]
        ) as program:
            pair.local.lend(program.pid)
            assert pair.local.references() == 2
            pair.local.close()
            assert is_open_for(pair.peer)
            assert program.stdin is not None
            program.stdin.close()
        wait_end_of(pair.peer)


@pytest.mark.fault("F-93", "F-95", "I2", "I3")
@pytest.mark.parametrize("last_words", ["os._exit", "SIGKILL"])
def test_a_daemon_s_double_fork_takes_nothing_with_it(last_words: str, registry: ss.Registry) -> None:
    """Nor does its end touch the parent's count, or the connection."""
    with pair_of("tcp4") as pair:
        pair.local.dup().close()
        hearing, telling = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                number = pair.local.fileno()
                os.write(telling, b"%d" % number)
                if last_words == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        os.waitpid(child, 0)
        os.close(telling)
        assert os.read(hearing, 16) == b"-1", "the daemon's copy is closed"
        assert os.read(hearing, 1) == b"", "the daemon has ended"
        os.close(hearing)
        assert pair.local.references() == 1
        pair.local.sendall(b"still here")
        assert pair.peer.recv(16) == b"still here"
        pair.local.close()
        wait_end_of(pair.peer)


# -- F-103: clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("F-103")
@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_jump_of_the_wall_clock_changes_no_budget(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wait, of an operation, of a close that lingers."""
    import time

    real = time.time
    jumping: Callable[[], float] = lambda: real() + jump_s * (int(real() * 1e3) % 2)  # noqa: E731  # back and forth
    for module in (time, operations):
        monkeypatch.setattr(module, "time", jumping)
    with pair_of("tcp4", send_buffer=4096, receive_buffer=4096) as pair:
        pair.local.settimeout(0.1)
        for wait in (lambda: pair.local.recv(1), lambda: pair.local.begin_recv(1).result(0.1)):
            began_s = monotonic()
            with pytest.raises(TimeoutError):
                wait()
            assert 0.098 <= monotonic() - began_s < 5
        with pytest.raises(TimeoutError):
            pair.local.sendall(bytes(1 << 22))
        pair.local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
        began_s = monotonic()
        pair.local.close()
        assert 0.9 <= monotonic() - began_s < 5
