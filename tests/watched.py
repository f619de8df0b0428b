"""A store with a place for a test to note, wait or fail, before and after each of its saves."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import MemoryStore


class WatchedStore(MemoryStore):
    """Calls `before_save`, saves, and calls `after_save`; here these do nothing."""

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        pass

    async def after_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        """What was saved; not called where the save has raised."""

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        await self.before_save(group, folds)
        outcomes = await super().save(run, group, folds, summary=summary)
        await self.after_save(group, folds)
        return outcomes
