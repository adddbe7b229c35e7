"""The memory sweep (F-97): each public call with one of its allocations failing, the first, a later one, up to its end.

Nothing is left, nothing that was taken is lost, the next call succeeds; what comes out is a result, MemoryError or a
documented `OSError`. Each sweep has processes of its own (`memory`): where CPython dies or loses something in its own
C code, that place is named and the next process goes on behind it. The suite takes some places of each call,
`-m campaign` each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("_testcapi", reason="this interpreter was built without its test modules")

from tests.sweeps import memory
from tests.sweeps.table import CALLS

ROOT: Final = Path(__file__).parent.parent.parent
PATIENCE_S: Final = 100.0
# For how many places that are tried CPython may have one line at which it spoils them; with more, nothing is proven.
SPOILT: Final = 8
# Each try starts a process.
SLOW: Final = ("Registry.", "connect_registry")

PARTIES: Final = "allocations are counted in all threads, and the peer is a thread here"
APART: Final[dict[str, str]] = {
    "SharedSocket.sendall/that must wait": PARTIES,
    "wrap_tls": PARTIES,
    "wrap_tls/close": PARTIES,
    "wrap_tls/recv": PARTIES,
    "wrap_tls/sendall": PARTIES,
}
"""The scenes that are not swept, and why."""


class Findings:
    """What the sweep of some calls has found."""

    def __init__(self, names: list[str], stride: int) -> None:
        self.tried: Counter[str] = Counter()
        self.ended: list[str] = []
        self.wrong: list[Any] = []
        self.theirs: list[Any] = []
        first = 0
        while names:
            name, nth = self._run(names, first, stride)
            names, first = names[names.index(name) :] if name else [], nth + stride

    def _run(self, names: list[str], first: int, stride: int) -> tuple[str, int]:
        """Sweep in a process of its own; return the place at which it has ended, "" where it came to its end."""
        command = [sys.executable, "-X", "faulthandler", "-m", memory.__name__, str(stride), str(first), *names]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        place = "", 0
        for kind, name, nth, *what in map(json.loads, ended.stdout.splitlines()):
            if kind == "try":
                place = name, nth
                self.tried[name] += 1
            elif kind == "end":
                self.ended.append(name)
            else:
                (self.wrong if kind == "wrong" else self.theirs).append((name, nth, *what))
        if ended.returncode == 0:
            return "", 0
        assert place[0], ended.stderr
        if ended.returncode < 0:
            # No line of ours can end an interpreter by a signal: C code went on with what it had no room for.
            what = f"the interpreter was ended by signal {-ended.returncode}; raised in {last_place(ended.stderr)}"
            self.theirs.append((*place, what))
        else:
            assert ended.returncode == memory.TORN, ended.stderr
        return place


def last_place(page: str) -> str:
    """Return where an interpreter has died by what faulthandler says."""
    found = re.search(r'most recent call first\):\n  File "(.+)", line (\d+) in (\w+)', page)
    if found is None:
        return "an unknown place"
    file, number, function = found.groups()
    return f"{Path(file).name}:{number} {function}"


# In these calls other threads have their turn (the service's, the registry's answer is waited for), so how many
# allocations there are varies: in the campaign, where each place is tried, that is no matter.
TOGETHER: Final = (
    "begin_",
    "Operation",
    "Ticket",
    "ticket",
    "share",
    "revoke",
    "dup",
    "lend",
    "references",
    "holders",
    "not the last",
    "shutdown",
    "__reduce",
    "statistics",
    "use_provider",
    "SO_LINGER",
)
SWEPT: Final = [name for name in CALLS if name not in APART and not name.startswith(SLOW)]
ALONE: Final = [name for name in SWEPT if not any(word in name.replace("SharedSocket", "") for word in TOGETHER)]


def expect_nothing_wrong(names: list[str], stride: int) -> None:
    found = Findings(names, stride)
    assert not found.wrong
    assert found.ended == names
    lines = {what.rpartition("raised in ")[2] for _, _, what in found.theirs}
    assert len(lines) * SPOILT <= max(found.tried.total(), 2 * SPOILT), found.theirs


@pytest.mark.fault("F-97", "I6", "I10")
@pytest.mark.parametrize("part", range(3))
def test_an_allocation_fails_in_some_places(part: int) -> None:
    assert len(ALONE) > 50
    expect_nothing_wrong(ALONE[part::3], 37)


@pytest.mark.campaign
@pytest.mark.fault("F-97", "I6", "I10")
@pytest.mark.parametrize("name", SWEPT)
def test_an_allocation_fails_in_each_place(name: str) -> None:
    expect_nothing_wrong([name], 1)


def test_each_reason_names_a_scene() -> None:
    assert set(APART) <= set(CALLS)
    assert all(any(word in name for name in CALLS) for word in TOGETHER)
