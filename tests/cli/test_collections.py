"""A collection is one line of `ls`, whose sums come from summaries alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import Collection, Partition, open_collection
from trio_ckpt._journal.collection import split_collections, sum_up_collection
from trio_ckpt._journal.history import list_all_runs
from trio_ckpt._journal.record import Status
from trio_ckpt.abc import RunView, Store, StoredRun
from trio_ckpt.cli._render import to_lines
from trio_ckpt.cli._show import list_runs, show_run
from trio_ckpt.stores import MemoryStore

OPTIONS: dict[str, Any] = {"partitions": 6, "items": 60, "handle_signals": False}


class CountingStore(MemoryStore):
    """A store that counts the runs that are read."""

    reads = 0

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        self.reads += 1
        return await super().read_run(run_id, generation)

    async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
        return await super().load_run(run_id, generation)


async def do_items(partition: Partition, *, last: int = 10) -> None:
    async with partition.run.open_stream("pages", on_fail="record") as stream:
        async for batch in stream.batches(partition.range):
            if batch.index == last:
                batch.complete(records=2, totals={"bytes": 0.1})
                break
            batch.complete(records=2, totals={"bytes": 0.1})


async def do_some(collection: Collection, count: int, **how: Any) -> None:
    for _ in range(count):
        async with collection.claim() as partition:
            assert partition is not None
            await do_items(partition, **how)


async def texts(store: Store, *given: Any, **options: Any) -> list[str]:
    return to_lines((await list_runs(store, *given, **options)).blocks())


async def test_ls_shows_a_collection_on_one_line() -> None:
    store = CountingStore()
    for name in ("crawl.00001x", "crawl.2", "other"):
        async with begin(store, name) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 2)
        await do_some(collection, 1, last=3)
        store.reads = 0
        async with collection.claim() as partition:
            assert partition is not None
            document = (await list_runs(store, now=0.0)).document()
            assert store.reads == 1  # of the claim itself
            await do_items(partition)
    runs = document["runs"]
    assert isinstance(runs, list)
    assert [run["run"] for run in runs] == ["crawl", "crawl.00001x", "crawl.2", "other"]
    crawl = runs[0]
    assert crawl["status"] == "in_progress"
    assert crawl["batches"]["confirmed"] == 24
    assert crawl["partitions"]["statuses"] == {
        "pending": 2,
        "in_progress": 1,
        "interrupted": 1,
        "complete": 2,
        "failed": 0,
    }
    assert (crawl["partitions"]["total"], crawl["partitions"]["unseen"]) == (6, 1)
    assert runs[1]["partitions"] is None


async def test_a_prefix_or_all_opens_the_collection() -> None:
    store = MemoryStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 6)
    ids = [f"crawl.{index:05d}" for index in range(6)]
    for prefix, show_all, found in (
        ("", False, ["crawl"]),
        ("", True, ["crawl", *ids]),
        ("crawl.", False, ids),
        ("crawl.00003", False, ids[3:4]),
        ("none", False, []),
    ):
        document = (await list_runs(store, prefix, show_all=show_all)).document()
        assert [run["run"] for run in document["runs"]] == found  # type: ignore[attr-defined]


async def test_the_words_of_ls_and_show_for_a_collection() -> None:
    store = MemoryStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 5)
        lines = await texts(store, now=0.0)
        assert "5 of 6 partitions complete" in lines[-1]
        assert "no partition is owned" in lines[-1]
        assert "interrupted" in lines[-1]
        async with collection.claim() as partition:
            assert partition is not None
            lines = await texts(store, now=0.0)
            assert "5 of 6 partitions complete, 1 in progress" in lines[-1]
            assert "1 partition owned, " in lines[-1]
            assert "to go" in lines[-1]
            await do_items(partition)
        async with collection.finish():
            pass
    shown = to_lines((await show_run(store, "crawl", stream=None, show_all=False)).blocks())
    text = "\n".join(shown)
    assert "6 of 6 partitions complete; no partition is owned" in text
    assert "60 batches confirmed" in text
    assert "bytes 6" in text
    document = (await show_run(store, "crawl", stream=None, show_all=False)).document()
    assert document["collection"]["status"] == "complete"  # type: ignore[index]
    alone = (await show_run(store, "crawl.00000", stream=None, show_all=False)).document()
    assert (alone["collection"], alone["partitions"]) == (None, None)


async def roll_up(store: Store) -> Any:
    collections, others = split_collections(store, await list_all_runs(store))
    assert [line.run_id for line in others] == []
    return sum_up_collection(store, collections["crawl"])


async def test_sums_and_exit_code_of_a_collection_follow_its_runs() -> None:
    store = MemoryStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        _, others = split_collections(store, await list_all_runs(store))
        assert [line.run_id for line in others] == ["crawl"]  # no partition was begun
        await do_some(collection, 5)
        found = await roll_up(store)
        assert (found.run.status, found.run.exit_code) == (Status.INTERRUPTED, 75)
        assert found.run.summary.left is None
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages", on_fail="record") as stream:
                await stream.fail("gone", retryable=False)
        found = await roll_up(store)
        assert (found.run.status, found.run.exit_code) == (Status.FAILED, 69)
    async with open_collection("crawl", store=store, **OPTIONS, retry_failed=True) as collection:
        await do_some(collection, 1)
        found = await roll_up(store)
        assert (found.run.status, found.run.exit_code) == (Status.INTERRUPTED, 75)
        async with collection.finish() as run:
            assert run is not None
            async with run.open_stream("merge") as stream:
                async for batch in stream.batches(range(2)):
                    if batch.index:
                        batch.skip("not needed")
                    else:
                        batch.complete()
    found = await roll_up(store)
    assert (found.run.status, found.run.exit_code) == (Status.COMPLETE, 3)
    assert found.run.is_complete
    summary = found.run.summary
    assert (summary.confirmed, summary.skipped, summary.records) == (61, 1, 120)
    assert summary.totals == {"bytes": pytest.approx(6.0)}
    assert (summary.left, sum(summary.streams.values())) == (0, 7)


async def test_a_partition_of_a_killed_owner_counts_as_it_was_left() -> None:
    store = MemoryStore()
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        await do_some(collection, 1, last=3)
    async with open_collection("crawl", store=store, **OPTIONS) as collection:
        while True:
            async with collection.claim() as partition:
                assert partition is not None
                if partition.run.found.sessions:
                    await do_items(partition, last=5)
                    killed = store.after_crash()
                    break
                await do_items(partition)
    found = await roll_up(killed)
    assert found.partitions[Status.INTERRUPTED] == 1
    assert found.run.summary.confirmed % 10 == 4
