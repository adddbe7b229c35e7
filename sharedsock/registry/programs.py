"""WHICH PROGRAM EACH HOLDER RUNS: exec closes everything a holder held, and its process lives on (F-91).

Nothing tells of an exec. What there is: the channel breaks, which it does for other reasons too, and /proc shows
another program. So a holder whose channel broke while its process lives is a *suspect*, looked at a few times: its
program may not be there to be seen yet, or the process be about to die.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from sharedsock.model.identity import HolderId, ProcessId
from sharedsock.registry.ledger import Ledger
from sharedsock.registry.liveness import Liveness

__all__ = ["Programs"]

_LOOKS_S: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
Image = tuple[int, int]


@dataclass(slots=True)
class _Suspect:
    """Another program by now, or about to die?"""

    due: float
    looks: int
    image: Image


class Programs:
    """What each holder ran when it was authenticated, and who is to be looked at.

    Args:
        clients: the holders that have a channel.
    """

    def __init__(self, ledger: Ledger, liveness: Liveness, clients: Container[HolderId]) -> None:
        self._ledger, self._liveness, self._clients = ledger, liveness, clients
        self._images: dict[HolderId, Image | None] = {}
        self._suspects: dict[HolderId, _Suspect] = {}

    def note(self, holder: HolderId) -> Image | None:
        """A holder has been authenticated: note what it runs, and drop what its process held before an exec."""
        stat = self._liveness.describe(holder.process.pid)
        if stat is None:
            return None
        self._ledger.name(holder.process, stat.name)
        self._images[holder] = stat.image
        for other in [h for h in self._images if h.process == holder.process and h not in self._clients]:
            if self._images[other] not in (None, stat.image):
                self._ledger.reap_holder(other)
        return stat.image

    def suspect(self, holder: HolderId, image: Image | None, now: float) -> None:
        """A holder's channel broke; `image` is what it ran when that was made."""
        if image is not None and self._ledger.needs(holder.process):
            self._suspects[holder] = _Suspect(now, 0, image)

    def next_due(self) -> float:
        """Return when `look` has somebody to look at, inf: nobody."""
        return min((suspect.due for suspect in self._suspects.values()), default=math.inf)

    def look(self, now: float) -> None:
        """Look at the suspects that are due; those which run another program hold nothing any more."""
        for holder, suspect in list(self._suspects.items()):
            if suspect.due <= now:
                self._look_at(holder, suspect, now)

    def _look_at(self, holder: HolderId, suspect: _Suspect, now: float) -> None:
        del self._suspects[holder]
        if holder in self._clients:
            return
        stat = self._liveness.describe(holder.process.pid)
        image = None if stat is None or stat.start_ticks != holder.process.start_ticks else stat.image
        if image is not None and image != suspect.image:
            self._ledger.reap_holder(holder)
        elif suspect.looks < len(_LOOKS_S) and image is None:
            self._suspects[holder] = _Suspect(now + _LOOKS_S[suspect.looks], suspect.looks + 1, suspect.image)

    def forget(self, process: ProcessId, on_each: Callable[[HolderId], None]) -> None:
        """A process is dead; `on_each` is told of each holder it was."""
        for holder in [holder for holder in self._images if holder.process == process]:
            del self._images[holder]
            on_each(holder)
            self._suspects.pop(holder, None)

    def sweep(self) -> None:
        """Forget the holders that are gone and of whom nothing is left."""
        for holder in [h for h in self._images if h not in self._clients and not self._ledger.needs(h.process)]:
            del self._images[holder]
