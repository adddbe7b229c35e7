"""multiprocessing's own helper processes: one fork server and one resource tracker per process, for its life."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any

__all__ = ["stop_helpers"]


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
