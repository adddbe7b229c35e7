"""A living registry among liars: it serves the honest, grows by nothing, and counts right when the liars are gone.

1,000,000 messages in the campaign, in parts and waves. What it had after the first wave it has after the last:
descriptors, one thread, and memory to a MiB.

Source: spec/fault-catalogue.md, B.3; S-11, S-12, S-14.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.campaigns.conftest import Run
from tests.campaigns.liars import lie, stranger
from tests.registry.dialogue import Dialogue, Gone, Running, open_numbers

WAVES: Final = 8
PARTS: Final = 5
MESSAGES: Final = 200_000  # of each part
SMALL: Final = 1_500
STRANGE: Final = 0.1  # so much of it from strangers, who need a connection for each message
ALLOWANCE: Final = 1 << 20
HONEST_S: Final = 1.0
SETTLED_S: Final = 60.0
_FORK: Final = multiprocessing.get_context("fork")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Running]:
    made = Running(str(tmp_path / "r"))
    yield made
    ended = made.process.poll()
    made.close()
    assert ended is None, f"the registry has ended by itself: {ended}"


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def wave(registry: Running, honest: Dialogue, ours: socket.socket, count: int, dice: random.Random) -> list[float]:
    """Have strangers and a liar send so many messages; return how long the honest client's calls took meanwhile."""
    key, seeds = registry.key, [dice.randrange(1 << 32) for _ in range(2)]
    strange = round(count * STRANGE)
    crowd = [
        _FORK.Process(target=stranger, args=(registry.path, seeds[0], strange)),
        _FORK.Process(target=lie, args=(registry.path, key, seeds[1], count - strange)),
    ]
    for one in crowd:
        one.start()
    times = []
    try:
        while any(one.is_alive() for one in crowd):
            began_s = time.perf_counter()
            try:
                assert honest.references(ours) == 1
            except Gone:
                with registry.peer() as late:
                    raise AssertionError(f"the honest was hung up on; refusals: {late.refusals()}") from None
            times.append(time.perf_counter() - began_s)
            crowd[1].join(0.002)
    finally:
        for one in crowd:
            one.join(60)
            assert one.exitcode == 0, "a liar has met what it should not"
            one.close()
    return times


def _info(pid: int, number: int) -> str:
    """Return what a number is; of a pidfd, whose."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{number}") as file:
        return file.read()
    return "closed meanwhile"


def settle(registry: Running, honest: Dialogue, numbers: dict[int, str]) -> None:
    """Wait until the registry counts the honest client's descriptor, and has its own files, and nothing else."""
    until_s = time.monotonic() + SETTLED_S
    names = ("clients", "sockets", "descriptors", "tickets", "custody")
    while [(now := honest.statistics())[name] for name in names] != [1, 1, 1, 0, 0]:
        assert time.monotonic() < until_s, f"the liars are gone, and the registry has {now}"
    while (files := open_numbers(registry.pid)) != numbers:
        surplus = {number: _info(registry.pid, number) for number in files.keys() - numbers.keys()}
        assert time.monotonic() < until_s, f"the liars are gone, and the registry has open {surplus}"
        honest.statistics()
    assert len(os.listdir(f"/proc/{registry.pid}/task")) == 1


@pytest.mark.fault("F-104", "F-110", "F-111", "S-12", "S-14", "I2", "I6", "I9")
@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(SMALL, id="small"),
        *(pytest.param(None, id=f"part{part}", marks=pytest.mark.campaign) for part in range(PARTS)),
    ],
)
def test_liars_change_nothing_of_the_honest_and_leave_nothing(
    messages: int | None, registry: Running, run: Run
) -> None:
    count = messages or run.rounds(MESSAGES)
    with socket.socket() as ours, registry.peer() as honest:
        honest.announce(ours, 1)
        numbers = open_numbers(registry.pid)
        times: list[float] = []
        sizes = []
        for _ in range(WAVES):
            times += wave(registry, honest, ours, count // WAVES, run.dice)
            settle(registry, honest, numbers)
            sizes.append(resident_bytes(registry.pid))
        grown = sizes[-1] - sizes[0]
        assert grown <= ALLOWANCE, f"it has grown: {sizes}"
        refused = honest.refusals()
        assert "internal error" not in refused
        times.sort()
        assert times[int(len(times) * 0.99)] < HONEST_S
        run.note(
            messages=count,
            refusals=sum(refused.values()),
            grown_bytes=grown,
            honest_calls=len(times),
            p99_us=round(times[int(len(times) * 0.99)] * 1e6),
        )
