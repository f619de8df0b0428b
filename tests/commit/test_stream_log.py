"""Folds are worth their size: their bytes stay in proportion to the number of records."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.opening import begin
from tests.watched import WatchedStore
from trio_ckpt import Batch, run_batches
from trio_ckpt._commit.fold_schedule import RECORDS_PER_FOLD
from trio_ckpt._commit.stream_log import FOLD_BYTES_PER_RECORD
from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.stores import MemoryStore


class Counting(WatchedStore):
    """Counts the bytes of folds."""

    fold_bytes = 0
    folds = 0

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.folds += len(folds)
        self.fold_bytes += sum(len(fold.payload) for fold in folds)


async def work(store: MemoryStore, count: int, *, has_gaps: bool) -> None:
    async def handle(batch: Batch[int]) -> None:
        if has_gaps and batch.index % 2:
            batch.skip("odd")
        else:
            batch.complete()

    async with (
        begin(store) as run,
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
    async with begin(store) as run:
        progress = run.view().streams["s",].progress
        assert (len(progress.confirmed), len(progress.skipped)) == (1_500, 1_500)


def count_objects() -> Counter[str]:
    """How many objects there are of each class; some classes of tests do not say their names."""
    gc.collect()
    names = (type.__getattribute__(type(one), "__qualname__") for one in gc.get_objects())
    return Counter(names)


async def test_a_stream_that_was_left_keeps_its_progress_and_little_more(tmp_path: Path) -> None:
    """No locks, no hasher, no batch, no task: a run may have had 10,000 streams."""
    async with begin(tmp_path / "s") as run:

        async def work_on(number: int) -> None:
            async with run.open_stream(f"s{number}") as stream:
                async for batch in stream.batches(range(2)):
                    batch.complete(records=1)

        for number in range(20):
            await work_on(number)
        count_objects()  # the first count makes objects of its own
        before = count_objects()
        for number in range(20, 120):
            await work_on(number)
        more = {name: count for name, count in (count_objects() - before).items() if count >= 50}
        assert {"Progress": 100, "StreamLog": 100}.items() <= more.items()
        held_by_sqlite = "_SqliteHead"
        kept = {"Progress", "StreamLog", "IndexSet", "list", "dict", "tuple", held_by_sqlite}
        assert set(more) <= kept, more
        assert more["IndexSet"] <= 4 * 100
        assert more["list"] <= 8 * 100


async def test_a_stream_that_was_left_is_opened_again_as_it_was(tmp_path: Path) -> None:
    """What it was worked on with is made again: append files, the seal, what was put back."""
    store = tmp_path / "s"
    async with begin(store, output_dir=tmp_path / "o") as run:
        for count, done in ((2, 2), (4, 5), (6, 8)):  # one is done twice each time
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(6), end=count - 1):
                    batch.append_json("lines.jsonl", batch.index)
                    batch.complete(records=1)
                assert stream.statistics().session_confirmed == done
            await run.rewind(("s",), to=count - 2, reason="x")
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(6), end=count - 1):
                    batch.append_json("lines.jsonl", batch.index)
                    batch.complete(records=1)
    assert (tmp_path / "o" / "lines.jsonl").read_text().split() == list("012345")
    async with begin(store, output_dir=tmp_path / "o") as run:
        assert run.view().streams["s",].progress.records == 6
