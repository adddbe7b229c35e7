"""One actor as its controller sees it: threads to give commands to, points to hold, a process to end.

Each actor is reached over a pipe of its own; each of its threads carries out one command after the other, and a
command given returns a pending result at once. The controller has no thread of its own for this: whatever waits
reads the pipe meanwhile, and one thread at a time uses an actor. `company` starts actors and ends them.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import socket
import weakref
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sharedsock.testing import choreography
from sharedsock.testing.faults import Fault, Hold, Kill, Raise
from sharedsock.testing.frames import Reader, encode, pipe_pair, wait_readable
from sharedsock.testing.launch import Running, launch
from sharedsock.testing.observation import thread_facts
from sharedsock.testing.outcomes import describe_exit
from sharedsock.testing.pending import ActorDied, ActorIdle, ActorThread, ActorTimeout, Event, Pending

if TYPE_CHECKING:
    from sharedsock.testing.observation import ThreadFacts

__all__ = ["Actor"]

_TIMEOUT_S: Final = 30.0
_END_S: Final = 10.0
_STACKS_S: Final = 1.0

# A forked child of the controller must not keep the actors alive: they end when the last copy of our end is closed.
_our_ends: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_our_ends() -> None:
    for end in tuple(_our_ends):
        end.close()


os.register_at_fork(after_in_child=_close_our_ends)


class Actor:
    """One process of a company, as its controller sees it."""

    def __init__(
        self, name: str, method: str, environment: dict[str, str | None], timeout_s: float, is_watched: bool = True
    ) -> None:
        self.name = name
        self.start_method = method
        self.timeout_s = timeout_s
        self.events: list[Event] = []
        self.heard = 0  # frames taken in
        self._numbers = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._answers: dict[int, Any] = {}
        self._barriers: dict[int, choreography.Barrier] = {}
        self._tids: dict[str, int] = {}
        self._is_ready = False
        self._pipe, theirs = pipe_pair()
        _our_ends.add(self._pipe)
        self._reader = Reader(self._pipe)
        try:
            self._process: Running = launch(name, self._pipe, theirs, method, environment, is_watched)
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Actor {self.name} pid={self.pid} {'alive' if self.is_alive else self.how_it_ended()}>"

    # commands

    def thread(self, name: str) -> ActorThread:
        """Return a thread by name; the actor starts it with its first command."""
        return ActorThread(self, name)

    def give(self, thread: str, code: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Pending:
        """Send a command to a thread; it waits there until the thread's earlier commands have ended."""
        number = self.next_number()
        pending = Pending(self, thread, code)
        # A body of its own: what fails to unpickle there fails that command, not the actor.
        body = pickle.dumps((arguments, keywords), pickle.HIGHEST_PROTOCOL)
        self._pending[number] = pending
        self._send(("do", number, thread, code, body))
        return pending

    def do(self, code: str, *arguments: Any, **keywords: Any) -> Any:
        """Have thread "main" carry out a command, and return its value.

        Raises:
            ActorRaised: the command raised.
        """
        return self.thread("main").do(code, *arguments, **keywords).value()

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call a picklable callable in the actor, and return its value."""
        return self.do("call", function, *arguments, **keywords)

    def recv(self, size: int, on: str = "socket") -> bytes:
        """Receive at most `size` bytes."""
        data: bytes = self.do("recv", size, on=on)
        return data

    def sendall(self, data: bytes, on: str = "socket") -> None:
        """Send all of it."""
        self.do("sendall", data, on=on)

    def close(self, on: str = "socket") -> None:
        """Close the actor's descriptor; its operations abort, other processes notice nothing unless it was the last."""
        self.do("close", on=on)

    def give_to(self, other: Actor, on: str = "socket") -> None:
        """Share a socket this actor holds with another actor, by a ticket for its process."""
        other.do("take", self.do("share", other.pid, on=on), on=on)

    # choreography

    def wait_until_blocked(self, thread: str, timeout_s: float | None = None) -> ThreadFacts:
        """Wait until a thread's operation waits, as the process's table and the kernel both say."""
        return choreography.wait_until_blocked(self, thread, timeout_s)

    def wait_until_asleep(self, thread: str, timeout_s: float | None = None) -> ThreadFacts:
        """Wait until the kernel shows a thread asleep in a wait of its own, on a plain socket for instance."""
        return choreography.wait_until_asleep(self, thread, timeout_s)

    def hold_at(
        self, point: str, thread: str | None = None, nth: int = 1, *, kind: str | None = None, count: int | None = 1
    ) -> choreography.Barrier:
        """Hold whoever comes by a probe point; armed when this returns.

        Args:
            nth: the first hit that is held; `count` how many from there on, None: everyone until the release.
        """
        return choreography.Barrier(self, Fault(point, Hold(0), thread, kind, nth, count))

    def kill_at(self, point: str, thread: str | None = None, nth: int = 1, *, kind: str | None = None) -> int:
        """Have the actor SIGKILL itself at a probe point; returns a number for `disarm`."""
        return self.arm(Fault(point, Kill(), thread, kind, nth))

    def raise_at(
        self,
        point: str,
        error: int | type[BaseException],
        thread: str | None = None,
        nth: int = 1,
        *,
        kind: str | None = None,
    ) -> int:
        """Have an errno or an exception raised at a probe point; returns a number for `disarm`."""
        return self.arm(Fault(point, Raise(error), thread, kind, nth))

    def arm(self, fault: Fault) -> int:
        """Arm a fault; it is in force when this returns."""
        number = self.next_number()
        self._ask("arm", number, fault)
        return number

    def arm_barrier(self, barrier: choreography.Barrier) -> None:
        """Arm a barrier under its own number."""
        self._barriers[barrier.number] = barrier
        self._ask("arm", barrier.number, barrier.fault)

    def disarm(self, number: int) -> None:
        """Take a fault back; whoever it holds goes on."""
        self._ask("disarm", number)

    def fileno(self) -> int:
        """Return the number of our end of the pipe, for select and poll; -1 once the actor has ended."""
        return self._pipe.fileno()

    def next_number(self) -> int:
        """Draw a number for a command, a fault or a barrier."""
        return next(self._numbers)

    def tid(self, thread: str) -> int:
        """Return the native id of a thread, waiting until it has started."""
        self.wait_for(lambda: thread in self._tids, f"thread {thread} to start")
        return self._tids[thread]

    def kinds_waiting(self, thread: str) -> tuple[str, ...]:
        """Return the kinds of operation for which the actor's table lists a thread as waiting."""
        kinds: tuple[str, ...] = self._ask("waits", thread)
        return kinds

    def fail_idle(self, thread: str) -> None:
        """Raise ActorIdle if all commands a thread was given have ended, as far as the actor has told."""
        if any(pending.thread == thread for pending in self._pending.values()):
            return
        last = next((one for one in reversed(self.events) if (one.thread, one.kind) == (thread, "outcome")), None)
        came = "it was given no command" if last is None else f"its last command, {last.value[0]}, {last.value[1]}"
        raise ActorIdle(f"actor {self.name}: thread {thread} waits for nothing; {came}")

    # life and death

    @property
    def is_alive(self) -> bool:
        """Whether the process has not been seen dead."""
        return self._process.status is None and not self._reader.is_at_end

    def wait_ready(self) -> None:
        """Wait until the process takes commands."""
        self.wait_for(lambda: self._is_ready, "the actor to start", 30.0)

    def kill(self) -> float:
        """SIGKILL the process, wait until it is dead and reaped; return when the signal was sent (monotonic)."""
        sent_s = monotonic()
        self._process.signal(signal.SIGKILL)
        self._end(_TIMEOUT_S)
        return sent_s

    def stop(self) -> None:
        """SIGSTOP the process; returns once every one of its threads has stopped."""
        self._process.signal(signal.SIGSTOP)
        deadline_s = monotonic() + self.timeout_s
        while any(thread_facts(self.pid, tid).state != "T" for tid in self._tids.values()):
            self.pump(monotonic() + 0.001)
            if monotonic() > deadline_s:
                raise ActorTimeout(f"actor {self.name} did not stop")

    def cont(self) -> None:
        """SIGCONT the process."""
        self._process.signal(signal.SIGCONT)

    def exit(self, close: bool = True) -> None:
        """End the process in an orderly way; a process that does not end is killed.

        Args:
            close: first close what the actor keeps; False leaves that to the interpreter's exit.

        Raises:
            ActorDied: it ended in another way; every other end is reported here.
        """
        if self._pipe.fileno() < 0:
            return
        self._send(("exit", close))
        in_time = self._end(_END_S)
        if not in_time:
            self.kill()
            raise ActorDied(f"actor {self.name} did not end within {_END_S:g} s and was killed")
        if self._process.status:
            raise ActorDied(f"actor {self.name} {self.how_it_ended()}")

    def wait_dead(self, timeout_s: float | None = None) -> str:
        """Wait until the process has ended by itself; return how."""
        if not self._end(self.timeout_s if timeout_s is None else timeout_s):
            self.fail_waiting("the process to end")
        return self.how_it_ended()

    def how_it_ended(self) -> str:
        """Say how the process ended."""
        return describe_exit(self._process.status)

    def _end(self, timeout_s: float) -> bool:
        deadline_s = monotonic() + timeout_s
        while not self._reader.is_at_end and monotonic() < deadline_s:
            self.pump(deadline_s)
        if not self._process.wait_ended(max(0.0, deadline_s - monotonic())):
            return False
        # A forked child of the actor may still have had the far end: the process is dead all the same.
        self._reader.is_at_end = True
        self._pipe.close()
        return True

    # the pipe

    def pump(self, deadline_s: float) -> None:
        """Take in what the actor has sent, waiting for the first of it until `deadline_s` (monotonic)."""
        if not self._reader.is_at_end and wait_readable(self._pipe, deadline_s):
            for frame in self._reader.take():
                self.heard += 1
                self._note(frame)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float | None = None) -> None:
        """Take in what the actor sends until a condition over it holds.

        Raises:
            ActorTimeout: it does not hold in time; carries the actor's stacks.
            ActorDied: the actor is gone, and it does not hold.
        """
        deadline_s = monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            heard = self.heard
            if condition():
                return
            if self._reader.is_at_end:
                self._process.wait_ended(_END_S)
                raise ActorDied(f"actor {self.name} {self.how_it_ended()}; waited for {what}")
            if monotonic() >= deadline_s:
                self.fail_waiting(what)
            # Race: a condition that asks `is_done` takes frames in, perhaps after it had looked at what they change.
            # Test: tests/testing/test_choreography.py
            if self.heard == heard:
                self.pump(deadline_s)

    def fail_waiting(self, what: str) -> NoReturn:
        """Raise ActorTimeout with the actor's stacks."""
        raise ActorTimeout(f"actor {self.name}: waited in vain for {what}\n{self.stacks()}")

    def stacks(self) -> str:
        """Return the stacks of the actor's threads as text, or why there are none."""
        try:
            return str(self._ask("stacks", timeout_s=_STACKS_S))
        except (ActorTimeout, ActorDied) as error:
            return f"(no stacks: {error})"

    def _ask(self, code: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        own = self.next_number()
        self._send((code, own, *arguments))
        deadline_s = monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while own not in self._answers:
            if self._reader.is_at_end:
                self._process.wait_ended(_END_S)
                raise ActorDied(f"actor {self.name} {self.how_it_ended()}; asked for {code}")
            if monotonic() >= deadline_s:
                raise ActorTimeout(f"actor {self.name} does not answer {code}")
            self.pump(deadline_s)
        return self._answers.pop(own)

    def _send(self, frame: tuple[Any, ...]) -> None:
        try:
            self._pipe.sendall(encode(frame))
        except OSError as error:
            self._process.wait_ended(_END_S)
            raise ActorDied(f"actor {self.name} {self.how_it_ended()}; told to {frame[0]}") from error

    def _note(self, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("done", number, outcome, began_s, ended_s):
                pending = self._pending.pop(number)
                pending.settle(outcome, began_s, ended_s)
                self.events.append(Event(self.name, pending.thread, "outcome", ended_s, (pending.code, outcome)))
            case ("point", thread, point, at_s, facts):
                self.events.append(Event(self.name, thread, point, at_s, facts))
            case ("report", thread, kind, at_s, value):
                self.events.append(Event(self.name, thread, kind, at_s, value))
            case ("reached", number, thread, at_s):
                self._barriers[number].reached.append((thread, at_s))
            case ("answer", number, answer):
                self._answers[number] = answer
            case ("thread", thread, tid):
                self._tids[thread] = tid
            case ("ready", _):
                self._is_ready = True
