"""A stream: an ordered sequence of batches, owned by one trio task."""

# What the library's own loops need of a stream is in private fields.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias, TypeVar, cast, overload

import trio

from .._commit.adopt import PathOf, check_stands_alone, rescan
from .._commit.awaits import awaits_noted
from .._commit.batch import Batch
from .._commit.exits import Exit
from .._commit.redo import Redo
from .._commit.snapshots import Snapshots
from .._commit.staged import UNSET, AttemptState
from .._journal.progress import FailedAttempt, Progress
from .._journal.record import ErrorInfo, Record, RecordKind, Status, describe_error
from .._journal.statistics import StreamStatistics
from .._journal.summary import status_of
from .._util.arguments import flag, function, index_range, reason, text, whole_number, whole_numbers
from .._util.errors import StreamBusyError
from .._util.plain import Plain, StreamKey, as_metadata, as_plain, copy_plain
from .._util.shown import Shown
from .._util.text import batches_text, number, stream_name
from .._util.uninterrupted import uninterrupted
from ..state._frontier import frontier_of
from .loop import Batches, LoopCursor
from .loop_bounds import estimated
from .source import Items
from .statistics import stream_statistics
from .stream_operations import (
    finish_stream,
    one_batch,
    pin_state,
    save_failure,
    save_reopening,
    skipped_batches,
    snapshots_in_batch,
    unpin_state,
)

S = TypeVar("S")
T = TypeVar("T")


