"""The next record of a stream, added to its progress.

`apply` is the only function that does it, both in memory, when a save is durable, and on load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from .._util.errors import StoreDamagedError
from .._util.exact_sum import Amount, add_amounts, add_sums, decode_sums, without_zeros
from .._util.index_set import IndexSet
from .._util.plain import Plain
from .code import change_code
from .deferral import Deferral
from .item_marks import add_marks, decode_marks, item_mark
from .notes import Notes, encode_note
from .progress import MAX_SKIPS, MAX_SUM, FailedAttempt, Pin, Progress
from .record import ACT, LIMITS, OF_SESSION, PAUSED, Record, RecordKind, Status


def apply(progress: Progress, sequence: int, record: Record) -> None:
    """Add the next record of a stream to its progress, in place.

    Raises:
        StoreDamagedError: it is not the next one, or cannot be added.
    """
    if sequence != progress.sequence + 1:
        raise StoreDamagedError(
            f"checkpoint {progress.sequence + 1} is missing: the next one is {sequence}"
        )
    progress.sequence = sequence
    if record.kind is RecordKind.ADD:
        progress.position = record.position
        return
    if progress.started_at is None or _has_news(record):
        _apply_news(progress, record)
    progress.updated_at = record.at
    if record.kind not in _NO_WORK:
        progress.worked_at = record.at
    if record.state:
        progress.has_state = True
    try:
        if record.spent:
            add_amounts(progress.spent, record.spent)
        if record.reserved is not None:
            _add_reserved(progress, record.reserved)
        _APPLY[record.kind](progress, record)
    except ValueError as error:
        raise StoreDamagedError(f"checkpoint {sequence} cannot be added: {error}") from error
    if abs(progress.records) >= MAX_SUM or (
        record.lines
        and max(abs(progress.sinks.get(lines.path, 0)) for lines in record.lines) >= MAX_SUM
    ):
        raise StoreDamagedError(f"checkpoint {sequence} cannot be added: it cannot be counted")


def _has_news(record: Record) -> bool:
    """Whether a record has what few have: something about the stream as a whole."""
    is_of_end = record.estimate is not None or record.expected is not None
    is_of_work = record.cursor is not msgspec.UNSET or bool(record.adds)
    is_new = record.opened is not None or record.phase is not None
    return is_of_end or is_of_work or is_new or record.code is not None


def _apply_news(progress: Progress, record: Record) -> None:
    if record.opened is not None:
        progress.earlier_s = progress.runtime_s
        progress.opens += 1
        progress.opened_at, progress.first_index = record.opened.at, record.opened.first_index
    if progress.started_at is None:
        progress.started_at = record.at
    if record.cursor is not msgspec.UNSET:
        progress.cursor = record.cursor
        progress.has_cursor = True
    if record.adds:
        progress.has_frontier = True
    if record.phase is not None:
        progress.phase = record.phase
    if record.code is not None:
        old, before = progress.old_code, progress.code
        progress.old_code = change_code(progress.confirmed, before, old, record.code)
        progress.code = record.code
    if record.estimate is not None:
        progress.estimate = record.estimate
    if record.expected is not None:
        progress.expected = record.expected
        if progress.last_index is not None and (progress.total or 0) < record.expected:
            progress.last_index = None  # a list that was finished has grown


def _apply_batch(progress: Progress, record: Record) -> None:  # hot path: once for each batch
    if progress.status is not Status.INTERRUPTED:
        _open(progress)
    index = _index(record)
    progress.confirmed.add(index)
    if progress.done.add(index) and record.item:
        progress.items = add_marks(progress.items, item_mark(index, record.item))
    if progress.skipped or progress.failures or progress.deferred:
        progress.skipped.discard(index)
        progress.skips.pop(index, None)
        progress.failures.pop(index, None)
        progress.deferred.pop(index, None)
    if progress.notes is not None:
        progress.notes = progress.notes.without(index)
    progress.records += record.records
    progress.outputs += len(record.outputs)
    if record.totals or record.spent:
        add_amounts(progress.totals, record.totals)
        add_amounts(progress.spent_confirmed, record.spent)
    if record.adopted:
        progress.adopted.add(index)
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) + lines.size
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_skip(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    progress.skipped.add(index)
    if progress.done.add(index) and record.item:
        mark = item_mark(index, record.item)
        progress.items = add_marks(progress.items, mark)
        progress.skipped_items = add_marks(progress.skipped_items, mark)
    progress.failures.pop(index, None)
    progress.deferred.pop(index, None)
    progress.skips.pop(index, None)  # the newest comes last
    progress.skips[index] = FailedAttempt(record.attempts, record.error)
    if len(progress.skips) > MAX_SKIPS:
        del progress.skips[next(iter(progress.skips))]


def _apply_attempt(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    if index in progress.done:
        return  # it was given up before, so nothing of it is left
    if record.due is None:
        progress.deferred.pop(index, None)
    else:
        progress.deferred[index] = Deferral(record.at, record.due)
    if record.due is None or record.error is not None:  # else its body chose to defer it
        progress.failures[index] = FailedAttempt(record.attempts, record.error)


def _apply_fail(progress: Progress, record: Record) -> None:
    if record.index is not None and record.index not in progress.done:
        progress.failures[record.index] = FailedAttempt(record.attempts, record.error)
    progress.status, progress.error, progress.failed_at = Status.FAILED, record.error, record.at


def _apply_finish(progress: Progress, record: Record) -> None:
    progress.status, progress.completed_at = Status.COMPLETE, record.at
    progress.error = progress.failed_at = None
    progress.metadata.update(record.metadata)
    if record.last_index is not None:
        progress.last_index = record.last_index


def _apply_save(progress: Progress, record: Record) -> None:
    for lines in record.lines:  # those of the last generation, which go on growing
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) + lines.size
    if progress.status is not Status.COMPLETE or record.adds or record.last_index is not None:
        _open(progress)
    if record.last_index is not None:  # the batch after it was withdrawn
        progress.last_index = record.last_index


def _apply_redo(progress: Progress, record: Record) -> None:
    _put_back(progress, record)
    progress.records -= record.records
    for lines in record.lines:
        progress.sinks[lines.path] = progress.sinks.get(lines.path, 0) - lines.size
    if record.index is not None:
        if (progress.last_index or 0) > record.index:
            progress.last_index = None
        if not progress.done:  # it starts from the beginning, perhaps with another list
            progress.expected = progress.estimate = progress.last_index = None
            progress.failures, progress.skips, progress.metadata = {}, {}, {}
            progress.deferred = {}  # notes stay: what they have set in motion goes on
        for label, pin in tuple(progress.pins.items()):
            if pin.batch_index is not None and pin.batch_index > record.index:
                del progress.pins[label]  # its batch will have another state
    if record.taken is not None:
        add_sums(progress.totals, decode_sums(record.taken.totals), sign=-1)
        add_sums(progress.spent_confirmed, decode_sums(record.taken.spent), sign=-1)
        taken, skipped = decode_marks(record.items), decode_marks(record.skipped_items)
        progress.items = add_marks(progress.items, taken, sign=-1)
        progress.skipped_items = add_marks(progress.skipped_items, skipped, sign=-1)
        if record.taken.resets_state:
            progress.has_state = False


def _apply_retry(progress: Progress, record: Record) -> None:
    _put_back(progress, record)
    if record.index is not None:  # a complete stream goes on behind it
        progress.expected = progress.estimate = progress.last_index = None
    if not progress.skipped:
        progress.items = add_marks(progress.items, progress.skipped_items, sign=-1)
        progress.skipped_items = 0


def _put_back(progress: Progress, record: Record) -> None:
    _open(progress)
    indexes = IndexSet.from_steps(record.steps)
    for batches in (progress.confirmed, progress.skipped, progress.adopted, progress.done):
        batches.subtract(indexes)
    progress.old_code = tuple(one.without(indexes) for one in progress.old_code)
    kept: dict[int, FailedAttempt] | dict[int, Deferral]
    for kept in (progress.failures, progress.skips, progress.deferred):
        for index in [index for index in kept if index in indexes]:
            del kept[index]


def _apply_facts(progress: Progress, record: Record) -> None:
    """Set the metadata of the run's own stream to the newest facts."""
    progress.metadata = dict(record.metadata)


