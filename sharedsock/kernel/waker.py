"""The wake-up of one descriptor: level-triggered, never drained, guarded against number reuse like the socket.

It is there before anybody waits, so an abort never needs a free number. Once signalled it stays readable, so a
waiter that comes late finds it (rule 6, F-44). Its number lives as long as somebody holds the object: a closer
that is still waking can not write into a stranger's file (rule 4, F-46).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import chain, starmap

from sharedsock.kernel import numbers, system
from sharedsock.kernel.teardown import silent_once_emptied
from sharedsock.model.errors import with_winerror

__all__ = ["Waker"]


class Waker:
    """An eventfd, or a pipe where the platform has none.

    Attributes:
        number: readable once signalled.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM, with `.winerror`; nothing is left open.
    """

    __slots__ = ("_era", "_numbers", "number")

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._era = numbers.current_era()
        # Opened and stored in one C call: an interrupt finds no number that nobody closes.
        opened = self._numbers
        with numbers.gate:
            try:
                opened += starmap(system.make_eventfd, ((),))
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise with_winerror(error) from None
                try:
                    opened += chain.from_iterable(starmap(system.make_pipe, ((),)))
                except OSError as failure:
                    raise with_winerror(failure) from None
                for number in opened:
                    os.set_blocking(number, False)
            for number in opened:
                numbers.own(number)
        self.number = opened[0]

    def signal(self) -> None:
        """Make the number readable, for ever; waking twice is waking once. A forked child's copy stays silent."""
        if self._era != numbers.current_era():
            return
        with suppress(BlockingIOError):  # the counter is at its limit, or the pipe full: readable already
            if len(self._numbers) == 1:
                assert system.write_eventfd is not None
                system.write_eventfd(self.number, 1)
            else:
                system.write_pipe(self._numbers[1], b"\1")

    @silent_once_emptied
    def __del__(self) -> None:
        opened: list[int] = getattr(self, "_numbers", [])  # interrupted before there was any
        place = len(opened)
        while place:
            place -= 1
            if opened[place] >= 0:
                numbers.release(opened[place], self._era)
                opened[place] = -1
