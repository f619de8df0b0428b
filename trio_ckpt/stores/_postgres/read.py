"""The reading side of the PostgreSQL store: every read is of one moment, and waits for no writer.

Theory of operation.  The heads in the database are true for a position, ``runs.folded``; the log
behind it is added.  A stream's records are found along ``prev`` from its head, by one recursive
statement in the server.  Each step compares the stream and the sequence, so a damaged chain is
noticed at the record where it breaks.

The cursor of a page of history has the position of the next record and its sequence.  It comes from
outside and is accepted only if that record belongs to the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from ..._journal.store import (
    Fold,
    HistoryPage,
    RunSummary,
    StoredRecord,
    StoredRun,
    StoredStream,
)
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.text import text_after
from .blobs import read_whole
from .connection import PostgresConnection, Row
from .texts import from_text

MAX_PAGE_BYTES = 64 * 2**20  # a page of history ends here, even if more records were requested
MAX_LIMIT = 2**31 - 1

_CURSOR = re.compile(r"([1-9][0-9]{0,17})\.([1-9][0-9]{0,17})", re.ASCII)  # fits 64 bits

_FIND_RUN = "SELECT id, generation, first, owner, folded FROM {s}.runs WHERE run_id = %(run_id)s"
_READ_STREAMS = (
    "SELECT number, key, sequence, last, through, fold FROM {s}.streams "
    "WHERE run = %(run)s AND generation = %(generation)s ORDER BY number"
)
_READ_BEHIND = (
    "SELECT stream, sequence, position, payload, blob FROM {s}.log "
    "WHERE run = %(run)s AND position > %(folded)s ORDER BY position"
)
# Several chains at once, each from a position down to a sequence.
_READ_CHAINS = (
    "WITH RECURSIVE chain AS (SELECT l.stream, l.sequence, l.position, l.prev, l.payload, l.blob, "
    "u.start FROM unnest(%(numbers)s::int[], %(sequences)s::bigint[], %(lasts)s::bigint[], "
    "%(starts)s::bigint[]) AS u(number, sequence, last, start) JOIN {s}.log l "
    "ON l.run = %(run)s AND l.position = u.last AND l.stream = u.number "
    "AND l.sequence = u.sequence "
    "UNION ALL SELECT l.stream, l.sequence, l.position, l.prev, l.payload, l.blob, c.start "
    "FROM chain c JOIN {s}.log l ON l.run = %(run)s AND l.position = c.prev "
    "AND l.stream = c.stream AND l.sequence = c.sequence - 1 WHERE c.sequence > c.start) "
    "SELECT stream, sequence, position, payload, blob FROM chain ORDER BY stream, sequence"
)
_READ_ATTACHED = (
    "SELECT a.stream, a.sequence, a.digest FROM "
    "unnest(%(numbers)s::int[], %(starts)s::bigint[], %(ends)s::bigint[]) AS u(number, low, high) "
    "JOIN {s}.attached a ON a.run = %(run)s AND a.stream = u.number "
    "AND a.sequence BETWEEN u.low AND u.high ORDER BY a.stream, a.sequence, a.place"
)
_FIND_STREAM = (
    "SELECT r.id, s.number, s.sequence, s.last, r.folded FROM {s}.runs r "
    "JOIN {s}.streams s ON s.run = r.id WHERE r.run_id = %(run_id)s AND r.first <= s.generation "
    "AND s.generation = coalesce(%(generation)s, r.generation) AND s.key = %(stream)s"
)
_FIND_NEWEST = (
    "SELECT sequence, position FROM {s}.log WHERE run = %(run)s AND position > %(folded)s "
    "AND stream = %(number)s ORDER BY position DESC LIMIT 1"
)
_FIND_PLACE = "SELECT stream, sequence FROM {s}.log WHERE run = %(run)s AND position = %(last)s"
_READ_PAGE = (
    "WITH RECURSIVE page AS (SELECT l.stream, l.sequence, l.position, l.prev, l.payload, l.blob, "
    "1 AS count, length(l.payload)::bigint + coalesce(b.size, 0) AS bytes FROM {s}.log l "
    "LEFT JOIN {s}.blobs b ON b.run = l.run AND b.digest = l.blob "
    "WHERE l.run = %(run)s AND l.position = %(last)s "
    "UNION ALL SELECT l.stream, l.sequence, l.position, l.prev, l.payload, l.blob, p.count + 1, "
    "p.bytes + length(l.payload) + coalesce(b.size, 0) FROM page p JOIN {s}.log l "
    "ON l.run = %(run)s AND l.position = p.prev AND l.stream = p.stream "
    "AND l.sequence = p.sequence - 1 "
    "LEFT JOIN {s}.blobs b ON b.run = l.run AND b.digest = l.blob "
    f"WHERE p.count < %(limit)s AND p.bytes < {MAX_PAGE_BYTES}) "
    "SELECT stream, sequence, position, payload, blob, prev, count, bytes FROM page ORDER BY count"
)
_LIST_RUNS = (
    "SELECT run_id, generation, owner, streams, records, "
    "coalesce(expires_at > clock_timestamp(), false), extract(epoch FROM updated_at)::float8, "
    "coalesce(summary, '') FROM {s}.runs WHERE first <= generation "
    "AND run_id >= %(start)s AND (%(end)s::text IS NULL OR run_id < %(end)s) "
    "AND run_id IS DISTINCT FROM %(after)s ORDER BY run_id LIMIT %(limit)s"
)


@attrs.frozen
class _StoredHead:
    """A stream as it is stored, with the log behind ``runs.folded`` added."""

    number: int
    key: str
    sequence: int
    fold: Fold | None
    chain: tuple[int, int]  # sequence and position that the chain is read from
    behind: list[Row]

    @property
    def start(self) -> int:
        """The first sequence that is read."""
        return 1 if self.fold is None else self.fold.through + 1


def read_run(
    connection: PostgresConnection, run_id: str, generation: int | None
) -> StoredRun | None:
    """See `Store.read_run`."""
    with connection.transaction(is_snapshot=True):
        found = connection.query(_FIND_RUN, {"run_id": run_id})
        if not found:
            return None
        run, newest, first, owner, folded = found[0]
        wanted = newest if generation is None else generation
        if not first <= wanted <= newest:
            return None
        place = {"run": run, "generation": wanted, "folded": folded}
        behind = dict[int, list[Row]]()
        if wanted == newest:  # else it is folded to its end
            for row in connection.query(_READ_BEHIND, place):
                behind.setdefault(row[0], []).append(row)
        rows = connection.query(_READ_STREAMS, place)
        heads = [_head_of(row, behind.get(row[0], [])) for row in rows]
        heads = [head for head in heads if head.sequence]
        older = _read_chains(connection, run, heads)
        names = _read_attached(connection, run, heads)
        streams = tuple(
            [_stream_of(connection, run, head, older.get(head.number, []), names) for head in heads]
        )
    return StoredRun(run_id, wanted, owner, streams)


def _head_of(row: Row, behind: list[Row]) -> _StoredHead:
    number, stored_key, sequence, last, through, payload = row
    key = from_text(stored_key)
    fold = None if payload is None else Fold(key, through, payload)
    newest = behind[-1][1] if behind else sequence
    if fold is not None and not 0 <= fold.through <= newest:
        raise StoreDamagedError(f"the fold of stream {key} is damaged")
    return _StoredHead(number, key, newest, fold, (sequence, last), behind)


def _read_chains(
    connection: PostgresConnection, run: int, heads: Sequence[_StoredHead]
) -> dict[int, list[Row]]:
    """Read the records that are before the log behind the heads, and after the folds."""
    long = [head for head in heads if head.start <= head.chain[0]]
    if not long:
        return {}
    values = {
        "run": run,
        "numbers": [head.number for head in long],
        "sequences": [head.chain[0] for head in long],
        "lasts": [head.chain[1] for head in long],
        "starts": [head.start for head in long],
    }
    chains = dict[int, list[Row]]()
    for row in connection.query(_READ_CHAINS, values):
        chains.setdefault(row[0], []).append(row)
    return chains


def _read_attached(
    connection: PostgresConnection, run: int, heads: Iterable[_StoredHead]
) -> dict[tuple[int, int], list[str]]:
    ranges = [(head.number, head.start, head.sequence) for head in heads]
    return _names_in(connection, run, ranges)


def _names_in(
    connection: PostgresConnection, run: int, ranges: Sequence[tuple[int, int, int]]
) -> dict[tuple[int, int], list[str]]:
    """Return the attached blobs by stream and sequence, in ranges of sequences of streams."""
    names = dict[tuple[int, int], list[str]]()
    if ranges:
        numbers, starts, ends = map(list, zip(*ranges, strict=True))
        values = {"run": run, "numbers": numbers, "starts": starts, "ends": ends}
        for number, sequence, digest in connection.query(_READ_ATTACHED, values):
            names.setdefault((number, sequence), []).append(digest)
    return names


def _stream_of(
    connection: PostgresConnection,
    run: int,
    head: _StoredHead,
    older: list[Row],
    names: Mapping[tuple[int, int], list[str]],
) -> StoredStream:
    rows = [row for row in (*older, *head.behind) if row[1] >= head.start]
    if [row[1] for row in rows] != list(range(head.start, head.sequence + 1)):
        raise StoreDamagedError(f"{connection.address.shown}: stream {head.key} has a gap")
    tail = tuple([_resolve(connection, run, row, names) for row in rows])
    return StoredStream(head.key, head.sequence, head.fold, tail)


def _resolve(
    connection: PostgresConnection,
    run: int,
    row: Row,
    names: Mapping[tuple[int, int], list[str]],
) -> StoredRecord:
    stream, sequence, _, payload, blob = row[:5]
    if blob is not None:
        payload = read_whole(connection, run, blob)
    return StoredRecord(sequence, bytes(payload), tuple(names.get((stream, sequence), ())))


def read_history(
    connection: PostgresConnection,
    run_id: str,
    stream: str,
    generation: int | None,
    cursor: str | None,
    limit: int,
) -> HistoryPage:
    """See `Store.history`."""
    with connection.transaction(is_snapshot=True):
        place = {"run_id": run_id, "stream": stream, "generation": generation}
        start = _find_start(connection, place, cursor)
        if start is None:
            return HistoryPage((), None)
        page = {"run": start.run, "last": start.last, "limit": min(limit, MAX_LIMIT)}
        rows = connection.query(_READ_PAGE, page)
        _check_page(connection, stream, rows, start, limit)
        names = _names_in(connection, start.run, [(start.number, rows[-1][1], rows[0][1])])
        records = tuple([_resolve(connection, start.run, row, names) for row in rows])
        _, oldest, _, _, _, before, _, _ = rows[-1]
    return HistoryPage(records, f"{before}.{oldest - 1}" if oldest > 1 else None)


@attrs.frozen
class _PageStart:
    """Where a page of history begins: a stream of a run, a sequence, and its position."""

    run: int
    number: int
    sequence: int
    last: int


def _find_start(
    connection: PostgresConnection, place: Mapping[str, object], cursor: str | None
) -> _PageStart | None:
    """Find the record that a page begins with; None: the stream has none.

    Raises:
        StoreError: the cursor was not given for this stream.
    """
    found = connection.query(_FIND_STREAM, place)
    if cursor is not None:
        return _check_cursor(connection, found, cursor)
    if not found:
        return None
    run, number, sequence, last, folded = found[0]
    behind = {"run": run, "number": number, "folded": folded}
    for row in connection.query(_FIND_NEWEST, behind):
        sequence, last = row
    return _PageStart(run, number, sequence, last) if sequence else None


def _check_cursor(connection: PostgresConnection, found: Sequence[Row], cursor: str) -> _PageStart:
    match = _CURSOR.fullmatch(cursor)
    if match is not None and found:
        (last, sequence), (run, number, *_) = map(int, match.groups()), found[0]
        at = connection.query(_FIND_PLACE, {"run": run, "last": last})
        if at == [(number, sequence)]:
            return _PageStart(run, number, sequence, last)
    raise StoreError(f"{cursor!r} is not a cursor of this stream's history")


def _check_page(
    connection: PostgresConnection,
    stream: str,
    rows: Sequence[Row],
    start: _PageStart,
    limit: int,
) -> None:
    """Check that a page begins where it should, and ends for a reason."""
    is_whole = bool(rows) and rows[0][:2] == (start.number, start.sequence)
    if is_whole:
        _, oldest, _, _, _, _, count, size = rows[-1]
        is_whole = oldest == 1 or count >= limit or size >= MAX_PAGE_BYTES
    if not is_whole:
        missing = rows[-1][1] - 1 if rows else start.sequence
        raise StoreDamagedError(
            f"{connection.address.shown}: checkpoint {missing} of stream {stream} is missing"
        )


def list_runs(
    connection: PostgresConnection, prefix: str, after: str | None, limit: int
) -> tuple[RunSummary, ...]:
    """See `Store.list_runs`.  It reads the page only, by the index of the ids."""
    values = {
        "start": max(prefix, after or ""),
        "end": text_after(prefix),
        "after": after,
        "limit": min(limit, MAX_LIMIT),
    }
    rows = connection.query(_LIST_RUNS, values)
    return tuple([RunSummary(from_text(row[0]), *row[1:]) for row in rows])
