"""Destructors at the interpreter's end.

The interpreter empties the modules that something still holds (a daemon thread's frame, a test runner) one after the
other: every global becomes None. An object that outlives the module its destructor needs can give nothing back any
more, nor has to: the kernel closes what a process leaves, and a registry sees it end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["silent_once_emptied"]


def silent_once_emptied(destructor: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a `__del__` that is the given one, but silent where the modules it needs have been emptied."""
    is_finalizing = sys.is_finalizing  # a name of this call, which nobody empties

    def __del__(self: Any) -> None:
        try:
            destructor(self)
        except (TypeError, AttributeError):  # None is not callable, has no attributes, is no context manager
            if not is_finalizing():
                raise

    return __del__
