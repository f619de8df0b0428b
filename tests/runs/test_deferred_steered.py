"""What a run does beside deferred batches: work, a stop, a pause, more workers."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from tests.runs.steered import begin_steered, done, refused
from trio_ckpt import Batch, Frontier, Run, RunStoppedError, read_sessions, run_batches
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore

Clock = trio.testing.MockClock
Steer = Callable[[Run, Steering], Awaitable[None]]


async def begun_by(store: MemoryStore, steer: Steer, due_s: float, loop: str) -> dict[int, float]:
    """Work on six batches, of which two are deferred once; returns when each began last."""
    begun, deferred = dict[int, float](), set[int]()

    async def handle(batch: Batch[Any]) -> None:
        begun[batch.index] = trio.current_time()
        await trio.sleep(1.0)
        if batch.index in (1, 4) and batch.index not in deferred:
            deferred.add(batch.index)
            batch.defer(until=due_s)
        else:
            batch.complete()

    settings: dict[str, Any] = {"state": {"n": 0}} if loop == "with a state" else {}
    async with begin_steered(store, wait_for_deferred_s=1_000) as (run, steering):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steer, run, steering)
            async with run.open_stream("s", **settings) as stream:
                if loop == "run_batches":
                    await run_batches(stream, range(6), handle, concurrency=2)
                else:
                    async for batch in stream.batches(range(6)):
                        await handle(batch)
    return begun


@pytest.mark.parametrize("loop", ["run_batches", "batches", "with a state"])
async def test_a_stop_ends_a_wait_at_once(loop: str, autojump_clock: Clock) -> None:
    async def stop(run: Run, steering: Steering) -> None:
        await trio.sleep(100)
        run.request_stop()

    store = MemoryStore()
    with pytest.raises(RunStoppedError) as stopped:
        await begun_by(store, stop, 500, loop)
    assert trio.current_time() == pytest.approx(100, abs=1)
    assert (stopped.value.exit_code, stopped.value.reason, stopped.value.next_due) == (
        75,
        None,
        None,
    )
    [session] = await read_sessions(store, "r")
    assert session.next_due is None


@pytest.mark.parametrize("is_loop", [True, False], ids=["batches", "run_batches"])
async def test_a_stop_does_not_wait_for_a_body_that_waits(
    is_loop: bool, autojump_clock: Clock
) -> None:
    """The body of a batch runs a loop of its own, which waits for a deferred batch."""

    async def stop(run: Run) -> None:
        await trio.sleep(100)
        run.request_stop()

    async def defer(batch: Batch[Any]) -> None:
        batch.defer(until=600)

    with pytest.raises(RunStoppedError):
        async with begin(wait_for_deferred_s=1_000, grace_s=400) as run:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop, run)
                async with run.open_stream("outer") as outer:
                    async for _ in outer.batches(range(1)):
                        async with run.open_stream("inner") as inner:
                            if is_loop:
                                async for batch in inner.batches(range(1)):
                                    await defer(batch)
                            else:
                                await run_batches(inner, range(3), defer, concurrency=2)
    assert trio.current_time() == pytest.approx(100, abs=1)


@pytest.mark.parametrize("loop", ["run_batches", "batches", "with a state"])
async def test_what_becomes_due_in_a_pause_waits_for_its_end(
    loop: str, autojump_clock: Clock
) -> None:
    async def pause(run: Run, steering: Steering) -> None:
        await trio.sleep(50)
        await done(steering, "pause")
        await trio.sleep(700)
        await done(steering, "resume")

    begun = await begun_by(MemoryStore(), pause, 200, loop)
    assert len(begun) == 6
    assert begun[4] >= 750
    assert begun[1] >= 750


async def test_more_workers_wait_with_the_others(autojump_clock: Clock) -> None:
    async def hire(run: Run, steering: Steering) -> None:
        for count in (5, 1, 3):
            await trio.sleep(50)
            await done(steering, "concurrency", count=count)

    begun = await begun_by(MemoryStore(), hire, 300, "run_batches")
    assert begun[1] == pytest.approx(301, abs=3)
    assert begun[4] == pytest.approx(303, abs=3)


async def test_a_run_does_not_stop_while_a_worker_works(autojump_clock: Clock) -> None:
    """Nothing else can be handed out, and yet what is left is not all deferred."""
    store = MemoryStore()

    async def handle(batch: Batch[Any]) -> None:
        if batch.index == 1:
            batch.defer(until=86_400)
            return
        await trio.sleep(10_000)  # much longer than a stop gives it
        assert not run.is_stopping
        batch.complete()

    with pytest.raises(RunStoppedError, match="deferred work"):
        async with begin(store, grace_s=10) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(2), handle, concurrency=2)
    assert list(stream.progress.confirmed) == [0]


async def test_a_deferred_item_of_a_frontier_is_held_at_a_start(autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[str]()

    async def handle(batch: Batch[str]) -> None:
        begun.append(batch.item)
        if batch.item == "b":
            batch.defer(until=86_400)
        else:
            batch.complete()

    for _ in range(2):
        with pytest.raises(RunStoppedError, match="deferred work"):
            async with begin(store) as run:
                async with run.open_stream("s", state=Frontier(["a", "b", "c"])) as stream:
                    await run_batches(stream, None, handle)
        assert begun == ["a", "b", "c"]


async def test_a_stop_of_a_run_with_a_stream_that_was_left_has_no_time(
    autojump_clock: Clock,
) -> None:
    with pytest.raises(RunStoppedError) as stopped:
        async with begin() as run:
            async with run.open_stream("left", on_fail="record") as left:
                async for batch in left.batches(range(1)):
                    batch.defer(until=86_400)
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(9)):
                    batch.complete()
                    run.request_stop()
    assert (stopped.value.reason, stopped.value.next_due) == (None, None)
    assert list(stream.progress.confirmed) == [0]


async def test_a_deferral_is_not_lifted_by_ctl(autojump_clock: Clock) -> None:
    async def requeue(run: Run, steering: Steering) -> None:
        await trio.sleep(50)
        why = await refused(steering, "requeue", stream=("s",), steps=(1, 1))
        assert "`trio-ckpt retry` lifts deferrals" in why

    begun = await begun_by(MemoryStore(), requeue, 300, "run_batches")
    assert begun[1] > 300
