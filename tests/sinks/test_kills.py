"""A program that is killed at any statement leaves the rows of one that was not."""

from __future__ import annotations

from pathlib import Path

from tests.sinks.kills import POINTS, STEP, empty, sweep
from tests.sinks.program import connect

KILLS = POINTS // STEP + 1  # a share: `python -m tests.sinks.kills 200` makes more


def test_kills_at_any_statement_neither_lose_nor_double_rows(database: str, tmp_path: Path) -> None:
    connection = connect(database)
    for table in ("pages", "counted"):  # the sweep makes its own
        connection.execute(f"DROP TABLE {table}")
    connection.commit()
    connection.close()
    found = sweep(database, tmp_path, KILLS)
    assert found["kills"] == KILLS
    assert found["wrong"] == 0
    empty(database)
