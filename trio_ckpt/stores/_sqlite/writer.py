"""The writing side of the SQLite store: one connection, in one thread.

Theory of operation.  `log` is append-only and has no index by stream: each row names the
row of its stream's previous record, so the records of a group land on few adjacent pages,
whichever streams they belong to.  `heads` says where each stream's chain begins and is moved by
compare-and-set, in the transaction that compared the owner.

While an owner has the run, no other process moves its heads, so they are cached here.  The
cache is keyed by owner and generation, is dropped on any error, and is not trusted: the
compare-and-set in the database decides, and a sequence that does not fit is read from the
database before it is refused.

A statement that fails because of its values changes nothing (SQLite undoes a statement by
itself), so a bad checkpoint needs no savepoint: it is left out and the transaction goes
on.  Any other error undoes the whole transaction.

An error of COMMIT itself says little about what is on the disk.  After an I/O error other
than a refused write the frames may be in the write-ahead log and come back with the next
start, and a file whose fsync failed once must not be trusted: the outcome is unknown and
nothing more is written.  After any other error, the heads are read back.

SQLite does not check the fsync of the folder that holds its log, so after the first commit the
writer syncs the folder: power loss removes a log whose name is not durable.  The log keeps its
name as long as the connection is open.

Files can be removed, or replaced by a copy, under an open connection, which goes on in files that
have no name any more.  So after each commit, before a save is acknowledged, either the database or
the log, in turn, is checked by its name.  A connection that lost its files is never closed: SQLite
would assume that it is the last one and remove the log of the store that stands there now
(https://www.sqlite.org/howtocorrupt.html, 4.4).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import msgspec

from ..._journal.store import Checkpoint, Fold, Pruned, RunKey
from ..._util.errors import (
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
)
from ..._util.forks import leave_open
from ..._util.log import get_logger
from .._local.blobs import Blobs
from .._local.fence import (
    compare_generation,
    identity_of,
    out_of_place,
    refuse_generation,
    save_each,
)
from .._local.files import sync_folder
from .._local.locks import lock_opening, need_flock
from .prune import prune_rows
from .schema import (
    FIND_HEAD,
    FIND_RUN,
    IS_NAMED,
    READ_ATTACHED,
    RUN_IDS,
    SUM_HEADS,
    append_rows,
    check_format,
    connect,
    explain_sqlite,
    find_owned,
    make_database,
    make_folders,
    move_heads,
    new_row_id,
    primary_code,
    row_parts,
    set_durability,
    store_error,
)

logger = get_logger(__name__)

# Errors that values can cause; SQLite's own trouble (disk, locks, damage) is not among them.
_BAD_VALUE = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)
_REFUSED = (StoreError, *_BAD_VALUE)

_ADD_RUN = "INSERT INTO runs (run_id, generation, first, owner) VALUES (?, ?, 0, ?)"
# A pruned run begins with its next generation: a run exists from its first lock on.
_RAISE_OWNER = "UPDATE runs SET owner = owner + 1, generation = max(generation, first) WHERE id = ?"
_RAISE_GENERATION = "UPDATE runs SET generation = ? WHERE id = ?"
_READ_HEAD = "SELECT sequence, last FROM heads WHERE stream = ?"
_ADD_STREAM = "INSERT INTO streams (run, generation, stream) VALUES (?, ?, ?)"
_ADD_HEAD = "INSERT INTO heads (stream, sequence, last) VALUES (?, 0, 0)"
_APPEND = "INSERT INTO log (stream, sequence, prev, payload, blob) VALUES (?, ?, ?, ?, ?)"
_LAST_ROW = "SELECT coalesce(max(id), 0) FROM log"
_UNDO = "DELETE FROM log WHERE id > ?"
_ATTACH = "INSERT INTO attached (stream, sequence, place, digest) VALUES (?, ?, ?, ?)"
_DROP = "DELETE FROM attached WHERE stream = ? AND sequence = ?"
_FOLD = "INSERT OR REPLACE INTO folds (stream, through, payload) VALUES (?, ?, ?)"
_SUMMARIZE = "INSERT OR REPLACE INTO summaries (run, generation, payload) VALUES (?, ?, ?)"


class _SqliteHead(NamedTuple):
    stream: int
    sequence: int
    last: int


class _Known(msgspec.Struct):
    """The cached state of a run: valid as long as its owner and generation are the newest."""

    run: int
    generation: int
    owner: int
    blobs: Blobs
    heads: dict[str, _SqliteHead] = {}  # copied for each, see msgspec


class SqliteWriter:
    """Opens, makes and writes the database.  Every method blocks."""

    def __init__(
        self, folder: Path, *, durability: Literal["full", "process"], create: bool
    ) -> None:
        """Open the store.

        Raises:
            StoreError: see `trio_ckpt.stores.open_store`.
        """
        self._database = folder / "state.db"
        self._known: dict[str, _Known] = {}
        self._broken: str | None = None
        self._is_synced = durability == "full"
        self._is_log_named = False
        self._folder = folder
        need_flock(folder)
        make_folders(folder, create=create)
        lock = lock_opening(folder)
        try:
            make_database(folder)
            with explain_sqlite(self._database, "opening"):
                self._connection = connect(self._database)
                try:
                    check_format(self._connection, self._database)
                    set_durability(self._connection, self._database, durability)
                except BaseException:
                    self._connection.close()
                    raise
        finally:
            lock.release()
        self._cursor = self._connection.cursor()
        self._log = f"{self._database}-wal"
        self._files = {str(self._database): identity_of(self._database)}
        self._commits = 0

    def close(self) -> None:
        """Move the log into the database unless another process uses it; close."""
        if not self._is_in_place() and not self._is_only_log_missing():
            logger.warning("%s was removed or replaced while it was open", self._database)
            leave_open(self._connection)
            return
        try:
            self._cursor.execute("PRAGMA busy_timeout = 0")
            self._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            logger.warning("%s: the write-ahead log stays: %s", self._database, error)
        self._connection.close()

    def raise_owner(self, run_id: str) -> int:
        """Raise a run's owner number, durably, and return it."""
        if not self._is_in_place():
            raise StoreError(
                f"{self._database} was replaced since the store was opened: open it again, or what "
                "is saved goes into the old one"
            )
        with explain_sqlite(self._database, f"locking run {run_id!r}"):
            self._begin()
            try:
                row = self._cursor.execute(FIND_RUN, (run_id,)).fetchone()
                owner = 1 if row is None else row[3] + 1
                if row is None:
                    self._cursor.execute(_ADD_RUN, (run_id, 0, owner))
                else:
                    self._cursor.execute(_RAISE_OWNER, (row[0],))
                self._commit(lambda: False)
            except BaseException:
                self._roll_back()
                raise
        return int(owner)

    def count(self, run_id: str) -> tuple[int, int]:
        """Return the newest generation of an owned run, and its records in all generations."""
        with explain_sqlite(self._database, f"counting the records of run {run_id!r}"):
            run, generation, _, _ = self._cursor.execute(FIND_RUN, (run_id,)).fetchone()
            (records,) = self._cursor.execute(SUM_HEADS, (run,)).fetchone()
        return int(generation), int(records)

    def give_back(self, run_id: str) -> None:
        """Check, before a run is unlocked, that what was saved of it is in the store."""
        if self._broken is None and not self._is_in_place():
            self._refuse_place()

    @contextmanager
    def owning(self, run: RunKey) -> Generator[None]:
        """Keep the run, in a transaction that changes nothing.

        Raises:
            StoreConflictError: another owner has it, or the database is not in its place.
        """
        with explain_sqlite(self._database, f"comparing the owner of run {run.run_id!r}"):
            self._begin()
            try:
                find_owned(self._cursor, run)
                if not self._is_in_place():
                    raise out_of_place(self._database, run.run_id)
                yield
            finally:
                self._roll_back()

    def unnamed(self, run_id: str, digests: Collection[str]) -> list[str]:
        """Return the digests that no record of a run names."""
        with explain_sqlite(self._database, "reading the names of blobs"):
            find = partial(self._cursor.execute, IS_NAMED)
            return [
                digest
                for digest in digests
                if find({"run_id": run_id, "digest": digest}).fetchone() is None
            ]

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, also of those that were removed."""
        with explain_sqlite(self._database, "listing the runs"):
            return [run_id for (run_id,) in self._cursor.execute(RUN_IDS)]

    def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        with explain_sqlite(self._database, "saving"):
            self._begin()
            try:
                known = self._fence(run)
                outcomes, moved = self._append(known, group)
                if folds:
                    self._fold(known, moved, folds)
                if summary is not None:
                    self._cursor.execute(_SUMMARIZE, (known.run, known.generation, summary))
                self._commit(lambda: self._have_moved(moved))
            except BaseException:
                self._known.pop(run.run_id, None)
                self._roll_back()
                raise
        known.heads.update(moved)
        self._known[run.run_id] = known
        return outcomes

    def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> set[str]:
        """See `Store.drop_blobs`; returns the digests that were named."""
        with explain_sqlite(self._database, f"dropping blobs of run {run.run_id!r}"):
            self._begin()
            try:
                places, digests = self._drop(run, stream, sequences)
                self._commit(lambda: not any(map(self._attached_at, places)))
            except BaseException:
                self._roll_back()
                raise
        return digests

    def _drop(
        self, key: RunKey, stream: str, sequences: Sequence[int]
    ) -> tuple[list[tuple[int, int]], set[str]]:
        run, generation, _ = find_owned(self._cursor, key)
        compare_generation(generation, key, "dropped")
        row = self._cursor.execute(FIND_HEAD, (run, generation, stream)).fetchone()
        head = _SqliteHead(0, 0, 0) if row is None else _SqliteHead(*row)
        places = [(head.stream, n) for n in set(sequences) if 1 <= n <= head.sequence]
        digests = {digest for place in places for digest in self._attached_at(place)}
        self._cursor.executemany(_DROP, places)
        return places, digests

    def _attached_at(self, place: tuple[int, int]) -> list[str]:
        return [digest for (digest,) in self._cursor.execute(READ_ATTACHED, place)]

    def prune(self, run: RunKey, keep: int) -> tuple[Pruned, set[str]]:
        """See `Store.prune`; returns the digests that were named, too."""
        with explain_sqlite(self._database, f"pruning run {run.run_id!r}"):
            self._begin()
            try:
                pruned = prune_rows(self._cursor, run, keep)
                self._commit(lambda: False)
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._known.pop(run.run_id, None)
        return pruned

    def _begin(self) -> None:
        if self._broken is not None:
            raise StoreError(
                f"{self._database} failed with {self._broken}; nothing more is written to it: "
                "check the disk and start again"
            )
        self._cursor.execute("BEGIN IMMEDIATE")

    def _roll_back(self) -> None:
        """Undo the transaction, so that other writers of the store need not wait for it."""
        try:
            if self._connection.in_transaction:  # after some errors SQLite has undone it
                self._cursor.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.warning("%s: ROLLBACK failed: %s", self._database, error)

    def _fence(self, key: RunKey) -> _Known:
        """Compare the owner, raise the generation; return the cached state of the run."""
        run, generation, first = find_owned(self._cursor, key)
        if key.generation == generation + 1:
            self._cursor.execute(_RAISE_GENERATION, (key.generation, run))
        elif key.generation != generation or first > generation:
            raise refuse_generation(generation, key)
        known = self._known.get(key.run_id)
        if known is None or (known.owner, known.generation) != (key.owner, key.generation):
            blobs = Blobs(self._folder, key.run_id)
            known = _Known(run, key.generation, key.owner, blobs)
        return known

    def _append(
        self, known: _Known, group: Sequence[Checkpoint]
    ) -> tuple[list[Exception | None], dict[str, _SqliteHead]]:
        """Add the group to the log and move the heads; return the outcome of each."""
        before: dict[str, _SqliteHead] = {}
        outcomes: list[Exception | None] = [None] * len(group)
        moved = self._append_together(known, group) if len(group) > 1 else {}
        if not moved:
            outcomes = save_each(group, partial(self._append_one, known, before, moved), _REFUSED)
        at = time.time()
        moves = [
            (before.get(stream) or known.heads[stream], head) for stream, head in moved.items()
        ]
        for part in row_parts(moves):
            new = [value for _, head in part for value in (head.stream, head.sequence)]
            last = [value for _, head in part for value in (head.stream, head.last)]
            old = [value for head, _ in part for value in (head.stream, head.sequence)]
            values = (*new, *last, at, *[head.stream for _, head in part], *old)
            if self._cursor.execute(move_heads(len(part)), values).rowcount != len(part):
                raise StoreConflictError(
                    f"{self._database}: another process has written to the same streams without "
                    "owning the run, or an older copy was put back: nothing was saved"
                )
        return outcomes, moved

    def _append_together(
        self, known: _Known, group: Sequence[Checkpoint]
    ) -> dict[str, _SqliteHead]:
        """Add the records of a group in few statements, and return the heads that move.

        In each statement the thread gives the interpreter's lock away, and may wait for it
        afterwards, so a group of many records is not as many statements.

        Returns:
            Empty where a record needs more: it has blobs, does not follow a cached head, or has a
            value that SQLite refuses.  Then nothing is added.
        """
        moved: dict[str, _SqliteHead] = {}
        rows: list[tuple[int, int, int, int, bytes]] = []
        (before,) = self._cursor.execute(_LAST_ROW).fetchone()
        for row, checkpoint in enumerate(group, before + 1):
            stream, sequence = checkpoint.stream, checkpoint.sequence
            head = moved.get(stream) or known.heads.get(stream)
            if head is None or head.sequence != sequence - 1:
                return {}
            if checkpoint.blob is not None or checkpoint.blobs:
                return {}
            rows.append((row, head.stream, sequence, head.last, checkpoint.payload))
            moved[stream] = _SqliteHead(head.stream, sequence, row)
        try:
            for part in row_parts(rows):
                values = [value for row_values in part for value in row_values]
                self._cursor.execute(append_rows(len(part)), values)
        except _BAD_VALUE:
            self._cursor.execute(_UNDO, (before,))
            return {}
        return moved

    def _append_one(
        self,
        known: _Known,
        before: dict[str, _SqliteHead],
        moved: dict[str, _SqliteHead],
        checkpoint: Checkpoint,
    ) -> None:
        sequence, blob = checkpoint.sequence, checkpoint.blob
        head = moved.get(checkpoint.stream)
        if head is None:
            head = before[checkpoint.stream] = self._find_head(known, checkpoint.stream, sequence)
        if sequence != head.sequence + 1:
            raise StoreConflictError(f"the next one is {head.sequence + 1}")
        if blob is not None or checkpoint.blobs:
            known.blobs.need(checkpoint)
        self._cursor.execute(_APPEND, (head.stream, sequence, head.last, checkpoint.payload, blob))
        last = new_row_id(self._cursor)
        if checkpoint.blobs:
            names = enumerate(dict.fromkeys(checkpoint.blobs))
            rows = [(head.stream, sequence, place, digest) for place, digest in names]
            self._cursor.executemany(_ATTACH, rows)
        moved[checkpoint.stream] = _SqliteHead(head.stream, sequence, last)

    def _find_head(self, known: _Known, stream: str, sequence: int) -> _SqliteHead:
        """Return the head that a checkpoint follows: cached, read, or empty for a new stream."""
        head = known.heads.get(stream)
        if head is None or head.sequence != sequence - 1:
            head = self._read_head(known, stream)
        if head is None and sequence == 1:
            self._cursor.execute(_ADD_STREAM, (known.run, known.generation, stream))
            head = _SqliteHead(new_row_id(self._cursor), 0, 0)
            self._cursor.execute(_ADD_HEAD, (head.stream,))
        return head or _SqliteHead(0, 0, 0)

    def _read_head(self, known: _Known, stream: str) -> _SqliteHead | None:
        row = self._cursor.execute(FIND_HEAD, (known.run, known.generation, stream)).fetchone()
        return None if row is None else _SqliteHead(*row)

    def _fold(self, known: _Known, moved: dict[str, _SqliteHead], folds: Sequence[Fold]) -> None:
        rows: list[tuple[int, int, bytes]] = []
        for fold in folds:
            head = moved.get(fold.stream) or self._read_head(known, fold.stream)
            if head is not None and 1 <= fold.through <= head.sequence:
                rows.append((head.stream, fold.through, fold.payload))
        try:
            self._cursor.executemany(_FOLD, rows)
        except _BAD_VALUE as error:
            raise StoreError(f"{self._database}: a fold cannot be saved: {error}") from error

    def _commit(self, is_done: Callable[[], bool]) -> None:
        """Commit; an error is ignored if reading back shows that the commit is done."""
        try:
            self._cursor.execute("COMMIT")
        except sqlite3.Error as error:
            if not self._has_landed(error, is_done):
                raise store_error(self._database, "saving", error) from error
            logger.warning("%s: COMMIT raised, but it is saved: %s", self._database, error)
        if not self._is_log_named:
            self._name_log()
        self._commits += 1
        path = self._log if self._commits % 2 else str(self._database)  # one, as each costs a call
        if identity_of(path) != self._files[path]:
            self._refuse_place()

    def _refuse_place(self) -> NoReturn:
        self._broken = "its removal"
        raise out_of_place(self._database)

    def _name_log(self) -> None:
        """Remember the log, which exists from the first commit on, and make its name durable."""
        if self._is_synced:
            try:
                sync_folder(self._database.parent)
            except OSError as error:
                self._give_up(error)
        self._files[self._log] = identity_of(self._log)
        self._is_log_named = True

    def _is_in_place(self) -> bool:
        """Return whether a process that opens the store by name finds the files open here."""
        return all(identity_of(path) == file for path, file in self._files.items())

    def _is_only_log_missing(self) -> bool:
        """Return whether only the log lost its name: then closing moves it into the database."""
        database = str(self._database)
        return identity_of(database) == self._files[database] and identity_of(self._log) is None

    def _has_landed(self, error: sqlite3.Error, is_done: Callable[[], bool]) -> bool:
        """Return whether a commit that raised an error was saved all the same."""
        is_write = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_WRITE
        self._roll_back()
        if self._connection.in_transaction or (
            primary_code(error) == sqlite3.SQLITE_IOERR and not is_write
        ):
            self._give_up(error)
        try:
            return is_done()
        except sqlite3.Error:
            self._give_up(error)

    def _have_moved(self, moved: dict[str, _SqliteHead]) -> bool:
        stored = [
            self._cursor.execute(_READ_HEAD, (head.stream,)).fetchone() == head[1:]
            for head in moved.values()
        ]
        return bool(stored) and all(stored)

    def _give_up(self, error: Exception) -> NoReturn:
        self._broken = str(error)
        raise SaveOutcomeUnknownError(
            f"{self._database}: COMMIT failed with {error}, so it is unknown whether the save "
            "is on the disk; nothing more is written: check the disk and start again"
        ) from error
