"""The benchmark's arithmetic, and a smoke run of its cheapest item. Figures are not judged here."""

from __future__ import annotations

from functools import partial

import pytest

from tools.bench import peers
from tools.bench.__main__ import ITEMS, line, main
from tools.bench.notes import NOTES
from tools.bench.rounds import Result, Settings, interleave, ratio


@pytest.mark.parametrize(
    ("measured", "higher", "verdict"),
    [(0.96, True, "goal"), (0.95, True, "goal"), (0.9, True, "floor"), (0.7, True, "BELOW"),
     (0.5, False, "goal"), (0.9, False, "floor"), (1.1, False, "BELOW")],
)  # fmt: skip
def test_a_verdict_knows_which_way_is_better(measured: float, higher: bool, verdict: str) -> None:
    result = Result("P0", "case", measured, 0.95 if higher else 0.6, 0.8 if higher else 1.0, higher)
    assert result.verdict == verdict
    assert verdict in line(result, markdown=False)
    assert line(result, markdown=True).count("|") == 7


def test_a_ratio_is_taken_inside_each_round() -> None:
    """A machine that is twice as slow in one round is so for both."""
    measured, spread = ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert measured == 0.5
    assert spread == (0.5, 0.5)


def _calls_of_a_run(seed: int) -> list[str]:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return 1.0

    values = interleave({name: partial(contender, name) for name in "abc"}, Settings(quick=True, seed=seed))
    assert {name: len(seen) for name, seen in values.items()} == dict.fromkeys("abc", 3)
    return calls


def test_rounds_are_interleaved_in_an_order_that_the_seed_decides() -> None:
    """Each contender once per round, and once before them to warm up."""
    calls = _calls_of_a_run(7)
    assert all(set(calls[begin : begin + 3]) == set("abc") for begin in range(0, 12, 3))
    assert calls == _calls_of_a_run(7)
    assert any(_calls_of_a_run(seed) != calls for seed in range(20))


def test_an_unknown_item_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["P99"])
    assert ended.value.code == 2
    assert "no such item: P99" in capsys.readouterr().err


def test_a_quick_run_prints_its_table_and_its_conditions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--seed", "1", "P3"]) == 0
    printed = capsys.readouterr().out
    assert "data-ready recv(1) vs plain" in printed
    assert "seed 1" in printed


@pytest.mark.parametrize(("item", "case"), [("P4", "64 KiB stream UNIX"), ("P15", "open and close")])
def test_each_measure_runs(item: str, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that need no peer and no crowd; the others are run by the command."""
    assert main(["--quick", "--seed", "1", item]) == 0
    assert case in capsys.readouterr().out


def test_every_note_is_about_a_line_of_the_table() -> None:
    assert set(NOTES) <= set(ITEMS)


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", ("asyncio", "no_such_peer"))
    assert peers.absent() == ["no_such_peer"]
