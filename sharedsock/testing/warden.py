"""The warden of a run: a process beside it that sees it hang or die, and leaves nothing of it behind.

    hang    a test is over its time, or for so long nobody has reported progress: print the merged page (see `page`),
            interrupt the controller, and end by force what has not ended END_S later
    death   the controller is gone without a word: every process of the run is killed, its directory removed
            a worker is gone: what it had started, and only that, is killed
    end     the controller says so: the warden goes

It is a process and not a thread: it works while every interpreter of the run is stuck, and no process has one thread
more for it. Nobody polls: processes tell it by datagram what they begin and end (a few microseconds per test), and it
sleeps until the next deadline. Deaths are seen through pidfds. It is nobody's child, and imports neither pytest nor
the package's faces. Its messages are JSON from processes of this user: nobody else can enter the directory.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sharedsock.testing.runs import Run, current_run, start_ticks

__all__ = ["Reporter", "end_processes", "is_watched", "main", "send", "start_warden"]

END_S: Final = 5.0
_MOST: Final = 8192
_PATIENCE_S: Final = 0.2
_START_S: Final = 30.0
# As the registry starts itself: the package's faces are not needed here, and importing them takes most of the start.
_CODE: Final = (
    "import sys, types\n"
    "for name, path in (('sharedsock', sys.argv.pop(1)), ('sharedsock.testing', sys.argv.pop(1))):\n"
    "    package = types.ModuleType(name); package.__path__ = [path]; sys.modules[name] = package\n"
    "from sharedsock.testing.warden import main\n"
    "main()\n"
)


def start_warden(run: Run, *, hang_timeout_s: float = 0.0, terminal: int | None = None) -> None:
    """See to it that a run has a warden. It is started at most once; whoever binds its address first does that.

    Args:
        hang_timeout_s: seconds without progress after which it ends the run; 0: it only waits for deaths.
        terminal: the number of an open file to print the page on.
    """
    from sharedsock.testing.frames import plain_socket

    if start_ticks(run.controller) is None:  # no /proc: nobody could tell a dead run from a living one
        return None
    run.make_directory()
    address = os.path.join(run.directory, "w")
    # AF_UNIX, and of the plain kind also where a test has replaced socket.socket.
    number = plain_socket(_datagram_number())
    with number:
        try:
            number.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _is_answered(address):
                return
            with suppress(FileNotFoundError):  # whoever had bound it died before the warden had it
                os.unlink(address)
            return start_warden(run, hang_timeout_s=hang_timeout_s, terminal=terminal)
        shown = number.fileno() if terminal is None else terminal
        arguments = [str(Path(__file__).parents[1]), str(Path(__file__).parent), run.directory]
        arguments += [str(number.fileno()), str(shown), repr(hang_timeout_s)]
        # The shell forks it and is gone: it is nobody's child, so nobody has to wait for it.
        command = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-S", "-E", "-P", "-c", _CODE, *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            pass_fds={number.fileno(), shown},
            start_new_session=True,
        ):
            pass
    return None


def _datagram_number() -> int:
    import _socket

    return _socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def _is_answered(address: str) -> bool:
    from sharedsock.testing.frames import plain_socket

    with plain_socket(_datagram_number()) as asking:
        try:
            asking.connect(address)
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:
            return True  # a run that is just ending
    return True


def is_watched(run: Run) -> bool:
    """Whether the run's warden lives, be it where its processes cannot be seen, in another container."""
    address = os.path.join(run.directory, "w")
    return os.path.exists(address) and _is_answered(address)


