"""Options, the schedule and the invariants: pure values and functions, every edge of them."""

from __future__ import annotations

import os
import socket
from collections import Counter

import pytest

from sharedsock.simulator import invariants
from sharedsock.simulator.invariants import ProcessResidue, i1_exactly_once, i2_count, i6_residue, look_at
from sharedsock.simulator.scenario import Options
from sharedsock.simulator.schedule import Schedule, shares_of
from sharedsock.testing import observation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"processes": 1}, "processes: 1 is not in 2 to 26"),
        ({"processes": 27}, "processes: 27 is not in 2 to 26"),
        ({"threads": 0}, "threads: 0 is not in 1 to 100"),
        ({"threads": 101}, "threads: 101 is not in 1 to 100"),
        ({"start_method": "thread"}, "start-method: 'thread' is none of fork, forkserver, spawn"),
        ({"linger": "1"}, "linger: '1' is none of off, 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(values: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**values)  # type: ignore[arg-type]  # the mix of types is the test's own


@pytest.mark.parametrize(
    ("processes", "victim", "closers"), [(2, None, ("B",)), (3, "B", ("C",)), (5, "B", ("C", "D", "E"))]
)
def test_the_parts_of_a_run(processes: int, victim: str | None, closers: tuple[str, ...]) -> None:
    schedule = Schedule.of(Options(processes=processes))
    assert (schedule.maker, schedule.victim, schedule.closers) == ("A", victim, closers)
    assert len(schedule.holders) == processes
    assert schedule.last == closers[-1]


@pytest.mark.parametrize(("total", "count"), [(1024, 2), (1024, 3), (8, 25), (0, 2)])
def test_shares_are_even_consecutive_and_complete(total: int, count: int) -> None:
    cut = shares_of(total, tuple(f"n{place}" for place in range(count)))
    assert [number for part in cut.values() for number in part] == list(range(total))
    assert max(map(len, cut.values())) - min(map(len, cut.values())) <= 1


@pytest.mark.parametrize(
    ("received", "wrong"),
    [
        ([b"b", b"a"], ""),
        ([b"a"], "1 missing, 0 too many"),
        ([b"a", b"b", b"b"], "0 missing, 1 too many"),
        ([b"a", b"c"], "1 missing, 1 too many"),
    ],
)
def test_i1_counts_what_is_missing_and_what_is_too_many(received: list[bytes], wrong: str) -> None:
    assert i1_exactly_once([b"a", b"b"], received) == wrong


def test_i2_compares_counts() -> None:
    assert i2_count(2, 2) == ""
    assert i2_count(3, 2) == "the registry counts 3, there are 2"


def test_i6_tells_new_sockets_files_and_threads_and_forgives_what_is_gone() -> None:
    before = {"A": ProcessResidue(frozenset({1, 2}), Counter({"/x": 1}), 3)}
    assert i6_residue(before, before) == ""
    assert i6_residue(before, {"A": ProcessResidue(frozenset({1}), Counter(), 1)}) == ""
    worse = {"A": ProcessResidue(frozenset({1, 2, 9}), Counter({"/x": 2}), 5)}
    assert i6_residue(before, worse) == "A holds 1 more sockets, inodes [9]; A holds /x; A has 2 more threads"
    assert i6_residue({}, {"B": ProcessResidue(frozenset(), Counter(), 1)}) == "B has 1 more threads"


def test_a_look_knows_a_socket_by_its_inode() -> None:
    before = look_at(os.getpid())
    with socket.socket() as one:
        new = look_at(os.getpid()).sockets - before.sockets
        assert new == {os.fstat(one.fileno()).st_ino}


@pytest.mark.parametrize(("average", "now", "factor"), [(0.0, 1, 1.0), (1e6, 1, 4.0), (0.0, 1000000, 4.0)])
def test_bounds_are_four_times_as_long_under_load(
    average: float, now: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
    monkeypatch.setattr(observation, "runnable", lambda: now)
    assert invariants.slack() == factor
