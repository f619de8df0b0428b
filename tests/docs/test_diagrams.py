"""What is between the markers of a page is what the code and the kept figures say."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import diagrams
from tests.fuzz.found import FOUND
from tests.fuzz.table import TARGETS
from tests.proof import read_rows
from trio_ckpt._commit.exits import GATE, Exit
from trio_ckpt._tokens.token import TRANSITIONS


@pytest.mark.parametrize("path", diagrams.PAGES, ids=lambda path: path.stem)
def test_the_page_is_up_to_date(path: Path) -> None:
    """If this fails: ``python docs/diagrams.py``."""
    page = path.read_text(encoding="utf-8")
    assert diagrams.render(page, diagrams.PAGES[path]) == page


def test_a_block_that_is_not_up_to_date_is_noticed() -> None:
    path = diagrams.EXPLANATION / "how-it-works.md"
    page = path.read_text(encoding="utf-8")
    stale = page.replace("▶ CONFIRMED", "▶ FAILED")
    assert stale != page
    assert diagrams.render(stale, diagrams.PAGES[path]) == page


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        diagrams.render("no markers", {"gate": diagrams.gate_table})


def test_every_kept_figure_is_in_a_table() -> None:
    tables = diagrams.proof_tables()
    sweeps = {n: row for n, row in read_rows().items() if not n.startswith(diagrams.FUZZING)}
    for name, figures in sweeps.items():
        (table,) = [part for part in tables.split("\n\n") if f"| {name}" in part]
        cells = [cell.strip() for cell in table.replace("\n", "|").split("|")]
        for what, value in figures.items():
            shown = f"{value:,}" if isinstance(value, int) else value
            assert shown in cells or (what in ("day", "where") and shown in table), (name, what)


def test_every_kept_figure_of_fuzzing_is_in_its_table() -> None:
    def split(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    lines = diagrams.fuzz_table().splitlines()
    columns = split(lines[0])
    rows = {cells[0]: cells for line in lines[2:-2] if (cells := split(line))}
    kept = {n: row for n, row in read_rows().items() if n.startswith(diagrams.FUZZING)}
    assert len(kept) > 40
    for name, figures in kept.items():
        way, _, target = name.partition(" ")
        cells = dict(zip(columns, rows[target], strict=True))
        assert cells[way] == f"{figures['executions']:,}"
        assert int(cells["peak MiB"]) >= int(figures["peak MiB"])
        assert int(cells["findings"]) >= int(figures["findings"])
        assert f"{figures['day']}, {figures['where']}" in cells["on"]
    assert rows.keys() == TARGETS.keys()
    assert lines[-1] == f"{sum(int(row['executions']) for row in kept.values()):,} inputs in all."


def test_every_input_that_broke_a_law_is_told() -> None:
    table = diagrams.found_table()
    assert all(f"| {target} | {what} |" in table for target, what, _ in FOUND)


def test_the_diagram_has_every_state_and_every_transition() -> None:
    diagram = diagrams.token_diagram()
    for events in TRANSITIONS.values():
        for event, target in events.items():
            assert any(event.value in line and target.name in line for line in diagram.splitlines())
    assert all(state.name in diagram for state in TRANSITIONS)


def test_the_table_has_every_cell() -> None:
    rows = diagrams.gate_table().splitlines()
    assert len(rows) == len(GATE) + 2
    for row, (state, actions) in zip(rows[2:], GATE.items(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == [state.name, *(actions[way].value for way in Exit)]
