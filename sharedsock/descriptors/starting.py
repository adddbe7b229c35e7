"""Sockets among the arguments of a new process: the seam (launching.py) is put in when the first process is started.

It stands on every start method of multiprocessing and on the registry's channels, which take as long to import as all
the rest: a program that shares nothing does not pay for them.
"""

from __future__ import annotations

import functools
import multiprocessing.process
from typing import Any, Final

__all__ = ["install", "is_installed"]

_PROCESS: Final[Any] = multiprocessing.process.BaseProcess  # typeshed does not say that a method can be replaced

is_installed = False
"""Whether that has been done."""


def install(face: type) -> None:
    """Have the first start of a process put the seam in; once per process, twice does no harm.

    Args:
        face: the class whose instances are handed over.
    """
    global is_installed
    start = _PROCESS.start

    @functools.wraps(start)
    def start_with_seam(process: Any) -> None:
        from sharedsock.descriptors import launching

        launching.install(face)
        start(process)

    _PROCESS.start = start_with_seam
    is_installed = True
