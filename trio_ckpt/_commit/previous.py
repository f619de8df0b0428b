"""What the last generation knows of the items of a stream, for a run that is done again.

Theory of operation
===================

An item of the new generation is found in the last one by its key, not by its index: a list may
have changed its order, and a `Frontier` finds its items in another order each time.  Where the end
is open and no cursor says where the loop continues, the index is the key.  Where a cursor does, the
batches of the last generation are carried over whole, and the loop goes on behind them.

Memory has 24 bytes for each item, and the 57 bytes of a `bytearray` for 64 of them.  What the
record of an item says is in a temporary file, which is in memory up to `MAX_IN_MEMORY_BYTES`.

The record of a batch names the batch of the last generation that has its item, and whether it was
carried over.  This ensures that what is new, changed, unchanged and gone can be counted from the
records alone, by any process.
"""

# What will be saved with a batch is in a private field of it, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

import attrs

from .._journal.record import CheckpointResult, Record, decode_record, encode_record
from .._tokens.token import checkpoint_result
from .._util.errors import CannotRunAgainError
from .._util.index_set import IndexSet
from .._util.plain import item_digest
from .._util.uninterrupted import uninterrupted
from .batch import AnyBatch, staged_of
from .exits import Ending
from .gate import Gate

MAX_IN_MEMORY_BYTES = 64 * 2**20  # of what is known of the items of one stream
_DIGEST_BYTES = 8
_ENTRY = struct.Struct("<8sQQ")  # the digest of the key, the batch, the place in the file
_ENTRIES = 64  # in a bucket, on average
_LENGTH = struct.Struct("<I")


class KeyKind(enum.Enum):
    """What names an item of a stream."""

    NOTHING = "nothing"  # no batch of the last generation has a key: it has none, or adopted ones
    ITEM = "the key of an item of a list"
    FRONTIER = "the key of an item of a Frontier"
    INDEX = "the index of a batch"
    CURSOR = "nothing: its batches are carried over whole"


def index_digest(index: int) -> bytes:
    """The digest of a batch whose index is its key."""
    return index.to_bytes(_DIGEST_BYTES, "little")


