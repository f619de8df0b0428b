"""Running several batches of a stream at once, with exact progress."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Awaitable, Callable
from inspect import CORO_CREATED
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import trio

from .._commit.awaits import await_noted
from .._commit.batch import Batch, given_of, staged_of
from .._commit.exits import Exit, decisive, exit_of, raised_for
from .._commit.gate import Gate, Passed
from .._commit.open_stream import OpenStream
from .._commit.retry import Again, LoopPolicy, RetryTable
from .._commit.staged import UNSET, AttemptState
from .._tokens.attempts import begin_attempt, hold_back
from .._tokens.token import is_cancellation
from .._util.arguments import function, index_range, instance, shown, whole_number
from .._util.errors import BatchFailedError, StreamFailedError
from .._util.exceptions import text_of
from .._util.index_set import IndexSet
from .._util.log import at_error, get_logger
from .._util.text import one_line
from .._util.uninterrupted import uninterrupted
from .loop import LoopCursor
from .loop_bounds import begin_range, complete, estimated
from .source import Items, Source
from .stream import AnyStream, Stream, loop_cursor_of
from .stream_operations import validator_of

if TYPE_CHECKING:
    from ..outputs._validate import Validate

log = get_logger(__name__)

T = TypeVar("T")

ORDERED = "a state or cursor needs batches in order: concurrency=1, or a Frontier"
MAX_CONCURRENCY = 10_000  # tasks; more would cost memory, and batches are not that small


@await_noted
@uninterrupted
async def run_batches(
    stream: AnyStream,
    items: Items[T] | None,
    handler: Callable[[Batch[T]], Awaitable[None]],
    *,
    concurrency: int = 1,
    retry: RetryTable | None = None,
    validate: Validate | None = None,
    key: Callable[[T], str] | None = None,
    start: int | None = None,
    end: int | None = None,
    expected: int | None = None,
) -> None:
    """Work on the batches that are left, several at once; each has a token of its own.

    Args:
        stream: The stream; the caller must be the task that opened it.
        items: The whole list, or a function that returns it, see `Stream.batches`; None: the
            items of the stream's `Frontier`.
        handler: Called with each batch; must settle it.  An exception fails the attempt.
        concurrency: How many batches run at the same time; ``trio-ckpt ctl`` can change it.
        retry: What to do with failed attempts; default: the stream's table.  Other batches run
            while one waits for its next attempt, unless batches have an order: with a cursor, or
            a state that is not a `Frontier`, no batch overtakes another.
        validate: What every JSON output must pass before its batch is confirmed; default: the
            validation of the stream, which also applies on resume.
        key: Names an item, to notice a list that changed; default: its canonical JSON.
        start: Only batches from this index on.
        end: Only batches up to this index, inclusive.
        expected: About how many batches there are in all, where `items` does not say.

    Raises:
        Exception: the exception of the handler, as the same object, when the retry table gives
            up; the other batches are cancelled and run again on resume.  Where several failed,
            one is raised, and all are logged.
        BatchFailedError: a batch was failed by `Batch.fail` or did not pass its checks, and the
            retry table gives up.
        StreamFailedError: the rule says `Then.FAIL_STREAM`.
        TokenNeverSettledError: the handler returned without settling its batch.
        ValueError: `concurrency` > 1 with a state or a cursor that has an order; no items
            and no frontier, or both; a range of a frontier, whose items have no order.

    Durability: when this returns all batches that were confirmed are durable.
    Cancellation: batches in flight are cancelled, completed ones are saved.
    """
    instance("stream", stream, Stream, "an open stream")
    loop_cursor = loop_cursor_of(stream)
    open_stream = loop_cursor.open_stream
    loop_cursor.check_owner()
    function("handler", handler)
    concurrency = whole_number("concurrency", concurrency, least=1, most=MAX_CONCURRENCY)
    start, end = index_range(start, end)
    estimate = estimated(expected, items)
    if retry is not None:
        instance("retry", retry, RetryTable, "a RetryTable")
    validator = validator_of(validate)
    if concurrency > 1 and _has_order(open_stream):
        raise ValueError(ORDERED)
    if (items is None) is (open_stream.frontier is None):
        raise ValueError("run_batches needs items, or a stream whose state is a Frontier")
    if items is None and (start is not None or end is not None):
        raise ValueError("start= and end= narrow a list; a Frontier has no order")
    await trio.lowlevel.checkpoint()
    await loop_cursor.settle_open(Exit.NEXT)
    if loop_cursor.code is not None:
        loop_cursor.code.note(open_stream, handler)
    source = None if items is None else await loop_cursor.open_source(items, key)
    stop = (
        source.stop
        if source is not None
        else open_stream.first_index + len(open_stream.frontier or ())
    )
    await begin_range(open_stream, stop, start, end, estimate)
    queue: WorkQueue[T] = WorkQueue(loop_cursor, source, start, end)
    policy = LoopPolicy(
        retry or open_stream.policy.retry,
        validator or open_stream.policy.validator,
        is_parallel=concurrency > 1,
    )
    with open_stream.run_loop(policy, queue):
        await _run_workers(queue, handler, concurrency)
        await queue.finish()


def _has_order(open_stream: OpenStream) -> bool:
    """Whether batches of a stream cannot run side by side: one that is open counts, too."""
    if open_stream.state_manager is not None or open_stream.stream_log.progress.cursor is not None:
        return True
    return any(staged_of(batch).cursor is not UNSET for batch in open_stream.open.values())


@uninterrupted
async def _run_workers(
    queue: WorkQueue[T], handler: Callable[[Batch[T]], Awaitable[None]], concurrency: int
) -> None:
    """Run the workers; failures leave unchanged, and a single one is not in a group.

    They do not pass through the nursery, which would regroup the groups that users raise.
    """
    failures: list[BaseException] = []
    try:
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            queue.hire = lambda: nursery.start_soon(_work, queue, handler, failures, scope)
            queue.set_concurrency(concurrency)
    except BaseException as error:
        if not failures or not is_cancellation(error):
            raise
    if failures:
        raise _one_of(failures, queue.loop_cursor.open_stream)


def _one_of(failures: list[BaseException], open_stream: OpenStream) -> BaseException:
    """The failure to raise for several workers, or a group of them.

    One save that fails many workers is one failure, and a stream fails once, however many of
    its batches report that.
    """
    distinct = list({id(error): error for error in failures}.values())
    if len(distinct) == 1:
        return distinct[0]
    verdicts = [raised_for(error, open_stream.verdicts) for error in distinct]
    if not all(isinstance(verdict, BatchFailedError | StreamFailedError) for verdict in verdicts):
        return BaseExceptionGroup("several workers of run_batches failed", distinct)
    for verdict in verdicts:
        log.error(
            "one of several failures: %s", one_line(text_of(verdict)), extra=at_error(verdict)
        )
    first = decisive(verdicts)
    return next(
        error for error, verdict in zip(distinct, verdicts, strict=True) if verdict is first
    )


async def _work(
    queue: WorkQueue[T],
    handler: Callable[[Batch[T]], Awaitable[None]],
    failures: list[BaseException],
    workers: trio.CancelScope,
) -> None:
    """Run batches until none is left; a failure is kept, and cancels the other workers."""
    task, of_caller = trio.lowlevel.current_task(), queue.loop_cursor.open_stream.stop.workers
    of_caller.add(task)
    try:
        while (batch := await queue.next()) is not None:
            passed: Passed | Again = Passed.GO_ON
            try:
                passed = await _work_on(queue.loop_cursor.gate, batch, handler)
            finally:
                queue.leave(batch, passed)
    except BaseException as error:
        if is_cancellation(error):
            raise
        failures.append(error)
        workers.cancel()
    finally:
        of_caller.discard(task)
        queue.workers -= 1


def _close_unbegun(working: object) -> None:
    """Close a coroutine that an interrupt kept from being awaited."""
    if inspect.iscoroutine(working) and inspect.getcoroutinestate(working) == CORO_CREATED:
        working.close()


async def _work_on(
    gate: Gate, batch: Batch[T], handler: Callable[[Batch[T]], Awaitable[None]]
) -> Passed | Again:
    raised: Exception | None = None
    working: object = None
    try:
        working = handler(batch)
        if not inspect.isawaitable(working):
            raise TypeError(f"handler must be an async function: it returned {shown(working)}")
        await working
    except BaseException as error:
        _close_unbegun(working)
        left_by = exit_of(error)
        is_attempt = left_by is Exit.ERROR and isinstance(error, Exception)
        if not is_attempt or batch.state not in (AttemptState.OPEN, AttemptState.FAILED):
            await gate.pass_gate(batch, left_by, error)
            raise
        raised = cast("Exception", error)
        batch.fail(raised)
    try:
        return await gate.pass_gate(batch, Exit.NEXT)
    except BatchFailedError as verdict:
        if raised is None or verdict.__cause__ is not raised:
            raise
        gate.open_stream.add_verdict(verdict)
    if (note := f"in {gate.open_stream.where(batch.index)}") not in getattr(
        raised, "__notes__", ()
    ):
        raised.add_note(note)
    raise raised


@uninterrupted
class WorkQueue(Generic[T]):
    """Hands out each batch that is left to one worker, and retries when they are due.

    Attributes:
        loop_cursor: The position of the owner of the stream.
        concurrency: How many workers there should be.
        workers: How many there are.
        hire: Starts one more.
    """

    def __init__(
        self, loop_cursor: LoopCursor, source: Source[T] | None, start: int | None, end: int | None
    ) -> None:
        self.loop_cursor = loop_cursor
        self.concurrency = self.workers = 0
        self.hire: Callable[[], None] = lambda: None
        self._open_stream = loop_cursor.open_stream
        self._source = source
        self._start = self._next = max(start or 0, loop_cursor.open_stream.first_index)
        self._end = end
        self._is_exhausted = False
        self._source_end: int | None = None  # the index at which the source was found to end
        self._working = 0  # workers that have a batch
        self._progress = loop_cursor.progress
        self._deferrals = loop_cursor.open_stream.deferrals
        self._taken = IndexSet()  # handed out, delayed or deferred: not to be handed out again
        self._delayed: list[tuple[float, int, T | None, bytes]] = []  # failed: to be tried again
        self._deferred: list[tuple[float, int, T | None, bytes]] = []  # not before they are due
        self._idle = trio.lowlevel.ParkingLot()  # workers that wait for work
        self._timer: trio.CancelScope | None = None  # of the idle worker that wakes when one is due
        if self._open_stream.frontier is not None:
            progress, first = self._open_stream.stream_log.progress, self._open_stream.first_index
            self._open_stream.frontier.make_ready(
                lambda position: progress.is_done(first + position)
            )

    async def next(self) -> Batch[T] | None:
        """The next batch to work on; None: nothing is left.

        Cancellation: a cancellation and a schedule point, unless nothing is left: what is done
            is done, also during a stop.
        """
        while self.workers <= self.concurrency:
            found = self._due()
            if found is None and not ((self._delayed or self._deferred) and self._is_ordered):
                found = self._fresh()
            if found is not None:
                if self._deferrals.waits_until is not None:
                    self._deferrals.end_waiting()
                self._working += 1  # else the other workers conclude that nothing is left
                self._pass_on()
                await trio.lowlevel.checkpoint()
                if await self.loop_cursor.wait_for_turn(found[0]):
                    batch: Batch[T] = self.loop_cursor.gate.hand_out(*found)
                    begin_attempt(batch.token)
                    return batch
                self._working -= 1
                continue
            if not self._delayed and not self._working:
                if await self.loop_cursor.wait_verified():
                    continue  # the verification may have re-queued batches
                if not self._deferred:
                    self._idle.unpark_all()  # each sees the same
                    return None
            with self._open_stream.stop.at_gate():
                await self._wait()
        self.wake()  # this worker leaves, because there are to be fewer: another one may go on
        return None

    @property
    def has_order(self) -> bool:
        """Whether its batches cannot run side by side."""
        return not self._open_stream.policy.is_parallel and _has_order(self._open_stream)

    def set_concurrency(self, count: int) -> None:
        """Change how many workers there are: more begin at once, others leave after their batch."""
        if count > 1 and not self._open_stream.policy.is_parallel:
            self._open_stream.change_policy(is_parallel=True)
        self.concurrency = count
        for _ in range(count - self.workers):
            self.workers += 1
            self.hire()
        self._idle.unpark_all()

    async def _wait(self) -> None:
        """Wait until there may be work; one of the workers wakes when a batch is due."""
        if self._deferred and not self._delayed and not self._working:
            self._deferrals.begin_waiting(self._deferred[0][0])
        due = min((heap[0][0] for heap in (self._delayed, self._deferred) if heap), default=None)
        if self._timer is not None or due is None:
            await self._idle.park()
            return
        with trio.move_on_at(due) as self._timer:
            try:
                await self._idle.park()
            finally:
                self._timer = None

    def _pass_on(self) -> None:
        """Wake another worker where there is more to do, or a batch that is due to wait for."""
        frontier = self._open_stream.frontier
        is_more = frontier is not None and frontier.is_ready
        if is_more or ((self._delayed or self._deferred) and self._timer is None):
            self.wake()

    def leave(self, batch: Batch[T], passed: Passed | Again) -> None:
        """Mark that a worker has left a batch, and queue its next attempt if there is one."""
        self._working -= 1
        if isinstance(passed, Again):
            due, heap = trio.current_time() + passed.after_s, self._delayed
            hold_back(batch.token, passed.after_s)
        elif self._progress.deferred and batch.index in self._progress.deferred:
            due, heap = self._deferrals.due_at(batch.index) or trio.current_time(), self._deferred
        else:
            return
        heapq.heappush(heap, (due, batch.index, given_of(batch), staged_of(batch).digest))
        if self._timer is not None:
            self._timer.deadline = min(self._timer.deadline, due)

    def reconsider(self, index: int) -> None:
        """Hand out a batch again that was re-queued, or do not: it was given up from outside."""
        for heap in (self._delayed, self._deferred):
            heap[:] = [entry for entry in heap if entry[1] != index]
            heapq.heapify(heap)
        if self._source is not None and index >= self._start:
            self._taken.discard(index)
            self._next = min(self._next, index)
            self._is_exhausted = False
        self.wake()

    def frontier_grew(self) -> None:
        """Let an idle worker take one of the new items."""
        self.wake()

    def wake(self) -> None:
        """Wake one idle worker, which wakes the next if there is more work."""
        self._idle.unpark()

    @property
    def _is_ordered(self) -> bool:
        """Whether a batch depends on the one before it, so that none may overtake another."""
        has_order = (
            self._open_stream.state_manager is not None
            or self._open_stream.stream_log.progress.has_order
        )
        return has_order and not self._open_stream.policy.is_parallel

    def _due(self) -> tuple[int, T | None, bytes] | None:
        for heap in (self._delayed, self._deferred):
            if heap and heap[0][0] <= trio.current_time():
                return heapq.heappop(heap)[1:]
        return None

    def _holds_back(self, index: int, item: T | None, digest: bytes) -> bool:
        """Whether a batch is deferred: then it waits here until it is due."""
        due = self._deferrals.due_at(index)
        if due is not None:
            heapq.heappush(self._deferred, (due, index, item, digest))
        return due is not None

    def _fresh(self) -> tuple[int, T | None, bytes] | None:
        if self._source is None:
            return self._fresh_of_frontier()
        while not self._is_exhausted:
            index = self._open_stream.stream_log.progress.first_left(self._next)
            if self._end is not None and index > self._end:
                self._is_exhausted = True
            elif index in self._taken:
                self._next = self._taken.first_missing(index)
            elif (found := self._source.get(index)) is None:
                self._is_exhausted, self._source_end = True, index
            else:
                self._taken.add(index)
                if not (self._progress.deferred and self._holds_back(index, *found)):
                    return index, *found
                if self._is_ordered:
                    break
        return None

    def _fresh_of_frontier(self) -> tuple[int, T | None, bytes] | None:
        frontier = self._open_stream.frontier
        while frontier is not None and (position := frontier.take()) is not None:
            index, item = self._open_stream.first_index + position, frontier.item(position)
            if not self._holds_back(index, item, b""):
                return index, item, b""
        return None

    async def finish(self) -> None:
        """Save that the stream is complete, if all batches are done."""
        if self._source is not None:
            await self.loop_cursor.complete_source(self._source, self._source_end)
        elif self._open_stream.frontier is not None:
            await complete(
                self._open_stream, self._open_stream.first_index + len(self._open_stream.frontier)
            )
