"""Checks of a PostgreSQL store: rows, their references to each other, and every blob by its name.

Theory of operation.  These steps compare what the rows say, each step in one snapshot, so a run may
be running.  They do not check the database itself: ``pg_amcheck`` does, where data checksums are
on every read does (https://www.postgresql.org/docs/current/app-pgamcheck.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

from ..._journal.store import Finding, Severity
from .._local.check import RESTORE, Step, capped
from .blobs import blob_problem
from .connection import PostgresConnection
from .texts import from_text

REMOVED = "the next prune of the run removes it"
LEFT = "the next start of the run removes it"

_PLACE = "r.run_id, s.generation, s.key"

_ODD = (
    (
        "runs",
        "SELECT run_id, generation, NULL, NULL, 'its numbers do not fit each other' "
        "FROM {s}.runs WHERE owner < 1 OR first < 0 OR generation < 0 OR first > generation + 1 "
        "OR folded > position OR numbers < 0",
    ),
    (
        "streams",
        "SELECT r.run_id, s.generation, s.key, NULL, 'it is of a run or a generation that is not "
        "there' FROM {s}.streams s LEFT JOIN {s}.runs r ON r.id = s.run "
        "WHERE r.id IS NULL OR s.generation > r.generation OR s.number NOT BETWEEN 1 AND r.numbers",
    ),
    (
        "streams",
        f"SELECT {_PLACE}, s.sequence, 'its newest record is missing' FROM {{s}}.streams s "
        "JOIN {s}.runs r ON r.id = s.run LEFT JOIN {s}.log l ON l.run = s.run "
        "AND l.position = s.last AND l.stream = s.number AND l.sequence = s.sequence "
        "WHERE s.generation >= r.first AND s.sequence != 0 AND l.run IS NULL",
    ),
    (
        "streams",
        f"SELECT {_PLACE}, s.through, 'it has a fold that is ahead of its records' "
        "FROM {s}.streams s JOIN {s}.runs r ON r.id = s.run WHERE s.generation >= r.first "
        "AND s.fold IS NOT NULL AND s.through NOT BETWEEN 1 AND s.sequence",
    ),
    (
        "log",
        f"SELECT {_PLACE}, l.sequence, 'it does not follow the record before it' FROM "
        "(SELECT run, stream, sequence, prev, lag(position, 1, 0::bigint) OVER w AS before, "
        "lag(sequence, 1, 0::bigint) OVER w AS lower FROM {s}.log "
        "WINDOW w AS (PARTITION BY run, stream ORDER BY position)) AS l "
        "JOIN {s}.runs r ON r.id = l.run JOIN {s}.streams s "
        "ON s.run = l.run AND s.number = l.stream "
        "WHERE s.generation >= r.first AND (l.prev != l.before OR l.sequence != l.lower + 1)",
    ),
    (
        "log",
        "SELECT r.run_id, NULL, NULL, l.sequence, 'it is of no stream, or behind the end of the "
        "log' FROM {s}.log l LEFT JOIN {s}.runs r ON r.id = l.run "
        "LEFT JOIN {s}.streams s ON s.run = l.run AND s.number = l.stream "
        "WHERE r.id IS NULL OR s.run IS NULL OR l.position > r.position",
    ),
    (
        "attached",
        f"SELECT {_PLACE}, a.sequence, 'it attaches a blob to a record that is not there' "
        "FROM {s}.attached a LEFT JOIN {s}.runs r ON r.id = a.run "
        "LEFT JOIN {s}.streams s ON s.run = a.run AND s.number = a.stream "
        "WHERE s.run IS NULL OR NOT EXISTS (SELECT FROM {s}.log l WHERE l.run = a.run "
        "AND l.stream = a.stream AND l.sequence = a.sequence)",
    ),
)
_PRUNED = (
    "SELECT r.run_id, s.generation, s.key FROM {s}.streams s JOIN {s}.runs r ON r.id = s.run "
    "WHERE s.generation < r.first"
)
_MISSING = (
    "SELECT r.run_id, n.digest FROM (SELECT run, blob AS digest FROM {s}.log "
    "WHERE blob IS NOT NULL UNION SELECT run, digest FROM {s}.attached) AS n "
    "JOIN {s}.runs r ON r.id = n.run WHERE NOT EXISTS "
    "(SELECT FROM {s}.blobs b WHERE b.run = n.run AND b.digest = n.digest)"
)
_UNNAMED = (
    "SELECT r.run_id, b.digest FROM {s}.blobs b JOIN {s}.runs r ON r.id = b.run "
    "WHERE NOT EXISTS (SELECT FROM {s}.log l WHERE l.run = b.run AND l.blob = b.digest) "
    "AND NOT EXISTS (SELECT FROM {s}.attached a WHERE a.run = b.run AND a.digest = b.digest)"
)
_BLOBS_AFTER = (
    "SELECT b.run, r.run_id, b.digest FROM {s}.blobs b JOIN {s}.runs r ON r.id = b.run "
    "WHERE (b.run, b.digest) > (%(run)s, %(digest)s) ORDER BY b.run, b.digest LIMIT 1"
)


def steps(connection: PostgresConnection) -> Iterator[Step]:
    """Yield the steps that check a store, one after another; each blocks."""
    for table, statement in _ODD:
        yield partial(_odd_rows, connection, table, statement)
    yield partial(_notes, connection)
    yield partial(_missing, connection)
    at = _BlobCursor(connection)
    while not at.is_over:
        yield at.check_next


def _odd_rows(connection: PostgresConnection, table: str, statement: str) -> list[Finding]:
    rows = connection.repeat(lambda: connection.query(statement))
    return capped(
        Finding(
            table,
            problem,
            RESTORE,
            run_id=_text(run_id),
            generation=generation,
            stream=_text(key),
            sequence=sequence,
        )
        for run_id, generation, key, sequence, problem in rows
    )


def _text(stored: str | None) -> str | None:
    return None if stored is None else from_text(stored)


def _notes(connection: PostgresConnection) -> list[Finding]:
    """Return what a killed process left, and the next one removes."""
    pruned = (
        Finding(
            "streams",
            "it was pruned, and some of its rows are left",
            REMOVED,
            Severity.NOTE,
            run_id=from_text(run_id),
            generation=generation,
            stream=from_text(key),
        )
        for run_id, generation, key in connection.repeat(lambda: connection.query(_PRUNED))
    )
    unnamed = (
        _blob_finding(run_id, digest, "no record names it", LEFT, Severity.NOTE)
        for run_id, digest in connection.repeat(lambda: connection.query(_UNNAMED))
    )
    return capped(chain(pruned, unnamed))


def _blob_finding(
    run_id: str, digest: str, what: str, advice: str, severity: Severity = Severity.BAD
) -> Finding:
    return Finding("blobs", what, advice, severity, run_id=from_text(run_id), blob=digest)


def _missing(connection: PostgresConnection) -> list[Finding]:
    rows = connection.repeat(lambda: connection.query(_MISSING))
    text = "it is missing, and a record names it"
    return capped(_blob_finding(run_id, digest, text, RESTORE) for run_id, digest in rows)


class _BlobCursor:
    """Checks one blob after another, each by its name."""

    def __init__(self, connection: PostgresConnection) -> None:
        self.is_over = False
        self._connection = connection
        self._at: tuple[int, str] = (0, "")

    def check_next(self) -> list[Finding]:
        """Check the next blob."""
        return self._connection.repeat(self._check_next)

    def _check_next(self) -> list[Finding]:
        connection, (run, digest) = self._connection, self._at
        with connection.transaction(is_snapshot=True):
            rows = connection.query(_BLOBS_AFTER, {"run": run, "digest": digest})
            if not rows:
                self.is_over = True
                return []
            run, run_id, digest = rows[0]
            problem = blob_problem(connection, run, digest)
        self._at = run, digest
        return [] if problem is None else [_blob_finding(run_id, digest, problem, RESTORE)]
