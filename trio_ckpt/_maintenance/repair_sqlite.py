"""Rewrites the database of a damaged SQLite store from what can be read of it.

Theory of operation.  Every readable row is copied into a new database; around a damaged page, the
readable rows are found by halving the range.  What follows from records is not copied but computed:
the chain of each stream, its head, its fold.  A row of the log is accepted if its seal opens at its
place.

The new database is complete and durable before it takes the name of the old one.  Before that, the
write-ahead log of the old one is merged into it: SQLite would apply a leftover log to the new
database.  A crash before the renaming leaves the old one as it was.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from .._journal.record import Seal
from .._journal.store import Repaired
from .._util.errors import StoreDamagedError, StoreError
from .._util.plain import decode_key
from .._util.text import plural
from ..stores._local.blobs import Blobs
from ..stores._local.files import sync_folder
from ..stores._local.watermark import Watermark, all_watermarks
from ..stores._sqlite.schema import APPLICATION_ID, FORMAT_VERSION, TABLES, connect, explain_sqlite
from .salvage import GapFill, Salvage, ValidPrefix, measure

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
_DELETE = (
    "DELETE FROM log WHERE stream = ? AND sequence = ?",
    "DELETE FROM attached WHERE stream = ? AND sequence = ?",
)
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
_NAMED = "SELECT blob FROM log WHERE blob IS NOT NULL UNION SELECT digest FROM attached"
_BY_DIGEST = "SELECT stream, sequence, place, digest FROM attached INDEXED BY attached_digest"


def repair_database(salvage: Salvage) -> None:
    """Rewrite the database; the caller makes sure that no process owns a run of the store.

    Raises:
        StoreError: nothing in the old one can be read, or the new one cannot be written.
    """
    database, new = salvage.folder / DATABASE, salvage.folder / NEW
    for name in (DATABASE, f"{DATABASE}-wal"):
        salvage.keep(salvage.folder / name)
    for name in (NEW, f"{NEW}-wal", f"{NEW}-shm", f"{NEW}-journal"):
        (salvage.folder / name).unlink(missing_ok=True)
    with explain_sqlite(database, "repairing"), closing(_make(new)) as target:
        with closing(connect(database)) as source:
            _copy(source, target, salvage)
        runs = _Rebuild(target, salvage).run()
        salvage.need_opened()
        target.execute("COMMIT")
        (word,) = target.execute("PRAGMA integrity_check(1)").fetchone()
        if word != "ok":
            raise StoreError(f"{new} is not sound either ({word}): see to the disk")
    _replace(salvage.folder, database, new)
    salvage.done.append(Repaired(DATABASE, "it was rewritten from what could be read"))
    for seen in runs:
        salvage.note(seen)
    salvage.forget_gone(lambda run_id: any(seen.run_id == run_id for seen in runs))
    with explain_sqlite(database, "looking for names"), closing(connect(database)) as connection:
        salvage.put_unnamed_blobs_aside({name for (name,) in connection.execute(_NAMED)})


def _make(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("BEGIN IMMEDIATE")
        for name in TABLES:
            connection.execute(TABLES[name])
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


# ---------------------------------------------------------------------------------------
# Copying what can be read
# ---------------------------------------------------------------------------------------


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, salvage: Salvage) -> None:
    for table in _COLUMNS:
        lost = 0
        for rows in _read(source, table):
            if rows is None:
                lost += 1
                continue
            for row in rows:
                if not all(map(isinstance, row, _KINDS[table])):
                    lost += 1
                    continue
                with suppress(sqlite3.Error):  # a value that its column cannot hold
                    target.execute(_COPY[table], row)
        if lost:
            what = f"{plural(lost, 'row')} of the table {table} cannot be read"
            salvage.done.append(Repaired(DATABASE, what))
    for statement in (_ATTACHED, _BY_DIGEST):  # the index has all columns, too
        with suppress(sqlite3.Error):
            for row in source.execute(statement):
                with suppress(sqlite3.Error):
                    target.execute("INSERT OR IGNORE INTO attached VALUES (?, ?, ?, ?)", row)


def _read(source: sqlite3.Connection, table: str) -> Iterator[list[tuple[Any, ...]] | None]:
    """Yield the rows of a table in order; None for each row that cannot be read."""
    left, failed = [(-MAX_ROW_ID, MAX_ROW_ID)], 0
    while left:
        first, last = left.pop()
        try:
            rows = source.execute(_READ[table], (first, last)).fetchall()
        except sqlite3.Error as error:
            failed += 1
            if first == last or failed > MAX_HALVINGS:
                yield None
                if failed > MAX_HALVINGS:
                    raise StoreDamagedError(
                        f"{DATABASE}: too much of the table {table} cannot be read"
                    ) from error
                continue
            middle = (first + last) // 2
            left += [(middle + 1, last), (first, middle)]
            continue
        yield rows
        if len(rows) == ROWS and rows[-1][0] < last:
            left.append((rows[-1][0] + 1, last))


# ---------------------------------------------------------------------------------------
# Working out the rest
# ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Rebuild:
    """Rebuilds the chains, heads and folds of the copied rows."""

    target: sqlite3.Connection
    salvage: Salvage
    _blobs: Blobs = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._blobs = Blobs(self.salvage.folder / "blobs")

    def run(self) -> list[Watermark]:
        """Rebuild all streams; return the progress of each run."""
        run = self.target.execute
        run("CREATE INDEX by_place ON log (stream, sequence)")
        for number, owner, generation, stream in run(
            "SELECT streams.id, run, generation, stream FROM streams ORDER BY id"
        ).fetchall():
            self._put_in_order(number, owner, generation, stream)
        run("DELETE FROM heads WHERE stream NOT IN (SELECT id FROM streams)")
        run("DELETE FROM log WHERE stream NOT IN (SELECT id FROM streams)")
        run("DELETE FROM attached WHERE stream NOT IN (SELECT id FROM streams)")
        run(
            "DELETE FROM attached WHERE sequence NOT BETWEEN 1 AND "
            "coalesce((SELECT sequence FROM heads WHERE heads.stream = attached.stream), 0)"
        )
        run("DROP INDEX by_place")
        return [seen for row in run("SELECT * FROM runs").fetchall() if (seen := self._mend(*row))]

    def _mend(self, number: int, run_id: str, *numbers: object) -> Watermark | None:
        """Correct the generation and owner numbers of a run."""
        newest, first, owner = (value if isinstance(value, int) else -1 for value in numbers)
        run = self.target.execute
        (low, high) = run(
            "SELECT min(generation), max(generation) FROM streams WHERE run = ?", (number,)
        ).fetchone()
        noted = [seen for _, seen in all_watermarks(self.salvage.folder) if seen is not None]
        seen = next((seen for seen in noted if seen.run_id == run_id), None)
        known = 0 if seen is None else seen.owner
        now = (newest, first, max(owner, known, 1)) if first >= 0 else (newest, 0, max(known, 1))
        if high is not None:
            now = (high, min(max(now[1], 0), low), now[2])
        if now != (newest, first, owner):
            run("UPDATE runs SET generation = ?, first = ?, owner = ? WHERE id = ?", (*now, number))
            what = f"its generations are {now[1]} to {now[0]}, its owner {now[2]}; they were "
            what += f"{first} to {newest}, and {owner}"
            self.salvage.done.append(Repaired(f"run {run_id!r}", what))
        (records,) = run(
            "SELECT coalesce(sum(sequence), 0) FROM heads JOIN streams ON streams.id = "
            "heads.stream WHERE run = ?",
            (number,),
        ).fetchone()
        return Watermark(run_id, now[2], now[0], records)

    def _put_in_order(self, number: int, run: int, generation: int, stream: str) -> None:
        """Rebuild the chain, the head and the fold of one stream."""
        found = self.target.execute("SELECT run_id FROM runs WHERE id = ?", (run,)).fetchone()
        if found is None:
            found = self._find_run(number, run, generation, stream)
        head = self.target.execute(
            "SELECT sequence FROM heads WHERE stream = ?", (number,)
        ).fetchone()
        try:
            if found is None:
                raise StoreDamagedError("the row of its run cannot be read")
            seal = Seal(found[0], generation, decode_key(stream), self.salvage.mac_key)
        except StoreDamagedError as error:
            where = f"stream {stream} of run {found[0] if found else run!r}"
            self.salvage.left.append(Repaired(where, str(error)))
            return
        self._drop_doubles(number, seal)
        sound = measure(seal, lambda: self._records(number))
        place, newest = (found[0], generation, stream), max(head[0] if head else 0, sound.newest)
        records = partial(self._records, number)
        if newest > sound.through and (
            bridged := self.salvage.bridged(place, seal, records, newest)
        ):
            self._put_notes(number, bridged)
            sound = ValidPrefix(bridged.progress, 0, newest)
        elif self.salvage.is_cut(place, sound, newest):
            self._execute(
                "DELETE FROM log WHERE stream = ? AND sequence > ?", number, sound.through
            )
        for sequence, payload in self._records(number):
            for blob in self.salvage.blobs_of(payload):
                self._execute(
                    "INSERT OR IGNORE INTO attached VALUES (?, ?, 0, ?)", number, sequence, blob
                )
        self._chain(number, sound, seal)

    def _find_run(self, number: int, run: int, generation: int, stream: str) -> tuple[str] | None:
        """Find the run of a stream whose row is lost, by trying the seals of its records."""
        for _, seen in all_watermarks(self.salvage.folder):
            if seen is None:
                continue
            with suppress(StoreDamagedError, sqlite3.Error):
                seal = Seal(seen.run_id, generation, decode_key(stream), self.salvage.mac_key)
                if measure(seal, partial(self._records, number)).through:
                    self._execute(
                        "INSERT INTO runs VALUES (?, ?, ?, 0, ?)",
                        *(run, seen.run_id, seen.generation, seen.owner),
                    )
                    what = "its row was lost: it was found by its seals"
                    self.salvage.done.append(Repaired(f"run {seen.run_id!r}", what))
                    return (seen.run_id,)
        return None

    def _put_notes(self, number: int, bridged: GapFill) -> None:
        for sequence, payload in bridged.notes.items():
            for statement in _DELETE:
                self._execute(statement, number, sequence)
            self._execute(
                "INSERT INTO log (stream, sequence, prev, payload) VALUES (?, ?, 0, ?)",
                *(number, sequence, payload),
            )

    def _chain(self, number: int, sound: ValidPrefix, seal: Seal) -> None:
        rows = self.target.execute(
            "SELECT id, sequence FROM log WHERE stream = ? ORDER BY sequence", (number,)
        ).fetchall()
        last = newest = 0
        for row, newest in rows:  # noqa: B007  # the last one is used
            self._execute("UPDATE log SET prev = ? WHERE id = ?", last, row)
            last = row
        self._execute("DELETE FROM heads WHERE stream = ?", number)
        self._execute("INSERT INTO heads VALUES (?, ?, ?)", number, newest, last)
        if sound.through:
            fold = sound.fold(seal)
            self._execute("INSERT INTO folds VALUES (?, ?, ?)", number, sound.through, fold)

    def _drop_doubles(self, number: int, seal: Seal) -> None:
        """Of several rows at one place, keep the one whose seal opens."""
        doubles = self.target.execute(
            "SELECT sequence FROM log WHERE stream = ? GROUP BY sequence HAVING count(*) > 1",
            (number,),
        ).fetchall()
        for (sequence,) in doubles:
            rows = self.target.execute(
                "SELECT id, payload, blob FROM log WHERE stream = ? AND sequence = ?",
                (number, sequence),
            ).fetchall()
            good = [row for row, *rest in rows if self._is_sealed(seal, sequence, *rest)]
            kept = good[0] if good else rows[0][0]
            for row, *_ in rows:
                if row != kept:
                    self._execute("DELETE FROM log WHERE id = ?", row)

    def _is_sealed(self, seal: Seal, sequence: int, payload: object, blob: object) -> bool:
        content = self._payload(payload, blob)
        try:
            return content is not None and bool(seal.open(sequence, content))
        except StoreDamagedError:
            return False

    def _records(self, number: int) -> Iterable[tuple[int, bytes | None]]:
        rows = self.target.cursor().execute(
            "SELECT sequence, payload, blob FROM log WHERE stream = ? ORDER BY sequence", (number,)
        )
        for sequence, payload, blob in rows:
            yield int(sequence), self._payload(payload, blob)

    def _payload(self, payload: object, blob: object) -> bytes | None:
        if isinstance(blob, str):
            try:
                return self._blobs.get(blob)
            except StoreError:
                return None
        return payload if isinstance(payload, bytes) else None

    def _execute(self, statement: str, *values: object) -> None:
        self.target.execute(statement, values)
