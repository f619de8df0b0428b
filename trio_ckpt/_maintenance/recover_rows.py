"""The recovery of all local stores: finds the valid records of each stream, and fills the gaps.

Theory of operation.  The reader of each kind of store puts what can be read of it into the tables
of an SQLite store: rows of the log with their streams and runs.  What follows from records is not
read but computed here: the chain of each stream, its head, its fold.  Then the writer of that kind
makes the new store of the tables.

A record is valid if its seal opens and it follows the previous one.  Where
a record is lost, the stream can continue after it only if the later records do not build on it:
where batches are independent of each other.  Then a note takes its place, and the batches that it
had confirmed run again.  Where they build on each other (a state, a cursor, an append file, a
frontier) the stream is cut off before it.  That loses what was confirmed later, so it is done only
if no valid record is lost, or if the user accepts the loss.

Of several records at one place in a stream the one counts whose seal opens.  Blocking functions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain

import attrs

from .._journal.apply import apply
from .._journal.folds import encode_progress
from .._journal.progress import Progress
from .._journal.record import (
    DIGEST_BYTES,
    Record,
    RecordKind,
    Seal,
    decode_record,
    encode_record,
)
from .._util.errors import StoreDamagedError, StoreError
from ..state import decode_frame
from ..stores._local.blobs import Blobs
from ..stores._local.watermark import Watermark, all_watermarks
from ..stores._sqlite.schema import READ_ATTACHED, SUM_HEADS
from .recovery import Recovery, StreamPlace

MAX_NOTES = 100_000  # in place of lost records; a stream that lost more is cut off
LOST = "a repair put this in the place of a checkpoint that was lost"

Records = Callable[[], Iterable[tuple[int, bytes]]]  # in order; an unreadable one is empty


@attrs.frozen
class ValidPrefix:
    """The valid prefix of a stream.

    Attributes:
        progress: The sum of its valid records, up to the first damaged one.
        later: How many valid records follow after that.
        newest: The greatest sequence that exists at all.
    """

    progress: Progress
    later: int
    newest: int

    @property
    def through(self) -> int:
        """The sequence of the newest record in the prefix."""
        return self.progress.sequence

    def fold(self, seal: Seal) -> bytes:
        """The sealed fold of the prefix."""
        return seal.close(-self.through, encode_progress(self.progress))


def measure(seal: Seal, records: Records) -> ValidPrefix:
    """Find the valid prefix of a stream."""
    progress, bad, later, newest = Progress(), 0, 0, 0
    for sequence, payload in records():
        newest = max(newest, sequence)
        record = open_record(seal, sequence, payload)
        if bad:
            later += record is not None and sequence > bad
            continue
        try:
            if record is None:
                raise StoreDamagedError("it cannot be read")
            apply(progress, sequence, record)
        except StoreDamagedError:
            bad = min(sequence, progress.sequence + 1)
            later += record is not None and sequence > bad
    if bad:  # a record that could not be added may have changed a part of the sum
        progress = Progress()
        for sequence, payload in records():
            if sequence >= bad:
                break
            apply(progress, sequence, decode_record(seal.open(sequence, payload)))
    return ValidPrefix(progress, later, newest)


def open_record(seal: Seal, sequence: int, payload: bytes) -> Record | None:
    """Decode a sealed record; None: it is damaged."""
    try:
        return decode_record(seal.open(sequence, payload))
    except StoreDamagedError:
        return None


@attrs.frozen
class GapFill:
    """A stream in which notes replace lost records.

    Attributes:
        progress: The sum of its records.
        notes: The sealed notes, by sequence.
    """

    progress: Progress
    notes: dict[int, bytes]


def fill_gaps(seal: Seal, records: Records, head: int) -> GapFill | None:
    """Replace lost records by notes; None: a later record builds on one of them.

    Args:
        seal: The seal of the stream.
        records: The records that exist.
        head: The newest record that existed, as far as is known.
    """
    progress, notes, at = Progress(), dict[int, bytes](), 0.0
    for sequence, payload in chain(records(), [(head + 1, b"")]):
        record = open_record(seal, sequence, payload)
        stop = sequence if record is not None or sequence > head else sequence + 1
        for lost in range(progress.sequence + 1, stop):
            if len(notes) >= MAX_NOTES:
                return None
            note = Record(kind=RecordKind.NOTE, at=at, metadata={"reason": LOST})
            apply(progress, lost, note)
            notes[lost] = seal.close(lost, encode_record(note))
        if record is None:
            continue
        if record.adds or _is_twice(record, progress):
            return None
        try:
            apply(progress, sequence, record)
        except StoreDamagedError:
            return None
        at = record.at
    return None if progress.is_ordered else GapFill(progress, notes)


def _is_twice(record: Record, progress: Progress) -> bool:
    """Whether a batch is confirmed again without having been re-queued: that record is lost."""
    if record.kind is not RecordKind.BATCH or record.index is None:
        return False
    return record.index in progress.confirmed


# ---------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------

_FIND_RUN = "SELECT run_id FROM runs WHERE id = ?"
_GENERATIONS = "SELECT min(generation), max(generation) FROM streams WHERE run = ?"
_SET_NUMBERS = "UPDATE runs SET generation = ?, first = ?, owner = ? WHERE id = ?"
_READ_RECORDS = "SELECT sequence, payload, blob FROM log WHERE stream = ? ORDER BY sequence"
_DOUBLES = (
    "SELECT sequence, payload, blob, id FROM log WHERE stream = :stream AND sequence IN (SELECT "
    "sequence FROM log WHERE stream = :stream GROUP BY sequence HAVING count(*) > 1) ORDER BY id"
)
_ADD_NOTE = "INSERT INTO log (stream, sequence, prev, payload) VALUES (?, ?, 0, ?)"
_NEXT_PLACE = "SELECT coalesce(max(place) + 1, 0) FROM attached WHERE stream = ? AND sequence = ?"
_ATTACH = "INSERT INTO attached (stream, sequence, place, digest) VALUES (?, ?, ?, ?)"
_PUT_HEAD = "INSERT OR REPLACE INTO heads (stream, sequence, last) VALUES (?, ?, ?)"
_DROP_RECORD = (
    "DELETE FROM log WHERE stream = ? AND sequence = ?",
    "DELETE FROM attached WHERE stream = ? AND sequence = ?",
)
_DROP_LOST = (
    "DELETE FROM heads WHERE stream NOT IN (SELECT id FROM streams)",
    "DELETE FROM log WHERE stream NOT IN (SELECT id FROM streams)",
    "DELETE FROM attached WHERE stream NOT IN (SELECT id FROM streams)",
    "DELETE FROM attached WHERE sequence NOT BETWEEN 1 AND "
    "coalesce((SELECT sequence FROM heads WHERE heads.stream = attached.stream), 0)",
)


def recover_rows(rows: sqlite3.Connection, recovery: Recovery) -> list[Watermark]:
    """Recover all streams in the tables of a store; return how far each run is."""
    rows.execute("CREATE INDEX by_place ON log (stream, sequence)")
    for number, run, generation, key in rows.execute(
        "SELECT id, run, generation, stream FROM streams ORDER BY id"
    ).fetchall():
        found = rows.execute(_FIND_RUN, (run,)).fetchone()
        run_id = found[0] if found else _find_run(rows, number, (run, generation, key), recovery)
        if run_id is None:
            recovery.leave(f"stream {key} of run {run!r}", "the row of its run cannot be read")
        else:
            _recover_stream(rows, number, StreamPlace(run_id, generation, key), recovery)
    for statement in _DROP_LOST:
        rows.execute(statement)
    rows.execute("DROP INDEX by_place")
    return [
        _mend_run(rows, recovery, *row) for row in rows.execute("SELECT * FROM runs").fetchall()
    ]


def _find_run(
    rows: sqlite3.Connection, number: int, place: tuple[int, int, str], recovery: Recovery
) -> str | None:
    """Find the run of a stream whose row is lost, by trying the seals of its records."""
    run, generation, key = place
    for _, seen in all_watermarks(recovery.folder):
        if seen is None:
            continue
        with suppress(StoreDamagedError, sqlite3.Error):
            seal = StreamPlace(seen.run_id, generation, key).seal(recovery.mac_key)
            stream = _StreamRows(rows, Blobs(recovery.folder, seen.run_id), number)
            if measure(seal, stream.records).through:
                row = (run, seen.run_id, seen.generation, seen.owner)
                rows.execute("INSERT INTO runs VALUES (?, ?, ?, 0, ?)", row)
                what = "its row was lost: it was found by its seals"
                recovery.report(f"run {seen.run_id!r}", what)
                return seen.run_id
    return None


def _mend_run(
    rows: sqlite3.Connection, recovery: Recovery, number: int, run_id: str, *numbers: object
) -> Watermark:
    """Correct the generation and owner numbers of a run."""
    newest, first, owner = (value if isinstance(value, int) else -1 for value in numbers)
    seen = recovery.seen(run_id)
    now = (newest, max(first, 0), max(owner if first >= 0 else 1, seen.owner if seen else 1, 1))
    low, high = rows.execute(_GENERATIONS, (number,)).fetchone()
    if high is not None:
        now = (high, min(now[1], low), now[2])
    if now != (newest, first, owner):
        rows.execute(_SET_NUMBERS, (*now, number))
        what = f"its generations are {now[1]} to {now[0]}, its owner {now[2]}; they were "
        recovery.report(f"run {run_id!r}", f"{what}{first} to {newest}, and {owner}")
    (records,) = rows.execute(SUM_HEADS, (number,)).fetchone()
    return Watermark(run_id, now[2], now[0], records)


def _recover_stream(
    rows: sqlite3.Connection, number: int, place: StreamPlace, recovery: Recovery
) -> None:
    """Keep the valid records of a stream, and fill the gaps between them or cut it off."""
    stream = _StreamRows(rows, Blobs(recovery.folder, place.run_id), number)
    try:
        seal = place.seal(recovery.mac_key)
    except StoreDamagedError as error:
        recovery.leave(place, str(error))
        return
    stream.drop_doubles(seal)
    prefix = measure(seal, stream.records)
    recovery.opened += prefix.through + prefix.later
    newest = max(stream.head(), prefix.newest)
    if newest > prefix.through:
        filled = fill_gaps(seal, stream.records, newest)
        if filled is not None:
            recovery.report_filled(place, filled.notes)
            stream.put_notes(filled.notes)
            prefix = attrs.evolve(prefix, progress=filled.progress)
        elif recovery.may_cut(place, prefix.through, prefix.later, newest):
            stream.cut(prefix.through)
    stream.finish(prefix.fold(seal), prefix.through)


@attrs.frozen
class _StreamRows:
    """The records of one stream in the tables."""

    rows: sqlite3.Connection
    blobs: Blobs
    number: int

    def head(self) -> int:
        """Return the newest record that the stream had, as far as it says."""
        row = self._execute("SELECT sequence FROM heads WHERE stream = ?").fetchone()
        return int(row[0]) if row else 0

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield the sealed records in order; one that cannot be read is empty."""
        for sequence, *content in self._execute(_READ_RECORDS):
            yield int(sequence), self._payload(*content)

    def _payload(self, payload: object, blob: object) -> bytes:
        if isinstance(blob, str):
            with suppress(StoreError):
                return self.blobs.get(blob)
            return b""
        return payload if isinstance(payload, bytes) else b""

    def drop_doubles(self, seal: Seal) -> None:
        """Of several records at one place, keep the newest of those whose seal opens."""
        kept: dict[int, tuple[bool, int]] = {}
        rows = self.rows.execute(_DOUBLES, {"stream": self.number}).fetchall()
        for sequence, payload, blob, row in rows:
            is_valid = open_record(seal, sequence, self._payload(payload, blob)) is not None
            kept[sequence] = max(kept.get(sequence, (False, 0)), (is_valid, row))
        for sequence, *_, row in rows:
            if kept[sequence][1] != row:
                self.rows.execute("DELETE FROM log WHERE id = ?", (row,))

    def put_notes(self, notes: dict[int, bytes]) -> None:
        """Replace lost records by notes."""
        for sequence, payload in notes.items():
            for statement in _DROP_RECORD:
                self._execute(statement, sequence)
            self._execute(_ADD_NOTE, sequence, payload)

    def cut(self, through: int) -> None:
        """Remove all records after one."""
        self._execute("DELETE FROM log WHERE stream = ? AND sequence > ?", through)

    def finish(self, fold: bytes, through: int) -> None:
        """Compute what follows from the records: attached blobs, the chain, the head, the fold."""
        for sequence, payload in self.records():
            blob = self._state_blob(payload)
            if blob and (blob,) not in self._execute(READ_ATTACHED, sequence).fetchall():
                (place,) = self._execute(_NEXT_PLACE, sequence).fetchone()
                self._execute(_ATTACH, sequence, place, blob)
        last = newest = 0
        ids = self._execute("SELECT id, sequence FROM log WHERE stream = ? ORDER BY sequence")
        for row, newest in ids.fetchall():  # noqa: B007  # the last one is used
            self.rows.execute("UPDATE log SET prev = ? WHERE id = ?", (last, row))
            last = row
        self._execute(_PUT_HEAD, newest, last)
        if through:
            self._execute("INSERT INTO folds VALUES (?, ?, ?)", through, fold)

    def _state_blob(self, payload: bytes) -> str | None:
        """Return the attached blob that a record needs for its saved state, if it exists.

        No seal covers the store's own list of them; the saved state itself names them.
        """
        with suppress(StoreError):
            state = decode_record(payload[DIGEST_BYTES:]).state
            blob = decode_frame(state).blob if state else ""
            return blob if blob and self.blobs.has(blob) else None
        return None

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self.rows.execute(statement, (self.number, *values))
