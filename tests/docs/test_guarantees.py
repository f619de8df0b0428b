"""Every promise of the page names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "explanation" / "guarantees.md"


def promises() -> list[tuple[str, str]]:
    """The rows of the tables of promises: what is promised, and what shows it."""
    text = PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \| shown by \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    return [(cells[1].strip(), cells[2]) for cells in (row.split("|") for row in rows)]


def test_every_promise_names_tests_that_are_there() -> None:
    assert len(promises()) >= 20
    for promise, shown_by in promises():
        names = re.findall(r"`([\w/]+\.py)`", shown_by)
        assert names, promise
        for name in names:
            assert re.search(r"^(async )?def test_", (TESTS / name).read_text(), re.M), name
