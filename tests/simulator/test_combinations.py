"""Every combination of options holds, and says n/a exactly where the table promise x transport does.

A covering set runs with the suite: every pair of values of any two options is in it. The full product of transports,
lingers, start methods, close orders and kills is behind the marker `campaign`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from sharedsock.simulator.runner import SCENARIOS, play
from sharedsock.simulator.scenario import NOBODY, START_METHODS, Options, Report, Standing
from sharedsock.simulator.schedule import Schedule
from sharedsock.simulator.transports import CLAUSES, TRANSPORTS

STORY = SCENARIOS["closing-sockets"]
LINGERS: Final = ("off", "0", "1")

# The values of each option; an order and a kill are places, so that they mean something for any number of processes.
FACTORS: Final[dict[str, tuple[Any, ...]]] = {
    "transport": tuple(TRANSPORTS),
    "linger": LINGERS,
    "start_method": START_METHODS,
    "processes": (2, 3, 4),
    "order": ("as they come", "reversed", "rotated"),
    "kill": ("", NOBODY, 0, 1, -1),
    "threads": (1, 3),
}


def options_of(values: Sequence[Any]) -> Options:
    chosen = dict(zip(FACTORS, values, strict=True))
    names = list("ABCD"[: chosen["processes"]])
    order = {"as they come": names, "reversed": names[::-1], "rotated": names[1:] + names[:1]}[chosen.pop("order")]
    kill = chosen.pop("kill")
    return Options(**chosen, close_order=tuple(order), kill=kill if isinstance(kill, str) else order[kill])


def covering_set() -> list[tuple[Any, ...]]:
    """Choose rows so that each pair of values of two factors is in one: greedily, the same rows every time."""
    bits: dict[Any, int] = {}

    def pairs(row: Sequence[Any]) -> int:
        """The pairs of a row as a set of bits: it is asked two thousand times for each row that is chosen."""
        return sum(1 << bits.setdefault(pair, len(bits)) for pair in itertools.combinations(enumerate(row), 2))

    covered = {row: pairs(row) for row in itertools.product(*FACTORS.values())}
    missing = (1 << len(bits)) - 1
    rows = []
    while missing:
        rows.append(max(covered, key=lambda row: (covered[row] & missing).bit_count()))
        missing &= ~covered[rows[-1]]
    return rows


def in_short(options: Options) -> str:
    schedule = Schedule.of(options)
    order = "".join(name.lower() if name == schedule.victim else name for name in schedule.order)
    return f"{options.transport}-{options.linger}-{options.start_method}-{order}-{options.threads}"


def check(report: Report) -> None:
    """Every promise held or is n/a; and each clause of the table was looked at, or is n/a with the table's reason."""
    assert report.holds, "; ".join(f"{one.promise.name}: {one.reason}" for one in report.broken)
    options, schedule = report.options, Schedule.of(report.options)
    unplayed = {one.promise.number for one in report.verdicts if one.standing is Standing.NO_MEANING}
    found = {finding.clause for verdict in report.verdicts for finding in verdict.findings}
    lacking = {clause.name: reason for verdict in report.verdicts for clause, reason in verdict.lacking}
    for clause in CLAUSES:
        if clause.number in unplayed or clause.linger not in ("", options.linger_kind):
            continue
        if options.transport in clause.lacking:
            assert lacking.get(clause.name) == clause.lacking[options.transport]
            assert clause.name not in found
        elif clause.linger == "t" and schedule.ends_with_kill:
            assert "is killed" in lacking.get(clause.name, "")
        else:
            assert clause.name in found, f"{clause.text}: the table promises it, and nobody looked"
            assert clause.name not in lacking
    assert unplayed <= {2, 4}
    assert (4 in unplayed) is (schedule.victim is None or schedule.ends_with_kill)
    assert (2 in unplayed) is (not schedule.closers)


COVERING: Final = [options_of(row) for row in covering_set()]


@pytest.mark.rule("LINGER-6", "LINGER-7", "LINGER-11", "LINGER-13", "REF-3", "REF-5", "EXIT-1")
@pytest.mark.fault("F-38", "F-72")
@pytest.mark.parametrize("options", COVERING, ids=in_short)
def test_a_covering_set_of_combinations_holds(options: Options) -> None:
    check(play(STORY, options))


def test_the_covering_set_has_every_pair_and_every_transport_with_every_linger() -> None:
    rows = covering_set()
    for (one, these), (two, those) in itertools.combinations(enumerate(FACTORS.values()), 2):
        assert {(row[one], row[two]) for row in rows} == set(itertools.product(these, those))
    assert {(one.transport, one.linger) for one in COVERING} == set(itertools.product(TRANSPORTS, LINGERS))
    assert {(one.transport, one.start_method) for one in COVERING} == set(itertools.product(TRANSPORTS, START_METHODS))
    ends = {(one.transport, Schedule.of(one).ends_with_kill) for one in COVERING}
    assert ends == set(itertools.product(TRANSPORTS, (False, True)))
    assert len(COVERING) < 30


PARTS: Final = ("AB", "ABC", "BAC", "CAB")


def full_product(transport: str, linger: str, method: str, part: str) -> Iterator[Options]:
    """Yield every order and every kill: of two processes, or of three of which the first leaves first."""
    for order in itertools.permutations(part):
        if len(order) == 2 or order[0] == part[0]:
            for kill in (NOBODY, *sorted(part)):
                yield Options(len(part), 1, method, linger, transport, order, kill)


@pytest.mark.campaign
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("linger", LINGERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_full_product_holds(transport: str, linger: str, method: str, part: str) -> None:
    for options in full_product(transport, linger, method, part):
        try:
            check(play(STORY, options))
        except AssertionError as error:
            raise AssertionError(f"{in_short(options)}: {error}") from error


def test_the_full_product_is_full() -> None:
    played = [
        in_short(options)
        for transport, linger, method, part in itertools.product(TRANSPORTS, LINGERS, START_METHODS, PARTS)
        for options in full_product(transport, linger, method, part)
    ]
    assert len(set(played)) == len(played) == 4 * 3 * 3 * (2 * 3 + 6 * 4)


# The table.


def markdown() -> str:
    """Return the table as the README has it."""
    lines = [
        "| | part of the promise | rule | " + " | ".join(TRANSPORTS) + " |",
        "| --- | --- | --- |" + " --- |" * len(TRANSPORTS),
    ]
    for clause in CLAUSES:
        cells = (f"n/a: {clause.lacking[name]}" if name in clause.lacking else "yes" for name in TRANSPORTS)
        lines.append(f"| {clause.number} | {clause.text} | {clause.rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_readme_has_the_table_the_simulator_plays_by() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert markdown() in readme, f"README.md should have:\n{markdown()}"


def test_the_table_speaks_of_known_transports_and_promises_only() -> None:
    numbers = {promise.number for promise in STORY.promises}
    assert {clause.number for clause in CLAUSES} == numbers, "each promise has a row, and each row a promise"
    assert len({clause.name for clause in CLAUSES}) == len(CLAUSES)
    for clause in CLAUSES:
        assert set(clause.lacking) < set(TRANSPORTS), "what no transport has is no promise"
        assert clause.linger in ("", "off", "0", "t")
