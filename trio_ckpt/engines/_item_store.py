"""The store as a work item has it, in a process that an engine runs items in."""

# An item's store is made from a shared one, whose parts are private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from .._journal.record import TROUBLE, Seal, decode_record
from .._journal.store import (
    FIRST_OWNER,
    BlobPart,
    BlobPayload,
    Checkpoint,
    Durability,
    FarStore,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    Store,
    StoredRun,
)
from .._util.errors import StoreError
from .._util.plain import encode_key
from ..remote._foreman.task_checkpoints import TaskCheckpoints
from ..remote._wire.names import TASK_STREAM
from ._store_host import StoreHost, hold_lock, open_in_host

_TASK = encode_key(TASK_STREAM)


class SharedStore(FarStore):
    """A store that is open in the host of this process, for one item in a trio run of its own.

    Each save of it may be a round trip, so it is a far store: what no batch depends on is saved
    with the next batch.
    """

    def __init__(self, host: StoreHost, store: Store) -> None:
        """Make it for an item; see `open_shared_store`."""
        self.address = store.address
        self.mac_key = store.mac_key
        self.durability = store.durability
        self.inline_limit_bytes = store.inline_limit_bytes
        self._host = host
        self._store = store

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`."""
        async with hold_lock(self._host, self._store, run_id) as owner:
            yield owner

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`.  An item has no summary: it is summed up in the run of its job."""
        return await self._host.call(self._store.save, run, group, folds)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        return await self._host.call(self._store.read_run, run_id, generation)

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        """See `Store.history`."""
        read = partial(self._store.history, generation=generation, cursor=cursor, limit=limit)
        return await self._host.call(read, run_id, stream)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        return await self._host.call(self._store.list_runs, prefix, after, limit)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`."""
        return await self._host.call(self._store.put_blob, run, payload)

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        return await self._host.call(self._store.read_blob, run_id, digest, offset, size)

    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        """See `Store.read_blob_parts`."""
        await self._host.call(self._store.read_blob_parts, run_id, parts)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        return await self._host.call(self._store.drop_blobs, run, stream, sequences)

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        return await self._host.call(self._store.read_owner, run_id)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        return await self._host.call(partial(self._store.prune, keep=keep), run)

    async def aclose(self) -> None:
        """See `Store.aclose`.  The store stays open for other items."""
        await trio.lowlevel.cancel_shielded_checkpoint()


class ItemStore(SharedStore):
    """The store of one work item, whose run this process owns already.

    Attributes:
        saved: The saved states of the item: what was read, and what was saved since, but for what
            their chain consists of.
        generation: That of the run, as it was read or saved last.
    """

    def __init__(self, shared: SharedStore, run_id: str, owner: int) -> None:
        """Make the store of an item.

        Args:
            shared: The store.
            run_id: The run of the item.
            owner: The number under which this process owns the run.
        """
        super().__init__(shared._host, shared._store)
        self.saved = TaskCheckpoints()
        self.generation = 0
        self._run_id = run_id
        self._owner = owner
        # The first owner of a run finds nothing in it.
        self._is_read = owner == FIRST_OWNER
        self._read = StoredRun(run_id, 0, owner, ()) if self._is_read else None

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  This process owns the run already."""
        await trio.lowlevel.checkpoint()
        if run_id != self._run_id:
            raise StoreError(f"this store is for run {self._run_id!r}, not {run_id!r}")
        yield self._owner

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        outcomes = await super().save(run, group, folds)
        self.generation = run.generation
        if group or folds:
            self._is_read = False
        for checkpoint, outcome in zip(group, outcomes, strict=True):
            if outcome is None and checkpoint.stream == _TASK:
                self._count(checkpoint, self.seal(run.run_id, run.generation, TASK_STREAM))
        return outcomes

    def _count(self, checkpoint: Checkpoint, seal: Seal) -> None:
        """Add a record of the item: reading it back would cost a question more."""
        changes: dict[str, object] = {"sequence": checkpoint.sequence}
        if checkpoint.blob is None:
            record = decode_record(seal.open(checkpoint.sequence, checkpoint.payload))
            has_state, at = bool(record.state), record.at
            if isinstance(problem := record.metadata.get(TROUBLE), str):
                changes["problem"] = problem
        else:
            has_state, at = True, time.time()
        if has_state:
            count = self.saved.checkpoint_count + 1
            changes |= {"checkpoint_count": count, "last_checkpoint_at": at}
        self.saved = msgspec.structs.replace(self.saved, **changes)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`.

        The newest generation is read once until something is saved, and not where this is the
        first owner of the run.
        """
        if run_id != self._run_id or generation is not None:
            return await super().read_run(run_id, generation)
        await trio.lowlevel.checkpoint()
        if not self._is_read:
            self._read = await super().read_run(run_id)
            self._is_read = True
            if self._read is not None:
                self.generation = self._read.generation
        return self._read

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        self._is_read = False
        return await super().prune(run, keep=keep)


@asynccontextmanager
async def open_shared_store(address: str, durability: Durability) -> AsyncGenerator[SharedStore]:
    """Use the store at an address for a block; it stays open for the next item.

    Args, Raises, Cancellation: as for `open_in_host`.
    """
    async with open_in_host(address, durability) as (host, store):
        yield SharedStore(host, store)
