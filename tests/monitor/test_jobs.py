"""Jobs and work items: the seed's paths and fields, with a foreman and workers behind them."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.monitor.client import ACTION_SECRET, Client, serving
from tests.opening import begin
from tests.remote import functions
from tests.remote.functions import STEPS
from tests.remote.site import F, Site, open_site, until
from trio_ckpt import UnknownRunError
from trio_ckpt.monitor._jobs import Jobs, NotPossibleError
from trio_ckpt.monitor._sources import StoreSource
from trio_ckpt.remote import JobCancelledError, TaskStatus, UnknownJobError
from trio_ckpt.stores import MemoryStore

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


@asynccontextmanager
async def training(*items: int) -> AsyncGenerator[tuple[Site, Jobs]]:
    """A job that saves its state now and then, at work on one worker."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("box", slots=len(items))
        async with site.client() as client, trio.open_nursery() as nursery:

            async def submit() -> None:
                await client.map(
                    F + "train", list(items), checkpoint_interval_s=1.0, job_id="job-t"
                )

            nursery.start_soon(submit)
            assert site.foreman is not None
            yield site, Jobs(site.store, site.handle)
            nursery.cancel_scope.cancel()


async def saved(jobs: Jobs, task_id: str, count: int = 1) -> Any:
    """A work item, once it has so many checkpoints."""
    with trio.fail_after(10_000):
        while True:
            try:
                task = await jobs.task(task_id)
                if task.checkpoint_count >= count:
                    return task
            except UnknownJobError:
                pass
            await trio.sleep(0.05)


async def test_seed_003_example_3_monitoring_checkpoint_progress(
    autojump_clock: MockClock,
) -> None:
    """GET /api/checkpoints/jobs/{job_id}, with the fields of the seed's example."""
    async with training(1, 2) as (_, jobs):
        await saved(jobs, "job-t.000000", 3)
        await saved(jobs, "job-t.000001", 3)
        found = await jobs.job("job-t", after=0, limit=100)
        assert (found.job_id, found.job_status, found.total_tasks) == ("job-t", "running", 2)
        assert found.tasks_with_checkpoints == 2
        assert 0 < found.average_progress_percent < 100
        assert found.total_checkpoints_taken >= 2
        first = found.tasks[0]
        assert (first.task_id, first.status, first.worker) == ("job-t.000000", "running", "box")
        assert 0 < first.progress_percent < 100
        assert first.checkpoint_count >= 1
        assert first.base_checkpoint_size > 0
        assert first.last_checkpoint_at is not None
        assert ISO.fullmatch(first.last_checkpoint_at)


async def test_a_work_item_has_the_seeds_fields(autojump_clock: MockClock) -> None:
    async with training(1) as (_, jobs):
        task = await saved(jobs, "job-t.000000", 3)
        assert task.base_checkpoint_data is not None
        assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{32}", task.base_checkpoint_data)
        assert len(task.delta_checkpoints) + 1 <= task.checkpoint_count
        for delta in task.delta_checkpoints:
            assert delta.size > 0
            assert re.fullmatch(r"[0-9a-f]+", delta.digest)
            assert ISO.fullmatch(delta.created_at)
        info = await jobs.storage_info("job-t.000000")
        assert info.kind in ("inline", "file", "hybrid")
        assert info.inline_bytes + info.file_bytes > 0
        assert info.chain_length == len(task.delta_checkpoints) + 1
        assert info.checkpoint_count == task.checkpoint_count


async def test_force_checkpoint_asks_the_worker_now(autojump_clock: MockClock) -> None:
    async with training(1) as (site, jobs):
        before = await saved(jobs, "job-t.000000")
        done = await jobs.force_checkpoint("job-t.000000")
        assert done.count == 1
        await saved(jobs, "job-t.000000", before.checkpoint_count + 1)
        await until(lambda: site.foreman is not None and not site.foreman.live)
        await until(lambda: site.foreman is not None and not site.foreman.jobs)
        for one in (jobs, Jobs(site.store)):  # a monitor beside the foreman, too
            for ask in (one.force_checkpoint, one.release):
                with pytest.raises(NotPossibleError, match="the item is completed already"):
                    await ask("job-t.000000")


async def test_release_hands_an_item_back(autojump_clock: MockClock) -> None:
    async with training(1) as (_, jobs):
        await saved(jobs, "job-t.000000")
        assert (await jobs.release("job-t.000000")).count == 1


