"""The job of an engine as another process sees it through the store, and ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.engines import items
from tests.engines.drivers import work
from tests.engines.items import steps_in
from tests.hangs import HANG_S
from trio_ckpt import remote
from trio_ckpt.abc import Store
from trio_ckpt.engines import _job, map_tasks, open_map
from trio_ckpt.engines._executors import ExecutorAdapter
from trio_ckpt.monitor._jobs import Jobs, NotPossibleError
from trio_ckpt.remote import JobCancelledError, TaskStatus, UnknownJobError
from trio_ckpt.remote._foreman import job
from trio_ckpt.stores import open_store

JOB, N = "job-shown", 2_000


@pytest.fixture(params=["folder", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "s")
    return str(request.getfixturevalue("url"))


@asynccontextmanager
async def beside(address: str) -> AsyncGenerator[Store]:
    """The store as another process has it, once it is there."""
    async with aclosing(await open_store(address)) as store:
        yield store


@pytest.mark.parametrize("interval_s", [None, 0.0])
async def test_a_job_that_is_cancelled_from_elsewhere_ends_its_functions(
    interval_s: float | None,
    address: str,
    tmp_path: Path,
    threads: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_job, "WATCH_S", 0.1)
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 2, N),
        engine=threads,
        store=address,
        job_id=JOB,
        checkpoint_interval_s=interval_s,
    )

    async def run() -> None:
        with pytest.raises(JobCancelledError):
            await call()

    with trio.fail_after(HANG_S):
        async with beside(address) as store, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while len(steps_in(side)) < 10:  # noqa: ASYNC110  # a thread tells nothing
                await trio.sleep(0.01)
            jobs = Jobs(store)
            with pytest.raises(NotPossibleError, match="an engine runs the item"):
                await jobs.release(f"{JOB}.000000")
            assert (await jobs.cancel(JOB)).done == "the job is being cancelled"
        threads.shutdown()  # waits for the functions
        assert len(steps_in(side)) < 2 * N, "the functions went on to their end"
        async with beside(address) as store:
            assert (await remote.read_job(store, JOB)).status is TaskStatus.CANCELLED


async def test_why_items_wait_is_seen_from_elsewhere(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "WATCH_EVERY_S", 0.01)
    monkeypatch.setattr(job, "REPORT_WAITING_AFTER_S", 0.0)
    monkeypatch.setattr(ExecutorAdapter, "why_waiting", lambda _: "no worker is free")
    file = tmp_path / "go"
    async with open_map(
        items.wait_for_file, [str(file)], engine=threads, store=tmp_path / "s", job_id=JOB
    ) as outcomes:
        async with beside(str(tmp_path / "s")) as store:
            with trio.fail_after(HANG_S):
                waits = ""
                while waits != "no worker is free":
                    with suppress(UnknownJobError):  # it is not accepted yet
                        waits = (await remote.read_job(store, JOB)).waits
                    await trio.sleep(0.05)
        file.touch()
        assert [pair async for pair in outcomes] == [(0, str(file))]
