"""What the records of a stream add up to.

`apply` is the only function that adds a record to progress: the same in memory, when a
save has been confirmed, and on load.  A fold is progress as it is stored, so that
resuming reads few records however many there are.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from ._errors import StoreDamagedError
from ._ranges import IndexSet
from ._records import ErrorInfo, Kind, Record, Status
from ._totals import MAX_SHIFT, ExactSum, add_amounts


class FailedAttempt(msgspec.Struct, frozen=True, array_like=True):
    """How often a batch that is not confirmed was tried, and what went wrong last."""

    attempts: int
    error: ErrorInfo | None


@attrs.define
class Progress:
    """What the records of one stream add up to.

    Attributes:
        sequence: Of the newest record; 0 before the first.
        confirmed: The batches that are durable.
        skipped: Those that were given up, as saved.
        failures: Attempts at those that are neither, and the last error of the skipped.
        records: Records produced by the confirmed batches.
        totals: Produced by the confirmed batches; exact.
        spent: On all attempts, of confirmed batches or not; exact.
        cursor: Where the loop goes on, as its last checkpoint said.
        last_index: Of the last batch, once known.
        status: As far as the records know: a stream that is neither complete nor failed
            is INTERRUPTED here, and IN_PROGRESS while somebody has it open.
        error: Why it failed.
        outputs: Files confirmed so far, redone ones counted again; 0: nothing to verify.
        sinks: Confirmed bytes per append file.
        metadata: Of the finished stream.
        started_at, updated_at, completed_at, failed_at: Unix time, s; None: not yet.
    """

    sequence: int = 0
    confirmed: IndexSet = attrs.field(factory=IndexSet)
    skipped: IndexSet = attrs.field(factory=IndexSet)
    failures: dict[int, FailedAttempt] = attrs.field(factory=dict[int, FailedAttempt])
    records: int = 0
    totals: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    spent: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    cursor: Any = None
    last_index: int | None = None
    status: Status = Status.PENDING
    error: ErrorInfo | None = None
    outputs: int = 0
    sinks: dict[str, int] = attrs.field(factory=dict[str, int])
    metadata: dict[str, Any] = attrs.field(factory=dict[str, Any])
    started_at: float | None = None
    updated_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None

    def is_done(self, index: int) -> bool:
        """Whether nothing is left to do for a batch."""
        return index in self.confirmed or index in self.skipped

    def first_left(self, start: int) -> int:
        """The least index >= `start` that is neither confirmed nor skipped."""
        index = self.confirmed.first_missing(start)
        while index in self.skipped:
            index = self.confirmed.first_missing(self.skipped.first_missing(index))
        return index

    def covers(self, start: int, stop: int) -> bool:
        """Whether nothing is left to do in ``range(start, stop)``."""
        return self.first_left(start) >= stop


def apply(progress: Progress, sequence: int, record: Record) -> None:
    """Add the next record of a stream to its progress, in place.

    Raises:
        StoreDamagedError: it is not the next one.
    """
    if sequence != progress.sequence + 1:
        raise StoreDamagedError(
            f"checkpoint {progress.sequence + 1} is missing: the next one is {sequence}"
        )
    progress.sequence = sequence
    if progress.started_at is None:
        progress.started_at = record.at
    progress.updated_at = record.at
    add_amounts(progress.spent, record.spent)
    if record.cursor is not msgspec.UNSET:
        progress.cursor = record.cursor
    _APPLY[record.kind](progress, record)


def _apply_batch(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    progress.confirmed.add(index)
    progress.skipped.discard(index)
    progress.failures.pop(index, None)
    progress.records += record.records
    progress.outputs += len(record.outputs)
    add_amounts(progress.totals, record.totals)
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) + lines.size
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_skip(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    progress.skipped.add(index)
    progress.failures[index] = FailedAttempt(record.attempts, record.error)


def _apply_attempt(progress: Progress, record: Record) -> None:
    _open(progress)
    progress.failures[_index(record)] = FailedAttempt(record.attempts, record.error)


def _apply_fail(progress: Progress, record: Record) -> None:
    if record.index is not None:
        progress.failures[record.index] = FailedAttempt(record.attempts, record.error)
    progress.status, progress.error, progress.failed_at = Status.FAILED, record.error, record.at


def _apply_finish(progress: Progress, record: Record) -> None:
    progress.status, progress.completed_at = Status.COMPLETE, record.at
    progress.error = progress.failed_at = None
    progress.metadata.update(record.metadata)
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_save(progress: Progress, record: Record) -> None:
    _open(progress)
    if record.last_index is not None:  # a batch was withdrawn: it was none
        progress.last_index = record.last_index


def _apply_redo(progress: Progress, record: Record) -> None:
    _open(progress)
    for index in record.indexes:
        progress.confirmed.discard(index)
    progress.records -= record.records
    add_amounts(progress.totals, record.totals, sign=-1)
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) - lines.size


def _apply_retry(progress: Progress, record: Record) -> None:
    _open(progress)
    for index in record.indexes:
        progress.skipped.discard(index)
        progress.failures.pop(index, None)


def _apply_note(progress: Progress, record: Record) -> None:
    """A record of the run's own stream: its newest facts are its metadata."""
    progress.metadata = dict(record.metadata)


