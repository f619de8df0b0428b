"""What a save held of one buffer, in digests: spans of 128 KiB, and blocks of 4 KiB in them.

The digest is xxh3_128 (XXH3 of xxHash, https://github.com/Cyan4973/xxHash): it tells changes
from no changes; it keeps nobody out.  A digest that is not known counts as changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs
import numpy as np
import numpy.typing as npt
import xxhash

from .memory import Bytes

Indexes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

BLOCK_BYTES = 2**12  # what a delta is made of: the page of most machines
SPAN_BYTES = 2**17  # the smallest that xxhash releases the GIL for
DIGEST_BYTES = 16
BLOCKS_PER_SPAN = SPAN_BYTES // BLOCK_BYTES
_BLOCKS_AT_ONCE = 256  # hashed in 100 to 300 us, in which the GIL is held


def count_of(nbytes: int, size: int) -> int:
    """How many pieces of `size` there are, the last one perhaps shorter."""
    return -(-nbytes // size)


def let_others_run() -> None:
    """Give the GIL away for long enough that a thread that waits for it wakes up.

    A shorter pause is over before it does, and it would then wait for its turn, 5 ms.
    """
    time.sleep(20e-6)  # 70 us with the slack of Linux' timers


def span_digests(data: Bytes) -> Iterator[bytes]:
    """The digest of each span, one by one; the GIL is released in each but a short last one."""
    view = data.data
    for start in range(0, data.nbytes, SPAN_BYTES):
        yield xxhash.xxh3_128_digest(view[start : start + SPAN_BYTES])


def block_digests(data: Bytes) -> Bytes:
    """The digests of all blocks, as rows of 16 bytes."""
    digest, view, found = xxhash.xxh3_128_digest, data.data, list[bytes]()
    for start in range(0, data.nbytes, BLOCK_BYTES):
        if start % (_BLOCKS_AT_ONCE * BLOCK_BYTES) == 0:
            let_others_run()
        found.append(digest(view[start : start + BLOCK_BYTES]))
    return rows_of(found)


def rows_of(digests: list[bytes]) -> Bytes:
    """Digests as rows of 16 bytes."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


@attrs.frozen(eq=False)
class Digests:
    """The digests of all pieces of one size, and which of them are known."""

    rows: Bytes
    known: Mask

    @classmethod
    def unknown(cls, count: int) -> Digests:
        """Of none anything is known."""
        return cls(np.zeros((count, DIGEST_BYTES), np.uint8), np.zeros(count, np.bool_))

    def differ(self, indexes: Indexes, rows: Bytes) -> Mask:
        """Which pieces are not what they were, as far as is known."""
        is_other: Mask = (self.rows[indexes] != rows).any(axis=1)
        return is_other | ~self.known[indexes]

    def updated(self, news: list[tuple[Indexes, Bytes | None]]) -> Digests:
        """With new digests; None: they are not known any more."""
        if not news:
            return self
        rows, known = self.rows.copy(), self.known.copy()
        for count, (indexes, found) in enumerate(news):
            if count % 64 == 63:
                let_others_run()
            known[indexes] = found is not None
            if found is not None:
                rows[indexes] = found
        return Digests(rows, known)


@attrs.frozen(eq=False, kw_only=True)
class DigestTable:
    """What a save held of one buffer; never altered, so a failed save needs no repair.

    Attributes:
        nbytes: The length of the buffer.
        spans: Its digests, span by span.
        blocks: And block by block.
        region: The tracker's number of its memory, or None.
        look: The tracker's number of the look at that save.
        root: The immutable object that it was, or None.
        address: Where it was.
        hot_for: How many saves in a row changed much, see `_blocks.DENSE_ABOVE`.
        dense_for: How many saves in a row copied all because of that.
    """

    nbytes: int
    spans: Digests = attrs.field(repr=False)
    blocks: Digests = attrs.field(repr=False)
    region: int | None = None
    look: int | None = None
    root: object = attrs.field(default=None, repr=False)
    address: int = 0
    hot_for: int = 0
    dense_for: int = 0

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory: 0.4 % of the buffer."""
        return sum(part.rows.nbytes + part.known.nbytes for part in (self.spans, self.blocks))


def empty_table(nbytes: int) -> DigestTable:
    """A table that knows nothing: everything counts as changed."""
    return DigestTable(
        nbytes=nbytes,
        spans=Digests.unknown(count_of(nbytes, SPAN_BYTES)),
        blocks=Digests.unknown(count_of(nbytes, BLOCK_BYTES)),
    )


def make_table(data: Bytes) -> DigestTable:
    """The table of a buffer that is now what the last save held: after a restore.

    For a thread: 0.3 ms per MiB.
    """
    spans, blocks = rows_of(list(span_digests(data))), block_digests(data)
    return DigestTable(
        nbytes=data.nbytes,
        spans=Digests(spans, np.ones(len(spans), np.bool_)),
        blocks=Digests(blocks, np.ones(len(blocks), np.bool_)),
    )
