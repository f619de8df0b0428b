"""Ranges of a buffer and the bytes in them: how a delta is encoded and applied."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..._util.errors import StoreDamagedError
from .block_digests import BLOCK_BYTES, Indexes, count_of, let_others_run
from .memory import Bytes

Ranges = npt.NDArray[np.int64]  # rows of (offset, nbytes)

_ROW = np.dtype("<u4")
_RANGES_AT_ONCE = 1000  # applied in 500 us, during which the GIL is mostly held


def ranges_of(blocks: Indexes, nbytes: int) -> Ranges:
    """Return the ranges of some blocks of a buffer, ascending; neighbours are one range."""
    if not len(blocks):
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(blocks) != 1)
    first = blocks[np.concatenate(([0], breaks + 1))].astype(np.int64) * BLOCK_BYTES
    end = (blocks[np.concatenate((breaks, [len(blocks) - 1]))].astype(np.int64) + 1) * BLOCK_BYTES
    return np.stack((first, np.minimum(end, nbytes) - first), axis=1)


def encode_ranges(ranges: Ranges) -> bytes:
    """Encode ranges of whole blocks.

    Per range two little-endian u32: the number of its first block and how many blocks it has.
    The last block of a buffer may be shorter than the others.
    """
    first = ranges[:, 0] // BLOCK_BYTES
    count = -(-ranges[:, 1] // BLOCK_BYTES)
    return np.stack((first, count), axis=1).astype(_ROW).tobytes()


def decode_ranges(payload: bytes, nbytes: int) -> Ranges:
    """Decode ranges inside a buffer of `nbytes`.

    Raises:
        StoreDamagedError: they are not ascending and disjoint, or not inside.
    """
    if len(payload) % (2 * _ROW.itemsize):
        raise StoreDamagedError("a table of changed ranges ends within a row")
    rows = np.frombuffer(payload, _ROW).reshape(-1, 2).astype(np.int64)
    first, end = rows[:, 0], rows[:, 0] + rows[:, 1]
    is_sound = bool((rows[:, 1] > 0).all()) and bool((first[1:] >= end[:-1]).all())
    if not is_sound or (len(rows) and end[-1] > count_of(nbytes, BLOCK_BYTES)):
        raise StoreDamagedError("a table of changed ranges does not fit its buffer")
    start = first * BLOCK_BYTES
    return np.stack((start, np.minimum(end * BLOCK_BYTES, nbytes) - start), axis=1)


def apply(target: Bytes, ranges: Ranges, chunks: Iterable[Bytes]) -> None:
    """Write the bytes of ranges into a buffer.

    Args:
        target: The buffer; bytes outside of all ranges stay.
        ranges: Ascending, disjoint, inside; checked before anything is written.
        chunks: The bytes of all ranges one after the other, in pieces of any size.

    Raises:
        StoreDamagedError: the ranges are not inside, or there are more or fewer bytes; then the
            buffer is unusable.
    """
    start, length = ranges[:, 0], ranges[:, 1]
    is_sound = bool((start >= 0).all()) and bool((length > 0).all())
    # This check first: a length that is inside cannot overflow the sum below.
    if not is_sound or (length > target.nbytes).any() or (start > target.nbytes - length).any():
        raise StoreDamagedError("changes reach outside of their buffer")
    if (start[1:] < start[:-1] + length[:-1]).any():
        raise StoreDamagedError("changes of a buffer overlap")
    rows = enumerate(ranges.tolist())
    at = left = 0  # of the current range
    for chunk in chunks:
        taken = 0
        while taken < chunk.nbytes:
            if not left:
                count, (at, left) = next(rows, (0, (0, 0)))
                if not left:
                    raise StoreDamagedError("there are more bytes than changes of a buffer")
                if count % _RANGES_AT_ONCE == _RANGES_AT_ONCE - 1:
                    let_others_run()
            step = min(left, chunk.nbytes - taken)
            target[at : at + step] = chunk[taken : taken + step]
            at, left, taken = at + step, left - step, taken + step
    if left or next(rows, None) is not None:
        raise StoreDamagedError("there are fewer bytes than changes of a buffer")
