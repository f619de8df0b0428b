"""What changed from one generation of a run to the one that began from it, read from the records.

The record of each batch names the batch of the last generation that has its item.  So the
comparison needs no keys: it reads the records of both generations once, a page at a time, and
keeps only which batches of the last one were named.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import attrs

from .._util.errors import CannotRunAgainError
from .._util.index_set import IndexSet
from .._util.plain import RUN_STREAM, Plain, StreamKey
from .history import (
    DONE_KINDS,
    ENDED,
    DoneKind,
    LiveRecords,
    how_ended,
    read_pages,
    session_metadata_of,
)
from .progress import Progress
from .record import Output, Record, RecordKind, Status
from .store import RunView, Store
from .summary import is_users

AGAIN = "again"  # in session metadata: what its generation began from, and what has changed since


class Change(enum.Enum):
    """How an item differs from the last generation."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    GONE = "gone"
    SKIPPED = "skipped"


@attrs.frozen
class ItemChange:
    """An item of a generation, compared with the one that it began from.

    Attributes:
        stream: Its stream.
        change: How it differs.
        batch: Its batch; None: it is gone.
        previous: Its batch in the last generation; None: it is new.
        outputs: Its outputs; of an item that is gone, those that it had.
    """

    stream: StreamKey
    change: Change
    batch: int | None
    previous: int | None
    outputs: tuple[Output, ...]


@attrs.frozen
class BeganFrom:
    """What session metadata say of a generation that began from another one.

    Attributes:
        base: The generation that it began from.
        checkpoints: How many checkpoints it had when it was found complete; None: it was not yet.
        counts: How many items were new, changed, unchanged, gone and skipped then.
    """

    base: int
    checkpoints: int | None = None
    counts: Mapping[str, int] = attrs.field(factory=dict[str, int])

    def plain(self) -> dict[str, Plain]:
        """What is saved of it."""
        return attrs.asdict(self)


def again_of(metadata: Mapping[str, Plain], generation: int) -> BeganFrom | None:
    """What session metadata say of it; None: the generation did not begin from another one.

    A run that was imported has its records under another number, and the older ones not at all.
    """
    found = BeganFrom(**metadata[AGAIN]) if AGAIN in metadata else None
    return found if found is not None and found.base < generation else None


def is_all_complete(parts: Mapping[StreamKey, Progress]) -> bool:
    """Whether all streams and phases that have begun are complete, and there are any."""
    begun = [part for key, part in parts.items() if key and part.sequence > 0]
    return bool(begun) and all(part.status is Status.COMPLETE for part in begun)


def count_checkpoints(parts: Mapping[StreamKey, Progress]) -> int:
    """How many checkpoints all streams but the run's own have."""
    return sum(part.sequence for key, part in parts.items() if key != RUN_STREAM)


def is_complete(view: RunView) -> bool:
    """Whether a generation is complete, so that the next one can begin from it."""
    parts = {key: entry.progress for key, entry in view.streams.items()}
    metadata = session_metadata_of(view)
    if not is_all_complete(parts):
        return False
    again = again_of(metadata, view.generation)
    if again is None:
        return how_ended(metadata) == ENDED
    return again.checkpoints == count_checkpoints(parts)


def check_prunable(view: RunView, keep: int) -> None:
    """Check that a prune leaves the generation that the newest one began from and still needs.

    Args:
        view: The newest generation.
        keep: How many generations are left; 0 removes the run.

    Raises:
        CannotRunAgainError: it would be removed, and the newest one was never complete.
    """
    again = again_of(session_metadata_of(view), view.generation)
    if again is None or again.checkpoints is not None or keep == 0:
        return
    if again.base <= view.generation - keep:
        raise CannotRunAgainError(
            f"run {view.run_id!r} is being done again: its generation {view.generation} needs "
            f"generation {again.base} until it is complete; prune it then, or keep "
            f"{view.generation - again.base + 1}",
            run_id=view.run_id,
        )


def counts_text(counts: Mapping[str, int]) -> str:
    """The counts of changes, in words."""
    texts = [f"{count:,} {name}" for name, count in counts.items() if count or name != "skipped"]
    return ", ".join(texts)


async def iter_changes(
    store: Store, now: RunView, base: RunView, *, is_complete: bool
) -> AsyncGenerator[list[ItemChange]]:
    """The items of a generation, compared with the one that it began from, a page at a time.

    Args:
        store: The store of the run.
        now: The generation.
        base: The generation that it began from.
        is_complete: Whether all of it is done, so that what it does not have is gone.

    Raises:
        StoreDamagedError: a record is not what was saved.

    Cancellation: a cancellation point for each page.
    """
    for key in dict.fromkeys((*now.streams, *base.streams)):
        if is_users(key):
            named = IndexSet()
            async with aclosing(_live(store, now, key, DONE_KINDS)) as pages:
                async for records in pages:
                    yield [_compared(key, record, named) for record in records]
            if is_complete:
                async with aclosing(_live(store, base, key, (RecordKind.BATCH,))) as pages:
                    async for records in pages:
                        yield [
                            ItemChange(key, Change.GONE, None, record.index, record.outputs)
                            for record in records
                            if record.index is not None and record.index not in named
                        ]


def _compared(key: StreamKey, record: Record, named: IndexSet) -> ItemChange:
    if record.previous is not None:
        named.add(record.previous)
    change = Change.NEW if record.previous is None else Change.CHANGED
    if record.kind is RecordKind.SKIP:
        change = Change.SKIPPED
    elif record.unchanged:
        change = Change.UNCHANGED
    return ItemChange(key, change, record.index, record.previous, record.outputs)


async def _live(
    store: Store, view: RunView, key: StreamKey, kinds: tuple[DoneKind, ...]
) -> AsyncGenerator[list[Record]]:
    """The records of a stream that no later one has reverted, a page at a time."""
    if key in view.streams:
        live = LiveRecords(view.streams[key].progress)
        async with aclosing(read_pages(store, view.run_id, view.generation, key)) as pages:
            async for records in pages:
                yield [entry.record for entry in live.of(records, kinds)]
