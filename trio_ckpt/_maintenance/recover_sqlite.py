"""Rewrites the database of a damaged SQLite store from what can be read of it.

Theory of operation.  Every readable row is copied into a new database; around a damaged page, the
readable rows are found by halving the range.  `recover_rows` computes the rest there.

The new database is complete and durable before it takes the name of the old one.  Before that, the
write-ahead log of the old one is merged into it: SQLite would apply a leftover log to the new
database.  A crash before the renaming leaves the old one as it was.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from .._util.errors import StoreDamagedError, StoreError
from .._util.text import plural
from ..stores._local.files import sync_folder
from ..stores._sqlite.schema import NAMED, connect, explain_sqlite, make_tables
from .recover_rows import recover_rows
from .recovery import Recovery

DATABASE, NEW = "state.db", "state.db.new"
MAX_ROW_ID = 2**62
MAX_HALVINGS = 200_000  # of ranges that cannot be read: more of them would take hours
ROWS = 1_000  # held at a time

_COLUMNS = {
    "runs": ("id", "id, run_id, generation, first, owner"),
    "streams": ("id", "id, run, generation, stream"),
    "heads": ("stream", "stream, sequence, last"),
    "log": ("id", "id, stream, sequence, prev, payload, blob"),
}
_KINDS: dict[str, tuple[type, ...]] = {  # the column types of an acceptable row
    "runs": (int, str, object, object, object),
    "streams": (int, int, int, str),
    "heads": (int, int, int),
    "log": (int, int, int, int, object, object),
}
_READ = {  # no text from outside
    table: f"SELECT {columns} FROM {table} WHERE {key} BETWEEN ? AND ? "  # noqa: S608
    f"ORDER BY {key} LIMIT {ROWS}"
    for table, (key, columns) in _COLUMNS.items()
}
_COPY = {
    table: f"INSERT OR IGNORE INTO {table} ({columns}) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(columns.split(',')))})"
    for table, (_, columns) in _COLUMNS.items()
}
_ATTACHED = "SELECT stream, sequence, place, digest FROM attached"
_BY_DIGEST = "SELECT stream, sequence, place, digest FROM attached INDEXED BY attached_digest"


def recover_database(recovery: Recovery) -> None:
    """Rewrite the database; the caller makes sure that no process owns a run of the store.

    Raises:
        StoreError: nothing in the old one can be read, or the new one cannot be written.
    """
    database, new = recovery.folder / DATABASE, recovery.folder / NEW
    for name in (DATABASE, f"{DATABASE}-wal"):
        recovery.keep(recovery.folder / name)
    for name in (NEW, f"{NEW}-wal", f"{NEW}-shm", f"{NEW}-journal"):
        (recovery.folder / name).unlink(missing_ok=True)
    with explain_sqlite(database, "repairing"), closing(_make(new)) as target:
        with closing(connect(database)) as source:
            _copy(source, target, recovery)
        runs = recover_rows(target, recovery)
        recovery.need_opened()
        target.execute("COMMIT")
        (word,) = target.execute("PRAGMA integrity_check(1)").fetchone()
        if word != "ok":
            raise StoreError(f"{new} is not sound either ({word}): see to the disk")
    _replace(recovery.folder, database, new)
    recovery.report(DATABASE, "it was rewritten from what could be read")
    for seen in runs:
        recovery.set_watermark(seen)
    recovery.forget_gone(lambda run_id: any(seen.run_id == run_id for seen in runs))
    with explain_sqlite(database, "looking for names"), closing(connect(database)) as connection:
        recovery.put_unnamed_blobs_aside(connection.execute(NAMED))


def _make(path: Path) -> sqlite3.Connection:
    """Make an empty database of a store, with a transaction begun."""
    connection = connect(path)
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        make_tables(connection)
        connection.execute("BEGIN IMMEDIATE")
    except BaseException:
        connection.close()
        raise
    return connection


def _replace(folder: Path, database: Path, new: Path) -> None:
    """Give the new database its name; until then the old one is as it was."""
    with suppress(sqlite3.Error), closing(connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    for name in (f"{DATABASE}-wal", f"{DATABASE}-shm"):  # of a database that could not be opened
        (folder / name).unlink(missing_ok=True)
    os.chmod(new, 0o600)
    os.replace(new, database)
    sync_folder(folder)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, recovery: Recovery) -> None:
    for table in _COLUMNS:
        lost = 0
        for row in _read(source, table):
            if row is None or not all(map(isinstance, row, _KINDS[table])):
                lost += 1
                continue
            with suppress(sqlite3.Error):  # a value that its column cannot hold
                target.execute(_COPY[table], row)
        if lost:
            recovery.report(DATABASE, f"{plural(lost, 'row')} of the table {table} cannot be read")
    for statement in (_ATTACHED, _BY_DIGEST):  # the index has all columns, too
        with suppress(sqlite3.Error):
            for row in source.execute(statement):
                with suppress(sqlite3.Error):
                    target.execute("INSERT OR IGNORE INTO attached VALUES (?, ?, ?, ?)", row)


def _read(source: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...] | None]:
    """Yield the rows of a table in order; None for each row that cannot be read."""
    left, failed = [(-MAX_ROW_ID, MAX_ROW_ID)], 0
    while left:
        first, last = left.pop()
        try:
            rows = source.execute(_READ[table], (first, last)).fetchall()
        except sqlite3.Error as error:
            failed += 1
            if failed > MAX_HALVINGS:
                what = f"{DATABASE}: too much of the table {table} cannot be read"
                raise StoreDamagedError(what) from error
            if first == last:
                yield None
                continue
            middle = (first + last) // 2
            left += [(middle + 1, last), (first, middle)]
            continue
        yield from rows
        if len(rows) == ROWS and rows[-1][0] < last:
            left.append((rows[-1][0] + 1, last))
