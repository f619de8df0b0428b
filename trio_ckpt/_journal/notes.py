"""Notes: plain values that batches keep beside them until they are confirmed.

They are kept encoded: what a program is given is a copy of its own, and their size is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from .._util.errors import StoreDamagedError
from .._util.plain import Plain

_encoder = msgspec.msgpack.Encoder()


@attrs.define
class Notes:
    """The notes of the batches of one stream.

    Attributes:
        by_batch: The encoded value of each note, by batch and by name; no batch has an empty dict.
        nbytes: The size of all names and values together, in bytes.
    """

    by_batch: dict[int, dict[str, bytes]] = attrs.field(factory=dict[int, dict[str, bytes]])
    nbytes: int = 0

    def put(self, index: int, name: str, payload: bytes) -> None:
        """Set a note of a batch, encoded; it replaces that of the same name."""
        mine = self.by_batch.setdefault(index, {})
        if name in mine:
            self.nbytes -= note_bytes(name, mine.pop(name))
        mine[name] = payload
        self.nbytes += note_bytes(name, payload)

    def without(self, index: int) -> Notes | None:
        """Remove the notes of a batch, if it has some; returns None where none are left."""
        for name, payload in self.by_batch.pop(index, {}).items():
            self.nbytes -= note_bytes(name, payload)
        return self if self.by_batch else None

    def of(self, index: int) -> dict[str, Plain]:
        """Copies of the notes of a batch, by name.

        Raises:
            StoreDamagedError: a stored note is not a plain value.
        """
        try:
            return {
                name: msgspec.msgpack.decode(payload)
                for name, payload in self.by_batch.get(index, {}).items()
            }
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StoreDamagedError(f"a note of batch {index} cannot be read: {error}") from error

    def copy(self) -> Notes:
        """A copy that later notes do not change."""
        return Notes({index: dict(mine) for index, mine in self.by_batch.items()}, self.nbytes)


def encode_note(value: Plain) -> bytes:
    """The stored form of a note's value, which has been checked."""
    return _encoder.encode(value)


def note_bytes(name: str, payload: bytes) -> int:
    """The size of a note with its name, in bytes."""
    return len(name.encode()) + len(payload)


def encode_notes(notes: Notes | None) -> dict[int, dict[str, msgspec.Raw]]:
    """The notes as a fold has them."""
    by_batch = {} if notes is None else notes.by_batch
    return {
        index: {name: msgspec.Raw(payload) for name, payload in mine.items()}
        for index, mine in by_batch.items()
    }


def decode_notes(stored: Mapping[int, Mapping[str, msgspec.Raw]]) -> Notes | None:
    """Decode the notes of a fold, the inverse of `encode_notes`."""
    notes = Notes()
    for index, mine in stored.items():
        for name, payload in mine.items():
            notes.put(index, name, bytes(payload))
    return notes if notes.by_batch else None
