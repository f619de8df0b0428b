"""Where records go with ``--database``: a row for each, in a table of SQLite or PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import attrs

import trio_ckpt
from trio_ckpt.sinks import PostgresSink, Sink, SinkConnection, SinkMarker, SqliteSink

TABLE = """
CREATE TABLE IF NOT EXISTS records (
    endpoint TEXT NOT NULL, repo TEXT NOT NULL, page INTEGER NOT NULL, line INTEGER NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (endpoint, repo, page, line))
"""
INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?)"
DELETE = "DELETE FROM records WHERE endpoint = ? AND repo = ? AND page = ?"


@attrs.frozen
class Database:
    """A database with the table of the records.

    Attributes:
        sink: Commits the rows of a page with its checkpoint.
        is_postgres: Values are ``%s`` there, and ``?`` in SQLite.
    """

    sink: Sink
    is_postgres: bool

    async def write(
        self,
        batch: trio_ckpt.Batch[None],
        endpoint: str,
        repo: str,
        records: Sequence[Any],
        **more: Any,
    ) -> None:
        """Write the records of a page, and complete its batch with them."""
        rows = [
            (endpoint, repo, batch.index, line, json.dumps(record, sort_keys=True))
            for line, record in enumerate(records)
        ]
        async with self.sink.transaction(batch) as connection:
            await connection.executemany(_spelled(INSERT, is_postgres=self.is_postgres), rows)
            batch.complete(records=len(rows), **more)


def open_database(address: str) -> Database:
    """Open a database, and make its table if it is not there; blocks.

    Args:
        address: ``postgresql://…``, or the path of a file of SQLite.
    """
    is_postgres = address.startswith(("postgresql://", "postgres://"))

    async def undo(connection: SinkConnection, marker: SinkMarker) -> None:
        repo, endpoint = marker.stream
        statement = _spelled(DELETE, is_postgres=is_postgres)
        await connection.execute(statement, (endpoint, repo, marker.batch_index))

    if is_postgres:
        import psycopg

        sink: Sink = PostgresSink(address, undo=undo)  # first: its errors show no password
        with psycopg.connect(address) as server:
            server.execute(TABLE)
    else:
        sink = SqliteSink(address, undo=undo)
        with closing(sqlite3.connect(address)) as file, file:
            file.execute(TABLE)
    return Database(sink, is_postgres)


def _spelled(statement: str, *, is_postgres: bool) -> str:
    return statement.replace("?", "%s") if is_postgres else statement