def _apply_note(progress: Progress, record: Record) -> None:
    """Change nothing but what an act says of the session, for the start after a killed one."""
    match record.metadata.get(ACT):
        case {"do": "pause"} as act:
            progress.metadata = {**progress.metadata, PAUSED: act}
        case {"do": "resume"}:
            progress.metadata = {k: v for k, v in progress.metadata.items() if k != PAUSED}
        case {"do": "limit", "amounts": amounts}:
            before, changed = _amounts_in(progress.metadata.get(LIMITS)), _amounts_in(amounts)
            limits = before | {_limit_name(name): most for name, most in changed.items()}
            progress.metadata = {**progress.metadata, LIMITS: limits}
        case _:
            pass


def _amounts_in(plain: Plain) -> dict[str, Plain]:
    """What a record has as amounts by name; what is none is left to the reader of a session."""
    return cast("dict[str, Plain]", plain) if isinstance(plain, dict) else {}


def _limit_name(name: str) -> str:
    """The name of a limit in the metadata of a session, by that in an act."""
    return name if name in OF_SESSION else f"spent.{name}"


def _apply_snapshot(_progress: Progress, _record: Record) -> None:
    """Change nothing: the batch is not confirmed."""


def _apply_intent(progress: Progress, record: Record) -> None:
    _open(progress)
    index = _index(record)
    if record.metadata and index not in progress.confirmed:
        progress.notes = progress.notes or Notes()
        for name, value in record.metadata.items():
            progress.notes.put(index, name, encode_note(value), record.reserved or {}, record.item)


