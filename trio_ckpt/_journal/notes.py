"""Notes: plain values that batches keep beside them until they are confirmed, with what they cost.

They are kept encoded: what a program is given is a copy of its own, and their size is known.
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
)
from .._util.plain import Plain

_encoder = msgspec.msgpack.Encoder()

StoredNote = tuple[msgspec.Raw, dict[str, StoredSum]]


@attrs.frozen
class Note:
    """One note.

    Attributes:
        payload: Its value, encoded.
        cost: What it has put on record that something costs, by name.
    """

    payload: bytes
    cost: Mapping[str, ExactSum]


@attrs.define
class Notes:
    """The notes of the batches of one stream.

    Attributes:
        by_batch: The notes, by batch and by name; no batch has an empty dict.
        nbytes: The size of all names and values together, in bytes.
    """

    by_batch: dict[int, dict[str, Note]] = attrs.field(factory=dict[int, dict[str, Note]])
    nbytes: int = 0

    def put(self, index: int, name: str, payload: bytes, more: Mapping[str, Amount]) -> None:
        """Set a note of a batch, encoded; it replaces that of the same name.

        Args:
            index: The batch.
            name: The name of the note.
            payload: Its value, encoded.
            more: What is added to its cost.
        """
        cost = dict(self.cost_of(index, name))
        add_amounts(cost, more)
        self._put(index, name, Note(payload, cost))

    def _put(self, index: int, name: str, note: Note) -> None:
        mine = self.by_batch.setdefault(index, {})
        if name in mine:
            self.nbytes -= note_bytes(name, mine.pop(name).payload)
        mine[name] = note
        self.nbytes += note_bytes(name, note.payload)

    def without(self, index: int) -> Notes | None:
        """Remove the notes of a batch, if it has some; returns None where none are left."""
        for name, note in self.by_batch.pop(index, {}).items():
            self.nbytes -= note_bytes(name, note.payload)
        return self if self.by_batch else None

    def of(self, index: int) -> dict[str, Plain]:
        """Copies of the notes of a batch, by name.

        Raises:
            StoreDamagedError: a stored note is not a plain value.
        """
        try:
            return {
                name: msgspec.msgpack.decode(note.payload)
                for name, note in self.by_batch.get(index, {}).items()
            }
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StoreDamagedError(f"a note of batch {index} cannot be read: {error}") from error

    def cost_of(self, index: int, name: str) -> Mapping[str, ExactSum]:
        """The cost of a note; empty if there is none."""
        note = self.by_batch.get(index, {}).get(name)
        return {} if note is None else note.cost

    def change_of(self, index: int, name: str, cost: Mapping[str, Number]) -> dict[str, ExactSum]:
        """By how much the cost of a note changes, if it becomes another one."""
        was = self.cost_of(index, name)
        return {
            of: ZERO.plus(amount).with_sum(was.get(of, ZERO), -1) for of, amount in cost.items()
        }

    def costs(self, index: int | None = None) -> dict[str, ExactSum]:
        """What the notes of a batch cost together; without an index, those of all batches."""
        sums = dict[str, ExactSum]()
        every = self.by_batch.values() if index is None else [self.by_batch.get(index, {})]
        for mine in every:
            for note in mine.values():
                add_sums(sums, note.cost)
        return sums

    def copy(self) -> Notes:
        """A copy that later notes do not change."""
        return Notes({index: dict(mine) for index, mine in self.by_batch.items()}, self.nbytes)

    @classmethod
    def decode(cls, stored: Mapping[int, Mapping[str, StoredNote]]) -> Notes | None:
        """Decode the notes of a fold, the inverse of `encode_notes`.

        Raises:
            ValueError: a cost is not a sum of finite floats.
        """
        notes = cls()
        for index, mine in stored.items():
            for name, (payload, cost) in mine.items():
                notes._put(index, name, Note(bytes(payload), decode_sums(cost)))
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
            name: (msgspec.Raw(note.payload), encode_sums(note.cost)) for name, note in mine.items()
        }
        for index, mine in by_batch.items()
    }
