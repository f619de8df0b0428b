"""The database of the SQLite store: its tables, how it is opened, what its errors mean."""

from __future__ import annotations

import functools
import os
import sqlite3
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from ..._journal.store import RunKey
from ..._util.errors import StoreConflictError, StoreDamagedError, StoreError
from ..._util.forks import make_unshared
from ..._util.text import message_of, plural
from .._local.fence import compare_owner
from .._local.files import (
    check_version,
    explain,
    make_member,
    make_store_folder,
    open_file,
    refuse_strangers,
    sync_file,
    sync_folder,
    warn_of_others,
)
from .._local.watermark import all_watermarks

T = TypeVar("T")

APPLICATION_ID = 0x74636B70  # "tckp", in bytes 68 to 71 of the file
FORMAT_VERSION = 3  # format 1 was used during development, and never released
CACHE_KIB = 512  # a log is written once and seldom read; SQLite's default is 2 MB
BUSY_TIMEOUT_S = 30.0  # waiting for the writer of another run; well below a save's 60 s
FILES = ("state.db", "state.db.new", "state.db-journal", "state.db-wal", "state.db-shm")
FOLDERS = ("blobs", "lock", "live")

TABLES = {
    # One row per run; `generation` is the newest, `first` the oldest that was not pruned
    # (greater than `generation`: all were pruned, and only this row is left), `owner` the fence.
    "runs": """CREATE TABLE runs (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE,
        generation INTEGER NOT NULL, first INTEGER NOT NULL, owner INTEGER NOT NULL)""",
    "streams": """CREATE TABLE streams (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL, generation INTEGER NOT NULL,
        stream TEXT NOT NULL, UNIQUE (run, generation, stream))""",
    # The newest record of each stream: its sequence, its row in `log`, and when it was saved.
    "heads": """CREATE TABLE heads (
        stream INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, last INTEGER NOT NULL, at REAL)""",
    "folds": """CREATE TABLE folds (
        stream INTEGER PRIMARY KEY, through INTEGER NOT NULL, payload BLOB NOT NULL)""",
    # All records of all streams; `prev` is the row of the stream's previous record, 0: none.
    "log": """CREATE TABLE log (
        id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, sequence INTEGER NOT NULL,
        prev INTEGER NOT NULL, payload BLOB NOT NULL CHECK (typeof(payload) = 'blob'),
        blob TEXT)""",
    "log_blob": "CREATE INDEX log_blob ON log (blob) WHERE blob IS NOT NULL",
    # The attached blobs that records name; only records with attached blobs have rows here.
    "attached": """CREATE TABLE attached (
        stream INTEGER NOT NULL, sequence INTEGER NOT NULL, place INTEGER NOT NULL,
        digest TEXT NOT NULL, PRIMARY KEY (stream, sequence, place)) WITHOUT ROWID""",
    "attached_digest": "CREATE INDEX attached_digest ON attached (digest)",
    # The newest summary of each run, and the generation that it is of.
    "summaries": """CREATE TABLE summaries (
        run INTEGER PRIMARY KEY, generation INTEGER NOT NULL, payload BLOB NOT NULL)""",
}

_TIME = "at REAL"  # of a head; SQLite adds a column to the text of its table in this way
_TABLES_2 = {
    name: text.replace(f", {_TIME}", "") for name, text in TABLES.items() if name != "summaries"
}
_ADD_TIME = f"ALTER TABLE heads ADD COLUMN {_TIME}"
_ADD_SUMMARIES = TABLES["summaries"]

# Read by several files of this room.
FIND_RUN = "SELECT id, generation, first, owner FROM runs WHERE run_id = ?"
FIND_HEAD = (
    "SELECT streams.id, sequence, last FROM streams JOIN heads ON heads.stream = streams.id "
    "WHERE run = ? AND generation = ? AND streams.stream = ?"
)
SUM_HEADS = (
    "SELECT coalesce(sum(sequence), 0) FROM heads JOIN streams ON streams.id = heads.stream "
    "WHERE run = ?"
)
READ_ATTACHED = "SELECT digest FROM attached WHERE stream = ? AND sequence = ? ORDER BY place"
_OF_RUN = "streams.run = (SELECT id FROM runs WHERE run_id = :run_id)"
# By name: Python 3.12.1 warns of numbered parameters.  CROSS JOIN: by digest first, which is rare.
IS_NAMED = (
    "SELECT 1 FROM log CROSS JOIN streams ON streams.id = log.stream "  # noqa: S608  # no text from outside
    f"WHERE log.blob = :digest AND {_OF_RUN} UNION ALL "
    "SELECT 1 FROM attached CROSS JOIN streams ON streams.id = attached.stream "
    f"WHERE attached.digest = :digest AND {_OF_RUN} LIMIT 1"
)
NAMED = (  # by which run
    "SELECT run_id, blob FROM log JOIN streams ON streams.id = log.stream "
    "JOIN runs ON runs.id = streams.run WHERE blob IS NOT NULL UNION "
    "SELECT run_id, digest FROM attached JOIN streams ON streams.id = attached.stream "
    "JOIN runs ON runs.id = streams.run"
)
RUN_IDS = "SELECT run_id FROM runs"


