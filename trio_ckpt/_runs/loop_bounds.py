"""Where a loop begins and ends: whether its source is still that of the records, and what is left.

Theory of operation
===================

Each record has a digest of its item, and progress has the sum of them, each bound to
its batch (`trio_ckpt._journal.item_marks.item_mark`).  A source whose items give that sum is
unchanged, so most starts read no record for the check: they hash the items that they pass
over.  Where the sums differ the records say at which batch the source changed, or that it
did not: a batch of an open end had no item.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import aclosing
from typing import Protocol

import trio

from .._commit.open_stream import OpenStream
from .._journal.history import DONE_KINDS, LiveRecords, ReadPages, live_records
from .._journal.item_marks import add_marks, item_mark
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind
from .._journal.statistics import resume_line
from .._util.arguments import shown, whole_number
from .._util.errors import SourceChangedError
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.plain import ITEM_DIGEST_BYTES, StreamKey

log = get_logger(__name__)

ITEMS_PER_STEP = 1_000  # other tasks run in between: a million items take seconds

_SHORTER = "nothing: it is shorter now"


class ReadSource(Protocol):
    """What a comparison needs of a source; see `trio_ckpt._runs.source.Source`."""

    is_open_ended: bool

    def get(self, index: int) -> tuple[object, bytes] | None: ...

    def name_of(self, index: int) -> str: ...


async def check_source(
    source: ReadSource, progress: Progress, read: ReadPages, where: tuple[str, StreamKey]
) -> None:
    """Compare a source with what is done.

    Args:
        source: The source; an open end has no items that could change.
        progress: The progress of the stream.
        read: Reads its records, newest first.
        where: The run and the stream, for errors.

    Raises:
        SourceChangedError: the item of a batch that is done has changed, or is gone.
        StoreError: the records are needed, and cannot be read.

    Cancellation: a cancellation and a schedule point for every `ITEMS_PER_STEP` items.
    """
    if source.is_open_ended or not progress.done:
        return
    wanted = progress.items  # read now: a verification beside this may change it
    last = progress.done.stop - 1
    compared = progress.done.copy()
    compared.subtract(progress.adopted)  # their records have no digest of an item
    digests = await _read(source, compared)
    if digests is None or source.get(last) is None:
        was = await _item_of(last, progress, read)
        raise _changed(last, was, _SHORTER, where)
    if digests.marks == wanted:
        return
    live = LiveRecords(progress)
    async with aclosing(read()) as pages:
        async for records in pages:
            entries = live.of(records, DONE_KINDS)
            items = [e for e in entries if e.record.item]  # a batch of an open end has none
            changed = [e for e in items if e.record.item != digests.of(e.index)]
            if changed:
                first = min(changed, key=lambda entry: entry.index)
                now = f"{source.name_of(first.index)} ({digests.of(first.index).hex()})"
                raise _changed(first.index, first.record.item, now, where)


class _Digests:
    """The digests of a source's items at some batches, 8 bytes each, and their sum."""

    def __init__(self) -> None:
        self.marks = 0
        self._starts: list[int] = []
        self._offsets: list[int] = []
        self._joined = bytearray()

    def begin(self, index: int) -> None:
        """Start an interval: the next items are those from this batch on."""
        self._starts.append(index)
        self._offsets.append(len(self._joined))

    def add(self, index: int, digest: bytes) -> None:
        self.marks = add_marks(self.marks, item_mark(index, digest))
        self._joined += digest

    def of(self, index: int) -> bytes:
        at = bisect_right(self._starts, index) - 1
        begin = self._offsets[at] + (index - self._starts[at]) * ITEM_DIGEST_BYTES
        return bytes(self._joined[begin : begin + ITEM_DIGEST_BYTES])


async def _read(source: ReadSource, indexes: IndexSet) -> _Digests | None:
    """The digests of the items of some batches; None: the source ends before the last."""
    digests, count = _Digests(), 0
    for start, stop in indexes.intervals():
        digests.begin(start)
        for index in range(start, stop):
            found = source.get(index)
            if found is None:
                return None
            digests.add(index, found[1])
            count += 1
            if count % ITEMS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
    return digests


async def _item_of(index: int, progress: Progress, read: ReadPages) -> bytes:
    """The digest of its item in the record of a batch; empty: there is none."""
    async with aclosing(live_records(progress, read)) as entries:
        async for entry in entries:
            if entry.index == index:
                return entry.record.item
    return b""


def _changed(index: int, was: bytes, now: str, where: tuple[str, StreamKey]) -> SourceChangedError:
    run_id, stream = where
    return SourceChangedError(
        was.hex() or "without a digest", now, run_id=run_id, stream=stream, batch_index=index
    )


# -- the part of a loop, and the end of a stream -------------------------------------------------


