"""`Store.save` of a store in a bucket: one PUT a group.

The group becomes the next entry of the log, whole or not at all.  Nothing is read or listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs

from ..._buckets.clock import StoreClock
from ..._buckets.requests import Requests
from ..._journal.store import Checkpoint, Fold, RunKey
from ..._util.errors import StoreConflictError, StoreError
from .._local.blobs import names_of, need_digest
from .._local.fence import refuse_generation, save_each
from .entries import Generation, LogEntry, LogRecord, NewBlob, NewFold, StreamHead
from .owning import OwnedLog, append

_TICK_S = 1e-6  # the newest record is never older than one before it, also of another owner


@attrs.define
class _EntryPlan:
    """What a save will change.

    Attributes:
        heads: The heads before it.
        position: The position that its entry will have.
        moved: The heads after it: sequence and position.
        records: The records that are saved.
        uploads: The blobs that they are the first to name.
    """

    heads: dict[str, StreamHead]
    position: int
    moved: dict[str, tuple[int, int]] = attrs.field(factory=dict[str, tuple[int, int]])
    records: list[LogRecord] = attrs.field(factory=list[LogRecord])
    uploads: dict[str, NewBlob] = attrs.field(factory=dict[str, NewBlob])

    def end_of(self, stream: str) -> tuple[int, int]:
        """The sequence and the position of the newest record of a stream; zeros: it has none."""
        head = self.moved.get(stream)
        if head is None:
            stored = self.heads.get(stream, StreamHead())
            head = (stored.sequence, stored.position)
        return head


def save_group(
    requests: Requests,
    clock: StoreClock,
    owned: OwnedLog,
    key: RunKey,
    group: Sequence[Checkpoint],
    folds: Sequence[Fold],
    summary: bytes | None,
) -> list[Exception | None]:
    """See `Store.save`; the caller has compared the owner with that of this handle."""
    state = owned.loaded.state
    is_next = key.generation == state.generation + 1
    if not is_next and (key.generation != state.generation or state.newest is None):
        raise refuse_generation(state.generation, key)
    before = Generation(0) if is_next or state.newest is None else state.newest
    plan = _EntryPlan(before.heads, state.position + 1)
    outcomes = save_each(group, partial(_plan_one, owned, plan))
    kept = {fold.stream: fold for fold in folds if 1 <= fold.through <= plan.end_of(fold.stream)[0]}
    entry = LogEntry(
        key.owner,
        key.generation,
        max(clock.now(), (before.updated_at or 0.0) + _TICK_S),
        records=tuple(plan.records),
        folds=tuple(NewFold(fold.stream, fold.through, fold.payload) for fold in kept.values()),
        uploads=tuple(plan.uploads.values()),
        summary=summary,
    )
    append(requests, owned, entry)
    _unpin(owned, plan.records)
    return outcomes


def _plan_one(owned: OwnedLog, plan: _EntryPlan, checkpoint: Checkpoint) -> None:
    sequence, position = plan.end_of(checkpoint.stream)
    if checkpoint.sequence != sequence + 1:
        raise StoreConflictError(f"the next one is {sequence + 1}")
    try:
        checkpoint.stream.encode()
    except UnicodeEncodeError as error:
        raise StoreError("its stream has a key with half a character") from error
    new = list[NewBlob]()
    for digest in names_of(checkpoint):
        need_digest(digest)
        if digest in owned.loaded.state.uploads:
            continue
        put = owned.puts.get(digest)
        if put is None:
            raise StoreError(f"blob {digest} was not put")
        new.append(NewBlob(digest, put.upload, put.size))
    plan.uploads.update((one.digest, one) for one in new)
    plan.records.append(
        LogRecord(
            checkpoint.stream,
            checkpoint.sequence,
            position,
            bytes(checkpoint.payload),
            checkpoint.blob,
            tuple(dict.fromkeys(checkpoint.blobs)),
        )
    )
    plan.moved[checkpoint.stream] = (checkpoint.sequence, plan.position)


def _unpin(owned: OwnedLog, records: Sequence[LogRecord]) -> None:
    """Each record uses up one put of each blob that it names."""
    if not owned.puts:
        return
    for record in records:
        for digest in {*record.blobs, *((record.blob,) if record.blob else ())}:
            put = owned.puts.get(digest)
            if put is not None:
                put.pins -= 1
                if not put.pins:
                    del owned.puts[digest]
