"""A foreman seen, and asked, by its store: what a monitor in another process has of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.beside import opened
from tests.remote import functions
from tests.remote.functions import gates, seen
from tests.remote.site import F, Site, open_site, until
from trio_ckpt import StoreError, remote
from trio_ckpt.abc import Store
from trio_ckpt.monitor._jobs import Jobs, NotPossibleError
from trio_ckpt.remote import TaskStatus, UnknownJobError
from trio_ckpt.remote._foreman.live import (
    LiveJob,
    encode,
    job_name,
    names_of,
    read_live_job,
    request_action,
)
from trio_ckpt.remote._foreman.publisher import WITHDRAW_S
from trio_ckpt.stores import MemoryStore

JOB, FIRST, SECOND = "job-x", "job-x.000000", "job-x.000001"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


@asynccontextmanager
async def working(
    folder: Path, function: str, items: list[Any], **options: Any
) -> AsyncGenerator[tuple[Site, Jobs]]:
    """A job at work on one worker, and what a monitor beside its foreman has of it."""
    async with (
        opened(folder) as store,
        opened(folder) as beside,
        open_site(store) as site,
        site.client() as client,
    ):
        await site.start_worker("box", slots=len(items))
        await client.submit(F + function, items, job_id=JOB, **options)
        yield site, Jobs(beside)


async def until_task(jobs: Jobs, task_id: str, **wanted: Any) -> Any:
    """A work item, once it has what is wanted."""
    with trio.fail_after(600):
        while True:
            task = await jobs.task(task_id)
            if all(getattr(task, name) == value for name, value in wanted.items()):
                return task
            await trio.sleep(0.1)


async def test_an_item_that_saves_nothing_is_seen_running(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "half", ["x", "y"]) as (_, jobs):
        task = await until_task(jobs, FIRST, status="running", progress_percent=50.0)
        assert task.worker == "box"
        await until_task(jobs, SECOND, status="running", progress_percent=50.0)
        job = await jobs.job(JOB, after=0, limit=10)
        assert (job.job_status, job.average_progress_percent) == ("running", 50.0)
        assert job.started_at is not None
        assert [one.status for one in job.tasks] == ["running", "running"]
        view = await remote.read_job(jobs.store, JOB)
        assert [one.progress_percent for one in view.tasks] == [50.0, 50.0]
        gates["x"].set()
        done = await until_task(jobs, FIRST, status="completed")
        assert (done.progress_percent, done.worker) == (100.0, "box")


async def test_an_item_is_running_when_it_has_said_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "wait", ["x"]) as (_, jobs):
        assert (await until_task(jobs, FIRST, status="running")).worker == "box"


async def test_a_checkpoint_is_forced_by_the_store(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "train", [1], checkpoint_interval_s=10_000.0) as (_, jobs):
        await until_task(jobs, FIRST, status="running", checkpoint_count=1)
        done = await jobs.force_checkpoint(FIRST)
        assert (done.done, done.count) == ("its worker was asked", 1)
        await until_task(jobs, FIRST, checkpoint_count=2)


async def test_an_item_is_released_by_the_store(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with working(tmp_path, "train", [1], checkpoint_interval_s=10_000.0) as (_, jobs):
        await until_task(jobs, FIRST, status="running")
        await jobs.release(FIRST)
        await until(lambda: len([one for one in seen if one[0] == 1]) == 2)
        begun = [one for one in seen if one[0] == 1]
        assert begun[1][1] > 0  # it went on from what it had saved


async def test_a_job_is_cancelled_by_the_store(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with working(tmp_path, "wait", ["x"]) as (site, jobs):
        await until_task(jobs, FIRST, status="running")
        assert (await jobs.cancel(JOB)).done == "the job is being cancelled"
        await until(lambda: JOB not in (site.foreman.jobs if site.foreman else {}))
        assert (await jobs.job(JOB, after=0, limit=1)).job_status == "cancelled"
        with pytest.raises(NotPossibleError, match="cancelled already"):
            await jobs.cancel(JOB)


async def test_what_a_foreman_refuses_is_refused_by_the_store(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "wait", ["x"]) as (_, jobs):
        await until_task(jobs, FIRST, status="running")
        with pytest.raises(NotPossibleError, match="no checkpoint_interval_s"):
            await jobs.force_checkpoint(FIRST)
        with pytest.raises(UnknownJobError):
            await jobs.release("job-other.000000")
        gates["x"].set()
        await until_task(jobs, FIRST, status="completed")
        with pytest.raises(NotPossibleError, match="the item is completed already"):
            await jobs.release(FIRST)


async def test_of_an_item_that_has_ended_is_said_how_it_ended(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """While its job goes on, and after it, whichever process is asked."""
    async with working(tmp_path, "wait", ["x", "y"], checkpoint_interval_s=1e6) as (site, jobs):
        await until_task(jobs, SECOND, status="running")
        gates["x"].set()
        await until_task(jobs, FIRST, status="completed")
        async with site.client("admin") as admin:
            for ask in (jobs.force_checkpoint, jobs.release):
                with pytest.raises(NotPossibleError, match="the item is completed already"):
                    await ask(FIRST)
            told = await admin.control("force-checkpoint", FIRST)
            assert told == (409, "the item is completed already")
            await jobs.cancel(JOB)
            await until_task(jobs, SECOND, status="cancelled")
            await until(lambda: not (site.foreman.jobs if site.foreman else {}))
            told = await admin.control("release", SECOND)
            assert told == (409, "the item is cancelled already")
        for ask in (jobs.force_checkpoint, jobs.release):
            with pytest.raises(NotPossibleError, match="the item is cancelled already"):
                await ask(SECOND)


async def test_of_an_item_of_a_job_that_has_failed_is_said_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with (
        opened(tmp_path) as store,
        opened(tmp_path) as beside,
        open_site(store) as site,
        site.client() as client,
    ):
        await site.start_worker("box")
        await client.submit(F + "fail_or_wait", ["bad", "x"], job_id=JOB)
        await until(lambda: not (site.foreman.jobs if site.foreman else {}))
        jobs = Jobs(beside)
        assert (await jobs.task(SECOND)).status == "pending"
        with pytest.raises(NotPossibleError, match="the job is failed already"):
            await jobs.release(SECOND)
        assert await client.control("release", SECOND) == (409, "its job has ended")


async def test_questions_at_the_same_moment_are_all_answered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    items = ["v", "w", "x", "y"]
    answers: dict[int, tuple[int, str]] = {}
    async with working(tmp_path, "wait", items, checkpoint_interval_s=1e6) as (_, jobs):
        for index in range(4):
            await until_task(jobs, f"{JOB}.{index:06d}", status="running")

        async def ask(index: int) -> None:
            async with opened(tmp_path) as store:
                task_id = f"{JOB}.{index:06d}"
                answers[index] = await request_action(store, JOB, "force-checkpoint", task_id)

        async with trio.open_nursery() as nursery:
            for index in range(4):
                await trio.sleep(0.01)
                nursery.start_soon(ask, index)
    assert answers == dict.fromkeys(range(4), (202, "its worker was asked"))


async def test_a_foreman_that_is_gone_is_not_asked(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What it has left behind is not taken for the present."""
    async with working(tmp_path, "wait", ["x"]) as (site, jobs):
        await until_task(jobs, FIRST, status="running")
        left = {path: path.read_bytes() for path in (tmp_path / "s.ckpt/live").iterdir()}
        assert left
        site.cut("box", for_good=True)
        await site.kill_foreman()
        while await jobs.store.read_owner(JOB) is not None:  # noqa: ASYNC110
            await trio.sleep(0.1)
        for path, content in left.items():
            path.write_bytes(content)
        task = await jobs.task(FIRST)
        assert (task.status, task.worker) == ("pending", None)
        for act in (partial(jobs.release, FIRST), partial(jobs.cancel, JOB)):
            with pytest.raises(NotPossibleError, match="no foreman has the job now"):
                await act()
        await site.start_foreman()
        await trio.sleep(5)
        assert (await jobs.task(FIRST)).worker is None


