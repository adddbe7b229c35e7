"""The wake-up of one descriptor: level-triggered, never drained, guarded against number reuse like the socket.

It exists from open on, because an abort must not need a free number. Once signalled it stays readable, so a
waiter that comes late finds it (rule 6, F-44). Its number lives as long as somebody holds the object: a closer
that is still waking can not write into a stranger's file (rule 4, F-46).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from sharedsock.kernel import numbers, system

__all__ = ["Waker"]


class Waker:
    """An eventfd, or a pipe where the platform has none.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM; nothing is left open.
    """

    __slots__ = ("_era", "_write_number", "number")

    def __init__(self) -> None:
        self.number = self._write_number = -1
        with numbers.gate:
            self._era = numbers.current_era()
            try:
                self.number = self._write_number = numbers.own(system.make_eventfd())
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self.number, self._write_number = map(numbers.own, os.pipe())
                os.set_blocking(self.number, False)
                os.set_blocking(self._write_number, False)

    def signal(self) -> None:
        """Make the number readable, for ever; waking twice is waking once."""
        if self.number == self._write_number:
            assert system.write_eventfd is not None
            with suppress(BlockingIOError):  # the counter is at its limit: readable already
                system.write_eventfd(self.number, 1)
        else:
            with suppress(BlockingIOError):
                os.write(self._write_number, b"\1")

    def __del__(self) -> None:
        if self.number >= 0:
            numbers.release(self.number, self._era)
            if self._write_number != self.number:
                numbers.release(self._write_number, self._era)
