"""The cookbook's recipe of rows in PostgreSQL, with a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.recipes import change, recipe
from tests.stores.postgres.servers import Server


def test_the_recipe_writes_each_row_once(
    server: Server,
    sql: Callable[..., list[tuple[object, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    program = change(
        recipe("a PostgreSQL server"), "postgresql://jobs@db.example/jobs", server.url()
    )
    again = change(program, '"cookbook.ckpt"', '"another.ckpt"')
    for code in (program, again):  # as if no record of the first had become durable
        exec(compile(code, "cookbook.md", "exec"), {"__name__": "__main__"})
    rows = [("0-0", "Emma"), ("0-1", "Persuasion"), ("1-0", "Ulysses")]
    assert sql("SELECT id, title FROM book ORDER BY id") == rows
    sql("DROP TABLE book")
