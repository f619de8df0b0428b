"""Ranges of a buffer: how the blocks of a delta are encoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..._util.errors import StoreDamagedError
from .block_digests import BLOCK_BYTES, Indexes, count_of

Ranges = npt.NDArray[np.int64]  # rows of (offset, nbytes)

_ROW = np.dtype("<u4")


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
