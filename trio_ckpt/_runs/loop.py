"""The position of the owner in a stream, and the loop that goes on there.

A stream has one loop at a time.  Each of its steps passes the gate for the batch before
it, and hands out the first one that is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import attrs
import trio

from .._commit.awaits import Calls
from .._commit.batch import Batch
from .._commit.exits import Exit
from .._commit.gate import Gate, Passed
from .._commit.open_stream import OpenStream
from .._commit.retry import Again
from .._commit.snapshots import Snapshots
from .._journal.history import ReadPages
from .._journal.progress import Progress
from .._tokens.attempts import begin_attempt, hold_back
from .._util.errors import StreamBusyError, StreamFailedError
from .._util.uninterrupted import uninterrupted
from .loop_bounds import (
    begin_range,
    check_end,
    check_source,
    complete,
    complete_if_last,
    park_if_taken_back,
)
from .source import Items, Source
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .code import CodeWatch

T = TypeVar("T")


@uninterrupted
@attrs.define(eq=False, repr=False)
class LoopCursor:
    """The position of the owner in a stream.

    Attributes:
        gate: What every exit of a batch passes.
        open_stream: The stream of the gate.
        read: Reads the records of the stream, newest first.
        wait_verified: Waits for the verification beside the run; see `Resume`.
        code: Notes the code that works on it; None: that is not noted.
        task: The task that owns the stream.
        batch: The batch that the loop or block of the owner holds.
        loop: The newest loop; an older one must not go on.
        source: The source of the newest loop.
        is_cut: The newest loop has an open end and was narrowed by ``end=``.
        around: The cancel scopes around the loop when it handed out its batch.
        is_closed: The block of the stream has ended.
        snapshots: Those of the bodies that are open.
        calls: The calls of the stream's async methods.
        opened: When the stream was opened, on trio's clock.
    """

    gate: Gate
    read: ReadPages
    wait_verified: Callable[[], Awaitable[bool]]
    code: CodeWatch | None = None
    open_stream: OpenStream = attrs.field(init=False)
    task: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task, init=False)
    batch: Batch[Any] | None = attrs.field(default=None, init=False)
    loop: object = attrs.field(default=None, init=False)
    source: Source[Any] | None = attrs.field(default=None, init=False)
    is_cut: bool = attrs.field(default=False, init=False)
    around: Surroundings = attrs.field(factory=Surroundings, init=False)
    is_closed: bool = attrs.field(default=False, init=False)
    snapshots: set[Snapshots] = attrs.field(factory=set[Snapshots], init=False)
    calls: Calls = attrs.field(factory=Calls, init=False)
    opened: float = attrs.field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self.open_stream = self.gate.open_stream

    @property
    def progress(self) -> Progress:
        """What is durable."""
        return self.open_stream.stream_log.progress

    # -- who may -------------------------------------------------------------------------------

    def check_owner(self) -> None:
        """Raise unless the caller is the task that opened the stream."""
        if self.is_closed or trio.lowlevel.current_task() is not self.task:
            raise StreamBusyError(
                f"{self.open_stream.where()} is used outside its block or by another task than the "
                "one that opened it",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
            )

    def check_failed(self) -> None:
        """Raise StreamFailedError after `Stream.fail`."""
        if self.open_stream.failure is not None:
            raise StreamFailedError(
                self.open_stream.failure.message,
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
                retryable=self.open_stream.failure.retryable,
            )

    def check_no_frontier(self) -> None:
        """Raise TypeError where the stream has a `Frontier`."""
        if self.open_stream.frontier is not None:
            raise TypeError("the items of a Frontier are worked on with run_batches")

    # -- a step --------------------------------------------------------------------------------

    def hold(self, batch: Batch[Any]) -> None:
        """Set the batch of the loop or block of the owner."""
        begin_attempt(batch.token)
        self.batch = batch
        self.around.remember(self.task)

    def exit_taken(self, left_by: Exit) -> Exit:
        """The exit of the loop's batch: CANCEL where a cancelled scope has ended its body."""
        return Exit.CANCEL if self.around.were_cancelled(self.task) else left_by

    async def settle_open(self, left_by: Exit) -> Passed:
        """Pass the gate for the batch of the loop; where it runs again, wait until it may."""
        batch, self.batch = self.batch, None
        if batch is None:
            return Passed.GO_ON
        passed = await self.gate.pass_gate(batch, self.exit_taken(left_by))
        if isinstance(passed, Again):
            hold_back(batch.token, passed.after_s)
            with self.open_stream.stop.at_gate():
                await trio.sleep(passed.after_s)
            return Passed.GO_ON
        return passed

    async def first_free(self, start: int, source: Source[Any] | None) -> int:
        """The first batch that is left and is not deferred.

        Where batches have an order, also by an open end, none overtakes a deferred one: this waits.

        Args:
            start: The first index that counts.
            source: The source of the loop; None: the end is open.

        Cancellation: a cancellation point if it waits.
        """
        open_stream, deferrals = self.open_stream, self.open_stream.deferrals
        has_order = open_stream.state_manager is not None or self.progress.has_order
        if not has_order and source is not None and not source.is_open_ended:
            return deferrals.first_free(start)
        while (due := deferrals.due_at(index := self.progress.first_left(start))) is not None:
            await self._wait_due(due)
        return index

    async def wait_deferred(self, start: int, stop: int, end: int | None) -> bool:
        """Wait until one of the deferred batches that a loop has passed over is due.

        Args:
            start: The first batch of the loop.
            stop: The index at which nothing that is left was found.
            end: The last batch of the loop; None: there is no limit.

        Returns:
            False: it has passed over none.

        Cancellation: a cancellation point if it waits.
        """
        left, due = self.progress.first_left(start), self.open_stream.deferrals.next_due
        if due is None or left >= stop or (end is not None and left > end):
            return False
        await self._wait_due(due)
        return True

    async def _wait_due(self, due: float) -> None:
        with self.open_stream.stop.at_gate():
            await self.open_stream.deferrals.wait(due)

    def is_free(self) -> bool:
        """Whether the next batch may begin at once, as no state is to be restored: see below."""
        open_stream = self.open_stream
        return (
            open_stream.state_manager is None
            and open_stream.pauses.newest is None
            and not open_stream.stop.is_holding
        )

    async def wait_for_turn(self, index: int) -> bool:
        """Wait until a batch may begin, and restore its state; False: it was given up since.

        It waits while the stream or the run pauses, and for ever while a stop is under way.

        Args:
            index: The batch.

        Cancellation: the only way out of a stop.
        """
        open_stream = self.open_stream  # hot path: nothing is awaited without need
        if open_stream.pauses.newest is not None or open_stream.stop.is_holding:
            await open_stream.wait_held()
        if open_stream.state_manager is not None:
            open_stream.state_manager.begin_batch(index)  # a snapshot is for its own batch alone
            await open_stream.restore_state()
            if open_stream.stop.is_holding:  # since then
                await open_stream.wait_held()
        return not self.progress.is_done(index)

    async def open_source(
        self, items: Items[T] | None, key: Callable[[T], str] | None
    ) -> Source[T]:
        """The source of a loop, compared with what is done.

        Raises:
            SourceChangedError: it is not the source that the records were made from.
            NotEncodableError: an item of a list has no key; the error names its place.

        Cancellation: a cancellation point where much is done, or the list is long.
        """
        if items is None:
            self.check_no_frontier()
        open_stream = self.open_stream
        source = Source(items, first_index=open_stream.first_index, key=key)
        await source.note_items()
        await check_source(
            source, self.progress, self.read, (open_stream.run_id, open_stream.stream_log.key)
        )
        expected = None
        if source.stop is not None:
            check_end(open_stream, source.stop)
            expected = source.stop - open_stream.first_index
        open_stream.extent.begin_source(expected, is_open_ended=source.is_open_ended)
        self.source = source
        return source

    def is_past_end(self, index: int) -> bool:
        """Whether the records say that an open end lies before a batch."""
        last = self.progress.last_index
        return self.open_stream.is_complete if last is None else index > last

    # -- the end -------------------------------------------------------------------------------

    async def complete_source(self, source: Source[Any], end: int | None) -> None:
        """Save that the stream is complete, if all batches of a source are done.

        Args:
            source: The source.
            end: The index at which it was found to end; None: it was not read to its end.
        """
        await park_if_taken_back(self.open_stream)
        if source.is_open_ended:
            await complete_if_last(self.open_stream)
        elif (stop := end if source.stop is None else source.stop) is not None:
            check_end(self.open_stream, stop)
            await complete(self.open_stream, stop)


