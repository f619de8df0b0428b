"""The position of the owner in a stream, and the loop that continues from there.

A stream has one loop at a time.  Each of its steps passes the gate for the batch before
it, and hands out the first one that is left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import attrs
import trio

from .._commit.archive_states import prune_states
from .._commit.awaits import Calls
from .._commit.batch import AttemptState, Batch, task_of
from .._commit.exits import Exit
from .._commit.gate import Gate, Passed
from .._commit.open_stream import OpenStream
from .._commit.retry import Again
from .._journal.history import ReadPages
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, Status
from .._journal.statistics import resume_line
from .._util.arguments import shown, whole_number
from .._util.errors import SourceChangedError, StreamBusyError, StreamFailedError
from .._util.log import get_logger
from .._util.uninterrupted import uninterrupted
from .compare import check_source
from .source import Source

log = get_logger(__name__)

T = TypeVar("T")

Items = Sequence[T] | Callable[[], Iterable[T]]


@attrs.define(eq=False)
class Surroundings:
    """The cancel scopes around a task, as they were at the last call of `remember`.

    ``with trio.move_on_after(60): async for batch in stream.batches(): ...`` ends the loop without
    notice: the body is cancelled, the scope catches that, and the program continues after the loop.
    A loop does not keep a scope open itself, so it checks those that were open when it handed out
    the batch.

    trio has no public API for the scopes around a task: it gives the nearest deadline, and the
    nurseries of a task with their scopes, but no ``with`` block.  So they are read from its private
    chain.  On a trio with another chain only the nurseries are checked: a loop in a cancelled
    ``with`` block then ends with `TokenNeverSettledError`, which says what to do, and nothing is
    lost.
    """

    _innermost: object = attrs.field(default=None, init=False)
    _scopes: list[trio.CancelScope] = attrs.field(factory=list[trio.CancelScope], init=False)

    def remember(self, task: trio.lowlevel.Task) -> None:
        """Store the scopes that are open around a task now."""
        status: object = getattr(task, "_cancel_status", None)
        if status is None or status is not self._innermost:
            self._innermost, self._scopes = status, _scopes_of(status) or _of_nurseries(task)

    def were_cancelled(self, task: trio.lowlevel.Task) -> bool:
        """Whether one of those around a task was cancelled and has been left."""
        status: object = getattr(task, "_cancel_status", None)
        if status is not None and status is self._innermost:
            return False  # it is in the same scope as before, so it has left none
        return any(scope.cancelled_caught for scope in self._scopes)


def _scopes_of(status: object) -> list[trio.CancelScope]:
    """The scopes of a chain, the innermost first; empty if the chain is not as expected."""
    found = list[trio.CancelScope]()
    while status is not None:
        scope: object = getattr(status, "_scope", None)
        if not isinstance(scope, trio.CancelScope):
            return []
        found.append(scope)
        status = getattr(status, "_parent", None)
    return found


def _of_nurseries(task: trio.lowlevel.Task) -> list[trio.CancelScope]:
    return [nursery.cancel_scope for nursery in task.child_nurseries]


@uninterrupted
@attrs.define(eq=False)
class LoopCursor:
    """The position of the owner in a stream.

    Attributes:
        gate: What every exit of a batch passes.
        open_stream: The stream of the gate.
        read: Reads the records of the stream, newest first.
        wait_verified: Waits for the verification beside the run; see `Resume`.
        task: The task that owns the stream.
        batch: The batch that the loop or block of the owner holds.
        loop: The newest loop; an older one must not go on.
        source: The source of the newest loop.
        is_cut: The newest loop has an open end and was narrowed by ``end=``.
        around: The cancel scopes around the loop when it handed out its batch.
        is_closed: The block of the stream has ended.
        calls: The calls of the stream's async methods.
    """

    gate: Gate
    read: ReadPages
    wait_verified: Callable[[], Awaitable[bool]]
    open_stream: OpenStream = attrs.field(init=False)
    task: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task, init=False)
    batch: Batch[Any] | None = attrs.field(default=None, init=False)
    loop: object = attrs.field(default=None, init=False)
    source: Source[Any] | None = attrs.field(default=None, init=False)
    is_cut: bool = attrs.field(default=False, init=False)
    around: Surroundings = attrs.field(factory=Surroundings, init=False)
    is_closed: bool = attrs.field(default=False, init=False)
    calls: Calls = attrs.field(factory=Calls, init=False)

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

    def batch_of_caller(self) -> Batch[Any] | None:
        """The batch that the calling task works on; None: the owner calls, and holds none.

        Raises:
            StreamBusyError: the caller is neither the owner nor a worker of `run_batches`.
        """
        task = trio.lowlevel.current_task()
        if not self.is_closed and task is not self.task:
            for batch in self.open_stream.open.values():
                if task_of(batch) is task:
                    return batch
        self.check_owner()
        return self.batch

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
        self.batch = batch
        self.around.remember(self.task)

    def way_out(self, way: Exit) -> Exit:
        """The exit of the batch of the loop: `way`, or CANCEL.

        It is CANCEL where a cancelled scope around the loop has ended the body.
        """
        return Exit.CANCEL if self.around.were_cancelled(self.task) else way

    async def settle_open(self, way: Exit) -> Passed:
        """Pass the gate for the batch of the loop; where it runs again, wait until it may."""
        batch, self.batch = self.batch, None
        if batch is None:
            return Passed.GO_ON
        passed = await self.gate.pass_gate(batch, self.way_out(way))
        if isinstance(passed, Again):
            with self.open_stream.stop.at_gate():
                await trio.sleep(passed.after_s)
            return Passed.GO_ON
        return passed

    async def settle_failed(self, error: BaseException | str) -> None:
        """Pass the gate for the batch of the loop; one that is not settled fails with `error`."""
        batch, self.batch = self.batch, None
        if batch is None:
            return
        batch.fail(error)  # unless it is settled
        is_failed = batch.state is AttemptState.FAILED
        await self.gate.pass_gate(batch, Exit.ERROR if is_failed else Exit.EXIT)

    async def wait_for_turn(self, index: int) -> None:
        """Wait until a batch may begin, and restore the state that it begins with.

        It waits while the stream pauses, and for ever while a stop is under way.

        Args:
            index: The batch.

        Cancellation: the only way out of a stop.
        """
        open_stream = self.open_stream  # hot path: nothing is awaited without need
        if open_stream.pause is not None:
            with open_stream.stop.at_gate():
                await open_stream.wait_paused()
        if open_stream.stop.is_parking:
            await open_stream.stop.park()
        if open_stream.state_manager is not None:
            open_stream.state_manager.begin_batch(index)  # a snapshot is for its own batch alone
            await open_stream.restore_state()

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
            self.check_end(source.stop)
            expected = source.stop - open_stream.first_index
        open_stream.extent.begin_source(expected, is_open_ended=source.is_open_ended)
        self.source = source
        return source

    def check_end(self, stop: int) -> None:
        """Raise SourceChangedError if a source ends before batches that are known to be left.

        Args:
            stop: One more than the last batch of the source.
        """
        known = self.known_stop()
        if known is None or stop >= known or self.progress.covers(stop, known):
            return
        count = known - self.open_stream.first_index
        raise SourceChangedError(
            f"{count:,}",
            "nothing: it is shorter now",
            run_id=self.open_stream.run_id,
            stream=self.open_stream.stream_log.key,
            batch_index=self.progress.first_left(stop),
            is_done=False,
        )

    def known_stop(self) -> int | None:
        """One more than the last batch; None where that is not known."""
        total = self.open_stream.extent.total
        return None if total is None else self.open_stream.first_index + total

    def check_finished(self) -> None:
        """Raise RuntimeError if work is known to be left."""
        first = self.open_stream.first_index
        left, known = self.progress.first_left(first), self.known_stop()
        stop = max(self.progress.done.stop, 0 if known is None else known)
        if left < stop:
            raise RuntimeError(
                f"finish() with work left: batch {left} of {first} to {stop - 1} is neither "
                "confirmed nor skipped"
            )
        source = self.source
        if source is not None and not source.is_open_ended and source.get(left) is not None:
            raise RuntimeError(
                f"finish() with work left: the source has a batch {left}, which is neither "
                "confirmed nor skipped"
            )
        if self.is_cut and self.progress.last_index is None:
            raise RuntimeError(
                f"finish() after a loop that end= cut off before batch {left}: nothing says that "
                "the stream ends there; leave end= out, or settle the last batch with last=True"
            )

    async def begin_range(
        self, stop: int | None, start: int | None, end: int | None, estimate: int | None
    ) -> None:
        """Log what a loop passes over, and record which part of the stream it works on.

        Args:
            stop: One more than the last batch of the source; None: it is not known.
            start: The first batch of the part; None: there is no limit.
            end: The last batch of the part; None: there is no limit.
            estimate: About how many batches there are in all; None: the estimate stays.

        Raises:
            ValueError: the part has no batch.
            TypeError: there is an estimate, and the end is not open.

        Durability: when this returns the record of a range is durable.
        """
        open_stream, progress = self.open_stream, self.progress
        if start is not None and end is not None and end < start:
            raise ValueError(f"a range from {start} to {end} has no batch in it")
        if estimate is not None:
            open_stream.extent.set_estimate(estimate)
        open_stream.extent.narrow(start, end)
        stop = stop if end is None or stop is None else min(end + 1, stop)
        if progress.sequence and (
            line := resume_line(progress, open_stream.first_index, start, stop)
        ):
            log.info(
                "%s: %s",
                open_stream.where(),
                line,
                extra=open_stream.place(),
            )
        if start is not None or end is not None:
            note = {"range": [start, end]}
            await open_stream.save_plain(
                Record(kind=RecordKind.NOTE, at=time.time(), metadata=note)
            )

    def is_past_end(self, index: int) -> bool:
        """Whether the records say that an open end lies before a batch."""
        last = self.progress.last_index
        return self.progress.status is Status.COMPLETE if last is None else index > last

    # -- the end -------------------------------------------------------------------------------

    async def complete(self, stop: int) -> None:
        """Save that the stream is complete, if all batches below `stop` are done.

        Durability: when this returns the record is durable.
        """
        progress = self.progress
        is_done = progress.covers(self.open_stream.first_index, stop)
        if not is_done:
            return
        if (
            progress.status is not Status.COMPLETE
            and self.open_stream.finished != self.open_stream.stream_log.submitted
        ):  # else it is complete, or that is on its way
            await self.open_stream.save_finish(Record(kind=RecordKind.FINISH, at=time.time()))
        await prune_states(self.open_stream, is_complete=True)  # a killed session may not have

    async def complete_source(self, source: Source[Any], end: int | None) -> None:
        """Save that the stream is complete, if all batches of a source are done.

        Args:
            source: The source.
            end: The index at which it was found to end; None: it was not read to its end.
        """
        if source.is_open_ended:
            await self.complete_if_last()
        elif (stop := end if source.stop is None else source.stop) is not None:
            self.check_end(stop)
            await self.complete(stop)

    async def complete_if_last(self) -> None:
        """Save that the stream is complete, if its last batch is known and all are done."""
        if self.progress.last_index is not None:
            await self.complete(self.progress.last_index + 1)


def estimated(expected: int | None, items: object) -> int | None:
    """Check the argument ``expected`` of a loop.

    Raises:
        TypeError: it is not an int, or the items are a list.
        ValueError: it is out of range.
    """
    if expected is None:
        return None
    if isinstance(items, Sequence):
        raise TypeError(
            f"expected must be left out where items is a list, which says how many batches there "
            f"are; it is {shown(expected)}"
        )
    return whole_number("expected", expected)


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
            index = loop_cursor.progress.first_left(self._first)
            is_beyond = self._end is not None and index > self._end
            if source.is_open_ended:
                is_beyond = is_beyond or loop_cursor.is_past_end(index)
            found = None if is_beyond else source.get(index)
            if found is not None:
                break
            if not await loop_cursor.wait_verified():  # the verification re-queued nothing
                await loop_cursor.complete_source(source, None if is_beyond else index)
                raise StopAsyncIteration  # also during a stop: what is done is done
        await loop_cursor.wait_for_turn(index)
        await trio.lowlevel.checkpoint_if_cancelled()
        batch: Batch[T] = loop_cursor.gate.hand_out(index, *found)
        loop_cursor.hold(batch)
        return batch

    async def _begin(self) -> Source[T]:
        """Open the source, and replace an older loop."""
        loop_cursor = self._loop_cursor
        await trio.lowlevel.checkpoint()
        await loop_cursor.settle_open(Exit.NEXT)
        source = self._source = await loop_cursor.open_source(self._items, self._key)
        loop_cursor.is_cut = source.is_open_ended and self._end is not None
        await loop_cursor.begin_range(source.stop, self._start, self._end, self._estimate)
        loop_cursor.loop = self
        return source
