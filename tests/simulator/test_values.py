"""Options, the schedule and the invariants: pure values and functions, every edge of them."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Any

import pytest

from sharedsock.simulator import invariants
from sharedsock.simulator.closing_sockets import CLOSING_SOCKETS
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
        ({"linger": "on"}, "linger: 'on' is not off, 0 or whole seconds up to 60$"),
        ({"linger": "-1"}, "linger: '-1' is not off, 0 or whole seconds up to 60$"),
        ({"linger": "61"}, "linger: '61' is not off, 0 or whole seconds up to 60$"),
        ({"linger": "1.5"}, r"linger: '1.5' is not .* up to 60 \(SO_LINGER counts in whole seconds\)"),
        ({"linger": "nan"}, "linger: 'nan' is not off, 0 or whole seconds up to 60$"),
        ({"linger": ""}, "linger: '' is not off, 0 or whole seconds up to 60$"),
        ({"transport": "sctp"}, "transport: 'sctp' is none of tcp, tcp6, unix, udp"),
        ({"close_order": ("A", "B")}, "close-order: C left out; each of A, B, C gives up once"),
        ({"close_order": ("B",)}, "close-order: A, C left out; each of A, B, C gives up once"),
        ({"close_order": ("A", "B", "B")}, "close-order: 'B' is named twice; each of A, B, C gives up once"),
        ({"close_order": ("A", "B", "D")}, "close-order: 'D' is no process of this run: A, B, C"),
        ({"close_order": ("",)}, "close-order: '' is no process of this run: A, B, C"),
        ({"processes": 2, "close_order": ("C", "B", "A")}, "close-order: 'C' is no process of this run: A, B"),
        ({"kill": "D"}, "kill: 'D' is no process of this run: A, B, C, or none"),
        ({"kill": "peer"}, "kill: 'peer' is no process of this run: A, B, C, or none"),
        ({"processes": 2, "kill": "C"}, "kill: 'C' is no process of this run: A, B, or none"),
    ],
)
def test_options_out_of_range_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**values)


@pytest.mark.parametrize(("linger", "seconds", "kind"), [("off", None, "off"), ("0", 0, "0"), ("60", 60, "t")])
def test_linger_is_an_option_and_seconds(linger: str, seconds: int | None, kind: str) -> None:
    options = Options(linger=linger)
    assert (options.linger_s, options.linger_kind) == (seconds, kind)


@pytest.mark.parametrize(
    ("order", "kill", "victim", "closers"),
    [
        ("AB", "", None, "A"),
        ("AB", "none", None, "A"),
        ("AB", "B", "B", "A"),
        ("AB", "A", "A", ""),
        ("ABC", "", "B", "A"),
        ("CAB", "", "A", "C"),
        ("CAB", "none", None, "C"),
        ("ABC", "C", "C", "A"),
        ("ABC", "A", "A", "B"),
        ("ABCDE", "D", "D", "ABC"),
        ("EDCBA", "E", "E", "D"),
        ("EDCBA", "A", "A", "E"),
    ],
)
def test_the_parts_of_a_run(order: str, kill: str, victim: str | None, closers: str) -> None:
    """Promise 2 has who closes before the kill; if that comes first or last, or not at all, one close is enough."""
    schedule = Schedule.of(Options(processes=len(order), close_order=tuple(order), kill=kill))
    assert (schedule.maker, schedule.victim, schedule.closers) == ("A", victim, tuple(closers))
    assert schedule.holders == tuple(sorted(order))
    assert schedule.last == order[-1]
    assert (schedule.begins_with_kill, schedule.ends_with_kill) == (victim == order[0], victim == order[-1])


def test_without_a_choice_they_leave_by_their_names() -> None:
    assert Schedule.of(Options(processes=5)).order == ("A", "B", "C", "D", "E")
    assert Schedule.of(Options(processes=2)).victim is None
    assert Schedule.of(Options(processes=5)).victim == "B"


@pytest.mark.parametrize(
    ("options", "numbers"),
    [(Options(), [1, 2, 3, 4, 5, 6]), (Options(kill="C"), [1, 2, 3, 4, 5, 6]), (Options(kill="A"), [1, 4, 3, 2, 5, 6])],
)
def test_promises_come_in_the_order_in_which_they_come_true(options: Options, numbers: list[int]) -> None:
    promises = CLOSING_SOCKETS.promises_for(options)
    assert [promise.number for promise in promises] == numbers
    assert ("killed" in promises[4].text) is (options.kill == "C")
    assert "datagram" in CLOSING_SOCKETS.promises_for(Options(transport="udp"))[2].text


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


def test_a_loaded_machine_may_stand_still_for_half_a_second() -> None:
    assert invariants.bound_under(1.0, 0.05) == 0.05
    assert invariants.bound_under(4.0, 0.05) == 0.55
    assert invariants.bound_under(4.0, 1.0) == 4.0
