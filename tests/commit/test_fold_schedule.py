"""What follows from records goes with saves that are made anyway, at a cost that is spread."""

from __future__ import annotations

from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import Batch, run_batches
from trio_ckpt._commit.fold_schedule import RECORDS_PER_FOLD, FoldSchedule
from trio_ckpt._commit.lease import open_committer
from trio_ckpt._commit.saves import save_record
from trio_ckpt._commit.stream_log import StreamLog
from trio_ckpt._journal.history import find_run
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._journal.store import FarStore
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import RunKey
from trio_ckpt.stores import MemoryStore


class Counting(MemoryStore):
    """Counts saves of nothing but folds, summaries, and those that are out of date when saved."""

    lonely = summaries = stale = 0

    async def save(
        self, run: Any, group: Any, folds: Any = (), *, summary: Any = None
    ) -> list[Exception | None]:
        self.lonely += bool(folds) and not group
        assert folds or summary is None
        outcomes = await super().save(run, group, folds, summary=summary)
        if summary is not None:
            line = await find_run(self, run.run_id)
            self.summaries += 1
            self.stale += line is None or not line.is_current
        return outcomes


async def work(store: MemoryStore, batches: int, streams: int) -> None:
    async def handle(batch: Batch[int]) -> None:
        batch.complete()

    async with begin(store) as run:
        for number in range(streams):
            async with run.open_stream(f"s{number}") as stream:
                await run_batches(stream, range(batches), handle, concurrency=1)


@pytest.mark.parametrize(("batches", "streams"), [(4 * RECORDS_PER_FOLD, 1), (20, 300)])
async def test_a_summary_is_made_once_and_is_current(batches: int, streams: int) -> None:
    """It costs as much as the run has streams, and one that is made earlier is never shown."""
    store = Counting()
    await work(store, batches, streams)
    assert (store.summaries, store.stale) == (1, 0)
    assert store.lonely == 1
    line = await find_run(store, "r")
    assert line is not None
    assert line.is_complete


def _log(key: str, records: int) -> StreamLog:
    progress = Progress(sequence=records)
    store = MemoryStore()
    return StreamLog(
        (key,), encode_key((key,)), lambda key: store.seal("r", 0, key), progress, records
    )


@pytest.mark.parametrize("known", [None, {}])
def test_no_summary_is_made_where_it_could_be_wrong(known: Any) -> None:
    """Where not all streams are known, or a far store keeps none."""

    class Far(MemoryStore, FarStore):
        pass

    for store in (MemoryStore(), Far()):
        schedule = FoldSchedule(store, RunKey("r", 0, 1), known)
        log = _log("s", 3)
        schedule.add_stream(log)
        schedule.add(log)
        derived = schedule.take_all()
        assert len(derived.folds) == 1
        has_summary = known is not None and not isinstance(store, FarStore)
        assert (derived.summary is not None) == has_summary
        assert derived.nbytes == len(derived.folds[0].payload) + len(derived.summary or b"")
        again = schedule.take_all()
        assert (again.folds, again.summary) == ([], None)


async def test_a_summary_counts_streams_that_the_session_did_not_touch() -> None:
    store = MemoryStore()
    await work(store, 5, 3)
    view = await store.load_run("r")
    assert view is not None
    parts = {key: entry.progress for key, entry in view.streams.items()}
    async with store.lock_run("r") as owner:
        key = RunKey("r", 0, owner)
        for known in (parts, None):
            async with open_committer(store, key, known=known) as committer:
                log = committer.add_stream_log(("s1",), parts["s1",])
                await save_record(committer, log, Record(kind=RecordKind.NOTE, at=1e9))
            line = await find_run(store, "r")
            assert line is not None
            assert line.is_current == (known is not None)


async def test_a_run_that_is_open_has_no_current_summary() -> None:
    store = Counting()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(RECORDS_PER_FOLD + 5)):
            batch.complete()
            line = await find_run(store, "r")
            assert line is not None
            assert not line.is_current
    line = await find_run(store, "r")
    assert line is not None
    assert line.is_current
