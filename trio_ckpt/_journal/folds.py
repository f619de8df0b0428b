"""Folds: progress as it is stored.

A fold is derived: it is the sum of the records up to one of them, stored so that a resume need
not read all of them.  `_Fold` defines the stored form, in the order of its places.  Most fields
of `Progress` are stored as they are; `_CODECS` converts the others, and only the failed attempts
and the times are arranged in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
from msgspec.structs import asdict

from .._util.errors import StoreDamagedError
from .._util.exact_sum import StoredSum, decode_sums, encode_sums
from .._util.index_set import IndexSet
from .._util.plain import Plain
from .code import CodeMark, decode_old, encode_old
from .deferral import Deferral
from .item_marks import decode_marks, encode_marks
from .notes import Notes, StoredNote, encode_notes
from .progress import MAX_SKIPS, FailedAttempt, Pin, Progress
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
    cursor: Plain
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
    metadata: dict[str, Plain]
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
    reserved: dict[str, StoredSum] = {}
    notes: dict[int, dict[str, StoredNote]] = {}
    deferred: dict[int, Deferral] = {}  # copied for each, see msgspec
    code: CodeMark | None = None
    old_code: list[tuple[CodeMark, list[int]]] = []


MAX_ERRORS = 1_000  # of batches that wait for their next attempt, after an outage perhaps all

_TIMES = ("started_at", "updated_at", "completed_at", "failed_at")
_ARRANGED = ("failures", "times")

_CODECS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    **dict.fromkeys(("confirmed", "skipped", "adopted"), (IndexSet.to_steps, IndexSet.from_steps)),
    **dict.fromkeys(("totals", "spent", "spent_confirmed", "reserved"), (encode_sums, decode_sums)),
    **dict.fromkeys(("items", "skipped_items"), (encode_marks, decode_marks)),
    "old_code": (encode_old, decode_old),
    "notes": (encode_notes, Notes.decode),
}
"""How a field is encoded and decoded."""

_AS_IT_IS = [name for name in _Fold.__struct_fields__ if name not in (*_CODECS, *_ARRANGED)]

_as_it_is = attrgetter(*_AS_IT_IS)

_encoder = msgspec.msgpack.Encoder()
_fold_decoder = msgspec.msgpack.Decoder(_Fold)


def encode_progress(progress: Progress) -> bytes:
    """The bytes of a fold, not yet sealed."""
    values: dict[str, Any] = dict(zip(_AS_IT_IS, _as_it_is(progress), strict=True))
    values |= {name: encode(getattr(progress, name)) for name, (encode, _) in _CODECS.items()}
    values["failures"] = {**_with_few_errors(progress.failures), **progress.skips}
    values["times"] = tuple(getattr(progress, name) for name in _TIMES)
    return _encoder.encode(_Fold(**values))


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
        check_times(*fold.times, fold.opened_at, fold.worked_at)
        check_times(*(pin.at for pin in fold.pins.values()))
        check_times(*(time for one in fold.deferred.values() for time in (one.at, one.due)))
        values = asdict(fold)
        del values["times"]
        values |= {name: decode(values[name]) for name, (_, decode) in _CODECS.items()}
        values |= zip(_TIMES, fold.times, strict=True)
        skipped, failed = values["skipped"], fold.failures.items()
        values["failures"] = {index: one for index, one in failed if index not in skipped}
        values["skips"] = dict([pair for pair in failed if pair[0] in skipped][-MAX_SKIPS:])
        return Progress(**values)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreDamagedError(f"saved progress cannot be read: {error}") from error
