"""Notes: plain values that batches keep beside them until they are confirmed, with what they cost.

They are kept encoded: what a program is given is a copy of its own, and their size is known.

A note is about an item.  The source may have another item for its batch when the run starts again,
since nothing that is done depends on it.  That one does not see the note, and begins its own: what
was set in motion for one item is not taken for the other's.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from .._util.errors import StoreDamagedError
from .._util.exact_sum import (
    ZERO,
    Amount,
    ExactSum,
    Number,
    StoredSum,
    add_amounts,
    add_sums,
    decode_sums,
    encode_sums,
    without_zeros,
)
from .._util.plain import Plain

_encoder = msgspec.msgpack.Encoder()


class StoredNote(msgspec.Struct, frozen=True, array_like=True):
    """A note on disk: its value, what it costs, and the digest of its item."""

    payload: msgspec.Raw
    cost: dict[str, StoredSum]
    item: bytes = b""


class Note(msgspec.Struct, frozen=True):
    """One note.

    Attributes:
        payload: Its value, encoded.
        cost: What it has put on record that something costs, by name.
        item: The digest of the item that it is about; empty: its batch has none.
    """

    payload: bytes
    cost: Mapping[str, ExactSum]
    item: bytes = b""

    def is_of(self, item: bytes) -> bool:
        """Whether it is about an item, by its digest."""
        return not item or not self.item or self.item == item


@attrs.define
class Notes:
    """The notes of the batches of one stream.

    Attributes:
        by_batch: The notes, by batch and by name; no batch has an empty dict.
        nbytes: The size of all names and values together, in bytes.
        total: What they cost together, by name, kept with each change: there may be many notes.
    """

    by_batch: dict[int, dict[str, Note]] = attrs.field(factory=dict[int, dict[str, Note]])
    nbytes: int = 0
    total: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])

    def put(
        self, index: int, name: str, payload: bytes, more: Mapping[str, Amount], item: bytes = b""
    ) -> None:
        """Set a note, encoded; it replaces that of the same name, and all notes of another item.

        Args:
            index: The batch.
            name: The name of the note.
            payload: Its value, encoded.
            more: What is added to its cost.
            item: The digest of the item of the batch; empty: it has none.
        """
        cost = dict(self.cost_of(index, name, item))
        add_amounts(cost, more)
        if len(self.of_item(index, item)) < len(self.by_batch.get(index, {})):
            self.without(index)
        self._put(index, name, Note(payload, cost, item))

    def _put(self, index: int, name: str, note: Note) -> None:
        mine = self.by_batch.setdefault(index, {})
        if name in mine:
            self._count(name, mine.pop(name), -1)
        mine[name] = note
        self._count(name, note, 1)

    def _count(self, name: str, note: Note, sign: int) -> None:
        """Add a note to the sums (``sign=-1``: subtract it)."""
        self.nbytes += sign * note_bytes(name, note.payload)
        if note.cost:
            add_sums(self.total, note.cost, sign=sign)
            self.total = without_zeros(self.total)

    def without(self, index: int) -> Notes | None:
        """Remove the notes of a batch, if it has some; returns None where none are left."""
        for name, note in self.by_batch.pop(index, {}).items():
            self._count(name, note, -1)
        return self if self.by_batch else None

    def of_item(self, index: int, item: bytes) -> dict[str, Note]:
        """The notes of a batch, by name, that are about its item.

        Args:
            index: The batch.
            item: The digest of the item; empty: it has none.
        """
        mine = self.by_batch.get(index, {})
        return {name: note for name, note in mine.items() if note.is_of(item)}

    def of(self, index: int, item: bytes = b"") -> dict[str, Plain]:
        """Copies of the values of `of_item`, by name.

        Raises:
            StoreDamagedError: a stored note is not a plain value.
        """
        try:
            return {
                name: msgspec.msgpack.decode(note.payload)
                for name, note in self.of_item(index, item).items()
            }
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StoreDamagedError(f"a note of batch {index} cannot be read: {error}") from error

    def cost_of(self, index: int, name: str, item: bytes = b"") -> Mapping[str, ExactSum]:
        """The cost of a note of an item; empty if there is none."""
        note = self.by_batch.get(index, {}).get(name)
        return {} if note is None or not note.is_of(item) else note.cost

    def change_of(
        self, index: int, name: str, cost: Mapping[str, Number], item: bytes = b""
    ) -> dict[str, ExactSum]:
        """By how much the cost of a note of an item changes, if it becomes another one."""
        was = self.cost_of(index, name, item)
        return {
            of: ZERO.plus(amount).with_sum(was.get(of, ZERO), -1) for of, amount in cost.items()
        }

    def costs(self, index: int) -> dict[str, ExactSum]:
        """What the notes of a batch cost together."""
        sums = dict[str, ExactSum]()
        for note in self.by_batch.get(index, {}).values():
            add_sums(sums, note.cost)
        return sums

    def copy(self) -> Notes:
        """A copy that later notes do not change."""
        by_batch = {index: dict(mine) for index, mine in self.by_batch.items()}
        return Notes(by_batch, self.nbytes, dict(self.total))

    @classmethod
    def decode(cls, stored: Mapping[int, Mapping[str, StoredNote]]) -> Notes | None:
        """Decode the notes of a fold, the inverse of `encode_notes`.

        Raises:
            ValueError: a cost is not a sum of finite floats.
        """
        notes = cls()
        for index, mine in stored.items():
            for name, one in mine.items():
                note = Note(bytes(one.payload), decode_sums(one.cost), one.item)
                notes._put(index, name, note)
        return notes if notes.by_batch else None


def encode_note(value: Plain) -> bytes:
    """The stored form of a note's value, which has been checked."""
    return _encoder.encode(value)


def note_bytes(name: str, payload: bytes) -> int:
    """The size of a note with its name, in bytes."""
    return len(name.encode()) + len(payload)


def encode_notes(notes: Notes | None) -> dict[int, dict[str, StoredNote]]:
    """The notes as a fold has them."""
    by_batch = {} if notes is None else notes.by_batch
    return {
        index: {
            name: StoredNote(msgspec.Raw(note.payload), encode_sums(note.cost), note.item)
            for name, note in mine.items()
        }
        for index, mine in by_batch.items()
    }
