"""Progress: the sum of the records of a stream.

`trio_ckpt._journal.apply` adds a record to it.  A fold is progress as it is stored, so that a
resume reads few records however many there are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import attrs
import msgspec

from .._util.exact_sum import ExactSum, add_sums, without_zeros
from .._util.index_set import IndexSet
from .._util.plain import Plain, copy_plain
from .._util.shown import Shown
from .._util.text import batches_text, number
from .code import CodeMark, OldCode
from .deferral import Deferral
from .notes import Notes
from .record import ErrorInfo, Status

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