def known_stop(open_stream: OpenStream) -> int | None:
    """One more than the last batch; None where that is not known."""
    total = open_stream.extent.total
    return None if total is None else open_stream.first_index + total


def check_end(open_stream: OpenStream, stop: int) -> None:
    """Raise SourceChangedError if a source ends before batches that are known to be left.

    Args:
        open_stream: The stream.
        stop: One more than the last batch of the source.
    """
    known = known_stop(open_stream)
    if known is None or stop >= known or open_stream.stream_log.progress.covers(stop, known):
        return
    count = known - open_stream.first_index
    raise SourceChangedError(
        f"{count:,}",
        "nothing: it is shorter now",
        run_id=open_stream.run_id,
        stream=open_stream.stream_log.key,
        batch_index=open_stream.stream_log.progress.first_left(stop),
        is_done=False,
    )


def check_finished(open_stream: OpenStream, source: ReadSource | None, *, is_cut: bool) -> None:
    """Raise RuntimeError if work is known to be left.

    Args:
        open_stream: The stream.
        source: The source of its newest loop; None: it had none.
        is_cut: Whether that loop has an open end and was narrowed by ``end=``.
    """
    first = open_stream.first_index
    left, known = open_stream.stream_log.progress.first_left(first), known_stop(open_stream)
    stop = max(open_stream.stream_log.progress.done.stop, 0 if known is None else known)
    if left < stop:
        raise RuntimeError(
            f"finish() with work left: batch {left} of {first} to {stop - 1} is neither "
            "confirmed nor skipped"
        )
    if source is not None and not source.is_open_ended and source.get(left) is not None:
        raise RuntimeError(
            f"finish() with work left: the source has a batch {left}, which is neither "
            "confirmed nor skipped"
        )
    if is_cut and open_stream.stream_log.progress.last_index is None:
        raise RuntimeError(
            f"finish() after a loop that end= cut off before batch {left}: nothing says that "
            "the stream ends there; leave end= out, or settle the last batch with last=True"
        )


async def begin_range(
    open_stream: OpenStream,
    stop: int | None,
    start: int | None,
    end: int | None,
    estimate: int | None,
) -> None:
    """Log what a loop passes over, and record which part of the stream it works on.

    Args:
        open_stream: The stream.
        stop: One more than the last batch of the source; None: it is not known.
        start: The first batch of the part; None: there is no limit.
        end: The last batch of the part; None: there is no limit.
        estimate: About how many batches there are in all; None: the estimate stays.

    Raises:
        ValueError: the part has no batch.
        TypeError: there is an estimate, and the end is not open.

    Durability: when this returns the record of a range is durable.
    """
    progress = open_stream.stream_log.progress
    if start is not None and end is not None and end < start:
        raise ValueError(f"a range from {start} to {end} has no batch in it")
    if estimate is not None:
        open_stream.extent.set_estimate(estimate)
    open_stream.extent.narrow(start, end)
    stop = stop if end is None or stop is None else min(end + 1, stop)
    if progress.sequence and (line := resume_line(progress, open_stream.first_index, start, stop)):
        log.info(
            "%s: %s",
            open_stream.where(),
            line,
            extra=open_stream.place(),
        )
    if start is not None or end is not None:
        note = {"range": [start, end]}
        await open_stream.save_plain(Record(kind=RecordKind.NOTE, at=time.time(), metadata=note))


async def park_if_taken_back(open_stream: OpenStream) -> None:
    """Wait for the end of a stop for an outage: what was skipped is re-queued, so the loop goes on.

    Cancellation: a cancellation point if it waits.
    """
    if open_stream.limits is not None and open_stream.limits.takes_back(open_stream.stream_log.key):
        await open_stream.stop.park()


async def complete(open_stream: OpenStream, stop: int) -> None:
    """Save that the stream is complete, if all batches below `stop` are done.

    Durability: as for `save_aside`.
    """
    await park_if_taken_back(open_stream)
    progress = open_stream.stream_log.progress
    is_done = progress.covers(open_stream.first_index, stop)
    if not is_done:
        return
    if not open_stream.is_complete:
        await open_stream.save_finish(Record(kind=RecordKind.FINISH, at=time.time()))
    await prune_at_end(open_stream)  # a killed session may not have


async def prune_at_end(open_stream: OpenStream) -> None:
    """Drop the arrays of all states of a complete stream but the newest, best effort."""
    if open_stream.state_manager is not None:
        from .._commit.archive_states import prune_states  # only a stream with a state needs it

        await prune_states(open_stream, is_complete=True)


async def complete_if_last(open_stream: OpenStream) -> None:
    """Save that the stream is complete, if its last batch is known and all are done."""
    if open_stream.stream_log.progress.last_index is not None:
        await complete(open_stream, open_stream.stream_log.progress.last_index + 1)


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
