"""Who leaves when, and how: the order in which the holders of a socket give it up.

They leave in the close order, each by a close, one perhaps by SIGKILL; whoever is left last ends the socket. The story
delivers its records once the first have left, so that there is somebody to share them and somebody who must not get
any. A pure function of the options.
"""

from __future__ import annotations

from dataclasses import dataclass

from sharedsock.simulator.scenario import NOBODY, Options

__all__ = ["Schedule", "shares_of"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The parts of a run, by the names of the processes.

    Attributes:
        maker: opens the sockets and shares them.
        order: everybody, in the order of leaving.
        victim: who is killed instead of closing; None: nobody.
        closers: who closes for promise 2, one after the other; the close order's next ones close for promise 5.
    """

    maker: str
    order: tuple[str, ...]
    victim: str | None
    closers: tuple[str, ...]

    @classmethod
    def of(cls, options: Options) -> Schedule:
        """Cast the parts for the options of a run."""
        order = options.close_order or options.names
        victim: str | None = options.kill
        if not options.kill:
            victim = order[1] if len(order) > 2 else None
        elif options.kill == NOBODY:
            victim = None
        *before, last = order
        if victim in (None, last):
            closers = before[:1]
        elif victim == order[0]:
            closers = before[1:2]
        else:
            closers = before[: before.index(victim)]
        return cls(options.names[0], order, victim, tuple(closers))

    @property
    def holders(self) -> tuple[str, ...]:
        """Everybody who holds the sockets at the start, by name."""
        return tuple(sorted(self.order))

    @property
    def last(self) -> str:
        """Who leaves last."""
        return self.order[-1]

    @property
    def begins_with_kill(self) -> bool:
        """Whether the first to leave is killed."""
        return self.victim == self.order[0]

    @property
    def ends_with_kill(self) -> bool:
        """Whether the last to leave is killed: then the kernel ends the sockets by its own rule."""
        return self.victim == self.last


def shares_of(total: int, names: tuple[str, ...]) -> dict[str, range]:
    """Cut 0 … total-1 into one run of consecutive numbers for each name, as even as can be, in the order given."""
    size, rest = divmod(total, len(names))
    cut = {}
    start = 0
    for place, name in enumerate(names):
        end = start + size + (place < rest)
        cut[name] = range(start, end)
        start = end
    return cut