async def test_a_foreman_that_ends_leaves_nothing_behind(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "wait", ["x"], checkpoint_interval_s=1e6) as (_, jobs):
        await until_task(jobs, FIRST, status="running")
        await jobs.force_checkpoint(FIRST)
    assert list((tmp_path / "s.ckpt/live").iterdir()) == []


async def test_a_job_that_is_over_is_shown_no_longer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with working(tmp_path, "wait", ["x"]) as (site, jobs):
        await until_task(jobs, FIRST, status="running")
        assert list((tmp_path / "s.ckpt/live").iterdir())
        gates["x"].set()
        await until(lambda: site.foreman is not None and not site.foreman.jobs)
        await until(lambda: list((tmp_path / "s.ckpt/live").iterdir()) == [])


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"[" * 10_000,
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode([1, "n", [[-1, "w", 0.0, True, None]]]),
        msgspec.msgpack.encode([1, "n", [[0, "w", 0.0, True, 1e9]]]),
        msgspec.msgpack.encode([1, "n", [[0, "w", 0.0, True, float("nan")]]]),
        msgspec.msgpack.encode([1, "", []]),
    ],
)
async def test_what_another_has_published_is_passed_over(
    autojump_clock: MockClock, tmp_path: Path, payload: bytes
) -> None:
    async with opened(tmp_path) as store, open_site(store) as site, site.client() as client:
        await client.submit(F + "wait", ["x"], job_id=JOB)
        async with opened(tmp_path) as beside:
            await wait_for_reason(beside)  # the foreman publishes nothing after it
            await beside.publish(f"{JOB} at its foreman", payload)
            (task,) = (await remote.read_job(beside, JOB)).tasks
            assert (task.status, task.progress_percent) == (TaskStatus.PENDING, 0.0)
            code, _ = await request_action(beside, JOB, "cancel", JOB)
            assert code == 409