def _add_reserved(progress: Progress, amounts: Mapping[str, Amount]) -> None:
    add_amounts(progress.reserved, amounts)
    progress.reserved = without_zeros(progress.reserved)


def _apply_pin(progress: Progress, record: Record) -> None:
    label, lineage = (str(record.metadata.get(name, "")) for name in ("label", "lineage"))
    progress.pins[label] = Pin(record.at, record.index, bytes.fromhex(lineage))


def _apply_unpin(progress: Progress, record: Record) -> None:
    progress.pins.pop(str(record.metadata.get("label", "")), None)


def _open(progress: Progress) -> None:
    progress.status = Status.INTERRUPTED
    progress.error = progress.completed_at = progress.failed_at = None


def _index(record: Record) -> int:
    if record.index is None or record.index < 0:
        raise StoreDamagedError(f"a checkpoint of kind {record.kind.name} names no batch")
    return record.index


_NO_WORK = frozenset(
    {RecordKind.REDO, RecordKind.RETRY, RecordKind.NOTE, RecordKind.PIN, RecordKind.UNPIN}
)

_APPLY = {
    RecordKind.BATCH: _apply_batch,
    RecordKind.SKIP: _apply_skip,
    RecordKind.ATTEMPT: _apply_attempt,
    RecordKind.FAIL: _apply_fail,
    RecordKind.FINISH: _apply_finish,
    RecordKind.SAVE: _apply_save,
    RecordKind.REDO: _apply_redo,
    RecordKind.RETRY: _apply_retry,
    RecordKind.SESSION: _apply_facts,
    RecordKind.END: _apply_facts,
    RecordKind.NOTE: _apply_note,
    RecordKind.SNAPSHOT: _apply_snapshot,
    RecordKind.PIN: _apply_pin,
    RecordKind.UNPIN: _apply_unpin,
    RecordKind.INTENT: _apply_intent,
}
