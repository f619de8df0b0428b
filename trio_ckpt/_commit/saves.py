"""Records that are not about a batch: submitted like those of batches, and waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .._journal.record import Record, encode_record
from .._util.uninterrupted import uninterrupted
from .group_commit import GroupCommitter
from .stream_log import PendingCommit, StreamLog


@uninterrupted
async def save_record(
    committer: GroupCommitter,
    stream_log: StreamLog,
    record: Record,
    blobs: tuple[str, ...] = (),
    *,
    on_durable: Callable[[], None] = lambda: None,
) -> int:
    """Save a record that is not about a batch, and wait for it.

    Args:
        committer: Saves it.
        stream_log: The log of its stream.
        record: The record.
        blobs: The blobs that its state names.
        on_durable: Called when the record is durable and progress includes it, before any
            other task runs.

    Returns:
        The sequence number of the record; there may be later ones already.

    Raises:
        NotEncodableError: a value in it cannot be encoded.
        Exception: the reason why it was not saved.

    Durability: when this returns the record is durable.
    Cancellation: none once it is submitted.
    """
    pending = await committer.submit(
        stream_log,
        record,
        encode_record(record),
        lambda error: on_durable() if error is None else None,
        blobs=blobs,
    )
    await pending.wait()
    return pending.checkpoint.sequence


@uninterrupted
async def save_aside(
    committer: GroupCommitter, stream_log: StreamLog, record: Record, *, is_due: bool = False
) -> PendingCommit:
    """Save a record on which no batch depends; wait unless it may wait for others.

    Args, Raises: as for `save_record`; `is_due`: it may not wait for other records.

    Durability: when this returns the record is durable, if it is due or the store is not far.
        Else it is durable with the next record, or when the run is left.
    Cancellation: none once it is submitted.
    """
    payload = encode_record(record)
    if committer.is_far and not is_due:
        return await committer.submit(
            stream_log, record, payload, stream_log.note_unsaved, is_due=False
        )
    pending = await committer.submit(stream_log, record, payload, lambda _error: None)
    await pending.wait()
    return pending


@uninterrupted
async def save_records(
    committer: GroupCommitter, records: Iterable[tuple[StreamLog, Record]]
) -> None:
    """Save several records, none of which is about a batch, in one group.

    Raises:
        NotEncodableError: a value in a record cannot be encoded.
        Exception: the reason why the first of the failed records was not saved; the others
            may have been.

    Durability: when this returns all of them are durable.
    Cancellation: none once they are submitted.
    """
    pending_commits = [
        await committer.submit(stream_log, record, encode_record(record), lambda _error: None)
        for stream_log, record in records
    ]
    for pending in pending_commits:
        await pending.wait()
