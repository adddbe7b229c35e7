"""The environment variables of this package, in one table: all that begin with SHAREDSOCK_ and mean something.

Those of the options are their twins (`sharedsock_leaks`, `--sharedsock-leaks`); three name something that a process has
begun for those below it. A variable that is none of these is a misspelling: whoever starts as a program says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["VARIABLES", "check_variables"]

PREFIX: Final = "SHAREDSOCK_"
VARIABLES: Final = {
    "SHAREDSOCK_AUDIT": "1: also sockets that are not shared are announced to the registry, with the place of each",
    "SHAREDSOCK_DEBUG": "1: every call asks first whether its file number still is its socket",
    "SHAREDSOCK_REGISTRY": "the runtime directory of the registry to use, instead of the tree's own",
    "SHAREDSOCK_TREE": "set for children: the runtime directory of the default registry",
    "SHAREDSOCK_RUN": "set for children: the directory of the test run",
    "SHAREDSOCK_LEAKS": "pytest: the kinds of leak every test is checked for",
    "SHAREDSOCK_LEAKS_ACTION": "pytest: what a leak does",
    "SHAREDSOCK_LEAKS_TIMEOUT": "pytest: how long what is left may take to go",
    "SHAREDSOCK_LEAKS_BASELINE": "pytest: the file of known leaks",
    "SHAREDSOCK_HANG_TIMEOUT": "pytest: after which time without progress a run is ended",
    "SHAREDSOCK_REPORT": "pytest: where findings are written",
    "SHAREDSOCK_START_METHOD": "pytest: how actors start",
}
_SWITCHES: Final = ("SHAREDSOCK_AUDIT", "SHAREDSOCK_DEBUG")


def check_variables(environment: Mapping[str, str]) -> None:
    """Raise an error for a variable of ours that is none, or a switch that is neither on nor off.

    Raises:
        ValueError: the message lists what there is.
    """
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in VARIABLES)
    if unknown:
        raise ValueError(f"{', '.join(unknown)} in the environment: no such variable; there are {', '.join(VARIABLES)}")
    for name in _SWITCHES:
        if environment.get(name, "") not in ("", "0", "1"):
            raise ValueError(f"{name}: {environment[name]!r} is neither on nor off; there are 1 and 0")
