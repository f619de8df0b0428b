"""Markers: which rows of a database are committed, for which batch of which stream.

A stream has a row in slot 0, its fence: who owns the stream, and up to which sequence number of its
records re-queued batches have lost their rows.  Each transaction that is open at a time has another
slot, with the newest batch that was committed there and its record.  A slot is used again when that
record is in the store.  So the table has as many rows as transactions were ever open at a time, and
one more, however many batches there are.
"""

from __future__ import annotations

from typing import Any

import attrs

from .._util.plain import StreamKey

TABLE = "trio_ckpt_markers"
FENCE = 0  # the slot of the fence

# Values are spelled as SQLite does; see `Driver.spell`.
HERE = "run = :run AND stream = :stream"
READ = (
    "SELECT slot, owner, began, sequence, batch, record FROM trio_ckpt_markers "
    f"WHERE {HERE} ORDER BY slot"  # of constants
)
TAKE = (
    "INSERT INTO trio_ckpt_markers (run, stream, slot, owner, began, sequence) "
    "VALUES (:run, :stream, 0, :owner, :began, 0) "
    "ON CONFLICT (run, stream, slot) DO UPDATE SET owner = excluded.owner "
    "WHERE trio_ckpt_markers.owner <= excluded.owner AND trio_ckpt_markers.began = excluded.began"
)
FOLLOWED = (
    "UPDATE trio_ckpt_markers SET sequence = :sequence "
    f"WHERE {HERE} AND slot = 0 AND owner = :owner AND began = :began"  # of constants
)
CLEAR = (
    "UPDATE trio_ckpt_markers SET batch = NULL, record = NULL "
    f"WHERE {HERE} AND slot = :slot"  # of constants
)


@attrs.frozen
class SinkMarker:
    """The batch that rows belong to; together its fields are a key for them.

    Attributes:
        run_id: The run.
        stream: The key of the stream.
        batch_index: The index of the batch.
    """

    run_id: str
    stream: StreamKey
    batch_index: int


@attrs.frozen
class MarkerRow:
    """A row of the table.

    Attributes:
        slot: Its slot; `FENCE` is that of the stream.
        owner: The owner number that wrote it.
        began: When the stream began, by its first record; Unix time, s.
        sequence: Up to this number of the stream's records no batch that they re-queue has rows.
        batch: The newest batch that was committed in the slot; None: none is marked.
        record: Its encoded record.
    """

    slot: int
    owner: int
    began: float
    sequence: int
    batch: int | None
    record: bytes | None


@attrs.frozen
class MarkedStream:
    """A stream as its markers name it.

    Attributes:
        run_id: The run.
        stream: The key of the stream as text.
        owner: The owner number of this process.
        began: When the stream began, by its first record; Unix time, s.
    """

    run_id: str
    stream: str
    owner: int
    began: float

    def values(self, **more: object) -> dict[str, object]:
        """The values of a statement about the stream."""
        place = {"run": self.run_id, "stream": self.stream}
        return {**place, "owner": self.owner, "began": self.began, **more}


def row_of(values: tuple[Any, ...]) -> MarkerRow:
    """Make a row of what `READ` returns."""
    slot, owner, began, sequence, batch, record = values
    return MarkerRow(slot, owner, began, sequence, batch, None if record is None else bytes(record))
