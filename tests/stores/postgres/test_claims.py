"""Processes that share a collection in PostgreSQL: each partition has one owner, waited for."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

pytest.importorskip("psycopg", reason="psycopg is not installed")

from tests.runs.claims import do_items, take_part, work
from trio_ckpt import RunStoppedError
from trio_ckpt._journal.history import list_all_runs
from trio_ckpt.stores import open_store

CLAIMERS = 4


async def test_claimers_do_each_item_and_the_last_phase_once(url: str) -> None:
    results = list[tuple[list[int], list[int]]]()
    finished = list[str]()

    async def claimer() -> None:
        results.append(await work(url, finished=finished))

    async with trio.open_nursery() as nursery:
        for _ in range(CLAIMERS):
            nursery.start_soon(claimer)
    assert sorted(item for done, _ in results for item in done) == list(range(100))
    assert sorted(index for _, claimed in results for index in claimed) == list(range(10))
    assert finished == ["once"]
    store = await open_store(url)
    assert all(run.is_complete for run in await list_all_runs(store))
    await store.aclose()


async def test_what_another_owns_is_waited_for(url: str, autojump_clock: MockClock) -> None:
    store = await open_store(url)
    async with take_part(url, partitions=1, items=3) as collection, trio.open_nursery() as nursery:

        async def own(task_status: trio.TaskStatus[None]) -> None:
            async with store.lock_run("crawl.00000"):
                task_status.started()
                await trio.sleep(3)

        await nursery.start(own)
        began = trio.current_time()
        async with collection.claim() as partition:
            assert partition is not None
            assert trio.current_time() - began >= 3
            await do_items(partition, [])
    await store.aclose()


async def test_a_stop_ends_a_claim_that_waits(url: str, autojump_clock: MockClock) -> None:
    store = await open_store(url)
    async with store.lock_run("crawl.00000"), trio.open_nursery() as nursery:
        with pytest.raises(RunStoppedError) as caught:
            async with take_part(url, partitions=1, items=3) as collection:

                async def stop() -> None:
                    await trio.sleep(3)
                    collection.request_stop()

                nursery.start_soon(stop)
                async with collection.claim():
                    pass
    assert caught.value.exit_code == 75
    await store.aclose()