async def wait_for_reason(beside: Store) -> None:
    """Wait until the foreman has published why its item waits, however slow the machine is."""
    stored = await beside.read_run(JOB)
    assert stored is not None
    with trio.fail_after(600):
        job = None
        while job is None or not job.waits:
            await trio.sleep(0.5)
            job = await read_live_job(beside, JOB, stored.owner)


async def test_a_store_that_shows_nothing_says_so(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "wait", ["x"], job_id=JOB)
        with pytest.raises(NotPossibleError, match="ask in the foreman's own process"):
            await Jobs(site.store).cancel(JOB)


async def test_why_items_wait_is_shown(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with (
        opened(tmp_path) as store,
        opened(tmp_path) as beside,
        open_site(store) as site,
        site.client() as client,
    ):
        await client.submit(F + "square", [1], job_id=JOB)
        await wait_for_reason(beside)
        jobs = Jobs(beside)
        told = (await jobs.job(JOB, after=0, limit=1)).waits
        assert told == "no worker is connected, so tests.remote.functions:square waits"
        await site.start_worker("box")
        await client.attach(JOB)
        assert (await jobs.job(JOB, after=0, limit=1)).waits is None


class SlowLiveStore(MemoryStore):
    """A store in memory that keeps live values, and at last answers nothing about them."""

    has_live = True
    is_slow = False

    def __init__(self) -> None:
        super().__init__()
        self.values = dict[str, bytes]()

    async def publish(self, run_id: str, payload: bytes) -> None:
        if self.is_slow:
            await trio.sleep(3)
            raise StoreError("the server does not answer")
        self.values[run_id] = payload
        if not payload:
            del self.values[run_id]

    async def read_live(self, run_id: str) -> bytes:
        return self.values.get(run_id, b"")


@pytest.mark.parametrize("jobs", [1, 20])
async def test_a_store_that_hangs_holds_no_foreman(jobs: int, autojump_clock: MockClock) -> None:
    store = SlowLiveStore()
    async with open_site(store) as site, site.client() as client:
        await site.start_worker("box")
        for number in range(jobs):
            await client.submit(F + "wait", ["x"], job_id=f"job-{number}")
        await until(lambda: len(store.values) == jobs)
        store.is_slow, began = True, trio.current_time()
        site.stop_foreman()
        await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() - began <= WITHDRAW_S


async def test_requests_to_a_foreman_that_was_killed_are_removed(autojump_clock: MockClock) -> None:
    store = SlowLiveStore()
    async with open_site(store) as site, site.client() as client:
        store.values[job_name(JOB)] = encode(LiveJob(1, "killed", {}))
        store.values |= dict.fromkeys(names_of("killed"), b"an old one")
        store.values |= dict.fromkeys(names_of("another"), b"of a foreman of other jobs")
        await site.start_worker("box")
        await client.submit(F + "wait", ["x"], job_id=JOB)
        await until(lambda: not store.values.keys() & set(names_of("killed")))
        assert {*names_of("another")} < store.values.keys()
        await until(lambda: store.values[job_name(JOB)] != encode(LiveJob(1, "killed", {})))
