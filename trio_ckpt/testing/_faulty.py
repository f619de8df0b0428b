"""A store that fails as planned, and what stores of tests have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

import attrs
import trio

from .._journal.store import (
    BlobPayload,
    Checkpoint,
    Finding,
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


@attrs.frozen
class Fail:
    """The save raises `StoreError`; nothing is saved."""


@attrs.frozen
class Hang:
    """The save never ends, and saves nothing.  It can be cancelled."""


@attrs.frozen
class Delay:
    """The save takes `delay_s` more seconds of trio's clock."""

    delay_s: float


@attrs.frozen
class CommitThenError:
    """Everything is saved, and then the save raises `StoreError`."""


@attrs.frozen
class Reject:
    """The first checkpoint of a stream in the group is refused, and with it the later ones."""

    stream: str


Fault = Fail | Hang | Delay | CommitThenError | Reject


class WrappedStore(Store):
    """Another store, which a test watches: each verb passes `_before`, a change `_after`.

    Attributes:
        handle: The store that does the work.
    """

    def __init__(self, store: Store) -> None:
        self.address = store.address
        self.mac_key = store.mac_key
        self.inline_limit_bytes = store.inline_limit_bytes
        self.durability = store.durability
        self.lease_s = store.lease_s
        self.handle = store

    def _before(self, what: str) -> None:
        """Called before a verb reaches the store; by default nothing happens."""

    async def _after(self, what: str) -> None:
        """Called when a verb has changed the store, before the answer."""

    def lock_run(self, run_id: str) -> AbstractAsyncContextManager[int]:
        """See `Store.lock_run`."""
        return self.handle.lock_run(run_id)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        self._before(f"read_run of {run_id}")
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
        self._before(f"history of {stream}")
        return await self.handle.history(
            run_id, stream, generation=generation, cursor=cursor, limit=limit
        )

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        self._before("list_runs")
        return await self.handle.list_runs(prefix, after, limit)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`."""
        self._before("put_blob")
        digest = await self.handle.put_blob(run, payload)
        await self._after("put_blob")
        return digest

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        self._before("read_blob")
        return await self.handle.read_blob(run_id, digest, offset, size)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        self._before(f"drop_blobs of {stream}")
        size = await self.handle.drop_blobs(run, stream, sequences)
        await self._after(f"drop_blobs of {stream}")
        return size

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        self._before(f"read_owner of {run_id}")
        return await self.handle.read_owner(run_id)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        self._before(f"prune of {run.run_id}")
        pruned = await self.handle.prune(run, keep=keep)
        await self._after(f"prune of {run.run_id}")
        return pruned

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self.handle.aclose()


class FaultyStore(WrappedStore):
    """Another store, with faults in its saves.

    Hangs and delays are on trio's side, so timeouts fire and a mock clock jumps.

    Attributes:
        saves: How many saves have begun.
    """

    def __init__(self, store: Store, plan: Mapping[int, Fault]) -> None:
        """Wrap a store.

        Args:
            store: Does the work.
            plan: Which fault happens at which save; the first save is 1.
        """
        super().__init__(store)
        self.saves = 0
        self._plan = dict(plan)

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`; fails as planned.  An empty group is not counted."""
        if not group and not folds and summary is None:
            return await self.handle.save(run, group)
        self.saves += 1
        fault = self._plan.get(self.saves)
        match fault:
            case Fail():
                raise StoreError(f"save {self.saves} fails as planned; nothing was saved")
            case Hang():
                await trio.sleep_forever()
            case Delay(delay_s):
                await trio.sleep(delay_s)
            case Reject(stream):
                return await self._save_without(stream, run, group, folds, summary)
            case CommitThenError() | None:
                pass
        number = self.saves
        outcomes = await self.handle.save(run, group, folds, summary=summary)
        if isinstance(fault, CommitThenError):
            raise StoreError(f"save {number} fails as planned, after it was saved")
        return outcomes

    async def _save_without(
        self,
        stream: str,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        error = StoreError(f"save {self.saves} refuses stream {stream} as planned")
        kept = [checkpoint for checkpoint in group if checkpoint.stream != stream]
        saved = iter(await self.handle.save(run, kept, folds, summary=summary))
        return [error if checkpoint.stream == stream else next(saved) for checkpoint in group]

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`."""
        async with aclosing(self.handle.check()) as findings:
            async for finding in findings:
                yield finding
