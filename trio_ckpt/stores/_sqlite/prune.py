"""`Store.prune` of the SQLite store: removes all rows of some generations, in one transaction.

The log has no index by stream.  The rows of a run with few records are found along the chains of
its streams, so that the end of a work item costs the same beside any number of other runs.  For a
large run, and for one whose chains are damaged, every row of the log is read.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ..._journal.store import Pruned, RunKey
from .._local.fence import compare_generation
from .schema import find_owned

MAX_CHAINED = 2_000  # records: following a chain costs several times what reading in order does

_DOOMED = "(SELECT id FROM streams WHERE run = :run AND generation < :first)"
_IN_CHAINS = """id IN (
    WITH RECURSIVE chain (id, stream, prev) AS (
        SELECT log.id, log.stream, log.prev FROM streams JOIN heads ON heads.stream = streams.id
        JOIN log ON log.id = heads.last AND log.stream = heads.stream
        WHERE run = :run AND generation < :first
        UNION SELECT log.id, log.stream, log.prev FROM chain
        JOIN log ON log.id = chain.prev AND log.stream = chain.stream)
    SELECT id FROM chain)"""
_SUM_HEADS = f"SELECT coalesce(sum(sequence), 0) FROM heads WHERE stream IN {_DOOMED}"  # noqa: S608  # no text from outside
_SUM_FOLDS = f"SELECT coalesce(sum(length(payload)), 0) FROM folds WHERE stream IN {_DOOMED}"  # noqa: S608
_READ_ATTACHED = f"SELECT digest FROM attached WHERE stream IN {_DOOMED}"  # noqa: S608
_PRUNE = (
    f"DELETE FROM attached WHERE stream IN {_DOOMED}",  # noqa: S608
    f"DELETE FROM folds WHERE stream IN {_DOOMED}",  # noqa: S608
    f"DELETE FROM heads WHERE stream IN {_DOOMED}",  # noqa: S608
    "DELETE FROM streams WHERE run = :run AND generation < :first",
    "DELETE FROM summaries WHERE run = :run AND generation < :first",
    "UPDATE runs SET first = :first WHERE id = :run",
)


class _LogStatements(NamedTuple):
    """The statements about the rows of the log that go, for one way to find them."""

    count_rows: str
    read_blobs: str
    prune: str

    @classmethod
    def where(cls, condition: str) -> _LogStatements:
        return cls(
            f"SELECT count(*), coalesce(sum(length(payload)), 0) FROM log WHERE {condition}",  # noqa: S608
            f"SELECT blob FROM log WHERE blob IS NOT NULL AND {condition}",  # noqa: S608
            f"DELETE FROM log WHERE {condition}",  # noqa: S608
        )


_BY_READING = _LogStatements.where(f"stream IN {_DOOMED}")
_BY_CHAINS = _LogStatements.where(_IN_CHAINS)


def prune_rows(cursor: sqlite3.Cursor, key: RunKey, keep: int) -> tuple[Pruned, set[str]]:
    """Remove the rows of generations, in the open transaction; see `Store.prune`.

    Returns:
        What was removed, and the digests of the blobs that it named, which are not counted.

    Raises:
        StoreConflictError: another owner or another generation is the newest.
    """
    run, generation, first = find_owned(cursor, key)
    compare_generation(generation, key, "removed")
    doomed = {"run": run, "first": max(first, generation + 1 - keep)}
    log = _choose(cursor, doomed)
    records, size = cursor.execute(log.count_rows, doomed).fetchone()
    size += cursor.execute(_SUM_FOLDS, doomed).fetchone()[0]
    named = set(cursor.execute(log.read_blobs, doomed).fetchall())
    named.update(cursor.execute(_READ_ATTACHED, doomed).fetchall())
    for statement in (log.prune, *_PRUNE):
        cursor.execute(statement, doomed)
    return Pruned(doomed["first"] - first, records, size), {digest for (digest,) in named}


def _choose(cursor: sqlite3.Cursor, doomed: dict[str, int]) -> _LogStatements:
    """Choose how the rows of the log that go are found: along chains where that finds them all."""
    (records,) = cursor.execute(_SUM_HEADS, doomed).fetchone()
    if records > MAX_CHAINED:
        return _BY_READING
    (chained, _) = cursor.execute(_BY_CHAINS.count_rows, doomed).fetchone()
    return _BY_CHAINS if chained == records else _BY_READING
