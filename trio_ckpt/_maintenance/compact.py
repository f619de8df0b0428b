"""Merging the saved states of a stream into one, and letting go of old ones.

Theory of operation
===================

A state that is saved as differences is read by reading them.  Compacting reads it so once, and
appends it whole: as a note if it is a confirmed state, and as a snapshot again if it is of inside
a batch, which begins with it either way.  Nothing else changes, and nothing is taken out of the
history; a crash leaves the chain that there was, or both.

Then the arrays of all states that a retention does not name are let go of, also of those that
are so old that no session has looked at them any more.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

import attrs

from .._commit.archive_states import archive_chains
from .._commit.group_commit import GroupCommitter
from .._commit.state_manager import StateCapture, StateManager
from .._commit.stored_state import EncodedState
from .._commit.stream_log import StreamLog
from .._journal.history import read_pages
from .._journal.record import Record, RecordKind, Status, decode_record
from .._journal.store import Store
from .._util.threads import run_blocking
from ..state import Plan, StateFrame, tree_of
from ..state._chain import blobs_of, fill, layout_of, read_chain, version_of
from ..state._retention import Retention, Versions
from ..state._shared_capture import ArrayTools

PAGE = 100  # records that are held at a time: each may have a state of its own
REASON = "the saved state was compacted"


@attrs.frozen
class Compacted:
    """What compacting has done.

    Attributes:
        merged: Streams whose newest state was saved anew, whole.
        frames: Saved states that these had to be read from before.
        dropped: Old states whose arrays were let go of.
        freed_bytes: Of those arrays, as they were stored.
    """

    merged: int = 0
    frames: int = 0
    dropped: int = 0
    freed_bytes: int = 0

    @classmethod
    def total(cls, parts: Iterable[Compacted]) -> Compacted:
        """What several have done together."""
        rows = [attrs.astuple(part) for part in parts]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls()


@attrs.define(eq=False)
class Compaction:
    """Compacts the states of one stream; nobody may be working on it.

    Attributes:
        store: Where they are.
        committer: Saves.
        stream_log: The stream.
        tools: What its arrays are captured with.
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
        """Merge the newest state, and let go of old ones.

        Raises:
            StoreDamagedError: what was saved is not whole.
            StoreError: it cannot be read or written; or it has arrays, and what they need is
                not installed.

        Durability: when this returns what was merged is saved.
        Cancellation: a cancellation point between parts.
        """
        if not self.stream_log.progress.has_state:
            return Compacted()
        chain, record = await read_chain(self._pages())
        frames = [frame for _, frame in chain]
        if record is not None and len(frames) > 1:
            await self._merge(frames, record)
        dropped, freed_bytes = await self._let_go()
        merged = len(frames) > 1
        return Compacted(int(merged), len(frames) if merged else 0, dropped, freed_bytes)

    def _pages(self) -> AsyncGenerator[list[tuple[int, Record]]]:
        key = self.committer.run_key
        return read_pages(self.store, key.run_id, key.generation, self.stream_log.key, limit=PAGE)

    async def _merge(self, frames: list[StateFrame], record: Record) -> None:
        saved = await self._pack(frames)
        await self.begin()
        metadata = {"reason": REASON}
        if record.kind is RecordKind.SNAPSHOT:
            again = Record(
                kind=RecordKind.SNAPSHOT,
                at=time.time(),
                index=record.index,
                attempts=record.attempts,
                metadata={**record.metadata, **metadata},
                state=saved.payload,
            )
        else:
            again = Record(
                kind=RecordKind.NOTE, at=time.time(), metadata=metadata, state=saved.payload
            )
        await self.committer.save(self.stream_log, again, blobs_of(saved.payload))

    async def _pack(self, frames: list[StateFrame]) -> EncodedState:
        """A frame of its own of what a chain ends with, its blob durable."""
        state_manager = StateManager(
            self.store, self.committer, Plan[None].of(None), None, self.tools
        )
        held = None
        if layout_of(frames).views:
            engine = self.tools.engine()
            from ..state._arrays.engine import Assembly  # NumPy is an extra
            from ..state._arrays.merge import hold_assembled

            assembly = Assembly(frames)
            await fill(self.store, assembly, frames, engine.compressor)
            held = await run_blocking(hold_assembled, engine, assembly)
        saved = await StateCapture(state_manager, None, tree_of(frames), held).pack(is_forced=True)
        if saved is None:
            raise RuntimeError("a state that has to be saved anew was not")
        return saved

    async def _let_go(self) -> tuple[int, int]:
        """Let go of arrays; returns of how many states, and their bytes."""
        progress = self.stream_log.progress
        versions, needed = Versions(self.retention), {p.lineage for p in progress.pins.values()}
        for with_snapshots in (True, False):
            chain, _ = await read_chain(self._pages(), with_snapshots=with_snapshots)
            needed.update(frame.lineage for _, frame in chain[:1])
        key, seal, cursor = self.committer.run_key, self.stream_log.tools.seal, None
        while True:
            page = await self.store.history(
                key.run_id,
                self.stream_log.text,
                generation=key.generation,
                cursor=cursor,
                limit=PAGE,
            )
            for stored in page.records:
                record = decode_record(seal.open(stored.sequence, stored.payload))
                if record.state:
                    version = version_of(stored.sequence, record)
                    is_kept = bool(stored.blobs)  # else it was let go of before
                    versions.add_older(version if is_kept else attrs.evolve(version, blob_bytes=0))
            cursor = page.cursor
            if cursor is None:
                break
        is_complete = progress.status is Status.COMPLETE
        dropped = versions.take_dropped(needed, is_complete=is_complete)
        if not dropped:
            return 0, 0
        sequences = [sequence for part in dropped.values() for sequence in part]
        if (archive := self.retention.archive) is not None:
            sequences = await archive_chains(self.store, key, self.stream_log, dropped, archive)
        return len(sequences), await self.store.drop_blobs(key, self.stream_log.text, sequences)
