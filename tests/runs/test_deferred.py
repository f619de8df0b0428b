"""Deferred batches: others go on, and they are handed out when they are due."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin, begin_blocking
from tests.runs.deferring import DAY_S, Clock, Work, progress_of, some, wall as wall
from tests.runs.steered import begin_steered, done
from trio_ckpt import (
    Batch,
    Frontier,
    Limits,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    Stream,
    StreamFailedError,
    Then,
    open_run,
    read_history,
    run_batches,
)
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import World, explore_crashes

# -- in a session --------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_others_go_on_and_it_comes_back_when_due(
    concurrency: int, autojump_clock: Clock
) -> None:
    work = Work(some(30.0, 1, 4))
    assert await work.run(MemoryStore(), concurrency=concurrency) == 0
    assert sorted(work.indexes) == [0, 1, 1, 2, 3, 4, 4, 5]
    assert sorted(work.indexes[-2:]) == [1, 4]
    for index in (1, 4):
        first, second = (at for one, at in work.begun if one == index)
        assert second >= first + 1.0 + 30.0 - 0.01  # trio's mock clock stands while code runs


async def test_a_plain_loop_passes_it_over(autojump_clock: Clock) -> None:
    begun = list[int]()
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(list("abcd")):
            begun.append(batch.index)
            if batch.index == 1 and len(begun) == 2:
                batch.defer(until=20)
            else:
                batch.complete()
    assert begun == [0, 1, 2, 3, 1]
    assert run.exit_code == 0


async def test_its_attempt_does_not_count_and_its_cost_does(autojump_clock: Clock) -> None:
    store, attempts = MemoryStore(), list[int]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            attempts.append(batch.attempt)
            batch.spend(cost_usd=1)
            if len(attempts) < 3:
                assert batch.defer(until=1)
                assert not batch.complete()  # it is settled
            else:
                batch.complete()
    assert attempts == [1, 1, 1]
    history = [one async for one in read_history(store, "r", ("s",))]
    assert [one.attempts for one in history if one.kind == "attempt"] == [0, 0]
    assert run.statistics().spent == {"cost_usd": 3}


async def test_its_state_is_undone_and_its_stream_waits(autojump_clock: Clock) -> None:
    """Batches with an order: none overtakes the deferred one."""
    begun = list[int]()
    async with begin() as run, run.open_stream("s", state={"sum": 0}) as stream:
        async for batch in stream.batches(range(4)):
            begun.append(batch.index)
            stream.state["sum"] += batch.index
            if begun == [0, 1]:
                batch.defer(until=45)
            else:
                batch.complete()
        assert stream.state == {"sum": 6}
    assert begun == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("concurrency", [None, 1])
async def test_with_a_cursor_its_stream_waits(
    concurrency: int | None, autojump_clock: Clock
) -> None:
    begun = list[int]()

    async def handle(batch: Batch[Any]) -> None:
        begun.append(batch.index)
        if begun == [0, 1]:
            batch.defer(until=45)
        else:
            batch.complete(cursor=batch.index)

    stream: Stream[None]
    async with begin() as run, run.open_stream("s") as stream:
        if concurrency is None:
            async for batch in stream.batches(range(4)):
                await handle(batch)
        else:
            await run_batches(stream, range(4), handle, concurrency=concurrency)
    assert begun == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("is_loop", [True, False], ids=["loop", "run_batches"])
async def test_a_start_in_a_stream_with_an_order_waits(
    is_loop: bool, autojump_clock: Clock
) -> None:
    store, begun = MemoryStore(), list[int]()

    async def handle(batch: Batch[Any]) -> None:
        begun.append(batch.index)
        if begun == [0, 1]:
            batch.defer(until=DAY_S)
        else:
            batch.complete(cursor=batch.index)

    async def start(wait_s: float) -> None:
        async with begin(store, wait_for_deferred_s=wait_s) as run:
            async with run.open_stream("s") as stream:
                if is_loop:
                    async for batch in stream.batches(range(4)):
                        await handle(batch)
                else:
                    await run_batches(stream, range(4), handle)

    for _ in range(2):
        with pytest.raises(RunStoppedError, match="deferred work"):
            await start(60)
        assert begun == [0, 1]
    await start(2 * DAY_S)
    assert begun == [0, 1, 1, 2, 3]


async def test_an_open_end_has_an_order(autojump_clock: Clock) -> None:
    begun = list[int]()
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            begun.append(batch.index)
            if begun == [0]:
                batch.defer(until=5)
            else:
                batch.complete(cursor="next", last=batch.index == 2)
        async with run.open_stream("blocks") as blocks:
            async with blocks.open_batch() as one:
                one.defer(until=5)
            async with blocks.open_batch() as again:
                again.complete(last=True)
    assert begun == [0, 0, 1, 2]
    assert again.index == 0


async def test_the_items_of_a_frontier_can_be_deferred(autojump_clock: Clock) -> None:
    work = Work(lambda batch: 10.0 if batch.item == "b" else None)
    store = MemoryStore()
    for wait_s in (0.0, 60.0):
        work.stopped = None
        try:
            async with begin(store, wait_for_deferred_s=wait_s) as run:
                async with run.open_stream("s", state=Frontier(["a", "b", "c"])) as stream:
                    await run_batches(stream, None, work.handle, concurrency=2)
        except RunStoppedError as stopped:
            work.stopped = stopped
        assert (work.stopped is not None) is (wait_s == 0.0)
    assert sorted(work.indexes) == [0, 1, 1, 2]


async def test_a_range_waits_for_its_own_only(autojump_clock: Clock) -> None:
    work, store = Work(some(DAY_S, 4)), MemoryStore()
    assert await work.run(store) == 75
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(6), work.handle, end=3)
        async for _ in stream.batches(range(6), end=3):
            raise AssertionError("nothing of it is left")
        await run_batches(stream, range(6), work.handle, start=5)
        async for _ in stream.batches(range(6), start=5):
            raise AssertionError("nothing of it is left")
    assert run.exit_code == 75


async def test_a_wait_for_a_deferred_batch_is_woken(autojump_clock: Clock) -> None:
    async with begin() as run, run.open_stream("s") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(run.wait_confirmed, ("s",), [1])
        await run_batches(stream, range(3), Work(some(40.0, 1)).handle)


async def test_what_waits_is_said(autojump_clock: Clock) -> None:
    said = list[Any]()

    async def look(run: Any) -> None:
        await trio.sleep(10)
        statistics = run.statistics()
        said.append((statistics.waiting[0].reason, statistics.deferred, statistics.failing))

    async with begin() as run, run.open_stream("s") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(look, run)
        await run_batches(stream, range(3), Work(some(40.0, 1)).handle)
    assert said == [("all that is left is deferred", 1, 0)]


# -- a server that asks for a long wait -----------------------------------------------------------


class QuotaError(Exception):
    def __init__(self, after_s: float) -> None:
        super().__init__("too many requests")
        self.after_s = after_s


QUOTA = RetryTable(
    [RetryRule((QuotaError,), attempts=3, then=Then.FAIL_STREAM, retry_after=lambda e: e.after_s)]
)


async def test_a_long_retry_after_defers_the_batch(autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[tuple[int, int]]()

    async def ask(batch: Batch[Any]) -> None:
        begun.append((batch.index, batch.attempt))
        if batch.index == 1 and batch.attempt < 3:
            raise QuotaError(20_000)
        batch.complete()

    async def start() -> RunStoppedError | None:
        try:
            async with begin(store) as run, run.open_stream("s", retry=QUOTA) as stream:
                await run_batches(stream, range(4), ask)
        except RunStoppedError as stopped:
            return stopped
        return None

    assert await start() is not None
    assert begun == [(0, 1), (1, 1), (2, 1), (3, 1)]
    await trio.sleep(19_000)
    assert await start() is not None
    assert len(begun) == 4
    await trio.sleep(1_100)
    stopped = await start()
    assert stopped is not None
    assert stopped.next_due is not None
    await trio.sleep(20_100)
    assert await start() is None
    assert begun[4:] == [(1, 2), (1, 3)]


async def test_what_asks_for_more_than_a_year_fails(autojump_clock: Clock) -> None:
    with pytest.raises(StreamFailedError):
        async with begin() as run, run.open_stream("s", retry=QUOTA) as stream:

            async def ask(batch: Batch[Any]) -> None:
                raise QuotaError(1e12)

            await run_batches(stream, range(4), ask)


async def test_the_brake_leaves_a_deferred_batch_deferred(autojump_clock: Clock) -> None:
    store = MemoryStore()

    async def ask(batch: Batch[Any]) -> None:
        raise QuotaError(20_000)

    with pytest.raises(RunStoppedError, match="in a row have failed"):
        limits = Limits(consecutive_failures=3)
        async with begin(store, limits=limits) as run:
            async with run.open_stream("s", retry=QUOTA) as stream:
                await run_batches(stream, range(9), ask)
    assert sorted((await progress_of(store)).deferred) == [0, 1, 2]


async def test_a_body_that_defers_is_no_failure(autojump_clock: Clock) -> None:
    work, store = Work(lambda _: DAY_S), MemoryStore()
    for _ in range(2):
        assert await work.run(store, limits=Limits(consecutive_failures=3)) == 75
        assert work.stopped is not None
        assert "deferred work: 6 batches" in str(work.stopped.reason)


# -- beside the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_loop", [True, False], ids=["loop", "run_batches"])
async def test_one_that_is_given_up_from_outside_is_not_waited_for(
    is_loop: bool, autojump_clock: Clock
) -> None:
    begun = list[int]()

    async def handle(batch: Batch[Any]) -> None:
        begun.append(batch.index)
        if batch.index == 1:
            batch.defer(until=600)
        else:
            batch.complete()

    async def give_up(steering: Steering) -> None:
        await trio.sleep(100)
        await done(steering, "skip", stream=("s",), steps=(1, 1))

    store, options = MemoryStore(), {"wait_for_deferred_s": 1_000}
    async with begin_steered(store, **options) as (run, steering), trio.open_nursery() as nursery:
        nursery.start_soon(give_up, steering)
        async with run.open_stream("s") as stream:
            if is_loop:
                async for batch in stream.batches(range(3)):
                    await handle(batch)
            else:
                await run_batches(stream, range(3), handle, concurrency=2)
            assert trio.current_time() == pytest.approx(100, abs=1)
    assert sorted(begun) == [0, 1, 2]
    assert run.exit_code == 3


async def test_a_wait_goes_on_for_the_next_one(autojump_clock: Clock) -> None:
    """The first that is due is given up from outside: the run does not wait for that time."""
    left_s = list[float]()

    async def give_up(run: Run, steering: Steering) -> None:
        await trio.sleep(10)
        await done(steering, "skip", stream=("s",), steps=(1, 1))
        await trio.sleep(5)
        left_s.append(run.statistics().waiting[0].for_s)
        if left_s[0] < DAY_S / 2:
            run.request_stop()  # the loop would turn and turn without waiting

    with pytest.raises(RunStoppedError) as stopped:
        async with begin_steered(MemoryStore()) as (run, steering), trio.open_nursery() as nursery:
            nursery.start_soon(give_up, run, steering)
            async with run.open_stream("s") as stream:
                work = Work(lambda batch: {1: 30.0, 2: DAY_S}.get(batch.index))
                await run_batches(stream, range(4), work.handle, concurrency=2)
    assert left_s == [pytest.approx(DAY_S, abs=100)]
    assert "deferred work: 1 batch, due at" in str(stopped.value.reason)


async def test_retry_failed_leaves_it_deferred(autojump_clock: Clock) -> None:
    store, work = MemoryStore(), Work(some(DAY_S, 2))
    assert await work.run(store) == 75
    assert await work.run(store, retry_failed=True) == 75
    assert work.indexes == [0, 1, 2, 3, 4, 5]


async def test_what_failed_and_is_deferred_stays_so(autojump_clock: Clock) -> None:
    """Also where a skipped batch beside it is re-queued by `retry_failed`."""
    store, asked = MemoryStore(), list[int]()

    async def ask(batch: Batch[Any]) -> None:
        asked.append(batch.index)
        if batch.index == 0:
            raise QuotaError(20_000)
        batch.skip("it is empty")

    for retry_failed in (False, True):
        with pytest.raises(RunStoppedError, match="deferred work"):
            async with begin(store, retry_failed=retry_failed) as run:
                async with run.open_stream("s", retry=QUOTA) as stream:
                    await run_batches(stream, range(2), ask)
        progress = await progress_of(store)
        assert (list(progress.deferred), progress.failures[0].attempts) == ([0], 1)
    assert asked == [0, 1, 1]


def test_a_synchronous_program_can_defer() -> None:
    with pytest.raises(RunStoppedError, match="deferred work") as stopped:
        with begin_blocking(wait_for_deferred_s=0) as run, run.open_stream("s") as stream:
            for batch in stream.batches(range(3)):
                if batch.index == 1:
                    batch.defer(until=DAY_S)
                else:
                    batch.complete()
    assert stopped.value.exit_code == 75
    assert stopped.value.next_due is not None


# -- crashes --------------------------------------------------------------------------------------


async def defer_until_tomorrow(world: World) -> None:
    """Two at once; two of six batches are deferred until after the test."""
    is_over = False
    while not is_over:
        try:
            async with open_run("r", store=world.store, wait_for_deferred_s=0) as run:
                stream: Stream[None]
                async with run.open_stream("s") as stream:

                    async def handle(batch: Batch[int], stream: Stream[None] = stream) -> None:
                        if batch.index in stream.progress.deferred:
                            world.note("handed out early")
                        await trio.sleep(0.1)
                        if batch.index in (1, 4):
                            batch.defer(until=DAY_S)
                        else:
                            batch.complete()

                    await run_batches(stream, range(6), handle, concurrency=2)
        except RunStoppedError as stopped:
            is_over = stopped.next_due is not None


def all_is_done_but_for_the_deferred(world: World) -> None:
    progress = world.progress("s")
    assert list(progress.confirmed) == [0, 2, 3, 5]
    assert sorted(progress.deferred) == [1, 4]
    assert not world.count("handed out early")


def test_no_kill_loses_a_deferral_or_hands_it_out_early() -> None:
    found = explore_crashes(defer_until_tomorrow, all_is_done_but_for_the_deferred, schedules=40)
    assert found.points["store"] > 6
    assert not found.left_out
