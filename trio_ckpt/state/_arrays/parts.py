"""Copies of what may have changed, and the changes that a comparison leaves of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from .arena import SLAB_BYTES, Slab
from .block_digests import BLOCK_BYTES, Indexes, Mask
from .block_ranges import Ranges, ranges_of
from .memory import Bytes


@attrs.frozen(eq=False)
class Changes:
    """The changes to save in a part of a buffer.

    Attributes:
        ranges: Rows of ``(offset, nbytes)``, ascending and disjoint.
        chunks: The bytes of all ranges one after the other, in pieces of up to `SLAB_BYTES`
            that are independent of the ranges.
    """

    ranges: Ranges
    chunks: tuple[Bytes, ...] = attrs.field(repr=False)
    _slabs: tuple[Slab, ...] = attrs.field(repr=False)

    @property
    def nbytes(self) -> int:
        """The length of all chunks."""
        return sum(chunk.nbytes for chunk in self.chunks)

    def release(self) -> None:
        """Release the memory of the arena; the chunks must not be used afterwards."""
        for slab in self._slabs:
            slab.release()


@attrs.frozen(eq=False)
class Copy:
    """Some blocks, one after the other in a slab."""

    blocks: Indexes
    slab: Slab
    nbytes: int

    @property
    def filled(self) -> Bytes:
        """The bytes of the blocks."""
        return self.slab.memory[: self.nbytes]


@attrs.define(eq=False)
class DirtyChunk:
    """Copies of what may have changed in a part of a buffer."""

    _copies: list[Copy]
    _check: Callable[[Copy], Mask]
    _end: Callable[[Indexes], None]
    _nbytes: int

    @property
    def nbytes(self) -> int:
        """The copied bytes, until it is finished."""
        return sum(copy.nbytes for copy in self._copies)

    def finish(self) -> Changes:
        """Compare the copies, and drop what did not change.  Once; in any thread."""
        packed = _Packer()
        changed: list[Indexes] = []
        for copy in self._copies:
            keep = self._check(copy)
            changed.append(copy.blocks[keep])
            packed.add(copy, keep)
        blocks = np.concatenate(changed)
        self._copies = []
        self._end(blocks)
        return Changes(ranges_of(blocks, self._nbytes), *packed.close())

    def release(self) -> None:
        """Release a part that is not finished, because its save was given up."""
        for copy in self._copies:
            copy.slab.release()
        self._copies = []


class _Packer:
    """Moves the kept blocks to the front of the slabs, and releases empty slabs."""

    def __init__(self) -> None:
        self._slabs: list[Slab] = []
        self._ends: list[int] = []  # how far each of them is filled

    def add(self, copy: Copy, keep: Mask) -> None:
        kept = copy.filled
        if not keep.all():
            kept = _rows_kept(kept, keep)
        has_room = bool(self._ends) and self._ends[-1] < SLAB_BYTES
        if not has_room and keep.all():  # it already is where it belongs
            self._slabs.append(copy.slab)
            self._ends.append(kept.nbytes)
            return
        if kept.nbytes and has_room:
            room = min(SLAB_BYTES - self._ends[-1], kept.nbytes)
            self._slabs[-1].memory[self._ends[-1] : self._ends[-1] + room] = kept[:room]
            self._ends[-1] += room
            kept = kept[room:]
        if kept.nbytes:
            copy.slab.memory[: kept.nbytes] = kept
            self._slabs.append(copy.slab)
            self._ends.append(kept.nbytes)
        else:
            copy.slab.release()

    def close(self) -> tuple[tuple[Bytes, ...], tuple[Slab, ...]]:
        pairs = zip(self._slabs, self._ends, strict=True)
        return tuple(slab.memory[:end] for slab, end in pairs), tuple(self._slabs)


def _rows_kept(filled: Bytes, keep: Mask) -> Bytes:
    """Return the kept blocks, one after the other; the last may be short."""
    whole = filled.nbytes // BLOCK_BYTES
    rows = filled[: whole * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)[keep[:whole]].reshape(-1)
    if whole == len(keep) or not keep[-1]:
        return rows
    return np.concatenate((rows, filled[whole * BLOCK_BYTES :]))
