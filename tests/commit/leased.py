"""A store with a lease, whose saves fail or wait as a test tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from trio_ckpt import Batch, RunLockedError, RunStoppedError, StoreError, open_run
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import MemoryStore

LEASE_S = 30.0
LOST_S = 24.0  # 80 % of the lease

Saved = list[Exception | None]


class LeasedStore(MemoryStore):
    """Notes when it was asked to save nothing, and fails as it is told.

    Attributes:
        asked: When an empty group came, on trio's clock.
        taken: What was saved: the number of the generation, and whether it was an empty group.
        fails: Called before each save with what is saved; it may raise, or wait.
    """

    def __init__(self, lease_s: float | None = LEASE_S) -> None:
        super().__init__(lease_s=lease_s)
        self.asked: list[float] = []
        self.taken: list[tuple[int, bool]] = []
        self.fails: Callable[[Sequence[object]], Awaitable[object]] | None = None

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> Saved:
        if not group and not folds:
            self.asked.append(trio.current_time())
        if self.fails is not None:
            try:
                await self.fails(group or folds)
            except trio.Cancelled:
                self._in_doubt.add(run.run_id)
                raise
        outcomes = await super().save(run, group, folds, summary=summary)
        self.taken.append((run.generation, not group))
        return outcomes


async def is_down(_group: Sequence[object]) -> None:
    raise StoreError("the network is down")


async def hang(_group: Sequence[object]) -> None:
    await trio.sleep_forever()


async def hang_if_empty(group: Sequence[object]) -> None:
    if not group:
        await trio.sleep_forever()


async def is_refused(store: MemoryStore) -> bool:
    """Whether another process is refused the run."""
    try:
        async with store.reopen().lock_run("r"):
            return False
    except RunLockedError:
        return True


async def work(store: MemoryStore, batches: int, seconds: float) -> None:
    """Do some batches, each of so many seconds."""
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(batches)):
            await trio.sleep(seconds)
            batch.complete()


async def end_of(
    store: MemoryStore, body: Callable[[Batch[int]], Awaitable[object]], **arguments: Any
) -> RunStoppedError:
    """Run one batch, and return the error that ends its run."""
    try:
        async with (
            open_run("r", store=store, **arguments) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(1)):
                await body(batch)
    except RunStoppedError as error:
        return error
    raise AssertionError("the run was not stopped")