def find_owned(cursor: sqlite3.Cursor, key: RunKey) -> tuple[int, int, int]:
    """Compare the owner of a run in the open transaction.

    Returns:
        The row of the run, its newest generation, and the oldest that was not pruned.

    Raises:
        StoreConflictError: another owner is newer, or the run is not in the store.
    """
    row = cursor.execute(FIND_RUN, (key.run_id,)).fetchone()
    if row is None:  # its lock made it
        raise StoreConflictError(
            "the run is not in the store any more, as when an older copy is put back: nothing was "
            "changed; find out what did it, put the newest copy back, and start again",
            run_id=key.run_id,
        )
    run, generation, first, owner = row
    compare_owner(owner, key)
    return run, generation, first


MAX_ROWS = 64  # of one statement: its length grows with them


def row_parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield rows in parts of few sizes, so that the statements for them stay prepared."""
    at = 0
    while left := len(rows) - at:
        size = min(MAX_ROWS, 1 << (left.bit_length() - 1))
        yield rows[at : at + size]
        at += size


def new_row_id(cursor: sqlite3.Cursor) -> int:
    """Return the id of the row that was inserted last."""
    row = cursor.lastrowid
    if row is None:
        raise StoreDamagedError("SQLite gave a new row no number")
    return row


@functools.cache
def append_rows(count: int) -> str:
    """Return the statement that adds rows to the log, each with five values."""
    rows = ", ".join(["(?, ?, ?, ?, ?)"] * count)
    return f"INSERT INTO log (id, stream, sequence, prev, payload) VALUES {rows}"  # noqa: S608


@functools.cache
def move_heads(count: int) -> str:
    """Return the compare-and-set of heads: by stream their new values, and the old sequence.

    The time of the save comes between the two.
    """
    by_stream = f"CASE stream{' WHEN ? THEN ?' * count} END"
    return (
        f"UPDATE heads SET sequence = {by_stream}, last = {by_stream}, at = ? "  # noqa: S608
        f"WHERE stream IN ({', '.join('?' * count)}) AND sequence = {by_stream}"
    )


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's result code without its extension; -1: the error has no such code."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def store_error(database: Path, doing: str, error: sqlite3.Error) -> StoreError:
    """Translate an error of SQLite into the store's error."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    reason = f"{database}: {doing} failed: {message_of(str(error))} ({name})"
    is_no_text = isinstance(error, sqlite3.OperationalError) and primary_code(error) < 0
    if primary_code(error) in _DAMAGED or is_no_text:  # Python reports text that is not UTF-8
        return StoreDamagedError(f"{reason}; the database is damaged, restore it from a copy")
    if primary_code(error) == sqlite3.SQLITE_BUSY:
        return StoreError(f"{reason}: another process has been writing for {BUSY_TIMEOUT_S:g} s")
    return StoreError(reason)


