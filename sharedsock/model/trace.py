"""The Probe every room reports to: named points, which tests also use to hold, kill or fail a process there.

In production the hook is None, and the slow paths ask `trace.hook is not None` before they build anything; the
fast paths report nothing. There is no environment switch: only code in the process installs a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["POINTS", "Probe", "hit", "hook"]

Probe = Callable[[str, Mapping[str, Any]], None]

# spec/fault-catalogue.md A.3. `socket.*` and `op.*` carry descriptor=DescriptorId; op.* also kind="recv" …
POINTS: Final[frozenset[str]] = frozenset(
    """
    open.created open.registered
    share.begin share.fd_sent share.issued
    take.sent take.counted take.fd_queued take.received take.wrapped take.acked
    op.enter op.waiting op.ready op.done op.aborted
    close.begin close.marked close.drained close.fd_closed close.last close.linger close.ended
    reg.lock reg.accept reg.authed reg.request reg.commit reg.reply reg.death_seen
    fork.before fork.child fork.parent
    exit.begin del
    """.split()
)

hook: Probe | None = None


def hit(point: str, **context: Any) -> None:
    """Report that this thread has reached a point. The hook may block, raise, or kill the process."""
    probe = hook
    if probe is not None:
        probe(point, context)