async def test_cleanup_frees_the_checkpoints_of_ended_items_alone(
    autojump_clock: MockClock,
) -> None:
    async with training(1) as (site, jobs):
        await saved(jobs, "job-t.000000")
        beside = Jobs(site.store)  # a monitor in another process
        for one in (jobs, beside):
            with pytest.raises(NotPossibleError, match=r"running|not ended"):
                await one.cleanup("job-t.000000")
        await until(lambda: site.foreman is not None and not site.foreman.live)
        while (await jobs.task("job-t.000000")).status != "completed":  # noqa: ASYNC110
            await trio.sleep(0.05)
        for one in (jobs, beside):
            await one.cleanup("job-t.000000")  # twice is fine
        task = await jobs.task("job-t.000000")
        assert (task.status, task.progress_percent) == ("completed", 100.0)
        assert task.checkpoint_count >= 1  # what was, is still told


async def test_a_job_that_its_foreman_does_not_have_is_not_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with training(1) as (site, jobs):
        await saved(jobs, "job-t.000000")
        assert site.foreman is not None
        del site.foreman.jobs["job-t"]
        with pytest.raises(NotPossibleError, match="the job is over"):
            await jobs.cancel("job-t")


async def test_a_job_is_cancelled_by_its_foreman_and_once(autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with training(1) as (site, jobs):
            await saved(jobs, "job-t.000000")
            with pytest.raises(NotPossibleError, match="the foreman's own process"):
                await Jobs(site.store).cancel("job-t")
            assert (await jobs.cancel("job-t")).count == 1
            await trio.sleep(60)
    assert caught.group_contains(JobCancelledError)


async def test_without_the_foreman_its_actions_are_refused(autojump_clock: MockClock) -> None:
    async with training(1) as (site, jobs):
        await saved(jobs, "job-t.000000")
        beside = Jobs(site.store)
        for ask in (beside.force_checkpoint, beside.release):
            with pytest.raises(NotPossibleError, match="the foreman's own process"):
                await ask("job-t.000000")
        assert (await beside.task("job-t.000000")).status == "running"


async def test_items_come_by_pages(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("box", slots=4)
        async with site.client() as client:
            await client.map(F + "square", range(5), job_id="job-s")
        jobs = Jobs(site.store)
        page = await jobs.job("job-s", after=0, limit=3)
        assert (len(page.tasks), page.total_tasks, page.next) == (3, 5, 3)
        page = await jobs.job("job-s", after=3, limit=3)
        assert ([task.task_id[-1] for task in page.tasks], page.next) == (["3", "4"], None)
        assert {task.status for task in page.tasks} == {"completed"}


async def test_items_are_runs_of_the_store_but_not_of_the_list(
    autojump_clock: MockClock,
) -> None:
    async with training(1) as (site, jobs):
        await saved(jobs, "job-t.000000")
        assert {run.run_id for run in await site.store.list_runs()} == {"job-t", "job-t.000000"}
        source = StoreSource(site.store)
        assert await source.list_ids() == ["job-t"]
        with pytest.raises(UnknownRunError):
            await source.snapshot("job-t.000000")


def test_every_status_of_the_seed_has_a_word() -> None:
    assert {status.value for status in TaskStatus} == {
        *("pending", "assigned", "running", "completed", "failed", "cancelled")
    }


async def test_over_http_with_the_foreman_in_this_process() -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("box")
        async with site.client() as client, trio.open_nursery() as nursery:

            async def submit() -> None:
                await client.map(F + "wait", ["x"], job_id="job-w", checkpoint_interval_s=10.0)

            nursery.start_soon(submit)
            await until(lambda: functions.gates)
            async with serving(site.store, foreman=site.handle, allow_actions=True) as (asker, _):
                actor = Client(asker.port, ACTION_SECRET)
                job = (await asker.get("/api/checkpoints/jobs/job-w")).json
                assert (job["job_id"], job["total_tasks"]) == ("job-w", 1)
                task = (await asker.get("/api/checkpoints/tasks/job-w.000000")).json
                assert task["worker"] == "box"
                info = (await asker.get("/api/checkpoints/storage-info/job-w.000000")).json
                assert (info["kind"], info["chain_length"]) == ("none", 0)
                path = "/api/checkpoints/tasks/job-w.000000"
                assert (await actor.post(f"{path}/force-checkpoint")).status == 202
                assert (await actor.post(f"{path}/cleanup")).status == 409
                for missing in ("job-w.000001", "job-x.000000", "nonsense"):
                    reply = await asker.get(f"/api/checkpoints/tasks/{missing}")
                    assert (reply.status, reply.code) == (404, "not_found")
                runs = [one["run"] for one in (await asker.get("/api/runs")).json["runs"]]
                assert runs == ["job-w"]  # its items are not among them
                reply = await asker.get("/api/runs/job-w.000000")
                assert reply.status == 404
            nursery.cancel_scope.cancel()


async def test_a_run_is_no_job() -> None:
    store = MemoryStore()
    async with begin(store, "plain"):
        pass
    with pytest.raises(UnknownJobError):
        await Jobs(store).job("plain", after=0, limit=1)
    assert STEPS > 1
