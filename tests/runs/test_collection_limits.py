"""What ends the part of a process in a collection: limits, and a second signal."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from tests.runs.claims import do_items, take_part, work
from trio_ckpt import Collection, Limits, RunStoppedError
from trio_ckpt.abc import RunSummary
from trio_ckpt.stores import MemoryStore


async def work_until_stopped(store: MemoryStore, limits: Limits, **options: float) -> list[int]:
    """Work on 4 partitions of 10 items; returns the items of those that were begun."""
    done = list[int]()
    with pytest.raises(RunStoppedError) as caught:
        async with take_part(store, partitions=4, items=40, limits=limits) as collection:
            while True:
                async with collection.claim() as partition:
                    assert partition is not None
                    await do_items(partition, done, **options)
    assert caught.value.exit_code == 75
    assert caught.value.reason is not None
    assert caught.value.reason.startswith("limit ")
    return done


@pytest.mark.parametrize("name", ["runtime_s", "stop_at"])
@pytest.mark.parametrize(("deadline_s", "items"), [(5.5, 5), (15.5, 16)])
async def test_a_deadline_is_of_the_process(
    name: str, deadline_s: float, items: int, autojump_clock: MockClock
) -> None:
    """Also where it passes in the second partition; what is open then is finished."""
    store = MemoryStore()
    ends = datetime.now(UTC) + timedelta(seconds=deadline_s)
    limits = Limits(runtime_s=deadline_s) if name == "runtime_s" else Limits(stop_at=ends)
    done = await work_until_stopped(store, limits, seconds=1)
    assert len(done) == items
    more, _ = await work(store, partitions=4, items=40)
    assert sorted(done + more) == list(range(40))


async def test_a_deadline_ends_the_wait_for_a_partition(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with store.lock_run("crawl.00000"):
        with pytest.raises(RunStoppedError, match="limit runtime_s: its 10 s are over"):
            async with take_part(store, partitions=1, limits=Limits(runtime_s=10)) as collection:
                async with collection.claim():
                    pass
    assert trio.current_time() == 10


async def test_the_number_of_batches_is_of_each_partition() -> None:
    store = MemoryStore()
    assert len(await work_until_stopped(store, Limits(batches=7))) == 7
    await work(store, partitions=4, items=40, limits=Limits(batches=11))


async def test_what_may_be_spent_is_of_each_partition_and_all_its_sessions() -> None:
    store = MemoryStore()
    limits = Limits(spent={"cost_usd": 3})

    async def spend(collection: Collection) -> int:
        batches = 0
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages") as stream:
                async for batch in stream.batches(partition.range):
                    batch.spend(cost_usd=1)
                    batch.complete()
                    batches += 1
        return batches

    async with take_part(store, partitions=2, items=8, limits=limits) as collection:
        for _ in range(2):
            with pytest.raises(RunStoppedError, match="limit spent: 3 of 3 cost_usd are spent"):
                await spend(collection)
    async with take_part(store, partitions=2, items=8, limits=limits) as collection:
        for _ in range(2):
            with pytest.raises(RunStoppedError, match="nothing is handed out"):
                await spend(collection)


class SilentStore(MemoryStore):
    """Does not answer who asks for a list."""

    is_silent = False

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        if self.is_silent:
            await trio.sleep_forever()
        return await super().list_runs(prefix, after, limit)


async def test_a_second_signal_ends_a_claim_that_hangs() -> None:
    store = SilentStore()

    async def stop_twice() -> None:
        for _ in range(2):
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunStoppedError) as caught:
        async with take_part(store, handle_signals=True) as collection:
            store.is_silent = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_twice)
                async with collection.claim():
                    pass
    assert caught.value.exit_code == 75
