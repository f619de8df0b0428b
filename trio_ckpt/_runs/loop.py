"""Where batches come from, the position of the owner in a stream, and the loop that goes on there.

A source is an open end, a list, or a function that makes the list.  It is always the whole list,
on every start; confirmed batches are passed over.  This ensures that a source whose confirmed
items have changed is noticed.  A loop works on a copy of the list, made when it begins, and
refuses to go on when the length or the items of the list change after that.

A stream has one loop at a time.  Each of its steps passes the gate for the batch before
it, and hands out the first one that is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

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
from .._util.arguments import function, shown
from .._util.errors import NotEncodableError, StreamBusyError, StreamFailedError
from .._util.plain import (
    ITEM_DIGEST_BYTES,
    as_plain,
    call_key,
    canonical_json,
    item_digest,
    kind_of,
)
from .._util.uninterrupted import uninterrupted
from .code import CodeWatch, note_code
from .loop_bounds import (
    ITEMS_PER_STEP,
    begin_range,
    check_end,
    check_source,
    complete,
    complete_if_last,
    park_if_taken_back,
)
from .surroundings import Surroundings

T = TypeVar("T")

Items = Sequence[T] | Callable[[], Iterable[T]]

_CONTAINERS = (list, tuple, dict)
_NOT_NOTED = bytes(ITEM_DIGEST_BYTES)


# -- where batches come from ---------------------------------------------------------------------


def default_key(item: Any) -> str:
    """The default key, by which the next start recognizes an item: its canonical JSON.

    Raises:
        NotEncodableError: it is not JSON-like and needs ``key=``.
    """
    if type(item) is int:
        return str(item)
    try:
        return canonical_json(as_plain(item, "item"))
    except NotEncodableError as error:
        raise NotEncodableError(error.path, f"{error.problem}; give key=") from error


def _is_sequence(items: object) -> bool:
    return isinstance(items, Sequence) and not isinstance(items, str | bytes | bytearray)


class Source(Generic[T]):
    """The items of a stream by batch index.

    Args:
        items: None (an open end), a sequence, or a function that returns the items.
        first_index: The index of the first item's batch.
        key: Gives the key of an item; see `default_key`.

    Attributes:
        is_open_ended: Only the loop can know where it ends.

    Raises:
        TypeError: `items` is something else, for example a generator, which cannot be read
            again, or a str, whose items would be its letters.
    """

    def __init__(
        self,
        items: Items[T] | None,
        *,
        first_index: int,
        key: Callable[[T], str] | None = None,
    ) -> None:
        if items is not None and not _is_sequence(items) and not callable(items):
            raise TypeError(
                f"items must be a list, or a function that returns one, not {shown(items)}: they "
                "are read again on every start"
            )
        if key is not None:
            function("key", key)
        self.is_open_ended = items is None
        self._given = cast("list[T]", items) if kind_of(items) is list else None
        self._list: Sequence[T] | None = None
        self._make: Callable[[], Iterable[T]] | None = None
        if isinstance(items, Sequence):
            self._list = items if self._given is None else tuple(self._given)
        elif items is not None:
            self._make = items
        self._first = first_index
        self._key = key
        self._noted = bytearray()  # a digest for each item that could change, else zeros
        self._made: Iterator[T] | None = None
        self._position = -1  # of `_current` among the items that `_made` has given
        self._current: T | None = None

    async def note_items(self) -> None:
        """Check the items of a list, so that a bad one is refused before any work.

        Raises:
            NotEncodableError: an item has no key; the error names its place.

        Cancellation: a cancellation and a schedule point for every `ITEMS_PER_STEP` items.
        """
        items: Any = self._list
        if self._key is not None or kind_of(items) is not tuple:
            return
        for position, item in enumerate(items):
            if position % ITEMS_PER_STEP == ITEMS_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
            kind = kind_of(item)
            if kind is int or (kind is str and item.isascii()):
                continue  # the usual case: these have a key, and cannot change
            digest = item_digest(self._key_of(self._first + position, item))
            if isinstance(item, _CONTAINERS):
                self._noted += bytes(position * ITEM_DIGEST_BYTES - len(self._noted)) + digest

    @property
    def stop(self) -> int | None:
        """One more than the last batch; None: it is not known without reading on."""
        return None if self._list is None else self._first + len(self._list)

    def get(self, index: int) -> tuple[T | None, bytes] | None:
        """The item of a batch and the digest of its key; None: there is no such batch.

        Raises:
            RuntimeError: the list was changed since the loop began.
        """
        position = index - self._first
        if self._list is not None:
            count = len(self._list)
            if self._given is not None and len(self._given) != count:
                raise _length_error(count, len(self._given))
            if not 0 <= position < count:
                return None
            item = self._list[position]
            digest = item_digest(self._key_of(index, item))
            if self._noted:
                self._check_unchanged(index, digest)
            return item, digest
        if self._make is not None:
            return self._read_to(position, self._make) if position >= 0 else None
        return None, b""

    def _check_unchanged(self, index: int, digest: bytes) -> None:
        """Raise RuntimeError if an item of a list has changed, as its digest says."""
        at = (index - self._first) * ITEM_DIGEST_BYTES
        noted = self._noted[at : at + ITEM_DIGEST_BYTES]
        if noted and bytes(noted) not in (digest, _NOT_NOTED):
            raise RuntimeError(
                f"the item of batch {index} was changed since the loop began, so the next start "
                "could not recognize it; change batch.item instead, which is a copy"
            )

    def _read_to(
        self, position: int, make: Callable[[], Iterable[T]]
    ) -> tuple[T | None, bytes] | None:
        if self._made is None or position < self._position:
            made: Any = make()
            if isinstance(made, str | bytes | bytearray) or not isinstance(made, Iterable):
                raise TypeError(f"items must return a list of items, not {shown(made)}")
            self._made, self._position = iter(cast("Iterable[T]", made)), -1
        while self._position < position:
            try:
                self._current = next(self._made)
            except StopIteration:
                return None
            except BaseException:
                self._made = None  # a generator that has raised looks exhausted afterwards
                raise
            self._position += 1
        current = cast("T", self._current)
        return current, item_digest(self._key_of(self._first + position, current))

    def _key_of(self, index: int, item: T) -> str:
        """The key by which the next start recognizes an item.

        Raises:
            NotEncodableError: the item has no default key; the error names its batch.
            TypeError: the given function does not return a str.
        """
        if self._key is not None:
            return call_key(self._key, item, f"batch {index}")
        try:
            return default_key(item)
        except NotEncodableError as error:
            place = f"the item of batch {index}{error.path.removeprefix('item')}"
            raise NotEncodableError(place, error.problem) from error

    def name_of(self, index: int) -> str:
        """The key of the item that the source gives for a batch now, or "nothing"."""
        found = self.get(index)
        return "nothing" if found is None else self._key_of(index, cast("T", found[0]))


def _length_error(count: int, now: int) -> RuntimeError:
    return RuntimeError(
        f"the list of items had {count:,} when the loop began, and has {now:,} now: a loop works "
        "on the list that it was given; put work that is found on the way into a Frontier"
    )


# -- the loop ------------------------------------------------------------------------------------


@uninterrupted
@attrs.define(eq=False)
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

    async def wait_for_turn(self, index: int) -> bool:
        """Wait until a batch may begin, and restore its state; False: it was given up since.

        It waits while the stream or the run pauses, and for ever while a stop is under way.

        Args:
            index: The batch.

        Cancellation: the only way out of a stop.
        """
        open_stream = self.open_stream  # hot path: nothing is awaited without need
        if open_stream.pause is not None or open_stream.stop.is_holding:
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
            if loop_cursor.progress.deferred:
                index = await loop_cursor.first_free(self._first, source)
            is_beyond = self._end is not None and index > self._end
            if source.is_open_ended:
                is_beyond = is_beyond or loop_cursor.is_past_end(index)
            found = None if is_beyond else source.get(index)
            if found is not None:
                if await loop_cursor.wait_for_turn(index):
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
        note_code(loop_cursor.code, loop_cursor.open_stream, None)
        source = self._source = await loop_cursor.open_source(self._items, self._key)
        loop_cursor.is_cut = source.is_open_ended and self._end is not None
        await begin_range(
            loop_cursor.open_stream, source.stop, self._start, self._end, self._estimate
        )
        loop_cursor.loop = self
        return source
