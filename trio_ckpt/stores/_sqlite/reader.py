"""The reading side of the SQLite store, with a connection and a thread of its own.

Theory of operation.  In WAL mode readers see the database as it was when their
transaction began; they neither wait for the writer nor delay it.  Every method here is one
short transaction, so the log can always be checkpointed.

A stream's records are read backwards from its head; each step checks that the row belongs to
the stream and has the expected sequence, so a damaged chain is detected at the
record where it breaks.  The cursor of a page of history has the next row and its
sequence.  It comes from outside and is accepted only if that row belongs to the stream.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..._journal.store import Fold, HistoryPage, RunSummary, StoredRecord, StoredRun, StoredStream
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.text import text_after
from .._local.blobs import Blobs
from .._local.fence import Identity, identity_of
from .schema import FIND_HEAD, FIND_RUN, READ_ATTACHED, connect, explain_sqlite

MAX_PAGE_BYTES = 64 * 2**20  # a page of history ends here, even if more records were requested
_CURSOR = re.compile(r"([1-9][0-9]{0,17})\.([1-9][0-9]{0,17})", re.ASCII)  # fits 64 bits

_READ_STREAMS = (
    "SELECT streams.stream, streams.id, sequence, last, through, payload FROM streams "
    "JOIN heads ON heads.stream = streams.id LEFT JOIN folds ON folds.stream = streams.id "
    "WHERE run = ? AND generation = ? AND sequence > 0 ORDER BY streams.id"
)
_READ_RECORD = "SELECT stream, sequence, prev, payload, blob FROM log WHERE id = ?"
_HAS_ATTACHED = "SELECT 1 FROM attached LIMIT 1"
_LIST_RUNS = (
    "SELECT run_id, runs.generation, owner, count(sequence), coalesce(sum(sequence), 0), "
    "max(at), payload "
    "FROM runs LEFT JOIN streams ON streams.run = runs.id "
    "AND streams.generation = runs.generation "
    "LEFT JOIN heads ON heads.stream = streams.id AND sequence > 0 "
    "LEFT JOIN summaries ON summaries.run = runs.id AND summaries.generation = runs.generation "
    "WHERE first <= runs.generation AND run_id >= :start AND run_id < :end "
    "AND run_id IS NOT :after GROUP BY run_id ORDER BY run_id LIMIT :limit"
)


class SqliteReader:
    """Reads the database.  Every method blocks, in the thread that called first."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "state.db"
        self._folder = folder
        self._connection: sqlite3.Connection | None = None
        self._file: Identity | None = None
        self._has_attached = False  # whether any record has some; else no record is looked up

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Cursor, None, None]:
        """Open a transaction: all reads in it see one moment."""
        with explain_sqlite(self._database, "reading"):
            file = identity_of(self._database)
            if file != self._file:  # after a repair, or after a copy was put back
                self.close()
            if self._connection is None:
                self._connection, self._file = connect(self._database), file
                self._connection.execute("PRAGMA query_only = ON")
            cursor = self._connection.cursor()
            cursor.execute("BEGIN")
            try:
                self._has_attached = cursor.execute(_HAS_ATTACHED).fetchone() is not None
                yield cursor
            finally:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")

    def read_run(self, run_id: str, generation: int | None) -> StoredRun | None:
        """See `Store.read_run`."""
        with self._reading() as cursor:
            row = cursor.execute(FIND_RUN, (run_id,)).fetchone()
            if row is None:
                return None
            run, newest, first, owner = row
            wanted = newest if generation is None else generation
            if not first <= wanted <= newest:
                return None
            rows = cursor.execute(_READ_STREAMS, (run, wanted)).fetchall()
            blobs = Blobs(self._folder, run_id)
            streams = tuple([self._read_stream(cursor, blobs, *row) for row in rows])
        return StoredRun(run_id, wanted, owner, streams)

    def _read_stream(
        self,
        cursor: sqlite3.Cursor,
        blobs: Blobs,
        stream: str,
        number: int,
        sequence: int,
        last: int,
        through: int | None,
        payload: bytes | None,
    ) -> StoredStream:
        fold = None
        if through is not None:
            if not isinstance(payload, bytes) or not 0 <= through <= sequence:
                raise StoreDamagedError(f"{self._database}: the fold of {stream} is damaged")
            fold = Fold(stream, through, payload)
        records = self._records_from(cursor, number, last, sequence)
        count = sequence - (through or 0)
        tail = [self._resolve(cursor, blobs, next(records)) for _ in range(count)]
        return StoredStream(stream, sequence, fold, tuple(reversed(tail)))

    def history(
        self, run_id: str, stream: str, generation: int | None, place: str | None, limit: int
    ) -> HistoryPage:
        """See `Store.history`."""
        with self._reading() as cursor:
            head = self._find_head(cursor, run_id, stream, generation)
            if place is not None:
                head = _check_place(cursor, head, place)
            if head is None or head[1] == 0:
                return HistoryPage((), None)
            number, sequence, row = head
            blobs = Blobs(self._folder, run_id)
            records: list[StoredRecord] = []
            size, following = 0, None
            for found in self._records_from(cursor, number, row, sequence):
                records.append(self._resolve(cursor, blobs, found))
                size += len(records[-1].payload)
                following = _place_after(found)
                if len(records) >= limit or size >= MAX_PAGE_BYTES:
                    break
            return HistoryPage(tuple(records), following)

    def _find_head(
        self, cursor: sqlite3.Cursor, run_id: str, stream: str, generation: int | None
    ) -> tuple[int, int, int] | None:
        row = cursor.execute(FIND_RUN, (run_id,)).fetchone()
        if row is None:
            return None
        wanted = row[1] if generation is None else generation
        head: tuple[int, int, int] | None = cursor.execute(
            FIND_HEAD, (row[0], wanted, stream)
        ).fetchone()
        return head

    def list_runs(self, prefix: str, after: str | None, limit: int) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`.  It reads the page only, by the index of the ids."""
        end = text_after(prefix)
        bounds = {
            "start": max(prefix, after or ""),
            "after": after,
            "end": b"" if end is None else end,  # SQLite's blobs come after all texts
            "limit": limit,
        }
        with self._reading() as cursor:
            return tuple(map(_summary, cursor.execute(_LIST_RUNS, bounds)))

    def _records_from(
        self, cursor: sqlite3.Cursor, stream: int, row: int, sequence: int
    ) -> Iterator[_Row]:
        """Yield the records of a stream from a given one on, newest first."""
        for expected in range(sequence, 0, -1):
            found: _Row | None = cursor.execute(_READ_RECORD, (row,)).fetchone()
            if found is None or found[0] != stream or found[1] != expected:
                raise StoreDamagedError(
                    f"{self._database}: checkpoint {expected} of stream {stream} is missing"
                )
            row = found[2]
            yield found

    def _resolve(self, cursor: sqlite3.Cursor, blobs: Blobs, row: _Row) -> StoredRecord:
        stream, sequence, _, payload, blob = row
        if isinstance(blob, str):
            payload = blobs.get(blob)
        if not isinstance(payload, bytes):
            raise StoreDamagedError(f"{self._database}: checkpoint {sequence} is not bytes")
        if not self._has_attached:
            return StoredRecord(sequence, payload)
        rows = cursor.execute(READ_ATTACHED, (stream, sequence)).fetchall()
        return StoredRecord(sequence, payload, tuple([digest for (digest,) in rows]))


def _summary(row: tuple[str, int, int, int, int, object, object]) -> RunSummary:
    run_id, generation, owner, streams, records, at, payload = row
    updated_at = at if isinstance(at, float) else None
    summary = payload if isinstance(payload, bytes) else b""
    return RunSummary(run_id, generation, owner, streams, records, False, updated_at, summary)


_Row = tuple[int, int, int, object, object]  # unchecked, as it is in the file


def _check_place(
    cursor: sqlite3.Cursor, head: tuple[int, int, int] | None, place: str
) -> tuple[int, int, int]:
    match = _CURSOR.fullmatch(place)
    if match is not None and head is not None:
        row, sequence = map(int, match.groups())
        found = cursor.execute(_READ_RECORD, (row,)).fetchone()
        if found is not None and found[:2] == (head[0], sequence):
            return head[0], sequence, row
    raise StoreError(f"{place!r} is not a cursor of this stream's history")


def _place_after(found: _Row) -> str | None:
    return f"{found[2]}.{found[1] - 1}" if found[1] > 1 else None
