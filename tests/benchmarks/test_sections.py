"""Every section of the benchmarks runs in its quick form, and says all that its table wants."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from benchmarks import Options, targets
from benchmarks.__main__ import SECTIONS
from tests.stores.postgres.servers import find_programs

MAY_BE_NONE = {
    "crawl: repeated requests of a kill",
    "CPU that 200 viewers cost",
    "database of a batch, 1 loop",  # a quick run fits into the pages that are there
    # Differences of two times: noise may hide them.
    "JSON Schema on a page of 4 KiB",
    "a synchronous batch in memory, beyond trio's",
    "import beyond trio",
    "ls of 10,000 runs, beyond that of one",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_prints_its_figures_and_their_controls(name: str, tmp_path: Path) -> None:
    if name == "postgres" and find_programs() is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    section = SECTIONS[name](Options(folder=tmp_path, is_quick=True))
    assert section.lines
    assert section.figures
    lines = targets.verdicts(name, section.found)
    rows = targets.of_section(name)
    assert len(lines) == len(rows) > 0
    for row, line in zip(rows, lines, strict=True):
        if row.needs_peers:  # peers are installed by the full run alone
            assert row.name not in section.found
            assert "not measured" in line
            continue
        found = section.found[row.name]
        assert math.isfinite(found.value)
        assert found.value > 0 or row.limit == 0 or row.name in MAY_BE_NONE
        assert f"{found.value:,.5g} {row.target} | {row.control}: {found.control}" in line
        assert re.search(r"\d", found.control), "the control has no figure"


def test_every_row_is_of_a_section_and_has_a_name_of_its_own() -> None:
    assert {row.section for row in targets.ROWS} == SECTIONS.keys()
    assert len(targets.BY_NAME) == len(targets.ROWS)


@pytest.mark.parametrize(
    ("at_least", "met"), [(False, [True, True, False]), (True, [False, True, True])]
)
def test_a_target_is_met_on_its_side(at_least: bool, met: list[bool]) -> None:
    row = targets.Row("s", "work", "x", 2, "nothing", at_least=at_least)
    assert [row.is_met(value) for value in (1.9, 2, 2.1)] == met
