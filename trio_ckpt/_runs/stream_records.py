"""The records of a stream: those that no batch saves, and those of the batches it skipped."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET

from .._commit.archive_states import prune_states
from .._commit.exits import Exit
from .._commit.open_stream import OpenStream
from .._journal.history import live_records
from .._journal.progress import FailedAttempt
from .._journal.record import ErrorInfo, Record, RecordKind
from .._util.errors import StreamBusyError
from .._util.plain import Plain, as_plain, copy_plain
from .._util.uninterrupted import uninterrupted
from .loop import LoopCursor


async def save_between(loop_cursor: LoopCursor, cursor: Plain) -> None:
    """Save state and cursor between batches; see `Stream.save`.

    Durability: when this returns they are durable.
    """
    open_stream, state_manager = loop_cursor.open_stream, loop_cursor.open_stream.state_manager
    if cursor is not UNSET:
        open_stream.check_cursor()
        cursor = as_plain(cursor, "cursor")
    await loop_cursor.settle_open(Exit.EXIT)
    if open_stream.open:
        raise StreamBusyError(
            "save() is for between batches: settle the open one first",
            run_id=open_stream.run_id,
            stream=open_stream.stream_log.key,
        )
    await open_stream.restore_state()
    saved = None if state_manager is None else await state_manager.save()
    state, blobs = (b"", ()) if saved is None else (saved.payload, saved.kept.blobs)
    record = Record(kind=RecordKind.SAVE, at=time.time(), cursor=cursor, state=state)
    sequence = await open_stream.save_plain(record, blobs)
    if state_manager is not None:
        state_manager.mark_durable(saved, sequence, record.at, is_confirmed=True)


async def save_finish(loop_cursor: LoopCursor, metadata: dict[str, Plain]) -> None:
    """Mark a stream as complete; see `Stream.finish`.

    Durability: when this returns the mark is durable.
    """
    await loop_cursor.settle_open(Exit.EXIT)
    await loop_cursor.wait_verified()
    loop_cursor.check_finished()
    stop = loop_cursor.progress.done.stop
    await loop_cursor.open_stream.save_finish(
        Record(
            kind=RecordKind.FINISH,
            at=time.time(),
            metadata=metadata,
            last_index=stop - 1 if stop > 0 else None,
        )
    )
    await prune_states(loop_cursor.open_stream, is_complete=True)


async def save_failure(open_stream: OpenStream, info: ErrorInfo) -> None:
    """Record that a stream has failed.

    Durability: when this returns the failure is durable.
    """
    await open_stream.save_plain(Record(kind=RecordKind.FAIL, at=time.time(), error=info))


@uninterrupted
async def skipped_batches(
    loop_cursor: LoopCursor,
) -> AsyncGenerator[tuple[int, Plain, FailedAttempt]]:
    """Read the skipped batches, newest first; see `Stream.skipped`."""
    open_stream, progress = loop_cursor.open_stream, loop_cursor.progress
    frontier, first = open_stream.frontier, open_stream.first_index
    async with aclosing(live_records(progress, loop_cursor.read, (RecordKind.SKIP,))) as records:
        async for entry in records:
            item = None if frontier is None else frontier.item(entry.index - first)
            failed = FailedAttempt(entry.record.attempts, entry.record.error)
            yield entry.index, copy_plain(item), failed
