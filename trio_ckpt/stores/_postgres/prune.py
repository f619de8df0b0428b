"""`Store.prune` and `Store.drop_blobs` of the PostgreSQL store.

Theory of operation.  One statement makes generations invisible: it moves ``runs.first``.  Their
rows are removed after it, in parts, each by a statement of its own: no transaction lasts long, each
renews the lease, and none holds a lock while its owner is paused.  Generations follow each other
in the log, so their rows are its beginning.  What a killed owner has not removed goes with the next
prune.  So an error after that first statement is only logged: what was asked for is done.

A run that is removed as a whole, and was never long, as that of a work item, goes in one statement.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial

import psycopg

from ..._journal.store import Pruned, RunKey
from ..._util.errors import SaveOutcomeUnknownError, StoreConflictError
from ..._util.log import get_logger
from .._local.fence import compare_generation
from .blobs import remove_unnamed
from .connection import PostgresConnection, Row
from .owning import OWNED, OwnedRun, values_of

logger = get_logger(__name__)

CHUNK = 10_000  # rows of the log that one statement removes

_HIDE = (
    "UPDATE {s}.runs SET first = greatest(first, %(first)s) WHERE id = %(run)s "
    "AND nonce = %(nonce)s AND generation = %(generation)s "
    "RETURNING (SELECT coalesce(max(number), 0) FROM {s}.streams s "
    "WHERE s.run = runs.id AND s.generation < greatest(first, %(first)s))"
)
_FIND_CHUNK = (
    "SELECT max(position), count(*) FILTER (WHERE stream <= %(number)s) FROM "
    "(SELECT position, stream FROM {s}.log WHERE run = %(run)s "
    f"ORDER BY position LIMIT {CHUNK}) AS chunk"
)
_REMOVE_CHUNK = (
    f"WITH fence AS ({OWNED}), gone AS (DELETE FROM {{s}}.log l USING fence "
    "WHERE l.run = fence.id AND position <= %(through)s AND stream <= %(number)s "
    "RETURNING length(payload)) SELECT (SELECT count(*) FROM fence), count(*), "
    "coalesce(sum(length), 0)::bigint FROM gone"
)
_REMOVE_STREAMS = (
    f"WITH fence AS ({OWNED}), named AS (DELETE FROM {{s}}.attached a USING fence "
    "WHERE a.run = fence.id AND stream <= %(number)s), gone AS (DELETE FROM {s}.streams t "
    "USING fence WHERE t.run = fence.id AND number <= %(number)s RETURNING length(fold)) "
    "SELECT coalesce(sum(length), 0)::bigint FROM gone"
)
_REMOVE_RUN = (
    "WITH hidden AS (UPDATE {s}.runs SET first = greatest(first, %(first)s) WHERE id = %(run)s "
    "AND nonce = %(nonce)s AND generation = %(generation)s RETURNING id), "
    "records AS (DELETE FROM {s}.log l USING hidden WHERE l.run = hidden.id "
    "RETURNING length(payload)), "
    "named AS (DELETE FROM {s}.attached a USING hidden WHERE a.run = hidden.id), "
    "folds AS (DELETE FROM {s}.streams t USING hidden WHERE t.run = hidden.id "
    "RETURNING length(fold)) "
    "SELECT (SELECT count(*) FROM records), "
    "(SELECT coalesce(sum(length), 0) FROM (TABLE records UNION ALL TABLE folds) r)::bigint, "
    "EXISTS (SELECT FROM {s}.blobs b WHERE b.run = hidden.id) FROM hidden"
)
_DROP = (
    f"WITH fence AS ({OWNED}), "
    "gone AS (DELETE FROM {s}.attached a USING fence, {s}.streams t "
    "WHERE t.run = fence.id AND t.generation = %(generation)s AND t.key = %(stream)s "
    "AND a.run = fence.id AND a.stream = t.number AND a.sequence = ANY(%(sequences)s::bigint[]) "
    "RETURNING a.digest) SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM gone)"
)
_MAX_SEQUENCE = 2**63 - 1


def prune(connection: PostgresConnection, owned: OwnedRun, key: RunKey, keep: int) -> Pruned:
    """See `Store.prune`; the caller has compared the owner with that of this handle.

    Raises:
        StoreConflictError: another owner, or another generation, is the newest.
        SaveOutcomeUnknownError: the connection broke, and then the database refused, or another
            owner had the run.
        psycopg.Error: the database refused, and nothing was removed.
    """
    compare_generation(owned.generation, key, "removed")
    before, first = owned.first, max(owned.first, owned.generation + 1 - keep)
    values = values_of(connection, owned) | {"generation": owned.generation, "first": first}
    is_short = first > owned.generation and owned.position <= CHUNK
    statement = _REMOVE_RUN if is_short else _HIDE

    def hide() -> Row:
        rows = connection.query(statement, values)
        if not rows:
            raise _fenced(owned, key, "removed")
        return rows[0]

    try:
        found = connection.change(hide, key.run_id)
    except SaveOutcomeUnknownError:
        owned.first = first  # nothing is saved to a generation that may be invisible
        raise
    owned.first = first
    if first > owned.generation:
        owned.heads = None
    if is_short:
        records, size, has_blobs = found
        with _only_logged(connection, key):
            size += remove_unnamed(connection, owned) if has_blobs else 0
    else:
        records, size = _remove_rows(connection, owned, key, values | {"number": found[0]})
    return Pruned(first - before, records, size)


def _remove_rows(
    connection: PostgresConnection, owned: OwnedRun, key: RunKey, values: dict[str, object]
) -> tuple[int, int]:
    """Remove the rows of pruned streams in parts; returns how many records, and bytes in all."""
    records = size = 0
    if values["number"]:
        with _only_logged(connection, key):
            for gone, length in _remove_records(connection, values):
                records, size = records + gone, size + length
            ((folds,),) = connection.repeat(lambda: connection.query(_REMOVE_STREAMS, values))
            size += folds + remove_unnamed(connection, owned)
    return records, size


def _remove_records(
    connection: PostgresConnection, values: dict[str, object]
) -> Generator[tuple[int, int]]:
    """Remove the log of pruned streams, which is its beginning; yields rows and bytes."""
    while True:
        ((through, count),) = connection.repeat(lambda: connection.query(_FIND_CHUNK, values))
        if not count:  # the first that is left is one that is kept
            return
        chunk = values | {"through": through}
        remove = partial(connection.query, _REMOVE_CHUNK, chunk)
        ((is_owner, gone, length),) = connection.repeat(remove)
        yield gone, length
        if not is_owner:  # what is left is invisible, and goes with the next prune
            return


@contextmanager
def _only_logged(connection: PostgresConnection, key: RunKey) -> Generator[None]:
    """Log an error of a block that removes what no reader sees any more."""
    try:
        yield
    except psycopg.Error as error:
        logger.warning(
            "%s: rows and blobs of run %r that no record needs are left until its next lock or "
            "prune: %s",
            connection.address.shown,
            key.run_id,
            connection.reason_of(error),
        )


def drop_blobs(
    connection: PostgresConnection,
    owned: OwnedRun,
    key: RunKey,
    stream: str,
    sequences: Sequence[int],
) -> int:
    """See `Store.drop_blobs`; the caller has compared the owner with that of this handle.

    Raises:
        StoreConflictError: another owner, or another generation, is the newest.
        SaveOutcomeUnknownError: the connection broke, and then the database refused, or another
            owner had the run.
        psycopg.Error: the database refused, and nothing was dropped.
    """
    compare_generation(owned.generation, key, "dropped")
    values = values_of(connection, owned) | {
        "generation": owned.generation,
        "stream": stream,
        "sequences": [n for n in set(sequences) if 0 < n <= _MAX_SEQUENCE],
    }

    def drop() -> int:
        ((is_owner, dropped),) = connection.query(_DROP, values)
        if not is_owner:
            raise _fenced(owned, key, "dropped")
        return int(dropped)

    size = 0
    if connection.change(drop, key.run_id):
        with _only_logged(connection, key):
            size = remove_unnamed(connection, owned)
    return size


def _fenced(owned: OwnedRun, key: RunKey, verb: str) -> StoreConflictError:
    return StoreConflictError(
        f"owner {owned.owner} does not have the run any more: nothing was {verb}",
        run_id=key.run_id,
    )