def _open(progress: Progress) -> None:
    progress.status = Status.INTERRUPTED
    progress.error = progress.completed_at = progress.failed_at = None


def _index(record: Record) -> int:
    if record.index is None or record.index < 0:
        raise StoreDamagedError(f"a checkpoint of kind {record.kind.name} names no batch")
    return record.index


_APPLY = {
    Kind.BATCH: _apply_batch,
    Kind.SKIP: _apply_skip,
    Kind.ATTEMPT: _apply_attempt,
    Kind.FAIL: _apply_fail,
    Kind.FINISH: _apply_finish,
    Kind.SAVE: _apply_save,
    Kind.REDO: _apply_redo,
    Kind.RETRY: _apply_retry,
    Kind.SESSION: _apply_note,
    Kind.END: _apply_note,
}


# ---------------------------------------------------------------------------------------
# Folds: progress as it is stored
# ---------------------------------------------------------------------------------------


class _Fold(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    confirmed: list[int]
    skipped: list[int]
    failures: dict[int, FailedAttempt]
    records: int
    totals: dict[str, tuple[str, int]]  # the numerator may be of any length
    spent: dict[str, tuple[str, int]]
    cursor: Any
    last_index: int | None
    status: Status
    error: ErrorInfo | None
    outputs: int
    sinks: dict[str, int]
    metadata: dict[str, Any]
    times: tuple[float | None, float | None, float | None, float | None]


_encoder = msgspec.msgpack.Encoder()
_fold_decoder = msgspec.msgpack.Decoder(_Fold)


def encode_progress(progress: Progress) -> bytes:
    """The bytes of a fold, not yet sealed."""
    return _encoder.encode(
        _Fold(
            progress.sequence,
            progress.confirmed.to_steps(),
            progress.skipped.to_steps(),
            progress.failures,
            progress.records,
            {name: (f"{s.numerator:x}", s.shift) for name, s in progress.totals.items()},
            {name: (f"{s.numerator:x}", s.shift) for name, s in progress.spent.items()},
            progress.cursor,
            progress.last_index,
            progress.status,
            progress.error,
            progress.outputs,
            progress.sinks,
            progress.metadata,
            (progress.started_at, progress.updated_at, progress.completed_at, progress.failed_at),
        )
    )


def _decode_sum(top: str, shift: int) -> ExactSum:
    if not 0 <= shift <= MAX_SHIFT:  # adding to it would shift by as much
        raise ValueError(f"a sum over 2**{shift} is none of finite floats")
    return ExactSum(int(top, 16), shift)


def decode_progress(payload: bytes) -> Progress:
    """The inverse of `encode_progress`.

    Raises:
        StoreDamagedError: they are not the bytes of a fold.
    """
    try:
        fold = _fold_decoder.decode(payload)
        started_at, updated_at, completed_at, failed_at = fold.times
        return Progress(
            sequence=fold.sequence,
            confirmed=IndexSet.from_steps(fold.confirmed),
            skipped=IndexSet.from_steps(fold.skipped),
            failures=fold.failures,
            records=fold.records,
            totals={name: _decode_sum(*total) for name, total in fold.totals.items()},
            spent={name: _decode_sum(*total) for name, total in fold.spent.items()},
            cursor=fold.cursor,
            last_index=fold.last_index,
            status=fold.status,
            error=fold.error,
            outputs=fold.outputs,
            sinks=fold.sinks,
            metadata=fold.metadata,
            started_at=started_at,
            updated_at=updated_at,
            completed_at=completed_at,
            failed_at=failed_at,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"saved progress cannot be read: {error}") from error
