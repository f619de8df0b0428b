"""Finds what changed in a buffer since the last save, and copies it before it changes again.

Theory of operation
===================

A save of a buffer has two halves.

*While the program is held* (`Capture.candidates`): find what may have changed, which is then
copied, by the cheapest of these methods that is certain:

======== ============================================ =================================
method   when                                         cost while the program is held
======== ============================================ =================================
identity the memory is of one immutable object        nothing
pages    the kernel tracked the writes                a scan, and a copy of the pages
hash     there is a table                             a hash of all, a copy of the spans
dense    over 30 % was changed, two times in a row    a copy of all
full     there is no table                            a copy of all
======== ============================================ =================================

*While the program runs again* (`Capture.changed`): compare the copies.  Blocks whose digest
equals the one in the table are dropped, the others are packed together (`dirty_chunks.py`).

The new `DigestTable` is made when all copies were compared.  Its caller keeps it once the save is
durable and drops it if the save failed; the old one is never altered.

In dense mode the tracker is not used: written pages stay unprotected, so the program's writes
cost nothing.  Every fourth time, two saves in a row measure the changes again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import attrs
import numpy as np
import xxhash

from .arena import SLAB_BYTES
from .block_digests import (
    BLOCK_BYTES,
    BLOCKS_PER_SPAN,
    SPAN_BYTES,
    DigestTable,
    Indexes,
    Mask,
    block_digests,
    count_of,
    differ,
    empty_table,
    let_others_run,
    rows_of,
    span_digests,
    span_rows,
    updated,
)
from .buffers import Buffer
from .dirty_pages import MIN_WATCHED_BYTES, TOO_SMALL, DirtyPages, Tracker, Untracked
from .memory import PAGE_BYTES, Bytes, address_of
from .userfaultfd import spread

Method = Literal["identity", "pages", "hash", "dense", "full"]

BLOCKS_PER_SLAB = SLAB_BYTES // BLOCK_BYTES
SPANS_PER_SLAB = SLAB_BYTES // SPAN_BYTES

DENSE_ABOVE = 0.3  # of the blocks: above this, copying all costs less than comparing
DENSE_AFTER = 2  # saves in a row
DENSE_FROM_BYTES = 2**18  # a smaller buffer is hashed in 20 us
PROBE_EVERY = 4  # dense saves


@attrs.frozen
class Report:
    """How one buffer was captured, for statistics.

    Attributes:
        method: The method that found what changed.
        reason: Why the tracker did not; empty if it did, or was not asked.
        nbytes: The length of the buffer.
        copied_bytes: How much was copied while the program was held.
        changed_bytes: How much is to be saved.
    """

    method: Method
    reason: str
    nbytes: int
    copied_bytes: int
    changed_bytes: int


@functools.lru_cache(maxsize=4096)
def _nothing_changed(reason: str, nbytes: int) -> Report:
    return Report("hash", reason, nbytes, 0, 0)


def unchanged(buffer: Buffer, table: DigestTable, tracker: Tracker | Untracked) -> Report | None:
    """Return the report of a small buffer that equals the last save; None: it needs a `Capture`.

    It takes 1 us, where a capture takes 20.  The table stays as it is.
    """
    data = buffer.data
    nbytes = data.nbytes
    is_small = buffer.root is None and nbytes < MIN_WATCHED_BYTES
    if not is_small or nbytes != table.nbytes:
        return None
    is_span = nbytes <= SPAN_BYTES
    digest = xxhash.xxh3_128_digest(data.data) if is_span else b"".join(span_digests(data))
    if digest != table.spans.tobytes():
        return None
    reason = tracker.reason if isinstance(tracker, Untracked) else TOO_SMALL
    return _nothing_changed(buffer.reason or reason, nbytes)


class Capture:
    """One save of one buffer.

    Copy `candidates` while the program is held, and give the copies to `changed` in any thread;
    after the last one `table` and `report` are valid.

    Args:
        buffer: The buffer.
        table: The table of the last durable save, or None.
        tracker: The tracker that may know the written pages.
    """

    def __init__(
        self, buffer: Buffer, table: DigestTable | None, tracker: Tracker | Untracked
    ) -> None:
        self.buffer = buffer
        self.data = buffer.data
        nbytes = buffer.data.nbytes
        self._has_table = table is not None and table.nbytes == nbytes
        self._old = table if table is not None and self._has_table else empty_table(nbytes)
        self._count = count_of(nbytes, BLOCK_BYTES)
        self._reason = ""
        self._seen: DirtyPages | None = None  # the tracker's answer, if it had one
        self._pages: Indexes = np.empty(0, np.intp)
        self._is_after_probe = False
        self._compares_blocks = True
        self._copied_bytes = 0
        self._changed = 0  # blocks
        self._changed_bytes = 0
        self._found = 0  # blocks that were copied
        self._span_news: list[tuple[Indexes, Bytes | None]] = []
        self._block_news: list[tuple[Indexes, Bytes | None]] = []
        self.method: Method = self._choose(Untracked(buffer.reason) if buffer.reason else tracker)

    # -- while the program is held ------------------------------------------------------

    def candidates(self) -> Iterator[Indexes]:
        """Yield the blocks that may have changed, a slab of them at a time."""
        for blocks in self._candidates():
            self._found += len(blocks)
            self._copied_bytes += self.nbytes_of(blocks)
            yield blocks

    def nbytes_of(self, blocks: Indexes) -> int:
        """Return the length of some blocks."""
        is_short = int(blocks[-1]) == self._count - 1
        short = self._count * BLOCK_BYTES - self.data.nbytes if is_short else 0
        return len(blocks) * BLOCK_BYTES - short

    def _choose(self, tracker: Tracker | Untracked) -> Method:
        old, dense_for = self._old, self._old.dense_for
        is_here = self._has_table and old.address == address_of(self.data)
        if is_here and self.buffer.root is not None and self.buffer.root is old.root:
            return "identity"
        is_dense = old.hot_for >= DENSE_AFTER
        is_probe = is_dense and dense_for % PROBE_EVERY == PROBE_EVERY - 1
        self._is_after_probe = is_dense and dense_for > 0 and dense_for % PROBE_EVERY == 0
        if isinstance(tracker, Untracked):
            self._reason = tracker.reason
        elif not is_dense or is_probe or self._is_after_probe:
            region, scan = (old.region, old.scan) if is_here else (None, None)
            answer = tracker.written(self.data, region, scan, owner=self.buffer.owner)
            if isinstance(answer, Untracked):
                self._reason = answer.reason
            else:
                self._seen = answer
                if answer.pages is None:
                    self._reason = "watched from now on"
                elif not is_probe:
                    self._pages = _blocks_of(answer.pages, self.data)
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
        if self.method == "identity":
            return
        if self.method == "hash":
            yield from self._hashed()
            return
        blocks = self._pages if self.method == "pages" else np.arange(self._count)
        for first in range(0, len(blocks), BLOCKS_PER_SLAB):
            yield blocks[first : first + BLOCKS_PER_SLAB]

    def _hashed(self) -> Iterator[Indexes]:
        """Yield the blocks of all spans whose digest differs from the table."""
        rows = span_rows(self.data)
        spans = np.flatnonzero(differ(self._old.spans, rows))
        if len(spans):
            self._span_news.append((spans, rows[spans]))
        for first in range(0, len(spans), SPANS_PER_SLAB):
            yield self._blocks_in(spans[first : first + SPANS_PER_SLAB])

    def _blocks_in(self, spans: Indexes) -> Indexes:
        first = spans * BLOCKS_PER_SPAN
        end = np.minimum(first + BLOCKS_PER_SPAN, self._count)
        return spread(np.stack((first, end), axis=1))

    # -- while the program runs again ---------------------------------------------------

    def changed(self, blocks: Indexes, copy: Bytes) -> Mask:
        """Return which of the copied blocks changed; their digests are kept for the table."""
        keep = self._compare(blocks, copy)
        count = int(keep.sum())
        if count:
            self._changed += count
            self._changed_bytes += self.nbytes_of(blocks[keep])
        return keep

    def _compare(self, blocks: Indexes, copy: Bytes) -> Mask:
        if self.method == "pages":
            # A buffer that was written all over is compared by spans, in a third of the time.
            if _is_whole(blocks):
                keep = self._compare_spans(blocks, copy)
                self._forget_blocks(blocks[keep])
            else:  # the digests of their spans are out of date
                keep = self._compare_blocks(blocks, copy)
                self._span_news.append((np.unique(blocks[keep] // BLOCKS_PER_SPAN), None))
            return keep
        keep = np.ones(len(blocks), np.bool_)
        if self.method in ("dense", "full"):
            keep = self._compare_spans(blocks, copy)
        if self._compares_blocks:
            keep &= self._compare_blocks(blocks, copy)
        else:
            self._forget_blocks(blocks[keep])
        return keep

    def _compare_spans(self, blocks: Indexes, copy: Bytes) -> Mask:
        let_others_run()
        rows = rows_of(list(span_digests(copy)))
        spans = int(blocks[0]) // BLOCKS_PER_SPAN + np.arange(len(rows))
        self._span_news.append((spans, rows))
        return np.repeat(differ(self._old.spans[spans], rows), BLOCKS_PER_SPAN)[: len(blocks)]

    def _compare_blocks(self, blocks: Indexes, copy: Bytes) -> Mask:
        rows = block_digests(copy)
        self._block_news.append((blocks, rows))
        return differ(self._old.blocks[blocks], rows)

    def _forget_blocks(self, blocks: Indexes) -> None:
        if self._old.blocks[blocks].any():
            self._block_news.append((blocks, None))

    @property
    def report(self) -> Report:
        """Return how the buffer was captured."""
        return Report(
            method=self.method,
            reason=self._reason,
            nbytes=self.data.nbytes,
            copied_bytes=self._copied_bytes,
            changed_bytes=self._changed_bytes,
        )

    def table(self) -> DigestTable:
        """Return the table of this save, for the next `Capture` once this save is durable."""
        old = self._old
        # If the tracker was not asked, its last scan stays: more pages count as written since.
        last = self._seen or old
        return DigestTable(
            nbytes=self.data.nbytes,
            spans=updated(old.spans, self._span_news),
            blocks=updated(old.blocks, self._block_news),
            region=last.region,
            scan=last.scan,
            root=self.buffer.root,
            address=address_of(self.data),
            hot_for=self._hot_for(),
            dense_for=old.dense_for + 1 if self.method == "dense" else 0,
        )

    def _hot_for(self) -> int:
        """Return how many saves in a row changed much, this one included."""
        if self.method == "dense" and not (self._is_after_probe and self._compares_blocks):
            return self._old.hot_for
        if self.method in ("full", "identity"):
            return 0
        # Writing equal values costs the program as many faults as a change does.
        blocks = self._found if self.method == "pages" else self._changed
        is_hot = blocks > DENSE_ABOVE * self._count and self.data.nbytes >= DENSE_FROM_BYTES
        return self._old.hot_for + 1 if is_hot else 0


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
