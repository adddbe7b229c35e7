"""A machine without a machine: one socket, processes with threads, a registry. Pure, so that any order can be played.

The registry's ledger and its recovery, the lifecycle tables and the close table are the product's own; what a process
does between two system calls is told again in `threads`, step by step as descriptors/closing.py, descriptors/sharing.py
and kernel/operations.py do it. Everything that happens is an *action* with a name: a step of a thread, the registry
serving a process's oldest request, its noticing a death, a process announcing itself to a new registry. Whoever chooses
the order is the scheduler (`explorer`).

Checked while it runs: I1 (nothing that was taken is lost), I2 (who uses the socket is counted), I3 and I4 (nobody ends
or resets what another still uses), I5 (a system call meets the socket, or the dead file), I8, and the lifecycles. When
nothing can happen any more: I2, I3, I6 and I7 (nobody waits for ever).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sharedsock.model.errors import RegistryGone
from sharedsock.model.identity import DescriptorFacts, DescriptorId, HolderId, ProcessId, SocketFacts, SocketId
from sharedsock.model.lifecycle import DESCRIPTOR, DescriptorEvent, DescriptorState, advance
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.page import CommonState
from sharedsock.registry.records import Answer, ReleaseCustody

__all__ = ["Handle", "Kernel", "Process", "Step", "Thread", "Violation", "World"]

SOCKET: Final = SocketFacts(SocketId(1), 2, 1, 6)
_OPEN: Final = DescriptorState.OPEN
_MOST_ACTIONS: Final = 300


class Violation(AssertionError):
    """An invariant does not hold; the message begins with its number."""


class Step(NamedTuple):
    """What a thread does next, once it is `ready`."""

    name: str
    ready: Callable[[], bool] = lambda: True


Thread = Generator[Step, None, None]


class Kernel:
    """The underlying socket: who has a file on it, what its peer has sent, how it has ended."""

    def __init__(self) -> None:
        self.files: set[tuple[str, object]] = set()
        self.unread: list[int] = []
        self.sent = 0
        self.taken: list[int] = []
        self.has_fin = False
        self.ended = ""

    def open(self, owner: str, name: object) -> None:
        self.files.add((owner, name))

    def close(self, owner: str, name: object) -> None:
        self.files.discard((owner, name))
        if not self.files and not self.ended:
            self.ended = "closed"

    def close_all(self, owner: str) -> None:
        for name in [name for who, name in self.files if who == owner]:
            self.close(owner, name)


@dataclass(eq=False)
class Handle:
    """One descriptor, with its number in the process's table of files."""

    number: int
    identity: DescriptorId
    state: DescriptorState = DESCRIPTOR.first
    is_shared: bool = False
    is_counted: bool = False
    is_marked: bool = False
    told_by: int = 0  # the registry that its begin-close went to
    told: bool | None = None
    inside: int = 0
    waiters: int = 0

    def move(self, event: DescriptorEvent) -> None:
        self.state = advance(self.state, event)


@dataclass(eq=False)
class Request:
    """What a process has asked its registry; a file may travel with it, and another one with the answer."""

    call: str
    arguments: tuple[Any, ...]
    is_posted: bool
    answer: Any = None
    error: OSError | None = None
    has_answer: bool = False

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer


@dataclass(eq=False)
class Process:
    """A process: its files by number, its descriptors, its channel."""

    name: str
    holder: HolderId
    files: dict[int, str] = field(default_factory=dict)
    handles: list[Handle] = field(default_factory=list)
    channel: deque[Request] = field(default_factory=deque)
    is_alive: bool = True
    is_reaped: bool = False
    is_known: bool = True  # to the registry of now


