"""A collection: each partition has one owner at a time, and the last phase is done once."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.opening import begin
from tests.runs.claims import do_items, take_part, work
from trio_ckpt import (
    ConfigChangedError,
    RunStoppedError,
)
from trio_ckpt._journal.history import list_all_runs
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore, open_store

LEASE_S = 30.0


@pytest.fixture(params=["memory", "sqlite", "json"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = await open_store(f"{request.param}:{tmp_path / 'store'}", durability="process")
    yield opened
    await opened.aclose()


async def test_one_process_does_each_item_once(store: Store) -> None:
    finished: list[str] = []
    done, claimed = await work(store, finished=finished)
    assert sorted(done) == list(range(100))
    assert sorted(claimed) == list(range(10))
    assert finished == ["once"]
    assert await work(store, finished=finished) == ([], [])
    assert finished == ["once"]
    runs = [line.run_id for line in await list_all_runs(store)]
    assert runs == ["crawl", *(f"crawl.{index:05d}" for index in range(10))]
    assert all(line.is_complete for line in await list_all_runs(store))


async def test_partitions_are_claimed_in_random_order() -> None:
    orders = {tuple((await work(MemoryStore()))[1]) for _ in range(5)}
    assert len(orders) > 1


async def test_two_claimers_share_the_partitions(store: Store) -> None:
    """Each partition is done by one of them, and the last phase by one."""
    results: list[tuple[list[int], list[int]]] = []
    finished: list[str] = []

    async def claimer() -> None:
        results.append(await work(store, finished=finished))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claimer)
        nursery.start_soon(claimer)
    assert sorted(item for done, _ in results for item in done) == list(range(100))
    assert sorted(index for _, claimed in results for index in claimed) == list(range(10))
    assert finished == ["once"]


async def test_a_claimer_waits_for_what_others_own(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    ends: list[float] = []

    async def claimer() -> None:
        await work(store, partitions=2, items=20, seconds=1)
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(claimer)
    assert len(ends) == 3
    assert min(ends) >= 10
    assert max(ends) <= 12  # both partitions take 10 s; the list is read at least once a second


async def test_a_partition_that_was_left_is_taken_by_another(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with take_part(store, partitions=1, items=10) as first:
        async with take_part(store, partitions=1, items=10) as second:
            async with first.claim() as partition:
                assert partition is not None
                async with partition.run.open_stream("pages") as stream:
                    async for batch in stream.batches(partition.range):
                        batch.complete()
                        break
                with trio.move_on_after(5) as scope:
                    async with second.claim():
                        pass
                assert scope.cancelled_caught
            async with first.claim() as again:
                assert again is None  # it had its turn
            done: list[int] = []
            async with second.claim() as partition:
                assert partition is not None
                await do_items(partition, done)
            assert done == list(range(1, 10))
            assert second.exit_code == 75  # the last phase is left
            async with first.finish() as run:
                assert run is not None
            async with second.finish() as run:
                assert run is None
            assert (first.exit_code, second.exit_code) == (0, 0)


async def test_the_partition_of_a_killed_owner_is_taken(autojump_clock: MockClock) -> None:
    """What it had confirmed is not done again."""
    store, done = MemoryStore(), list[int]()
    async with take_part(store, partitions=2, items=20) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            killed = partition.index
            async with partition.run.open_stream("pages") as stream:
                async for batch in stream.batches(partition.range):
                    batch.complete()
                    done.append(partition.range[batch.index])
                    if len(done) == 4:
                        await partition.run.wait_confirmed(stream, range(3))
                        after = store.after_crash()
                        break
    more, claimed = await work(after, partitions=2, items=20)
    assert sorted(claimed) == [0, 1]
    assert set(done[:3]) & set(more) == set()
    assert len(more) in (16, 17)
    assert killed in claimed


async def test_a_partition_whose_lease_is_lost_is_taken(autojump_clock: MockClock) -> None:
    store = MemoryStore(lease_s=LEASE_S)
    async with store.lock_run("crawl.00000"):
        await trio.sleep(1)
        after = store.after_crash()
    began = trio.current_time()
    done, claimed = await work(after, partitions=1, items=5)
    assert (done, claimed) == (list(range(5)), [0])
    assert LEASE_S - 2 <= trio.current_time() - began <= LEASE_S + 1


async def test_another_number_of_partitions_is_refused(store: Store) -> None:
    async with take_part(store):
        pass
    with pytest.raises(ConfigChangedError, match=r"@collection\.partitions: 10 -> 11") as caught:
        async with take_part(store, partitions=11):
            pass
    assert "another name" in str(caught.value)
    assert "on_config_change" not in str(caught.value)
    with pytest.raises(ConfigChangedError, match=r"@collection\.items: 100 -> 101"):
        async with take_part(store, items=101):
            pass
    async with take_part(store):
        pass


async def test_a_tunable_field_of_the_config_may_change() -> None:
    store = MemoryStore()
    async with take_part(store, config={"rate": 1, "site": "a"}, tunable=["rate"]):
        pass
    async with take_part(store, config={"rate": 2, "site": "a"}, tunable=["rate"]):
        pass
    with pytest.raises(ConfigChangedError, match="site"):
        async with take_part(store, config={"rate": 2, "site": "b"}, tunable=["rate"]):
            pass


async def test_an_ordinary_run_is_no_collection() -> None:
    store = MemoryStore()
    async with begin(store, "crawl"):
        pass
    with pytest.raises(ConfigChangedError, match="@collection"):
        async with take_part(store):
            pass


async def test_a_run_that_has_the_name_of_a_partition_is_refused() -> None:
    store = MemoryStore()
    async with begin(store, "crawl.00000"):
        pass  # it is complete, but not with the items of the partition
    with pytest.raises(ConfigChangedError, match="@partition"):
        async with take_part(store, partitions=1, items=1) as collection, collection.claim():
            pass


async def test_runs_whose_names_begin_alike_are_left_alone(store: Store) -> None:
    """Other collections, and runs that only look like partitions."""
    for name in ("crawl.00001x", "crawl.000010", "crawl.0001", "crawl.00001.00002", "crawler"):
        async with begin(store, name) as run, run.open_stream("mine") as stream:
            async for batch in stream.batches(range(2)):
                batch.complete()
                break
    before = {line.run_id: line.records for line in await list_all_runs(store)}
    done, _ = await work(store, name="crawl", partitions=3, items=30)
    assert sorted(done) == list(range(30))
    done, _ = await work(store, name="crawl.2", partitions=3, items=30)
    assert sorted(done) == list(range(30))
    after = {line.run_id: line.records for line in await list_all_runs(store)}
    assert {name: after[name] for name in before} == before


async def test_many_partitions_are_in_several_windows() -> None:
    store = MemoryStore()
    done, claimed = await work(store, partitions=250, items=250)
    assert sorted(done) == sorted(claimed) == list(range(250))


async def test_partitions_without_items_are_complete() -> None:
    done, claimed = await work(MemoryStore(), partitions=5, items=2)
    assert sorted(done) == [0, 1]
    assert sorted(claimed) == list(range(5))


async def test_items_are_chosen_by_their_keys() -> None:
    store, keys = MemoryStore(), [f"https://example.org/{n}" for n in range(50)]
    found: list[str] = []
    async with take_part(store, partitions=4, items=None) as collection:
        while True:
            async with collection.claim() as partition:
                if partition is None:
                    break
                with pytest.raises(ValueError, match="items="):
                    _ = partition.range
                async with partition.run.open_stream("pages") as stream:
                    async for batch in stream.batches(list(filter(partition.holds, keys))):
                        batch.complete()
                        found.append(batch.item)
    assert sorted(found) == sorted(keys)


async def test_partitions_have_folders_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with take_part(tmp_path / "s", partitions=2, items=2, output_dir=out) as collection:
        while True:
            async with collection.claim() as partition:
                if partition is None:
                    break
                async with partition.run.open_stream("pages") as stream:
                    async for batch in stream.batches(partition.range):
                        await batch.write_json("page.json", [batch.index])
                        batch.complete()
        async with collection.finish() as run:
            assert run is not None
            async with run.open_stream("merge") as merge:
                async for batch in merge.batches(range(1)):
                    await batch.write_json("all.json", {})
                    batch.complete()
    found = {str(path.relative_to(out)) for path in out.rglob("*.json")}
    assert {"crawl.00000/page.json", "crawl.00001/page.json", "crawl/all.json"} <= found


async def test_a_stop_ends_the_partition_that_is_open(autojump_clock: MockClock) -> None:
    store, done = MemoryStore(), list[int]()
    with pytest.raises(RunStoppedError) as caught:
        async with take_part(store) as collection:
            async with collection.claim() as partition:
                assert partition is not None
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(do_items, partition, done)
                    collection.request_stop()
    assert caught.value.exit_code == 75


async def test_a_stop_ends_the_wait_for_a_partition(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    async with store.lock_run("crawl.00000"), trio.open_nursery() as nursery:
        with pytest.raises(RunStoppedError) as caught:
            async with take_part(store, partitions=1) as collection:

                async def stop() -> None:
                    await trio.sleep(10)
                    collection.request_stop()

                nursery.start_soon(stop)
                async with collection.claim():
                    pass
    assert caught.value.exit_code == 75
    assert trio.current_time() == 10
    assert "run 'crawl' was stopped" in caplog.text


async def test_nothing_is_claimed_after_a_stop() -> None:
    store = MemoryStore()
    async with take_part(store) as collection:
        collection.request_stop()
        for block in (collection.claim, collection.finish):
            with pytest.raises(RunStoppedError):
                async with block():
                    pass


async def test_waiting_for_a_partition_can_be_cancelled(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with store.lock_run("crawl.00000"), take_part(store, partitions=1) as collection:
        with trio.move_on_after(5) as scope:
            async with collection.claim():
                pass
        assert scope.cancelled_caught


async def test_a_collection_that_another_process_begins_is_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    with caplog.at_level(logging.INFO, "trio_ckpt"):
        async with trio.open_nursery() as nursery:

            async def begin_slowly() -> None:
                async with store.lock_run("crawl"):
                    await trio.sleep(3)

            nursery.start_soon(begin_slowly)
            await wait_all_tasks_blocked()
            async with take_part(store):
                assert 3 <= trio.current_time() <= 4


@pytest.mark.parametrize(
    ("argument", "value"),
    [("partitions", 0), ("partitions", 10**6 + 1), ("items", -1), ("grace_s", -1)],
)
async def test_bad_arguments_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be"):
        async with take_part("memory:", **{argument: value}):
            pass


@pytest.mark.parametrize("name", ["", "a/b", "x" * 195])
async def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a run id"):
        async with take_part("memory:", name):
            pass
