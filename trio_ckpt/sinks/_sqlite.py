"""Rows in a database of SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping

from .._util.arguments import path_text
from .._util.closing import closed_on_error
from ._driver import LOCK_S, Driver, reason_text
from ._marker import TABLE
from ._sink import Sink
from ._stream_rows import Undo

_TABLE = """
CREATE TABLE IF NOT EXISTS trio_ckpt_markers (
    run TEXT NOT NULL, stream TEXT NOT NULL, slot INTEGER NOT NULL, owner INTEGER NOT NULL,
    began REAL NOT NULL, sequence INTEGER NOT NULL, batch INTEGER, record BLOB,
    PRIMARY KEY (run, stream, slot))
"""
_MARK = """
INSERT INTO trio_ckpt_markers (run, stream, slot, owner, began, sequence, batch, record)
SELECT run, stream, :slot, owner, began, :sequence, :batch, :record FROM trio_ckpt_markers
WHERE run = :run AND stream = :stream AND slot = 0 AND owner = :owner AND began = :began
ON CONFLICT (run, stream, slot) DO UPDATE SET owner = excluded.owner, began = excluded.began,
sequence = excluded.sequence, batch = excluded.batch, record = excluded.record
"""
_ADVICE = {
    "readonly database": "the file, or its folder, is read-only: give this process the right to "
    "write both",
    "unable to open": "its folder has to exist, and this process may have to write there",
    "no such table": "make the table before the run is opened",
    "database is locked": "another process is in a transaction for too long, or was stopped in one",
    "not a database": "the file is another one",
}


class SqliteDriver(Driver):
    """A file of SQLite; one transaction writes at a time.

    Attributes:
        path: The file.
    """

    is_single = True
    begin = begin_asking = "BEGIN IMMEDIATE"
    mark = _MARK
    errors = (sqlite3.Error,)

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = f"database {path!r}"

    def connect(self) -> sqlite3.Connection:
        raw = sqlite3.connect(
            self.path, timeout=LOCK_S, isolation_level=None, check_same_thread=False
        )
        with closed_on_error(raw):
            raw.execute("PRAGMA synchronous = EXTRA")  # also where the journal is a file of its own
        return raw

    def is_usable(self, raw: sqlite3.Connection) -> bool:
        return True

    def is_in_transaction(self, raw: sqlite3.Connection) -> bool:
        return raw.in_transaction

    def interrupt(self, raw: sqlite3.Connection) -> None:
        raw.interrupt()

    def has_table(self, raw: sqlite3.Connection) -> bool:
        found = raw.execute("SELECT 1 FROM sqlite_master WHERE name = 'trio_ckpt_markers'")
        return found.fetchone() is not None

    def make_table(self, raw: sqlite3.Connection) -> None:
        raw.execute(_TABLE)

    def lacks_table(self, error: Exception) -> bool:
        return f"no such table: {TABLE}" in str(error)

    def lock_fence(self, raw: sqlite3.Connection, values: Mapping[str, object]) -> None:
        """The transaction holds the whole database already."""

    def spell(self, statement: str) -> str:
        return statement

    def advise(self, error: Exception) -> str:
        said = str(error)
        return next((advice for part, advice in _ADVICE.items() if part in said), "")

    def reason_of(self, error: Exception) -> str:
        return reason_text(error)


class SqliteSink(Sink):
    """Rows in a database of SQLite, which writes one transaction at a time.

    Args:
        path: The file; it is made if it does not exist.
        undo: Takes the rows of a batch back, as for `Sink`.
    """

    def __init__(self, path: str | os.PathLike[str], *, undo: Undo | None = None) -> None:
        super().__init__(SqliteDriver(path_text("path", path)), undo=undo)
