"""Fixtures of the tests of the store in PostgreSQL: one server for all of them."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stores.postgres.servers import Server, find_programs, running_pooler, running_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'trio-ckpt[postgres]'")
    if find_programs() is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    with running_server("fsync=off") as running:
        yield running


@pytest.fixture(scope="session")
def pooler(server: Server) -> Iterator[int]:
    if shutil.which("pgbouncer") is None and not Path("/usr/sbin/pgbouncer").exists():
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with running_pooler(server) as port:
        yield port


@pytest.fixture
def schema() -> str:
    """A schema of the test's own."""
    return f"test_{next(_numbers)}"


@pytest.fixture
def url(server: Server, schema: str) -> str:
    return server.url(f"?schema={schema}")


@pytest.fixture
def sql(server: Server) -> Iterator[Callable[..., list[tuple[object, ...]]]]:
    """Executes SQL as the owner of the database."""
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as connection:

        def execute(statement: str, *values: object) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

        yield execute
