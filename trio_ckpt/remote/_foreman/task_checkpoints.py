"""The saved states of one work item, as a store has them."""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from ..._journal.history import iter_records
from ..._journal.record import TROUBLE, Record, RecordKind
from ..._journal.store import Store
from ..._util.plain import Plain
from ...state import decode_frame, frame_digest
from .._wire.names import TASK_STREAM


class Delta(msgspec.Struct, frozen=True):
    """A saved state that is a delta.

    Attributes:
        sequence: The sequence number of its record in the item's stream.
        size: Size in bytes, with its blob.
        digest: Digest of its frame, hexadecimal.
        created_at: Unix time, s.
    """

    sequence: int
    size: int
    digest: str
    created_at: float


class SavedStates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The saved states of an item, as far as they are known.

    Attributes:
        checkpoint_count: How often its state was saved.
        last_checkpoint_at: When it was saved last; Unix time, s.
        base_checkpoint_data: Digest of the saved state that the newest one builds on, hex; None:
            there is none, or it was removed when the item was done.
        base_checkpoint_size: Size of that state in bytes, with its blob.
        base_blob: The blob of that state; empty: it is in the store's records.
        delta_checkpoints: The states that build on it, the oldest first.
        inline_bytes: Size in the store's records of the newest saved state and of those that it
            builds on.
        file_bytes: Size of these states in blobs.
        problem: Why a state could not be saved, although the item continued; empty: no such
            problem.
    """

    checkpoint_count: int = 0
    last_checkpoint_at: float | None = None
    base_checkpoint_data: str | None = msgspec.field(default=None, name="base_digest")
    base_checkpoint_size: int = msgspec.field(default=0, name="base_size")
    base_blob: str = ""
    delta_checkpoints: tuple[Delta, ...] = msgspec.field(default=(), name="deltas")
    inline_bytes: int = 0
    file_bytes: int = 0
    problem: str = ""


class TaskCheckpoints(SavedStates, frozen=True, kw_only=True):
    """What an item's run says; stored with its result when the item is done.

    Attributes:
        progress_percent: The progress in the newest state; None: it has none.
        sequence: The sequence number of the newest record of the item's stream.
        saved_at: When that record was saved; Unix time, s.
        result: The return value of the item's function, if it has returned.
        is_done: Whether it has returned.
    """

    progress_percent: float | None = None
    sequence: int = 0
    saved_at: float | None = None
    result: Plain = None
    is_done: bool = False

    def to_plain(self) -> dict[str, Plain]:
        """Return the form that is stored with the result, without the result."""
        kept = msgspec.structs.replace(self, result=None, is_done=False)
        plain: dict[str, Plain] = msgspec.to_builtins(kept)
        return plain

    @classmethod
    def from_plain(cls, plain: object) -> TaskCheckpoints:
        """The inverse of `to_plain`; empty where the value is not in that form."""
        try:
            return msgspec.convert(plain, cls)
        except msgspec.ValidationError:
            return cls()


def _with_record(saved: TaskCheckpoints, sequence: int, record: Record) -> TaskCheckpoints:
    """Add a record to what is known; records come newest first."""
    changes: dict[str, object] = {}
    if not saved.sequence:
        changes = {"sequence": sequence, "saved_at": record.at}
    if record.kind is RecordKind.BATCH and not saved.is_done:
        changes |= {"result": record.metadata.get("result"), "is_done": True}
    problem = record.metadata.get(TROUBLE) if record.kind is RecordKind.NOTE else None
    if isinstance(problem, str) and not saved.problem:
        changes["problem"] = problem
    if record.state:
        changes["checkpoint_count"] = saved.checkpoint_count + 1
        if not saved.checkpoint_count:
            percent = record.metadata.get("progress_percent")
            changes["last_checkpoint_at"] = record.at
            changes["progress_percent"] = (
                float(percent) if isinstance(percent, int | float) else None
            )
        if saved.base_checkpoint_data is None:
            changes |= _with_frame(saved, sequence, record)
    return msgspec.structs.replace(saved, **changes) if changes else saved


def _with_frame(saved: TaskCheckpoints, sequence: int, record: Record) -> dict[str, object]:
    """Return what the frame of a record changes, where the newest state builds on it."""
    frame = decode_frame(record.state)
    file_bytes = frame.data_bytes if frame.blob else 0
    size = len(record.state) + file_bytes
    digest = frame_digest(record.state).hex()
    changes: dict[str, object] = {
        "inline_bytes": saved.inline_bytes + len(record.state),
        "file_bytes": saved.file_bytes + file_bytes,
    }
    if not frame.is_full:
        delta = Delta(sequence, size, digest, record.at)
        return changes | {"delta_checkpoints": (delta, *saved.delta_checkpoints)}
    base = {"base_checkpoint_data": digest, "base_checkpoint_size": size, "base_blob": frame.blob}
    return changes | base


async def read_task_checkpoints(store: Store, task_id: str) -> TaskCheckpoints:
    """Read the saved states of an item; empty where its run does not exist or is new.

    Raises:
        StoreDamagedError: a record is damaged.
    """
    stored = await store.read_run(task_id)
    saved = TaskCheckpoints()
    if stored is not None and stored.streams:
        records = iter_records(store, task_id, stored.generation, TASK_STREAM)
        async with aclosing(records):
            async for sequence, record in records:
                saved = _with_record(saved, sequence, record)
    return saved
