"""The README's drawings are the tables; a stale one is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedsock.model.lifecycle import LIFECYCLES, TICKET
from tools.draw_lifecycle import BEGIN, END, draw, main, page, replaced

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readme_shows_the_tables_of_now() -> None:
    assert main(["--check", str(README)]) == 0


def test_every_arrow_is_a_row() -> None:
    """One arrow for each pair of states that a row joins, and it names each of the events."""
    for table in LIFECYCLES:
        drawn = draw(table)
        for (state, event), after in table.rows.items():
            if state is not after:
                arrow = next(
                    line for line in drawn.splitlines() if line.startswith(f"    {state.name} --> {after.name}:")
                )
                assert str(event.value) in arrow
        assert drawn.count("[*]") == 1 + len(table.ends())


def test_the_page_names_what_counts() -> None:
    assert "A reference while ISSUED, CLAIMING." in page()
    assert "**TICKET**" in page()
    assert len(TICKET.references) == 2


def test_a_stale_page_is_noticed_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale drawing\n{END}\nafter\n")
    assert main(["--check", str(readme)]) == 1
    assert "stale" in capsys.readouterr().out
    assert main([str(readme)]) == 0
    assert main(["--check", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale drawing" not in text


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        replaced(text)
