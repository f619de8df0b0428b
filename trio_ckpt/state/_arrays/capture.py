"""Finds what changed in a buffer since the last save, and copies it before it changes again.

Theory of operation
===================

A save of a buffer has two halves.

*While the program is held* (`Capture`, iterated): find what may have changed and copy it into
the arena, by the cheapest rung of this ladder that is certain:

======== ============================================ =================================
rung     when                                         cost while the program is held
======== ============================================ =================================
identity the memory is of one immutable object        nothing
pages    the kernel tracked the writes                a scan, and a copy of the pages
hash     there is a table                             a hash of all, a copy of the spans
dense    over 30 % was changed, two times in a row    a copy of all
full     there is no table                            a copy of all
======== ============================================ =================================

*While the program runs again* (`DirtyChunk.finish`): compare the copies.  Blocks whose digest
equals the one in the table are dropped, the others are packed together.

The new `DigestTable` is made when all parts are finished.  Its caller keeps it once the save is
durable and drops it if the save failed; the old one is never altered.

In dense mode the tracker is not used: written pages stay unprotected, so the program's writes
cost nothing.  Every fourth time, two saves in a row measure the changes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
import numpy as np

from .arena import SLAB_BYTES, Arena
from .block_digests import (
    BLOCK_BYTES,
    BLOCKS_PER_SPAN,
    SPAN_BYTES,
    DigestTable,
    Indexes,
    Mask,
    block_digests,
    count_of,
    empty_table,
    let_others_run,
    rows_of,
    span_digests,
)
from .buffers import Buffer
from .dirty_pages import DirtyPages, Tracker, Untracked
from .memory import PAGE_BYTES, Bytes, address_of
from .parts import Copy, DirtyChunk
from .userfaultfd import spread

Rung = Literal["identity", "pages", "hash", "dense", "full"]

BLOCKS_PER_SLAB = SLAB_BYTES // BLOCK_BYTES
SPANS_PER_SLAB = SLAB_BYTES // SPAN_BYTES
SPANS_AT_ONCE = 128  # hashed in 1 ms, during which other threads may not get the GIL
SLABS_PER_PART = 32  # so that a large buffer is written while the rest is captured
LONG_RUN = 8  # blocks: from this length on one call per run is faster than one for all blocks

DENSE_ABOVE = 0.3  # of the blocks: above this, copying all costs less than comparing
DENSE_AFTER = 2  # saves in a row
DENSE_FROM_BYTES = 2**18  # a smaller buffer is hashed in 20 us
PROBE_EVERY = 4  # dense saves


@attrs.frozen
class Report:
    """How one buffer was captured, for statistics.

    Attributes:
        rung: The rung that found what changed.
        reason: Why the tracker did not; empty if it did, or was not asked.
        nbytes: The length of the buffer.
        copied_bytes: How much was copied while the program was held.
        changed_bytes: How much is to be saved.
    """

    rung: Rung
    reason: str
    nbytes: int
    copied_bytes: int
    changed_bytes: int


class Capture:
    """One save of one buffer.

    Iterate it while the program is held; call `DirtyChunk.finish` for each part then or later, in
    any thread; when all are finished, read `table` and `report`.

    Args:
        data: The buffer: contiguous bytes.
        table: The table of the last durable save, or None.
        arena: The memory for copies.
        tracker: The tracker that may know the written pages.
        owner: The owner of the memory, for the tracker; None: NumPy knows it.
        root: The immutable object whose memory it is, or None.
        timeout_s: How long to wait for room in the arena; None: forever.
    """

    def __init__(
        self,
        data: Bytes,
        table: DigestTable | None,
        arena: Arena,
        tracker: Tracker | Untracked | None = None,
        *,
        owner: object = None,
        root: object = None,
        timeout_s: float | None = None,
    ) -> None:
        self._data = data
        self._has_table = table is not None and table.nbytes == data.nbytes
        self._old = table if table is not None and self._has_table else empty_table(data.nbytes)
        self._arena = arena
        self._timeout_s = timeout_s
        self._root = root
        self._count = count_of(data.nbytes, BLOCK_BYTES)
        self._reason = tracker.reason if isinstance(tracker, Untracked) else ""
        self._seen: DirtyPages | None = None  # the tracker's answer, if it had one
        self._pages: Indexes = np.empty(0, np.intp)
        self._is_after_probe = False
        self._compares_blocks = True
        self._copied_bytes = 0
        self._changed = 0  # blocks
        self._changed_bytes = 0
        self._found = 0  # blocks that were copied
        self._open_parts = 0
        self._is_copied = False
        self._span_news: list[tuple[Indexes, Bytes | None]] = []
        self._block_news: list[tuple[Indexes, Bytes | None]] = []
        self.rung: Rung = self._choose(tracker if isinstance(tracker, Tracker) else None, owner)

    # -- while the program is held ------------------------------------------------------

    def __iter__(self) -> Iterator[DirtyChunk]:
        """Copy, and yield the parts: usually one, more for a large buffer, none without changes.

        If the arena has no room for all, the caller or another thread must finish, save and
        release the parts that were yielded while the iteration goes on.

        Raises:
            ArenaFullError: no room within the timeout.
        """
        copies: list[Copy] = []
        try:
            for blocks in self._candidates():
                slab = self._arena.reserve_nowait()
                if slab is None:  # yield what there is before waiting for more room
                    self._fill(copies)
                    while copies:
                        yield self._part(copies)
                    slab = self._arena.reserve(timeout_s=self._timeout_s)
                copies.append(Copy(blocks, slab, self._nbytes_of(blocks)))
            self._fill(copies)
            self._is_copied = True
            while copies:
                yield self._part(copies)
        finally:
            for copy in copies:
                copy.slab.release()

    def _choose(self, tracker: Tracker | None, owner: object) -> Rung:
        old, dense_for = self._old, self._old.dense_for
        is_here = self._has_table and old.address == address_of(self._data)
        if is_here and self._root is not None and self._root is old.root:
            return "identity"
        is_dense = old.hot_for >= DENSE_AFTER
        is_probe = is_dense and dense_for % PROBE_EVERY == PROBE_EVERY - 1
        self._is_after_probe = is_dense and dense_for > 0 and dense_for % PROBE_EVERY == 0
        if tracker is not None and (not is_dense or is_probe or self._is_after_probe):
            region, scan = (old.region, old.scan) if is_here else (None, None)
            answer = tracker.written(self._data, region, scan, owner=owner)
            if isinstance(answer, Untracked):
                self._reason = answer.reason
            else:
                self._seen = answer
                if answer.pages is None:
                    self._reason = "watched from now on"
                elif not is_probe:
                    self._pages = _blocks_of(answer.pages, self._data)
                    if not is_dense or len(self._pages) <= DENSE_ABOVE * self._count:
                        return "pages"
        if is_dense:
            # Without a tracker a probe records the digests, and the next save compares them.
            is_asked = is_probe or self._is_after_probe
            self._compares_blocks = is_asked and self._seen is None
            return "dense"
        if not self._has_table:
            self._compares_blocks = self._seen is None
            return "full"
        return "hash"

    def _candidates(self) -> Iterator[Indexes]:
        """Yield the blocks that may have changed, a slab of them at a time."""
        if self.rung == "identity":
            return
        if self.rung == "hash":
            yield from self._hashed()
            return
        blocks = self._pages if self.rung == "pages" else np.arange(self._count)
        for first in range(0, len(blocks), BLOCKS_PER_SLAB):
            yield blocks[first : first + BLOCKS_PER_SLAB]

    def _hashed(self) -> Iterator[Indexes]:
        """Yield the blocks of all spans whose digest differs from the table."""
        waiting: list[int] = []
        count = count_of(self._data.nbytes, SPAN_BYTES)
        for first in range(0, count, SPANS_AT_ONCE):
            let_others_run()
            spans = np.arange(first, min(first + SPANS_AT_ONCE, count))
            piece = self._data[first * SPAN_BYTES : (first + SPANS_AT_ONCE) * SPAN_BYTES]
            rows = rows_of(list(span_digests(piece)))
            differ = self._old.spans.differ(spans, rows)
            if differ.any():
                self._span_news.append((spans[differ], rows[differ]))
                waiting += spans[differ].tolist()
            while len(waiting) >= SPANS_PER_SLAB:
                yield self._blocks_in(waiting[:SPANS_PER_SLAB])
                del waiting[:SPANS_PER_SLAB]
        if waiting:
            yield self._blocks_in(waiting)

    def _blocks_in(self, spans: list[int]) -> Indexes:
        first = np.array(spans, np.intp) * BLOCKS_PER_SPAN
        end = np.minimum(first + BLOCKS_PER_SPAN, self._count)
        return spread(np.stack((first, end), axis=1))

    def _nbytes_of(self, blocks: Indexes) -> int:
        is_short = int(blocks[-1]) == self._count - 1
        short = self._count * BLOCK_BYTES - self._data.nbytes if is_short else 0
        return len(blocks) * BLOCK_BYTES - short

    def _fill(self, copies: list[Copy]) -> None:
        """Copy the blocks into their slabs."""
        if not copies:
            return
        count = sum(len(copy.blocks) for copy in copies)
        self._found += count
        self._copied_bytes += sum(copy.nbytes for copy in copies)
        if copies[-1].blocks[-1] - copies[0].blocks[0] + 1 == count:
            self._fill_runs(copies)
        else:
            self._fill_scattered(copies)

    def _fill_runs(self, copies: list[Copy]) -> None:
        """Copy blocks that are all neighbours: one copy for each run of neighbouring slabs.

        A very large copy bypasses the caches, in half of the time.
        """
        done = 0
        while done < len(copies):
            end = done + 1
            while end < len(copies) and copies[end].slab.index == copies[end - 1].slab.index + 1:
                end += 1
            run = copies[done:end]
            start = int(run[0].blocks[0]) * BLOCK_BYTES
            nbytes = sum(copy.nbytes for copy in run)
            target = self._arena.join([copy.slab for copy in run])
            np.copyto(target[:nbytes], self._data[start : start + nbytes])
            done = end

    def _fill_scattered(self, copies: list[Copy]) -> None:
        """Copy run by run where runs are long, else block by block in one call."""
        for copy in copies:
            blocks = copy.blocks
            starts = np.concatenate(([0], np.flatnonzero(np.diff(blocks) != 1) + 1))
            if len(starts) * LONG_RUN > len(blocks):
                self._fill_blocks(copy)
                continue
            at = 0
            for run in np.split(blocks, starts[1:]):
                first, nbytes = int(run[0]) * BLOCK_BYTES, self._nbytes_of(run)
                np.copyto(copy.filled[at : at + nbytes], self._data[first : first + nbytes])
                at += nbytes

    def _fill_blocks(self, copy: Copy) -> None:
        whole = self._data.nbytes // BLOCK_BYTES
        rows = self._data[: whole * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
        blocks, filled = copy.blocks, copy.filled
        inside = blocks if int(blocks[-1]) < whole else blocks[:-1]
        nbytes = len(inside) * BLOCK_BYTES
        np.take(rows, inside, 0, filled[:nbytes].reshape(-1, BLOCK_BYTES), mode="clip")
        filled[nbytes:] = self._data[whole * BLOCK_BYTES :][: copy.nbytes - nbytes]

    def _part(self, copies: list[Copy]) -> DirtyChunk:
        """Return a part with the first of the copies, and remove these from the list."""
        mine = copies[:SLABS_PER_PART]
        del copies[:SLABS_PER_PART]
        self._open_parts += 1
        return DirtyChunk(mine, self._check, self._end, self._data.nbytes)

    # -- while the program runs again ---------------------------------------------------

    def _check(self, copy: Copy) -> Mask:
        """Return which blocks of a copy changed; their digests are kept for the table."""
        if self.rung == "pages":
            # A buffer that was written all over is compared by spans, in a third of the time.
            is_whole = _is_whole(copy.blocks)
            keep = self._check_spans(copy) if is_whole else self._check_blocks(copy)
            if is_whole:
                self._forget_blocks(copy.blocks[keep])
            else:  # the digests of their spans are out of date
                self._span_news.append((np.unique(copy.blocks[keep] // BLOCKS_PER_SPAN), None))
            return keep
        keep = np.ones(len(copy.blocks), np.bool_)
        if self.rung in ("dense", "full"):
            keep = self._check_spans(copy)
        if self._compares_blocks:
            keep &= self._check_blocks(copy)
        else:
            self._forget_blocks(copy.blocks[keep])
        return keep

    def _check_spans(self, copy: Copy) -> Mask:
        let_others_run()
        rows = rows_of(list(span_digests(copy.filled)))
        spans = int(copy.blocks[0]) // BLOCKS_PER_SPAN + np.arange(len(rows))
        self._span_news.append((spans, rows))
        differ = self._old.spans.differ(spans, rows)
        return np.repeat(differ, BLOCKS_PER_SPAN)[: len(copy.blocks)]

    def _check_blocks(self, copy: Copy) -> Mask:
        rows = block_digests(copy.filled)
        self._block_news.append((copy.blocks, rows))
        return self._old.blocks.differ(copy.blocks, rows)

    def _forget_blocks(self, blocks: Indexes) -> None:
        if self._old.blocks.known[blocks].any():
            self._block_news.append((blocks, None))

    def _end(self, changed: Indexes) -> None:
        self._changed += len(changed)
        self._changed_bytes += self._nbytes_of(changed) if len(changed) else 0
        self._open_parts -= 1

    @property
    def report(self) -> Report:
        """Return how the finished parts were captured."""
        return Report(
            rung=self.rung,
            reason=self._reason,
            nbytes=self._data.nbytes,
            copied_bytes=self._copied_bytes,
            changed_bytes=self._changed_bytes,
        )

    def table(self) -> DigestTable:
        """Return the table of this save, for the next `Capture` once this save is durable.

        Raises:
            RuntimeError: the iteration did not end, or a part is not finished.
        """
        if not self._is_copied or self._open_parts:
            raise RuntimeError("a capture has no table before all of its parts are finished")
        old = self._old
        # If the tracker was not asked, its last scan stays: more pages count as written since.
        last = self._seen or old
        return DigestTable(
            nbytes=self._data.nbytes,
            spans=old.spans.updated(self._span_news),
            blocks=old.blocks.updated(self._block_news),
            region=last.region,
            scan=last.scan,
            root=self._root,
            address=address_of(self._data),
            hot_for=self._hot_for(),
            dense_for=old.dense_for + 1 if self.rung == "dense" else 0,
        )

    def _hot_for(self) -> int:
        """Return how many saves in a row changed much, this one included."""
        if self.rung == "dense" and not (self._is_after_probe and self._compares_blocks):
            return self._old.hot_for
        if self.rung in ("full", "identity"):
            return 0
        # Writing equal values costs the program as many faults as a change does.
        blocks = self._found if self.rung == "pages" else self._changed
        is_hot = blocks > DENSE_ABOVE * self._count and self._data.nbytes >= DENSE_FROM_BYTES
        return self._old.hot_for + 1 if is_hot else 0


def capture(
    buffer: Buffer,
    table: DigestTable | None,
    arena: Arena,
    tracker: Tracker | Untracked | None = None,
    *,
    timeout_s: float | None = None,
) -> Capture:
    """Capture the buffers that `trio_ckpt.state._arrays.buffers.collect` found, see `Capture`."""
    if buffer.owner is None and tracker is not None and buffer.root is None:
        why = "it was copied without its holes" if buffer.is_copy else "its library copies it"
        tracker = Untracked(why)
    return Capture(
        buffer.data,
        table,
        arena,
        tracker,
        owner=buffer.owner,
        root=buffer.root,
        timeout_s=timeout_s,
    )


def _is_whole(blocks: Indexes) -> bool:
    """Return whether blocks fill a slab, span after span."""
    first, last = int(blocks[0]), int(blocks[-1])
    is_run = last - first + 1 == len(blocks) == BLOCKS_PER_SLAB
    return is_run and first % BLOCKS_PER_SPAN == 0


def _blocks_of(pages: Indexes, data: Bytes) -> Indexes:
    """Return the blocks of a buffer under pages, counted from the page in which it begins."""
    phase = address_of(data) % PAGE_BYTES
    if PAGE_BYTES == BLOCK_BYTES and not phase:
        return pages
    start = pages * PAGE_BYTES - phase
    first = np.maximum(start // BLOCK_BYTES, 0)
    end = np.minimum(-(-(start + PAGE_BYTES) // BLOCK_BYTES), count_of(data.nbytes, BLOCK_BYTES))
    return np.unique(spread(np.stack((first, end), axis=1)))
