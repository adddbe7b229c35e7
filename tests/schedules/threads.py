"""What the threads of a process do, told in steps: another thread or process may come between any two of them.

Each function is one thread, for `World.start`; it yields before each step. As in the product: descriptors/closing.py
(closes), kernel/operations.py (receives), descriptors/sharing.py (shares, redeems, revokes).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sharedsock.model.errors import NotASocket, RegistryGone, TicketError
from sharedsock.model.identity import DescriptorFacts, ProcessId
from sharedsock.model.lifecycle import DescriptorEvent, OperationEvent, OperationState, advance
from sharedsock.model.linger import CloseAction, close_action
from tests.schedules.world import SOCKET, Handle, Process, Step, Thread, Violation, World

__all__ = ["Choreography"]


class Choreography:
    """The threads of one world; a broken variant overrides a step."""

    def __init__(self, world: World) -> None:
        self.world = world

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, process: Process, call: str, *arguments: Any) -> Generator[Step, None, Any]:
        """Ask the registry, and wait for its answer."""
        request = self.world.ask(process, call, *arguments)
        yield Step(f"has heard of {call}".replace(" ", "-"), lambda: request.has_answer)
        return request.result()

    def file_of(self, process: Process, handle: Handle) -> str:
        """Look what a number is, as a system call does."""
        found = process.files.get(handle.number, "nothing")
        if found not in ("socket", "dead"):
            raise Violation(f"I5: a system call of {process.name} meets {found}")
        return found

    # -- closing -----------------------------------------------------------------------------------------------------

    def closes(self, process: Process, handle: Handle) -> Thread:
        world = self.world
        me = f"process {process.name}"
        yield Step("begin")
        world.touch(me)
        handle.move(DescriptorEvent.BEGIN)
        yield Step("mark")
        world.touch(me)
        handle.move(DescriptorEvent.MARK)
        handle.is_marked = True
        yield Step("drain", lambda: self.is_drained(handle))
        world.touch(me)
        handle.move(DescriptorEvent.DRAIN)
        yield Step("bury")
        world.touch(me, "kernel")
        handle.move(DescriptorEvent.BURY)
        self.bury(process, handle)
        is_last: bool | None = True
        if handle.is_shared:
            yield Step("ask")
            world.touch(me)
            is_last = yield from self.begin_close(process, handle)
            world.touch(me)
            handle.told = is_last
        if is_last:
            yield Step("linger")
            world.touch(me, "kernel")
            handle.move(DescriptorEvent.LAST)
            self.linger(process)
        yield from self.leave(process, handle)

    def is_drained(self, handle: Handle) -> bool:
        return handle.waiters == 0

    def begin_close(self, process: Process, handle: Handle) -> Generator[Step, None, bool | None]:
        handle.told_by = self.world.incarnation
        try:
            answer: bool | None = yield from self.ask(process, "begin_close", handle.identity)
        except (RegistryGone, NotASocket):
            return False
        return answer

    def bury(self, process: Process, handle: Handle) -> None:
        """The kept file first, then the dead file over the number; who is inside may still use that."""
        self.world.kernel.open(process.name, "kept")
        process.files[handle.number] = "dead"
        self.world.kernel.close(process.name, handle.number)
        self.free(process, handle)

    def free(self, process: Process, handle: Handle) -> None:
        """Nobody is inside any more, and nobody can come: the number goes."""
        if handle.inside == 0 and process.files.get(handle.number) == "dead":
            del process.files[handle.number]

    def linger(self, process: Process) -> None:
        world = self.world
        others = {who for who, _ in world.kernel.files} - {process.name}
        # Who has had its answer from a registry that has died since is not announced again, and may just be closing its
        # kept file.
        if others and world.incarnation == 1:
            raise Violation(f"F-59: {process.name} is told LAST while {', '.join(sorted(others))} have a file")
        if close_action(world.linger_s, is_blocking=True, has_unsent=False) is CloseAction.RESET:
            world.end(process.name, "reset")

    def leave(self, process: Process, handle: Handle) -> Thread:
        """The kept file goes, and only then the reference."""
        yield from self.drop(process)
        yield from self.end(process, handle)

    def drop(self, process: Process) -> Thread:
        yield Step("drop")
        self.world.touch("kernel", f"process {process.name}")
        self.world.kernel.close(process.name, "kept")

    def end(self, process: Process, handle: Handle) -> Thread:
        world = self.world
        yield Step("end")
        world.touch(f"process {process.name}", "registry")
        handle.move(DescriptorEvent.END)
        if handle.is_shared and handle.told_by == world.incarnation:
            world.ask(process, "end_close", handle.identity, posted=True)
        elif handle.is_shared:
            try:
                yield from self.ask(process, "end_close", handle.identity)
            except (RegistryGone, NotASocket):
                return
            except OSError:  # another registry, which has counted it as open
                world.ask(process, "begin_close", handle.identity, posted=True)
                world.ask(process, "end_close", handle.identity, posted=True)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receives(self, process: Process, handle: Handle, name: str) -> Thread:
        world = self.world
        me = f"process {process.name}"
        yield Step("look-up")
        world.touch(me)
        if handle.is_marked:
            world.outcomes[name] = "refused"
            return
        handle.inside += 1
        yield Step("try-at-once")
        world.touch(me, "kernel")
        if self.file_of(process, handle) == "dead":
            outcome = "refused"
        elif world.kernel.unread:
            outcome = self.take(handle)
        else:
            yield Step("enter")
            world.touch(me)
            handle.waiters += 1
            outcome = "refused" if self.has_mark(handle) else (yield from self.receive(process, handle))
            world.touch(me)
            handle.waiters -= 1
        handle.inside -= 1
        self.free(process, handle)
        world.outcomes[name] = outcome

    def receive(self, process: Process, handle: Handle) -> Generator[Step, None, str]:
        kernel = self.world.kernel
        state = OperationState.TRYING
        while True:
            yield Step("try")
            self.world.touch("kernel", f"process {process.name}")
            if self.file_of(process, handle) == "dead":
                advance(state, OperationEvent.ABORT)
                return "aborted"
            if kernel.unread:
                advance(state, OperationEvent.TAKE)
                return self.take(handle)
            if kernel.has_fin or kernel.ended:
                if not kernel.has_fin:
                    raise Violation(f"I4: a receive of {process.name} meets an end that its peer has not made")
                return "end"
            state = advance(state, OperationEvent.WAIT)
            yield Step("wake", lambda: handle.is_marked or bool(kernel.unread or kernel.has_fin or kernel.ended))
            self.world.touch("kernel", f"process {process.name}")
            if self.is_aborted(handle):
                advance(state, OperationEvent.ABORT)
                return "aborted"
            state = advance(state, OperationEvent.READY)

    def is_aborted(self, handle: Handle) -> bool:
        return handle.is_marked

    @staticmethod
    def has_mark(handle: Handle) -> bool:
        return handle.is_marked

    def take(self, handle: Handle) -> str:
        """What was taken is the caller's, whoever closes meanwhile (rule 2)."""
        kernel = self.world.kernel
        kernel.taken.append(kernel.unread.pop(0))
        return f"record {kernel.taken[-1]}"

    # -- sharing ------------------------------------------------------------------------------------------------------

    def shares(self, process: Process, handle: Handle, name: str, target: Process | None, life: float | None) -> Thread:
        """Announce at the first share, issue, and send the ticket."""
        world = self.world
        aim: ProcessId | None = None if target is None else target.holder.process
        try:
            if not handle.is_shared:
                yield Step("announce")
                handle.is_shared = True
                yield from self.ask(process, "announce", SOCKET, DescriptorFacts(handle.identity, "", 0.0))
                handle.is_counted = True
                if world.linger_s is not None:
                    yield from self.ask(process, "set_common", SOCKET.socket, {"linger_s": world.linger_s})
            yield Step("issue")
            secret = name.encode().ljust(32)
            yield from self.ask(process, "issue", secret, aim, life)
        except OSError as error:
            world.outcomes[name] = type(error).__name__
            return
        world.mail[name] = secret

    def redeems(self, process: Process, name: str) -> Thread:
        """Claim; the descriptor stands on the file that came; acknowledge, which nobody waits for."""
        world = self.world
        yield Step("claim", lambda: not world.is_awaited(name))
        if name not in world.mail:
            world.outcomes[f"{name} at {process.name}"] = "never came"
            return
        request = world.ask(process, "claim", world.mail[name])
        yield Step("take", lambda: request.has_answer)
        world.touch("kernel", f"process {process.name}")
        try:
            granted = request.result()
        except (TicketError, RegistryGone) as error:
            world.outcomes[f"{name} at {process.name}"] = type(error).__name__
            return
        handle = world.open(process)
        world.kernel.close(process.name, request)
        handle.is_shared = True
        world.yielded[world.mail[name]] = world.yielded.get(world.mail[name], 0) + 1
        yield Step("acknowledge")
        facts = DescriptorFacts(handle.identity, "", 0.0)
        world.ask(process, "acknowledge", granted.number, facts, posted=True)
        world.outcomes[f"{name} at {process.name}"] = "a descriptor"

    def revokes(self, process: Process, name: str) -> Thread:
        world = self.world
        yield Step("revoke", lambda: not world.is_awaited(name))
        if name in world.mail:
            was = yield from self.ask(process, "revoke", world.mail[name])
            world.outcomes[f"{name} revoked"] = str(was)

    # -- from outside ------------------------------------------------------------------------------------------------

    def sends(self, records: int) -> Thread:
        """The peer sends."""
        kernel = self.world.kernel
        for _ in range(records):
            yield Step("send")
            self.world.touch("kernel")
            kernel.unread.append(kernel.sent)
            kernel.sent += 1

    def opens_another(self, process: Process) -> Thread:
        """Another thread opens a file: it gets the lowest free number."""
        yield Step("open")
        self.world.touch(f"process {process.name}")
        self.world.put(process, "a stranger's file")

    def kills(self, process: Process) -> Thread:
        yield Step("kill")
        self.world.kill(process)

    def kills_the_registry(self) -> Thread:
        yield Step("kill")
        self.world.restart()

    def waits(self, seconds: float) -> Thread:
        yield Step("tick")
        self.world.pass_time(seconds)

    @staticmethod
    def one_after_the_other(*threads: Thread) -> Thread:
        for thread in threads:
            yield from thread
