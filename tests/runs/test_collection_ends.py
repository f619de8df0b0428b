"""How a collection ends: partitions that failed or were left, what was skipped, the last phase."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from tests.runs.claims import do_items, take_part, work
from trio_ckpt import (
    Batch,
    CodeChangedError,
    Collection,
    ConfigChangedError,
    PartitionsLeftError,
    RunStoppedError,
    StreamFailedError,
    run_batches,
)
from trio_ckpt._runs.partition_list import Window
from trio_ckpt.stores import MemoryStore


async def test_a_failed_partition_does_not_stop_the_others() -> None:
    store = MemoryStore()
    async with take_part(store) as collection:
        with pytest.raises(KeyError):
            async with collection.claim() as partition:
                raise KeyError("a bug")
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages", on_fail="record") as stream:
                await stream.fail("it is gone", retryable=False)
        done: list[int] = []
        while True:
            async with collection.claim() as partition:
                if partition is None:
                    break
                await do_items(partition, done)
        assert len(done) == 80
        assert collection.exit_code == 75
        with pytest.raises(PartitionsLeftError) as caught:
            async with collection.finish():
                pass
    assert (len(caught.value.failed), len(caught.value.left)) == (1, 1)
    assert "1 failed for good, such as 'crawl.0000" in str(caught.value)
    assert "1 were left with work" in str(caught.value)
    async with take_part(store) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            assert partition.run.run_id == caught.value.left[0]
            await do_items(partition, done)
        async with collection.claim() as partition:
            assert partition is None
        assert collection.exit_code == 69
        with pytest.raises(PartitionsLeftError, match="retry_failed=True"):
            async with collection.finish():
                pass


async def test_a_partition_with_deferred_work_is_left_for_later(autojump_clock: MockClock) -> None:
    done, stops = list[int](), list[RunStoppedError]()

    async def work_on(collection: Collection) -> bool:
        async with collection.claim() as partition:
            if partition is None:
                return False
            async with partition.run.open_stream("pages") as stream:
                async for batch in stream.batches(partition.range):
                    if batch.item == 4:
                        batch.defer(until=86_400)
                    else:
                        done.append(batch.item)
                        batch.complete()
        return True

    async with take_part(MemoryStore(), partitions=3, items=9) as collection:
        is_any_left = True
        while is_any_left:
            try:
                is_any_left = await work_on(collection)
            except RunStoppedError as stopped:
                stops.append(stopped)
        assert [one.next_due is not None for one in stops] == [True]
        assert sorted(done) == [0, 1, 2, 3, 5, 6, 7, 8]
        assert collection.exit_code == 75
        with pytest.raises(PartitionsLeftError, match="1 were left with work"):
            async with collection.finish():
                pass


async def test_a_partition_that_failed_since_it_was_listed_is_over() -> None:
    store, others = MemoryStore(), 0
    async with take_part(store, partitions=1, items=2) as collection:
        read = collection._list.read

        async def read_and_be_late(window: int) -> Window:
            nonlocal others
            found = await read(window)
            if others == 0:
                others = 1
                async with take_part(store, partitions=1, items=2) as other:
                    with pytest.raises(StreamFailedError, match="it is gone"):
                        async with other.claim() as partition:
                            assert partition is not None
                            async with partition.run.open_stream("pages") as stream:
                                await stream.fail("it is gone", retryable=False)
            return found

        collection._list.read = read_and_be_late  # type: ignore[method-assign]
        async with collection.claim() as partition:
            assert partition is None
        assert others == 1
        assert collection.exit_code == 69


async def test_a_partition_that_cannot_be_opened_is_not_tried_again() -> None:
    """Others are not kept from being done by it."""
    store = MemoryStore()
    async with begin(store, "crawl.00001"):
        pass  # it has the name of a partition only
    claimed: list[int] = []
    refusals = 0
    async with take_part(store, partitions=4, items=4) as collection:
        while len(claimed) + refusals < 4:
            try:
                async with collection.claim() as partition:
                    assert partition is not None
                    await do_items(partition, [])
                    claimed.append(partition.index)
            except ConfigChangedError:
                refusals += 1
        async with collection.claim() as partition:
            assert partition is None
    assert (sorted(claimed), refusals) == ([0, 2, 3], 1)


async def test_work_that_was_left_keeps_the_last_phase_from_beginning() -> None:
    async with take_part(MemoryStore(), partitions=1, items=2) as collection:
        with pytest.raises(KeyError):
            async with collection.claim() as partition:
                raise KeyError("a bug")
        async with collection.claim() as partition:
            assert partition is None
        with pytest.raises(PartitionsLeftError) as caught:
            async with collection.finish():
                pass
    assert (caught.value.failed, caught.value.left) == ((), ("crawl.00000",))


async def test_a_failed_partition_is_claimed_again_on_request() -> None:
    store = MemoryStore()
    async with take_part(store, partitions=2, items=2) as collection:
        for _ in range(2):
            async with collection.claim() as partition:
                assert partition is not None
                async with partition.run.open_stream("pages", on_fail="record") as stream:
                    await stream.fail("it is gone", retryable=False)
    done, claimed = await work(store, partitions=2, items=2, retry_failed=True)
    assert (sorted(done), sorted(claimed)) == ([0, 1], [0, 1])


async def test_skipped_batches_show_in_the_exit_code() -> None:
    store = MemoryStore()
    async with take_part(store, partitions=1, items=2) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages") as stream:
                async for batch in stream.batches(partition.range):
                    if batch.index:
                        batch.skip("it is empty")
                    else:
                        batch.complete()
        async with collection.claim() as partition:
            assert partition is None
        async with collection.finish():
            pass
        assert collection.exit_code == 3


@pytest.mark.parametrize("is_stream_opened", [False, True])
async def test_a_partition_left_at_once_is_not_complete(is_stream_opened: bool) -> None:
    store = MemoryStore()

    async def leave_early(collection: Collection) -> None:
        async with collection.claim() as partition:
            assert partition is not None
            if is_stream_opened:
                async with partition.run.open_stream("pages"):
                    return

    async with take_part(store, partitions=1, items=3) as collection:
        with pytest.raises(RuntimeError, match=r"'crawl\.00000': its block has ended"):
            await leave_early(collection)
        assert collection.exit_code == 75
        with pytest.raises(PartitionsLeftError):
            async with collection.finish():
                pass
    done, claimed = await work(store, partitions=1, items=3)
    assert (done, claimed) == ([0, 1, 2], [0])


async def test_a_partition_left_at_once_by_a_stop_says_so() -> None:
    async with take_part(MemoryStore(), partitions=1, items=3) as collection:
        with pytest.raises(RunStoppedError):
            async with collection.claim() as partition:
                assert partition is not None
                collection.request_stop()


async def test_the_last_phase_is_resumed_until_it_is_done() -> None:
    store = MemoryStore()
    async with take_part(store, partitions=1, items=1) as collection:
        async with collection.claim() as partition:
            assert partition is not None
            await do_items(partition, [])
        with pytest.raises(KeyError):
            async with collection.finish() as run:
                raise KeyError("a bug")
        assert collection.exit_code == 75
    async with take_part(store, partitions=1, items=1) as collection:
        async with collection.finish() as run:
            assert run is not None
            async with run.open_stream("merge") as stream:
                async for batch in stream.batches(range(1)):
                    batch.complete()
        assert collection.exit_code == 0
        async with collection.finish() as run:
            assert run is None


async def test_the_last_phase_waits_for_partitions(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with take_part(store, partitions=1, items=10) as first:
        async with take_part(store, partitions=1, items=10) as second:
            async with trio.open_nursery() as nursery:
                async with first.claim() as partition:
                    assert partition is not None

                    async def finish() -> None:
                        async with second.finish() as run:
                            assert run is not None
                            assert trio.current_time() >= 10

                    nursery.start_soon(finish)
                    await do_items(partition, [], seconds=1)


async def test_deferred_work_is_waited_for_as_long_as_is_said(autojump_clock: MockClock) -> None:
    store, done = MemoryStore(), list[int]()
    async with take_part(store, partitions=1, items=3, wait_for_deferred_s=600) as collection:
        began = trio.current_time()
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages") as stream:
                async for batch in stream.batches(partition.range):
                    if batch.item == 0 and trio.current_time() < began + 500:
                        batch.defer(until=500)
                    else:
                        done.append(batch.item)
                        batch.complete()
        assert done == [1, 2, 0]
        assert collection.exit_code == 75  # but for the last phase
        async with collection.finish():
            pass
        assert collection.exit_code == 0


async def test_changed_code_is_refused_in_each_partition() -> None:
    async def one(batch: Batch[int]) -> None:
        batch.complete()

    async def other(batch: Batch[int]) -> None:
        batch.complete(records=1)

    store = MemoryStore()
    async with take_part(store, partitions=1, items=4, code="refuse") as collection:
        async with collection.claim() as partition:
            assert partition is not None
            async with partition.run.open_stream("pages") as stream:
                await run_batches(stream, range(4), one, end=1)
    async with take_part(store, partitions=1, items=4, code="refuse") as collection:
        with pytest.raises(CodeChangedError, match="2 confirmed batches are of older code"):
            async with collection.claim() as partition:
                assert partition is not None
                async with partition.run.open_stream("pages") as stream:
                    await run_batches(stream, range(4), other)
