"""Packs changes for a frame or a blob.

Pieces are packed on demand: `ChunkPacker.add` packs one while the ones before are
written.  A piece that does not get smaller is not copied: it stays in
the slabs of the arena until `ChunkPacker.release`, after it is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import xxhash

from .._tree.frame import Patch
from .block_ranges import encode_ranges
from .compress import Compressor
from .parts import Changes

Piece = bytes | memoryview


class ChunkPacker:
    """Packs the changes of one save, in the order in which they are added.

    Args:
        compressor: Packs them.

    Attributes:
        patches: The changes added so far.
        nbytes: Their packed size.
    """

    def __init__(self, compressor: Compressor) -> None:
        self.patches: list[Patch] = []
        self.nbytes = 0
        self._compressor = compressor
        self._kept: list[Changes] = []  # the changes that hold slabs

    def add(self, buffer: int, changes: Changes, itemsize: int) -> Iterator[Piece]:
        """Pack the changes of a part of a buffer, piece by piece; valid until `release`."""
        self._kept.append(changes)  # first: they are released even if packing fails
        digests: list[bytes] = []
        stored: list[int] = []
        offset = self.nbytes
        for chunk in changes.chunks:
            head, body = self._compressor.pack_parts(chunk, itemsize)
            digest = xxhash.xxh3_128(head)
            digest.update(body)
            digests.append(digest.digest())
            stored.append(len(head) + len(body))
            self.nbytes += stored[-1]
            yield head
            yield body
        self.patches.append(
            Patch(
                buffer=buffer,
                ranges=encode_ranges(changes.ranges),
                offset=offset,
                stored=tuple(stored),
                sizes=tuple(chunk.nbytes for chunk in changes.chunks),
                digests=b"".join(digests),
            )
        )

    def release(self) -> None:
        """Release the memory of the arena; the pieces must not be used any more."""
        for changes in self._kept:
            changes.release()
        self._kept = []
