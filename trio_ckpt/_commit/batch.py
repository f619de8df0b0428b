"""One attempt at one batch, as the user's loop holds it.

Methods that settle or stage may be called from any thread, see `trio_ckpt._util.threads`.

Only files are durable when a method of a batch returns: everything else is *staged*, and the
gate (`trio_ckpt._commit.gate`) saves all of it together.
"""

# What will be saved is in a private field of the batch, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from .._journal.record import CheckpointResult
from .._tokens.token import CheckpointToken, TokenEvent, may, move
from .._util.arguments import (
    MAX_INDEX,
    flag,
    reason as reason_of,
    several,
    whole_number,
)
from .._util.exact_sum import Number, add_to_amount
from .._util.plain import Plain, as_amounts, as_metadata, as_plain
from .._util.shown import Shown
from .._util.text import number, stream_name
from .._util.threads import Portal, from_any_thread
from .._util.uninterrupted import uninterrupted
from ..outputs import AnyPath
from .awaits import Calls, awaits_noted, check_awaited
from .batch_files import BatchFiles
from .batch_host import BatchGate, BatchHost
from .deferrals import due_time
from .staged import UNSET, AttemptState as AttemptState, RowsCommit, Staged

T = TypeVar("T")

_NONE: tuple[AnyPath, ...] = ()


