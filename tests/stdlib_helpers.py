"""multiprocessing's own helper processes: one fork server and one resource tracker per process, for its life."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any

import pytest

__all__ = ["light_children_with", "stop_helpers"]


def stop_helpers() -> None:
    """End both, so that the next module starts its own and the session's end sees nobody.

    `_stop()` alone closes a pipe and waits until they have seen its end; but every child they have started holds that
    pipe as well, and one that outlives its test would make the wait endless. So they are ended by signal first; the
    tracker has nothing to track here, and ignores any other.
    """
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    for helper, pid in ((server, server._forkserver_pid), (tracker, tracker._pid)):
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        helper._stop()


@contextmanager
def light_children_with(module: str) -> Iterator[None]:
    """Have spawned children import no main program, which is pytest, and the fork server one module; end it after."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", None)
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)
        yield
    stop_helpers()
