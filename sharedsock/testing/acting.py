"""Inside an actor's process: the main thread serves the control pipe, named threads carry out commands.

The main thread never touches a socket of the actor, so it answers while all the others are blocked or held; it
alone reads the pipe, and end-of-file there, the controller's death, ends the process at once. Where the platform
can, the kernel does so as well (PR_SET_PDEATHSIG), which reaches a stopped actor too.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from time import monotonic
from typing import Any, Final

from sharedsock.descriptors import service, table
from sharedsock.kernel import operations
from sharedsock.model import trace
from sharedsock.testing.commands import COMMANDS, Belongings
from sharedsock.testing.faults import ActorProbe
from sharedsock.testing.frames import Backlog, Reader, pipe_pair, plain_socket
from sharedsock.testing.outcomes import Outcome, from_error
from sharedsock.testing.runs import current_run
from sharedsock.testing.stacks import enroll

__all__ = ["Billing", "serve", "serve_inherited"]

_PR_SET_PDEATHSIG: Final = 1
_EXIT_ORPHANED: Final = 70


@dataclass(frozen=True, slots=True)
class Billing:
    """What an actor is told before it starts.

    Attributes:
        environment: variables to set, None to remove; a fork server's environment may be an old one.
        start_method: how we were started.
        parent: the process that must be our parent, if the kernel is to end us with it; None: end-of-file alone does.
        is_watched: whether every probe point is reported from the start; else from the first fault that is armed on.
    """

    name: str
    environment: Mapping[str, str | None]
    start_method: str
    parent: int | None
    is_watched: bool = True


class _Worker(threading.Thread):
    """One named thread: its commands run one after the other, in the order in which they came."""

    def __init__(self, name: str, actor: _Actor) -> None:
        super().__init__(name=name, daemon=True)
        self._actor = actor
        self.commands: queue.SimpleQueue[tuple[int, str, bytes]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            number, code, body = self.commands.get()
            began_s = monotonic()
            try:
                arguments, keywords = pickle.loads(body)  # from our own controller
                outcome = COMMANDS[code](self._actor.has, *arguments, **keywords)
            except BaseException as error:  # every failure, Ctrl-C too, is the command's outcome; the thread lives on
                outcome = from_error(error)
            self._actor.finish(number, outcome, began_s, monotonic())
            # Nothing of the last command may be kept alive while we wait for the next one.
            del outcome, body
            arguments = keywords = None


class _Actor:
    """The process's one actor: belongings, threads, probe."""

    def __init__(self, pipe: socket.socket, billing: Billing) -> None:
        self._pipe = pipe
        self._awake, self._wake = pipe_pair()
        self._backlog = Backlog(pipe, self._wake)
        self._workers: dict[str, _Worker] = {}
        self.has = Belongings(billing.name, self._report)
        self.probe = ActorProbe(self._backlog.post)
        if billing.is_watched:
            trace.hook = self.probe
        # A child of ours must not hold our end: the controller would wait for two deaths to see one.
        os.register_at_fork(after_in_child=self._forget_pipe)

    def _forget_pipe(self) -> None:
        for end in (self._pipe, self._awake, self._wake):
            end.close()

    def _report(self, kind: str, value: Any) -> None:
        self._backlog.post(("report", threading.current_thread().name, kind, monotonic(), value))

    def finish(self, number: int, outcome: Outcome, began_s: float, ended_s: float) -> None:
        """Send what a command came to; a value that cannot travel is itself an outcome."""
        try:
            self._backlog.post(("done", number, outcome, began_s, ended_s))
        except Exception as error:  # pickling runs the value's own code, which may raise anything
            self._backlog.post(("done", number, from_error(error), began_s, ended_s))

    def run(self) -> bool:
        """Serve the pipe until "exit"; report whether the sockets are to be closed. Never returns an orphan."""
        reader = Reader(self._pipe)
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        self._backlog.post(("ready", os.getpid()))
        has_rest = False
        while True:
            poll.register(self._pipe, select.POLLIN | (select.POLLOUT if has_rest else 0))
            for number, _ in poll.poll():
                if number == self._awake.fileno():
                    self._awake.recv(4096)
            has_rest = self._backlog.flush()
            for frame in reader.take():
                if frame[0] == "exit":
                    return bool(frame[1])
                self._obey(frame)
            if reader.is_at_end:
                os._exit(_EXIT_ORPHANED)

    def _obey(self, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("do", number, thread, code, body):
                worker = self._workers.get(thread)
                if worker is None:
                    worker = self._workers[thread] = _Worker(thread, self)
                    worker.start()
                    self._backlog.post(("thread", thread, worker.native_id))
                worker.commands.put((number, code, body))
            case (question, number, *details):
                self._backlog.post(("answer", number, self._answer(question, details)))

    def _answer(self, question: str, details: list[Any]) -> Any:
        match question, details:
            case "arm", [fault_number, fault]:
                trace.hook = self.probe
                return self.probe.arm(fault_number, fault)
            case "disarm", [fault_number]:
                return self.probe.disarm(fault_number)
            case "waits", [thread]:
                return self._waits(thread)
            case "stacks", []:
                return _stacks()
        raise ValueError(f"unknown question {question!r}")

    def _waits(self, thread: str) -> tuple[str, ...]:
        """Return the kinds of operation for which a thread is registered as waiting, on any descriptor of ours."""
        worker = self._workers.get(thread)
        if worker is None:
            return ()
        kernels = [descriptor.kernel for descriptor in table.open_descriptors()]
        return tuple(
            operation.kind
            for kernel in kernels
            for operation in operations.pending(kernel) + service.pending(kernel)
            if operation.thread_id == worker.native_id
        )


def _stacks() -> str:
    """Return the stack of every thread of this process, as one text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    pages = []
    for ident, frame in sys._current_frames().items():
        pages.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)[-6:])}")
    return "\n".join(pages)


def _die_with_parent(billing: Billing) -> None:
    """Have the kernel kill us when the thread that started us ends, and see whether it has ended already."""
    if billing.start_method == "forkserver":
        # The fork server is our parent. It ends once nobody has the far end of its pipe, of which each of its children
        # has got a copy: without ours it ends with the controller, and we with it.
        server: Any = forkserver._forkserver  # no public name
        if server._forkserver_alive_fd is not None:
            os.close(server._forkserver_alive_fd)
            server._forkserver_alive_fd = None
    elif billing.parent is None:
        return
    import ctypes

    with suppress(OSError, AttributeError):  # no prctl here: end-of-file on the pipe does it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if billing.parent not in (None, os.getppid()):
        os._exit(_EXIT_ORPHANED)


def serve(pipe: socket.socket, billing: Billing) -> None:
    """Be the actor `billing.name` until the controller says "exit" or is gone."""
    for name, value in billing.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ctrl-C goes to the whole group; the controller decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(billing)
    threading.current_thread().name = "control"
    run = current_run()
    if run is not None and run.has_directory:
        enroll(run.directory, f"actor {billing.name}")
    actor = _Actor(pipe, billing)
    if actor.run():
        for held in actor.has.sockets.values():
            held.close()
    trace.hook = None


def serve_inherited(number: int) -> None:
    """Be the actor whose pipe has this number; its billing is the first frame. Used where multiprocessing cannot."""
    with plain_socket(number) as pipe:
        pipe.setblocking(True)
        head = pipe.recv(4, socket.MSG_WAITALL)
        body = pipe.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        serve(pipe, pickle.loads(body)[0])  # from our own controller
