"""Folds are worth their size: their bytes stay in proportion to the number of records."""

from __future__ import annotations

from typing import Any

import pytest

from trio_ckpt import Batch, open_run, run_batches
from trio_ckpt._lane import FOLD_BYTES_PER_RECORD
from trio_ckpt._saver import RECORDS_PER_FOLD
from trio_ckpt.stores import MemoryStore


class Counting(MemoryStore):
    """Counts the bytes of folds."""

    fold_bytes = 0
    folds = 0

    async def save(self, run_key: Any, checkpoints: Any, folds: Any = ()) -> Any:
        self.folds += len(folds)
        self.fold_bytes += sum(len(fold.payload) for fold in folds)
        return await super().save(run_key, checkpoints, folds)


async def work(store: MemoryStore, count: int, *, has_gaps: bool) -> None:
    async def handle(batch: Batch[int]) -> None:
        if has_gaps and batch.index % 2:
            batch.skip("odd")
        else:
            batch.complete()

    async with (
        open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("s") as stream,
    ):
        await run_batches(stream, range(count), handle, concurrency=32)


@pytest.mark.parametrize("has_gaps", [False, True])
async def test_the_bytes_of_folds_follow_the_number_of_records(has_gaps: bool) -> None:
    """At two sizes, ten times apart: gaps make each fold larger, so there are fewer."""
    per_record = []
    for count in (2_000, 20_000):
        store = Counting()
        await work(store, count, has_gaps=has_gaps)
        per_record.append(store.fold_bytes / count)
        assert store.folds > 2
    bound = FOLD_BYTES_PER_RECORD + 20_000 / RECORDS_PER_FOLD  # and the one at the end
    assert max(per_record) < bound


async def test_a_fold_that_was_put_off_is_saved_at_the_end() -> None:
    store = Counting()
    await work(store, 3_000, has_gaps=True)
    async with open_run("r", store=store, handle_signals=False) as run:
        progress = run.view().streams["s",].progress
        assert (len(progress.confirmed), len(progress.skipped)) == (1_500, 1_500)
