"""Destructors at the interpreter's end, and where an allocation fails.

The interpreter empties the modules that something still holds (a daemon thread's frame, a test runner) one after the
other: every global becomes None. An object that outlives the module its destructor needs can give nothing back any
more, nor has to: the kernel closes what a process leaves, and a registry sees it end.

A destructor that has no memory is run once more: nobody else can. So it does what can be done twice, and takes what it
has given back off its own books last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["silent_once_emptied"]


def silent_once_emptied(destructor: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a `__del__` that is the given one, but as the head of this file says."""
    is_finalizing = sys.is_finalizing  # a name of this call, which nobody empties

    def __del__(self: Any) -> None:
        try:
            destructor(self)
        except MemoryError:
            destructor(self)
        except (TypeError, AttributeError):  # None is not callable, has no attributes, is no context manager
            if not is_finalizing():
                raise

    return __del__
