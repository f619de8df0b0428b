"""The sum of the items of a stream, which shows whether a list has changed."""

from __future__ import annotations

import hashlib

MARK_BYTES = 16  # two lists of items have equal sums by chance once in 2**128
_MARK_BITS: int = 2 ** (8 * MARK_BYTES) - 1


def item_mark(index: int, digest: bytes) -> int:
    """What a batch adds to the sum of items; the index binds the item to its batch."""
    mark = hashlib.blake2b(b"%d\n" % index + digest, digest_size=MARK_BYTES).digest()
    return int.from_bytes(mark, "little")


def add_marks(marks: int, more: int, *, sign: int = 1) -> int:
    """The sum of two sums of items, or their difference."""
    return (marks + sign * more) & _MARK_BITS


def encode_marks(marks: int) -> bytes:
    """Encode a sum of items for storage; 0 becomes empty bytes."""
    return marks.to_bytes(MARK_BYTES, "little") if marks else b""


def decode_marks(stored: bytes) -> int:
    """Decode a sum of items, from at most `MARK_BYTES`; the inverse of `encode_marks`."""
    return int.from_bytes(stored[:MARK_BYTES], "little")
