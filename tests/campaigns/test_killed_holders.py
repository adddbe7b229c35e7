"""Holders SIGKILLed at random moments, eight at a time: 2,000 in the campaign, two dozen in the usual suite.

Each shares with the others, redeems, duplicates, receives, begins and closes, as fast as it can, until it is killed,
some before they have begun. Then nothing of theirs is counted, open or running (I2, I6); a socket of which the test
has a descriptor lives, and works; the other's peer sees the end, and not before the last has died (I3).

Source: LPWSPCLEANUP, Remarks ("abrupt exit"); spec/fault-catalogue.md, A.1.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import time
from functools import partial
from typing import Any, Final

import pytest

import sharedsock as ss
from tests.campaigns.conftest import Run
from tests.campaigns.holding import Company, hold
from tests.descriptors import kinds, sharers
from tests.registry.dialogue import open_numbers

SIZE: Final = 8
PARTS: Final = 10
WAVES: Final = 25  # of each part
SMALL: Final = 3
LONGEST_S: Final = 0.03
SETTLED_S: Final = 60.0
_FORK: Final = multiprocessing.get_context("fork")
_never: Final = select.poll()


def start(company: Company, run: Run, *first: ss.SharedSocket) -> list[Any]:
    """Fork the holders, each with descriptors of its own on the first sockets."""
    made = []
    for index in range(company.size):
        seed = run.dice.randrange(1 << 32)
        made.append(_FORK.Process(target=hold, args=(company, index, seed, list(first)), daemon=True))
        made[-1].start()
    return made


def kill_all(company: Company, holders: list[Any], given: kinds.Pair, run: Run) -> None:
    """Kill them in a random order at random moments; look each time whether the peer still sees no end."""
    order = list(range(company.size))
    run.dice.shuffle(order)
    for place, index in enumerate(order):
        _never.poll(run.dice.random() * LONGEST_S * 1000)
        given.peer.send(b"bytes for whoever is faster")
        alive = [other for other in order[place:] if company.pid_of(other)]
        assert not alive or kinds.is_quiet(given.peer), "the end has come before the last holder's"
        holders[index].kill()
    for one in holders:
        one.join()
        assert one.exitcode == -9, f"it had ended by itself: {company.complaint()}"
        one.close()
    assert company.complaint() is None


def wait_counted(registry: ss.Registry, kept: ss.SharedSocket) -> float:
    """Wait until the registry counts the test's one descriptor and nothing else; return how long it took."""
    began_s = time.monotonic()
    while True:
        now = registry.client.statistics()
        counted = now.clients, now.sockets, now.descriptors, now.tickets, now.custody, kept.references()
        if counted == (1, 1, 1, 0, 0, 1):
            return time.monotonic() - began_s
        assert time.monotonic() < began_s + SETTLED_S, f"all are dead, and it counts {now}, {kept.holders()}"


@pytest.mark.rule("EXIT-1", "DUP-13")
@pytest.mark.fault("F-18", "F-88", "I2", "I3", "I6")
@pytest.mark.parametrize(
    "waves",
    [
        pytest.param(SMALL, id="small"),
        *(pytest.param(None, id=f"part{part}", marks=pytest.mark.campaign) for part in range(PARTS)),
    ],
)
def test_killed_holders_leave_nothing(waves: int | None, run: Run, bounds: Any) -> None:
    count = waves or run.rounds(WAVES)
    with ss.Registry() as registry:
        numbers = None
        for _ in range(count):
            company = Company(SIZE)
            with kinds.pair_of("tcp4") as kept, kinds.pair_of("unix-stream") as given:
                holders = start(company, run, given.local, kept.local)
                given.local.close()
                kill_all(company, holders, given, run)
                bounds.check("T_reap", kinds.wait_event(given.peer))  # a dead holder's ticket is a reference until then
                bounds.check("T_reap", wait_counted(registry, kept.local))
                assert kinds.is_quiet(kept.peer)
                kept.peer.send(b"still here")
                assert kept.local.recv(64) == b"still here"
                kept.local.close()
                bounds.check("T_eof", kinds.wait_event(kept.peer))
                assert kept.peer.recv(1) == b""
            company.close()
            assert registry.client.sockets() == ()
            numbers = numbers or len(open_numbers(registry.client.pid))
            # One that died in its handshake was never counted, and is noticed by the end of its connection.
            is_clean = partial(_has_at_most, registry.client.pid, numbers)
            sharers.wait_until(is_clean, "the registry to close what the dead had", SETTLED_S)
            assert not multiprocessing.active_children()
        run.note(holders=count * SIZE)
        assert os.getpid() in {one.pid for one in _holders_of_one(registry)}


def _has_at_most(pid: int, count: int) -> bool:
    return len(open_numbers(pid)) <= count


def _holders_of_one(registry: ss.Registry) -> tuple[ss.Holder, ...]:
    """The registry serves on: whoever shares now is counted."""
    ours, peer = ss.socketpair()
    with ours, peer:
        ss.revoke(ours.share(os.getpid()))
        return ours.holders()