@uninterrupted
@awaits_noted
@attrs.define(eq=False, repr=False)
class Batch(BatchFiles, Shown, Generic[T]):
    """One attempt at one batch: settle it once, with `complete`, `fail`, `skip` or `defer`.

    Attributes:
        index: The batch's number in its stream.
        item: The item of the source; None where there is no source.  Lists, tuples and dicts are
            copies; other objects are the source's own.
        attempt: The number of the attempt, from 1, counted over all sessions.
        token: The promise of its checkpoint; all attempts at the batch share it.
        state: The state of this attempt.
        resumed_from: The label of the snapshot that the stream's state comes from; None: it is
            the state after the batch before.
    """

    index: int
    item: T
    attempt: int
    token: CheckpointToken[CheckpointResult]
    _host: BatchHost[AnyBatch]
    _gate: BatchGate[AnyBatch]
    _given: T  # the item itself: attempts can change only their copies
    _task: trio.lowlevel.Task
    _portal: Portal  # to the trio run in which it was handed out
    _staged: Staged
    state: AttemptState = AttemptState.OPEN
    resumed_from: str | None = None
    _is_waiting: bool = attrs.field(default=False, init=False)
    _calls: Calls | None = attrs.field(default=None, init=False)

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [
            ("batch", number(self.index)),
            ("of", stream_name(self.token.stream)),
            ("attempt", number(self.attempt)),
            ("state", self.state.value),
        ]

    # -- what was before ----------------------------------------------------------------

    @property
    def previous(self) -> CheckpointResult | None:
        """What the last generation knows of its item, where the run was begun with ``again=True``.

        It has the outputs, with their paths below the folder of the run, and the metadata.  None:
        the item is new, or its outputs are not what was confirmed.  It is a copy.
        """
        return self._gate.previous_of(self)

    # -- settling -----------------------------------------------------------------------

    @from_any_thread
    def complete(
        self,
        *,
        outputs: Iterable[AnyPath] = _NONE,
        records: int = 0,
        cursor: Any = UNSET,
        totals: Mapping[str, Number] | None = None,
        metadata: Mapping[str, Any] | None = None,
        last: bool = False,
    ) -> bool:
        """Mark the batch as done.

        It is confirmed at the gate: when the loop asks for the next one, the block ends, or
        `confirm` is called.  Values are copied: later changes by the caller have no effect.

        Args:
            outputs: Files below the output folder that the body wrote itself; those of
                `write_bytes`, `write_text` and `write_json` are known and may be named again.
            records: How many records it produced.
            cursor: The place at which the loop continues; it becomes `Stream.cursor`, also on
                resume.  JSON-like: a tuple becomes a list.
            totals: What it produced, by name; summed exactly over all batches.
            metadata: JSON-like values that are saved with its checkpoint; NaN is allowed.
            last: Whether this is the last batch, with which the stream is complete.

        Returns:
            False if this attempt was settled before; nothing is changed then.

        Raises:
            NotEncodableError: a value cannot be stored; the batch stays unsettled.
            NeverAwaitedError: a method of the batch was called without await; the batch stays
                unsettled.
            ValueError: a `cursor` where batches run side by side; `last` where the source
                defines the last batch.
            trio.RunFinishedError: the call comes from another thread, after ``trio.run()`` has
                ended; all methods that settle or stage raise it.
        """
        if self.state is not AttemptState.OPEN or not may(self.token, TokenEvent.COMPLETE):
            return False
        if self._calls is not None:
            check_awaited(self._calls, self.token)
        paths = _NONE if outputs is _NONE else several("outputs", outputs, "paths")
        if last is not False and flag("last", last):
            self._host.check_last(self)
        if cursor is not UNSET:
            self._host.check_cursor()
            cursor = as_plain(cursor, "cursor")
        plain = {} if metadata is None else as_metadata(metadata)
        amounts = {} if totals is None else as_amounts(totals, "totals")
        if type(records) is not int or not 0 <= records <= MAX_INDEX:
            records = whole_number("records", records)
        staged = self._staged
        staged.cursor, staged.totals, staged.metadata = cursor, amounts, plain
        staged.records = records
        staged.is_last = last
        staged.adopted += paths
        self.state = AttemptState.COMPLETED
        move(self.token, TokenEvent.COMPLETE)
        return True

    @from_any_thread
    def unchanged(self, *, metadata: Mapping[str, Any] | None = None) -> bool:
        """Mark the batch as done without its work: its item is as in the last generation.

        Outputs, records, totals and metadata of `previous` count again; nothing is written.  Items
        that it had added to a `Frontier` do not: `add` them.

        Args:
            metadata: JSON-like values that replace those of the same names.

        Returns:
            False if this attempt was settled before.

        Raises:
            NotEncodableError: a value cannot be stored; the batch stays unsettled.
            RuntimeError: `previous` is None, or this attempt has written outputs.
            TypeError: the stream has a state that is no `Frontier`.
        """
        if self.state is not AttemptState.OPEN:
            return False
        was = self._gate.carry_over(self)
        plain = {} if metadata is None else as_metadata(metadata)
        is_first = self.complete(
            records=was.records, totals=was.totals, metadata=was.metadata | plain
        )
        if is_first:
            self._staged.carried = was.outputs
        return is_first

    @from_any_thread
    def fail(self, error: BaseException | str) -> bool:
        """Mark this attempt as failed; the retry table decides whether the batch runs again.

        While the run stops or the loop is cancelled, a `RunStoppedError` or `trio.Cancelled` does
        not count as a failure, neither here nor in `skip`: the batch ends as a cancelled one,
        leaves no record, and runs again.

        Args:
            error: What went wrong.

        Returns:
            False if this attempt was settled before.
        """
        return self._settle(AttemptState.FAILED, reason_of("error", error))

    @from_any_thread
    def skip(self, reason: BaseException | str) -> bool:
        """Give the batch up on purpose: it is saved as skipped, and the loop goes on.

        Args:
            reason: Why; it is saved with the record.

        Returns:
            False if this attempt was settled before.
        """
        return self._settle(AttemptState.SKIPPED, reason_of("reason", reason))

    @from_any_thread
    def defer(self, *, until: datetime | float) -> bool:
        """Put the batch back until a time: others go on, and no attempt at it counts as failed.

        It is handed out again when it is due, in any session.  Where batches have an order, by a
        state, a cursor or an open end, its stream waits.

        Args:
            until: A datetime with a time zone, or seconds from now.

        Returns:
            False if this attempt was settled before.

        Raises:
            TypeError, ValueError: `until` is neither, or is more than 366 days from now.
        """
        due, is_first = due_time(until), self._settle(AttemptState.DEFERRED, None)
        if is_first:
            self._staged.due = due
        return is_first

    @from_any_thread
    def withdraw(self) -> bool:
        """Withdraw the batch: it does not exist, and the stream is complete before it.

        It is for loops that find the end by an empty page.

        Returns:
            False if this attempt was settled before.

        Raises:
            RuntimeError: the source says how many batches there are, or several are worked
                on at once.
        """
        if self.state is AttemptState.OPEN:
            self._host.check_withdraw(self)
        return self._settle(AttemptState.WITHDRAWN, None)

    def _settle(self, state: AttemptState, error: BaseException | str | None) -> bool:
        if self.state is not AttemptState.OPEN:
            return False
        self.state = state
        self._staged.error = error
        return True

    async def confirm(self) -> None:
        """Pass the gate now, and continue in the body when the checkpoint is durable.

        Raises:
            TokenNeverSettledError: the batch is not settled; nothing has happened.
            BatchFailedError: the batch has failed for good.
            Exception: the reason why it was not saved.

        Durability: when this returns the checkpoint is durable.
        Cancellation: a save that has begun is waited for.
        """
        await self._gate.confirm(self)

    # -- waiting ------------------------------------------------------------------------

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None]:
        """Open a block for a wait that a stop need not wait for: ``async with batch.waiting():``.

        It is for delays, rate limits and queues, which can take longer than a stop may.  A stop
        does not wait for the block, and the body does not go on after it: the batch ends as a
        cancelled one, leaves no record, and runs again on resume.

        Raises:
            RuntimeError: the attempt is settled, or it waits already.

        Cancellation: during a stop the block is cancelled when all other batches are saved.
        """
        if self.state is not AttemptState.OPEN or self._is_waiting:
            state = "waits already" if self._is_waiting else f"is {self.state.value}"
            raise RuntimeError(
                f"attempt {self.attempt} at batch {self.index} {state}: waiting() is for one "
                "wait at a time, before the batch is settled"
            )
        self._is_waiting = True
        try:
            async with self._host.aside(self):
                yield
        finally:
            self._is_waiting = False

    # -- on record before it is done ----------------------------------------------------

    @property
    def notes(self) -> Mapping[str, Plain]:
        """Copies of the batch's notes by name, also those of attempts and sessions before."""
        return self._host.intents.notes_of(self)

    async def note(self, name: str, value: Any, /, **cost: Number) -> None:
        """Keep a value with the batch until it is confirmed; later attempts read it in `notes`.

        A note of something that costs money has the cost, too: at first the most that it can be,
        then what it was.  It counts from the first note on, and is spent when the batch is
        confirmed, by whichever attempt.  Where a limit has no room for it: as for `reserve`.

        Args:
            name: Its name; a note of this name is replaced.
            value: A JSON-like value of at most 64 KiB; it is copied.
            cost: What it costs, by name; a cost that is not given stays as it was.

        Raises:
            NotEncodableError: the value is not JSON-like, or is too large.
            ValueError: the batch or its stream has too many notes.
            RuntimeError: this attempt is settled, or the note is being saved.
            Exception: the reason why it was not saved.

        Durability: when this returns the note is durable.
        Cancellation: a save that has begun is waited for.
        """
        await self._host.intents.note(self, name, value, cost)

    async def reserve(self, /, **amounts: Number) -> None:
        """Put on record what a call may cost at most, before it is made; `spend` settles it.

        Each `spend` of a name settles one reservation of that name.  What is not settled stays
        reserved, and counts as spent.  Where ``Limits(spent=...)`` has no room for it, the run
        stops, and this does not return.

        Args:
            amounts: What may be spent, by name.

        Raises:
            NotEncodableError: an amount is not a finite number >= 0.
            RuntimeError: this attempt is settled.
            Exception: the reason why it was not saved.

        Durability: when this returns the reservation is durable.
        Cancellation: a save that has begun is waited for; where the limit has no room, it is
            cancelled when all other batches are saved.
        """
        await self._host.intents.reserve(self, amounts)

    # -- staging ------------------------------------------------------------------------

    @from_any_thread
    def spend(self, /, **amounts: Number) -> None:
        """Count what this attempt costs; saved whether it succeeds or not, never subtracted.

        Amounts are summed exactly; a Decimal counts as the float that is nearest to it.

        Args:
            amounts: What was spent, by name.

        Raises:
            NotEncodableError: an amount is not a finite number >= 0.
            RuntimeError: this attempt is over; all methods that stage raise it.
        """
        self._check_staging()
        spent, reservations = self._staged.spent, self._staged.reservations
        for name, amount in as_amounts(amounts, "spend", least=0).items():
            spent[name] = add_to_amount(spent[name], amount) if name in spent else amount
            if reservations is not None:
                reservations.settle(name)

    @from_any_thread
    def add(self, items: Iterable[Any]) -> None:
        """Stage new items for the stream's frontier, which has them when the batch is confirmed.

        Items that the frontier has had already are left out.

        Args:
            items: JSON-like items.

        Raises:
            NotEncodableError: an item is not JSON-like; the error names its place.
            TypeError: the stream's state is not a `Frontier`; or `items` is one item, not several.
        """
        self._check_staging()
        for key, item in self._host.stage_items(items).items():
            self._staged.adds.setdefault(key, item)


AnyBatch: TypeAlias = Batch[Any]


def staged_of(batch: AnyBatch) -> Staged:
    """What will be saved with an attempt: for the gate, out of reach of the body."""
    return batch._staged


async def commit_rows(batch: AnyBatch, rows: RowsCommit) -> None:
    """Confirm a batch together with its rows in a database; see `trio_ckpt.sinks`.

    Raises:
        Exception: why neither is saved.

    Durability: when this returns rows and checkpoint are durable.
    Cancellation: none once the rows are being committed.
    """
    await batch._gate.commit(batch, rows)


def calls_of(batch: AnyBatch) -> Calls | None:
    """The calls of the async methods of an attempt; None: there were none."""
    return batch._calls


def given_of(batch: Batch[T]) -> T:
    """The original of the item that an attempt has a copy of, for the next attempt."""
    return batch._given


def task_of(batch: AnyBatch) -> trio.lowlevel.Task:
    """The task whose body works on an attempt."""
    return batch._task