@uninterrupted
class Batches(Generic[T]):
    """The loop of ``async for batch in stream.batches(...)``; it holds no scope open."""

    def __init__(
        self,
        loop_cursor: LoopCursor,
        items: Items[T] | None,
        key: Callable[[T], str] | None,
        start: int | None,
        end: int | None,
        estimate: int | None,
    ) -> None:
        self._loop_cursor = loop_cursor
        self._items = items
        self._key = key
        self._start = start
        self._end = end
        self._estimate = estimate
        self._source: Source[T] | None = None
        self._first = max(start or 0, loop_cursor.open_stream.first_index)

    def __aiter__(self) -> Batches[T]:
        return self

    if not TYPE_CHECKING:  # type checkers report it by themselves

        def __iter__(self) -> NoReturn:
            raise TypeError(
                "batches() is an asynchronous loop: write 'async for batch in stream.batches(...):'"
            )

    async def __anext__(self) -> Batch[T]:
        """Pass the gate for the open batch, and hand out the next one."""
        loop_cursor = self._loop_cursor
        loop_cursor.check_owner()
        loop_cursor.check_failed()
        source = self._source
        if source is None:
            source = await self._begin()
        elif loop_cursor.loop is not self:
            raise StreamBusyError(
                "this loop cannot go on: a newer batches() of the stream has replaced it"
            )
        else:
            await loop_cursor.settle_open(Exit.NEXT)
        while True:
            progress = loop_cursor.open_stream.stream_log.progress
            index = progress.first_left(self._first)
            if progress.deferred:
                index = await loop_cursor.first_free(self._first, source)
            is_beyond = self._end is not None and index > self._end
            if source.is_open_ended:
                is_beyond = is_beyond or loop_cursor.is_past_end(index)
            found = None if is_beyond else source.get(index)
            if found is not None:
                if loop_cursor.is_free() or await loop_cursor.wait_for_turn(index):
                    break
            elif not (
                await loop_cursor.wait_verified()  # it may have re-queued batches
                or await loop_cursor.wait_deferred(self._first, index, self._end)
            ):
                await loop_cursor.complete_source(source, None if is_beyond else index)
                raise StopAsyncIteration  # also during a stop: what is done is done
        await trio.lowlevel.checkpoint_if_cancelled()
        batch: Batch[T] = loop_cursor.gate.hand_out(index, *found)
        loop_cursor.hold(batch)
        return batch

    async def _begin(self) -> Source[T]:
        """Open the source, and replace an older loop."""
        loop_cursor = self._loop_cursor
        await trio.lowlevel.checkpoint()
        await loop_cursor.settle_open(Exit.NEXT)
        if loop_cursor.code is not None:
            loop_cursor.code.note(loop_cursor.open_stream, None)
        source = self._source = await loop_cursor.open_source(self._items, self._key)
        loop_cursor.is_cut = source.is_open_ended and self._end is not None
        await begin_range(
            loop_cursor.open_stream, source.stop, self._start, self._end, self._estimate
        )
        loop_cursor.loop = self
        return source
