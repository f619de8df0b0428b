"""Reading jobs: what a page costs, and what is said of items that were done long ago."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trio.testing import MockClock

from tests.opening import begin
from tests.remote import functions
from tests.remote.site import F, open_site
from trio_ckpt import Progress, remote
from trio_ckpt._commit.saves import save_records
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt._util.plain import JOB_STREAM
from trio_ckpt.abc import HistoryPage, Owner, StoredRun
from trio_ckpt.monitor._jobs import Jobs
from trio_ckpt.remote import TaskStatus
from trio_ckpt.remote._foreman.job import _save
from trio_ckpt.remote._foreman.job_reader import MAX_SCANNED, JobReader
from trio_ckpt.remote._wire.job_messages import JobOptions
from trio_ckpt.remote._wire.names import ITEMS_STREAM
from trio_ckpt.remote._wire.submission import JobSubmission
from trio_ckpt.stores import MemoryStore

JOB = "job-x"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


class Counting(MemoryStore):
    """Counts what is read."""

    reads = 0
    records = 0

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        self.reads += 1
        return await super().read_run(run_id, generation)

    async def read_owner(self, run_id: str) -> Owner | None:
        self.reads += 1
        return await super().read_owner(run_id)

    async def history(self, run_id: str, stream: str, **how: Any) -> HistoryPage:
        self.reads += 1
        page = await super().history(run_id, stream, **how)
        self.records += len(page.records)
        return page


@asynccontextmanager
async def job_of(total: int, done: int = 0) -> AsyncGenerator[Counting]:
    """A job with so many items, of which the first are done; no foreman has it."""
    store = Counting()
    async with (
        begin(store, JOB) as run,
        run.open_stream(*ITEMS_STREAM) as stream,
    ):
        head = loop_cursor_of(stream).open_stream.committer.add_stream_log(JOB_STREAM, Progress())
        await _save(
            loop_cursor_of(stream).open_stream,
            head,
            JobSubmission(F + "square", JobOptions(10.0), list(range(total))),
        )
        stream_log, now = loop_cursor_of(stream).open_stream.stream_log, time.time()
        committer = loop_cursor_of(stream).open_stream.committer
        records = (
            Record(kind=RecordKind.BATCH, at=now, index=index, metadata={"worker": f"w{index}"})
            for index in range(done)
        )
        await save_records(committer, [(stream_log, record) for record in records])
    store.reads = store.records = 0
    yield store


async def cost_of(store: Counting, reader: JobReader, after: int) -> tuple[int, int]:
    before = store.reads, store.records
    await reader.job(JOB, None, after=after, limit=50)
    return store.reads - before[0], store.records - before[1]


async def test_a_page_of_a_large_job_costs_as_much_as_one_of_a_small_one() -> None:
    costs = []
    for total in (1_000, 100_000):
        async with job_of(total) as store:
            costs.append(await cost_of(store, JobReader(store), total // 2))
            view = await remote.read_job(store, JOB, after=total // 2, limit=50)
            assert [task.index for task in view.tasks] == list(range(total // 2, total // 2 + 50))
            assert (view.total_tasks, view.average_progress_percent) == (total, 0.0)
    assert costs[0] == costs[1]
    assert costs[0][0] < 10


async def test_items_that_are_done_are_read_once() -> None:
    """A poll of the same page reads nothing of them again; the first looks back so far at most."""
    async with job_of(3_000, done=2_000) as store:
        reader = JobReader(store)
        assert (await cost_of(store, reader, 0))[1] >= 2_000
        assert (await cost_of(store, reader, 0))[1] == 0
        assert (await cost_of(store, reader, 1_950))[1] <= 1_000
        view = await reader.job(JOB, None, after=1_990, limit=20)
        assert [task.worker for task in view.tasks] == [f"w{i}" for i in range(1_990, 2_000)] + [
            None
        ] * 10
        assert view.completed_tasks == 2_000
        assert view.average_progress_percent == pytest.approx(200 / 3)


async def test_an_item_that_was_done_long_ago_is_told_without_details() -> None:
    done = MAX_SCANNED + 2_000
    async with job_of(done + 1, done=done) as store:
        page = await Jobs(store).job(JOB, after=0, limit=2)
        assert [(one.status, one.checkpoint_count) for one in page.tasks] == [
            ("completed", None)
        ] * 2
        page = await Jobs(store).job(JOB, after=done - 1, limit=2)
        assert [(one.status, one.checkpoint_count, one.worker) for one in page.tasks] == [
            ("completed", 0, f"w{done - 1}"),
            ("pending", 0, None),
        ]
        task = await Jobs(store).task(f"{JOB}.000000")  # alone it is looked for to the end
        assert (task.status, task.worker) == ("completed", "w0")


async def test_the_sums_of_a_job_are_of_all_its_items(autojump_clock: MockClock) -> None:
    """Whichever page is asked for."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=2)
        async with site.client() as client:
            await client.map(F + "train", [1, 2, 3], checkpoint_interval_s=1.0, job_id=JOB)
        whole = await remote.read_job(site.store, JOB)
        page = await remote.read_job(site.store, JOB, after=2, limit=1)
    assert len(page.tasks) == 1
    counts = [task.checkpoint_count for task in whole.tasks]
    assert min(counts) > 0
    for view in (whole, page):
        assert view.tasks_with_checkpoints == 3
        assert view.total_checkpoints_taken == sum(counts)
        assert view.status is TaskStatus.COMPLETED


@pytest.mark.parametrize("keep", [False, True])
async def test_sizes_are_of_what_is_still_there(autojump_clock: MockClock, keep: bool) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            await client.map(
                F + "train", [1], checkpoint_interval_s=1.0, job_id=JOB, keep_checkpoints=keep
            )
        jobs, task_id = Jobs(site.store), f"{JOB}.000000"
        for is_there in (keep, False):
            task, info = await jobs.task(task_id), await jobs.storage_info(task_id)
            assert task.checkpoint_count > 0
            assert task.last_checkpoint_at is not None
            assert (task.base_checkpoint_size > 0) is is_there
            assert (task.base_checkpoint_data is not None) is is_there
            assert (info.kind != "none") is is_there
            assert (info.inline_bytes + info.file_bytes > 0) is is_there
            assert (info.chain_length > 0) is is_there
            freed = await jobs.cleanup(task_id)
            assert (freed.done, freed.count > 0) == ("bytes freed", is_there)


async def test_a_running_job_says_when_it_was_taken(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        before = time.time()
        await client.submit(F + "wait", ["x"], job_id=JOB)
        view = await remote.read_job(site.store, JOB)
    assert view.started_at is not None
    assert before <= view.started_at <= time.time()
    assert view.ended_at is None
