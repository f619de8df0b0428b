"""Blocks of a collection inside of others: those that would wait for themselves are refused."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.runs.claims import do_items, take_part, work
from trio_ckpt import Collection
from trio_ckpt.stores import MemoryStore

REFUSED = "collection 'crawl': claim.. and finish.. wait for what is owned"


async def refuse(collection: Collection) -> None:
    """What is refused inside of a block."""
    for block in (collection.claim, collection.finish):
        with pytest.raises(RuntimeError, match=REFUSED):
            async with block():
                pass


async def test_a_claim_inside_a_claim_is_refused() -> None:
    async with take_part(MemoryStore(), partitions=2, items=2) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            await refuse(collection)
            await do_items(partition, [])
        async with collection.claim() as partition:
            assert partition is not None
            await do_items(partition, [])


async def test_a_task_begun_inside_a_claim_is_refused() -> None:
    async with take_part(MemoryStore(), partitions=2, items=2) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse, collection)
            await do_items(partition, [])


async def test_a_claim_inside_the_last_phase_is_refused() -> None:
    store = MemoryStore()
    async with take_part(store, partitions=1, items=1) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            await do_items(partition, [])
        async with collection.finish() as run:
            assert run is not None
            await refuse(collection)
        async with collection.finish() as run:
            assert run is None


async def test_the_last_phase_may_be_done_where_nothing_is_left() -> None:
    """The block of a claim that gave no partition owns nothing."""
    store = MemoryStore()
    await work(store)
    async with take_part(store) as collection:
        async with collection.claim() as partition:
            assert partition is None
            async with collection.finish() as run:
                assert run is None


async def test_tasks_beside_a_claim_may_claim(autojump_clock: MockClock) -> None:
    """Also a task that was begun in a block that has ended, and one of another collection."""
    async with take_part(MemoryStore(), partitions=3, items=3) as collection:
        ended, indexes = trio.Event(), list[int]()

        async def claim(after: trio.Event) -> None:
            await after.wait()
            async with collection.claim() as partition:
                assert partition is not None
                await do_items(partition, [])
                indexes.append(partition.index)

        async with trio.open_nursery() as nursery:
            begun = trio.Event()
            nursery.start_soon(claim, begun)
            await wait_all_tasks_blocked()
            async with collection.claim() as partition:
                assert partition is not None
                begun.set()
                nursery.start_soon(claim, ended)
                await do_items(partition, [], seconds=1)
                async with take_part(MemoryStore(), "other", partitions=1, items=1) as other:
                    async with other.claim() as another:
                        assert another is not None
                        await do_items(another, [])
            ended.set()
        assert len(indexes) == 2
