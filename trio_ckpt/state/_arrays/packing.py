"""What changed, packed on its way into a frame or a blob.

Nothing is kept that is not asked for: `ChunkPacker.add` packs while its pieces are taken, which
is while the ones before are written.  What does not get smaller is not copied: it stays in
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
    """Packs the changes of one save, in the order in which they come.

    Args:
        compressor: What packs them.

    Attributes:
        patches: What has come.
        nbytes: How much that is, packed.
    """

    def __init__(self, compressor: Compressor) -> None:
        self.patches: list[Patch] = []
        self.nbytes = 0
        self._compressor = compressor
        self._kept: list[Changes] = []  # whose slabs are out

    def add(self, buffer: int, changes: Changes, itemsize: int) -> Iterator[Piece]:
        """Pack what changed in a part of a buffer, piece by piece; until it is released."""
        self._kept.append(changes)  # first: they are given back also if packing fails
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
        """Give the arena its memory back: the pieces are not to be used any more."""
        for changes in self._kept:
            changes.release()
        self._kept = []
