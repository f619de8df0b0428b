"""What is between the markers of a page is what the code and the kept figures say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import Found, kept
from docs import diagrams
from docs.peers import KILLS
from tests.fuzz.found import FOUND
from tests.fuzz.table import TARGETS
from tests.proof import read_rows
from trio_ckpt._commit.exits import GATE, Exit
from trio_ckpt._tokens.token import TRANSITIONS

STEPPERS = ("DBOS", "LangGraph")  # what the benchmarks of steps compare with


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


def run_with(**found: Found) -> kept.Run:
    return kept.Run(at="", machine={}, versions={}, peers=[], found=found)


def cells_of(run: kept.Run) -> dict[str, list[str]]:
    """The cells of the comparison, by tool."""
    lines = diagrams.comparison_table(run).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def test_the_comparison_has_the_ratios_of_its_run() -> None:
    found = {
        "1 loop": Found(0.5, "1,000/s", "DBOS 250.0/s"),
        "64 loops": Found(4, "2,000/s", "LangGraph 100/s"),
        "crawl: pages/s against Scrapy": Found(3.26, "100/s", "Scrapy 100/s"),
        KILLS: Found(1, "3,100 requests to 3,000 pages", "Scrapy 1,999 pages, Crawlee 2 pages"),
    }
    cells = cells_of(run_with(**found))
    assert cells["Scrapy + JOBDIR"][1] == "3.3 × its pages/s"
    steps = "2 × the faster of DBOS and LangGraph in 1 loop, 80 × in 64 loops"
    assert all(cells[name][1] == f"durable steps/s: {steps}" for name in STEPPERS)
    batches = "0.5 × a bare commit to SQLite in 1 loop, 4 × in 64 loops"
    assert cells["a `checkpoint.json`"][1] == f"durable batches/s: {batches}"
    assert cells["**trio_ckpt**"][0].endswith(" 1 of 3,000 pages wrong after two kills")
    assert cells["Scrapy + JOBDIR"][0].endswith(" 1,999 of 3,000 pages wrong after two kills")
    assert cells["Crawlee"][0].endswith(" 2 of 3,000 pages wrong after two kills")


def test_the_comparison_says_what_its_run_has_not_measured() -> None:
    cells = cells_of(run_with(**{"1 loop": Found(0.5, "1,000/s", "")}))
    assert all(cells[name][1] == "not measured" for name in (*STEPPERS, "Crawlee", "Temporal"))
    assert "not measured" in cells["Scrapy + JOBDIR"][0]


@pytest.mark.parametrize("name", ["README.md", "docs/explanation/comparison.md"])
def test_a_peer_has_no_figure_that_no_script_makes(name: str) -> None:
    """Sentences that name a peer have figures in the table only, which is made from a kept run."""
    page = (Path(__file__).parents[2] / name).read_text()
    written = re.sub(r"<!-- comparison:.*?<!-- end of comparison -->", "", page, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", written)
    sentences = re.split(r"(?<=[.:;])\s", prose)
    peers = re.compile("Scrapy|Crawlee|DBOS|LangGraph|Temporal")
    assert [s for s in sentences if peers.search(s) and re.search(r"\d", s)] == []
