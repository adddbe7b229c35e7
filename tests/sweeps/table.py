"""The table of every public call: a scene for each, filled by the modules of scenes, or a reason why it has none."""

from __future__ import annotations

from typing import Final

from tests.sweeps import asking, securing, sharing, transferring, waiting
from tests.sweeps.scenes import SCENES

__all__ = ["CALLS", "WITHOUT"]

_filled_by = asking, securing, sharing, transferring, waiting

CALLS: Final = sorted(SCENES)
"""The scenes by name: the call's, with a slash and what is special where it has several."""

WITHOUT: Final[dict[str, str]] = {
    "DescriptorId": "a number's name for the type checker",
    "SharedSocket.sendmsg_afalg": "for AF_ALG sockets only, of which nothing here is shared; hands on to the C method",
    "Operation.__init__": "made by begin_*, whose scenes it is in",
    "Operation.__repr__": "a value's text",
    "Operation.abort": "of a station, not of a user",
    "Operation.attempt": "of a station, not of a user",
    "Operation.facts": "of a station, not of a user",
    "Operation.settle": "of a station, not of a user",
    "Operation.bytes_transferred": "reads an attribute",
    "Operation.add_done_callback": "concurrent.futures' own",
    "Operation.cancelled": "concurrent.futures' own",
    "Operation.done": "concurrent.futures' own",
    "Operation.running": "reads attributes",
    "Operation.set_exception": "concurrent.futures' own",
    "Operation.set_result": "concurrent.futures' own",
    "Operation.set_running_or_notify_cancel": "concurrent.futures' own",
    "Registry.__init__": "keeps a name; start() does the work",
    "Registry.__repr__": "a value's text",
    "Registry.__reduce__": "refuses",
    "Registry.__exit__": "calls close()",
    "Registry.address": "a value's text",
    "Selector.__del__": "calls close()",
    "Selector.__exit__": "calls close()",
    "Ticket.__init__": "keeps bytes",
    "Ticket.__repr__": "a value's text",
}
"""The calls without a scene, and why."""
