"""A stream: an ordered sequence of batches, owned by one trio task."""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

import trio

from ._batch import UNSET, Batch
from ._errors import (
    BatchFailedError,
    RunStoppedError,
    StreamBusyError,
    StreamEndedError,
    StreamFailedError,
    TrioCkptError,
    describe_batch,
)
from ._gate import Desk, Passed, Way
from ._lane import Added
from ._progress import FailedAttempt, Progress
from ._records import ErrorInfo, Kind, Record, Status, describe_error
from ._redo import Redo
from ._rescan import adopt_outputs as adopt_found, find_outputs
from ._retry import Again
from ._source import Source
from ._staging import AnyPath
from ._statistics import StreamStatistics, eta_s, rate_per_s, resume_line
from ._totals import shown
from ._values import StreamKey, check_plain

log = logging.getLogger("trio_ckpt.stream")

S = TypeVar("S")
T = TypeVar("T")

Items = Sequence[T] | Callable[[], Iterable[T]]


class Stream(Generic[S]):
    """One ordered sequence of batches; made by ``run.open_stream``, used by that task.

    Attributes:
        key: The parts of its key.
        first_index: The index of its first batch.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        known: Mapping[int, bytes],
        redo: Redo,
        wait_verified: Callable[[], Awaitable[bool]],
    ) -> None:
        self.key: StreamKey = desk.lane.key
        self.first_index = desk.first_index
        self._desk = desk
        self._known = known
        self._redo = redo
        self.wait_verified = wait_verified
        self._task = trio.lowlevel.current_task()
        self._loop: Batches[Any] | None = None
        self._batch: Batch[Any] | None = None
        self._opened = trio.current_time()
        self._runtime_before = desk.lane.progress.runtime_s - desk.lane.open_s
        self._is_closed = False
        self._failure: ErrorInfo | None = None

    # -- reading --------------------------------------------------------------------------

    @property
    def expected_batches(self) -> int | None:
        """How many batches there will be in all, where that is known."""
        return self._desk.expected

    @property
    def progress(self) -> Progress:
        """What is durable.  For reading."""
        return self._desk.lane.progress

    @property
    def status(self) -> Status:
        """Where the stream stands."""
        status = self.progress.status
        if status in (Status.COMPLETE, Status.FAILED) or self._is_closed:
            return status
        return Status.IN_PROGRESS

    @property
    def error(self) -> ErrorInfo | None:
        """Why it failed, if it did."""
        return self.progress.error

    @property
    def cursor(self) -> Any:
        """Where the loop goes on, as the last confirmed checkpoint said; None before that."""
        return self.progress.cursor

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What `finish` was given."""
        return self.progress.metadata

    @property
    def state(self) -> S:
        """What the loop needs to go on; restored on resume, saved with every batch."""
        desk = self._desk
        return cast("S", desk.frontier if desk.frontier is not None else desk.state)

    @state.setter
    def state(self, value: S) -> None:
        if self._desk.codec is None:
            raise TypeError("open the stream with state=... to have a state that can be set")
        self._desk.state = value

    def skipped(self) -> Iterator[tuple[int, Any, FailedAttempt]]:
        """The batches given up: index, item (of a frontier; else None), and what went wrong."""
        frontier = self._desk.frontier
        for index in self.progress.skipped:
            item = frontier.item(index - self.first_index) if frontier is not None else None
            yield index, item, self.progress.failures[index]

    def statistics(self) -> StreamStatistics:
        """Counts, sums, rate and ETA, at this moment."""
        desk, lane, progress = self._desk, self._desk.lane, self.progress
        open_s = 0.0 if self._is_closed else trio.current_time() - self._opened
        session_s = lane.open_s + open_s
        left = desk.left()
        rate = rate_per_s(lane.confirmed, session_s)
        session = Added.by_session([lane])
        return StreamStatistics(
            confirmed=len(progress.confirmed),
            skipped=len(progress.skipped),
            left=left,
            in_flight=len(desk.open),
            waiting=len(desk.tokens) - len(desk.open),
            pause=desk.waiting(),
            records=progress.records,
            totals=shown(progress.totals),
            spent=shown(progress.spent),
            saved=shown(progress.spent_confirmed),
            adopted=len(progress.adopted),
            session_confirmed=lane.confirmed,
            session_skipped=lane.skipped,
            session_retries=lane.retries,
            session_records=session.records,
            session_totals=shown(session.totals),
            session_spent=shown(session.spent),
            runtime_s=self._runtime_before + session_s,
            session_s=session_s,
            rate_per_s=rate,
            eta_s=eta_s(left, rate),
        )

    def remaining(
        self, *, total: int | None = None, start: int | None = None, end: int | None = None
    ) -> list[int]:
        """The batches that are left, ascending.  It only reports: a loop finds them itself.

        Args:
            total: How many batches there are in all, where nobody has said yet.
            start: Only from this index on.
            end: Only up to this index, inclusive.

        Raises:
            ValueError: nobody knows where the stream ends.
        """
        stop = self._stop(total, end)
        progress = self.progress
        first = max(self.first_index, start or 0)
        left = progress.confirmed.missing(first, stop)
        return [index for index in left if index not in progress.skipped]

    def _stop(self, total: int | None, end: int | None) -> int:
        """One more than the last batch."""
        progress = self.progress
        total = self._desk.expected if total is None else total
        total = progress.expected if total is None else total
        stops = [] if end is None else [end + 1]
        if total is not None:
            stops.append(self.first_index + total)
        elif progress.last_index is not None:
            stops.append(progress.last_index + 1)
        elif progress.status is Status.COMPLETE:
            stops.append(max(progress.confirmed.stop, progress.skipped.stop))
        if not stops:
            raise ValueError("nobody knows where the stream ends: give total= or end=")
        return min(stops)

    # -- loops ------------------------------------------------------------------------------

    def batches(
        self,
        items: Items[T] | None = None,
        *,
        key: Callable[[T], str] | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> Batches[T]:
        """Loop over the batches that are left: ``async for batch in stream.batches(...)``.

        The loop hands out a batch when the one before it is durable.

        Args:
            items: The whole list, or a function that returns it: item j is batch
                ``first_index + j``.  Without, the end is open: use ``last=True``,
                `Batch.withdraw` or `finish`.
            key: Names an item, to notice a list that changed; default: its canonical JSON.
            start: Only batches from this index on.
            end: Only batches up to this index, inclusive.
        """
        return Batches(self, items, key, start, end)

    @asynccontextmanager
    async def open_batch(self) -> AsyncGenerator[Batch[None]]:
        """Hold the first batch that is left for a block; for loops that are no ``for`` loops.

        The same gate as that of `batches`: when the block ends, the batch is durable.

        Raises:
            TokenNeverSettledError, BatchFailedError: as the gate says.
        """
        self.check_owner()
        self.check_failed()
        self._check_no_frontier()
        await trio.lowlevel.checkpoint()
        await self.settle_open(Way.NEXT)
        await self.wait_verified()
        await self._desk.wait_paused()
        await self._desk.stop.park()
        index = self.progress.first_left(self.first_index)
        if self._is_past_end(index):
            raise StreamEndedError(
                f"{describe_batch(self._desk.run_id, self.key, None)} is complete: there is no "
                f"batch {index}",
                run_id=self._desk.run_id,
                stream=self.key,
            )
        self._desk.is_open_ended = True
        batch: Batch[None] = self._desk.hand_out(index, None, b"")
        self._batch = batch  # so that finish(), save() and fail() pass the gate for it
        try:
            yield batch
        except BaseException as error:
            await self._desk.pass_gate(batch, way_of(error), error)
            raise
        finally:
            self._batch = None
        await self._desk.pass_gate(batch, Way.EXIT)
        await self._complete_if_last()

    async def advance(self, loop: Batches[T]) -> Batch[T]:
        """Pass the gate for the open batch, and hand out the next one to `loop`."""
        self.check_owner()
        self.check_failed()
        desk = self._desk
        if loop.source is None:  # its first step: it takes the place of an older loop
            await trio.lowlevel.checkpoint()
            await self.settle_open(Way.NEXT)
            loop.source = self.open_source(loop.items, loop.key)
            await self.begin_range(loop.source, loop.start, loop.end)
            self._loop = loop
        elif self._loop is not loop:
            raise StreamBusyError("a newer batches() has taken the place of this one")
        else:
            await self.settle_open(Way.NEXT)
        found = await self._find_next(loop, loop.source)
        if found is None:  # also during a stop: what is done is done
            raise StopAsyncIteration
        await desk.wait_paused()
        await desk.stop.park()
        await trio.lowlevel.checkpoint_if_cancelled()
        index, item, digest = found
        self._batch = desk.hand_out(index, item, digest)
        return self._batch

    async def _find_next(
        self, loop: Batches[T], source: Source[T]
    ) -> tuple[int, T | None, bytes] | None:
        start = max(loop.start or 0, self.first_index)
        while True:
            index = self.progress.first_left(start)
            is_beyond = loop.end is not None and index > loop.end
            if source.is_open_ended:
                is_beyond = is_beyond or self._is_past_end(index)
            found = None if is_beyond else source.get(index)
            if found is not None:
                return index, *found
            if not await self.wait_verified():
                break  # nothing came back to work meanwhile
        await self.complete_source(source, None if is_beyond else index)
        return None

    def _is_past_end(self, index: int) -> bool:
        """Whether the records say that an open end has come before a batch."""
        last = self.progress.last_index
        return self.progress.status is Status.COMPLETE if last is None else index > last

    async def settle_open(self, way: Way) -> Passed:
        """Pass the gate for the batch of the loop, and wait until it may run again if so."""
        batch, self._batch = self._batch, None
        if batch is None:
            return Passed.GO_ON
        passed = await self._desk.pass_gate(batch, way)
        if isinstance(passed, Again):
            await trio.sleep(passed.after_s)
            return Passed.GO_ON
        return passed

    def open_source(self, items: Items[T] | None, key: Callable[[T], str] | None) -> Source[T]:
        """The source of a loop, checked against what is confirmed."""
        if items is None:
            self._check_no_frontier()
        progress = self.progress
        source = Source(
            items,
            first_index=self.first_index,
            key=key,
            known=self._known,
            confirmed_stop=max(progress.confirmed.stop, progress.skipped.stop),
            where=(self._desk.run_id, self.key),
        )
        self._desk.is_open_ended = source.is_open_ended
        if source.stop is not None:
            self._desk.expected = source.stop - self.first_index
        return source

    async def begin_range(self, source: Source[Any], start: int | None, end: int | None) -> None:
        """Say what is passed over, and keep in the history which part is worked on.

        Durability: when this returns a range is saved.
        """
        progress = self.progress
        stop = source.stop if end is None or source.stop is None else min(end + 1, source.stop)
        if progress.sequence and (line := resume_line(progress, self.first_index, start, stop)):
            log.info("%s: %s", self._desk.where(), line)
        if start is not None or end is not None:
            note = {"range": [start, end]}
            await self._desk.save_plain(Record(kind=Kind.NOTE, at=time.time(), metadata=note))

    # -- the stream as a whole ----------------------------------------------------------------

    async def complete(self, stop: int) -> None:
        """Save that nothing is left below `stop`, if that is so and not saved yet."""
        progress = self.progress
        if progress.status is not Status.COMPLETE and progress.covers(self.first_index, stop):
            await self._desk.save_plain(Record(kind=Kind.FINISH, at=time.time()))

    async def complete_source(self, source: Source[Any], end: int | None) -> None:
        """Save that nothing is left of a source, if that is so.

        Args:
            source: The source.
            end: Where it was found to end; None: nobody has looked.
        """
        if source.is_open_ended:
            await self._complete_if_last()
        elif (stop := end if source.stop is None else source.stop) is not None:
            await self.complete(stop)

    async def _complete_if_last(self) -> None:
        if self.progress.last_index is not None:
            await self.complete(self.progress.last_index + 1)

    def _check_no_frontier(self) -> None:
        if self._desk.frontier is not None:
            raise TypeError("the items of a Frontier are worked on with run_batches")

    async def finish(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Say that the stream is complete; an open batch passes the gate first.

        Args:
            metadata: Anything JSON-like to be kept with the stream.

        Raises:
            RuntimeError: there are holes: batches before the last one that are left.

        Durability: when this returns it is saved.
        """
        self.check_owner()
        plain = dict(metadata or {})
        check_plain(plain, "metadata")
        await self.settle_open(Way.EXIT)
        stop = max(self.progress.confirmed.stop, self.progress.skipped.stop)
        if not self.progress.covers(self.first_index, stop):
            left = self.progress.first_left(self.first_index)
            raise RuntimeError(
                f"finish() with work left: batch {left} of {stop} is neither confirmed nor skipped"
            )
        last = stop - 1 if stop > 0 else None
        await self._desk.save_plain(
            Record(kind=Kind.FINISH, at=time.time(), metadata=plain, last_index=last)
        )

    async def save(self, *, cursor: Any = UNSET) -> None:
        """Save state and cursor between batches; an open batch passes the gate first.

        Durability: when this returns they are saved.
        """
        self.check_owner()
        desk = self._desk
        if cursor is not UNSET:
            desk.check_cursor()
            check_plain(cursor, "cursor")
        await self.settle_open(Way.EXIT)
        if desk.open:
            raise StreamBusyError(
                "save() is for between batches: settle the open one first",
                run_id=desk.run_id,
                stream=self.key,
            )
        state = desk.codec.encode(desk.state) if desk.codec is not None else b""
        await desk.save_plain(Record(kind=Kind.SAVE, at=time.time(), cursor=cursor, state=state))
        if desk.codec is not None:
            desk.state_bytes, desk.is_state_saved = state, True

    async def fail(self, error: BaseException | str, *, retryable: bool = True) -> None:
        """Record that the stream failed; its block raises `StreamFailedError` at the end.

        No batch is handed out any more.

        Args:
            error: Why.
            retryable: Whether a plain resume may take it up again.
        """
        self.check_owner()
        await self.settle_open(Way.EXIT)
        self._failure = describe_error(error, retryable=retryable)
        await self._save_failure(self._failure)

    async def _save_failure(self, info: ErrorInfo) -> None:
        await self._desk.save_plain(Record(kind=Kind.FAIL, at=time.time(), error=info))

    # -- back to work -------------------------------------------------------------------------

    async def redo(self, indexes: Iterable[int], *, reason: str) -> None:
        """Put confirmed or skipped batches back to work; an open batch passes the gate first.

        Their outputs are moved into the archive of the output folder.

        Args:
            indexes: Which.
            reason: Why; kept in the history.

        Raises:
            ValueError: one is neither confirmed nor skipped.
            CannotRedoError: later batches build on them; `Run.rewind` can help then.
            TypeError: the stream's state is a `Frontier`, which has let go of their items.

        Durability: when this returns it is saved.
        """
        self.check_owner()
        self._check_no_frontier()
        await self.settle_open(Way.EXIT)
        wanted = sorted(set(indexes))
        if wanted:
            await self._redo.redo(wanted, reason)
            for index in wanted:
                self._desk.put_back(index)

    async def rescan(
        self,
        path_of: Callable[[int], AnyPath],
        *,
        total: int | None = None,
        adopt_outputs: bool = False,
    ) -> list[int]:
        """Look for valid outputs of batches that are left: for a store that was lost.

        Args:
            path_of: Gives the path of a batch's output, below the folder of the stream.
            total: How many batches there are in all, where nobody has said yet.
            adopt_outputs: Confirm the batches by what was found; what they had produced is
                in no total then, see `Progress.adopted`.

        Returns:
            The batches whose outputs were found.

        Raises:
            ValueError: nobody knows where the stream ends.
            TypeError: later batches build on earlier ones, so a file alone confirms none.

        Durability: when this returns what was adopted is saved.
        """
        self.check_owner()
        desk = self._desk
        self._check_no_frontier()
        if desk.codec is not None or self.progress.is_ordered:
            raise TypeError(
                "rescan() is for streams whose batches stand alone: no state, no cursor"
            )
        await self.settle_open(Way.EXIT)
        found = await find_outputs(desk, self.remaining(total=total), path_of)
        log.info("%s: %d outputs were found that no record names", desk.where(), len(found))
        if adopt_outputs and found:
            await adopt_found(desk, found)
        else:
            for index in found:
                desk.files.release(index)
        return list(found)

    # -- ownership ------------------------------------------------------------------------------

    def check_owner(self) -> None:
        """Raise unless the caller is the task that opened the stream."""
        if self._is_closed or trio.lowlevel.current_task() is not self._task:
            where = describe_batch(self._desk.run_id, self.key, None)
            raise StreamBusyError(
                f"{where} is used outside its block or by another task than the one that opened it",
                run_id=self._desk.run_id,
                stream=self.key,
            )

    def check_failed(self) -> None:
        """Raise StreamFailedError after `fail`."""
        if self._failure is not None:
            raise StreamFailedError(
                self._failure.message,
                run_id=self._desk.run_id,
                stream=self.key,
                retryable=self._failure.retryable,
            )

    @property
    def desk(self) -> Desk:
        """What the gate works on; for the library's own loops."""
        return self._desk

    async def leave(self, error: BaseException | None) -> None:
        """Pass the gate for what is open, record a failure, leave no token pending."""
        desk, batch = self._desk, self._batch
        self._batch = None
        index = batch.index if batch is not None and batch.index in desk.open else None
        try:
            if batch is not None:
                await desk.pass_gate(batch, Way.EXIT if error is None else way_of(error), error)
            if self._failure is not None and self.progress.status is not Status.FAILED:
                await self._save_failure(self._failure)  # a later record had opened it again
            elif error is None and self._failure is None:
                await self._complete_if_last()
        except BaseException as problem:
            await self._record_exit(problem, index)
            raise
        else:
            await self._record_exit(error, index)
        finally:
            self._is_closed = True
            desk.lane.open_s += trio.current_time() - self._opened
            desk.close()
            desk.coordinator.registry.touch()

    async def _record_exit(self, error: BaseException | None, index: int | None) -> None:
        desk = self._desk
        where = describe_batch(desk.run_id, self.key, None)
        if error is None or way_of(error) is Way.CANCEL:
            if self.status is Status.IN_PROGRESS:
                log.info("%s was left before its end: INTERRUPTED", where)
        elif desk.saver.poison is None and self._failure is None:
            info = describe_error(error, batch_index=index)
            if isinstance(error, BatchFailedError | StreamFailedError) and error.stream == self.key:
                info = describe_error(  # what it failed with says more than that it failed
                    error.__cause__ or error.reason,
                    retryable=error.retryable,
                    batch_index=error.batch_index,
                )
            elif isinstance(error, TrioCkptError) and error.stream == self.key:
                info = describe_error(error, batch_index=error.batch_index)
            with trio.CancelScope(shield=True):
                try:
                    await self._save_failure(info)
                except Exception as problem:
                    log.error("%s failed, and saving that failed: %s", where, problem)


class Batches(Generic[T]):
    """The loop of ``async for batch in stream.batches(...)``; it holds no scope open."""

    def __init__(
        self,
        stream: Stream[Any],
        items: Items[T] | None,
        key: Callable[[T], str] | None,
        start: int | None,
        end: int | None,
    ) -> None:
        self._stream = stream
        self.items = items
        self.key = key
        self.start = start
        self.end = end
        self.source: Source[T] | None = None

    def __aiter__(self) -> Batches[T]:
        return self

    async def __anext__(self) -> Batch[T]:
        return await self._stream.advance(self)


def way_of(error: BaseException) -> Way:
    """Whether an exception leaves that is the batch's own, or one that ends it from outside.

    Outside are cancellation, a stop of the run, and what Python ends a program with.
    """
    outside = (trio.Cancelled, RunStoppedError, KeyboardInterrupt, SystemExit, GeneratorExit)
    if isinstance(error, BaseExceptionGroup):
        parts = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return Way.ERROR if Way.ERROR in map(way_of, parts) else Way.CANCEL
    return Way.CANCEL if isinstance(error, outside) else Way.ERROR
