"""Worlds with one guard taken out: the scheduler must find each, and say which invariant it breaks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

from sharedsock.model.identity import DescriptorId, HolderId
from sharedsock.registry.ledger import Granted, Ledger
from sharedsock.registry.records import Record, State
from sharedsock.registry.recovery import Recovery
from tests.schedules.stories import Stage
from tests.schedules.threads import Choreography
from tests.schedules.world import Handle, Process, Thread, World

__all__ = ["BROKEN"]


class _TellsEveryoneLast(Ledger):
    """Who would have to wait for another closer is told at once that it is the last."""

    def begin_close(self, holder: HolderId, descriptor: DescriptorId, token: Hashable, now: float) -> bool | None:
        answer = super().begin_close(holder, descriptor, token, now)
        return True if answer is None else answer


class _GrantsTwice(Ledger):
    """A claim does not take the ticket off the table."""

    def claim(self, holder: HolderId, secret: bytes, now: float) -> Granted:
        granted = super().claim(holder, secret, now)
        self._tickets.claim_of(holder, granted.number).state = State.ISSUED
        return granted


class _ForgetsTheDead(Ledger):
    """A death is noted, and what the dead one held stays counted."""

    def reap_holder(self, holder: HolderId) -> None:
        self.disconnected(holder)


def _with(ledger: type[Ledger]) -> type[World]:
    return type("Broken", (World,), {"ledger_class": ledger})


class _Sure(Recovery):
    def may_be_last(self, record: Record) -> bool | None:
        return True


class _WaitsForNobody(Ledger):
    """A registry in a dead one's place believes that it knows everything."""

    def __init__(self, pepper: bytes = b"") -> None:
        super().__init__(pepper)
        self._recovery = _Sure()


class _GivesBackFirst(Choreography):
    """end-close before the kept file is closed."""

    def leave(self, process: Process, handle: Handle) -> Thread:
        yield from self.end(process, handle)
        yield from self.drop(process)


class _FreesTheNumber(Choreography):
    """No dead file: the number is anybody's as soon as the close has it."""

    def bury(self, process: Process, handle: Handle) -> None:
        super().bury(process, handle)
        process.files.pop(handle.number, None)


class _DropsWhatItTook(Choreography):
    """A receive that finds the mark behind its system call ends as aborted."""

    def take(self, handle: Handle) -> str:
        taken = super().take(handle)
        if handle.is_marked:
            self.world.kernel.taken.pop()
            return "aborted"
        return taken


class _ShutsDown(Choreography):
    """A close wakes its own receives with shutdown(), which every sharer feels."""

    def bury(self, process: Process, handle: Handle) -> None:
        self.world.end(process.name, "shut down")
        super().bury(process, handle)


class _NeverLooks(Choreography):
    """A receive that is woken does not look for the mark, so a close waits for it for ever."""

    def is_aborted(self, handle: Handle) -> bool:
        return False


class _LeavesTheNumber(Choreography):
    """The last one inside does not free the number."""

    def free(self, process: Process, handle: Handle) -> None:
        return


def _stage(world: type[World] = World, choreography: type[Choreography] = Choreography) -> Stage:
    stage: Any = type("Broken", (Stage,), {"world": world, "choreography": choreography})
    made: Stage = stage()
    return made


BROKEN: Final = {
    "everyone is told LAST": (_stage(_with(_TellsEveryoneLast)), "two_closers", "F-59"),
    "a ticket is granted twice": (_stage(_with(_GrantsTwice)), "two_claim_one_ticket", "I2"),
    "the dead stay counted": (_stage(_with(_ForgetsTheDead)), "a_closer_is_killed", "I7"),
    "a new registry awaits nobody": (_stage(_with(_WaitsForNobody)), "the_registry_is_killed", "I3"),
    "the reference goes before the file": (_stage(choreography=_GivesBackFirst), "two_closers", "F-59"),
    "no dead file over the number": (_stage(choreography=_FreesTheNumber), "a_number_is_reused", "I5"),
    "what was taken is dropped": (_stage(choreography=_DropsWhatItTook), "a_close_ends_a_receive", "I1"),
    "a close shuts down": (_stage(choreography=_ShutsDown), "a_close_ends_a_receive", "I3"),
    "a woken receive does not look": (_stage(choreography=_NeverLooks), "a_close_ends_a_receive", "I7"),
    "a number is never freed": (_stage(choreography=_LeavesTheNumber), "two_closers", "I6"),
}