class PreviousItems:
    """The items of one stream in the last generation.

    Args:
        kind: What names them.
        count: How many there are, about.
        generation: The last generation.
        where: The stream, for messages.
        damaged: The batches of the last generation whose outputs are not what was confirmed: their
            work is done again.
        requeued: The batches of this generation that were re-queued: their work is done again, too.
    """

    def __init__(self, kind: KeyKind, count: int, generation: int, where: str) -> None:
        self.kind = kind
        self.generation = generation
        self.where = where
        self.damaged = IndexSet()
        self.requeued = IndexSet()
        self._buckets = [bytearray() for _ in range(count // _ENTRIES + 1)]
        self._file = SpooledTemporaryFile(max_size=MAX_IN_MEMORY_BYTES)  # noqa: SIM115
        self._end = 0
        self._lock = threading.Lock()  # any thread may ask a batch

    def close(self) -> None:
        """Drop them."""
        with self._lock:
            self._file.close()

    def keep(self, record: Record) -> int:
        """Keep what a batch of the last generation had produced; returns its place."""
        known = Record(
            at=record.at,
            index=record.index,
            records=record.records,
            outputs=record.outputs,
            totals=record.totals,
            metadata=record.metadata,
        )
        payload, place = encode_record(known), self._end
        with self._lock:
            self._file.seek(place)
            self._file.write(_LENGTH.pack(len(payload)) + payload)
        self._end = place + _LENGTH.size + len(payload)
        return place

    def add(self, digest: bytes, index: int, place: int) -> None:
        """Enter a batch by the digest of its key.

        Raises:
            CannotRunAgainError: another one has the same key.
        """
        bucket = self._bucket(digest)
        for has, other, _ in _entries(bucket):
            if has == digest:
                raise CannotRunAgainError(
                    f"{self.where} has one key for batches {min(other, index)} and "
                    f"{max(other, index)} of generation {self.generation}, so they cannot be told "
                    "apart: give key= that tells them apart, and start once with fresh=True"
                )
        bucket += _ENTRY.pack(digest, index, place)

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """The batch that has a key, and its place; None: no batch has it."""
        for has, index, place in _entries(self._bucket(digest)):
            if has == digest:
                return index, place
        return None

    def read(self, place: int) -> Record:
        """What a batch of the last generation had produced.

        Raises:
            RuntimeError: the stream was left.
        """
        with self._lock:
            if self._file.closed:
                raise RuntimeError(
                    f"{self.where} was left: ask for batch.previous while the stream is open"
                )
            self._file.seek(place)
            (size,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            return decode_record(self._file.read(size))

    def _bucket(self, digest: bytes) -> bytearray:
        return self._buckets[int.from_bytes(digest, "little") % len(self._buckets)]

    def check_kind(self, *, has_key: bool, is_frontier: bool) -> None:
        """Check that a loop names its items as the last generation did.

        Raises:
            CannotRunAgainError: it does not.
        """
        now = KeyKind.FRONTIER if is_frontier else KeyKind.ITEM if has_key else KeyKind.INDEX
        wanted = KeyKind.INDEX if self.kind is KeyKind.CURSOR else self.kind
        if now is wanted or self.kind is KeyKind.NOTHING:
            return
        names = {
            KeyKind.ITEM: "a list, whose items have keys",
            KeyKind.FRONTIER: "a Frontier, whose items have keys",
            KeyKind.INDEX: "an open end, whose batches have no keys",
        }
        raise CannotRunAgainError(
            f"{self.where} cannot be compared with generation {self.generation}: its batches came "
            f"from {names[wanted]}, and now they come from {names[now]}; give it the source that "
            "it had, or start once with fresh=True"
        )


def _entries(bucket: bytearray) -> Iterator[tuple[bytes, int, int]]:
    return _ENTRY.iter_unpack(bucket)


@uninterrupted
@attrs.define(eq=False, repr=False)
class AgainGate(Gate):
    """The gate of a stream that is done again: each batch knows its item in the last generation.

    Attributes:
        previous: The items of the last generation.
    """

    previous: PreviousItems = attrs.field(kw_only=True)

    def hand_out(self, index: int, item: Any, digest: bytes) -> AnyBatch:
        """Make the next attempt at a batch; see `Gate.hand_out`.

        Raises:
            CannotRunAgainError: its source has no keys, or others than in the last generation.
        """
        frontier, previous = self.open_stream.frontier, self.previous
        previous.check_kind(has_key=bool(digest), is_frontier=frontier is not None)
        if frontier is not None:
            key = item_digest(frontier.key_of(item))
        else:
            key = digest or index_digest(index)
        batch = super().hand_out(index, item, digest)
        if previous.kind is not KeyKind.CURSOR:
            staged_of(batch).previous = previous.find(key)
        return batch

    def previous_of(self, batch: AnyBatch) -> CheckpointResult | None:
        """What the last generation knows of the item of a batch; None: nothing."""
        record = self._record_of(batch)
        if record is None:
            return None
        return checkpoint_result(record.outputs, record.metadata, record.records, record.at)

    def carry_over(self, batch: AnyBatch) -> Record:
        """What the last generation had of the item of a batch, to be confirmed once more.

        Raises:
            RuntimeError: it has nothing, or the attempt has written outputs.
            TypeError: the stream has a state, which a batch that is not done would not change.
        """
        record, staged = self._record_of(batch), staged_of(batch)
        if self.open_stream.state_manager is not None:
            raise TypeError(
                f"{self.open_stream.where(batch.index)} cannot be unchanged: its stream has a "
                "state, which later batches build on; do its work again"
            )
        if record is None:
            raise RuntimeError(
                f"{self.open_stream.where(batch.index)} cannot be unchanged: generation "
                f"{self.previous.generation} has no such item, batch.previous is None"
            )
        if staged.outputs or staged.adopted:
            raise RuntimeError(
                f"{self.open_stream.where(batch.index)} has written outputs, so it is not "
                "unchanged: complete() it"
            )
        return record

    async def _save(self, batch: AnyBatch, ending: Ending) -> bool:
        """See `Gate._save`; where what was carried over is refused, its work is done again."""
        is_saved, staged = await super()._save(batch, ending), staged_of(batch)
        if not is_saved and staged.carried is not None and staged.previous is not None:
            self.previous.damaged.add(staged.previous[0])
        return is_saved

    def _record_of(self, batch: AnyBatch) -> Record | None:
        found, previous = staged_of(batch).previous, self.previous
        if found is None or found[0] in previous.damaged or batch.index in previous.requeued:
            return None
        return previous.read(found[1])
