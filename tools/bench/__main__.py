"""Measure what is promised about speed, side by side in one run: goal, floor, measured, verdict.

    python -m tools.bench [--quick] [--markdown] [--seed N] [P1 P2 ...]

Exits 1 if a full run finds something below its floor.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Final

from tools.bench import (
    aborts,
    accepts,
    crowds,
    fastpath,
    openings,
    peers,
    pingpong,
    plugin,
    registry,
    sharing,
    spi,
    streams,
)
from tools.bench.notes import NOTES
from tools.bench.rounds import Result, Settings

__all__ = ["main"]

MEASURES: Final[dict[Callable[[Settings], Iterator[Result]], tuple[str, ...]]] = {
    pingpong.measure: ("P1", "P2", "P5"),
    fastpath.measure: ("P3",),
    streams.measure: ("P4",),
    aborts.measure: ("P6",),
    accepts.measure: ("P7",),
    crowds.measure: ("P8",),
    sharing.measure: ("P9", "P10"),
    registry.measure: ("P11", "P12", "P13", "P14"),
    openings.measure: ("P15", "P16"),
    plugin.measure: ("P16",),
    spi.measure: ("P17", "P18"),
}
ITEMS: Final = list(dict.fromkeys(item for items in MEASURES.values() for item in items))


def conditions(settings: Settings) -> str:
    """Say on what the figures were taken."""
    return (
        f"{os.cpu_count()} cores {platform.machine()}, Linux {platform.release()}, "
        f"CPython {platform.python_version()}, loopback, median of {settings.rounds} interleaved rounds, "
        f"seed {settings.seed}, load {os.getloadavg()[0]:.1f} at the end"
    )


def line(result: Result, markdown: bool) -> str:
    """Return one line of the table."""
    sign = ">=" if result.higher_is_better else "<="
    spread = f" ({result.spread[0]:.2f}-{result.spread[1]:.2f})" if result.spread else ""
    cells = [
        result.item,
        result.case,
        f"{sign} {result.goal:g}",
        f"{result.floor:g}",
        f"{result.measured:.2f}{spread}",
        result.verdict,
    ]
    if markdown:
        return f"| {' | '.join(cells)} |"
    return "{:3} {:58} {:>8} {:>6}  {:20} {}".format(*cells)


def main(arguments: list[str]) -> int:
    """Measure, print each line as it is known; return 1 if a full run is below a floor."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rounds, figures that mean little")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)), help="of the order of the rounds")
    options = parser.parse_args(arguments)
    strangers = set(options.items) - set(ITEMS)
    if strangers:
        parser.error(f"no such item: {', '.join(sorted(strangers))}; there are {', '.join(ITEMS)}")
    wanted = options.items or ITEMS
    settings = Settings(options.quick, options.seed)

    if options.markdown:
        print("| | item | goal | floor | measured (quartiles) | reached |\n| --- | --- | --- | --- | --- | --- |")
    else:
        print("{:3} {:58} {:>8} {:>6}  {:20} {}".format("", "item", "goal", "floor", "measured (quartiles)", "reached"))
    results = []
    for measure, items in MEASURES.items():
        if set(items) & set(wanted):
            for result in measure(settings):
                if result.item in wanted:
                    results.append(result)
                    print(line(result, options.markdown), flush=True)
    print(f"\n{conditions(settings)}")
    if "P5" in wanted and (missing := peers.absent()):
        print(f"\nabsent: {', '.join(missing)} (the `bench` extra)")
    missed = {result.item for result in results if result.verdict != "goal"}
    for item, note in NOTES.items():
        if item in missed:
            print(f"\n{item}: {note}")
    return 1 if not options.quick and any(result.verdict == "BELOW" for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
