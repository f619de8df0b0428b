"""Whether a source is still the one that the records of a stream were made from.

Theory of operation
===================

Each record has a digest of its item, and progress has the sum of them, each bound to
its batch (`trio_ckpt._journal.progress.item_mark`).  A source whose items give that sum is
unchanged, so most starts read no record for the check: they hash the items that they pass
over.  Where the sums differ the records say at which batch the source changed, or that it
did not: a batch of an open end had no item.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import aclosing
from typing import TypeVar

import trio

from .._journal.history import DONE_KINDS, LiveRecords, ReadPages, live_records
from .._journal.progress import Progress, add_marks, item_mark
from .._util.errors import SourceChangedError
from .._util.index_set import IndexSet
from .._util.plain import ITEM_DIGEST_BYTES, StreamKey
from .source import ITEMS_PER_STEP, Source

T = TypeVar("T")

_SHORTER = "nothing: it is shorter now"


async def check_source(
    source: Source[T], progress: Progress, read: ReadPages, where: tuple[str, StreamKey]
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


async def _read(source: Source[T], indexes: IndexSet) -> _Digests | None:
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
