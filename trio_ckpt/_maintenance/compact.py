"""Merges the saved states of a stream into one, and drops old ones.

Theory of operation
===================

A state that is saved as differences is restored by reading all of them.  Compacting reads it once
and appends it whole: as a note if it is a confirmed state, and as another snapshot if it is from
inside a batch.  Nothing else changes, and no record leaves the history; a crash leaves the old
chain, or both.

Then the arrays of all states that the retention does not name are dropped, also those of states
that are too old for any session to have read them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

import attrs
import msgspec
from msgspec.structs import replace

from .._commit.archive_states import archive_chains
from .._commit.group_commit import GroupCommitter
from .._commit.saves import save_record
from .._commit.state_capture import StateCapture
from .._commit.state_manager import StateManager
from .._commit.stored_state import EncodedState
from .._commit.stream_log import StreamLog
from .._journal.history import iter_records, read_pages
from .._journal.record import Record, RecordKind, Status
from .._journal.store import Store
from .._util.threads import run_blocking
from ..state import Plan, StateFrame, tree_of
from ..state._chain import blobs_of, fill, layout_of, read_chain, version_of
from ..state._retention import Retention, Versions
from ..state._shared_capture import ArrayTools

PAGE = 100  # records held at a time: each may have its own state
REASON = "the saved state was compacted"


@attrs.frozen
class Compacted:
    """The result of compacting.

    Attributes:
        merged: Streams whose newest state was saved again, whole.
        frames: Saved states that a restore of these had to read before.
        dropped: Old states whose arrays were dropped.
        freed_bytes: Size of those arrays, as they were stored.
    """

    merged: int = 0
    frames: int = 0
    dropped: int = 0
    freed_bytes: int = 0


def add_up(parts: Iterable[Compacted]) -> Compacted:
    """Add up several results."""
    rows = [attrs.astuple(part) for part in parts]
    return Compacted(*map(sum, zip(*rows, strict=True))) if rows else Compacted()


@attrs.define(eq=False)
class Compaction:
    """Compacts the states of one stream; no task may work on the stream.

    Attributes:
        store: The store of the states.
        committer: Saves records.
        stream_log: The stream.
        tools: Captures the arrays.
        retention: Which old states keep their arrays.
        begin: Called before the first record.
    """

    store: Store
    committer: GroupCommitter
    stream_log: StreamLog
    tools: ArrayTools
    retention: Retention
    begin: Callable[[], Awaitable[None]]

    async def run(self) -> Compacted:
        """Merge the newest state, and drop old ones.

        Raises:
            StoreDamagedError: a saved state is damaged.
            StoreError: the store cannot be read or written; or the state has arrays, and the
                packages for arrays are not installed.

        Durability: when this returns the merged state is saved.
        Cancellation: a cancellation point between parts.
        """
        if not self.stream_log.progress.has_state:
            return Compacted()
        chain, record = await read_chain(self._pages())
        frames = [frame for _, frame in chain]
        if record is not None and len(frames) > 1:
            await self._merge(frames, record)
        dropped, freed_bytes = await self._drop_old()
        merged = len(frames) > 1
        return Compacted(int(merged), len(frames) if merged else 0, dropped, freed_bytes)

    def _pages(self) -> AsyncGenerator[list[tuple[int, Record]]]:
        key = self.committer.run_key
        return read_pages(self.store, key.run_id, key.generation, self.stream_log.key, limit=PAGE)

    async def _merge(self, frames: list[StateFrame], record: Record) -> None:
        saved = await self._pack(frames)
        await self.begin()
        metadata = {"reason": REASON}
        note = Record(kind=RecordKind.NOTE, at=time.time(), metadata=metadata, state=saved.payload)
        again = note
        if record.kind is RecordKind.SNAPSHOT:
            metadata = {**record.metadata, **metadata}
            index, attempts = record.index, record.attempts
            again = replace(
                note, kind=record.kind, index=index, attempts=attempts, metadata=metadata
            )
        await save_record(self.committer, self.stream_log, again, blobs_of(saved.payload))

    async def _pack(self, frames: list[StateFrame]) -> EncodedState:
        """Build a full frame of the state that a chain ends with; its blob is durable."""
        state_manager = StateManager(
            self.store, self.committer, Plan[None].of(None), None, self.tools
        )
        held = None
        if layout_of(frames).views:
            engine = self.tools.engine()
            from ..state._arrays.engine import Assembly  # NumPy is an extra

            assembly = Assembly(frames)
            run_id = self.committer.run_key.run_id
            await fill(self.store, run_id, assembly, frames, engine.compressor)
            held = await run_blocking(engine.hold_assembled, assembly)
        capture = StateCapture(state_manager, None, tree_of(frames), held)
        saved = await capture.encode(is_forced=True)
        if saved is None:
            raise RuntimeError("a full state frame was due, but nothing was captured")
        return saved

    async def _drop_old(self) -> tuple[int, int]:
        """Drop the arrays of states; return how many states, and their bytes."""
        progress = self.stream_log.progress
        versions, needed = Versions(self.retention), {p.lineage for p in progress.pins.values()}
        for with_snapshots in (True, False):
            chain, _ = await read_chain(self._pages(), with_snapshots=with_snapshots)
            needed.update(frame.lineage for _, frame in chain[:1])
        key, stream, named = self.committer.run_key, self.stream_log.key, set[int]()
        async with aclosing(
            iter_records(self.store, key.run_id, key.generation, stream, limit=PAGE, named=named)
        ) as records:
            async for sequence, record in records:
                if record.state:
                    version = version_of(sequence, record)
                    is_kept = sequence in named  # otherwise it was dropped before
                    versions.add_older(
                        version if is_kept else msgspec.structs.replace(version, blob_bytes=0)
                    )
        is_complete = progress.status is Status.COMPLETE
        dropped = versions.take_dropped(needed, is_complete=is_complete)
        if not dropped:
            return 0, 0
        sequences = [sequence for part in dropped.values() for sequence in part]
        if (archive := self.retention.archive) is not None:
            sequences = await archive_chains(self.store, key, self.stream_log, dropped, archive)
        return len(sequences), await self.store.drop_blobs(key, self.stream_log.text, sequences)
