"""Who leaves when, and how: the order in which the holders of a socket give it up.

The first holder makes the sockets and is the first to close them; the next is killed, if that leaves somebody to go
on; the others close one after the other, and the last of them is the last close. A pure function of the options.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from sharedsock.simulator.scenario import Options

__all__ = ["Schedule", "shares_of"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The parts of a run, by the names of the processes.

    Attributes:
        maker: opens the sockets, shares them, closes first.
        receivers: hold the sockets after that.
        victim: the receiver that is killed; None: there is none to spare.
        closers: the receivers that close after the kill, in order; the last one closes last.
    """

    maker: str
    receivers: tuple[str, ...]
    victim: str | None
    closers: tuple[str, ...]

    @classmethod
    def of(cls, options: Options) -> Schedule:
        """Cast the parts for the options of a run."""
        maker, *receivers = tuple(string.ascii_uppercase)[: options.processes]
        victim = receivers[0] if len(receivers) > 1 else None
        return cls(maker, tuple(receivers), victim, tuple(name for name in receivers if name != victim))

    @property
    def holders(self) -> tuple[str, ...]:
        """Everybody who holds the sockets at the start."""
        return (self.maker, *self.receivers)

    @property
    def last(self) -> str:
        """Who closes last."""
        return self.closers[-1]


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
