"""Runs, streams and batches for synchronous programs: those of trio, each with its methods."""

# What is held is in a private field, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

import trio

from .._commit.batch import AnyBatch, Batch
from .._commit.retry import RetryTable
from .._commit.snapshots import Snapshots
from .._commit.staged import AttemptState
from .._journal.observer import Observer
from .._journal.progress import FailedAttempt, Progress
from .._journal.record import CheckpointResult, ErrorInfo, Status
from .._runs.lag import Lag
from .._runs.loop import Batches
from .._runs.parallel import run_batches as run_batches_in_trio
from .._runs.phase import Phase
from .._runs.run import Run
from .._runs.session import ResumeReport
from .._runs.source import Items
from .._runs.stream import AnyStream, Stream
from .._tokens.coordinator import CheckpointCoordinator
from .._tokens.token import CheckpointToken
from .._util.arguments import function, instance
from .._util.nursery import open_service_nursery
from .._util.plain import Plain, StreamKey
from ..outputs import Validate
from ..sinks._sink import Sink
from ..state._retention import Retention
from ._loop import stoppable
from ._methods import Held, HeldField, Seen, Settable, passes, reads, waits
from ._program import Block

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
O = TypeVar("O")  # noqa: E741


def _itself(value: O) -> O:
    return value


class BlockingBatch(Held[Batch[T]], Generic[T]):
    """A `Batch` of a synchronous program: its attributes and methods, without ``await``.

    Any thread may call its methods.  A `Batch.waiting` block is one of the calling thread.
    """

    index = HeldField[int]()
    item: HeldField[T] = HeldField()
    attempt = HeldField[int]()
    token = HeldField[CheckpointToken[CheckpointResult]]()
    state = HeldField[AttemptState]()
    resumed_from = HeldField[str | None]()
    previous = HeldField[CheckpointResult | None]()

    complete = passes(AnyBatch.complete)
    unchanged = passes(AnyBatch.unchanged)
    fail = passes(AnyBatch.fail)
    skip = passes(AnyBatch.skip)
    defer = passes(AnyBatch.defer)
    withdraw = passes(AnyBatch.withdraw)
    spend = passes(AnyBatch.spend)
    add = passes(AnyBatch.add)
    append_json = passes(AnyBatch.append_json)
    append_bytes = passes(AnyBatch.append_bytes)
    notes = Seen[Mapping[str, Plain]]()
    note = waits(AnyBatch.note)
    reserve = waits(AnyBatch.reserve)
    confirm = waits(AnyBatch.confirm)
    write_bytes = waits(AnyBatch.write_bytes)
    write_text = waits(AnyBatch.write_text)
    write_json = waits(AnyBatch.write_json)

    def waiting(self) -> AbstractContextManager[None]:
        """Open a block for a wait that a stop need not wait for; see `Batch.waiting`."""
        return Block(self._program, self._waiting, _itself)

    @asynccontextmanager
    async def _waiting(self) -> AsyncGenerator[None]:
        async with stoppable(self._program.opened), self._held.waiting():
            yield


