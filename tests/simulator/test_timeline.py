"""The drawing: aligned, plain, and every mark where it belongs."""

from __future__ import annotations

import pytest

from sharedsock.simulator.timeline import Lane, Mark, Moment, Timeline


def lane(thread: str, *moments: tuple[Mark, float], process: str = "A") -> Lane:
    return Lane(process, thread, tuple(Moment(mark, at_s) for mark, at_s in moments))


SPANS = ((1, "share", 0.0, 1.0), (2, "close", 1.0, 2.0))


def cells(timeline: Timeline, place: int = 0) -> str:
    row = timeline.draw(40)[2 + place]
    return row.partition("|")[2]


def test_a_wait_is_drawn_from_its_beginning_to_its_end() -> None:
    drawn = cells(Timeline((lane("recv-1", (Mark.BLOCKED, 0.5), (Mark.ABORTED, 1.5)),), SPANS))
    first, second = drawn.split("|")
    assert first.strip("=") == " " * (len(first) // 2) + "b"
    assert second.startswith("=")
    assert second.endswith("x")


def test_a_killed_thread_has_no_further_mark() -> None:
    drawn = cells(Timeline((lane("recv-1", (Mark.BLOCKED, 0.0), (Mark.KILLED, 0.1)),), SPANS))
    assert drawn.startswith("bK")
    assert set(drawn[2:]) <= {" ", "|"}


def test_a_linger_is_drawn_for_as_long_as_it_waits() -> None:
    drawn = cells(Timeline((lane("main", (Mark.LINGERS, 0.25), (Mark.LAST_CLOSE, 1.5)),), SPANS))
    first, second = drawn.split("|")
    assert first.strip("~") == " " * (len(first) // 4) + "l"
    assert second[:-1].strip("~") == ""
    assert second[-1] == "L"


def test_what_the_peer_sees_is_drawn_in_its_lane() -> None:
    timeline = Timeline((lane("main", (Mark.FIN, 0.0), (Mark.RESET, 1.0), process="peer"),), SPANS)
    assert cells(timeline).replace(" ", "") == "F|R"
    assert timeline.legend(80) == ["F FIN  R reset"]


@pytest.mark.parametrize("stronger", [Mark.ABORTED, Mark.CLOSED, Mark.LAST_CLOSE, Mark.KILLED, Mark.ACCEPTED])
def test_the_rarer_mark_wins_a_column(stronger: Mark) -> None:
    for order in ((Mark.RECEIVED, stronger), (stronger, Mark.RECEIVED)):
        drawn = cells(Timeline((lane("recv-1", *((mark, 0.0) for mark in order)),), SPANS))
        assert drawn[0] == stronger.letter


def test_lanes_of_a_process_that_look_alike_share_a_row() -> None:
    alike = [lane(f"recv-{number}", (Mark.BLOCKED, 0.0), (Mark.ABORTED, 1.0)) for number in range(1, 100)]
    other = lane("recv-1", (Mark.BLOCKED, 0.0), (Mark.ABORTED, 1.0), process="B")
    labels = [row.partition("|")[0].strip() for row in Timeline((*alike, other), SPANS).draw(60)[2:4]]
    assert labels == ["A recv x99", "B recv-1"]


@pytest.mark.parametrize("width", [40, 80, 112])
def test_every_row_fits_is_aligned_and_plain(width: int) -> None:
    lanes = tuple(lane(f"recv-{number}", (Mark.BLOCKED, number / 10)) for number in range(1, 4))
    rows = Timeline(lanes, SPANS).draw(width)
    bars = [[place for place, letter in enumerate(row) if letter == "|"] for row in rows if "|" in row]
    assert len(bars) == 5
    assert all(found == bars[0] for found in bars)
    assert all(len(row) <= width and row.isascii() and row == row.rstrip() for row in rows)


@pytest.mark.parametrize("width", [40, 80, 112])
def test_the_legend_explains_what_is_drawn_and_nothing_else(width: int) -> None:
    every = Timeline((lane("recv-1", *((mark, 0.0) for mark in Mark)),), SPANS).legend(width)
    assert all(len(line) <= width for line in every)
    told = "  ".join(every)
    for words in ("b= blocked", "l~ lingering", "L last close", "K killed", "F FIN", "R reset"):
        assert words in told, "an entry is never broken in two"
    assert Timeline((lane("recv-1", (Mark.BLOCKED, 0.0)),), SPANS).legend(width) == ["b= blocked"]


def test_a_run_in_which_nothing_happened_draws_nothing() -> None:
    assert Timeline((), ()).draw(80) == []
    assert Timeline((), ()).legend(80) == []
