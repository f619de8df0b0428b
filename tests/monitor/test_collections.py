"""A collection is one run of the monitor's list, added up of the summaries of its partitions."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.cli.test_collections import OPTIONS, CountingStore, do_items, do_some
from tests.monitor.test_sources import api_of
from trio_ckpt import open_collection
from trio_ckpt.monitor._sources import FRESH_S, StoreSource


async def test_a_collection_is_one_run_of_the_list(autojump_clock: MockClock) -> None:
    store = CountingStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 3)
        async with collection.claim() as partition:
            assert partition is not None
            api = api_of(store)
            store.reads = 0
            (line,) = (await api.runs()).runs
            assert store.reads == 0
            await do_items(partition)
    assert (line.run, line.status, line.running) == ("crawl", "in_progress", True)
    assert line.partitions == {
        "pending": 2,
        "in_progress": 1,
        "interrupted": 0,
        "failed": 0,
        "complete": 3,
    }
    assert (line.batches.confirmed, line.progress_percent) == (30, 50.0)
    assert line.eta_s is not None


async def test_a_search_finds_the_partitions() -> None:
    store = CountingStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 6)
    found = await api_of(store).runs(search="CRAWL.0000")
    assert [line.run for line in found.runs] == [f"crawl.{index:05d}" for index in range(6)]
    assert {line.partitions for line in found.runs} == {None}


async def test_one_run_and_its_numbers_are_those_of_the_collection() -> None:
    store = CountingStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 6)
        async with collection.finish():
            pass
    api = api_of(store)
    detail, numbers = await api.run("crawl"), await api.statistics("crawl")
    assert (detail.run.status, detail.run.batches.confirmed) == ("complete", 60)
    assert detail.phases == {"finish": "complete"}
    assert numbers.batches.confirmed == 60
    alone = await api.run("crawl.00002")
    assert (alone.run.partitions, alone.run.batches.confirmed) == (None, 10)


async def test_metrics_count_partitions_by_status() -> None:
    store = CountingStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 2)
    store.reads = 0
    text = (await api_of(store).metrics_text()).decode()
    assert 'ckpt_partitions{run="crawl",status="complete"} 2.0' in text
    assert 'ckpt_partitions{run="crawl",status="pending"} 4.0' in text
    assert store.reads == 0


async def test_sums_are_made_again_only_after_a_change(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sums = CountingStore(), list[Any]()
    real = StoreSource.collection.__globals__["sum_up_collection"]

    def counting(*given: Any) -> Any:
        sums.append(given)
        return real(*given)

    monkeypatch.setitem(StoreSource.collection.__globals__, "sum_up_collection", counting)
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 1)
        source = StoreSource(store)
        for _ in range(3):
            await source.glance("crawl")
            await trio.sleep(FRESH_S)
        assert len(sums) == 1
        await do_some(collection, 1)
        await source.glance("crawl")
        assert len(sums) == 2
