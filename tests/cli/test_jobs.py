"""What the commands, the monitor and REST say of a job: one answer, from its first moment on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.remote import functions
from tests.remote.functions import gates
from tests.remote.site import F, open_site, until
from trio_ckpt.cli._explain import explain
from trio_ckpt.cli._show import list_runs, show_run
from trio_ckpt.cli._watch import watch
from trio_ckpt.monitor._jobs import Jobs
from trio_ckpt.monitor._sources import StoreSource
from trio_ckpt.monitor._views import run_line
from trio_ckpt.stores import MemoryStore

JOB = "job-x"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


async def said_of(store: MemoryStore) -> tuple[Any, ...]:
    """Status, exit code and what is left, as each of them says it; they say the same."""
    (listed,) = (await list_runs(store, now=0.0)).document()["runs"]
    shown = (await show_run(store, JOB, stream=None, show_all=True)).document()
    line = run_line(await StoreSource(store).glance(JOB))
    answers = [
        (document["status"], document["exit_code"], document["batches"]["left"])
        for document in (listed, {**shown, "batches": shown["batches"]})
    ]
    answers.append((line.status, line.exit_code, line.batches.left))
    assert len(set(answers)) == 1, answers
    job = await Jobs(store).job(JOB, after=0, limit=9)
    return *answers[0], line.progress_percent, job.job_status


async def wait_free(store: MemoryStore) -> None:
    """Wait until the foreman that was killed has the job no more."""
    while await store.read_owner(JOB) is not None:  # noqa: ASYNC110  # a store tells no one
        await trio.sleep(0.05)


async def test_a_job_with_nothing_done_is_not_complete(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        async with site.client() as client:
            await client.submit(F + "square", range(4), job_id=JOB)
        store = site.store
        assert await said_of(store) == ("in_progress", 75, 4, 0.0, "running")
        await site.kill_foreman()
        await wait_free(store)
        assert await said_of(store) == ("interrupted", 75, 4, 0.0, "pending")
        told = await explain(store, JOB, stream=None, show_all=True, now=0.0)
        text = "\n".join(str(block) for block in told.blocks())
        assert "is complete" not in text
        assert "4 batches are left" in text


@pytest.mark.parametrize("total", [1, 3])
async def test_what_is_done_of_a_job_counts_its_items(
    autojump_clock: MockClock, total: int
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", slots=total)
        async with site.client() as client:
            await client.submit(F + "wait", range(total), job_id=JOB)
            await until(lambda: len(gates) == total)
            assert await said_of(site.store) == ("in_progress", 75, total, 0.0, "running")
            for done in range(1, total):
                gates[done].set()
                await until(lambda left=total - done: len(site.workers["a"].items) == left)
                percent = round(100 * done / total, 2)
                left = total - done
                assert await said_of(site.store) == ("in_progress", 75, left, percent, "running")
            gates[0].set()
            await client.attach(JOB)
        assert await said_of(site.store) == ("complete", 0, 0, 100.0, "completed")


async def test_a_job_of_no_items_is_complete(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        assert await client.map(F + "square", [], job_id=JOB) == []
        assert (await said_of(site.store))[:3] == ("complete", 0, 0)


async def test_watch_of_a_job_waits_until_every_item_is_done(autojump_clock: MockClock) -> None:
    """Also while no foreman has it: the next one goes on."""
    codes: list[int] = []
    out = io.StringIO()
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        async with site.client() as client:
            await client.submit(F + "square", range(4), job_id=JOB)

        async def watching() -> None:
            codes.append(await watch(site.store, JOB, every_s=1.0, as_json=False, file=out))

        nursery.start_soon(watching)
        await trio.sleep(10)
        await site.kill_foreman()
        await trio.sleep(10)
        assert codes == []
        assert "interrupted, no foreman has it" in out.getvalue()
        await site.start_foreman()
        await site.start_worker("a")
        await until(lambda: codes)
    assert codes == [0]


async def test_watch_of_a_job_that_failed_is_not_0(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        async with site.client() as client:
            await client.submit(F + "fail_odd", [1, 2], job_id=JOB)
            with trio.fail_after(60):
                code = await watch(site.store, JOB, every_s=1.0, as_json=False, file=io.StringIO())
    assert code not in (0, 3)


async def test_watch_of_a_cancelled_job_ends(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "square", range(4), job_id=JOB)
        await client.cancel(JOB)
        with trio.fail_after(60):
            code = await watch(site.store, JOB, every_s=1.0, as_json=False, file=io.StringIO())
    assert code not in (0, 3)
    assert (await said_of(site.store))[-1] == "cancelled"