class BlockingBatches(Held[Batches[T]], Generic[T]):
    """The loop of ``for batch in stream.batches(...)``; it holds nothing open."""

    def __iter__(self) -> BlockingBatches[T]:
        return self

    def __next__(self) -> BlockingBatch[T]:
        """Pass the gate for the open batch, and hand out the next one."""
        try:
            batch = self._program.call(self._held.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None
        return BlockingBatch(self._program, batch)


class BlockingSnapshots(Held[Snapshots]):
    """The `Snapshots` of a synchronous program: their attributes and methods, without ``await``."""

    every_s = HeldField[float]()
    saved = HeldField[int]()
    skipped = HeldField[int]()
    problem = HeldField[str]()
    overhead_s = HeldField[float]()
    metadata = HeldField[dict[str, Any]]()

    point = waits(Snapshots.point)
    wait = waits(Snapshots.wait)


class BlockingStream(Held[Stream[S]], Generic[S]):
    """A `Stream` of a synchronous program: its attributes and methods, without ``await``.

    It belongs to the thread that has opened it.
    """

    key = HeldField[StreamKey]()
    first_index = HeldField[int]()
    state: Settable[S] = Settable()
    expected_batches = Settable[int | None]()
    progress = Seen[Progress]()
    status = Seen[Status]()
    error = Seen[ErrorInfo | None]()
    cursor = Seen[Plain]()
    metadata = Seen[Mapping[str, Plain]]()
    resume_index = Seen[int]()

    statistics = reads(AnyStream.statistics)
    remaining = reads(AnyStream.remaining)
    finish = waits(AnyStream.finish)
    save = waits(AnyStream.save)
    pin = waits(AnyStream.pin)
    unpin = waits(AnyStream.unpin)
    fail = waits(AnyStream.fail)
    redo = waits(AnyStream.redo)
    reopen = waits(AnyStream.reopen)
    rescan = waits(AnyStream.rescan)

    @overload
    def batches(
        self,
        items: None = None,
        *,
        start: int | None = None,
        end: int | None = None,
        expected: int | None = None,
    ) -> BlockingBatches[None]: ...

    @overload
    def batches(
        self,
        items: Items[T],
        *,
        key: Callable[[T], str] | None = None,
        start: int | None = None,
        end: int | None = None,
        expected: int | None = None,
    ) -> BlockingBatches[T]: ...

    def batches(
        self, items: Items[Any] | None = None, **options: Any
    ) -> BlockingBatches[Any] | BlockingBatches[None]:
        """Loop over the batches that are left: ``for batch in stream.batches(...)``.

        The loop hands out a batch when the one before it is durable; see `Stream.batches`.
        """
        return BlockingBatches(self._program, self._held.batches(items, **options))

    def open_batch(self) -> AbstractContextManager[BlockingBatch[None]]:
        """Open the first batch that is left for a block; see `Stream.open_batch`."""
        wrap: Callable[[Batch[None]], BlockingBatch[None]] = partial(BlockingBatch, self._program)
        return Block(self._program, self._held.open_batch, wrap)

    def snapshots(self, *, every_s: float = 10.0) -> AbstractContextManager[BlockingSnapshots]:
        """Save the state inside a batch whose body is long; see `Stream.snapshots`."""
        make = partial(self._held.snapshots, every_s=every_s)
        return Block(self._program, make, partial(BlockingSnapshots, self._program))

    def skipped(self) -> Generator[tuple[int, Plain, FailedAttempt]]:
        """Read the skipped batches, newest first; see `Stream.skipped`."""
        found = self._held.skipped()
        try:
            while True:
                yield self._program.call(found.__anext__)
        except StopAsyncIteration:
            return
        finally:
            with suppress(trio.ClosedResourceError):  # the run ended before the reader did
                self._program.call(found.aclose)


AnyBlockingStream = BlockingStream[Any]


class BlockingRun(Held[Run]):
    """A `Run` of a synchronous program: its attributes and methods, without ``await``.

    Any thread may call its methods; a stream belongs to the thread that opens it.
    """

    run_id = HeldField[str]()
    found = HeldField[ResumeReport]()
    coordinator = HeldField[CheckpointCoordinator]()
    is_stopping = HeldField[bool]()
    exit_code = Seen[int]()
    current_phase = Seen[str | None]()
    phases = Seen[dict[str, Status]]()
    open_streams = Seen[frozenset[StreamKey]]()

    request_stop = passes(Run.request_stop)
    streams_to_process = reads(Run.streams_to_process)
    group = reads(Run.group)
    groups = reads(Run.groups)
    statistics = reads(Run.statistics)
    view = reads(Run.view)
    add_streams = waits(Run.add_streams)
    rewind = waits(Run.rewind)

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: None = None,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
        validate: Validate | None = None,
        output_dir: str | None = None,
        retry_failed: bool | None = None,
        retention: Retention | None = None,
        recover: bool = False,
        sink: Sink | None = None,
        lag: Lag | None = None,
    ) -> AbstractContextManager[BlockingStream[None]]: ...

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: S,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
        validate: Validate | None = None,
        output_dir: str | None = None,
        retry_failed: bool | None = None,
        retention: Retention | None = None,
        recover: bool = False,
        sink: Sink | None = None,
        lag: Lag | None = None,
    ) -> AbstractContextManager[BlockingStream[S]]: ...

    def open_stream(
        self, *parts: str, **options: Any
    ) -> AbstractContextManager[BlockingStream[Any]]:
        """Own a stream for a block of this thread; see `Run.open_stream`."""
        make = partial(self._held.open_stream, *parts, **options)
        wrap: Callable[[Stream[Any]], AnyBlockingStream] = partial(BlockingStream, self._program)
        return Block(self._program, make, wrap)

    def phase(self, name: str) -> AbstractContextManager[Phase]:
        """Open a phase, which is done once; see `Run.phase`."""
        return Block(self._program, partial(self._held.phase, name), _itself)

    def wait_confirmed(self, stream: AnyBlockingStream | StreamKey, indexes: Iterable[int]) -> None:
        """Wait until batches are durable, also ones not begun yet; see `Run.wait_confirmed`."""
        held = stream._held if isinstance(stream, BlockingStream) else stream
        self._program.call(self._held.wait_confirmed, held, indexes)

    def observing(self, observer: Observer) -> AbstractContextManager[None]:
        """Call an observer, in trio's thread, with what the run does while the block runs."""
        return Block(self._program, lambda: _entered(self._held.observing(observer)), _itself)

    def beside(
        self, func: Callable[Concatenate[Run, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractContextManager[None]:
        """Run an async function of trio while the block runs: ``with run.beside(show_progress):``.

        Args:
            func: The function, such as `trio_ckpt.progress.show_progress` or
                `trio_ckpt.monitor.serve`.  It is called with the `Run` of trio, and cancelled
                when the block ends.  Its failure cancels the block, and leaves it.
            args: Its other arguments.
            kwargs: Its other named arguments.
        """
        function("func", func)
        work = partial(func, self._held, *args, **kwargs)
        return Block(self._program, partial(_running, work), _itself)


def run_batches(
    stream: AnyBlockingStream,
    items: Items[T] | None,
    handler: Callable[[BlockingBatch[T]], None],
    *,
    concurrency: int = 1,
    retry: RetryTable | None = None,
    validate: Validate | None = None,
    key: Callable[[T], str] | None = None,
    start: int | None = None,
    end: int | None = None,
    expected: int | None = None,
) -> None:
    """Work on the batches that are left, each in a thread; see `trio_ckpt.run_batches`.

    Args:
        stream: The stream; the caller must be the thread that opened it.
        items: The whole list, or a function that returns it; None: those of a `Frontier`.
        handler: Called with each batch in a thread of its own; must settle it.
        concurrency: How many batches, and threads, run at the same time.
        retry: What to do with failed attempts; default: the stream's table.
        validate: What every JSON output must pass; default: the validation of the stream.
        key: Names an item, to notice a list that changed; default: its canonical JSON.
        start: Only batches from this index on.
        end: Only batches up to this index, inclusive.
        expected: About how many batches there are in all, where `items` does not say.

    Raises:
        Exception: as of `trio_ckpt.run_batches`.  The other handlers are cancelled when one
            fails: their next calls raise `trio.Cancelled`, and they are waited for.

    Durability: when this returns all batches that were confirmed are durable.
    """
    instance("stream", stream, BlockingStream, "an open stream of trio_ckpt.blocking")
    function("handler", handler)
    program = stream._program

    @wraps(handler)  # the run notes whose code it is
    async def in_thread(batch: Batch[T]) -> None:
        await program.run_in_thread(handler, BlockingBatch(program, batch))

    program.call(
        run_batches_in_trio,
        stream._held,
        items,
        in_thread,
        concurrency=concurrency,
        retry=retry,
        validate=validate,
        key=key,
        start=start,
        end=end,
        expected=expected,
    )


@asynccontextmanager
async def _entered(block: AbstractContextManager[None]) -> AsyncGenerator[None]:
    with block:
        yield


@asynccontextmanager
async def _running(work: Callable[[], Any]) -> AsyncGenerator[None]:
    async with open_service_nursery() as nursery:
        nursery.start_soon(work)
        yield
