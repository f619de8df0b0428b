"""A store in memory in which every call is a point where the program may crash."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from .._journal.store import (
    BlobPayload,
    Checkpoint,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    Store,
    StoredRun,
)
from ..stores import MemoryStore
from ..stores._local.blobs import views_of
from ._crash_points import CrashTrigger

Saved = Callable[[RunKey, str, int, bytes], None]  # run, stream, sequence, payload


class CrashStore(Store):
    """A `MemoryStore` of one session.

    A verb that changes something has a point before it takes effect and one after it, before the
    answer; a save of several streams also has one where a store without a transaction for the
    whole group has saved a part of it, which the contract allows.  Reading has one point.
    """

    def __init__(self, store: MemoryStore, trigger: CrashTrigger, saved: Saved, seed: int) -> None:
        self.address = store.address
        self.durability = store.durability
        self.inline_limit_bytes = store.inline_limit_bytes
        self.handle = store
        self._trigger = trigger
        self._saved = saved
        self._chance = random.Random(seed)  # noqa: S311  # repeatable random numbers
        self._blobs: dict[str, bytes] = {}  # put in this session: a record may be one of them

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`."""
        self._reach("before lock_run of", run_id)
        async with self.handle.lock_run(run_id) as owner:
            self._reach("after lock_run of", run_id)
            await self._answer()
            try:
                yield owner
            finally:
                self._reach("before giving back", run_id)

    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        """See `Store.save`."""
        what = f"save of {_describe(group, folds)}"
        self._reach("before", what)
        if len(group) > 1:
            if self._trigger.is_next("store"):
                part = self._part(group)
                outcomes = await self.handle.save(run, part)
                self._note(run, part, outcomes)
            self._reach("after a part of", what)
        outcomes = await self.handle.save(run, group, folds)
        self._note(run, group, outcomes)
        self._reach("after", what)
        await self._answer()
        return outcomes

    def _part(self, group: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Choose a part of a group: of each stream none, or the first ones."""
        keeps: dict[str, bool] = {}
        part: list[Checkpoint] = []
        for checkpoint in group:
            if keeps.get(checkpoint.stream, True):
                keeps[checkpoint.stream] = self._chance.random() < 0.5
                if keeps[checkpoint.stream]:
                    part.append(checkpoint)
        return part

    def _note(
        self, run: RunKey, group: Sequence[Checkpoint], outcomes: Sequence[Exception | None]
    ) -> None:
        self._trigger.check_alive()  # the host may have died during the call
        for checkpoint, outcome in zip(group, outcomes, strict=True):
            if outcome is None:
                blob = checkpoint.blob
                payload = checkpoint.payload if blob is None else self._blobs[blob]
                self._saved(run, checkpoint.stream, checkpoint.sequence, payload)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        self._reach("before read_run of", run_id)
        return await self.handle.read_run(run_id, generation)

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
        self._reach("before history of", stream)
        return await self.handle.history(
            run_id, stream, generation=generation, cursor=cursor, limit=limit
        )

    async def list_runs(self) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        self._reach("before", "list_runs")
        return await self.handle.list_runs()

    async def put_blob(self, payload: BlobPayload) -> str:
        """See `Store.put_blob`."""
        self._reach("before", "put_blob")
        content = b"".join(views_of(payload))
        digest = await self.handle.put_blob(content)
        self._blobs[digest] = content
        self._reach("after", "put_blob")
        await self._answer()
        return digest

    async def read_blob(self, digest: str, offset: int = 0, size: int | None = None) -> bytes:
        """See `Store.read_blob`."""
        self._reach("before", "read_blob")
        return await self.handle.read_blob(digest, offset, size)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        self._reach("before drop_blobs of", stream)
        size = await self.handle.drop_blobs(run, stream, sequences)
        self._reach("after drop_blobs of", stream)
        await self._answer()
        return size

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        self._reach("before read_owner of", run_id)
        return await self.handle.read_owner(run_id)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        self._reach("before prune of", run.run_id)
        pruned = await self.handle.prune(run, keep=keep)
        self._reach("after prune of", run.run_id)
        await self._answer()
        return pruned

    async def aclose(self) -> None:
        """See `Store.aclose`; the world closes the store itself."""
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _reach(self, verb: str, name: str) -> None:
        self._trigger.reach("store", verb, name)

    async def _answer(self) -> None:
        """Let other tasks run between the effect and the answer; a dead program gets no answer."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._trigger.check_alive()


def _describe(group: Sequence[Checkpoint], folds: Sequence[Fold]) -> str:
    """Describe what is saved."""
    if not group:
        return "folds" if folds else "nothing: a look at who owns the run"
    return ", ".join(f"{checkpoint.stream} {checkpoint.sequence}" for checkpoint in group)
