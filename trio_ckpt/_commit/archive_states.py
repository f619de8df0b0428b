"""Which states of a stream stay: old ones are deleted, or archived; pinned ones are kept.

Theory of operation
===================

A pin keeps the arrays of a state, whatever the retention says.  It is a record of its stream, so it
is durable, in the history, and part of progress.  It names the chain of the state that was the
newest confirmed one; chains are kept or dropped as a whole.  A rewind to before the batch of a pin
also removes the pin: the batch will have another state.

Archiving moves old states into another store instead of deleting them.  A chain is moved as it is:
its frames, in their order, and the blobs that they name.  They become notes of a stream of the same
key, in a run of the other store that is named after the run and its generation.  So archived states
are read, checked, listed and exported like all other records, and equal blobs of one generation are
stored once.

A chain is dropped from its own store only when it is durable in the other.  A crash in between
leaves it in both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import trio

from .._journal.history import iter_records
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind
from .._journal.store import RunKey, Store
from .._util.errors import StoreDamagedError, StoreError, TrioCkptError, describe_batch
from .._util.log import at, get_logger
from .._util.plain import check_label
from ..state import decode_frame
from ..state._chain import blobs_of
from ..stores import open_store
from .group_commit import GroupCommitter
from .lease import open_committer
from .open_stream import OpenStream
from .saves import save_record
from .stream_log import StreamLog

if TYPE_CHECKING:
    from .state_manager import StateManager

log = get_logger(__name__)

PAGE = 100  # records in memory at a time: each may have a state of its own
MAX_PINS = 1_000  # per stream: each fold of the stream contains all of them
READ_BYTES = 2**23  # how much of a blob is read at a time

Entries = list[tuple[int, Record]]  # records with their sequences


def archive_name(run_key: RunKey) -> str:
    """The id of the run that the states of a run are archived in."""
    return f"{run_key.run_id}-{run_key.generation}"


async def archive_chains(
    store: Store, run_key: RunKey, stream_log: StreamLog, dropped: dict[bytes, list[int]], url: str
) -> list[int]:
    """Copy chains of a stream into another store; one that is damaged is left out, with a warning.

    Args:
        store: The store that they are in.
        run_key: The run that they belong to.
        stream_log: The log of their stream.
        dropped: The chains by their lineages; for each the sequence numbers of its records that
            have blobs.
        url: The URL of the other store, which is created if it does not exist.

    Returns:
        The sequence numbers in `dropped` whose chains are in the other store now.

    Raises:
        RunLockedError: another process archives the same run.
        StoreError: the other store cannot be written.

    Durability: when this returns the copies are durable.
    Cancellation: the caller shields it.
    """
    archive_store = await open_store(url, mac_key=store.mac_key)
    damaged: set[bytes] = set()
    moved: set[bytes] = set()
    try:
        name = archive_name(run_key)
        async with archive_store.lock_run(name) as owner:
            view = await archive_store.load_run(name)
            generation = 0 if view is None else view.generation
            known = None if view is None else view.streams.get(stream_log.key)
            async with open_committer(archive_store, RunKey(name, generation, owner)) as committer:
                archive_log = committer.add_stream_log(
                    stream_log.key, Progress() if known is None else known.progress
                )
                async with aclosing(_chains(store, run_key, stream_log, dropped)) as chains:
                    async for lineage, chain in chains:
                        try:
                            for sequence, record in chain:
                                await _copy(
                                    store, run_key.run_id, committer, archive_log, sequence, record
                                )
                        except StoreDamagedError as error:
                            where = describe_batch(run_key.run_id, stream_log.key, None)
                            log.warning(
                                "an old state of %s is not archived: %s",
                                where,
                                error,
                                extra=at(run_key.run_id, stream_log.key),
                            )
                            damaged.add(lineage)
                        else:
                            moved.add(lineage)
    finally:
        with trio.CancelScope(shield=True):
            await archive_store.aclose()
    return [sequence for lineage in moved - damaged for sequence in dropped[lineage]]


async def _chains(
    store: Store, run_key: RunKey, stream_log: StreamLog, dropped: dict[bytes, list[int]]
) -> AsyncGenerator[tuple[bytes, Entries]]:
    """Yield each chain with its frames, oldest frame first; the newest chain comes first.

    A chain whose first frame is missing is left out.
    """
    waiting: dict[bytes, Entries] = {}
    oldest = min(sequence for sequences in dropped.values() for sequence in sequences)
    records = iter_records(store, run_key.run_id, run_key.generation, stream_log.key, limit=PAGE)
    async with aclosing(records):
        async for sequence, record in records:
            frame = decode_frame(record.state) if record.state else None
            if frame is not None and frame.lineage in dropped:
                waiting.setdefault(frame.lineage, []).append((sequence, record))
                if frame.is_full:  # a rewind may have started from it again: read on
                    yield frame.lineage, waiting.pop(frame.lineage)[::-1]
            if sequence <= oldest and not waiting:
                return


def _parts(
    store: Store, run_id: str, digest: str, size: int, trio_token: trio.lowlevel.TrioToken
) -> Iterator[bytes]:
    """Read a blob part by part; called in the thread of the store that it is copied into."""
    for offset in range(0, size, READ_BYTES):
        wanted = min(READ_BYTES, size - offset)
        yield trio.from_thread.run(
            store.read_blob, run_id, digest, offset, wanted, trio_token=trio_token
        )


async def _copy(
    store: Store,
    run_id: str,
    committer: GroupCommitter,
    archive_log: StreamLog,
    sequence: int,
    record: Record,
) -> None:
    blobs, token = blobs_of(record.state), trio.lowlevel.current_trio_token()
    for digest in blobs:
        size = decode_frame(record.state).data_bytes
        if await committer.put_blob(_parts(store, run_id, digest, size, token)) != digest:
            raise StoreDamagedError(f"blob {digest} of an old state is not what was saved")
    note = Record(
        kind=RecordKind.NOTE,
        at=record.at,
        index=record.index if record.kind is RecordKind.BATCH else None,
        metadata={"reason": f"archived: {record.kind.name.lower()} {sequence}"},
        state=record.state,
    )
    await save_record(committer, archive_log, note, blobs)


async def prune_states(open_stream: OpenStream, *, is_complete: bool = False) -> None:
    """Drop arrays of states that are not needed any more, best effort.

    Where they are archived first, that runs beside the loop.

    Cancellation: none.
    """
    state_manager = open_stream.state_manager
    if state_manager is None or not (state_manager.needs_pruning or is_complete):
        return
    pinned = {pin.lineage for pin in open_stream.stream_log.progress.pins.values()}
    dropped = state_manager.take_dropped(pinned, is_complete=is_complete)
    if not dropped or open_stream.committer.poison is not None:
        return
    archive = state_manager.versions.retention.archive
    if archive is None:
        sequences = [sequence for part in dropped.values() for sequence in part]
        await _drop(open_stream, state_manager, sequences)
    else:
        open_stream.nursery.start_soon(_archive, open_stream, state_manager, dropped, archive)


async def _archive(
    open_stream: OpenStream,
    state_manager: StateManager[Any],
    dropped: dict[bytes, list[int]],
    archive: str,
) -> None:
    with trio.CancelScope(shield=True):
        async with state_manager.tools.archiving:
            try:
                moved = await archive_chains(
                    state_manager.store,
                    open_stream.committer.run_key,
                    open_stream.stream_log,
                    dropped,
                    archive,
                )
            except TrioCkptError as error:
                log.warning(
                    "old states of %s are not archived and stay in the store: %s",
                    open_stream.where(),
                    error,
                    extra=open_stream.place(),
                )
                return
            if moved and open_stream.committer.poison is None:
                await _drop(open_stream, state_manager, moved)


async def _drop(
    open_stream: OpenStream, state_manager: StateManager[Any], sequences: list[int]
) -> None:
    with trio.CancelScope(shield=True):
        try:
            await state_manager.store.drop_blobs(
                open_stream.committer.run_key, open_stream.stream_log.text, sequences
            )
        except StoreError as error:
            log.warning(
                "old states of %s are not deleted and stay in the store: %s",
                open_stream.where(),
                error,
                extra=open_stream.place(),
            )


async def pin_state(open_stream: OpenStream, label: str) -> None:
    """Pin the newest confirmed state; see `Stream.pin`.

    Durability: when this returns the pin is durable.
    """
    check_label(label)
    pins = open_stream.stream_log.progress.pins
    if open_stream.state_manager is None:
        raise TypeError("open the stream with state=... to have a state to pin")
    if label not in pins and len(pins) >= MAX_PINS:
        raise ValueError(f"{open_stream.where()} has {MAX_PINS} pins: unpin one first")
    kept, done = open_stream.state_manager.confirmed, open_stream.stream_log.progress.done
    lineage = kept.chain[0][1].lineage if kept is not None and kept.chain else b""
    record = Record(
        kind=RecordKind.PIN,
        at=time.time(),
        index=done.stop - 1 if done else None,
        metadata={"label": label, "lineage": lineage.hex()},
    )
    has_moved = label in pins
    await open_stream.save_plain(record)
    if has_moved:
        open_stream.state_manager.prune_soon()
        await prune_states(open_stream)


async def unpin_state(open_stream: OpenStream, label: str) -> None:
    """Remove a pin; see `Stream.unpin`.

    Durability: when this returns the pin is durably removed.
    """
    pins = open_stream.stream_log.progress.pins
    if label not in pins:
        has = ", ".join(map(repr, pins)) or "none"
        raise ValueError(f"{open_stream.where()} has no pin {label!r}; it has: {has}")
    await open_stream.save_plain(
        Record(kind=RecordKind.UNPIN, at=time.time(), metadata={"label": label})
    )
    if open_stream.state_manager is not None:
        open_stream.state_manager.prune_soon()
    await prune_states(open_stream)
