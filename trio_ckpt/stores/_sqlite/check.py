"""Checks of the SQLite store's database.

Theory of operation.  SQLite's own check covers the b-trees and the indexes, not what a row says:
an altered byte of a payload, a missing row and a head that went back pass it.  Payloads are sealed,
which readers check; these steps check that every row has its place, that none is missing or
doubled, and that the numbers of runs fit.  They read all rows, where readers begin at the heads.

A damaged page makes any statement raise: that is a finding, and the next step follows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from ..._journal.store import Finding
from ..._util.errors import StoreError
from ..._util.text import plural
from .._local.check import (
    Step,
    blob_steps,
    capped,
    explained,
    lost_runs,
    missing_blobs,
    odd_generations,
    strangers,
)
from .schema import (
    FILES,
    FOLDERS,
    IS_NAMED,
    NAMED,
    RUN_IDS,
    check_tables,
    connect,
    explain_sqlite,
)
from .wal import check_wal

DATABASE = "state.db"
REPAIR = "--repair writes the database again from what can be read"
MAX_PROBLEMS = 20  # of SQLite's own check: one bad page may give thousands

_WHERE = "(SELECT run_id FROM runs WHERE id = streams.run), streams.generation, streams.stream"
_ODD_ROWS = (
    (
        "SELECT streams.id, 'has no run', NULL, streams.generation, stream FROM streams "
        "LEFT JOIN runs ON runs.id = run WHERE runs.id IS NULL"
    ),
    (
        "SELECT streams.id, 'is of a generation that the run does not have', run_id, "
        "streams.generation, stream FROM streams JOIN runs ON runs.id = run "
        "WHERE streams.generation NOT BETWEEN first AND runs.generation"
    ),
    (
        f"SELECT streams.id, 'has no head', {_WHERE} FROM streams "  # noqa: S608  # no text from outside
        "LEFT JOIN heads ON heads.stream = streams.id WHERE heads.stream IS NULL"
    ),
    (
        "SELECT heads.stream, 'has a head, and is not there', NULL, NULL, NULL FROM heads "
        "LEFT JOIN streams ON streams.id = heads.stream WHERE streams.id IS NULL"
    ),
    (
        "SELECT folds.stream, 'has a fold, and is not there', NULL, NULL, NULL FROM folds "
        "LEFT JOIN streams ON streams.id = folds.stream WHERE streams.id IS NULL"
    ),
    (
        f"SELECT streams.id, 'has a fold that is ahead of its records', {_WHERE} FROM folds "  # noqa: S608
        "JOIN streams ON streams.id = folds.stream JOIN heads ON heads.stream = streams.id "
        "WHERE through NOT BETWEEN 1 AND sequence OR typeof(through) != 'integer'"
    ),
    (
        f"SELECT streams.id, 'has attached blobs without a record', {_WHERE} FROM attached "  # noqa: S608
        "LEFT JOIN streams ON streams.id = attached.stream "
        "LEFT JOIN heads ON heads.stream = attached.stream "
        "WHERE heads.sequence IS NULL OR attached.sequence NOT BETWEEN 1 AND heads.sequence"
    ),
)
_ODD_COUNTS = (
    "SELECT counted.stream, coalesce(sequence, 0), records, newest, "  # noqa: S608
    f"{_WHERE} FROM (SELECT stream, count(*) AS records, max(sequence) AS newest FROM log "
    "GROUP BY stream) AS counted LEFT JOIN streams ON streams.id = counted.stream "
    "LEFT JOIN heads ON heads.stream = counted.stream "
    "WHERE streams.id IS NULL OR records IS NOT sequence OR newest IS NOT sequence"
)
_EMPTY = (
    f"SELECT streams.id, sequence, 0, 0, {_WHERE} FROM streams "  # noqa: S608
    "JOIN heads ON heads.stream = streams.id WHERE sequence != 0 AND NOT EXISTS "
    "(SELECT 1 FROM log WHERE log.id = last)"
)
_ODD_SUMMARIES = (
    "SELECT run, run_id, summaries.generation FROM summaries LEFT JOIN runs ON runs.id = run "
    "WHERE run_id IS NULL OR summaries.generation NOT BETWEEN first AND runs.generation "
    "OR typeof(payload) != 'blob'"
)
_IS_NAMED_BY_ANY = (
    "SELECT 1 FROM log WHERE blob = :digest "
    "UNION ALL SELECT 1 FROM attached WHERE digest = :digest LIMIT 1"
)
_RUNS = "SELECT id, run_id, generation, first, owner FROM runs"
_GENERATIONS = "SELECT DISTINCT generation FROM streams WHERE run = ? ORDER BY generation"
_COUNT = (
    "SELECT owner, runs.generation, coalesce((SELECT sum(sequence) FROM heads JOIN streams ON "
    "streams.id = heads.stream WHERE run = runs.id), 0) "
    "FROM runs WHERE run_id = ?"
)


def steps(folder: Path) -> Iterator[Step]:
    """Yield the steps that check a store, one after another."""
    yield partial(explained, "state.db-wal", partial(check_wal, folder))
    for check in (_structure, _odd_rows, _odd_counts, _odd_runs, partial(_missing, folder)):
        yield partial(_in_database, folder, check)
    yield from blob_steps(folder, partial(_run_ids, folder), partial(_named, folder))
    yield partial(strangers, folder, (*FILES, *FOLDERS))
    yield partial(_in_database, folder, partial(_lost, folder))


Check = Callable[[sqlite3.Connection], Iterable[Finding]]


def _in_database(folder: Path, check: Check) -> list[Finding]:
    try:
        with _reading(folder) as connection:
            return capped(check(connection))
    except sqlite3.Error as error:
        return [Finding(DATABASE, f"it cannot be read: {error}", REPAIR)]
    except StoreError as error:
        return [Finding(DATABASE, str(error), REPAIR)]
    except (TypeError, ValueError, OverflowError) as error:  # a value of the wrong type
        return [Finding(DATABASE, f"a row has a value that it cannot have: {error}", REPAIR)]


@contextmanager
def _reading(folder: Path) -> Generator[sqlite3.Connection]:
    with closing(connect(folder / DATABASE)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        yield connection


def _structure(connection: sqlite3.Connection) -> Iterator[Finding]:
    check_tables(connection, Path(DATABASE))
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        what = f"its journal mode is {mode!r}: a power cut may take saves that were acknowledged"
        yield Finding(DATABASE, what, "the next start sets it")
    for (text,) in connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})"):
        if text != "ok":
            yield Finding(DATABASE, f"SQLite: {text}", REPAIR)


def _odd_rows(connection: sqlite3.Connection) -> Iterator[Finding]:
    for statement in _ODD_ROWS:
        for number, what, run_id, generation, stream in connection.execute(statement):
            yield _of_stream(number, what, run_id, generation, stream)


def _odd_counts(connection: sqlite3.Connection) -> Iterator[Finding]:
    for statement in (_ODD_COUNTS, _EMPTY):
        for number, head, records, newest, *where in connection.execute(statement):
            what = f"has {plural(records, 'record')} up to {newest}, and its head is at {head}"
            yield _of_stream(number, what, *where)


def _of_stream(
    number: int, what: str, run_id: str | None, generation: int | None, stream: str | None
) -> Finding:
    where = f"stream {number}" if stream is None else f"stream {stream} of run {run_id!r}"
    return Finding(
        DATABASE, f"{where} {what}", REPAIR, run_id=run_id, generation=generation, stream=stream
    )


def _odd_runs(connection: sqlite3.Connection) -> Iterator[Finding]:
    for number, run_id, newest, first, owner in connection.execute(_RUNS).fetchall():
        have = {generation for (generation,) in connection.execute(_GENERATIONS, (number,))}
        yield from odd_generations(DATABASE, run_id, (first, newest, owner), have)
    for number, run_id, generation in connection.execute(_ODD_SUMMARIES):
        where = f"run {number}" if run_id is None else f"run {run_id!r}"
        what = f"{where} has a summary of generation {generation}, which is not one of that run"
        yield Finding(DATABASE, what, REPAIR, run_id=run_id)


def _run_ids(folder: Path) -> list[str]:
    with explain_sqlite(folder / DATABASE, "listing the runs"), _reading(folder) as connection:
        return [str(run_id) for (run_id,) in connection.execute(RUN_IDS)]


def _named(folder: Path, run_id: str | None, digests: Iterable[str]) -> set[str]:
    what = "reading the names of blobs"
    with explain_sqlite(folder / DATABASE, what), _reading(folder) as connection:
        find = partial(connection.execute, _IS_NAMED_BY_ANY if run_id is None else IS_NAMED)
        return {
            digest
            for digest in digests
            if find({"run_id": run_id, "digest": digest}).fetchone() is not None
        }


def _missing(folder: Path, connection: sqlite3.Connection) -> Iterator[Finding]:
    names = ((str(run_id), str(digest)) for run_id, digest in connection.execute(NAMED))
    yield from missing_blobs(folder, names, partial(_named, folder))


def _lost(folder: Path, connection: sqlite3.Connection) -> Iterator[Finding]:
    def found(run_id: str) -> tuple[int, int, int] | None:
        row: tuple[int, int, int] | None = connection.execute(_COUNT, (run_id,)).fetchone()
        return row

    yield from lost_runs(folder, found)
