"""Progress: the sum of the records of a stream.

`apply` is the only function that adds a record to progress, both in memory, when a save is
durable, and on load.  A fold is progress as it is stored, so that a resume reads few
records however many there are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import attrs
import msgspec

from .._util.errors import StoreDamagedError
from .._util.exact_sum import Amount, ExactSum, add_amounts, add_sums, decode_sums, without_zeros
from .._util.index_set import IndexSet
from .._util.plain import Plain, copy_plain
from .._util.shown import Shown
from .._util.text import batches_text, number
from .code import CodeMark, OldCode, change_code
from .deferral import Deferral
from .item_marks import add_marks, decode_marks, item_mark
from .notes import Notes, encode_note
from .record import ACT, PAUSED, ErrorInfo, Record, RecordKind, Status

MAX_SUM = 2**63  # for counts of records and bytes of a file: the limit of a fold
MAX_SKIPS = 100  # skipped batches whose errors are kept; a user reads no more at once


class FailedAttempt(msgspec.Struct, frozen=True, array_like=True):
    """How often a batch that is not confirmed was tried, and what went wrong last.

    Attributes:
        attempts: How often it was tried.
        error: What went wrong last; None: nothing is recorded.
    """

    attempts: int
    error: ErrorInfo | None


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """A saved state that keeps its arrays, whatever the retention says.

    Attributes:
        at: When it was pinned; Unix time, s.
        batch_index: The last batch that was done then, to which a rewind goes; None: none was.
        lineage: The chain of the state; empty: it has no chain, so nothing can be dropped.
    """

    at: float
    batch_index: int | None
    lineage: bytes


@attrs.define(repr=False)
class Progress(Shown):
    """The sum of the records of one stream.

    Attributes:
        sequence: The sequence number of the newest record; 0 before the first.
        confirmed: The batches that are durable.
        skipped: The batches that were given up.
        failures: The failed attempts at batches that are neither confirmed nor skipped.
        deferred: Until when batches are not handed out; one that is due stays here until it ends.
        skips: What went wrong with the newest `MAX_SKIPS` skipped batches; older errors are in
            the records only, so that progress does not grow with them.
        records: How many records the confirmed batches produced.
        totals: What the confirmed batches produced; exact.
        spent: What all attempts cost, of confirmed batches or not; exact.
        spent_confirmed: What the attempts that confirmed a batch cost: what resuming saves.
        adopted: Confirmed batches whose outputs were found by a rescan; totals do not include
            what they produced.
        cursor: The place at which the loop continues, from its last checkpoint.
        has_cursor: Whether records have a cursor; the last one may be None.
        has_state: Whether records have a state to resume from.
        has_frontier: Whether records have items of a `Frontier`.
        first_index: The index of the first batch.
        last_index: The index of the last batch; None: it is not known yet.
        expected: How many batches there are in all, as last known.
        estimate: About how many batches an open end has, as last set.
        position: Its position on the run's list of streams; None: it is not on the list.
        status: The status by its records: a stream that is neither complete nor failed is
            INTERRUPTED here, and IN_PROGRESS while a process has it open.
        error: Why it failed.
        outputs: How many files were confirmed, redone ones counted again; 0: nothing to verify.
        sinks: Confirmed bytes per append file.
        metadata: The metadata of the finished stream.
        pins: Its pinned states, by label.
        started_at, updated_at, completed_at, failed_at: Unix time, s; None: not yet.
        opens: How often it was opened and then saved something.
        opened_at: When it was last opened; Unix time, s.
        worked_at: When it was last worked on, for which a re-queue does not count; Unix time, s.
        earlier_s: For how long it was worked on before `opened_at`, in seconds, without
            downtime.
        phase: The newest phase of the run in whose block it was opened.
        items: The sum of the `item_mark` of all batches that are done and had an item.
        skipped_items: The part of `items` that skipped batches have.
        reserved: What attempts have reserved and not settled, and what notes cost; exact.  It
            counts as spent: what an attempt that is over has left here, such as one that was
            killed, stays.
        notes: The notes of batches that are not confirmed; None: there are none.
        code: The code that worked on it last; None: none was noted.
        old_code: The batches that older code has confirmed.
        done: Batches that are confirmed or skipped.
    """

    sequence: int = 0
    confirmed: IndexSet = attrs.field(factory=IndexSet)
    skipped: IndexSet = attrs.field(factory=IndexSet)
    failures: dict[int, FailedAttempt] = attrs.field(factory=dict[int, FailedAttempt])
    skips: dict[int, FailedAttempt] = attrs.field(factory=dict[int, FailedAttempt])
    records: int = 0
    totals: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    spent: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    spent_confirmed: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    adopted: IndexSet = attrs.field(factory=IndexSet)
    cursor: Plain = None
    has_cursor: bool = False
    has_state: bool = False
    first_index: int = 0
    last_index: int | None = None
    expected: int | None = None
    estimate: int | None = None
    position: int | None = None
    status: Status = Status.PENDING
    error: ErrorInfo | None = None
    outputs: int = 0
    sinks: dict[str, int] = attrs.field(factory=dict[str, int])
    metadata: dict[str, Plain] = attrs.field(factory=dict[str, Plain])
    started_at: float | None = None
    updated_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    opens: int = 0
    opened_at: float | None = None
    worked_at: float | None = None
    earlier_s: float = 0.0
    pins: dict[str, Pin] = attrs.field(factory=dict[str, Pin])
    has_frontier: bool = False
    phase: str | None = None
    items: int = 0
    skipped_items: int = 0
    reserved: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    notes: Notes | None = None  # most streams never have one
    deferred: dict[int, Deferral] = attrs.field(factory=dict[int, Deferral])
    code: CodeMark | None = None
    old_code: OldCode = ()
    done: IndexSet = attrs.field(
        init=False,
        eq=False,
        repr=False,
        default=attrs.Factory(lambda self: self.confirmed.union(self.skipped), takes_self=True),
    )

    def _shown(self) -> Iterable[tuple[str, str]]:
        done, skipped, failing = len(self.confirmed), len(self.skipped), len(self.failures)
        return [
            ("of a stream", self.status.value),
            ("batches", batches_text(done, skipped, failing, self.left)),
            ("records", number(self.records)),
            ("newest checkpoint", number(self.sequence)),
        ]

    @property
    def runtime_s(self) -> float:
        """For how many seconds it was worked on, in all sessions, without downtime."""
        if self.opened_at is None or self.worked_at is None:
            return self.earlier_s
        return self.earlier_s + max(0.0, self.worked_at - self.opened_at)

    @property
    def assumed(self) -> dict[str, ExactSum]:
        """What attempts have reserved and not settled, without what notes cost."""
        if self.notes is None:
            return self.reserved
        sums = dict(self.reserved)
        add_sums(sums, self.notes.total, sign=-1)
        return without_zeros(sums)

    @property
    def is_ordered(self) -> bool:
        """Whether later batches build on earlier ones, so that none can be redone alone."""
        return self.has_order or any(self.sinks.values())

    @property
    def has_order(self) -> bool:
        """Whether a batch begins with the state or cursor of the one before it."""
        return self.has_state or self.has_cursor

    @property
    def built_over(self) -> int | None:
        """The first skipped batch that confirmed ones build over: it cannot be retried alone."""
        first = next(iter(self.skipped), None) if self.has_order else None
        return first if first is not None and first < self.confirmed.stop else None

    @property
    def total(self) -> int | None:
        """How many batches there are in all; None where that is not known."""
        if self.last_index is not None:
            return self.last_index + 1 - self.first_index
        return self.expected

    @property
    def left(self) -> int | None:
        """How many batches are known to be left to do; None where that is not known.

        It is 0 for a stream that failed for good: a start does nothing for it.
        """
        if self.has_failed_for_good or self.status is Status.COMPLETE:
            return 0
        if self.total is not None:
            return max(0, self.total - len(self.done))
        estimated = (self.estimate or 0) - len(self.done)
        return estimated if estimated > 0 else None

    @property
    def has_failed_for_good(self) -> bool:
        """Whether it failed so that only the user can have it retried."""
        return self.status is Status.FAILED and not (self.error is None or self.error.retryable)

    def copy(self) -> Progress:
        """A copy that later records do not change."""
        twin = copy.copy(self)
        for name in _SETS_AND_DICTS:
            setattr(twin, name, getattr(self, name).copy())
        twin.notes = None if self.notes is None else self.notes.copy()
        twin.cursor, twin.metadata = copy_plain(self.cursor), copy_plain(self.metadata)
        return twin

    def is_done(self, index: int) -> bool:
        """Whether nothing is left to do for a batch."""
        return index in self.done

    def first_left(self, start: int) -> int:
        """The least index >= `start` that is neither confirmed nor skipped."""
        return self.done.first_missing(start)

    def covers(self, start: int, stop: int) -> bool:
        """Whether nothing is left to do in ``range(start, stop)``."""
        return self.first_left(start) >= stop


_SETS_AND_DICTS = [
    field.name
    for field in attrs.fields(Progress)
    if isinstance(getattr(Progress(), field.name), IndexSet | dict)
]


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
            progress.notes, progress.deferred = None, {}
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
    """Change nothing, unless an act pauses the run or lifts its pause: it is for the history."""
    match record.metadata.get(ACT):
        case {"do": "pause"} as act:
            progress.metadata = {**progress.metadata, PAUSED: act}
        case {"do": "resume"}:
            progress.metadata = {k: v for k, v in progress.metadata.items() if k != PAUSED}
        case _:
            pass


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