@uninterrupted
@awaits_noted
class Stream(Shown, Generic[S]):
    """One ordered sequence of batches; made by ``run.open_stream``, used by that task.

    Attributes:
        key: The parts of its key.
        first_index: The index of its first batch.
    """

    def __init__(self, loop_cursor: LoopCursor, redo: Redo, nursery: trio.Nursery) -> None:
        open_stream = loop_cursor.open_stream
        self.key: StreamKey = open_stream.stream_log.key
        self.first_index = open_stream.first_index
        self._open_stream = open_stream
        self._redo = redo
        self._loop_cursor = loop_cursor
        self._calls = loop_cursor.calls
        self._nursery = nursery
        self._runtime_before = (
            open_stream.stream_log.progress.runtime_s - open_stream.stream_log.open_s
        )

    def _shown(self) -> Iterable[tuple[str, str]]:
        progress = self._progress
        done, skipped, failing = (
            len(indexes) for indexes in (progress.confirmed, progress.skipped, progress.failures)
        )
        return [
            ("stream", stream_name(self.key)),
            ("status", self.status.value),
            ("batches", batches_text(done, skipped, failing, progress.left)),
            ("records", number(progress.records)),
        ]

    # -- reading --------------------------------------------------------------------------

    @property
    def expected_batches(self) -> int | None:
        """How many batches there are in all, or about how many; None: it is not known.

        Set it where an API gives an estimate for an open end, for example with its first page.
        It feeds the count of batches left, the percentage and the ETA, and nothing else.
        """
        return self._open_stream.extent.expected_batches

    @expected_batches.setter
    def expected_batches(self, count: int | None) -> None:
        self._open_stream.extent.set_estimate(count)

    @property
    def progress(self) -> Progress:
        """What is durable at this moment, as a copy that is made for each access."""
        return self._progress.copy()

    @property
    def _progress(self) -> Progress:
        return self._open_stream.stream_log.progress

    @property
    def status(self) -> Status:
        """The status of the stream: IN_PROGRESS while it is open, complete or failed."""
        is_open = not (self._loop_cursor.is_closed or self._open_stream.has_failed)
        return status_of(self._progress, is_open=is_open)

    @property
    def error(self) -> ErrorInfo | None:
        """Why it failed; None: it has not failed."""
        return self._progress.error

    @property
    def cursor(self) -> Plain:
        """The cursor of the last confirmed checkpoint; None before the first.

        It is a copy: to move it, give the new value to `Batch.complete`.
        """
        return copy_plain(self._progress.cursor)

    @property
    def metadata(self) -> Mapping[str, Plain]:
        """The metadata that `finish` was given, as a copy."""
        return cast("Mapping[str, Plain]", copy_plain(self._progress.metadata))

    @property
    def state(self) -> S:
        """The state of the loop; saved with every batch, restored on resume.

        It may be changed in place, or replaced by another one of its class.
        """
        open_stream = self._open_stream
        if open_stream.frontier is not None:
            return cast("S", frontier_of(open_stream.frontier))
        return cast(
            "S", None if open_stream.state_manager is None else open_stream.state_manager.state
        )

    @state.setter
    def state(self, value: S) -> None:
        if self._open_stream.state_manager is None:
            raise TypeError("open the stream with state=... to have a state that can be set")
        self._open_stream.state_manager.replace(value)

    def skipped(self) -> AsyncGenerator[tuple[int, Plain, FailedAttempt]]:
        """The skipped batches: index, item (of a frontier; else None), and what went wrong.

        The newest come first.  They are read from the records, a page at a time.

        Cancellation: a cancellation point for each page.
        """
        return skipped_batches(self._loop_cursor)

    @property
    def resume_index(self) -> int:
        """The first batch that is left; where none is left, one more than the last."""
        return self._progress.first_left(self.first_index)

    def statistics(self) -> StreamStatistics:
        """Counts, sums, rate and ETA of the stream at this moment."""
        is_closed = self._loop_cursor.is_closed
        return stream_statistics(
            self._open_stream,
            open_s=0.0 if is_closed else trio.current_time() - self._loop_cursor.opened,
            runtime_before_s=self._runtime_before,
            is_closed=is_closed,
        )

    def remaining(
        self, *, total: int | None = None, start: int | None = None, end: int | None = None
    ) -> list[int]:
        """The batches that are left, ascending.

        It only reports: a loop finds them itself.  To work on a part, give the loop the whole
        list, and ``start=`` and ``end=``.

        Args:
            total: How many batches there are in all, where no loop has set it yet; a list that
                is shorter is refused after that.
            start: Only from this index on.
            end: Only up to this index, inclusive.

        Raises:
            ValueError: the end of the stream is not known.
        """
        extent = self._open_stream.extent
        start, end = index_range(start, end)
        if total is not None:
            total = whole_number("total", total)
        if extent.expected is None and total is not None:
            extent.set_expected(max(total, self._progress.expected or 0))
        return self._left(total, start, end)

    def _left(self, total: int | None, start: int | None, end: int | None) -> list[int]:
        stop = self._open_stream.extent.stop(total, end)
        return self._progress.done.list_missing(max(self.first_index, start or 0), stop)

    # -- loops ------------------------------------------------------------------------------

    @overload
    def batches(
        self,
        items: None = None,
        *,
        start: int | None = None,
        end: int | None = None,
        expected: int | None = None,
    ) -> Batches[None]: ...

    @overload
    def batches(
        self,
        items: Items[T],
        *,
        key: Callable[[T], str] | None = None,
        start: int | None = None,
        end: int | None = None,
        expected: int | None = None,
    ) -> Batches[T]: ...

    def batches(
        self,
        items: Items[T] | None = None,
        *,
        key: Callable[[T], str] | None = None,
        start: int | None = None,
        end: int | None = None,
        expected: int | None = None,
    ) -> Batches[T] | Batches[None]:
        """Loop over the batches that are left: ``async for batch in stream.batches(...)``.

        The loop hands out a batch when the one before it is durable.

        Args:
            items: The whole list, or a function that returns it: item j is batch
                ``first_index + j``.  The loop refuses a list that changes while it runs.
                Without items the end is open: use ``last=True``, `Batch.withdraw` or `finish`.
            key: Names an item, to notice a list that changed; default: its canonical JSON.
            start: Only batches from this index on.
            end: Only batches up to this index, inclusive.
            expected: About how many batches there are in all, where `items` does not say; see
                `expected_batches`.
        """
        span = index_range(start, end)
        estimate = estimated(expected, items)
        return Batches(self._loop_cursor, items, key, *span, estimate)

    def open_batch(self) -> AbstractAsyncContextManager[Batch[None]]:
        """Open the first batch that is left for a block; for work without a ``for`` loop.

        It passes the same gate as in `batches`: when the block has ended, the batch is durable.

        Raises:
            TokenNeverSettledError: the block ends, and the batch is not settled.
            BatchFailedError: the batch has failed for good.
            StreamEndedError: the stream is complete.

        Durability: when the block has ended, a completed batch is durable.
        Cancellation: entering is a cancellation and a schedule point; a save that has begun is
            waited for.
        """
        return one_batch(self._loop_cursor)

    # -- the stream as a whole ----------------------------------------------------------------

    async def finish(self, metadata: Mapping[str, Plain] | None = None) -> None:
        """Mark the stream as complete; an open batch passes the gate first.

        Args:
            metadata: JSON-like values that are saved with the stream.

        Raises:
            RuntimeError: work is left: a batch before the last one, one of the list that a
                loop was given or of a `Frontier`, one whose outputs were found damaged; or
                ``end=`` cut off a loop with an open end.

        Durability: when this returns the mark is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        loop_cursor = self._loop_cursor
        loop_cursor.check_owner()
        plain = {} if metadata is None else as_metadata(metadata)
        await finish_stream(loop_cursor, plain)

    async def reopen(self, *, reason: str) -> bool:
        """Go on with a complete stream, as its source has got more; does nothing to others.

        The next loop goes on behind the last batch, from its cursor and its state.  A list or a
        `Frontier` that has grown needs no call: a loop does what is new in it.

        Args:
            reason: Why; saved in the history.

        Returns:
            False: the stream is not complete.

        Durability: when this returns the record is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        self._loop_cursor.check_owner()
        text("reason", reason)
        await self._loop_cursor.settle_open(Exit.EXIT)
        if self._progress.status is not Status.COMPLETE:
            return False
        await save_reopening(self._open_stream, reason)
        return True

    async def save(self, *, cursor: Plain = UNSET) -> None:
        """Save state and cursor between batches; an open batch passes the gate first.

        Args:
            cursor: The new cursor; default: it stays.

        Raises:
            StreamBusyError: a batch is open.
            NotEncodableError: the cursor or the state cannot be saved.

        Durability: when this returns they are durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        open_stream, state_manager = self._open_stream, self._open_stream.state_manager
        self._loop_cursor.check_owner()
        if cursor is not UNSET:
            open_stream.check_cursor()
            cursor = as_plain(cursor, "cursor")
        await self._loop_cursor.settle_open(Exit.EXIT)
        if open_stream.open:
            raise StreamBusyError(
                "save() is for between batches: settle the open one first",
                run_id=open_stream.run_id,
                stream=self.key,
            )
        await open_stream.restore_state()
        saved = None if state_manager is None else await state_manager.encode_state()
        state, blobs = (b"", ()) if saved is None else (saved.payload, saved.stored.blobs)
        record = Record(kind=RecordKind.SAVE, at=time.time(), cursor=cursor, state=state)
        sequence = await open_stream.save_plain(record, blobs)
        if state_manager is not None:
            state_manager.mark_durable(saved, sequence, record.at, is_confirmed=True)

    async def pin(self, label: str) -> None:
        """Keep the arrays of the newest confirmed state, whatever the retention says.

        An open batch passes the gate first.  `Progress.pins` has the pins; `Run.rewind` to the
        batch of a pin restores its state.  A rewind to before that batch removes the pin.  A
        stream that is complete keeps its pinned states, too.

        Args:
            label: The name of the pin, also in the history; a pin of that name moves.

        Raises:
            TypeError: the stream has no state, or a `Frontier`.
            ValueError: a bad label, or too many pins.

        Durability: when this returns the pin is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        self._loop_cursor.check_owner()
        await self._loop_cursor.settle_open(Exit.EXIT)
        await pin_state(self._open_stream, label)

    async def unpin(self, label: str) -> None:
        """Remove a pin, so that the retention applies to its state; an open batch stays open.

        Args:
            label: The name of the pin.

        Raises:
            ValueError: the stream has no such pin.

        Durability: when this returns the pin is durably removed.
        Cancellation: none once the record is being saved.
        """
        self._loop_cursor.check_owner()
        await unpin_state(self._open_stream, label)

    async def fail(self, error: BaseException | str, *, retryable: bool = True) -> None:
        """Record that the stream failed; its block raises `StreamFailedError` at the end.

        No batch is handed out any more.  An open batch that is not settled fails with `error`.

        Args:
            error: Why it failed.
            retryable: Whether a plain resume may retry it.

        Durability: when this returns the failure is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        self._loop_cursor.check_owner()
        error = reason("error", error)
        flag("retryable", retryable)
        batch, self._loop_cursor.batch = self._loop_cursor.batch, None
        if batch is not None:
            batch.fail(error)  # unless it is settled
            is_failed = batch.state is AttemptState.FAILED
            left_by = Exit.ERROR if is_failed else Exit.EXIT
            await self._loop_cursor.gate.pass_gate(batch, left_by)
        failure = describe_error(error, retryable=retryable)
        self._open_stream.set_failure(failure)
        await save_failure(self._open_stream, failure)

    def snapshots(self, *, every_s: float = 10.0) -> AbstractAsyncContextManager[Snapshots]:
        """Save the state inside a batch whose body is long.

        Call `Snapshots.point` wherever the state is consistent; a snapshot is saved at most every
        `every_s` seconds, beside the body.  After a crash the batch begins with the state of the
        newest snapshot, and `Batch.resumed_from` has its label.

        Args:
            every_s: The least time between two snapshots, in seconds; it bounds the work that a
                crash can lose.

        Raises:
            TypeError: the stream has no state, or a `Frontier`; `every_s` is not a number.
            RuntimeError: no batch is open.
            StreamBusyError: the caller is neither the owner of the stream nor the task that
                `run_batches` runs the handler in.

        Cancellation: the end of the block waits for a snapshot that is being saved.
        """
        return snapshots_in_batch(self._loop_cursor, self._nursery, every_s)

    # -- re-queueing --------------------------------------------------------------------------

    async def redo(self, indexes: Iterable[int], *, reason: str) -> None:
        """Re-queue confirmed or skipped batches; an open batch passes the gate first.

        Their outputs are moved into the archive of the output folder.

        Args:
            indexes: The batches.
            reason: Why; saved in the history.

        Raises:
            ValueError: one is neither confirmed nor skipped.
            CannotRedoError: later batches build on them; use `Run.rewind` instead.
            TypeError: the stream's state is a `Frontier`, which has dropped their items.

        Durability: when this returns the record is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        self._loop_cursor.check_owner()
        self._loop_cursor.check_no_frontier()
        wanted = whole_numbers("indexes", indexes)
        text("reason", reason)
        were_done = {index for index in wanted if self._progress.is_done(index)}
        await self._loop_cursor.settle_open(Exit.EXIT)
        # The verification beside the run may have re-queued some of them already.
        back = {index for index in were_done if not self._progress.is_done(index)}
        if left := [index for index in wanted if index not in back]:
            await self._redo.redo(left, reason)

    async def rescan(
        self, path_of: PathOf, *, total: int | None = None, adopt_outputs: bool = False
    ) -> list[int]:
        """Find valid outputs of batches that are left, for a store that was lost.

        No output may be empty, a JSON file has to be JSON, and all have to pass `validate` of the
        stream.  A warning says how many batches have refused outputs, and why.

        Args:
            path_of: Gives the path of a batch's output, or the paths of several, below the folder
                of the stream.
            total: How many batches there are in all, where it is not known otherwise.
            adopt_outputs: Whether to confirm the batches by their outputs; totals do not include
                what they had produced, see `Progress.adopted`.

        Returns:
            The batches whose outputs were found.

        Raises:
            ValueError: the end of the stream is not known.
            TypeError: later batches build on earlier ones, so that a file alone confirms none.

        Durability: when this returns adopted batches are durable.
        Cancellation: a cancellation point for each batch, until adopted batches are being saved.
        """
        function("path_of", path_of)
        flag("adopt_outputs", adopt_outputs)
        self._loop_cursor.check_owner()
        self._loop_cursor.check_no_frontier()
        await self._loop_cursor.settle_open(Exit.EXIT)
        check_stands_alone(self._open_stream)
        left = self._left(total, None, None)
        return await rescan(self._open_stream, left, path_of, is_adopted=adopt_outputs)


AnyStream: TypeAlias = Stream[Any]


def redo_of(stream: AnyStream) -> Redo:
    """What re-queues batches of an open stream: for acts from outside, out of reach of users."""
    return stream._redo


def loop_cursor_of(stream: AnyStream) -> LoopCursor:
    """The position of a stream's owner: for the library's own loops, out of reach of users."""
    return stream._loop_cursor
