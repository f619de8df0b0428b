"""Copies of what may have changed in the buffers of one save, and the pieces to store of them.

Theory of operation
===================

A *dirty chunk* holds some blocks of a buffer.  It is copied into the arena while the program is
held (`ChunkPacker.add`).  While the program runs again it is compared, and the blocks that
changed are packed (`ChunkPacker.pieces`): each piece on demand, while the ones before are
written.  A piece of blocks that all changed and do not get smaller is not copied: it stays in the
arena until `ChunkPacker.release`, after it is written.

If the arena is full, what was copied so far is packed at once into memory of its own, which makes
room: an arena holds a state that is larger than itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import xxhash

from .._tree.frame import Patch
from .arena import SLAB_BYTES, Arena, Slab
from .block_digests import BLOCK_BYTES, Indexes, Mask
from .block_ranges import encode_ranges, ranges_of
from .capture import Capture
from .compress import Compressor
from .memory import Bytes

Piece = bytes | memoryview

LONG_RUN = 8  # blocks: from this length on one call per run is faster than one for all blocks
_ALIGNED_BYTES = 64  # copies of small buffers share slabs, and begin at a line of the caches


@attrs.frozen(eq=False, repr=False)
class DirtyChunk:
    """Blocks of a buffer that may have changed, one after the other in the arena.

    Attributes:
        number: The number of the buffer.
        capture: The capture that found them.
        blocks: Their indexes, ascending.
        offset: Where their copy begins in the arena.
        data: The memory of the copy.
    """

    number: int
    capture: Capture
    blocks: Indexes
    offset: int
    data: Bytes


class ChunkPacker:
    """Copies and packs the dirty chunks of one save, in the order in which they are added.

    Args:
        arena: The memory for the copies.
        compressor: Packs them.

    Attributes:
        patches: The changes packed so far.
        nbytes: Their packed size.
    """

    def __init__(self, arena: Arena, compressor: Compressor) -> None:
        self.patches: list[Patch] = []
        self.nbytes = 0
        self._arena = arena
        self._compressor = compressor
        self._chunks: deque[DirtyChunk] = deque()
        self._early: list[bytes] = []  # pieces that were packed to make room
        self._slabs: list[Slab] = []
        self._left = 0  # in the last slab

    # -- while the program is held ------------------------------------------------------

    def add(self, number: int, capture: Capture) -> None:
        """Copy what may have changed in a buffer.  It blocks while the arena has no room.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        chunks: list[DirtyChunk] = []
        for blocks in capture.candidates():
            nbytes = capture.nbytes_of(blocks)
            if nbytes > self._left:
                slab = self._arena.reserve_nowait()
                if slab is None:
                    self._copy(chunks)
                    chunks.clear()
                    self._early += map(bytes, self._pack())
                    self._release_slabs()
                    slab = self._arena.reserve()
                self._slabs.append(slab)
                self._left = SLAB_BYTES
            offset = self._slabs[-1].offset + SLAB_BYTES - self._left
            data = self._arena.memory(offset, nbytes)
            chunks.append(DirtyChunk(number, capture, blocks, offset, data))
            self._left -= -(-nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self._copy(chunks)

    def _copy(self, chunks: Sequence[DirtyChunk]) -> None:
        """Copy the blocks of some chunks of one buffer into the arena.

        A very large copy bypasses the caches, in half of the time: neighbours are one copy.
        """
        self._chunks += chunks
        done = 0
        while done < len(chunks):
            first, end = chunks[done], done + 1
            while end < len(chunks) and _follows(chunks[end], chunks[end - 1]):
                end += 1
            if _is_run(first.blocks):
                nbytes = chunks[end - 1].offset + chunks[end - 1].data.nbytes - first.offset
                start = int(first.blocks[0]) * BLOCK_BYTES
                target = self._arena.memory(first.offset, nbytes)
                np.copyto(target, first.capture.data[start : start + nbytes])
            else:
                _copy_scattered(first)
            done = end

    # -- while the program runs again ---------------------------------------------------

    def pieces(self) -> Iterator[Piece]:
        """Yield the packed changes; each piece is made on demand, and valid until `release`."""
        yield from self._early
        yield from self._pack()

    @property
    def is_packed(self) -> bool:
        """Whether all chunks were compared and packed."""
        return not self._chunks

    def release(self) -> None:
        """Release the memory of the arena; the pieces must not be used any more."""
        self._chunks.clear()
        self._release_slabs()

    def _release_slabs(self) -> None:
        for slab in self._slabs:
            slab.release()
        self._slabs.clear()
        self._left = 0

    def _pack(self) -> Iterator[Piece]:
        while self._chunks:
            number, capture = self._chunks[0].number, self._chunks[0].capture
            offset, blocks = self.nbytes, list[Indexes]()
            stored, sizes, digests = list[int](), list[int](), list[bytes]()
            for changed, data in self._changed(capture):
                head, body = self._compressor.pack_parts(data, capture.buffer.itemsize)
                digest = xxhash.xxh3_128(head)
                digest.update(body)
                blocks.append(changed)
                digests.append(digest.digest())
                stored.append(len(head) + len(body))
                sizes.append(data.nbytes)
                self.nbytes += stored[-1]
                yield head
                yield body
            if blocks:
                ranges = encode_ranges(ranges_of(np.concatenate(blocks), capture.data.nbytes))
                self.patches.append(
                    Patch(number, ranges, offset, tuple(stored), tuple(sizes), b"".join(digests))
                )

    def _changed(self, capture: Capture) -> Iterator[tuple[Indexes, Bytes]]:
        """Compare the first chunks, those of one buffer; yield what changed, up to a slab at once.

        The blocks of several chunks that changed in part are moved together.
        """
        blocks: list[Indexes] = []
        parts: list[Bytes] = []
        nbytes = 0
        while self._chunks and self._chunks[0].capture is capture:
            chunk = self._chunks.popleft()
            data = chunk.data
            keep = capture.changed(chunk.blocks, data)
            is_whole = bool(keep.all())
            if not is_whole:
                data = _kept(data, keep)
            if parts and (is_whole or nbytes + data.nbytes > SLAB_BYTES):
                yield np.concatenate(blocks), np.concatenate(parts)
                blocks, parts, nbytes = [], [], 0
            if is_whole:
                yield chunk.blocks, data
            elif data.nbytes:
                blocks.append(chunk.blocks[keep])
                parts.append(data)
                nbytes += data.nbytes
        if parts:
            yield np.concatenate(blocks), np.concatenate(parts)


def _is_run(blocks: Indexes) -> bool:
    return int(blocks[-1]) - int(blocks[0]) + 1 == len(blocks)


def _follows(chunk: DirtyChunk, before: DirtyChunk) -> bool:
    """Return whether two chunks are neighbours both in the buffer and in the arena."""
    return (
        chunk.offset == before.offset + before.data.nbytes
        and chunk.blocks[0] == before.blocks[-1] + 1
        and _is_run(before.blocks)
        and _is_run(chunk.blocks)
    )


def _copy_scattered(chunk: DirtyChunk) -> None:
    """Copy run by run where runs are long, else block by block in one call."""
    blocks, data, target = chunk.blocks, chunk.capture.data, chunk.data
    starts = np.flatnonzero(np.diff(blocks) != 1) + 1
    if (len(starts) + 1) * LONG_RUN <= len(blocks):
        at = 0
        for run in np.split(blocks, starts):
            first, nbytes = int(run[0]) * BLOCK_BYTES, chunk.capture.nbytes_of(run)
            np.copyto(target[at : at + nbytes], data[first : first + nbytes])
            at += nbytes
        return
    whole = data.nbytes // BLOCK_BYTES
    inside = blocks if int(blocks[-1]) < whole else blocks[:-1]
    nbytes = len(inside) * BLOCK_BYTES
    rows = data[: whole * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
    np.take(rows, inside, 0, target[:nbytes].reshape(-1, BLOCK_BYTES), mode="clip")
    target[nbytes:] = data[whole * BLOCK_BYTES :][: target.nbytes - nbytes]


def _kept(data: Bytes, keep: Mask) -> Bytes:
    """Return a copy of the kept blocks, one after the other; the last may be short."""
    whole = data.nbytes // BLOCK_BYTES
    rows = data[: whole * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)[keep[:whole]].reshape(-1)
    if whole == len(keep) or not keep[-1]:
        return rows
    return np.concatenate((rows, data[whole * BLOCK_BYTES :]))