@contextmanager
def explain_sqlite(database: Path, doing: str) -> Generator[None, None, None]:
    """Turn SQLite's errors into `StoreError`, with the file and the reason."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(database, doing, error) from error


def make_folders(folder: Path, *, create: bool) -> None:
    """Make the store's folder and those in it; leaves a foreign folder unchanged.

    Raises:
        StoreError: it is not a folder, holds foreign files, or cannot be written.
    """
    database = folder / "state.db"
    with explain(folder, "opening the store"):
        make_store_folder(folder, database.name, files=FILES, folders=FOLDERS, create=create)
        if not database.exists() or _is_blank_file(database):
            refuse_strangers(folder, "store", (*FILES, *FOLDERS))
            _refuse_lost(folder)
        make_member(folder / "lock")
        make_member(folder / "blobs")
        warn_of_others(folder)


def make_database(folder: Path) -> None:
    """Make a private database with its tables, complete as soon as it has its name.

    SQLite does not check whether the name of its journal is durable, so a power cut during the
    making could leave a database that cannot be rolled back.  It is made under another name.

    The caller holds the lock of opening.  Only here, and only while no database exists, is
    its file opened other than by SQLite: closing a descriptor of it would drop the
    locks of every connection that this process has (https://www.sqlite.org/howtocorrupt.html).
    """
    database, new = folder / "state.db", folder / "state.db.new"
    with explain(folder, "opening the store"):
        if os.path.lexists(database):
            return
        new.unlink(missing_ok=True)  # a crash may have left one
        os.close(open_file(new, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        with explain_sqlite(new, "opening"), closing(connect(new)) as connection:
            # In memory: a file would be foreign to a process that opens the store now.  A defensive
            # connection, the default from Python 3.12 on, silently ignores OFF.
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA synchronous = OFF")
            make_tables(connection)
        fd = open_file(new, os.O_RDWR)
        try:
            sync_file(fd)
        finally:
            os.close(fd)
        os.replace(new, database)
        sync_folder(folder)
        sync_folder(folder.parent)  # a crash may have come between the folder's making and this


def _is_blank_file(database: Path) -> bool:
    with explain_sqlite(database, "opening"), closing(connect(database)) as connection:
        return _is_blank(connection, database)


def _is_blank(connection: sqlite3.Connection, database: Path) -> bool:
    """Return whether the database was never written to.

    Raises:
        StoreError: it belongs to another program.
    """
    connection.execute("BEGIN")  # one snapshot: another process may be making the tables
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    finally:
        connection.execute("ROLLBACK")
    is_ours = bool(application_id == APPLICATION_ID)
    if not is_ours and (application_id or tables):
        raise StoreError(f"{database} is not a trio_ckpt store; choose another folder")
    return not is_ours


class SqliteConnection(sqlite3.Connection):
    """A connection that can be weakly referenced: see `trio_ckpt._util.forks.make_unshared`."""


def connect(database: Path) -> sqlite3.Connection:
    """Open the database; only the caller's thread may use it."""
    connection: sqlite3.Connection = make_unshared(
        sqlite3.connect,
        database,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=True,
        factory=SqliteConnection,
    )
    try:
        # https://www.sqlite.org/security.html: the file is untrusted until it was checked.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def set_durability(
    connection: sqlite3.Connection, database: Path, durability: Literal["full", "process"]
) -> None:
    """Switch to the write-ahead log, and check that SQLite did.

    One failed fsync leaves SQLite in the rollback journal without an error, and in that mode
    acknowledged saves were lost in real power cuts.

    Raises:
        StoreError: SQLite did not switch.
    """
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{database} is in journal mode {mode!r}: its disk has no shared memory")
    wanted = "FULL" if durability == "full" else "NORMAL"
    connection.execute(f"PRAGMA synchronous = {wanted}")
    (level,) = connection.execute("PRAGMA synchronous").fetchone()
    if level != (2 if durability == "full" else 1):
        raise StoreError(f"{database}: SQLite would not switch to synchronous = {wanted}")
    connection.execute("PRAGMA fullfsync = ON")  # where fsync(2) stops at the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync = ON")


def check_format(connection: sqlite3.Connection, database: Path) -> None:
    """Check that the database is a store of this version; make the tables that it lacks.

    A store of format 2 gets what format 3 adds to it.

    The caller holds the lock of opening.

    Raises:
        StoreError: it belongs to another program.
        StoreVersionError: another version wrote it.
        StoreDamagedError: its tables differ from those of a store.
    """
    if _is_blank(connection, database):
        make_tables(connection)
    version, schema = _read_format(connection)
    if version == 2:
        _need_tables(database, schema, _TABLES_2)
        _change(connection, (_ADD_TIME, _ADD_SUMMARIES))
    check_tables(connection, database)


def check_tables(connection: sqlite3.Connection, database: Path) -> None:
    """Check that the tables are those of this version.

    Raises:
        StoreVersionError: another version wrote it.
        StoreDamagedError: they differ from those of a store.
    """
    version, schema = _read_format(connection)
    check_version(database, version, FORMAT_VERSION)
    _need_tables(database, schema, TABLES)


def _need_tables(
    database: Path, schema: Mapping[str, str | None], tables: Mapping[str, str]
) -> None:
    if schema != tables:  # SQLite keeps their text
        raise StoreDamagedError(f"{database}: its tables are not those of a trio_ckpt store")


def _read_format(connection: sqlite3.Connection) -> tuple[int, dict[str, str | None]]:
    """Read the version, and the text of all that was created; a name twice is damage."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL OR type != 'index'"
    ).fetchall()
    schema = dict(rows)
    return version, schema if len(schema) == len(rows) else {}


def _refuse_lost(folder: Path) -> None:
    """Check that no run was saved here: a lost database must not be replaced by an empty one."""
    for _, seen in all_watermarks(folder):
        if seen is not None and seen.records:
            raise StoreDamagedError(
                f"{folder / 'state.db'} is empty or gone, with "
                f"{plural(seen.records, 'checkpoint')} of run {seen.run_id!r}: restore it from a "
                "copy, or choose another folder"
            )


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty database, in one transaction."""
    _change(connection, TABLES.values())


def _change(connection: sqlite3.Connection, statements: Iterable[str]) -> None:
    """Make the database one of this version, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
