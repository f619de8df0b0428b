"""The collector writes rows into SQLite and PostgreSQL, each once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from examples._api.records import characters_of, decompositions_of
from examples._collector.options import parse_options
from tests.examples.collecting import SMALL, Direct, api, collect
from tests.stores.postgres.conftest import server as server
from tests.stores.postgres.servers import Server

SELECT = "SELECT endpoint, repo, record FROM records ORDER BY endpoint, repo, page, line"


def rows_of(database: str) -> list[Any]:
    """The records of a database, in their order."""
    if not database.startswith("postgresql:"):
        connection: Any = sqlite3.connect(database)
    else:
        import psycopg

        connection = psycopg.connect(database)
    rows = connection.execute(SELECT).fetchall()
    connection.close()
    return [(endpoint, repo, json.loads(record)) for endpoint, repo, record in rows]


def expected() -> list[Any]:
    characters = [("characters", repo, r) for repo in SMALL for r in characters_of(repo)]
    return characters + [
        ("decompositions", repo, record) for repo in SMALL for record in decompositions_of(repo)
    ]


async def stopped_and_resumed(out: Path, database: str) -> None:
    """Collect; an error of the client ends the first two starts in the middle of it."""

    class StopError(Exception):
        pass

    def stop_at(limit: int) -> Any:
        def before(number: int) -> None:
            if number == limit:
                raise StopError

        return before

    for limit in (5, 4):
        with pytest.raises((StopError, ExceptionGroup)):
            await collect(Direct(api(), before=stop_at(limit)), out, "--database", database)
    assert await collect(Direct(api()), out, "--database", database) == 0
    assert rows_of(database) == expected()
    again = Direct(api())
    assert await collect(again, out, "--database", database) == 0
    assert again.asked == []


async def test_records_are_rows_of_sqlite_once(tmp_path: Path) -> None:
    await stopped_and_resumed(tmp_path / "out", str(tmp_path / "rows.db"))
    assert not (tmp_path / "out" / "characters").exists()


async def test_records_are_rows_of_postgresql_once(tmp_path: Path, server: Server) -> None:
    import psycopg

    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE SCHEMA collected")
    url = server.url("?options=-csearch_path%3Dcollected")
    await stopped_and_resumed(tmp_path / "out", url)


def test_a_database_is_not_archived(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--out", "data", "--database", "rows.db", "--fresh"])
    assert "choose another --database and --out" in capsys.readouterr().err
