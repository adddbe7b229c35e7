"""Draw the state tables of `sharedsock/model/lifecycle.py` into the README, between two marker lines.

    python tools/draw_lifecycle.py            write the README
    python tools/draw_lifecycle.py --check    exit 1 if it shows something else than the tables say
    python tools/draw_lifecycle.py --print    print the drawings

Mermaid diagrams, one per lifecycle; below each, the states that are references and the events that move nothing.
"""

from __future__ import annotations

import argparse
import sys
from enum import Enum
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sharedsock.model.lifecycle import COUPLINGS, LIFECYCLES, Lifecycle

__all__ = ["BEGIN", "END", "draw", "main", "page", "replaced"]

BEGIN: Final = "<!-- drawn by tools/draw_lifecycle.py from sharedsock/model/lifecycle.py -->"
END: Final = "<!-- end of the drawings -->"


def draw(table: Lifecycle[Enum, Enum]) -> str:
    """Return one lifecycle as a mermaid state diagram; events between the same two states share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", f"    [*] --> {table.first.name}"]
    arrows: dict[tuple[Enum, Enum], list[str]] = {}
    for (state, event), after in table.rows.items():
        if state is not after:
            arrows.setdefault((state, after), []).append(str(event.value))
    lines += [f"    {state.name} --> {after.name}: {' / '.join(events)}" for (state, after), events in arrows.items()]
    lines += [f"    {state.name} --> [*]" for state in table.states if state in table.ends()]
    lines.append("```")
    return "\n".join(lines)


def page() -> str:
    """Return all drawings, with what counts as a reference, what stays where it is, and the couplings."""
    parts = []
    for table in LIFECYCLES:
        parts += [f"**{table.name}**", draw(table)]
        stays = [f"{state.name} on *{event.value}*" for (state, event), after in table.rows.items() if state is after]
        notes = []
        if table.references:
            references = [state.name for state in table.states if state in table.references]
            notes.append(f"A reference while {', '.join(references)}.")
        if stays:
            notes.append(f"Unmoved: {', '.join(stays)}.")
        if notes:
            parts.append(" ".join(notes))
    rows = [
        f"| {_lifecycle_of(c.cause)} *{c.cause.value}* | {_lifecycle_of(c.effect)} *{c.effect.value}* | {c.whom} |"
        for c in COUPLINGS
    ]
    parts.append("\n".join(["| when | then | to whom |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _lifecycle_of(event: Enum) -> str:
    return next(table.name for table in LIFECYCLES if type(event) is table.events)


def replaced(text: str) -> str:
    """Return a README's text with the drawings of now between its markers.

    Raises:
        ValueError: the markers are not there, in order, once.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before:
        raise ValueError(f"the text needs the lines {BEGIN!r} and {END!r}, once")
    return f"{before}{BEGIN}\n\n{page()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write, check or print; return 1 if a check finds the README stale."""
    parser = argparse.ArgumentParser(prog="draw_lifecycle.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("readme", nargs="?", type=Path, default=Path(__file__).resolve().parents[1] / "README.md")
    options = parser.parse_args(arguments)
    if options.print:
        print(page())
        return 0
    shown = options.readme.read_text()
    wanted = replaced(shown)
    if shown == wanted:
        print("lifecycle drawings: as the tables say")
        return 0
    if options.check:
        print("lifecycle drawings: stale; run python tools/draw_lifecycle.py")
        return 1
    options.readme.write_text(wanted)
    print("lifecycle drawings: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
