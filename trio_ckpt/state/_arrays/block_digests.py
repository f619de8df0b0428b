"""Digests of a saved buffer: spans of 128 KiB, and blocks of 4 KiB in them.

The digest is xxh3_128 (XXH3 of xxHash, https://github.com/Cyan4973/xxHash): it detects
changes, but no attacks.  A block whose digest is unknown counts as changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import attrs
import numpy as np
import numpy.typing as npt
import outcome
import xxhash

from ..._util.errors import NoThreadError
from ..._util.threads import start_thread
from .memory import Bytes

Indexes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

BLOCK_BYTES = 2**12  # the unit of a delta: the page of most machines
SPAN_BYTES = 2**17  # the smallest input for which xxhash releases the GIL
DIGEST_BYTES = 16
BLOCKS_PER_SPAN = SPAN_BYTES // BLOCK_BYTES
SPANS_AT_ONCE = 128  # hashed in 1 ms, during which other threads may not get the GIL
TWO_THREADS_FROM_BYTES = 2**24  # hashed in 1.5 ms, where a thread starts in 0.1 ms
_BLOCKS_AT_ONCE = 256  # hashed in 100 to 300 us, during which the GIL is held
HELD_S = 300e-6  # how long the GIL is held between two pauses, not counting the piece at the end


def count_of(nbytes: int, size: int) -> int:
    """Return the number of pieces of `size`; the last one may be shorter."""
    return -(-nbytes // size)


class _Turn(threading.local):
    """When this thread last released the GIL, on the clock of `time.perf_counter`."""

    ended: float = 0.0


_turn = _Turn()


def let_others_run() -> None:
    """Release the GIL, unless this thread has just done so, until a waiting thread wakes up.

    After a shorter pause the thread would still wait for its turn, 5 ms.  Among thousands of small
    arrays a pause for each would take longer than their digests.
    """
    if time.perf_counter() - _turn.ended >= HELD_S:
        time.sleep(20e-6)  # 70 us with the slack of Linux' timers
        _turn.ended = time.perf_counter()


def span_digests(data: Bytes) -> Iterator[bytes]:
    """Yield the digest of each span; hashing releases the GIL, except for a short last span."""
    view = data.data
    for start in range(0, data.nbytes, SPAN_BYTES):
        yield xxhash.xxh3_128_digest(view[start : start + SPAN_BYTES])


def span_rows(data: Bytes) -> Bytes:
    """Return the digests of all spans as rows; two threads hash a large buffer.

    It blocks: 0.1 ms per MiB, or half of that with two threads.
    """
    half = count_of(data.nbytes, SPAN_BYTES) // 2 * SPAN_BYTES
    if data.nbytes < TWO_THREADS_FROM_BYTES:
        half = 0
    outcomes: list[outcome.Outcome[list[bytes]]] = []

    def hash_first() -> None:
        outcomes.append(outcome.capture(_hash_spans, data[:half]))

    try:
        helper = start_thread(hash_first, "trio_ckpt hashes a state") if half else None
    except NoThreadError:
        half, helper = 0, None
    rest = _hash_spans(data[half:])
    if helper is None:
        return rows_of(rest)
    helper.join()
    return rows_of(outcomes[0].unwrap() + rest)


def _hash_spans(data: Bytes) -> list[bytes]:
    found: list[bytes] = []
    for start in range(0, data.nbytes, SPANS_AT_ONCE * SPAN_BYTES):
        let_others_run()
        found += span_digests(data[start : start + SPANS_AT_ONCE * SPAN_BYTES])
    return found


def block_digests(data: Bytes) -> Bytes:
    """Return the digests of all blocks, as rows of 16 bytes."""
    digest, view, found = xxhash.xxh3_128_digest, data.data, list[bytes]()
    for start in range(0, data.nbytes, BLOCK_BYTES):
        if start % (_BLOCKS_AT_ONCE * BLOCK_BYTES) == 0:
            let_others_run()
        found.append(digest(view[start : start + BLOCK_BYTES]))
    return rows_of(found)


def rows_of(digests: list[bytes]) -> Bytes:
    """Return digests as rows of 16 bytes."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def unknown_rows(count: int) -> Bytes:
    """Return rows of unknown digests: 16 zeros each, which differ from every digest.

    A digest of zeros is as improbable as two equal digests of different blocks.
    """
    return np.zeros((count, DIGEST_BYTES), np.uint8)


def differ(old: Bytes, rows: Bytes) -> Mask:
    """Return which digests differ from old ones."""
    found: Mask = (old != rows).any(axis=1)
    return found


def updated(rows: Bytes, news: list[tuple[Indexes, Bytes | None]]) -> Bytes:
    """Return a copy of rows with new digests; None: they become unknown."""
    if not news:
        return rows
    rows = rows.copy()
    for count, (indexes, found) in enumerate(news):
        if count % 64 == 63:
            let_others_run()
        rows[indexes] = 0 if found is None else found
    return rows


@attrs.frozen(eq=False, kw_only=True)
class DigestTable:
    """The digests of one saved buffer; never altered, so a failed save needs no repair.

    Attributes:
        nbytes: The length of the buffer.
        spans: The digests of its spans, see `rows_of`.
        blocks: The digests of its blocks.
        region: The tracker's number of its memory, or None.
        scan: The tracker's number of its scan at that save.
        root: The immutable object that the buffer was, or None.
        address: The address of the buffer.
        hot_for: How many saves in a row changed much, see `capture.DENSE_ABOVE`.
        dense_for: How many saves in a row copied all for this reason.
    """

    nbytes: int
    spans: Bytes = attrs.field(repr=False)
    blocks: Bytes = attrs.field(repr=False)
    region: int | None = None
    scan: int | None = None
    root: object = attrs.field(default=None, repr=False)
    address: int = 0
    hot_for: int = 0
    dense_for: int = 0


def empty_table(nbytes: int) -> DigestTable:
    """Return a table with unknown digests: everything counts as changed."""
    return DigestTable(
        nbytes=nbytes,
        spans=unknown_rows(count_of(nbytes, SPAN_BYTES)),
        blocks=unknown_rows(count_of(nbytes, BLOCK_BYTES)),
    )


def make_table(data: Bytes) -> DigestTable:
    """Return the table of a buffer that is equal to the last save, as after a restore.

    It blocks: 0.3 ms per MiB.
    """
    spans, blocks = span_rows(data), block_digests(data)
    return DigestTable(nbytes=data.nbytes, spans=spans, blocks=blocks)
