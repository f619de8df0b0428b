"""Fixtures of the tests of sinks: a database of each kind, with the tables of `program`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.sinks.program import connect, make_tables
from tests.stores.postgres.conftest import server as server
from tests.stores.postgres.servers import Server

_numbers = itertools.count()


@pytest.fixture
def postgres(server: Server) -> str:
    """The URL of a schema of the test's own, with the tables."""
    schema = f"rows_{next(_numbers)}"
    connection = connect(server.url())
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.commit()
    connection.close()
    url = server.url(f"?options=-csearch_path%3D{schema}")
    make_tables(url)
    return url


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The path of a file with the tables."""
    path = str(tmp_path / "rows.db")
    make_tables(path)
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))
