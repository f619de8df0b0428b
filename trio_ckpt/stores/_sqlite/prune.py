"""`Store.prune` of the SQLite store: removes all rows of some generations, in one transaction.

It reads every row of the log, since the log has no index by stream.
"""

from __future__ import annotations

import sqlite3

from ..._journal.store import Pruned, RunKey
from .._local.blobs import Blobs
from .._local.fence import compare_generation
from .schema import find_owned

_DOOMED = "(SELECT id FROM streams WHERE run = :run AND generation < :first)"
_COUNT_RECORDS = (
    f"SELECT count(*), coalesce(sum(length(payload)), 0) FROM log WHERE stream IN {_DOOMED}"  # noqa: S608  # no text from outside
)
_SUM_FOLDS = f"SELECT coalesce(sum(length(payload)), 0) FROM folds WHERE stream IN {_DOOMED}"  # noqa: S608
_ORPHANS = (
    f"SELECT blob FROM log WHERE blob IS NOT NULL AND stream IN {_DOOMED} UNION "  # noqa: S608
    f"SELECT digest FROM attached WHERE stream IN {_DOOMED} EXCEPT "
    f"SELECT blob FROM log WHERE blob IS NOT NULL AND stream NOT IN {_DOOMED} EXCEPT "
    f"SELECT digest FROM attached WHERE stream NOT IN {_DOOMED}"
)
_PRUNE = (
    f"DELETE FROM log WHERE stream IN {_DOOMED}",  # noqa: S608
    f"DELETE FROM attached WHERE stream IN {_DOOMED}",  # noqa: S608
    f"DELETE FROM folds WHERE stream IN {_DOOMED}",  # noqa: S608
    f"DELETE FROM heads WHERE stream IN {_DOOMED}",  # noqa: S608
    "DELETE FROM streams WHERE run = :run AND generation < :first",
    "UPDATE runs SET first = :first WHERE id = :run",
)


def prune_rows(cursor: sqlite3.Cursor, blobs: Blobs, key: RunKey, keep: int) -> Pruned:
    """Remove the rows of generations, in the open transaction; see `Store.prune`.

    Raises:
        StoreConflictError: another owner or another generation is the newest.
    """
    run, generation, first = find_owned(cursor, key)
    compare_generation(generation, key, "removed")
    doomed = {"run": run, "first": max(first, generation + 1 - keep)}
    records, size = cursor.execute(_COUNT_RECORDS, doomed).fetchone()
    size += cursor.execute(_SUM_FOLDS, doomed).fetchone()[0]
    orphans = cursor.execute(_ORPHANS, doomed).fetchall()
    size += sum(blobs.size(digest) for (digest,) in orphans)
    for statement in _PRUNE:
        cursor.execute(statement, doomed)
    return Pruned(doomed["first"] - first, records, size)