class World:
    """All of it, and what can happen next."""

    ledger_class: type[Ledger] = Ledger

    def __init__(self, names: str, linger_s: int | None = None) -> None:
        self.kernel = Kernel()
        self.linger_s = linger_s
        self.processes = {
            name: Process(name, HolderId(ProcessId(pid, pid), name.encode() * 16))
            for pid, name in enumerate(names, start=11)
        }
        self.ledger = self.ledger_class(b"1")
        self.incarnation = 1
        self.now = 0.0
        self.mail: dict[str, bytes] = {}
        self.outcomes: dict[str, str] = {}
        self.yielded: dict[bytes, int] = {}
        self.is_told_of_death: dict[str, Process] = {}  # of a ticket's maker: then nobody waits for it any more
        self._threads: dict[str, tuple[Process | None, Thread, Step]] = {}
        self._steps: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._actor = ""
        self._waiting: list[Request] = []
        self._serial = 0
        self._actions = 0

    # -- building ------------------------------------------------------------------------------------------------

    def start(self, name: str, process: Process | None, thread: Thread) -> None:
        """Begin a thread; its name is the first part of its actions."""
        self._threads[name] = process, thread, next(thread)

    def open(self, process: Process) -> Handle:
        """Give a process a descriptor on the socket, at its lowest free number."""
        handle = Handle(self.put(process, "socket"), DescriptorId(self.draw()))
        self.kernel.open(process.name, handle.number)
        process.handles.append(handle)
        return handle

    def put(self, process: Process, what: str) -> int:
        number = next(number for number in range(3, 99) if number not in process.files)
        process.files[number] = what
        return number

    def draw(self) -> int:
        self._serial += 1
        return self._serial

    # -- what can happen -------------------------------------------------------------------------------------------

    def enabled(self) -> list[str]:
        """Return the names of the actions that can come next, in a fixed order."""
        found = [f"{name}.{step.name}" for name, (_, _, step) in self._threads.items() if step.ready()]
        for process in self.processes.values():
            if not process.is_reaped and process.channel and process.is_known:
                found.append(f"serve:{process.name}")
            if process.is_alive and not process.is_known:
                found.append(f"announce:{process.name}")
            if not process.is_alive and not process.is_reaped:
                found.append(f"reap:{process.name}")
        return found

    def act(self, action: str) -> None:
        """Carry one out, and look whether all is as it should be."""
        self._actor = action
        self._actions += 1
        if self._actions > _MOST_ACTIONS:
            raise Violation("I7: it goes on for ever")
        head, _, name = action.partition(":")
        if head in ("serve", "announce", "reap"):
            getattr(self, f"_{head}")(self.processes[name])
        else:
            self._go_on(action.partition(".")[0])
        self._check()

    def _go_on(self, name: str) -> None:
        process, thread, _ = self._threads[name]
        self._steps[name] = self._steps.get(name, 0) + 1
        try:
            self._threads[name] = process, thread, next(thread)
        except StopIteration:
            del self._threads[name]

    def touch(self, *things: str) -> None:
        """Note that this action has to do with these: two orders are one if each thing sees the same sequence."""
        for thing in things:
            self._seen[thing] = hash((self._seen.get(thing, 0), self._actor, self._steps.get(self._actor, 0)))

    def fingerprint(self) -> int:
        """Return what is equal for two orders that have led to the same state."""
        return hash((*sorted(self._seen.items()), *sorted(self._steps.items()), *self._threads))

    # -- the registry ----------------------------------------------------------------------------------------------

    def ask(self, process: Process, call: str, *arguments: Any, posted: bool = False) -> Request:
        """Send a request; the file of an `issue` travels with it, and is a reference on its way (rule 8)."""
        self.touch(f"channel {process.name}")
        request = Request(call, arguments, posted)
        if call == "issue":
            self.touch("kernel")
            self.kernel.open(f"to registry from {process.name}", request)
        process.channel.append(request)
        return request

    def _serve(self, process: Process) -> None:
        request = process.channel.popleft()
        self.touch(f"channel {process.name}", "registry", "kernel")
        self._carry_out(process, request)
        self._effects()

    def _carry_out(self, process: Process, request: Request) -> None:
        holder, call = process.holder, request.call
        try:
            if call == "begin_close":
                request.answer = self.ledger.begin_close(holder, request.arguments[0], request, self.now)
                if request.answer is None:
                    self._waiting.append(request)
                    if request.is_posted:  # nobody hears the answer
                        request.has_answer = True
                    return
            elif call == "issue":
                secret, target, life = request.arguments
                number = self.ledger.issue(
                    holder, SOCKET.socket, self._issuer(process), secret, target, life, self.now, 0.0
                )
                self.kernel.open("custody", number)
            elif call == "claim":
                request.answer = self.ledger.claim(holder, request.arguments[0], self.now)
                if process.is_alive:
                    self.kernel.open(process.name, request)
            else:
                request.answer = getattr(self.ledger, call)(holder, *request.arguments)
        except OSError as error:
            request.error = error
        finally:
            self.kernel.close(f"to registry from {process.name}", request)
        request.has_answer = True

    def _issuer(self, process: Process) -> DescriptorId:
        return process.handles[0].identity

    def _effects(self) -> None:
        for effect in self.ledger.take_effects():
            if isinstance(effect, Answer):
                request = effect.token
                assert isinstance(request, Request)
                request.answer, request.has_answer = effect.last, True
            elif isinstance(effect, ReleaseCustody):
                if effect.last and effect.linger_s == 0:
                    self.end("custody", "reset")
                self.kernel.close("custody", effect.number)

    def _announce(self, process: Process) -> None:
        """A process finds a new registry in its place, and tells it what it has."""
        self.touch("registry", f"channel {process.name}", f"process {process.name}")
        for handle in process.handles:
            if handle.is_shared and handle.told is None:
                facts = DescriptorFacts(handle.identity, "", 0.0)
                self.ledger.announce(process.holder, SOCKET, facts, CommonState(linger_s=self.linger_s))
                handle.is_counted = True
        process.is_known = True
        self.ledger.has_announced(process.holder.nonce)
        self._effects()

    def _reap(self, process: Process) -> None:
        self.touch("registry", "kernel", f"channel {process.name}")
        process.is_reaped = True
        process.channel.clear()
        self.kernel.close_all(f"to registry from {process.name}")
        self.ledger.disconnected(process.holder)
        self.ledger.reap(process.holder.process)
        self.ledger.has_announced(process.holder.nonce)
        self._effects()

    def restart(self) -> None:
        """The registry is killed, and another one takes its place: it knows from their files whom to wait for."""
        self.touch("registry", "kernel", *(f"channel {name}" for name in self.processes))
        self.kernel.close_all("custody")
        for process in self.processes.values():
            self.kernel.close_all(f"to registry from {process.name}")
            for request in (*process.channel, *self._waiting):
                if request.has_answer:
                    continue
                request.error, request.has_answer = RegistryGone("killed"), True
            process.channel.clear()
            process.is_known = process.is_reaped
        self.ledger = self.ledger_class(b"2")
        self.incarnation += 1
        living = [p for p in self.processes.values() if not p.is_reaped]
        self.await_holders([p.holder.nonce for p in living])

    def await_holders(self, nonces: list[bytes]) -> None:
        self.ledger.await_holders(nonces, self.now + 2.0)

    # -- processes ---------------------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL: the kernel closes its files; the registry will notice."""
        self.touch("kernel", f"process {process.name}")
        process.is_alive = False
        self.kernel.close_all(process.name)
        for name in [name for name, (owner, _, _) in self._threads.items() if owner is process]:
            self._threads.pop(name)[1].close()

    def pass_time(self, seconds: float) -> None:
        """Let a clock go on that only the registry looks at."""
        self.touch("registry", "kernel")
        self.now += seconds
        self.ledger.expire(self.now)
        self._effects()

    def end(self, who: str, how: str) -> None:
        """Somebody does to the connection what every sharer feels."""
        users = self.users()
        if users - {who}:
            raise Violation(f"I3: {who} ends the socket ({how}) that {', '.join(sorted(users - {who}))} still use")
        self.kernel.ended = how

    def users(self) -> set[str]:
        """Return who may still use the socket: living processes with an open descriptor, and tickets that are out."""
        found = {p.name for p in self.processes.values() if p.is_alive and any(h.state is _OPEN for h in p.handles)}
        return found | {f"ticket {number}" for number in self._tickets()}

    def _tickets(self) -> Iterator[int]:
        held = {name for who, name in self.kernel.files if who == "custody"}
        yield from (ticket.number for ticket in self.ledger._tickets if ticket.number in held)

    def is_awaited(self, ticket: str) -> bool:
        """Whether a ticket may still come."""
        maker = self.is_told_of_death.get(ticket)
        return ticket not in self.mail and ticket not in self.outcomes and (maker is None or maker.is_alive)

    def outcome(self) -> tuple[str, ...]:
        """Say what came out, in words that two orders may have in common."""
        told = sorted(f"{name}: {what}" for name, what in self.outcomes.items())
        return (*told, f"the socket: {self.kernel.ended or 'open'}")

    # -- what must hold ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if any(count > 1 for count in self.yielded.values()):
            raise Violation("I8: a ticket has yielded two descriptors")
        counted = {(row.pid, row.descriptor) for row in self.ledger.holders(SOCKET.socket)}
        for process in self.processes.values():
            if process.is_alive and process.is_known:
                for handle in process.handles:
                    if handle.is_counted and handle.state is _OPEN:
                        key = process.holder.process.pid, handle.identity
                        if key not in counted:
                            raise Violation(f"I2: {process.name} has an open descriptor that is not counted")
        if self.kernel.ended and (users := self.users()):
            raise Violation(f"I3: the socket has ended under {', '.join(sorted(users))}")

    def check_end(self) -> None:
        """Nothing can happen any more: is everything as it was before?"""
        if self._threads:
            waiting = ", ".join(f"{name}.{step.name}" for name, (_, _, step) in self._threads.items())
            raise Violation(f"I7: waits for ever: {waiting}")
        handles = [h for p in self.processes.values() if p.is_alive for h in p.handles if h.state is _OPEN]
        tickets = list(self._tickets())
        count = self.ledger.references(SOCKET.socket)
        if count != sum(handle.is_shared for handle in handles) + len(tickets):
            raise Violation(f"I2: counted {count}, but there are {len(handles)} handles and {len(tickets)} tickets")
        if bool(self.kernel.ended) == bool(handles or tickets):
            raise Violation(f"I3: {self.kernel.ended or 'open'} with {len(handles)} handles and {len(tickets)} tickets")
        owners = {p.name for p in self.processes.values() if p.is_alive and any(h in handles for h in p.handles)}
        left = {who for who, _ in self.kernel.files} - owners - ({"custody"} if tickets else set())
        if left:
            raise Violation(f"I6: files are left with {', '.join(sorted(left))}")
        for process in self.processes.values():
            if process.is_alive and "dead" in process.files.values():
                raise Violation(f"I6: {process.name} still has a number of a closed descriptor")
        everything = sorted(self.kernel.taken + self.kernel.unread)
        if everything != list(range(self.kernel.sent)):
            raise Violation(f"I1: of {self.kernel.sent} records {everything} were taken or are there")