class Reporter:
    """This process's way to the warden of its run. A warden that is gone, or slow, is no error and holds up nobody."""

    def __init__(self, run: Run) -> None:
        from sharedsock.testing.frames import plain_socket

        self._address = os.path.join(run.directory, "w")
        self._socket = plain_socket(_datagram_number())

    def tell(self, what: str, **details: Any) -> None:
        """Send one message: "hello", "begin", "end", "beat", "bye"."""
        message = {"what": what, "pid": os.getpid(), "at": time.monotonic(), **details}
        # The kernel queues few datagrams. A beginning or a beat that finds no room is dropped, the next one says as
        # much; an end that was lost would look like a hang.
        self._socket.settimeout(_PATIENCE_S if what in ("hello", "end", "bye") else 0)
        with suppress(OSError):
            self._socket.sendto(json.dumps(message).encode()[:_MOST], self._address)

    def fileno(self) -> int:
        """Return the number of the socket, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


# -- the process --------------------------------------------------------------------------------------------------


class _Warden:
    """The process's state: who is in the run, what each is at, and until when."""

    def __init__(self, run: Run, listener: socket.socket, terminal: int, hang_timeout_s: float) -> None:
        self._run = run
        self._listener = listener
        self._terminal = terminal
        self._hang_timeout_s = hang_timeout_s
        self._last_move_s = time.monotonic()
        self._has_begun = False  # workers start before anything moves, on a busy machine for seconds
        self._under_way: dict[int, tuple[float, float, str]] = {}  # pid: since, until, test
        self._workers: dict[int, tuple[int, str]] = {}  # pidfd: pid, name
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._controller = _pidfd(run.controller)
        if self._controller is not None:
            self._poll.register(self._controller, select.POLLIN)

    def watch(self) -> None:
        """Watch until the run has ended, in whichever way."""
        while True:
            left_s = self._deadline_s() - time.monotonic()
            events = [number for number, _ in self._poll.poll(max(0.0, left_s) * 1000 if left_s < 1e6 else None)]
            if self._listener.fileno() in events and self._listen():
                return
            if not self._run.is_alive():
                end_processes(self._run)
                self._run.remove_directory()
                return
            for number in set(events) & self._workers.keys():
                pid, name = self._workers.pop(number)
                self._poll.unregister(number)
                os.close(number)
                self._under_way.pop(pid, None)
                end_what_belonged_to(self._run, pid, name)
            if time.monotonic() >= self._deadline_s():
                self._end_hang()
                return

    def _listen(self) -> bool:
        """Take one message; report whether it is the last."""
        message = json.loads(self._listener.recv(_MOST))
        pid, at_s = int(message["pid"]), float(message["at"])
        self._last_move_s = max(self._last_move_s, at_s)
        self._has_begun = self._has_begun or message["what"] in ("begin", "beat")
        match message["what"]:
            case "hello":
                if message.get("worker") and (number := _pidfd(pid)) is not None:
                    if not self._run.has(pid):  # it has ended already, and the number may be somebody else's
                        os.close(number)
                        return False
                    self._workers[number] = pid, str(message["worker"])
                    self._poll.register(number, select.POLLIN)
            case "begin":
                timeout_s = float(message["timeout_s"])
                if timeout_s:
                    self._under_way[pid] = at_s, at_s + timeout_s, str(message["test"])
            case "end":
                self._under_way.pop(pid, None)
            case "bye" if pid == self._run.controller:
                return True
            case "bye":  # an orderly end: what it left running on purpose is not ours to end
                self._under_way.pop(pid, None)
                for number in [number for number, worker in self._workers.items() if worker[0] == pid]:
                    self._poll.unregister(number)
                    os.close(number)
                    del self._workers[number]
        return False

    def _deadline_s(self) -> float:
        if self._under_way:
            return min(until_s for _, until_s, _ in self._under_way.values())
        if not self._hang_timeout_s:
            return float("inf")
        return self._last_move_s + (self._hang_timeout_s if self._has_begun else max(_START_S, self._hang_timeout_s))

    def _end_hang(self) -> None:
        """Print the page, end the run."""
        from sharedsock.testing.page import write_page

        now_s = time.monotonic()
        over = [row for row in self._under_way.items() if row[1][1] <= now_s]
        if over:
            pid, (since_s, _, test) = over[0]
            reason = f"{test} has been running for {now_s - since_s:.1f} s in process {pid}"
        else:
            reason = f"nothing has moved for {now_s - self._last_move_s:.1f} s"
        page = write_page(self._run, reason)
        with suppress(OSError):  # the terminal has gone
            rest = memoryview(page.encode(errors="replace"))
            while rest:
                rest = rest[os.write(self._terminal, rest) :]
        # pytest takes an interrupt as an end: it tears down, reports, and exits with a code that is not zero. Workers
        # that hang would be waited for, so they go first.
        for pid, _ in self._workers.values():
            send(pid, signal.SIGKILL, self._run.has)
        send(self._run.controller, signal.SIGINT, self._run.has)
        if self._controller is not None:
            ended = select.poll()
            ended.register(self._controller, select.POLLIN)
            ended.poll(END_S * 1000)
        end_processes(self._run)
        self._run.remove_directory()


def _pidfd(pid: int) -> int | None:
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def send(pid: int, number: signal.Signals, is_meant: Callable[[int], bool]) -> None:
    """Send a signal to a process if it is the one that is meant: its number may be a stranger's by now.

    A pidfd stays with the process it was opened on, so what is asked after it was opened holds when the signal comes.
    """
    pidfd = _pidfd(pid)
    try:
        if is_meant(pid):
            with suppress(OSError):
                if pidfd is not None:
                    signal.pidfd_send_signal(pidfd, number)
                else:  # Linux before 5.3
                    os.kill(pid, number)
    finally:
        if pidfd is not None:
            os.close(pidfd)


def end_processes(run: Run, find: Callable[[], Iterable[int]] | None = None) -> None:
    """SIGKILL every process of a run, until there is none: who is being started meanwhile is seen next.

    Args:
        find: those that are meant, if not all.
    """
    for _ in range(20):
        found = [pid for pid in (find or run.processes)() if pid != os.getpid()]
        if not found:
            return
        for pid in found:
            send(pid, signal.SIGKILL, run.has)
        select.poll().poll(5)


def end_what_belonged_to(run: Run, worker: int, name: str) -> None:
    """SIGKILL what a dead worker had started: programs with its name in their environment, forks with its file open."""
    stacks = os.path.join(run.directory, f"stacks-{worker}")
    marker = f"PYTEST_XDIST_WORKER={name}".encode()

    def was_started_by_it(pid: int) -> bool:
        with suppress(OSError):
            with open(f"/proc/{pid}/environ", "rb") as file:
                if marker in file.read().split(b"\0"):
                    return run.has(pid)
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{number}") == stacks:
                        return True
        return False

    for pid in run.processes():
        if pid != run.controller:
            send(pid, signal.SIGKILL, was_started_by_it)
    with suppress(OSError):
        os.unlink(stacks)


def main() -> None:
    """Be the warden. Arguments: the run's directory, the listener's number, the terminal's, the hang timeout."""
    directory, listener, terminal, hang_timeout_s = sys.argv[1:5]
    os.environ["SHAREDSOCK_RUN"] = directory
    from sharedsock.testing.frames import plain_socket

    run = current_run()
    assert run is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with plain_socket(int(listener)) as listening:
        _Warden(run, listening, int(terminal), float(hang_timeout_s)).watch()
