"""Batches that failed in an outage: they are re-queued when their run ends, or by the next start.

Theory of operation
===================

A row of failures that stops a run (`Limits.consecutive_failures`) is no fault of its batches.  When
all streams are closed, one record for each stream re-queues what failed or was skipped in the row.
It is a REDO record, which every version reads: the batches are to be done, and have not failed.
Records of the failures stay in the history, and what they have cost stays spent.

A kill may come between the failures and these records, more than once.  So the records of each
session say since when a row of failures may go on: since the session began, or since an earlier one
did that left no word of its end.  A start with `consecutive_failures` reads the newest records of
the streams that were worked on since then, back to the last confirmed batch.  This ensures that an
outage is one row, however often the run is killed in it: the start goes on counting, or, where the
row has its length already, re-queues it first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing

import attrs
import trio

from .._commit.limit_watch import Streak
from .._commit.saves import save_records
from .._commit.stream_log import StreamLog
from .._journal.history import iter_records
from .._journal.item_marks import add_marks, encode_marks, item_mark
from .._journal.progress import Progress
from .._journal.record import OF_TEXT, Record, RecordKind, Taken
from .._journal.store import RunView, Store
from .._util.errors import TrioCkptError
from .._util.exceptions import text_of
from .._util.index_set import IndexSet
from .._util.log import at, get_logger
from .._util.plain import JOB_STREAM, RUN_STREAM, StreamKey
from .._util.text import plural
from .open_run import OpenRun

log = get_logger(__name__)

PAGE = 100  # records read at once: most rows are short
REASON = "it failed in an outage, see Limits.consecutive_failures"

_FAILURES = (RecordKind.ATTEMPT, RecordKind.SKIP)


def requeue_record(progress: Progress, streak: Streak) -> Record | None:
    """The record that re-queues what failed in an outage; None: nothing of it is left.

    A batch that was deferred stays so: a server has said from when on it answers.

    A skipped batch on which later ones have built, by a state or a cursor, stays skipped: it cannot
    be done again alone.  A stream that the program itself has failed for good stays so.

    Args:
        progress: The progress of the stream.
        streak: What failed.
    """
    if progress.has_failed_for_good and (
        progress.error is None or progress.error.batch_index not in streak.indexes
    ):
        return None
    free_from = progress.confirmed.stop if progress.has_order else 0
    skipped = {
        index: item
        for index, item in streak.skipped.items()
        if index in progress.skipped and index >= free_from
    }
    failed = [
        index
        for index in streak.failed
        if index in progress.failures and index not in progress.deferred
    ]
    if not skipped and not failed:
        return None
    marks = 0
    for index, item in skipped.items():
        marks = add_marks(marks, item_mark(index, item) if item else 0)
    indexes = IndexSet([*skipped, *failed])
    return Record(
        kind=RecordKind.REDO,
        at=time.time(),
        steps=tuple(indexes.to_steps()),
        taken=Taken({}, {}),
        items=encode_marks(marks),
        skipped_items=encode_marks(marks),
        metadata={"reason": REASON},
    )


async def requeue_outage(run: OpenRun) -> None:
    """Re-queue what failed or was skipped in the outage that has stopped a run, if one has.

    A failure to save is logged: the next start with `consecutive_failures` does it.

    Durability: when this returns without a warning in the log, the records are durable.
    Cancellation: none.
    """
    watch = run.limits
    if watch is None or not watch.is_braking or run.committer.poison is not None:
        return
    with trio.CancelScope(shield=True):
        try:
            await _requeue(run, watch.streaks)
            watch.streaks.clear()
        except TrioCkptError as error:
            log.warning(
                "what failed in the outage is not re-queued; the next start with "
                "consecutive_failures does it: %s",
                text_of(error),
                extra=at(run.run_id),
            )


async def _requeue(run: OpenRun, streaks: Mapping[StreamKey, Streak]) -> None:
    table, count = run.stream_table, 0
    records = list[tuple[StreamLog, Record]]()
    for key, streak in streaks.items():
        record = requeue_record(table.stream_log(key).progress, streak)
        if record is not None:
            records.append((table.stream_log(key), record))
            count += len(IndexSet.from_steps(record.steps))
    if records:
        await save_records(run.committer, records)
        log.info(
            "re-queued %s that failed in an outage", plural(count, "batch"), extra=at(run.run_id)
        )


# -- the last session was killed in an outage ------------------------------------------------------


@attrs.define(eq=False, repr=False)
class _FailureRow:
    """The failures of one stream after its last confirmed batch, as its records have them."""

    key: StreamKey
    failures: list[Record] = attrs.field(factory=list[Record], init=False)
    confirmed_at: float = attrs.field(default=0.0, init=False)


async def continue_outage(run: OpenRun, view: RunView, since: float | None) -> None:
    """Go on counting the row of failures with which the last session ended.

    A row that has its full length is re-queued: the session was killed before it could do so.

    Args:
        run: The run, before it hands anything out.
        view: The run as the last session left it.
        since: When its row of failures may have begun; Unix time, s; None: there is no row.

    Raises:
        StoreError: the records cannot be read, or saved.

    Durability: when this returns, the records that re-queue are durable.
    Cancellation: a cancellation point.
    """
    watch = run.limits
    most = None if watch is None else watch.limits.consecutive_failures
    if watch is None or most is None or since is None:
        return
    rows = [
        await _read_row(run.store, view, key, since)
        for key, entry in view.streams.items()
        if key not in (RUN_STREAM, JOB_STREAM) and (entry.progress.worked_at or 0.0) >= since
    ]
    confirmed_at = max((row.confirmed_at for row in rows), default=0.0)
    streaks, count = dict[StreamKey, Streak](), 0
    for row in rows:
        for record in row.failures:
            if record.at > confirmed_at:
                streaks.setdefault(row.key, Streak()).add(record)
                count += 1
    if count >= most:
        await _requeue(run, streaks)
    else:
        watch.continue_streak(streaks, count)


async def _read_row(store: Store, view: RunView, key: StreamKey, since: float) -> _FailureRow:
    """Read the newest records of a stream, back to a confirmed batch, or to a time."""
    row = _FailureRow(key)
    newest = iter_records(store, view.run_id, view.generation, key, limit=PAGE)
    async with aclosing(newest) as records:
        async for _, record in records:
            if _ends_row(record) or record.at < since:
                break
            if record.kind is RecordKind.BATCH:
                row.confirmed_at = record.at
                break
            if record.kind in _FAILURES and _is_failure(record):
                row.failures.append(record)
    row.failures.reverse()
    return row


def _ends_row(record: Record) -> bool:
    """Whether a record has re-queued the failures before it, and not only what was damaged."""
    is_own = record.kind is RecordKind.REDO and record.metadata.get("reason") == REASON
    return is_own or record.kind is RecordKind.RETRY


def _is_failure(record: Record) -> bool:
    """Whether a record is of a failure; a skip whose reason is a text may be a decision."""
    if record.error is None:  # its body has deferred the batch
        return False
    return record.kind is RecordKind.ATTEMPT or record.error.type != OF_TEXT
