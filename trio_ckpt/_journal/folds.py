"""Folds: progress as it is stored.

A fold is derived: it is the sum of the records up to one of them, stored so that a resume need
not read all of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .._util.errors import StoreDamagedError
from .._util.exact_sum import StoredSum, decode_sums, encode_sums
from .._util.index_set import IndexSet
from .progress import MAX_SKIPS, FailedAttempt, Pin, Progress, decode_marks, encode_marks
from .record import ErrorInfo, Status, check_times


class _Fold(msgspec.Struct, frozen=True, array_like=True):
    """A fold on disk.  A new field comes last and has a default: older folds end before it."""

    sequence: int
    confirmed: list[int]
    skipped: list[int]
    failures: dict[int, FailedAttempt]
    records: int
    totals: dict[str, StoredSum]
    spent: dict[str, StoredSum]
    spent_confirmed: dict[str, StoredSum]
    adopted: list[int]
    cursor: Any
    has_cursor: bool
    has_state: bool
    first_index: int
    last_index: int | None
    expected: int | None
    position: int | None
    status: Status
    error: ErrorInfo | None
    outputs: int
    sinks: dict[str, int]
    metadata: dict[str, Any]
    times: tuple[float | None, float | None, float | None, float | None]
    opens: int
    opened_at: float | None
    worked_at: float | None
    earlier_s: float
    pins: dict[str, Pin] = {}  # copied for each, see msgspec
    has_frontier: bool = False
    items: bytes = b""
    skipped_items: bytes = b""
    phase: str | None = None
    estimate: int | None = None


MAX_ERRORS = 1_000  # of batches that wait for their next attempt, after an outage perhaps all

_encoder = msgspec.msgpack.Encoder()
_fold_decoder = msgspec.msgpack.Decoder(_Fold)


def encode_progress(progress: Progress) -> bytes:
    """The bytes of a fold, not yet sealed."""
    return _encoder.encode(
        _Fold(
            progress.sequence,
            progress.confirmed.to_steps(),
            progress.skipped.to_steps(),
            {**_with_few_errors(progress.failures), **progress.skips},
            progress.records,
            encode_sums(progress.totals),
            encode_sums(progress.spent),
            encode_sums(progress.spent_confirmed),
            progress.adopted.to_steps(),
            progress.cursor,
            progress.has_cursor,
            progress.has_state,
            progress.first_index,
            progress.last_index,
            progress.expected,
            progress.position,
            progress.status,
            progress.error,
            progress.outputs,
            progress.sinks,
            progress.metadata,
            (progress.started_at, progress.updated_at, progress.completed_at, progress.failed_at),
            progress.opens,
            progress.opened_at,
            progress.worked_at,
            progress.earlier_s,
            progress.pins,
            progress.has_frontier,
            encode_marks(progress.items),
            encode_marks(progress.skipped_items),
            progress.phase,
            progress.estimate,
        )
    )


def _with_few_errors(failures: dict[int, FailedAttempt]) -> dict[int, FailedAttempt]:
    """The failed attempts, of which only the newest `MAX_ERRORS` keep their errors."""
    few = len(failures) - MAX_ERRORS
    if few <= 0:
        return failures
    return {
        index: FailedAttempt(failed.attempts, None) if place < few else failed
        for place, (index, failed) in enumerate(failures.items())
    }


def decode_progress(payload: bytes) -> Progress:
    """Decode a fold, the inverse of `encode_progress`.

    Raises:
        StoreDamagedError: the bytes are not a fold.
    """
    try:
        fold = _fold_decoder.decode(payload)
        started_at, updated_at, completed_at, failed_at = fold.times
        skipped = IndexSet.from_steps(fold.skipped)
        check_times(*fold.times, fold.opened_at, fold.worked_at)
        check_times(*(pin.at for pin in fold.pins.values()))
        return Progress(
            sequence=fold.sequence,
            confirmed=IndexSet.from_steps(fold.confirmed),
            skipped=skipped,
            failures={i: failed for i, failed in fold.failures.items() if i not in skipped},
            skips=dict([(i, f) for i, f in fold.failures.items() if i in skipped][-MAX_SKIPS:]),
            records=fold.records,
            totals=decode_sums(fold.totals),
            spent=decode_sums(fold.spent),
            spent_confirmed=decode_sums(fold.spent_confirmed),
            adopted=IndexSet.from_steps(fold.adopted),
            cursor=fold.cursor,
            has_cursor=fold.has_cursor,
            has_state=fold.has_state,
            first_index=fold.first_index,
            last_index=fold.last_index,
            expected=fold.expected,
            position=fold.position,
            status=fold.status,
            error=fold.error,
            outputs=fold.outputs,
            sinks=fold.sinks,
            metadata=fold.metadata,
            started_at=started_at,
            updated_at=updated_at,
            completed_at=completed_at,
            failed_at=failed_at,
            opens=fold.opens,
            opened_at=fold.opened_at,
            worked_at=fold.worked_at,
            earlier_s=fold.earlier_s,
            pins=fold.pins,
            has_frontier=fold.has_frontier,
            items=decode_marks(fold.items),
            skipped_items=decode_marks(fold.skipped_items),
            phase=fold.phase,
            estimate=fold.estimate,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"saved progress cannot be read: {error}") from error
